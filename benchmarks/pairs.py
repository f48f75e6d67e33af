"""Losses of a batch of labelled features: ``python -m benchmarks.pairs`` (two minutes).

Seconds of loss and gradient on one thread, and the memory that a process takes for them beyond
what it had, for supervised contrastive losses of xent, of plain PyTorch (the textbook formula on
the matrix of pairs) and of pytorch-metric-learning where it is installed. Each measurement is a new
process, since a process does not give back its largest memory; contestants take turns. The time of
a process is the median of its calls, that of a contestant the least of its processes, and its
memory the largest.

    python -m benchmarks.pairs --rows 8192 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import xent

from .harness.internals import peak_memory
from .harness.machine import describe_machine
from .harness.options import positive
from .harness.report import aligned, machine_text

Loss = Callable[[Tensor, Tensor], Tensor]
WIDTH, TEMPERATURE = 128, 0.07
CALLS = 3  # of a process
MOST_ROWS = {"NTXentLoss": 1024}  # its memory grows with the square of the number of pairs


class Case(NamedTuple):
    """A batch: so many rows, and so many of each label."""

    rows: int
    alike: int


def plain(features: Tensor, labels: Tensor) -> Tensor:
    """SupCon as people write it, with the matrix of pairs."""
    x = F.normalize(features, dim=1)
    itself = torch.eye(len(x), dtype=torch.bool)
    same = (labels[:, None] == labels) & ~itself
    z = (x @ x.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    count = same.sum(1)
    values = z.logsumexp(1) - torch.where(same, z, 0).sum(1) / count.clamp(min=1)
    return values[count > 0].mean()


def of_xent(features: Tensor, labels: Tensor) -> Tensor:
    return xent.losses.supcon_loss(features, labels, temperature=TEMPERATURE)


def metric_learning(name: str) -> Loss:
    """A loss of pytorch-metric-learning; an ImportError where it is not installed."""
    from pytorch_metric_learning import losses  # pyright: ignore

    return getattr(losses, name)(temperature=TEMPERATURE)


CONTESTANTS: dict[str, Callable[[], Loss]] = {
    "xent": lambda: of_xent,
    "torch": lambda: plain,
    "SupConLoss": lambda: metric_learning("SupConLoss"),
    "NTXentLoss": lambda: metric_learning("NTXentLoss"),
}


def measure(name: str, case: Case) -> dict[str, float]:
    """Seconds of loss and gradient, memory in MiB beyond that of before, and the loss."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loss = CONTESTANTS[name]()
    small = torch.randn(32, WIDTH, requires_grad=True)
    loss(small, torch.arange(32) % 4).backward()  # loads what a first call loads
    features = torch.randn(case.rows, WIDTH, requires_grad=True)
    labels = torch.arange(case.rows) % (case.rows // case.alike)
    before, times = peak_memory() or 0, []
    value = torch.zeros(())
    for _ in range(CALLS):
        features.grad = None
        start = time.perf_counter()
        value = loss(features, labels)
        value.backward()
        times.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(times),
        "memory": ((peak_memory() or 0) - before) / 2**20,
        "loss": value.item(),
    }


def in_a_process(name: str, case: Case, patience: float) -> dict[str, float] | str:
    """The measurement in a new process; the reason if there is none."""
    command = [sys.executable, "-m", "benchmarks.pairs", "--one", name]
    command += [str(case.rows), str(case.alike)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return f"took more than {patience:g} seconds"
    if done.returncode:
        return done.stderr.strip().rpartition("\n")[2]
    return json.loads(done.stdout)


def table(case: Case, names: list[str], rounds: int, patience: float) -> list[str]:
    """Return the lines of a case."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    missing: dict[str, str] = {}
    for _ in range(rounds):
        for name in names:
            result = name in missing or in_a_process(name, case, patience)
            if isinstance(result, str):
                missing[name] = result
            elif isinstance(result, dict):
                found[name].append(result)
    lines = [["", "seconds", "MiB", "loss"]]
    for name, runs in found.items():
        if runs and name not in missing:
            seconds = min(r["seconds"] for r in runs)
            memory = max(r["memory"] for r in runs)
            lines.append([name, f"{seconds:.4g}", f"{memory:.0f}", f"{runs[0]['loss']:.6f}"])
    head = f"{case.rows} x {WIDTH}, {case.alike} rows of each label"
    return [head, aligned(lines), *(f"{name}: {why}" for name, why in missing.items()), ""]


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 8192], metavar="N")
    parser.add_argument("--alike", type=int, default=8, help="rows of each label (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contestant")
    parser.add_argument("--patience", type=positive, default=60.0, help="seconds for a process")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "N", "ALIKE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, rows, alike = given.one
        print(json.dumps(measure(name, Case(int(rows), int(alike)))))
        return 0
    print(machine_text(describe_machine(1)))
    for rows in given.rows:
        names = [name for name in CONTESTANTS if rows <= MOST_ROWS.get(name, rows)]
        for line in table(Case(rows, given.alike), names, given.rounds, given.patience):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
