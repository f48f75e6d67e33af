"""From one value per row to what the caller asked for: weights, sum or mean, and its divisor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .._check import at_hand, is_tensor, one_of, scalar
from ..engines.modes import can_look_at, deferred
from ..engines.rows.problem import Problem
from ..heads.logits import LinearLogits
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

    Rows that are not ``kept`` count for nothing, whatever they hold, and rows of weight 0 add
    nothing. ``mass`` is what each row adds to the divisor of the mean.
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
    if row_weight is not None:
        weighs = row_weight != 0
        if _learned(row_weight):  # the slope of a weight is the value of its row, also at 0
            weighs = weighs | values.isfinite()
        kept = weighs if kept is None else kept & weighs
    if kept is not None:
        values = torch.where(kept, values, 0.0)
    return values if row_weight is None else values * row_weight


# ---- rows of weight 0 ---------------------------------------------------------------------------


def rows_left_out(row_weight: Tensor | None) -> Tensor | None:
    """Which rows have weight 0, and are left out; None if none has, as far as anybody can look.

    A weight that is learned has a gradient at 0, too, so that its row must be looked at.
    """
    if row_weight is None or _learned(row_weight):
        return None
    out = row_weight == 0
    return None if can_look_at(out) and not bool(out.any()) else out


def _learned(weight: Tensor) -> bool:
    if weight.requires_grad and torch.is_grad_enabled():
        return True
    forward = torch.autograd.forward_ad
    return forward._current_level >= 0 and forward.unpack_dual(weight).tangent is not None


def rows_that_count(
    kept: Tensor, row_weight: Tensor | None, normalizer: float | Tensor | str | None
) -> tuple[Tensor, float | Tensor | str | None]:
    """The rows kept whose weight is not 0, and the normaliser, which counts the others, too."""
    out = rows_left_out(row_weight)
    if out is None:
        return kept, normalizer
    count = isinstance(normalizer, str) and normalizer == "count"
    return kept & ~out, kept.sum() if count else normalizer


def leave_out(
    problem: Problem, row_weight: Tensor | None, normalizer: float | Tensor | str | None
) -> tuple[Problem, float | Tensor | str | None]:
    """The problem without its rows of weight 0, and the normaliser, which counts them as before.

    Nothing those rows hold leaves a trace then, in no engine: they are ignored. With probabilities
    for a target there is no mark to ignore rows by, and 0 takes the place of what they hold.
    """
    out, target = rows_left_out(row_weight), problem.target
    if out is None:
        return problem, normalizer
    if target.labelled:
        kept = target.values != target.ignore_index
        kept, normalizer = rows_that_count(kept, row_weight, normalizer)
        labels = torch.where(kept, target.values, target.ignore_index)
        return problem._replace(target=target._replace(values=labels)), normalizer
    logits, axis = problem.logits, problem.axis
    if isinstance(logits, LinearLogits):
        logits = logits.with_hidden(torch.where(out.unsqueeze(-1), 0, logits.hidden))
    elif can_look_at(logits) and bool(logits.detach().movedim(axis, -1)[out].isfinite().all()):
        pass  # they are harmless, and copies of all logits cost more than the loss
    else:
        logits = torch.where(out.unsqueeze(axis), 0, logits)
    target = target._replace(values=torch.where(out.unsqueeze(axis), 0, target.values))
    transform = problem.transform.without_scale_of(out)
    return problem._replace(logits=logits, target=target, transform=transform), normalizer


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
    rows: torch.Size, device: torch.device,
) -> tuple[float | Tensor | str | None, Tensor | None]:  # fmt: skip
    """Check the options of :func:`reduce_rows`; normaliser and row weights, ready for use."""
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
        else:
            normalizer = scalar("normalizer", normalizer, device)
    if row_weight is None:
        return normalizer, None
    is_tensor("row_weight", row_weight)
    if row_weight.shape != rows:
        raise ValueError(
            f"`row_weight` must hold one number per row, shape {tuple(rows)}; got shape "
            f"{tuple(row_weight.shape)}"
        )
    row_weight = at_hand("row_weight", row_weight, device)
    _refuse_signed_mean(row_weight, reduction, normalizer)
    if row_weight.device.type != "mps":
        row_weight = row_weight.to(torch.float64)
    return normalizer, row_weight


def _refuse_signed_mean(row_weight: Tensor, reduction: str, normalizer: object) -> None:
    """A mean over signed weights divides by their sum, which may be anything, even zero."""
    if reduction != "mean" or normalizer is not None or not can_look_at(row_weight):
        return
    if bool((row_weight < 0).any()):
        raise ValueError(
            '`row_weight` has negative entries, and reduction="mean" would divide by their sum. '
            'Say what to divide by: normalizer="count" for the number of rows, or a number'
        )
