"""Runs the cells of the atlas on all cores, and goes on where an earlier run stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from .losses import SUBJECTS
from .measure import measure
from .others import others
from .rows import FEW, SHORT, Cell

DTYPES = ("float64", "float32", "bfloat16", "float16")

Records = list[dict[str, Any]]


def cells(losses: Iterable[str], dtypes: Iterable[str], classes: Iterable[int]) -> Iterator[Cell]:
    """Yield the cells of a run; a loss of elements has one class."""
    sizes = set(classes)
    for name in losses:
        subject = SUBJECTS[name]
        for dtype in dtypes:
            for count in [c for c in subject.classes if c in sizes] or [1] * subject.of_elements:
                for offset in subject.offsets:
                    if offset == 0 or count == SHORT:
                        yield Cell(name, dtype, count, offset)


def read(file: Path) -> Records:
    """Return the records of an earlier run; a last line that was cut off does not count."""
    records = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def cell_of(record: dict[str, Any]) -> Cell:
    """Return the cell of a record."""
    return Cell(*(record[name] for name in Cell._fields))


def run(todo: list[Cell], file: Path, engines: list[str] | None, processes: int) -> None:
    """Measure the cells that the file has not, and add them to it, a line for each contestant."""
    done = {cell_of(record) for record in read(file)}
    left = [cell for cell in todo if cell not in done]
    # Cells with the same logits follow each other, those with the most numbers come last.
    left.sort(key=lambda cell: (cell.classes == FEW, cell.dtype, cell.classes, cell.offset))
    start = time.monotonic()
    print(f"{len(todo) - len(left)} of {len(todo)} cells are in {file}", file=sys.stderr)
    with file.open("a") as out:
        for k, records in enumerate(_measured(left, engines, processes), 1):
            out.writelines(json.dumps(record) + "\n" for record in records)
            out.flush()
            took = time.monotonic() - start
            last = " ".join(map(str, cell_of(records[0]))) if records else ""
            print(
                f"\r{k} of {len(left)} cells, {took / 60:.1f} min, "
                f"about {took / k * (len(left) - k) / 60:.0f} left  {last:60}",
                end="", file=sys.stderr, flush=True,
            )  # fmt: skip
    print(file=sys.stderr)


def _measured(left: list[Cell], engines: list[str] | None, processes: int) -> Iterator[Records]:
    """Yield the records of each cell, as they come; one process is this one."""
    if processes == 1 or not left:
        _prepare(engines)
        yield from map(_measure, left)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _prepare, (engines,)) as pool:
        yield from pool.imap_unordered(_measure, left)


_state: dict[str, Any] = {}  # of a process


def _prepare(engines: list[str] | None) -> None:
    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.engines.triton.interpreter import tame

        tame()
    found, _ = others()
    _state["libraries"] = {k: x for k, x in found.items() if engines is None or k in engines}
    _state["engines"] = engines


def _measure(cell: Cell) -> Records:
    return list(measure(SUBJECTS[cell.loss], cell, _state["libraries"], _state["engines"]))
