"""The native engine for dense losses: hands addresses to the kernels of ``csrc/``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._check import label_out_of_range
from .. import core
from .problem import KINDS, DenseProblem

Divisor = float | str | None
Gradients = list[Tensor | None]

_DIVISORS = {"weight": 2, "count": 3}
_NUMBERS = 4  # of a kind, as the core takes them


def values(problem: DenseProblem) -> Tensor:
    """The weighted value of each row."""
    result = torch.empty(problem.rows, dtype=torch.float64, device="cpu")
    _sweep(problem, values=result)
    return result.to(problem.dtype)


def total(
    problem: DenseProblem, divisor: Divisor, needed: Sequence[bool], never_zero: bool = False
) -> tuple[Tensor, Gradients]:
    """The sum over all rows by ``divisor``, 0-d, and the gradients that are needed, for slope 1."""
    result = problem.logits.new_empty((), dtype=problem.dtype)
    made = _empty(problem, needed)
    _sweep(problem, result=result, divisor=divisor, never_zero=never_zero, gradients=made)
    return result, made


def gradients(
    problem: DenseProblem,
    slope: Tensor,
    divisor: Divisor,
    needed: Sequence[bool],
    never_zero: bool = False,
    ahead: Gradients | None = None,
) -> Gradients:
    """The gradients for a slope, 0-d or one per row, over those for slope 1 if they are there."""
    made = _empty(problem, needed) if ahead is None else ahead
    if slope.ndim == 0:
        _sweep(problem, divisor=divisor, never_zero=never_zero, gradients=made, slope=slope.item())
        return made
    weight = slope.to(torch.float64)
    if problem.row_weight is not None:
        weight = torch.where(problem.row_weight == 0, 0, weight * problem.row_weight)
    _sweep(problem._replace(row_weight=weight), gradients=made)
    return made


def fits(slope: Tensor, gradients: Gradients) -> bool:
    """True if gradients for slope 1 are those for this slope, or became them by a factor."""
    factor = slope.item()
    if factor == 1:
        return True
    made = [x for x in gradients if x is not None]
    if len(made) != 1 or not made[0].is_contiguous():
        return False
    (one,) = made
    kind = core.TYPES[one.dtype]
    return core._core.scale_exactly(one.data_ptr(), kind, one.numel(), factor)


def _empty(problem: DenseProblem, needed: Sequence[bool]) -> Gradients:
    return [
        core.empty_like(x) if wanted and x is not None else None
        for x, wanted in zip(problem.sides, needed, strict=True)
    ]


def _sweep(
    problem: DenseProblem, *, values: Tensor | None = None, result: Tensor | None = None,
    divisor: Divisor = None, never_zero: bool = False, slope: float = 1.0,
    gradients: Sequence[Tensor | None] = (None, None),
) -> None:  # fmt: skip
    """Run the kernel once; it writes every result that is not None."""
    p, form, keep, late = problem, problem.form, [], []
    assert form is not None

    def matrix(x: Tensor | None, may_copy: bool = True) -> core.Matrix:
        if x is None:
            return core.NO_MATRIX
        place, copy = core.matrix(x, p.axis, may_copy)
        if copy is not None:
            (keep if may_copy else late).append((x, copy))
        return place

    def address(x: Tensor | None) -> int:
        if x is None:
            return 0
        keep.append(x.contiguous())
        return keep[-1].data_ptr()

    if isinstance(divisor, str):
        by = (_DIVISORS[divisor], 0.0, never_zero)
    else:
        by = (0, 1.0, False) if divisor is None else (1, float(divisor), never_zero)
    a, b, c, d = form.numbers + (0.0,) * (_NUMBERS - len(form.numbers))
    bad, label = core._core.dense(
        (KINDS.index(form.kind), a, b, c, d), matrix(p.logits), matrix(p.teacher), p.rows.numel(),
        p.classes, (address(p.target), p.ignore_index), address(p.row_weight), (p.scale, slope),
        by, 0 if values is None else values.data_ptr(), 0 if result is None else result.data_ptr(),
        0 if result is None else core.TYPES[result.dtype], matrix(gradients[0], False),
        matrix(gradients[1], False),
    )  # fmt: skip
    if bad:
        raise label_out_of_range(label, p.classes, p.ignore_index)
    for gradient, copy in late:
        gradient.copy_(copy)
