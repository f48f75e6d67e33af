"""Every loss of the family beside plain cross-entropy, and beside what people use today.

    python -m benchmarks.family [--shapes 2048,32000 65536,100] [--dtypes float32 bfloat16]

In one run all contestants take turns, round after round; times are medians of forward and backward.
``ratio`` is the time of the loss divided by that of cross-entropy on the same logits. The other
columns say how many times as long others take for the same loss: its textbook formula in PyTorch,
the same formula compiled, and the libraries that are installed. Below 1 they are faster.
"""

from __future__ import annotations

import argparse
import inspect
import random
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xent.losses import CATALOG

from .family_others import (
    TEXTBOOK,
    TEXTBOOK_BINARY,
    Loss,
    Step,
    kornia_steps,
    optax_steps,
    step,
)
from .harness.machine import describe_machine
from .harness.report import machine_text

MIN_ROUNDS, SECONDS = 3, 4.0


def members(targets: str, classes: int, device: str = "cpu") -> dict[str, Loss]:
    """Return the losses of such targets that need one sweep, at their defaults.

    Losses with a matrix of classes by classes are left out, since the matrix may be larger than the
    logits. So is ``reconstruction_excess``, which has no kernel (150 ns an element).
    """
    required = {
        "prior": torch.linspace(1, 2, classes, device=device),
        "counts": torch.linspace(1, 2, classes, device=device),
        "rate": 0.2,
        "theta": (0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5),
    }
    found: dict[str, Loss] = {}
    for name, member in CATALOG.items():
        missing = {
            p.name
            for p in inspect.signature(member.function).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.default is p.empty
        }
        one_sweep = not member.second_pass and name != "reconstruction_excess"
        if member.targets == targets and one_sweep and missing <= required.keys():
            found[name] = partial(member.function, **{key: required[key] for key in missing})
    return found


def contestants(targets: str, z: Tensor, y: Tensor) -> Iterator[tuple[str, str, Step]]:
    """Yield names of loss and contestant, and one step."""
    textbook = TEXTBOOK if targets == "classes" else TEXTBOOK_BINARY
    for name, loss in members(targets, z.shape[1]).items():
        yield name, "xent", step(loss, *inputs(name, z, y))
    for name, loss in textbook.items():
        yield name, "torch", step(loss, *inputs(name, z, y))
        yield name, "compiled", step(torch.compile(loss), *inputs(name, z, y))
    for library, steps in (("kornia", kornia_steps), ("optax", optax_steps)):
        try:
            calls = steps(z, y)
        except ImportError:
            print(f"{library} is not installed")
            continue
        for name, call in calls.items():
            yield name, library, call


def inputs(name: str, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs of a loss; margins take cosines, as of random vectors of 256 numbers."""
    return (z / 16 if name in ("cosface_loss", "arcface_loss", "ldam_loss") else z), y


def measure(calls: dict[Any, Step]) -> dict[Any, float]:
    """Time all in turn; return median seconds. An untimed call before each fetches its memory.

    Every round has an order of its own, because a call of JAX goes on after it has returned: within
    the next two calls its threads take 150 ms of a core, and these should not always be the same.
    """
    for call in calls.values():
        call()
    times: dict[Any, list[float]] = {key: [] for key in calls}
    start, generator = time.perf_counter(), random.Random(0)
    while len(times[next(iter(times))]) < MIN_ROUNDS or time.perf_counter() - start < SECONDS:
        for key in generator.sample(list(calls), len(calls)):
            call = calls[key]
            call()
            before = time.perf_counter()
            call()
            times[key].append(time.perf_counter() - before)
    return {key: statistics.median(values) for key, values in times.items()}


def table(seconds: dict[tuple[str, str], float]) -> str:
    """Return one line per loss."""
    base = next(time for (_, who), time in seconds.items() if who == "xent")
    others = list(dict.fromkeys(who for _, who in seconds if who != "xent"))
    lines = [f"{'':36}{'ms':>9}{'ratio':>8}" + "".join(f"{who:>10}" for who in others)]
    for name, who in seconds:
        if who != "xent":
            continue
        mine = seconds[name, who]
        cells = [
            f"{seconds[name, other] / mine:10.2f}" if (name, other) in seconds else f"{'':10}"
            for other in others
        ]
        lines.append(f"{name:36}{1e3 * mine:9.2f}{mine / base:8.2f}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["2048,32000", "65536,100"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--spread", type=float, default=1.0, help="standard deviation of the logits"
    )
    args = parser.parse_args()
    print(machine_text(describe_machine(torch.get_num_threads())))
    for shape in args.shapes:
        rows, classes = map(int, shape.split(","))
        for dtype in args.dtypes:
            torch.manual_seed(0)
            z = (args.spread * torch.randn(rows, classes)).to(getattr(torch, dtype))
            labels = torch.randint(classes, (rows,))
            for targets, y in (("classes", labels), ("binary", torch.rand_like(z).round())):
                print(f"\n{rows} x {classes} {dtype}, targets: {targets}", flush=True)
                calls = {(name, who): call for name, who, call in contestants(targets, z, y)}
                print(table(measure(calls)), flush=True)


if __name__ == "__main__":
    main()
