"""From one value per row to what the caller asked for: weights, sum or mean, and its divisor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .._check import finite_number, one_of
from ..modes import can_look_at, deferred
from ..targets import class_axis, read_target

Reduction = Literal["none", "mean", "sum"]


def stable_sum(values: Tensor) -> Tensor:
    """The sum, with the same bits for any number of threads.

    PyTorch splits long sums over threads; rows of a matrix it sums one by one.
    """
    values = values.flatten()
    width = 4096
    while not deferred() and values.numel() > width:
        whole = values.numel() // width * width
        rest = values[whole:].sum().unsqueeze(0) if whole < values.numel() else None
        values = values[:whole].view(-1, width).sum(-1)
        if rest is not None:  # half the time of the usual reduction is slicing
            values = torch.cat([values, rest])
    return values.sum()


def reduce_rows(
    values: Tensor,
    kept: Tensor | None,
    mass: Tensor,
    *,
    reduction: str,
    normalizer: float | Tensor | str | None,
    row_weight: Tensor | None,
    empty: str,
) -> Tensor:
    """Weigh and add up one value per row.

    Rows that are not ``kept`` count for nothing, whatever they hold. ``mass`` is what each row adds
    to the divisor of the mean.
    """
    values = weigh(values, kept, row_weight)
    if reduction == "none":
        return values
    total = stable_sum(values)
    if reduction == "sum":
        return total
    return by_divisor(total, divisor_of(kept, mass, normalizer, row_weight), empty)


def weigh(values: Tensor, kept: Tensor | None, row_weight: Tensor | None) -> Tensor:
    """What each row adds to the sum."""
    if kept is not None:
        values = torch.where(kept, values, 0.0)
    return values if row_weight is None else values * row_weight


def divisor_of(
    kept: Tensor | None, mass: Tensor, normalizer: float | Tensor | str | None,
    row_weight: Tensor | None,
) -> Tensor:  # fmt: skip
    """What the mean divides by."""
    if normalizer is None or normalizer == "weight":
        return stable_sum(mass if row_weight is None else mass * row_weight)
    if isinstance(normalizer, str):
        return stable_sum(torch.ones_like(mass) if kept is None else kept.to(mass.dtype))
    if isinstance(normalizer, Tensor):
        return normalizer.to(mass)
    return mass.new_full((), normalizer)  # which, unlike a copy, no device waits for


def mass_of_labels(
    labels: Tensor, ignore_index: int, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Which rows are kept, and the mass of each: 1, or the class weight of its label."""
    kept = labels != ignore_index
    if weight is None:
        return kept, kept.double()
    inside = (labels >= 0) & (labels < weight.shape[0])
    return kept, torch.where(kept, weight.double()[torch.where(inside, labels, 0)], 0.0)


def divisor_of_rows(given: Mapping[str, Any]) -> Tensor:
    """What the mean of a loss of rows divides by, from the arguments of the call."""
    input, weight = given["input"], given["weight"]
    target = read_target(input, given["target"], given["ignore_index"])
    if target.soft:
        kept, mass = None, torch.ones_like(target.values.select(class_axis(input), 0)).double()
    else:
        kept, mass = mass_of_labels(target.values, target.ignore_index, weight)
    return divisor_of(kept, mass, given["normalizer"], given["row_weight"])


def by_divisor(total: Tensor, divisor: Tensor, empty: str) -> Tensor:
    """The mean; of nothing it is NaN, or 0 if so wanted."""
    return total / of_empty(divisor, empty)


def of_empty(divisor: Tensor, empty: str) -> Tensor:
    """The divisor, if so wanted 1 instead of 0."""
    return torch.where(divisor == 0, 1, divisor) if empty == "zero" else divisor


def check_reduction(
    reduction: str, normalizer: float | Tensor | str | None, row_weight: Tensor | None, empty: str,
    rows: torch.Size,
) -> Tensor | None:  # fmt: skip
    """Check the options of :func:`reduce_rows`; the row weights come back ready for use."""
    one_of("reduction", reduction, ("none", "mean", "sum"))
    one_of("empty", empty, ("nan", "zero"))
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(
                f'`normalizer` replaces what reduction="mean" divides by; with '
                f"reduction={reduction!r} nothing is divided. Leave one of the two out"
            )
        if isinstance(normalizer, str):
            one_of("normalizer", normalizer, ("weight", "count"))
        elif isinstance(normalizer, Tensor):
            if normalizer.ndim:
                raise ValueError(
                    f"`normalizer` must be a number or a 0-d tensor, got shape "
                    f"{tuple(normalizer.shape)}"
                )
        else:
            finite_number("normalizer", normalizer)
    if row_weight is None:
        return None
    if not isinstance(row_weight, Tensor):
        raise TypeError(f"`row_weight` must be a torch.Tensor, got {type(row_weight).__name__}")
    if row_weight.shape != rows:
        raise ValueError(
            f"`row_weight` must hold one number per row, shape {tuple(rows)}; got shape "
            f"{tuple(row_weight.shape)}"
        )
    _refuse_signed_mean(row_weight, reduction, normalizer)
    return row_weight.to(torch.float64) if row_weight.device.type != "mps" else row_weight


def _refuse_signed_mean(row_weight: Tensor, reduction: str, normalizer: object) -> None:
    """A mean over signed weights divides by their sum, which may be anything, even zero."""
    if reduction != "mean" or normalizer is not None or not can_look_at(row_weight):
        return
    if bool((row_weight < 0).any()):
        raise ValueError(
            '`row_weight` has negative entries, and reduction="mean" would divide by their sum. '
            'Say what to divide by: normalizer="count" for the number of rows, or a number'
        )
