"""``xent bench``: time, memory and accuracy against others, in one run and in turns.

A cell is one shape in one dtype. In every cell all contestants take turns, round after round, so
that a slow minute of the machine hits all of them; medians are compared. The cases in which xent is
slower are printed like the others.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from . import linear
from .contestants import CONTESTANTS, MODES, Cell
from .machine import cpu_seconds_of_all, describe_machine
from .options import DTYPES, output_file, positive, seconds, shape, write_json
from .report import LEGEND, cell_text, machine_text, markdown, memory_text, verdict
from .timing import PAUSE_SECONDS, announce, summary
from .worker import ContestantError, Worker

# From a toy batch over image classification to language models; the last is a short decode step.
GRID = [(32, 10), (1024, 1000), (65536, 100), (2048, 32000), (1024, 128256), (8, 151936)]
QUICK_GRID = [(32, 10), (1024, 1000), (8, 151936)]

TURN_SECONDS = 0.04  # one turn repeats short calls for so long: far above the timer's resolution
CELL_SECONDS, QUICK_CELL_SECONDS = 6.0, 1.5  # time for the rounds of one cell
PATIENCE = 5.0  # further seconds per cell for rounds without disturbance
QUIET = 0.15  # cores that others may keep busy in a round that counts as undisturbed
ROUNDS = (5, 25)  # at least and at most
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
    plan = Plan(modes, args.repeats, time_of_cell, args.patience)
    result["cells"] = _measure_cells(cells, names, args.threads, plan)
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


class Plan(NamedTuple):
    """Modes, number of rounds and time limits of a measurement.

    Attributes:
        modes: which of :data:`MODES` to time.
        repeats: rounds; None for as many as ``seconds`` allow.
        seconds: time for the rounds of one cell.
        patience: seconds per cell to spend on repeating rounds that other processes disturbed.
    """

    modes: tuple[str, ...]
    repeats: int | None
    seconds: float
    patience: float


def _measure_cells(
    cells: list[Cell], names: list[str], threads: int, plan: Plan
) -> list[dict[str, Any]]:
    workers = {name: Worker(name, threads) for name in names}
    found = []
    try:
        for done, cell in enumerate(cells):
            announce(done, len(cells), cell)
            found.append(measure_cell(cell, workers, plan))
            print(f"\n{cell_text(found[-1])}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def measure_cell(cell: Cell, workers: dict[str, Worker], plan: Plan) -> dict[str, Any]:
    """Measure all figures of one cell but the memory.

    Args:
        cell: the problem.
        workers: the contestants, by name.
        plan: what to time and how long.

    Returns:
        The cell with one entry per contestant, as plain types; an entry has ``failed``, a reason,
        if something went wrong.
    """
    entries: dict[str, dict[str, Any]] = {name: {} for name in workers}
    offered = _ask_all(workers, entries, "prepare", cell, plan.modes)
    errors = _ask_all({name: workers[name] for name in offered}, entries, "errors")
    for name, found in errors.items():
        if found:
            entries[name]["errors"] = found
    turns = [(name, mode) for mode in plan.modes for name in errors if mode in offered[name]]
    rounds = _Race(workers, entries, turns).run(plan)
    for name, mode in turns:
        times = [1e3 * one.seconds[name, mode] for one in rounds if (name, mode) in one.seconds]
        if times:
            entries[name][mode] = summary(times)
    _compare(entries, plan.modes)
    known = [one.busy for one in rounds if one.busy is not None]
    busy = statistics.mean(known) if known else None
    return {**cell._asdict(), "others_busy": busy, "contestants": entries}


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


class _Round(NamedTuple):
    """One turn of every contestant in every mode."""

    busy: float | None  # cores that other processes kept busy; None where that is unknown
    seconds: dict[tuple[str, str], float]  # per call, of every contestant and mode

    @property
    def quiet(self) -> bool:
        return self.busy is None or self.busy <= QUIET


class _Race:
    """Let the contestants of one cell take turns."""

    def __init__(
        self, workers: dict[str, Worker], entries: dict[str, dict], turns: list[tuple[str, str]]
    ):
        self.workers, self.entries, self.turns = workers, entries, turns
        self.fastest: dict[tuple[str, str], float] = {}

    def run(self, plan: Plan) -> list[_Round]:
        """Run rounds, and return as many as planned: the least disturbed, whatever their times."""
        for _ in range(2):  # not counted: the second knows how many calls fill a turn
            self._round()
        expected = sum(max(TURN_SECONDS, s) + PAUSE_SECONDS for s in self.fastest.values())
        wanted = min(max(round(plan.seconds / (expected or 1)), ROUNDS[0]), ROUNDS[1])
        wanted = plan.repeats or wanted
        deadline = time.monotonic() + wanted * expected + plan.patience
        rounds = [self._round() for _ in range(wanted)]
        while sum(one.quiet for one in rounds) < wanted and time.monotonic() < deadline:
            rounds.append(self._round())
        return sorted(rounds, key=lambda one: one.busy or 0.0)[:wanted]

    def _round(self) -> _Round:
        before = self._clocks()
        seconds = {turn: s for turn in self.turns if (s := self._turn(*turn)) is not None}
        after = self._clocks()
        if before is None or after is None:
            return _Round(None, seconds)
        wall, everything, ours = (b - a for a, b in zip(before, after, strict=True))
        return _Round(max(0.0, (everything - ours) / wall), seconds)

    def _turn(self, name: str, mode: str) -> float | None:
        """Time one contestant; return seconds per call, or None if the contestant has failed."""
        if "failed" in self.entries[name]:
            return None
        time.sleep(PAUSE_SECONDS)
        calls = math.ceil(TURN_SECONDS / self.fastest.get((name, mode), TURN_SECONDS))
        try:
            seconds = self.workers[name].ask("seconds", mode, calls)
        except ContestantError as error:
            self.entries[name]["failed"] = str(error)
            return None
        self.fastest[name, mode] = min(seconds, self.fastest.get((name, mode), seconds))
        return seconds

    def _clocks(self) -> tuple[float, float, float] | None:
        """Read wall time, CPU time of all processes, CPU time of ours; None where unknown."""
        everything = cpu_seconds_of_all()
        if everything is None:
            return None
        ours = time.process_time() + sum(w.cpu_seconds() for w in self.workers.values())
        return time.perf_counter(), everything, ours


def _compare(entries: dict[str, dict[str, Any]], modes: tuple[str, ...]) -> None:
    """Add the ratio to xent (above 1: xent is faster) and the number of plain copies."""
    copy = entries.get("copy", {}).get("both")
    for mode in modes:
        ours = entries["xent"].get(mode)
        for entry in entries.values():
            if mode in entry and ours and entry is not entries.get("copy"):
                entry[mode]["ratio"] = entry[mode]["ms"] / ours["ms"]
            if mode in entry and copy:
                entry[mode]["copies"] = entry[mode]["ms"] / copy["ms"]


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
