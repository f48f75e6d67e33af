"""Losses of cosines whose classes have several centers each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .._check import whole_number
from ..class_dim import axis_of_classes
from ..engines.modes import wide_dtype
from ..engines.rows.problem import Index, Problem
from ..frames.by_chunks import reduce_problem
from ..frames.reduction import RowValues, leave_out, mass_of_labels, read_reduction
from ..heads.logits import LinearLogits, are_logits
from ..heads.problem import make_problem
from ..hyperparameters import Range
from ..overrides import overridable
from .similarity import without_left_out

F = TypeVar("F", bound=Callable[..., Any])


def takes_centers(loss: F) -> F:
    """Make a loss of cosines read ``centers`` and ``center_temperature``. A decorator.

    Its body has these hyperparameters for their description only: it sees one cosine per class.
    """

    @functools.wraps(loss)
    def entry(
        input: Tensor | LinearLogits,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        centers: int = 1,
        center_temperature: float | None = None,
        **options: Any,
    ) -> Any:
        count = whole_number("centers", centers)
        if count < 1:
            raise ValueError(f"`centers` must be at least 1, got {centers}")
        sharpness = Range(0, open=True).check("center_temperature", center_temperature, None)
        if count == 1:
            return loss(input, target, weight, **options)
        are_logits("input", input)
        if not input.is_floating_point():
            raise TypeError(f"`input` must hold floating-point cosines, got {input.dtype}")
        lean = isinstance(input, LinearLogits)
        axis = axis_of_classes(input, options.get("class_dim"), lean=lean)
        if input.shape[axis] % count:
            raise ValueError(
                f"`input` must hold `centers` cosines for each class, {count} next to each other; "
                f"got {input.shape[axis]} on axis {axis}"
            )
        best = functools.partial(_best, count=count, temperature=sharpness)
        if lean:
            return _by_chunks(loss, best, cast(LinearLogits, input), target, weight, **options)
        ignored = whole_number("ignore_index", options.get("ignore_index", -100))
        x = without_left_out(input, target, options.get("row_weight"), ignored, axis)
        return loss(best(x, axis), target, weight, **options)

    del entry.__overridable__  # pyright: ignore  # the mark of the loss inside
    return cast(F, overridable(entry))


def _best(cosines: Tensor, axis: int, count: int, temperature: float | None) -> Tensor:
    """Cosines of the classes, from those of their centers on an axis."""
    apart = cosines.unflatten(axis, (-1, count)).movedim(axis + 1, -1)
    if temperature is None:
        return apart.max(-1).values
    wide = apart.to(wide_dtype(apart))
    return (wide * torch.softmax(wide / temperature, -1)).sum(-1).to(cosines.dtype)


def _by_chunks(
    loss: Callable[..., Tensor],
    best: Callable[[Tensor, int], Tensor],
    input: LinearLogits,
    target: Tensor,
    weight: Tensor | None,
    *,
    class_dim: int | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    return_stats: bool = False,
    inplace_backward: bool = False,
    empty: str = "nan",
    **options: Any,
) -> Tensor:
    """The loss behind a head, with the cosines of some rows at a time."""
    if return_stats or inplace_backward:
        name = "return_stats" if return_stats else "inplace_backward"
        raise ValueError(f"`{name}` needs a tensor of cosines: pass input.materialize()")
    problem = make_problem(input, target, None, ignore_index)
    reduce = read_reduction(
        reduction, normalizer, problem.flat(row_weight), empty, problem.rows, problem.device
    )
    problem, reduce = leave_out(problem, reduce)

    def values_of(part: Problem, _: Index) -> RowValues:
        labels, ignored = part.tensors.target, part.settings.ignore_index
        z = part.transform(part.logits.to(torch.promote_types(part.logits.dtype, torch.float32)))
        z = best(without_left_out(z, labels, None, ignored), 1)  # (n, C)
        of_classes = None if weight is None else weight.to(z.dtype)
        values = loss(z, labels, of_classes, ignore_index=ignored, reduction="none", **options)
        kept, mass = mass_of_labels(labels, ignored, weight)
        return RowValues(values.double(), kept, mass)

    return reduce_problem(problem, values_of, reduce, (weight,)).to(problem.result_dtype())
