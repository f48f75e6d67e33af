"""What the frames do with logits behind a linear head: a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..engines import by_chunks, linear
from ..engines.problem import Problem
from ..linear_logits import LinearLogits
from .reduction import by_divisor, divisor_of, stable_sum, weigh

# (values, which rows are kept, what each adds to the divisor of the mean)
Rows = tuple[Tensor, Tensor | None, Tensor]


def fits_chunks(
    problem: Problem,
    settings: Mapping[str, Any],
    per_class: frozenset[str],
    row_weight: Tensor | None,
) -> bool:
    """Whether a chunk of rows can be reduced as soon as its logits are there.

    Not with tensors among the hyperparameters that may hold a number per row, or with ones that
    want a gradient themselves.
    """
    if not by_chunks(problem) or (row_weight is not None and row_weight.requires_grad):
        return False
    tensors = {name: value for name, value in settings.items() if isinstance(value, Tensor)}
    return not any(t.requires_grad or (t.ndim and k not in per_class) for k, t in tensors.items())


def reduce_by_chunks(
    problem: Problem,
    rows_of: Callable[[Problem], Rows],
    *,
    reduction: str,
    normalizer: float | Tensor | str | None,
    row_weight: Tensor | None,
    empty: str,
) -> Tensor:
    """:func:`reduce_rows` of ``rows_of(problem)``, chunk by chunk."""
    source, kept = problem.logits, linear.kept_rows(problem)
    assert isinstance(source, LinearLogits)
    divisors: list[Tensor] = []
    given = not (normalizer is None or isinstance(normalizer, str))

    def values_of(index: linear.Index, z: Tensor) -> Tensor:
        values, here, _ = rows_of(problem.of_rows(index, z))
        return weigh(values, here, None if row_weight is None else row_weight[index])

    def sum_of(index: linear.Index, z: Tensor) -> Tensor:
        values, here, mass = rows_of(problem.of_rows(index, z))
        weight = None if row_weight is None else row_weight[index]
        if not given:
            divisors.append(divisor_of(here, mass, normalizer, weight).detach())
        return stable_sum(weigh(values, here, weight))

    if reduction == "none":
        return linear.row_values(linear.Rows((source,), kept, values_of))
    total = linear.sum_ahead(linear.Rows((source,), kept, sum_of))
    if reduction == "sum":
        return total
    none = total.new_zeros(())
    divisor = divisor_of(None, none, normalizer, None) if given else sum(divisors, none)
    return by_divisor(total, divisor, empty)
