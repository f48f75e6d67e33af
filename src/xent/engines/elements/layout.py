"""The order of the elements of a dense tensor in memory, and tensors that broadcast to it."""

from __future__ import annotations

import functools

from torch import Tensor

FOREVER = 1 << 62  # a repeat longer than any tensor


def dense(input: Tensor) -> Tensor:
    """Return the input, or a copy if the input does not fill its memory without gaps."""
    return input if input.is_contiguous() or MemoryOrder(input).is_dense() else input.contiguous()


class MemoryOrder:
    """The order of the elements of a dense tensor in memory."""

    def __init__(self, input: Tensor) -> None:
        self.shape = input.shape
        self.strides = input.stride()

    @functools.cached_property
    def order(self) -> list[int]:
        """The axes, those with the largest steps first."""
        # Axes of length 1 may have any step, so their place does not matter.
        return sorted(range(len(self.shape)), key=lambda axis: -self.strides[axis])

    def is_dense(self) -> bool:
        """Return True if the tensor fills all memory between its first and its last number."""
        step = 1
        for axis in reversed(self.order):
            if self.shape[axis] > 1 and self.strides[axis] != step:
                return False
            step *= self.shape[axis]
        return True

    def operand(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Return a broadcast tensor as (tensor that holds the numbers, repeat, period).

        Element i in memory order is number ``i // repeat % period``. A tensor that does not repeat
        in this way is copied, with one number for each element.
        """
        strides = x.stride()
        if strides == self.strides and x.shape == self.shape:
            return x, 1, max(x.numel(), 1)
        if not any(strides):
            return x, FOREVER, 1
        wide = x.detach().expand(self.shape).permute(*self.order)
        steps = [(n, step) for n, step in zip(wide.shape, wide.stride(), strict=True) if n > 1]
        repeat = period = 1
        while steps and steps[-1][1] == 0:
            repeat *= steps.pop()[0]
        while steps and steps[-1][1] == period:
            period *= steps.pop()[0]
        if any(step for _, step in steps):
            return wide.contiguous(), 1, max(wide.numel(), 1)
        return x, repeat, period
