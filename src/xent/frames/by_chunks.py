"""Losses of rows that may lie behind a linear head: then a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..engines.rows.problem import Index, Problem
from ..heads import gradients
from ..heads.logits import LinearLogits
from ..heads.measure import with_all_logits
from ..heads.problem import HeadProblem
from .reduction import Reduce, RowValues, divisor_of, stable_sum, weigh


def reduce_problem(
    problem: Problem,
    values_of: Callable[[Problem, Index], RowValues],
    reduce: Reduce,
    beside: Sequence[Any] = (),
    *,
    chunks: bool = True,
) -> Tensor:
    """The reduction of ``values_of(problem, rows)``, by chunks if there is a linear head.

    Args:
        problem: logits and targets.
        values_of: what becomes of some of its rows; the second argument picks those rows out of
            tensors that are not part of the problem.
        reduce: the options of the call.
        beside: those tensors, among anything. If one of these or of the problem's wants a gradient,
            all logits are there at once.
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
            gradients.kept_rows(problem),
            values_of_chunk,
            (*problem.others, *beside),
            reduce,
        )
    return problem.unflat(result) if reduce.reduction == "none" else result


def reduce_by_chunks(
    sources: Sequence[LinearLogits],
    kept: Tensor | None,
    values_of: Callable[..., RowValues],
    beside: Sequence[Any],
    reduce: Reduce,
) -> Tensor:
    """The reduction of ``values_of(index, *logits)`` over the chunks of some heads.

    ``beside`` holds, among anything, the other tensors that the function reads. A sum takes its
    gradient while the logits are there; values of rows compute the logits once more.
    """
    divisors: list[Tensor] = []
    row_weight, normalizer = reduce.row_weight, reduce.normalizer
    read = tuple(x for x in beside if isinstance(x, Tensor))
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
        rows = gradients.Rows(tuple(sources), kept, values_alone, read)
        return weigh(gradients.row_values(rows), None, row_weight)
    read = read if row_weight is None else (*read, row_weight)
    total = gradients.sum_ahead(gradients.Rows(tuple(sources), kept, sum_of, read))
    if reduce.reduction == "sum":
        return total
    none = total.new_zeros(())
    divisor = divisor_of(None, none, normalizer, None) if given else sum(divisors, none)
    return reduce.by(total, divisor)
