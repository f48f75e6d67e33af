"""Cross-entropy as programs meet it: ``python -m benchmarks.in_a_step`` (four minutes).

`xent bench` repeats one loss in a warm process. There, memory that the last call has freed waits
for the next call. Here xent and PyTorch are measured where it does not:

* **fresh**: the first calls of a new process, loss and gradient of given logits, after two untimed
  calls.
* **in a step**: within training steps, which are `Linear`, loss, backward pass and SGD: from the
  call of the loss until autograd has the gradient of the logits.
* **difference**: the time of such a step, less that of a step without a loss, whose backward
  pass starts from a given gradient. That includes what the loss costs the rest of the step, such as
  memory to free and caches to fill again; where logits are large it is the noise of their memory.

Each contestant has processes of its own, since the memory that an allocator keeps is part of what
is measured. Within a process, steps with and without a loss take turns, and so do the contestants.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import xent

from .harness.machine import describe_machine
from .harness.options import output_file, positive, seconds, shape, write_json
from .harness.report import aligned, digits, machine_text
from .harness.timing import PAUSE_SECONDS, announce, summary

Shape = tuple[int, int]
Loss = Callable[[Tensor, Tensor], Tensor]
SHAPES: list[Shape] = [
    (32, 10), (1024, 1000), (8192, 1000), (65536, 100), (512, 32000), (2048, 32000),
    (1024, 128256), (8, 151936),
]  # fmt: skip
LOSSES: dict[str, Loss] = {"xent": xent.cross_entropy, "torch": F.cross_entropy}
UNTIMED, FRESH = 2, 8  # the first calls of a process, and those after them that are timed
TURN_SECONDS = 0.15  # one turn repeats a short step for so long


def features(classes: int) -> int:
    """Return the inputs of the linear layer: few, so that its products do not hide the loss."""
    return 64 if classes <= 32000 else 16


class Bench:
    """The side of a process: one loss and one shape."""

    def __init__(self, name: str, rows: int, classes: int):
        self.loss, self.logits = LOSSES[name], torch.randn(rows, classes)
        self.target = torch.randint(classes, (rows,))
        self.model: Callable[[], Tensor] | None = None

    def fresh(self) -> list[float]:
        """Return the milliseconds of the first calls that are timed."""
        leaf = self.logits.clone().requires_grad_()
        times = []
        for _ in range(UNTIMED + FRESH):
            start = time.perf_counter()
            self.loss(leaf, self.target).backward()
            leaf.grad = None
            times.append(1e3 * (time.perf_counter() - start))
        return times[UNTIMED:]

    def prepare(self) -> None:
        """Make the layer, and find how many steps fill a turn."""
        rows, classes = self.logits.shape
        inputs = torch.randn(rows, features(classes))
        layer = torch.nn.Linear(features(classes), classes)
        self.optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
        self.given = self.logits.fill_(1 / self.logits.numel())  # the logits serve no more
        self.model = lambda: layer(inputs)
        self.steps = 1
        self.turn()
        self.steps = max(1, round(TURN_SECONDS / (2e-3 * self.turn()[0])))

    def step(self, with_loss: bool) -> tuple[float, float]:
        """Return the milliseconds of one training step, and those of the loss in it."""
        assert self.model is not None
        moments = [time.perf_counter()]
        logits = self.model()
        logits.register_hook(lambda _: moments.append(time.perf_counter()))
        moments.append(time.perf_counter())
        if with_loss:
            self.loss(logits, self.target).backward()
        else:
            logits.backward(self.given)
        self.optimizer.step()
        self.optimizer.zero_grad()
        del logits
        start, called, ready = moments
        return 1e3 * (time.perf_counter() - start), 1e3 * (ready - called)

    def turn(self) -> tuple[float, float, float]:
        """Return milliseconds, medians of a turn: of a step, of the loss in it, and by difference.

        The difference is that of two steps, one after the other.
        """
        found = []
        for _ in range(self.steps):
            (whole, inside), (without, _) = self.step(True), self.step(False)
            found.append((whole, inside, whole - without))
        whole, inside, difference = map(statistics.median, zip(*found, strict=True))
        return whole, inside, difference


def serve(pipe: Connection, name: str, rows: int, classes: int, threads: int) -> None:
    """Answer the parent, which sends names of methods, until it closes the pipe."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    bench = Bench(name, rows, classes)
    pipe.send("ready")
    while True:
        try:
            method = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(bench, method)())


class Process:
    """The side of the parent."""

    def __init__(self, name: str, cell: Shape, threads: int):
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=serve, args=(theirs, name, *cell, threads), daemon=True
        )
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Wait until the process has started, which keeps a core busy."""
        self._pipe.recv()

    def ask(self, method: str) -> Any:
        """Return the answer of a method of :class:`Bench`."""
        time.sleep(PAUSE_SECONDS)
        self._pipe.send(method)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def measure(cell: Shape, processes: int, turn_seconds: float, threads: int) -> dict[str, Any]:
    """Measure one shape, with so many processes of each contestant, one pair after the other."""
    fresh: dict[str, list[float]] = {name: [] for name in LOSSES}
    steps: dict[str, list[tuple[float, ...]]] = {name: [] for name in LOSSES}
    for _ in range(processes):
        pair = {name: Process(name, cell, threads) for name in LOSSES}
        for process in pair.values():
            process.wait()
        for name, process in pair.items():
            fresh[name] += process.ask("fresh")
        for process in pair.values():
            process.ask("prepare")
        end = time.monotonic() + turn_seconds / processes
        while True:
            for name, process in pair.items():
                steps[name].append(process.ask("turn"))
            if time.monotonic() > end:
                break
        for process in pair.values():
            process.close()
    return {
        "rows": cell[0],
        "classes": cell[1],
        "features": features(cell[1]),
        "fresh": {name: summary(times) for name, times in fresh.items()},
        **{
            kind: {name: summary([turn[k] for turn in turns]) for name, turns in steps.items()}
            for k, kind in enumerate(("step", "loss", "difference"))
        },
    }


def text(result: dict[str, Any]) -> str:
    """Return the table."""
    lines = [
        ["", "fresh", "", "", "in a step", "", "", "difference", "", "", "step", ""],
        ["logits", *("xent", "torch", "times") * 3, "xent", "torch"],
    ]
    for cell in result["cells"]:
        line = [f"{cell['rows']} x {cell['classes']} float32"]
        for kind in ("fresh", "loss", "difference"):
            line += [_figure(cell[kind][name]) for name in LOSSES] + [ratio(cell[kind])]
        lines.append(line + [digits(cell["step"][name]["ms"]) for name in LOSSES])
    head = (__doc__ or "").partition("\n\n")[2].strip().replace("`", "")
    note = "Milliseconds: medians, with quartiles; how many times as long PyTorch takes."
    return f"{head}\n\n{note}\n\n{aligned(lines)}\n\n{machine_text(result['machine'])}"


def _figure(time: dict[str, Any]) -> str:
    low, high = time["ms_quartiles"]
    return f"{time['ms']:.3g} ({low:.3g}-{high:.3g})"


def ratio(times: dict[str, dict[str, Any]]) -> str:
    """Return how many times as long PyTorch takes."""
    return f"{times['torch']['ms'] / times['xent']['ms']:.2f}"


def merged(cells: list[dict[str, Any]], path: Path | None) -> list[dict[str, Any]]:
    """Return these cells and those that only the file has, in the order of the shapes."""
    found: dict[Shape, dict[str, Any]] = {}
    if path is not None and path.exists():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"] + cells
    for cell in cells:
        found[cell["rows"], cell["classes"]] = cell
    known = {cell: k for k, cell in enumerate(SHAPES)}
    return [found[cell] for cell in sorted(found, key=lambda c: known.get(c, len(known)))]


def main() -> int:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.in_a_step", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--shapes", type=shape, nargs="+", default=SHAPES, metavar="N,V")
    parser.add_argument("--processes", type=positive, default=2, help="of each, one after another")
    parser.add_argument("--seconds", type=seconds, default=12.0, help="for the steps of a shape")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument(
        "--json", type=output_file, metavar="PATH", help="write here; other shapes there stay"
    )
    args = parser.parse_args()
    cells = []
    for done, cell in enumerate(args.shapes):
        announce(done, len(args.shapes), f"{cell[0]} x {cell[1]}")
        cells.append(measure(cell, args.processes, args.seconds, args.threads))
    result = {"machine": describe_machine(args.threads), "cells": merged(cells, args.json)}
    if args.json:
        write_json(args.json, result)
    print(text(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
