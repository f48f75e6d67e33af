"""The Triton engine for losses of single elements: launches the kernel for what is wanted.

Nothing here waits for the device: whoever would look at a number has the kernel look.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import Layout, dense
from .problem import ElementProblem
from .reference import check_targets

BLOCK = 2048  # elements that a program takes at once
DOUBLE_BLOCK = 512  # in float64: of more, the registers do not hold what is between the steps
PROGRAMS = 4096  # at most; each takes every so many blocks. The same everywhere, as the sum is


def loss(
    problem: ElementProblem, divisor: float | Tensor, ahead: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum over all elements by ``divisor``; with ``ahead`` also its gradient."""
    check_targets(problem)
    input = dense(problem.input)
    gradient = torch.empty_like(input) if ahead else None
    sums = input.new_empty(_grid(problem)[0], dtype=torch.float64)
    _sweep(problem, input, sums=sums, gradient=gradient, divisor=divisor)
    return (sums.sum() / divisor).to(problem.dtype), gradient


def fits(slope: Tensor) -> bool:
    """Whether a gradient that was computed ahead will do. Only :func:`gradient` can tell."""
    return False


def values(problem: ElementProblem) -> Tensor:
    """One value per element."""
    check_targets(problem)
    input = dense(problem.input)
    result = torch.empty_like(input, dtype=problem.dtype)
    _sweep(problem, input, values=result)
    return result


def gradient(
    problem: ElementProblem, upstream: Tensor, divisor: float | Tensor, ahead: Tensor | None = None
) -> Tensor:
    """The gradient for slopes ``upstream`` by ``divisor``, a number or one per element.

    One that was computed ahead, for slope 1, is overwritten unless that is the slope.
    """
    input = dense(problem.input)
    result = torch.empty_like(input) if ahead is None else ahead
    _sweep(
        problem, input, gradient=result, upstream=upstream, divisor=divisor,
        unless_one=ahead is not None,
    )  # fmt: skip
    return result


def _grid(problem: ElementProblem) -> tuple[int, int]:
    """The number of programs, and of the elements that each takes at once."""
    from ..triton.elements import in_double

    assert problem.form is not None
    block = DOUBLE_BLOCK if in_double(problem.form) else BLOCK
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
    """One pass of the kernel, into what is not None."""
    from ..triton import elements as kernel
    from ..triton.launch import launch

    p, layout, count, form = problem, Layout(input), input.numel(), problem.form
    assert form is not None

    def operand(x: Tensor | None) -> kernel.Operand | None:
        return None if x is None else kernel.Operand.of(*layout.operand(x), count)

    number, at = (1.0, divisor) if isinstance(divisor, Tensor) else (divisor, None)
    question = kernel.Question(
        count, input, operand(p.target), operand(p.weight), operand(p.pos_weight), p.mark(),
        operand(upstream), at,
    )  # fmt: skip
    *numbers, detached = form
    modulator, power = kernel.modulator_of(form)
    programs, block = _grid(problem)
    launch(
        kernel.sweep, programs, input.device, question,
        kernel.Results(sums, values, gradient), number, *map(float, numbers),
        MODULATOR=modulator, POWER=power, DETACHED=bool(detached), DOUBLE=kernel.in_double(form),
        UNLESS_ONE=unless_one, BLOCK=block,
    )  # fmt: skip
