"""``xent bench linear``: losses behind a linear head, beside the matrix products alone."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch import Tensor

from .linear_contestants import (
    LINEAR_CONTESTANTS,
    LinearCell,
    both,
    errors,
    make_inputs,
    memory,
    products,
)
from .machine import describe_machine
from .options import DTYPES, device, head_shape, output_file, positive, write_json
from .race import Plan, race, turn_of
from .report import aligned, digits, disturbance, error_text, in_one_line, machine_text
from .timing import announce

PURPOSE = "Loss and gradient behind a linear head: time, memory and error beside others."
Shape = tuple[int, int, int]
GRID: list[Shape] = [(1024, 512, 32000), (1024, 256, 50257), (256, 256, 128256), (4096, 64, 8192)]
QUICK_GRID: list[Shape] = [(512, 128, 8192)]
NARROW_GRID: list[Shape] = [  # of bfloat16
    (1024, 512, 32000), (128, 256, 8192), (4096, 64, 8192), (1024, 1024, 50257),
]  # fmt: skip
CELL_SECONDS = 6.0  # time for the rounds of one cell, of which there are at least three
LEAST_ROUNDS = 3
LEGEND = """\
A cell is rows, features and classes. Milliseconds of loss and gradient are medians of rounds in
turn; "x products" divides them by those of the three bare products of matrices, in float32 where
they are faster. MiB are those at the peak beyond inputs and gradients. Errors are against float64,
relative, of the gradient to its largest entry; on random rows, and on rows sure of their targets.
"""
HEADINGS = ["", "ms", "x products", "MiB", "loss", "gradient", "sure: loss", "sure: gradient"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent bench linear``."""
    parser.add_argument("--quick", action="store_true", help="one small shape, no memory")
    parser.add_argument(
        "--shapes", type=head_shape, nargs="+", metavar="N,D,V",
        help="rows, features and classes, as in 1024,512,32000",
    )  # fmt: skip
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, metavar="DTYPE",
        help="of %(choices)s (default: float32, and other shapes in bfloat16)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=positive, metavar="K", help="rounds (default: by time, at least 3)"
    )
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), help="default: %(default)s"
    )
    parser.add_argument(
        "--device", type=device, default="cpu", help="as in cuda (default: %(default)s)"
    )
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction,
        help="measure memory (default: unless --quick)",
    )  # fmt: skip
    parser.add_argument(
        "--json", type=output_file, metavar="PATH", help="write everything measured here"
    )
    parser.add_argument("--markdown", action="store_true", help="also print a table for a README")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and return 0 unless xent itself failed somewhere."""
    torch.set_num_threads(args.threads)
    reasons = {name: one.unavailable(args.device) for name, one in LINEAR_CONTESTANTS.items()}
    absent = {name: reason for name, reason in reasons.items() if reason is not None}
    names = [name for name in reasons if name not in absent]
    result: dict[str, Any] = {"machine": describe_machine(args.threads), "absent": absent}
    if args.device != "cpu":
        result["machine"]["device"] = torch.get_device_module(args.device).get_device_name()
    print(machine_text(result["machine"]))
    for name, reason in absent.items():
        print(f"{name}, not here: {reason}")
    print(LEGEND, flush=True)
    with_memory = not args.quick if args.memory is None else args.memory
    result["cells"] = []
    cells = cells_for(args)
    for done, cell in enumerate(cells):
        announce(done, len(cells), cell)
        found = measure_cell(cell, names, args.repeats)
        if with_memory:
            measure_memory(cell, found["contestants"], args.threads)
        result["cells"].append(found)
        print(f"\n{cell_text(found)}", flush=True)
    if args.markdown:
        print(f"\n{markdown(result)}")
    if args.json:
        write_json(args.json, result)
    ours = (cell["contestants"].get("xent", {"failed": ""}) for cell in result["cells"])
    return int(any("failed" in entry for entry in ours))


def cells_for(args: argparse.Namespace) -> list[LinearCell]:
    """Return every shape in every dtype asked for; by default some in bfloat16."""
    if args.shapes or args.dtypes or args.quick:
        shapes: list[Shape] = args.shapes or (QUICK_GRID if args.quick else GRID)
        grid = [(shape, dtype) for shape in shapes for dtype in args.dtypes or DTYPES[:2]]
    else:
        grid = [(shape, "float32") for shape in GRID]
        grid += [(shape, "bfloat16") for shape in NARROW_GRID]
    return [LinearCell(*shape, dtype, args.device) for shape, dtype in grid]


# -- Measuring -------------------------------------------------------------------------------------


def measure_cell(cell: LinearCell, names: Sequence[str], repeats: int | None) -> dict[str, Any]:
    """Measure times and errors of one cell.

    Args:
        cell: the problem.
        names: the contestants.
        repeats: how often each is timed; None for as often as the time allows.

    Returns:
        The cell with ``products``, the times of the bare products in each dtype, and one entry per
        contestant, as plain types; an entry has ``failed``, a reason, if something went wrong.
    """
    entries: dict[str, dict[str, Any]] = {name: {} for name in names}
    inputs = make_inputs(cell)
    calls = _products(cell, inputs[0], inputs[1])
    bare = list(calls)
    for name in names:
        try:
            loss = LINEAR_CONTESTANTS[name].load()
            if LINEAR_CONTESTANTS[name].plain:
                entries[name]["errors"] = errors(loss, cell)
        except Exception as error:  # whatever other libraries raise
            entries[name]["failed"] = in_one_line(error)
        else:
            calls[name] = lambda loss=loss: both(loss, *inputs)
    turns = {name: turn_of(_until_done(call, cell.device)) for name, call in calls.items()}
    outcome = race(turns, Plan(CELL_SECONDS, repeats=repeats, least=LEAST_ROUNDS))
    yardsticks = {name: outcome.times.pop(name) for name in bare}
    least = min(one["ms"] for one in yardsticks.values())
    for name, times in outcome.times.items():
        entries[name] |= {**times, "ratio": times["ms"] / least}
    for name, reason in outcome.failed.items():
        entries[name]["failed"] = reason
    found = {"others_busy": outcome.others_busy, "products": yardsticks, "contestants": entries}
    return {**cell._asdict(), **found}


def _products(cell: LinearCell, hidden: Tensor, weight: Tensor) -> dict[str, Callable[[], None]]:
    """Return calls of the bare products, in the dtype of the cell and in float32."""
    calls = {}
    for dtype in dict.fromkeys((cell.dtype, "float32")):
        h, w = (x.detach().to(getattr(torch, dtype)) for x in (hidden, weight))
        calls[f"products, {dtype}"] = lambda h=h, w=w: products(h, w)
    return calls


def _until_done(call: Callable[[], None], device: str) -> Callable[[], None]:
    """A call that returns once the device has finished its work."""
    if device == "cpu":
        return call

    def wait() -> None:
        call()
        torch.accelerator.synchronize()

    return wait


def measure_memory(cell: LinearCell, entries: dict[str, dict[str, Any]], threads: int) -> None:
    """Add ``memory``, in bytes, each measured in a process that has done nothing but imports."""
    context = _fresh_processes()
    for name, entry in entries.items():
        if "failed" not in entry:
            try:
                with ProcessPoolExecutor(1, context) as pool:
                    entry["memory"] = pool.submit(memory, name, cell, threads).result()
            except Exception as error:  # of the contestant, or the end of its process
                entry["memory_failed"] = in_one_line(error)


def _fresh_processes() -> BaseContext:
    """Return a context whose processes have the imports of the contestants, and nothing else.

    Where the system can fork, one server imports once and every process is a fork of the server:
    most of a measurement of memory was the import.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([memory.__module__])
    return context


# -- Tables ----------------------------------------------------------------------------------------


def cell_text(cell: dict[str, Any]) -> str:
    """Return the table of one cell."""
    rows = [HEADINGS]
    for name, one in cell["products"].items():
        rows.append([name, digits(one["ms"]), *[""] * (len(HEADINGS) - 2)])
    entries = cell["contestants"].items()
    rows += [[name, *_columns(entry)] for name, entry in entries if "failed" not in entry]
    failed = [f"  {name} failed: {entry['failed']}" for name, entry in entries if "failed" in entry]
    return "\n".join([f"{_name(cell)}{disturbance(cell)}", aligned(rows), *failed])


def markdown(result: dict[str, Any]) -> str:
    """Return all cells as one table for a README."""
    lines = [f"| N, D, V | | {' | '.join(HEADINGS[1:])} |", f"|{'---|' * (len(HEADINGS) + 1)}"]
    for cell in result["cells"]:
        for name, entry in cell["contestants"].items():
            if "failed" not in entry:
                lines.append(f"| {' | '.join([_name(cell), name, *_columns(entry)])} |")
    return "\n".join([*lines, "", machine_text(result["machine"]) + "."])


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['rows']}, {cell['features']}, {cell['classes']} {cell['dtype']}"


def _columns(entry: dict[str, Any]) -> list[str]:
    memory_used = f"{entry['memory'] / 2**20:.0f}" if "memory" in entry else ""
    wrong = [""] * 4
    if "errors" in entry:
        batches = (entry["errors"][name] for name in ("random", "sure"))
        wrong = [error_text(one[name]) for one in batches for name in ("loss", "gradient")]
    return [digits(entry["ms"]), f"{entry['ratio']:.2f}", memory_used, *wrong]
