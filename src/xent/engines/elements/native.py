"""The native engine for losses of single elements: hands addresses to the kernel of ``csrc/``."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .. import native as rows
from .problem import ElementProblem

ONES = (0, 0, 1, 1)  # the operand that is 1 everywhere
NOWHERE = (0, 0)  # the output that is not wanted
FOREVER = 1 << 62  # more elements than there are


def obstacle(problem: ElementProblem) -> str | None:
    """Why the kernel cannot take a problem, or None if it can."""
    if rows.available() and problem.form is None:
        return "this loss has no kernel"
    foreign = rows.obstacle_of(problem.tensors)
    if foreign is not None:
        return foreign
    for tensor in problem.tensors:
        if tensor is not None and tensor.dtype not in rows.TYPES:
            return f"a tensor of {tensor.dtype}"
    return None


def loss(problem: ElementProblem, divisor: float, ahead: bool) -> tuple[Tensor, Tensor | None]:
    """The sum over all elements by ``divisor``; with ``ahead`` also its gradient."""
    input = _dense(problem.input)
    loss = input.new_empty((), dtype=problem.dtype)
    gradient = rows.empty_like(input) if ahead else None
    _sweep(problem, input, loss=loss, gradient=gradient, divisor=divisor)
    return loss, gradient


def values(problem: ElementProblem) -> Tensor:
    """One value per element."""
    input = _dense(problem.input)
    result = torch.empty_like(input, dtype=problem.dtype)
    _sweep(problem, input, values=result)
    return result


def gradient(problem: ElementProblem, upstream: Tensor, divisor: float) -> Tensor:
    """The gradient for slopes ``upstream`` by ``divisor``, a number or one per element."""
    input = _dense(problem.input)
    result = rows.empty_like(input)
    if upstream.ndim:
        _sweep(problem, input, gradient=result, upstream=upstream, divisor=divisor)
    else:
        _sweep(problem, input, gradient=result, slope=upstream.item(), divisor=divisor)
    return result


def _sweep(
    problem: ElementProblem,
    input: Tensor,
    loss: Tensor | None = None,
    values: Tensor | None = None,
    gradient: Tensor | None = None,
    upstream: Tensor | None = None,
    slope: float = 1.0,
    divisor: float = 1.0,
) -> None:
    """One pass of the kernel, into what is not None."""
    layout, keep, form = _Layout(input), [], problem.form
    assert form is not None
    ignored = math.nan if problem.ignore_value is None else problem.ignore_value
    count, weight, pos_weight = input.numel(), problem.weight, problem.pos_weight
    has_bad_target, bad_target = rows._core.element_sweep(
        count,
        (input.data_ptr(), rows.TYPES[input.dtype], 1, count),
        layout.operand(problem.target, keep),
        ONES if weight is None else layout.operand(weight, keep),
        ONES if pos_weight is None else layout.operand(pos_weight, keep),
        form,
        ignored,
        NOWHERE if loss is None else (loss.data_ptr(), rows.TYPES[loss.dtype]),
        NOWHERE if values is None else (values.data_ptr(), rows.TYPES[values.dtype]),
        NOWHERE if gradient is None else (gradient.data_ptr(), rows.TYPES[gradient.dtype]),
        ONES if upstream is None else layout.operand(upstream, keep),
        slope,
        divisor,
    )
    if has_bad_target and problem.bounded:
        raise problem.out_of_range(bad_target)


def _dense(input: Tensor) -> Tensor:
    """The input itself if it fills its memory without gaps, in whatever order of the axes."""
    return input if input.is_contiguous() or _Layout(input).is_dense() else input.contiguous()


class _Layout:
    """The order in which the elements of a dense tensor lie in memory."""

    def __init__(self, input: Tensor) -> None:
        self.shape = input.shape
        self.strides = input.stride()

    @functools.cached_property
    def order(self) -> list[int]:
        """The axes, those with the largest steps first."""
        # Of equal steps, those of the axes of one number do not matter.
        return sorted(range(len(self.shape)), key=lambda axis: -self.strides[axis])

    def is_dense(self) -> bool:
        """Whether there is a number of the tensor in every place from the first to the last."""
        step = 1
        for axis in reversed(self.order):
            if self.shape[axis] > 1 and self.strides[axis] != step:
                return False
            step *= self.shape[axis]
        return True

    def operand(self, x: Tensor, keep: list[Tensor]) -> tuple[int, int, int, int]:
        """A tensor that broadcasts as (address, type, repeat, period).

        Element i in memory order is number ``i // repeat % period`` of it. What does not repeat in
        so simple a way is written out; ``keep`` holds it as long as the address is used.
        """
        kind, strides = rows.TYPES[x.dtype], x.stride()
        if strides == self.strides and x.shape == self.shape:
            return (x.data_ptr(), kind, 1, max(x.numel(), 1))
        if not any(strides):
            return (x.data_ptr(), kind, FOREVER, 1)
        wide = x.detach().expand(self.shape).permute(*self.order)
        steps = [(n, step) for n, step in zip(wide.shape, wide.stride(), strict=True) if n > 1]
        repeat = period = 1
        while steps and steps[-1][1] == 0:
            repeat *= steps.pop()[0]
        while steps and steps[-1][1] == period:
            period *= steps.pop()[0]
        if any(step for _, step in steps):
            keep.append(wide.contiguous())
            return (keep[-1].data_ptr(), kind, 1, max(keep[-1].numel(), 1))
        return (x.data_ptr(), kind, repeat, period)
