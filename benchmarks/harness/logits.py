"""``xent bench``: time, memory and accuracy against others, in one run and in turns.

A cell is one shape in one dtype. In every cell all contestants take turns, round after round, so
that a slow minute of the machine hits all of them; medians are compared. The cases in which xent is
slower are printed like the others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from . import linear
from .contestants import CONTESTANTS, MODES, Cell
from .machine import describe_machine
from .options import DTYPES, output_file, positive, seconds, shape, write_json
from .race import PATIENCE, ContestantError, Outcome, Plan, compare, race
from .report import LEGEND, cell_text, machine_text, markdown, memory_text, verdict
from .timing import announce
from .worker import Worker

# From a toy batch over image classification to language models; the last is a short decode step.
GRID = [(32, 10), (1024, 1000), (65536, 100), (2048, 32000), (1024, 128256), (8, 151936)]
QUICK_GRID = [(32, 10), (1024, 1000), (8, 151936)]

CELL_SECONDS, QUICK_CELL_SECONDS = 5.0, 1.5  # time for the rounds of one cell
MEMORY_FROM = 8 << 20  # bytes of logits; below, the memory of the process varies as much


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent bench``, and ``xent bench linear``."""
    subparsers = parser.add_subparsers(metavar="linear")
    behind_a_head = subparsers.add_parser(
        "linear", help="losses behind a linear head instead", description=linear.PURPOSE
    )
    linear.add_arguments(behind_a_head)
    behind_a_head.set_defaults(run=linear.run)
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--quick", action="store_true", help="three shapes, few rounds, no memory")
    parser.add_argument(
        "--shapes", type=shape, nargs="+", metavar="N,V", help="rows and classes, as in 1024,1000"
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES[:2]), metavar="DTYPE",
        help="of %(choices)s (default: float32 bfloat16)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=positive, metavar="K", help="rounds (default: by time)")
    parser.add_argument(
        "--patience", type=seconds, default=PATIENCE, metavar="SECONDS",
        help="per cell, for repeating rounds that other processes disturb (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), help="default: %(default)s"
    )
    parser.add_argument(
        "--contestants", nargs="+", choices=tuple(CONTESTANTS), metavar="NAME",
        default=list(CONTESTANTS), help="of %(choices)s (default: all); xent always takes part",
    )  # fmt: skip
    parser.add_argument(
        "--forward-only", action=switch, default=True, help="also time forward alone (default: yes)"
    )
    parser.add_argument("--memory", action=switch, help="measure memory (default: unless --quick)")
    parser.add_argument(
        "--json", type=output_file, metavar="PATH", help="write everything measured here"
    )
    parser.add_argument("--markdown", action="store_true", help="also print a table for a README")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and return 0 unless xent itself failed somewhere."""
    shapes = args.shapes or (QUICK_GRID if args.quick else GRID)
    cells = [Cell(rows, classes, dtype) for rows, classes in shapes for dtype in args.dtypes]
    names, absent = who_takes_part(args.contestants)
    result: dict[str, Any] = {"machine": describe_machine(args.threads), "absent": absent}
    print(machine_text(result["machine"]))
    for name, reason in absent.items():
        print(f"{name} does not take part: {reason}")
    print(LEGEND, flush=True)

    modes = MODES if args.forward_only else MODES[:1]
    time_of_cell = QUICK_CELL_SECONDS if args.quick else CELL_SECONDS
    plan = Plan(time_of_cell, args.patience, args.repeats)
    result["cells"] = _measure_cells(cells, names, args.threads, modes, plan)
    if args.memory or (args.memory is None and not args.quick):
        _measure_memory(result["cells"], names, args.threads)
        print(f"\n{memory_text(result['cells'])}")
    print(f"\n{verdict(result['cells'])}")
    if args.markdown:
        print(f"\n{markdown(result)}")
    if args.json:
        write_json(args.json, result)
    return int(any("both" not in found["contestants"]["xent"] for found in result["cells"]))


def who_takes_part(asked: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the contestants that can run, in the order of the registry, and why others cannot."""
    names = [name for name in CONTESTANTS if name in asked or name == "xent"]
    reasons = {name: CONTESTANTS[name].unavailable() for name in names}
    absent = {name: reason for name, reason in reasons.items() if reason is not None}
    return [name for name in names if name not in absent], absent


# -- Time and accuracy -----------------------------------------------------------------------------


def _measure_cells(
    cells: list[Cell], names: list[str], threads: int, modes: tuple[str, ...], plan: Plan
) -> list[dict[str, Any]]:
    workers = {name: Worker(name, threads) for name in names}
    found = []
    try:
        for done, cell in enumerate(cells):
            announce(done, len(cells), cell)
            found.append(measure_cell(cell, workers, modes, plan))
            print(f"\n{cell_text(found[-1])}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def measure_cell(
    cell: Cell, workers: dict[str, Worker], modes: tuple[str, ...], plan: Plan
) -> dict[str, Any]:
    """Measure all figures of one cell but the memory.

    Args:
        cell: the problem.
        workers: the contestants, by name.
        modes: which of :data:`MODES` to time.
        plan: how long.

    Returns:
        The cell with one entry per contestant, as plain types; an entry has ``failed``, a reason,
        if something went wrong.
    """
    entries: dict[str, dict[str, Any]] = {name: {} for name in workers}
    offered = _ask_all(workers, entries, "prepare", cell, modes)
    errors = _ask_all({name: workers[name] for name in offered}, entries, "errors")
    for name, found in errors.items():
        if found:
            entries[name]["errors"] = found
    outcome = _race({name: workers[name] for name in errors}, offered, plan)
    for (name, _), reason in outcome.failed.items():
        entries[name]["failed"] = reason
    for (name, mode), times in outcome.times.items():
        entries[name][mode] = times
    compare(entries, modes, cell.rows * cell.classes)
    return {**cell._asdict(), "others_busy": outcome.others_busy, "contestants": entries}


def _race(workers: dict[str, Worker], offered: dict[str, tuple[str, ...]], plan: Plan) -> Outcome:
    """Let all workers take turns, in each of their modes."""
    turns = {
        (name, mode): partial(worker.ask, "seconds", mode)
        for name, worker in workers.items()
        for mode in offered[name]
    }

    def cpu_seconds() -> float:
        return time.process_time() + sum(worker.cpu_seconds() for worker in workers.values())

    return race(turns, plan, cpu_seconds)


def _ask_all(
    workers: dict[str, Worker], entries: dict[str, dict], method: str, *arguments: Any
) -> dict[str, Any]:
    """Ask all workers at once, for work that is not timed; note the reason of those that fail."""
    answers = {}
    for worker in workers.values():
        worker.send(method, *arguments)
    for name, worker in workers.items():
        try:
            answers[name] = worker.receive()
        except ContestantError as error:
            entries[name]["failed"] = str(error)
    return answers


# -- Memory ----------------------------------------------------------------------------------------


def _measure_memory(found: list[dict[str, Any]], names: list[str], threads: int) -> None:
    """Add ``memory`` to the entries, each measured in a process that has done nothing else."""
    jobs = []
    for result in found:
        cell = Cell(result["rows"], result["classes"], result["dtype"])
        if cell.logit_bytes >= MEMORY_FROM:
            entries = result["contestants"]
            jobs += [(cell, name, entries[name]) for name in names if "forward" in entries[name]]

    def measure(job: tuple[Cell, str, dict[str, Any]]) -> None:
        cell, name, entry = job
        worker = Worker(name, threads)
        try:
            worker.ask("prepare", cell, MODES)
            entry["memory"] = worker.ask("memory")
        except ContestantError as error:
            entry["memory_failed"] = str(error)
        finally:
            worker.close()

    with ThreadPoolExecutor(max_workers=2) as pool:  # nothing is timed here
        list(pool.map(measure, jobs))
