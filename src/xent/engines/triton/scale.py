"""A tensor times a number on its device, in place, and nothing at all where the number is 1."""

# pyright: reportArgumentType=false, reportAssignmentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

BLOCK = 4096
PROGRAMS = 1024  # fill a device, and end at once if there is nothing to do


@triton.jit
def scale(x, factor, count, BLOCK: tl.constexpr):
    """Multiply ``count`` numbers in memory by a float32 number in memory."""
    number = tl.load(factor)
    blocks = tl.where(number == 1.0, 0, tl.cdiv(tl.cast(count, tl.int64), BLOCK))
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        at = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < count).to(tl.float32) * number
        tl.store(x + at, value.to(x.dtype.element_ty), mask=at < count)


def scale_in_place(x: Tensor, factor: Tensor) -> None:
    """Multiply a contiguous tensor by a number, ``(1,)``, rounded once."""
    programs = min(PROGRAMS, triton.cdiv(x.numel(), BLOCK))
    launch(scale, programs, x.device, x, factor, x.numel(), BLOCK=BLOCK, num_warps=8)
