"""Sigmoid losses behind a linear head: the elements of some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines.elements.problem import ElementProblem
from ..engines.rows.problem import Index, Problem
from ..heads import gradients
from ..heads.kept import rows_of
from ..heads.logits import LinearLogits
from ..heads.problem import flat_rows, problem_of
from .by_chunks import reduce_by_chunks
from .reduction import Reduce, RowValues, read_reduction, rows_left_out

Loss = Callable[..., Tensor]


def sum_behind_head(loss: Loss, input: LinearLogits, problem: ElementProblem) -> Tensor:
    """The sum of a loss over all elements, float64."""
    alone, tensors = problem_of(input), _flat(tensors_of(problem), input)
    known = problem.kept()
    kept = None if known is None else rows_of(known.any(-1).flatten())
    question = alone.with_source(None)

    def sum_of(index: Index, z: Tensor) -> Tensor:
        some = {name: x[index] for name, x in tensors.items()}
        return loss(_transformed(question, index, z), **some, reduction="sum").double()

    read = tuple(x for x in (*alone.others, *tensors.values()) if x is not None)
    return gradients.sum_ahead(gradients.RowFunction((alone.source,), kept, sum_of, read))


def labels_behind_head(
    loss: Loss,
    input: LinearLogits,
    problem: ElementProblem,
    *,
    row_weight: Tensor | None,
    **reduction: Any,
) -> Tensor:
    """A loss of rows with several labels each."""
    shape = input.shape[:-1]
    tensors, known = _flat(tensors_of(problem), input), problem.kept()
    reduce = read_reduction(row_weight=row_weight, rows=shape, device=input.device, **reduction)
    kept = None if known is None else known.any(-1)
    if kept is None and rows_left_out(reduce.row_weight) is not None:
        kept = torch.ones(shape, dtype=torch.bool, device=input.device)
    if kept is not None:
        kept, reduce = reduce.counting(kept)
    kept, row_weight = flat_rows(shape, kept, reduce.row_weight)
    reduce = reduce._replace(row_weight=row_weight)

    def values_of(z: Tensor, index: Index) -> Tensor:
        return loss(z, **{k: x[index] for k, x in tensors.items()}, reduction="none")

    result = reduce_values(input, values_of, kept, tuple(tensors.values()), reduce)
    result = result.to(problem.dtype)
    return result.reshape(shape) if reduce.reduction == "none" else result


def reduce_values(
    input: LinearLogits,
    values_of: Callable[[Tensor, Index], Tensor],
    kept: Tensor | None,
    others: Sequence[Tensor],
    reduce: Reduce,
) -> Tensor:
    """Reduce ``values_of(logits, rows)`` over chunks; the function also reads ``others``."""
    alone = problem_of(input)
    question = alone.with_source(None)

    def some_rows(index: Index, z: Tensor) -> RowValues:
        values = values_of(_transformed(question, index, z), index).double()
        here = None if kept is None else kept[index]
        mass = values.new_ones(values.shape) if here is None else here.double()
        return RowValues(values, here, mass)

    read = (*alone.others, *others)
    return reduce_by_chunks((alone.source,), rows_of(kept), some_rows, read, reduce)


def tensors_of(problem: ElementProblem) -> dict[str, Tensor]:
    """The tensors of a problem but for the logits, by the names of a loss's arguments."""
    named = {"target": problem.target, "weight": problem.weight, "pos_weight": problem.pos_weight}
    return {name: x for name, x in named.items() if x is not None}


def _flat(tensors: dict[str, Tensor], input: LinearLogits) -> dict[str, Tensor]:
    names, values = tensors.keys(), (x.expand(input.shape) for x in tensors.values())
    return dict(zip(names, flat_rows(input.shape[:-1], *values), strict=True))


def _transformed(alone: Problem, index: Index, z: Tensor) -> Tensor:
    wide = torch.promote_types(z.dtype, torch.float32)
    return alone.of_rows(index, z.to(wide)).transformed()
