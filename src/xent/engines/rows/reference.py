"""The reference engine for losses of rows: sums over the classes, then :mod:`.algebra`.

This is the specification: the other engines must agree with it and with its derivatives by
autograd. It is plain PyTorch, for any device and dtype, differentiable in every mode of PyTorch.
(N,) stands for the shape of the rows; here the V classes are the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...extremes import product
from ..modes import wide_dtype
from . import algebra
from .algebra import INF, Odds
from .labels import check_labels_of
from .problem import Problem

Fields = dict[str, Tensor]  # (N,) each


class SplitRows(NamedTuple):
    """Rows split into pivot and rest; under a soft target the largest logit is the pivot."""

    logits: Tensor  # (N, V), transformed
    soft: Tensor | None  # (N, V), class weights included
    pivot: Tensor  # (N,), a class; -1 without a pivot
    is_pivot: Tensor  # (N, V)
    pivot_logit: Tensor  # (N,), float64, -inf where there is no pivot
    rest: Tensor  # (N, V), the logits with -inf in the place of the pivot
    ignored: Tensor  # (N,)

    @property
    def wide(self) -> torch.dtype:
        """The dtype of all numbers with one value per row."""
        return self.pivot_logit.dtype


class RestSums(NamedTuple):
    """Sums over the rest, relative to the largest logit of the rest."""

    shift: Tensor  # (N,), the largest logit; -inf where the rest is empty
    gap: Tensor  # (N, V), shift - z_j, infinite for the pivot
    power: Tensor  # (N, V), exp(z_j - shift)
    small: Tensor  # (N,), float64: sum of the powers below 1
    ties: Tensor  # (N,), float64: number of classes at the shift


def row_statistics(problem: Problem) -> tuple[Tensor, bool]:
    """Return the table of statistics, (fields, N...), in float64 where the device has it.

    The second value, True if no row is known to be ignored, is always False here, because a look at
    the labels may cost time.
    """
    p = problem
    rows = _read(p)
    sums = _sums_of_rest(rows)
    shift = sums.shift.to(rows.wide)
    odds = algebra.odds_of(rows.pivot_logit, shift, sums.small, sums.ties)
    fields = {"shift": shift, "sum": odds.total, "lse": odds.lse, "log_sum": odds.log_sum}
    fields |= _index_fields(p, rows, odds) if rows.soft is None else _soft_fields(rows, sums, odds)
    if "top" in p.settings.requests:
        fields |= _top(rows)
    if "squares" in p.settings.requests:
        fields["rest_squares"] = _sum_of_powers(2, sums, odds)
    if "cubes" in p.settings.requests:
        fields["rest_cubes"] = _sum_of_powers(3, sums, odds)
    if "entropy" in p.settings.requests:
        gap = torch.where(rows.rest == -INF, 0, sums.gap)  # 0 * inf = 0
        spread = (sums.power * gap).sum(-1, dtype=rows.wide)
        fields["entropy"] = algebra.entropy_of(odds, spread)
    if "mean" in p.settings.requests:
        fields |= _mean(p, rows, sums)
    return torch.stack(_with_empty_rows(p, rows, odds, fields)), False


def row_gradient(
    problem: Problem,
    table: Tensor,
    partials: Sequence[Tensor | None],
    out: Tensor | None = None,
) -> Tensor:
    """Return the gradient by the logits of the sum of every field times its partial derivative.

    ``out``, if given, receives the gradient. Where gradients are recorded the result is
    differentiable.
    """
    record = torch.is_grad_enabled()
    logits = problem.logits if record else problem.logits.detach().requires_grad_()
    with torch.enable_grad():
        table, _ = row_statistics(problem.replace(logits=logits))
        pairs = zip(table.unbind(0), partials, strict=True)
    pairs = [(field, slope) for field, slope in pairs if slope is not None]
    fields, slopes = zip(*pairs, strict=True)
    (gradient,) = torch.autograd.grad(fields, logits, slopes, create_graph=record)
    return gradient if out is None else out.copy_(gradient)


# ---- rows ---------------------------------------------------------------------------------------


def _read(p: Problem) -> SplitRows:
    """Return the transformed logits and the target of every row, with the pivot kept apart."""
    x, transform = _at_least_float32(p.logits).movedim(p.axis, -1), p.transform  # (N, V)
    if p.labelled:
        # The logits of an ignored row must change no result; 0 * NaN in a gradient would.
        ignored = p.tensors.target == p.settings.ignore_index
        x = torch.where(ignored.unsqueeze(-1), 0, x)
        transform = transform.without_scale_of(ignored)
    z = transform(x)  # (N, V)
    if p.settings.soft:
        q = _at_least_float32(p.soft_target()).movedim(p.axis, -1)  # (N, V)
        q = q if p.tensors.class_weight is None else q * p.tensors.class_weight.to(z.dtype)
        pivot = z.detach().argmax(-1)  # (N,)
        ignored = torch.zeros_like(pivot, dtype=torch.bool)
        if p.tensors.target_table is not None:
            _, ignored = _read_labels(p)
    else:
        q = None
        pivot, ignored = _read_labels(p)  # (N,) each

    is_pivot = torch.arange(p.classes, device=z.device) == pivot.unsqueeze(-1)  # (N, V)
    wide = wide_dtype(z)
    at_pivot = torch.where(is_pivot, z, 0).sum(-1).to(wide)  # (N,)
    pivot_logit = torch.where(pivot < 0, -INF, at_pivot)
    rest = torch.where(is_pivot, -INF, z)  # (N, V)
    return SplitRows(z, q, pivot, is_pivot, pivot_logit, rest, ignored)


def _read_labels(p: Problem) -> tuple[Tensor, Tensor]:
    """Return (class among these logits, or -1; True if the row is ignored)."""
    check_labels_of(p)
    ignored = p.tensors.target == p.settings.ignore_index
    here = p.tensors.target - p.settings.first_class
    return torch.where((here >= 0) & (here < p.classes) & ~ignored, here, -1), ignored


def _at_least_float32(x: Tensor) -> Tensor:
    """Return the tensor in the dtype of sums over classes."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


# ---- sums over the rest -------------------------------------------------------------------------


def _sums_of_rest(rows: SplitRows) -> RestSums:
    """Return the sums of exponentials over every class but the pivot."""
    shift = _largest(rows.rest)  # (N,)
    gap = _finite(shift).unsqueeze(-1) - rows.rest  # (N, V), >= 0
    at_shift = gap == 0  # (N, V)
    power = torch.exp(-gap)  # (N, V)
    # Classes at the shift are counted, and the others are summed. That keeps the digits of a tiny
    # sum. At the shift expm1 adds 0 to the sum, but has the derivative of the exponential, which a
    # count has not.
    below_1 = torch.where(at_shift, torch.expm1(-gap), power)
    small = below_1.sum(-1, dtype=rows.wide)  # (N,)
    return RestSums(shift, gap, power, small, at_shift.sum(-1).to(rows.wide))


def _largest(rest: Tensor) -> Tensor:
    """Return the largest value of each row as a constant; -inf where there is none."""
    rest = rest.detach()
    if rest.shape[-1] == 0:
        return rest.new_full(rest.shape[:-1], -INF)
    return rest.amax(-1)


def _finite(shift: Tensor) -> Tensor:
    """Return the shift, or 0 where the rest is empty."""
    return torch.where(shift == -INF, 0.0, shift)


# ---- fields -------------------------------------------------------------------------------------


def _index_fields(p: Problem, rows: SplitRows, odds: Odds) -> Fields:
    """Return the fields of an index target; if its class is on another shard, its mass is 0."""
    mass = torch.ones_like(odds.d)  # (N,)
    if p.tensors.class_weight is not None:
        classes = rows.pivot.clamp(min=0).reshape(-1)
        weight = p.tensors.class_weight.to(rows.logits.dtype).index_select(0, classes)
        mass = weight.view(rows.pivot.shape).to(rows.wide)
    return {
        "log_odds": odds.d,
        "log_prob": -odds.above,
        "target": algebra.finite_or_nan(rows.pivot_logit),
        "mass": torch.where(rows.pivot < 0, 0.0, mass),
    }


def _soft_fields(rows: SplitRows, sums: RestSums, odds: Odds) -> Fields:
    """Return the fields of a soft target."""
    assert rows.soft is not None
    own = torch.where(rows.is_pivot, rows.soft, 0).sum(-1).to(rows.wide)  # (N,)
    q = torch.where(rows.is_pivot, 0, rows.soft)  # (N, V)
    gap = torch.where((rows.rest == -INF) & (q == 0), 0, sums.gap)  # 0 * inf = 0
    mass, deficit = q.sum(-1, dtype=rows.wide), (q * gap).sum(-1, dtype=rows.wide)
    shift = sums.shift.to(rows.wide)
    fields = algebra.soft_fields(odds, rows.pivot_logit, shift, own, mass, deficit)
    return fields._asdict() | {"pivot_log_odds": odds.d, "top": rows.pivot.to(rows.wide)}


def _top(rows: SplitRows) -> Fields:
    """Return the largest logit and its class; under an index target also those of the rest."""
    logit, top = rows.logits.detach().max(-1)  # (N,) each
    fields = {"top": top.to(rows.wide), "top_logit": logit.to(rows.wide)}
    if rows.soft is None:
        rest_top = rows.rest.detach().argmax(-1, keepdim=True)  # (N, 1)
        fields["rest_top"] = rest_top[..., 0].to(rows.wide)
        fields["rest_top_logit"] = rows.rest.gather(-1, rest_top)[..., 0].to(rows.wide)
    return fields


def _sum_of_powers(k: int, sums: RestSums, odds: Odds) -> Tensor:
    """Return the sum over the rest of ``p_j ** k``, relative to the shift: nothing overflows."""
    total = torch.exp(-k * sums.gap).sum(-1, dtype=odds.total.dtype)
    return product(total, algebra.unit_of(odds) ** k)


def _mean(p: Problem, rows: SplitRows, sums: RestSums) -> Fields:
    """Return the weighted mean of the logits that are not masked, their number, and its mass."""
    z, shift = rows.logits, _finite(sums.shift)
    masked = z == -INF
    c = p.tensors.mean_weight
    c = torch.ones_like(z) if c is None else c.to(z.dtype).expand_as(z)
    c = torch.where(masked, 0, c)  # (N, V)
    gap = torch.where(masked, 0, shift.unsqueeze(-1) - z)  # (N, V)
    support = (~masked).sum(-1).to(rows.wide)  # (N,)
    weight = c.sum(-1, dtype=rows.wide)
    total = weight * shift.to(rows.wide) - (c * gap).sum(-1, dtype=rows.wide)
    return {"mean": total / support, "support": support, "mean_mass": weight / support}


def _with_empty_rows(p: Problem, rows: SplitRows, odds: Odds, fields: Fields) -> list[Tensor]:
    """Return the fields in the order of the table, with those of empty rows filled in."""
    nothing = torch.zeros_like(rows.ignored)
    if p.settings.sharded:
        nothing = (odds.total == 0) & (rows.pivot_logit == -INF) & ~rows.ignored
    missed = nothing & (fields["mass"] != 0) if p.settings.soft else nothing
    empty = algebra.fields_of_empty_rows(nothing, missed, fields["mass"])
    place = nothing | rows.ignored
    return [
        torch.where(place, getattr(empty, algebra.IN_EMPTY_ROW.get(name, "zero")), fields[name])
        for name in p.fields
    ]
