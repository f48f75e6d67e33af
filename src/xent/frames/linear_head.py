"""What the frame does with logits behind a linear head: rows on one axis, and sums taken ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..engines import lean_engine, sum_ahead
from ..engines.problem import Problem
from ..linear_logits import LinearLogits
from ..row_statistics import RowStatistics
from .reduction import divisor_of, stable_sum, weigh

# (values, which rows are kept, what each adds to the divisor of the mean)
Rows = tuple[Tensor, Tensor | None, Tensor]


class FlatCall(NamedTuple):
    """A call on logits behind a head: rows on one axis, what was recorded among the options."""

    input: Tensor  # LinearLogits: engines take them as logits
    target: Tensor
    row_weight: Tensor | None
    logit_scale: float | Tensor | None
    softcap: float | None


def flatten(
    input: LinearLogits,
    target: Tensor,
    row_weight: Tensor | None,
    logit_scale: float | Tensor | None,
    softcap: float | None,
) -> FlatCall:
    """Bring a call into the form that engines take."""
    rows = input.shape[:-1]

    def flat(x: Any) -> Any:
        return x.reshape(-1) if isinstance(x, Tensor) and x.ndim and x.shape == rows else x

    scale, cap = input.recorded()
    if cap is not None and (softcap is not None or logit_scale is not None):
        raise ValueError(
            "these LinearLogits have a softcap already; leave out `softcap` and `logit_scale`"
        )
    if logit_scale is not None:
        scale = logit_scale if scale is None else scale * logit_scale
    if isinstance(target, Tensor):
        soft = target.shape == input.shape and target.is_floating_point()
        target = target.reshape(-1, input.shape[-1]) if soft else _flat_labels(target, rows)
    return FlatCall(
        cast(Tensor, input.bare()),
        target,
        flat(row_weight),
        flat(scale),
        cap if softcap is None else softcap,
    )


def _flat_labels(target: Tensor, rows: torch.Size) -> Tensor:
    if target.shape != rows:
        raise ValueError(
            f"`target` must have shape {tuple(rows)} to hold one class index for each row of "
            f"logits behind a linear head, or the shape of the logits; got {tuple(target.shape)}"
        )
    return target.reshape(-1)


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
    divisors = []

    def summand(part: Problem, stats: RowStatistics, index: Any) -> Tensor:
        values, kept, mass = rows_of(part, stats)
        weight = None if row_weight is None else row_weight[index]
        divisors.append(divisor_of(kept, mass, None if _number(normalizer) else normalizer, weight))
        return stable_sum(weigh(values, kept, weight))

    total = sum_ahead(problem, module, summand)
    if _number(normalizer):
        return total, torch.as_tensor(normalizer, dtype=total.dtype, device=total.device)
    return total, torch.stack([total.new_zeros(()), *divisors]).sum()


def _number(normalizer: float | Tensor | str | None) -> bool:
    return normalizer is not None and not isinstance(normalizer, str)
