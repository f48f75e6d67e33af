"""The ceilings of the card: how fast it copies, reads and multiplies.

python -m benchmarks.gpu.card
"""

from __future__ import annotations

from functools import partial

import torch

import xent

from ..harness.machine import describe_machine
from ..harness.report import machine_text
from .device import DEVICE, ENGINE, REHEARSAL, make_timer, median
from .timing import Timer, gigabytes_per_second

NUMBERS = 1 << (20 if REHEARSAL else 31)  # of a copy, in bfloat16
SIDE = 64 if REHEARSAL else 8192  # of the matrices of a product


def copy_and_read(timer: Timer) -> dict[str, float]:
    """Measure a copy (one read, one write) and a reduction (one read), in GB/s."""
    x = torch.empty(NUMBERS, dtype=torch.bfloat16, device=DEVICE).normal_()
    y = torch.empty_like(x)
    rows = x.view(-1, 1 << 13)
    copy = median(timer, partial(y.copy_, x))
    read = median(timer, partial(torch.amax, rows, 1))
    return {
        "copy, GB/s": gigabytes_per_second(2, x.nbytes, copy),
        "amax, GB/s": gigabytes_per_second(1, x.nbytes, read),
    }


def product(timer: Timer) -> dict[str, float]:
    """Measure a product of square matrices, in TFLOP/s."""
    a, b = (torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    ms = median(timer, partial(torch.mm, a, b))
    return {f"product of {SIDE}, TFLOP/s": 2 * SIDE**3 / ms / 1e9}


def main() -> None:
    """Print the machine, its ceilings, and the engine that a call takes."""
    timer = make_timer()
    machine = describe_machine(torch.get_num_threads()) | {"device": timer.describe()}
    print(machine_text(machine))
    if not REHEARSAL:
        found = torch.cuda.get_device_properties(0)
        print(f"{found.multi_processor_count} multiprocessors, L2 {found.L2_cache_size >> 20} MiB")
    for name, figure in {**copy_and_read(timer), **product(timer)}.items():
        print(f"{name}: {figure:.3g}")
    logits = torch.randn(8, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(64, (8,), device=DEVICE)
    print(xent.explain(logits, target, engine=ENGINE))


if __name__ == "__main__":
    main()
