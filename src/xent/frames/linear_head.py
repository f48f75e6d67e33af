"""What the frames do with logits behind a linear head: a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines.rows.problem import Index, Problem
from ..heads import gradients as linear
from ..heads.logits import LinearLogits
from ..heads.measure import with_all_logits
from .reduction import by_divisor, divisor_of, reduce_rows, stable_sum, weigh

# (values, which rows are kept, what each adds to the divisor of the mean)
Rows = tuple[Tensor, Tensor | None, Tensor]


def reduce_problem(
    problem: Problem,
    rows_of: Callable[[Problem, Index], Rows],
    shape: torch.Size | None,
    beside: Sequence[Any] = (),
    *,
    chunks: bool = True,
    **reduction: Any,
) -> Tensor:
    """:func:`reduce_rows` of ``rows_of(problem, rows)``, by chunks if there is a linear head.

    Args:
        problem: logits and targets.
        rows_of: what becomes of some of its rows; the second argument picks them out of tensors
            that are not part of the problem.
        shape: of the rows, if they were flattened because there is a head.
        beside: those tensors, among anything. If one of them or of the problem's wants a gradient,
            all logits are there at once.
        chunks: False if the rows cannot be told apart.
        **reduction: the options of :func:`reduce_rows`.
    """
    if shape is None:
        return reduce_rows(*rows_of(problem, ...), **reduction)
    source = problem.logits
    assert isinstance(source, LinearLogits)
    if not chunks:
        result = reduce_rows(*rows_of(with_all_logits(problem), ...), **reduction)
    else:
        question = problem.without_logits()  # a loss that is kept must not keep the features
        result = reduce_by_chunks(
            (source,),
            linear.kept_rows(problem),
            lambda index, z: rows_of(question.of_rows(index, z), index),
            (*problem.beside(), *beside),
            **reduction,
        )
    return result.reshape(shape) if reduction["reduction"] == "none" else result


def reduce_by_chunks(
    sources: Sequence[LinearLogits],
    kept: Tensor | None,
    rows_of: Callable[..., Rows],
    beside: Sequence[Any],
    *,
    reduction: str,
    normalizer: float | Tensor | str | None,
    row_weight: Tensor | None,
    empty: str,
) -> Tensor:
    """:func:`reduce_rows` of ``rows_of(index, *logits)`` over the chunks of some heads.

    ``beside`` holds, among anything, the other tensors that it reads.
    A sum takes its gradient while the logits are there; values of rows compute them once more.
    """
    divisors: list[Tensor] = []
    read = tuple(x for x in beside if isinstance(x, Tensor))
    given = not (normalizer is None or isinstance(normalizer, str))

    def values_of(index: Index, *z: Tensor) -> Tensor:
        values, here, _ = rows_of(index, *z)
        return weigh(values, here, None)

    def sum_of(index: Index, *z: Tensor) -> Tensor:
        values, here, mass = rows_of(index, *z)
        weight = None if row_weight is None else row_weight[index]
        if not given:
            divisors.append(divisor_of(here, mass, normalizer, weight))
        return stable_sum(weigh(values, here, weight))

    if reduction == "none":
        values = linear.row_values(linear.Rows(tuple(sources), kept, values_of, read))
        return weigh(values, None, row_weight)
    read = read if row_weight is None else (*read, row_weight)
    total = linear.sum_ahead(linear.Rows(tuple(sources), kept, sum_of, read))
    if reduction == "sum":
        return total
    none = total.new_zeros(())
    divisor = divisor_of(None, none, normalizer, None) if given else sum(divisors, none)
    return by_divisor(total, divisor, empty)
