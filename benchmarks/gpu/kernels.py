"""The kernels of losses of rows: compiled ahead, run once for a sanitizer, and by launch sizes.

python -m benchmarks.gpu.kernels warm    # compiles, on many cores, what `sizes` will launch
python -m benchmarks.gpu.kernels once    # small shapes of every kind, for compute-sanitizer
python -m benchmarks.gpu.kernels sizes   # each kernel, in percent of the rate of a copy
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch

import xent

from ..harness.contestants import Cell
from ..harness.internals import launch_sizes
from ..harness.report import in_one_line
from .contestants import BY_ROW, CONTESTANTS, Task, make_inputs
from .device import DEVICE, ENGINE, REHEARSAL, make_timer, median
from .timing import Timer, race

LOSS: Callable[..., Any] = xent.cross_entropy
PROGRAM: Callable[..., Any] = xent.losses.focal_loss  # a loss without a kernel of its own
SHAPES = [(8192, 128256), (8192, 32000), (65536, 4096), (262144, 1000), (2097152, 100)]
ROUNDS = 5
OTHER_WIDTHS = (10, 8192, 50257)  # compiled ahead for the tests and the table of peers
ALL_SIZES: list[dict[str, int]] = [
    {},
    {"PER_WARP": 1024},
    {"PER_WARP": 4096},
    {"ROWS_PER_THREAD": 8},
    {"ON_CHIP": 8192},
    {"ON_CHIP": 32768},
    {"CLUSTER": 8},
    {"STEP_PER_WARP": 512},
    {"STEP_PER_WARP": 2048},
    {"GROUP": 8192},
    {"GROUP": 32768, "MOST_BLOCKS": 8},
]
SIZES = ALL_SIZES
if REHEARSAL:
    SHAPES, OTHER_WIDTHS, SIZES = [(4, 40)], (10,), ALL_SIZES[:2]


class Launch(NamedTuple):
    """Loss, number of classes, reduction, dtype and launch sizes of one call."""

    classes: int
    reduction: str
    dtype: str = "bfloat16"
    sizes: dict[str, int] = {}  # noqa: RUF012 - never changed
    loss: Callable[..., Any] = LOSS


def run_once(launch: Launch) -> str | None:
    """Compute loss and gradient of a few rows; return what failed, or None."""
    logits, target = make_inputs(Cell(64, launch.classes, launch.dtype), DEVICE)
    leaf = logits.requires_grad_()
    try:
        with launch_sizes(**launch.sizes):
            launch.loss(leaf, target, reduction=launch.reduction, engine=ENGINE).sum().backward()
    except Exception as error:  # such as too many registers for these sizes
        return f"{launch}: {in_one_line(error)}"
    return None


def warm() -> None:
    """Compile everything that the other parts launch, each kernel in one of many processes."""
    launches = [Launch(v, r, sizes=s) for (_, v), r, s in product(SHAPES, ("mean", "none"), SIZES)]
    launches += [Launch(v, "mean", sizes=s, loss=PROGRAM) for (_, v), s in product(SHAPES, SIZES)]
    dtypes = ("float32", "bfloat16")
    launches += [Launch(*one) for one in product(OTHER_WIDTHS, ("mean", "none"), dtypes)]
    with multiprocessing.get_context("spawn").Pool(2 if REHEARSAL else 12) as pool:
        failed = [text for text in pool.map(run_once, launches, chunksize=1) if text]
    print(f"{len(launches)} launches compiled ahead, {len(failed)} failed", *failed, sep="\n")


def once() -> None:
    """Run rows of every kind, and pixels, once; raise what goes wrong."""
    widths = (10, 40) if REHEARSAL else (10, 100, 1000, 40000)
    for classes, reduction in product(widths, ("mean", "none")):
        failed = run_once(Launch(classes, reduction))
        if failed:
            raise RuntimeError(failed)
    pixels = torch.randn(2, 5, 3, 4, device=DEVICE, requires_grad=True)
    labels = torch.randint(5, (2, 3, 4), device=DEVICE)
    LOSS(pixels, labels, engine=ENGINE).backward()
    print("all ran")


def percent_of_copy(cell: Cell, timer: Timer) -> dict[str, float]:
    """Measure each kernel, in percent of the rate at which the same bytes are copied.

    Returns:
        ``statistics`` (reads the logits), ``gradient`` (reads and writes), ``one pass`` (loss and
        gradient at once: at least one read and one write) and ``program`` (the same of another
        loss).
    """
    logits, target = make_inputs(cell, timer.device)
    copied = torch.empty_like(logits)
    one_sweep = median(timer, partial(copied.copy_, logits)) / 2  # milliseconds
    by_row = Task(CONTESTANTS[BY_ROW].load(ENGINE), logits, target)
    mean = Task(CONTESTANTS["xent"].load(ENGINE), logits, target)
    turns = {
        "statistics": (1, by_row.turn("forward")),
        "gradient": (2, by_row.turn("backward")),
        "one pass": (2, mean.turn("both")),
        "program": (2, Task(partial(PROGRAM, engine=ENGINE), logits, target).turn("both")),
    }
    times = race({name: turn for name, (_, turn) in turns.items()}, timer, ROUNDS)
    return {
        name: 100 * sweeps * one_sweep / statistics.median(times[name])
        for name, (sweeps, _) in turns.items()
    }


def sizes() -> None:
    """Print the rates of the kernels for every shape and every choice of launch sizes."""
    timer = make_timer()
    print(
        f"{timer.describe()}; percent of the rate of a copy: "
        "statistics / gradient / one pass / program"
    )
    for shape, chosen in product(SHAPES, SIZES):
        cell = Cell(*shape, "bfloat16")
        try:
            with launch_sizes(**chosen):
                found = percent_of_copy(cell, timer)
        except Exception as error:  # the other choices still run
            print(f"{cell}, {chosen}: {in_one_line(error)}", flush=True)
        else:
            rates = " / ".join(f"{rate:.0f}" for rate in found.values())
            print(f"{cell}, {chosen or 'as it is'}: {rates}", flush=True)


def main() -> None:
    """Run the part that the command line names."""
    parts = {"warm": warm, "once": once, "sizes": sizes}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=parts)
    parts[parser.parse_args().part]()


if __name__ == "__main__":
    main()
