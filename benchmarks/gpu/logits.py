"""Cross-entropy of given logits on a GPU, beside its peers, in one run of five minutes.

    python -m benchmarks.gpu.logits [--json PATH] [--markdown]
    python -m benchmarks.gpu.logits --shapes 8192,128256 --dtypes bfloat16 float32
    python -m benchmarks.gpu.logits --interpret     # no GPU: tiny shapes, to see the form

First it measures problems whose launches take longer than the work, by calls and as a CUDA graph.
Then it measures the family beside cross-entropy; and then all contestants on every shape, until the
time is used up.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

import xent

from ..family import inputs, members
from ..harness.contestants import Cell
from ..harness.machine import describe_machine
from ..harness.options import DTYPES, output_file, positive, seconds, shape, write_json
from ..harness.report import digits, in_one_line, machine_text, markdown
from ..harness.timing import announce, summary
from .contestants import BY_ROW, CONTESTANTS, Task, errors, make_inputs, truth_of
from .report import LEGEND, cell_text, family_text, launches_text, summary_text
from .timing import (
    COPY_SWEEPS,
    SWEEPS,
    Budget,
    CudaTimer,
    Timer,
    Turn,
    figures,
    gigabytes_per_second,
    nothing,
    race,
)

LARGE, MANY, SMALL = (8192, 128256), (65536, 100), (4096, 1000)
WIDTHS = [(32768, 1 << k) for k in range(8, 17)] + [(16384, 1 << 17), (8192, 1 << 18)]
TALL = [
    (1 << 18, 256),
    (1 << 17, 512),
    (1 << 20, 100),
]  # few classes, but enough rows to keep a GPU busy
TINY = [(4, 40)]  # for the interpreter
GRAPHS = ("xent", BY_ROW, "torch")  # the others wait for the GPU within a call


class Setting(NamedTuple):
    """Device, contestants and rounds of a measurement.

    Attributes:
        timer: of the device.
        engine: the engine that xent takes.
        names: the contestants.
        rounds: at most.
    """

    timer: Timer
    engine: str
    names: list[str]
    rounds: int


def setting_for(args: argparse.Namespace) -> tuple[Setting, dict[str, str]]:
    """Return the setting for the GPU or the interpreter, and why contestants do not take part."""
    engine = "triton" if args.interpret else "auto"
    asked = [name for name in CONTESTANTS if name in args.contestants or name == "xent"]
    reasons = {name: CONTESTANTS[name].unavailable(engine) for name in asked}
    absent = {name: reason for name, reason in reasons.items() if reason}
    names = [name for name in asked if name not in absent]
    timer, rounds = (Timer(), 2) if args.interpret else (CudaTimer(), 20)
    return Setting(timer, engine, names, args.repeats or rounds), absent


# ---- measuring -----------------------------------------------------------------------------------


def measure_cell(cell: Cell, setting: Setting) -> dict[str, Any]:
    """Measure every contestant on one problem: times, rates, errors and memory."""
    timer = setting.timer
    logits, target = make_inputs(cell, timer.device)
    exact, copied = truth_of(logits, target), torch.empty_like(logits)
    entries: dict[str, dict[str, Any]] = {name: {} for name in setting.names}
    turns = {("copy", "both"): Turn(nothing, partial(copied.copy_, logits))}
    for name in setting.names:
        contestant = CONTESTANTS[name]
        try:
            loss = contestant.load(setting.engine)
            task = Task(loss, logits, target, contestant.overwrites)
            task.warm_up(SWEEPS)
            task.ready("both")
            entries[name]["errors"] = errors(*task.both(), exact)
            peaks = {mode: timer.peak(task.turn(mode)) for mode in ("forward", "both")}
            entries[name]["memory"] = peaks
        except Exception as error:  # whatever other libraries raise
            entries[name] = {"failed": in_one_line(error)}
        else:
            turns |= {(name, mode): task.turn(mode) for mode in SWEEPS}
    times = race(turns, timer, setting.rounds)
    copy = summary(times.pop(("copy", "both")))
    for (name, mode), found in times.items():
        entries[name][mode] = figures(mode, found, cell.logit_bytes, copy["ms"])
        if mode in entries["xent"]:
            ratio = entries[name][mode]["ms"] / entries["xent"][mode]["ms"]
            entries[name][mode]["ratio"] = ratio
    copy["gb_s"] = gigabytes_per_second(COPY_SWEEPS, cell.logit_bytes, copy["ms"])
    entries["copy"] = {"both": copy | {"copies": 1.0}}
    return {**cell._asdict(), "others_busy": None, "contestants": entries}


def measure_launches(cell: Cell, setting: Setting) -> dict[str, Any]:
    """Measure milliseconds per call, called one by one and replayed as a graph."""
    logits, target = make_inputs(cell, setting.timer.device)
    found: dict[str, Any] = {}
    for name in (name for name in GRAPHS if name in setting.names):
        found[name] = {}
        for mode in ("forward", "both"):
            task = Task(CONTESTANTS[name].load(setting.engine), logits, target)
            call = getattr(task, mode)
            try:
                replay = setting.timer.captured(call)  # first: autograd keeps the stream
                pair = {"replayed": setting.timer.burst(replay)}
                found[name][mode] = pair | {"called": setting.timer.burst(call)}
            except Exception as error:
                found[name][mode] = {"failed": in_one_line(error)}
    return {**cell._asdict(), "contestants": found}


def measure_family(cell: Cell, setting: Setting) -> dict[str, Any]:
    """Measure milliseconds of loss and gradient for every loss of one class per row."""
    timer = setting.timer
    logits, target = make_inputs(cell, timer.device)
    losses: dict[str, Any] = {**members("classes", cell.classes, timer.device)}
    losses["cross_entropy, z_loss=1e-4"] = partial(xent.cross_entropy, z_loss=1e-4)
    turns, failed = {}, {}
    for name, loss in losses.items():
        task = Task(partial(loss, engine=setting.engine), *inputs(name, logits, target))
        try:
            task.warm_up(["both"])
        except Exception as error:
            failed[name] = in_one_line(error)
        else:
            turns[name] = task.turn("both")
    times = race(turns, timer, setting.rounds)
    found = {name: statistics.median(values) for name, values in times.items()}
    return {**cell._asdict(), "ms": found, "failed": failed}


# Each part with what measures it, what prints it, and its shapes.
PARTS = {
    "launches": (measure_launches, launches_text, [MANY, SMALL]),
    "family": (measure_family, family_text, [LARGE, MANY]),
    "cells": (measure_cell, cell_text, [LARGE, MANY, SMALL, *WIDTHS, *TALL]),
}


# ---- the command ---------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    found = argparse.ArgumentParser(
        prog="benchmarks.gpu.logits", description=(__doc__ or "").partition("\n")[0]
    )
    add, option = found.add_argument, {"type": shape, "nargs": "*", "metavar": "N,V"}
    add(
        "--shapes",
        dest="cells",
        **option,
        help="rows and classes (default: those of QuACK's page, and others)",
    )
    add("--launches", **option, help="whose launches to look at (with --shapes: none)")
    add("--family", **option, help="what to measure the family on (with --shapes: nothing)")
    add("--rows", type=positive, metavar="K", help="no more rows than these, in every shape")
    add(
        "--dtypes", nargs="+", choices=DTYPES[:2], default=["bfloat16"], metavar="DTYPE",
        help="of %(choices)s (default: bfloat16); the first one is that of launches and family",
    )  # fmt: skip
    add(
        "--contestants", nargs="+", choices=tuple(CONTESTANTS), default=list(CONTESTANTS),
        metavar="NAME", help="of %(choices)s (default: all); xent always takes part",
    )  # fmt: skip
    add("--repeats", type=positive, metavar="K", help="rounds, if time allows (default: 20)")
    add(
        "--seconds", type=seconds, default=285.0,
        help="begin nothing that would end later than this (default: %(default)g)",
    )  # fmt: skip
    add("--json", type=output_file, metavar="PATH", help="write everything measured here")
    add("--markdown", action="store_true", help="also print a table for a README")
    add("--quiet", action="store_true", help="no word on what is measured next")
    add(
        "--interpret", action="store_true",
        help="tiny shapes on the CPU, in Triton's interpreter: the form and the errors, no times",
    )  # fmt: skip
    return found


def plan(args: argparse.Namespace) -> list[tuple[str, Cell]]:
    """Return every part of the run with each of its cells, in order."""
    steps = []
    for part, (_, _, shapes) in PARTS.items():
        asked = getattr(args, part)
        if asked is None:
            asked = [] if args.cells else TINY if args.interpret else shapes
        dtypes = args.dtypes if part == "cells" else args.dtypes[:1]
        least = [(min(rows, args.rows or rows), classes) for rows, classes in asked]
        steps += [(part, Cell(*one, dtype)) for dtype in dtypes for one in dict.fromkeys(least)]
    return steps


def run(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Measure the parts for which there is time, and print each part when it is done."""
    budget: Budget[tuple[str, Cell]] = Budget(args.seconds)
    setting, absent = setting_for(args)
    timer = setting.timer
    machine = describe_machine(torch.get_num_threads()) | {"device": timer.describe()}
    flush = timer.milliseconds(Turn(nothing, timer.flush))
    print(f"{machine_text(machine)}\n{command}")
    for name, reason in absent.items():
        print(f"{name} does not take part: {reason}")
    print(f"{LEGEND} The flush takes {digits(flush)} ms.")

    result: dict[str, Any] = {"machine": machine, "command": command, "absent": absent}
    result |= {"flush_ms": flush, "failed": {}} | {part: [] for part in PARTS}
    steps = plan(args)
    for done, (part, cell) in enumerate(budget.within(steps)):
        if not args.quiet:
            announce(done, len(steps), f"{part}, {cell}")
        measure, text, _ = PARTS[part]
        try:
            result[part].append(measure(cell, setting))
        except Exception as error:  # the other steps still run
            result["failed"][f"{part}, {cell}"] = in_one_line(error)
        else:
            print(f"\n{text(result[part][-1])}", flush=True)
        gc.collect()
        timer.release()
    result["left_out"] = [f"{part}, {cell}" for part, cell in budget.left_out]
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Run, print the result, and return 0 unless xent failed somewhere."""
    words = sys.argv[1:] if words is None else words
    options = parser()
    args = options.parse_args(words)
    if not args.interpret and not torch.cuda.is_available():
        options.error(
            "PyTorch finds no GPU here; --interpret runs tiny shapes on the CPU, for the form only"
        )
    result = run(args, shlex.join(["python", "-m", "benchmarks.gpu.logits", *words]))
    if result["cells"]:
        print(f"\n{summary_text(result['cells'])}")
    for step in result["left_out"]:
        print(f"left out, as there was no time: {step}")
    for step, reason in result["failed"].items():
        print(f"{step} failed: {reason}")
    if args.markdown and result["cells"]:
        print(f"\n{markdown(result)}")
    if args.json:
        write_json(args.json, result)
    ours = (cell["contestants"]["xent"] for cell in result["cells"])
    return int(bool(result["failed"]) or any("failed" in entry for entry in ours))


if __name__ == "__main__":
    sys.exit(main())
