"""What the frame does with logits behind a linear head: sums over the rows are taken ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..engines import lean_engine, sum_ahead
from ..engines.problem import Problem
from ..linear_logits import LinearLogits
from ..row_statistics import RowStatistics
from .reduction import divisor_of, stable_sum, weigh

# (values, which rows are kept, what each adds to the divisor of the mean)
Rows = tuple[Tensor, Tensor | None, Tensor]


def engine_ahead(
    problem: Problem, engine: str, settings: Mapping[str, Any], per_class: frozenset[str]
) -> Any:
    """The engine with which a sum over the rows takes its gradient in forward, or None.

    Not where nobody wants a gradient, and not with hyperparameters that a chunk of rows would not
    know what to do with: tensors that may hold a number per row, or want a gradient themselves.
    """
    logits = problem.logits
    if not (isinstance(logits, LinearLogits) and logits.requires_grad and torch.is_grad_enabled()):
        return None
    for name, value in settings.items():
        if isinstance(value, Tensor) and (
            value.requires_grad or (value.ndim and name not in per_class)
        ):
            return None
    return lean_engine(problem, engine)


def total_ahead(
    problem: Problem,
    module: Any,
    rows_of: Callable[[Problem, RowStatistics], Rows],
    normalizer: float | Tensor | str | None,
    row_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The weighted sum over all rows, and what its mean divides by."""
    given = not (normalizer is None or isinstance(normalizer, str))
    by, divisors = None if given else normalizer, []

    def summand(part: Problem, stats: RowStatistics, index: Any) -> Tensor:
        values, kept, mass = rows_of(part, stats)
        weight = None if row_weight is None else row_weight[index]
        divisors.append(divisor_of(kept, mass, by, weight))
        return stable_sum(weigh(values, kept, weight))

    total = sum_ahead(problem, module, summand)
    if given:
        return total, divisor_of(None, total, normalizer, None)
    return total, torch.stack([total.new_zeros(()), *divisors]).sum()
