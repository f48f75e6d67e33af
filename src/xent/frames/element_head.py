"""Sigmoid losses behind a linear head: the elements of some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..engines import by_chunks, linear
from ..engines.elements.problem import ElementProblem
from ..engines.problem import Index, Problem
from ..linear_logits import LinearLogits
from ..measurement import flat_rows, problem_of
from .linear_head import Rows, reduce_by_chunks, want_gradient
from .reduction import check_reduction

Loss = Callable[..., Tensor]


def sum_behind_head(
    loss: Loss, input: LinearLogits, problem: ElementProblem, reduction: str
) -> Tensor:
    """The sum of a loss over all elements; of ``"none"``, which needs all logits, each of them."""
    alone, tensors = problem_of(input), _beside(problem)
    if reduction == "none" or not by_chunks(alone) or want_gradient(*tensors.values()):
        each = "none" if reduction == "none" else "sum"
        return loss(input.whole("a loss of each of them"), **tensors, reduction=each)
    tensors, question = _flat(tensors, input), alone.without_logits()

    def sum_of(index: Index, z: Tensor) -> Tensor:
        some = {name: x[index] for name, x in tensors.items()}
        return loss(_transformed(question, index, z), **some, reduction="sum").double()

    assert isinstance(alone.logits, LinearLogits)
    rows = linear.Rows((alone.logits,), None, sum_of, tuple(tensors.values()))
    return linear.sum_ahead(rows).to(problem.dtype)


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
    tensors = _flat(_beside(problem), input)
    known = problem.kept()
    kept = None if known is None else known.any(-1)
    row_weight = check_reduction(row_weight=row_weight, rows=shape, **reduction)
    kept, row_weight = flat_rows(shape, kept, row_weight)
    if want_gradient(*tensors.values(), row_weight) or not by_chunks(problem_of(input)):
        whole = input.whole("a gradient of targets or weights").flatten(0, -2)
        result = loss(whole, **tensors, row_weight=row_weight, **reduction)
    else:

        def values_of(z: Tensor, index: Index) -> Tensor:
            return loss(z, **{k: x[index] for k, x in tensors.items()}, reduction="none")

        result = reduce_values(
            input, values_of, kept, tuple(tensors.values()), row_weight=row_weight, **reduction
        )
    result = result.to(problem.dtype)
    return result.reshape(shape) if reduction["reduction"] == "none" else result


def reduce_values(
    input: LinearLogits,
    values_of: Callable[[Tensor, Index], Tensor],
    kept: Tensor | None,
    beside: Sequence[Tensor] = (),
    **reduction: Any,
) -> Tensor:
    """Reduce ``values_of(logits, rows)``, which reads ``beside``, of a chunk after the other."""
    alone = problem_of(input)
    question = alone.without_logits()

    def rows_of(index: Index, z: Tensor) -> Rows:
        values = values_of(_transformed(question, index, z), index).double()
        here = None if kept is None else kept[index]
        return values, here, values.new_ones(values.shape) if here is None else here.double()

    assert isinstance(alone.logits, LinearLogits)
    read = (*alone.beside(), *beside)
    return reduce_by_chunks((alone.logits,), None, rows_of, read, **reduction)


def _beside(problem: ElementProblem) -> dict[str, Tensor]:
    """The tensors beside the logits, by the names that losses have for them."""
    named = {"target": problem.target, "weight": problem.weight, "pos_weight": problem.pos_weight}
    return {name: x for name, x in named.items() if x is not None}


def _flat(tensors: dict[str, Tensor], input: LinearLogits) -> dict[str, Tensor]:
    return {name: x.expand(input.shape).flatten(0, -2) for name, x in tensors.items()}


def _transformed(alone: Problem, index: Index, z: Tensor) -> Tensor:
    part = alone.of_rows(index, z)
    return part.transform(part.logits)
