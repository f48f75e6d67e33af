"""The command line of benchmarks that print tables of calls."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import calls
from .calls import Step
from .machine import describe_machine
from .options import DTYPES, output_file, positive, seconds, write_json
from .race import PATIENCE, Plan
from .report import machine_text

LEGEND = """\
Milliseconds of loss and gradient are medians over rounds in turn, the spread is the distance of the
quartiles, "ns" is nanoseconds per logit, "copies" is the time in plain copies of the logits. The
other columns say how many times as long others take for the same: above 1, xent is faster.
"""


class Cell(NamedTuple):
    """A table: calls on the same logits, by the name of the line and that of the contestant."""

    name: str
    steps: Mapping[tuple[str, str], Step]
    logits: Tensor
    why: Mapping[str, str] = {}  # reasons of lines that are known to be slower, by their names


def run(
    purpose: str | None,
    name: str,
    cells: Callable[[list[str], float], Iterable[Cell]],
    time_of_cell: float,
) -> int:
    """Measure all cells, print their tables, and return 0 unless xent itself failed somewhere.

    Args:
        purpose: the docstring of the benchmark, whose first line describes the command.
        name: of the module in ``benchmarks``.
        cells: makes the cells of some dtypes, with logits of some standard deviation; one is in
            memory at a time.
        time_of_cell: seconds for the rounds of one cell, unless the command says otherwise.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(purpose or "").partition(":")[0]
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES[:2]), metavar="DTYPE",
        help="of %(choices)s (default: float32 bfloat16)",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="cells whose names contain a text"
    )
    parser.add_argument(
        "--seconds", type=seconds, default=time_of_cell, help="per cell (default: %(default)g)"
    )
    parser.add_argument(
        "--patience", type=seconds, default=PATIENCE, metavar="SECONDS",
        help="per cell, for repeating rounds that other processes disturb (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--spread", type=seconds, default=1.0, help="standard deviation of the logits (default: 1)"
    )
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), help="default: %(default)s"
    )
    parser.add_argument(
        "--json", type=output_file, metavar="PATH", help="write everything measured here"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"machine": describe_machine(args.threads), "cells": []}
    print(f"{machine_text(result['machine'])}\n{LEGEND}", flush=True)
    for cell in cells(args.dtypes, args.spread):
        if any(text in cell.name for text in args.only):
            found = measure(cell, Plan(args.seconds, args.patience))
            result["cells"].append(found)
            print(f"{calls.text(found)}\n", flush=True)
    lost = calls.slower(result["cells"])
    print("\n".join(f"slower: {line}" for line in lost) or "nowhere slower")
    if args.json:
        write_json(args.json, result)
    return int(any("xent" not in e for c in result["cells"] for e in c["rows"].values()))


def measure(cell: Cell, plan: Plan) -> dict[str, Any]:
    """The times of one cell, under its name."""
    out = torch.empty_like(cell.logits)
    copy = lambda: out.copy_(cell.logits)  # noqa: E731
    found = {"name": cell.name, "why": dict(cell.why)}
    return {**found, **calls.measure(cell.steps, copy, cell.logits.numel(), plan)}
