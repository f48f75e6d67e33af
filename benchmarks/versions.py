"""This version beside an earlier one, in turns: ``python -m benchmarks.versions FOLDER``.

The folder holds the package of the earlier version: the ``src`` of a checkout with its core built,
or what ``pip install --target FOLDER`` has filled. Each version has a process of its own. The last
column is the time of this version in plain copies of the logits; behind a linear head, of (rows,
features, classes), it is the time divided by that of the three products of matrices alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import xent
from xent import losses

from .harness.calls import Step, step, without_all
from .harness.linear_contestants import (
    LINEAR_CONTESTANTS,
    LinearCell,
    both,
    make_inputs,
    products,
)
from .harness.machine import describe_machine
from .harness.options import DTYPES, output_file, positive, seconds, write_json
from .harness.race import PATIENCE, ContestantError, Plan, race
from .harness.report import aligned, digits, disturbance, in_one_line, machine_text
from .harness.timing import announce, seconds_per_call

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 3.0  # for the rounds of one cell
SHAPES, WHOLE_ROWS = [(2048, 32000), (65536, 100)], [(512, 32000), (4096, 1024)]
HEADS = [(1024, 512, 32000), (128, 256, 8192), (4096, 64, 8192), (2048, 1024, 50257)]


# ---- what is measured ---------------------------------------------------------------------------


class Draw:
    """Inputs of one cell."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        torch.manual_seed(0)
        self.shape, self.dtype = shape, getattr(torch, dtype)

    def normal(self, spread: float = 1.0) -> Tensor:
        """Normal logits."""
        return (spread * torch.randn(self.shape)).to(self.dtype)

    def classes(self) -> Tensor:
        """The class of each row."""
        return torch.randint(self.shape[1], self.shape[:1] + self.shape[2:])

    def soft(self) -> Tensor:
        """Probabilities of each row."""
        return torch.randn(self.shape).softmax(1).to(self.dtype)

    def head(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features, weight and the class of each row, of a head of (rows, features, classes)."""
        rows, features, classes = self.shape
        name = str(self.dtype).removeprefix("torch.")
        return make_inputs(LinearCell(rows, features, classes, name, "cpu"))


def with_classes(loss: Any, draw: Draw, spread: float = 1.0) -> Step:
    """A loss of one class per row."""
    return step(loss, draw.normal(spread), draw.classes())


def with_teacher(divergence: str, draw: Draw) -> Step:
    """Distillation."""
    options: dict[str, Any] = {"temperature": 2.0, "divergence": divergence}
    return step(partial(losses.distillation_loss, **options), draw.normal(), draw.normal())


def with_soft(loss: Any, draw: Draw) -> Step:
    """A loss of numbers as wide as the logits."""
    return step(loss, draw.normal(), draw.soft())


def with_labels(draw: Draw) -> Step:
    """The asymmetric loss of labels, one in ten of them positive."""
    labels = (torch.rand(draw.shape) < 0.1).to(draw.dtype)
    return step(losses.asymmetric_loss, draw.normal(), labels)


def with_list(draw: Draw) -> Step:
    """Cross-entropy with eight classes of each row."""
    mass, classes = draw.soft().float().topk(8, 1)
    mass /= mass.sum(1, keepdim=True)
    return step(lambda z, y: losses.sparse_cross_entropy(z, y, mass), draw.normal(), classes)


def behind_head(draw: Draw) -> Step:
    """Cross-entropy behind a linear head."""
    return partial(both, LINEAR_CONTESTANTS["xent"].load(), *draw.head())


def each_row(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy as one loss per row."""
    return xent.cross_entropy(z, y, reduction="none").sum()


def copy(draw: Draw) -> Step:
    """The yardstick of logits."""
    z = draw.normal()
    out = torch.empty_like(z)
    return lambda: out.copy_(z)


def three_products(draw: Draw) -> Step:
    """The yardstick of a head."""
    hidden, weight, _ = draw.head()
    return partial(products, hidden, weight)


Make = Callable[[Draw], Step]
LINES: dict[str, tuple[list[tuple[int, ...]], Make]] = {
    "cross_entropy": (SHAPES, partial(with_classes, xent.cross_entropy)),
    "one loss per row": (SHAPES, partial(with_classes, each_row)),
    "classes on the middle axis": ([(16, 19, 65536)], partial(with_classes, xent.cross_entropy)),
    "soft targets": (SHAPES, partial(with_soft, xent.cross_entropy)),
    "eight listed classes": (SHAPES, with_list),
    "binary_cross_entropy_with_logits": (
        SHAPES, partial(with_soft, losses.binary_cross_entropy_with_logits)
    ),
    "asymmetric_loss": (SHAPES, with_labels),
    "distillation, forward": (WHOLE_ROWS, partial(with_teacher, "forward")),
    "distillation, reverse": (WHOLE_ROWS, partial(with_teacher, "reverse")),
    "distillation, jensen_shannon": (WHOLE_ROWS, partial(with_teacher, "jensen_shannon")),
    "sparsemax_loss": (WHOLE_ROWS, partial(with_classes, losses.sparsemax_loss)),
    "sparsemax_loss, flat rows": (
        WHOLE_ROWS, partial(with_classes, losses.sparsemax_loss, spread=1e-3)
    ),
    "entmax_loss": (WHOLE_ROWS, partial(with_classes, losses.entmax_loss)),
    "entmax_loss, flat rows": (
        WHOLE_ROWS, partial(with_classes, losses.entmax_loss, spread=1e-3)
    ),
    "bi_tempered_loss": (WHOLE_ROWS, partial(with_classes, losses.bi_tempered_loss)),
    "LinearLogits": (HEADS, behind_head),
}  # fmt: skip


class Cell(NamedTuple):
    """A line of the table."""

    line: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.line}, {' x '.join(map(str, self.shape))} {self.dtype}"

    def steps(self) -> dict[str, Step]:
        """The call and its yardstick."""
        make, bare = LINES[self.line][1], three_products if self.line == "LinearLogits" else copy
        return {
            "call": make(Draw(self.shape, self.dtype)),
            "bare": bare(Draw(self.shape, self.dtype)),
        }


def cells(dtypes: list[str], only: list[str]) -> Iterator[Cell]:
    """All cells whose names hold one of the texts."""
    for line, (shapes, _) in LINES.items():
        for shape in shapes:
            for dtype in dtypes:
                cell = Cell(line, shape, dtype)
                if any(text in str(cell) for text in only):
                    yield cell


# ---- a process for each version -----------------------------------------------------------------


def serve() -> None:
    """Answer requests, a line of JSON each, until the input ends."""
    steps: dict[str, Step] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "cell" in request:
                steps.clear()  # frees the inputs of the last cell before the next
                steps |= Cell(
                    request["cell"][0], tuple(request["cell"][1]), request["cell"][2]
                ).steps()
                answer: dict[str, Any] = {"seconds": 0.0}
            else:
                answer = {"seconds": seconds_per_call(steps[request["which"]], request["calls"])}
            answer["cpu"] = sum(os.times()[:2])
        except Exception as error:
            answer = {"failed": in_one_line(error)}
        print(json.dumps(answer), flush=True)


class Version:
    """A process that measures the version in one folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        path = os.pathsep.join(map(str, (folder, ROOT)))
        words = [sys.executable, "-m", __spec__.name, "--serve", "--threads", str(threads)]
        self.cpu = 0.0
        self.process = subprocess.Popen(
            words, env={**os.environ, "PYTHONPATH": path}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Version:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes the input, and so ends the process

    def ask(self, **request: Any) -> float:
        """The seconds that a request took; raise :class:`ContestantError` if it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{json.dumps(request)}\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            raise ContestantError("the process died") from None
        if "failed" in answer:
            raise ContestantError(answer["failed"])
        self.cpu = answer["cpu"]
        return answer["seconds"]

    def turn(self, which: str, calls: int) -> float:
        """One turn of the call or of the yardstick."""
        return self.ask(which=which, calls=calls)


def measure(cell: Cell, before: Version, now: Version, plan: Plan) -> dict[str, Any]:
    """Times of both versions and of the yardstick, as plain types."""
    found: dict[str, Any] = {"line": cell.line, "shape": cell.shape, "dtype": cell.dtype}
    turns = {}
    for name, version in (("before", before), ("now", now)):
        try:
            version.ask(cell=cell)
        except ContestantError as error:
            found.setdefault("failed", {})[name] = str(error)
        else:
            turns[name] = partial(version.turn, "call")
    turns["bare"] = partial(now.turn, "bare")
    outcome = race(turns, plan, lambda: before.cpu + now.cpu)
    found |= {name: without_all(time) for name, time in outcome.times.items()}
    return {**found, "others_busy": outcome.others_busy}


HEAD = ["", "before, ms", "now, ms", "before / now", "now / bare"]


def table(found: list[dict[str, Any]]) -> list[list[str]]:
    """The lines of the table."""
    lines = []
    for one in found:
        times = [one[name]["ms"] if name in one else None for name in ("before", "now", "bare")]
        before, now, bare = times
        lines.append([
            str(Cell(one["line"], tuple(one["shape"]), one["dtype"])) + disturbance(one),
            *(digits(t) if t else "failed" for t in (before, now)),
            f"{before / now:.2f}" if before and now else "",
            f"{now / bare:.2f}" if now and bare else "",
        ])  # fmt: skip
    return lines


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.versions", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of the earlier package")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES[:2]))
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="in the line")
    parser.add_argument("--seconds", type=seconds, default=SECONDS, help="per line")
    parser.add_argument("--patience", type=seconds, default=PATIENCE, help="per line, for noise")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--json", type=output_file, metavar="PATH")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.serve:
        serve()
        return 0
    if args.folder is None or not (args.folder / "xent" / "__init__.py").is_file():
        parser.error(f"FOLDER must hold the earlier package, xent/__init__.py; got {args.folder}")
    result: dict[str, Any] = {"machine": describe_machine(args.threads), "cells": []}
    every = list(cells(args.dtypes, args.only))
    plan = Plan(args.seconds, args.patience)
    here = Path(xent.__file__).parents[1]
    with Version(args.folder, args.threads) as before, Version(here, args.threads) as now:
        for done, cell in enumerate(every):
            announce(done, len(every), cell)
            result["cells"].append(measure(cell, before, now, plan))
    lines = aligned([HEAD, *table(result["cells"])])
    print(f"{lines}\n\n{machine_text(result['machine'])}")
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
