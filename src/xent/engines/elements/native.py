"""The native engine for losses of single elements: hands addresses to the kernel of ``csrc/``."""

from __future__ import annotations

import math

from torch import Tensor

from .. import core
from . import reference
from .layout import MemoryOrder, dense
from .problem import ElementProblem

ONES = (0, 0, 1, 1)  # the operand that is 1 everywhere
NOWHERE = (0, 0)  # an output that is not wanted


def loss(problem: ElementProblem, divisor: float, ahead: bool) -> tuple[Tensor, Tensor | None]:
    """Return the sum over all elements by ``divisor``; with ``ahead`` also its gradient."""
    input = dense(problem.input)
    loss = input.new_empty((), dtype=problem.dtype)
    gradient = core.empty_like(input) if ahead else None
    _sweep(problem, input, loss=loss, gradient=gradient, divisor=divisor)
    return loss, gradient


fits = reference.fits


def values(problem: ElementProblem) -> Tensor:
    """Return one value per element."""
    input = dense(problem.input)
    result = core.empty_like(input, problem.dtype)
    _sweep(problem, input, values=result)
    return result


def gradient(
    problem: ElementProblem, upstream: Tensor, divisor: float, ahead: Tensor | None = None
) -> Tensor:
    """Return the gradient for slopes ``upstream`` (0-d or one per element), divided by ``divisor``.

    ``ahead``, a gradient that was computed with the loss, is overwritten.
    """
    input = dense(problem.input)
    result = core.empty_like(input) if ahead is None else ahead
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
    """Run the kernel once; it writes every result that is not None."""
    order, keep, form = MemoryOrder(input), [], problem.form
    assert form is not None
    count, mark = input.numel(), problem.mark()

    def operand(x: Tensor | None) -> tuple[int, int, int, int]:
        if x is None:
            return ONES
        held, repeat, period = order.operand(x)
        keep.append(held)  # as long as the address is used
        return held.data_ptr(), core.TYPES[held.dtype], repeat, period

    has_bad_target, bad_target = core._core.element_sweep(
        count,
        (input.data_ptr(), core.TYPES[input.dtype], 1, count),
        operand(problem.target),
        operand(problem.weight),
        operand(problem.pos_weight),
        form,
        math.nan if mark is None else mark,
        problem.smoothing,
        NOWHERE if loss is None else (loss.data_ptr(), core.TYPES[loss.dtype]),
        NOWHERE if values is None else (values.data_ptr(), core.TYPES[values.dtype]),
        NOWHERE if gradient is None else (gradient.data_ptr(), core.TYPES[gradient.dtype]),
        operand(upstream),
        slope,
        divisor,
    )
    if has_bad_target and problem.bounded:
        raise problem.out_of_range(bad_target)
