"""The Triton engine for losses of single elements: launches the kernel of ``engines/triton/``.

No function waits for the device: where a decision depends on a number, the kernel reads the number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .layout import MemoryOrder, dense
from .problem import ElementProblem, Form
from .reference import check_targets

if TYPE_CHECKING:
    from ..triton.elements import Operand

BLOCK = 2048  # elements that a program takes at once
DOUBLE_BLOCK = 512  # the same in float64, where registers hold fewer numbers
PROGRAMS = 4096  # the most, on every device: the bits of the sum depend on the number of programs


def loss(
    problem: ElementProblem, divisor: float | Tensor, ahead: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the sum over all elements by ``divisor``; with ``ahead`` also its gradient."""
    check_targets(problem)
    input = dense(problem.input)
    gradient = torch.empty_like(input) if ahead else None
    sums = input.new_empty(_grid(problem)[0], dtype=torch.float64)
    _sweep(problem, input, sums=sums, gradient=gradient, divisor=divisor)
    return (sums.sum() / divisor).to(problem.dtype), gradient


def fits(slope: Tensor) -> bool:
    """Return False: only the device knows the slope; the kernel of :func:`gradient` reads it."""
    return False


def values(problem: ElementProblem) -> Tensor:
    """Return one value per element."""
    check_targets(problem)
    input = dense(problem.input)
    result = torch.empty_like(input, dtype=problem.dtype)
    _sweep(problem, input, values=result)
    return result


def gradient(
    problem: ElementProblem, upstream: Tensor, divisor: float | Tensor, ahead: Tensor | None = None
) -> Tensor:
    """Return the gradient for slopes ``upstream`` (0-d or one per element), divided by ``divisor``.

    ``ahead`` is the gradient for slope 1, computed with the loss. The kernel leaves ``ahead`` alone
    if the slope is 1, and overwrites it otherwise.
    """
    input = dense(problem.input)
    result = torch.empty_like(input) if ahead is None else ahead
    _sweep(
        problem, input, gradient=result, upstream=upstream, divisor=divisor,
        unless_one=ahead is not None,
    )  # fmt: skip
    return result


def _modulator(form: Form) -> tuple[str, int]:
    """Return the modulator of the log terms, and gamma if it is whole.

    "plain" is no modulator, "whole" is error^gamma for a whole gamma, "any" is error^gamma for any
    gamma, "margin" is the modulator with a margin. "excess" is no modulator, and subtracts the
    entropy of the target.
    """
    if form.excess:
        return "excess", 0
    if form.margin >= 0:
        return "margin", 0
    if form == Form(side=form.side):
        return "plain", 0
    if form.gamma in range(1, 9):
        return "whole", int(form.gamma)
    return "any", 0


def _in_double(form: Form) -> bool:
    """Return True if float32 would lose its digits.

    Powers that are computed from logarithms lose digits, and so does a difference of target and
    probability.
    """
    return _modulator(form)[0] not in ("plain", "whole") or form.side < 0


def _operand(x: Tensor | None, order: MemoryOrder, count: int) -> Operand | None:
    """Return a tensor that broadcasts to ``count`` elements, in the form that the kernel takes."""
    from ..triton.elements import EACH, ONE, PERIODIC, REPEATED, Operand

    if x is None:
        return None
    numbers, repeat, period = order.operand(x)
    if (repeat == 1 and period == count) or count == 0:  # with count 0 nothing is read
        return Operand(numbers, EACH)
    if period == 1:
        return Operand(numbers, ONE)
    return Operand(numbers, PERIODIC if repeat == 1 else REPEATED, repeat, period)


def _grid(problem: ElementProblem) -> tuple[int, int]:
    """Return (number of programs, number of elements that a program takes at once)."""
    assert problem.form is not None
    block = DOUBLE_BLOCK if _in_double(problem.form) else BLOCK
    return max(1, min(-(-problem.input.numel() // block), PROGRAMS)), block


def _sweep(
    problem: ElementProblem,
    input: Tensor,
    sums: Tensor | None = None,
    values: Tensor | None = None,
    gradient: Tensor | None = None,
    upstream: Tensor | None = None,
    divisor: float | Tensor = 1.0,
    unless_one: bool = False,
) -> None:
    """Run the kernel once; it writes every result that is not None."""
    from ..triton import elements as kernel
    from ..triton.launch import launch

    p, order, count, form = problem, MemoryOrder(input), input.numel(), problem.form
    assert form is not None
    number, at = (1.0, divisor) if isinstance(divisor, Tensor) else (divisor, None)
    target, weight, pos_weight, slopes = (
        _operand(x, order, count) for x in (p.target, p.weight, p.pos_weight, upstream)
    )
    arguments = kernel.ElementArguments(
        count, input, target, weight, pos_weight, p.mark(), slopes, at
    )
    *numbers, detached, _ = form
    modulator, power = _modulator(form)
    programs, block = _grid(problem)
    launch(
        kernel.sweep, programs, input.device, arguments,
        kernel.Results(sums, values, gradient), number, *map(float, numbers), p.smoothing,
        MODULATOR=modulator, POWER=power, DETACHED=bool(detached), DOUBLE=_in_double(form),
        UNLESS_ONE=unless_one, BLOCK=block,
    )  # fmt: skip
