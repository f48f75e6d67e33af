"""Losses of rows; behind a linear head they are computed a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..engines.rows.problem import Index, Problem
from ..heads import gradients
from ..heads.kept import Kept, kept_rows
from ..heads.logits import LinearLogits
from ..heads.measure import with_all_logits
from ..heads.problem import HeadProblem
from .reduction import Reduce, RowValues, divisor_of, stable_sum, weigh


def reduce_problem(
    problem: Problem,
    values_of: Callable[[Problem, Index], RowValues],
    reduce: Reduce,
    others: Sequence[Any] = (),
    *,
    chunks: bool = True,
) -> Tensor:
    """The reduction of ``values_of(problem, rows)``, by chunks if there is a linear head.

    Args:
        problem: logits and targets.
        values_of: gives the values of some rows, from the problem of these rows; its second
            argument picks the same rows out of tensors that are not part of the problem.
        reduce: the options of the call.
        others: those tensors; what is no tensor is passed over. If one of them, or of the tensors
            of the problem, wants a gradient, all logits are computed at once.
        chunks: False if the rows cannot be told apart.
    """
    if not isinstance(problem, HeadProblem):
        return reduce.of(values_of(problem, ...))
    if not chunks:
        result = reduce.of(values_of(with_all_logits(problem), ...))
    else:
        question = problem.with_source(None)  # a loss that is kept must not keep the features

        def values_of_chunk(index: Index, z: Tensor) -> RowValues:
            return values_of(question.of_rows(index, z), index)

        result = reduce_by_chunks(
            (problem.source,),
            kept_rows(problem),
            values_of_chunk,
            (*problem.others, *others),
            reduce,
        )
    return problem.unflat(result) if reduce.reduction == "none" else result


def reduce_by_chunks(
    sources: Sequence[LinearLogits],
    kept: Kept | None,
    values_of: Callable[..., RowValues],
    others: Sequence[Any],
    reduce: Reduce,
) -> Tensor:
    """The reduction of ``values_of(index, *logits)`` over the chunks of some heads.

    ``others`` holds the other tensors that the function reads; what is no tensor is passed over. A
    sum takes its gradient while the logits are in memory; for values of rows the backward pass
    computes the logits again.
    """
    divisors: list[Tensor] = []
    row_weight, normalizer = reduce.row_weight, reduce.normalizer
    read = tuple(x for x in others if isinstance(x, Tensor))
    given = not (normalizer is None or isinstance(normalizer, str))

    def values_alone(index: Index, *z: Tensor) -> Tensor:
        values, here, _ = values_of(index, *z)
        return weigh(values, here, None)

    def sum_of(index: Index, *z: Tensor) -> Tensor:
        values, here, mass = values_of(index, *z)
        weight = None if row_weight is None else row_weight[index]
        if not given:
            divisors.append(divisor_of(here, mass, normalizer, weight))
        return stable_sum(weigh(values, here, weight))

    if reduce.reduction == "none":
        rows = gradients.RowFunction(tuple(sources), kept, values_alone, read)
        return weigh(gradients.row_values(rows), None, row_weight)
    read = read if row_weight is None else (*read, row_weight)
    total = gradients.sum_ahead(gradients.RowFunction(tuple(sources), kept, sum_of, read))
    if reduce.reduction == "sum":
        return total
    none = total.new_zeros(())
    divisor = divisor_of(None, none, normalizer, None) if given else sum(divisors, none)
    return reduce.by(total, divisor)
