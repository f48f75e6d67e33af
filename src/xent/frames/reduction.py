"""Reduction of one value per row: weights, sum or mean, and the divisor of the mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from .._check import at_hand, is_tensor, one_of, scalar
from ..engines.modes import can_look_at, deferred, has_tangent, widened
from ..engines.rows.problem import Problem
from ..heads.logits import LinearLogits
from ..heads.problem import HeadProblem, flat_rows, flatten
from ..targets import any_class, are_alike, class_axis, read_target

Reduction = Literal["none", "mean", "sum"]
Normalizer = float | Tensor | str | None


class RowValues(NamedTuple):
    """Values of a loss for some rows."""

    values: Tensor  # (N...), one per row, float64
    kept: Tensor | None  # (N...), bool: rows that are not ignored; None for all
    mass: Tensor  # (N...), what each row adds to the divisor of the mean


class Reduce(NamedTuple):
    """Options that turn values of rows into the result of a call; checked."""

    reduction: str
    normalizer: Normalizer
    row_weight: Tensor | None  # (N...), float64 where the device has it
    empty: str

    def of(self, rows: RowValues) -> Tensor:
        """The result.

        Rows that are not kept count for nothing, whatever they hold, and rows of weight 0 add
        nothing.
        """
        values = weigh(rows.values, rows.kept, self.row_weight)
        if self.reduction == "none":
            return values
        total = stable_sum(values)
        return total if self.reduction == "sum" else self.by(total, self.divisor(rows))

    def divisor(self, rows: RowValues) -> Tensor:
        """Return the divisor of the mean."""
        return divisor_of(rows.kept, rows.mass, self.normalizer, self.row_weight)

    def by(self, total: Tensor, divisor: Tensor) -> Tensor:
        """The mean; NaN for no rows, or 0 with ``empty="zero"``."""
        return total / of_empty(divisor, self.empty)

    def learned(self) -> bool:
        """True if a weight or the normaliser wants a gradient."""
        given = (self.row_weight, self.normalizer)
        return any(isinstance(x, Tensor) and _learned(x) for x in given)

    def counting(self, kept: Tensor) -> tuple[Tensor, Reduce]:
        """The kept rows whose weight is not 0, and options whose normaliser counts the others, too.

        Returns ``kept`` itself where no row is known to have weight 0.
        """
        out = rows_left_out(self.row_weight)
        if out is None:
            return kept, self
        count = self.normalizer == "count" if isinstance(self.normalizer, str) else False
        return kept & ~out, self._replace(normalizer=kept.sum()) if count else self


def read_reduction(
    reduction: str,
    normalizer: Normalizer,
    row_weight: Tensor | None,
    empty: str,
    rows: torch.Size,
    device: torch.device,
) -> Reduce:
    """Check the options of a reduction over ``rows``, a shape."""
    one_of("reduction", reduction, ("none", "mean", "sum"))
    one_of("empty", empty, ("nan", "zero"))
    if normalizer is not None:
        normalizer = _read_normalizer(normalizer, reduction, device)
    if row_weight is not None:
        row_weight = _read_row_weight(row_weight, rows, device)
        if reduction == "mean" and normalizer is None:
            refuse_signed_mean(row_weight)
    return Reduce(reduction, normalizer, row_weight, empty)


def _read_normalizer(
    normalizer: float | Tensor | str, reduction: str, device: torch.device
) -> float | Tensor | str:
    if reduction != "mean":
        raise ValueError(
            f'`normalizer` replaces what reduction="mean" divides by; with '
            f"reduction={reduction!r} nothing is divided. Leave one of the two out"
        )
    if isinstance(normalizer, str):
        one_of("normalizer", normalizer, ("weight", "count"))
        return normalizer
    return scalar("normalizer", normalizer, device)


def _read_row_weight(row_weight: Tensor, rows: torch.Size, device: torch.device) -> Tensor:
    is_tensor("row_weight", row_weight)
    if row_weight.shape != rows:
        raise ValueError(
            f"`row_weight` must hold one number per row, shape {tuple(rows)}; got shape "
            f"{tuple(row_weight.shape)}"
        )
    row_weight = at_hand("row_weight", row_weight, device)
    return widened(row_weight)


def refuse_signed_mean(row_weight: Tensor) -> None:
    """Raise for negative weights: a mean would divide by a sum that may be anything, even zero."""
    if can_look_at(row_weight) and bool((row_weight < 0).any()):
        raise ValueError(
            '`row_weight` has negative entries, and reduction="mean" would divide by their sum. '
            'Say what to divide by: normalizer="count" for the number of rows, or a number'
        )


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
        if rest is not None:  # skipped if empty: slicing takes half the time
            values = torch.cat([values, rest])
    return values.sum()


def weigh(values: Tensor, kept: Tensor | None, row_weight: Tensor | None) -> Tensor:
    """Return the weighted value of each row, 0 for rows that do not count."""
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
    """Return a mask of the rows of weight 0, which are left out; None if none is known.

    A weight that is learned has a gradient at 0, too, so that its row must be looked at.
    """
    if row_weight is None or _learned(row_weight):
        return None
    out = row_weight == 0
    return None if can_look_at(out) and not bool(out.any()) else out


def _learned(weight: Tensor) -> bool:
    if weight.requires_grad and torch.is_grad_enabled():
        return True
    return has_tangent(weight)


def leave_out(problem: Problem, reduce: Reduce) -> tuple[Problem, Reduce]:
    """The problem without its rows of weight 0, and options that still count these rows.

    The rows are marked as ignored, so that no engine lets their numbers, which may be NaN, into the
    result. Where targets are probabilities no row can be marked; there 0 replaces the numbers.
    """
    out = rows_left_out(reduce.row_weight)
    if out is None:
        return problem, reduce
    target, kept = problem.tensors.target, problem.kept()
    if kept is not None:
        kept, reduce = reduce.counting(kept)
        ignored = problem.settings.ignore_index
        return problem.replace(target=torch.where(kept, target, ignored)), reduce
    axis, transform = problem.axis, problem.transform.without_scale_of(out)
    target = torch.where(out.unsqueeze(axis), 0, target)
    problem = problem.replace(target=target, scale=transform.scale)
    if isinstance(problem, HeadProblem):
        source = problem.source
        hidden = torch.where(out.unsqueeze(-1), 0, source.hidden)
        return problem.with_source(source.with_hidden(hidden)), reduce
    logits = problem.logits
    harmless = can_look_at(logits) and logits.detach().movedim(axis, -1)[out].isfinite().all()
    if harmless:  # a copy of all logits would cost more than the loss
        return problem, reduce
    return problem.replace(logits=torch.where(out.unsqueeze(axis), 0, logits)), reduce


# ---- divisors -----------------------------------------------------------------------------------


def divisor_of(
    kept: Tensor | None, mass: Tensor, normalizer: Normalizer, row_weight: Tensor | None
) -> Tensor:
    """Return the divisor of the mean."""
    if normalizer is None or normalizer == "weight":
        return stable_sum(mass if row_weight is None else mass * row_weight)
    if isinstance(normalizer, str):
        return stable_sum(torch.ones_like(mass) if kept is None else kept.to(mass.dtype))
    if isinstance(normalizer, Tensor):
        return normalizer.to(mass)
    return mass.new_full((), normalizer)  # a copy from the CPU would wait for the device


def of_empty(divisor: Tensor, empty: str) -> Tensor:
    """The divisor; with ``empty="zero"`` 1 in the place of 0."""
    return torch.where(divisor == 0, 1, divisor) if empty == "zero" else divisor


def mass_of_labels(
    labels: Tensor, ignore_index: int, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return a mask of the kept rows, and the mass of each: 1, or the class weight of its label."""
    kept = labels != ignore_index
    if weight is None:
        return kept, kept.double()
    inside = (labels >= 0) & (labels < weight.shape[0])
    return kept, torch.where(kept, weight.double()[torch.where(inside, labels, 0)], 0.0)


def divisor_of_problem(problem: Problem, reduce: Reduce) -> Tensor | None:
    """Divisor of a loss of class indices, before the statistics are known; None for 1."""
    if reduce.reduction == "sum":
        return None
    if problem.settings.soft:
        kept = problem.kept()
        mass = torch.ones(problem.rows, dtype=torch.float64, device=problem.device)
        mass = mass if kept is None else kept.to(mass.dtype)
        return of_empty(divisor_of(kept, mass, reduce.normalizer, reduce.row_weight), reduce.empty)
    labels, ignore_index = problem.tensors.target, problem.settings.ignore_index
    weight, row_weight, normalizer = (
        problem.tensors.class_weight, reduce.row_weight, reduce.normalizer,
    )  # fmt: skip
    if weight is None and row_weight is None and not isinstance(normalizer, (int, float, Tensor)):
        return of_empty((labels != ignore_index).sum(), reduce.empty)
    kept, mass = mass_of_labels(labels, ignore_index, weight)
    return of_empty(divisor_of(kept, mass, normalizer, row_weight), reduce.empty)


def divisor_of_rows(given: Mapping[str, Any]) -> Tensor:
    """Return the divisor of the mean of a loss of rows, from the arguments of the call."""
    input, row_weight = given["input"], given["row_weight"]
    classes = any_class(input) if given["target"] is None else given["target"]
    if isinstance(input, LinearLogits):
        (row_weight,) = flat_rows(input.shape[:-1], row_weight)
        input, classes = cast(tuple[Any, Tensor], flatten(input, classes, None, None)[:2])
    if are_alike(classes, input):  # a rank may have no class of soft targets
        axis = class_axis(input)
        rows = input.shape[:axis] + input.shape[axis + 1 :]
        kept, mass = None, torch.ones(rows, dtype=torch.float64, device=input.device)
    else:
        target = read_target(input, classes, given["ignore_index"])
        kept, mass = mass_of_labels(target.values, target.ignore_index, given["weight"])
    return divisor_of(kept, mass, given["normalizer"], row_weight)
