"""The specification: the statistics in plain PyTorch, shape by shape, on any device and dtype.

Differentiable as it stands, as often and in whatever mode PyTorch can. (N,) stands for the shape
of the rows, V for the classes, which come last here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...row_statistics import logit_of_exp, product
from . import labels
from .problem import Problem

INF = torch.inf


def row_statistics(problem: Problem) -> tuple[Tensor, bool]:
    """The table of statistics, (fields, N...), in float64 where the device has it.

    And whether it is known that no row was ignored: never here, where looking may not be free.
    """
    p = problem
    x, transform = _sweep(p.logits).movedim(p.axis, -1), p.transform  # (N, V)
    if p.labelled:
        # What an ignored row holds must not leave a trace, not even 0 * NaN in a gradient.
        ignored = p.tensors.target == p.settings.ignore_index
        x = torch.where(ignored.unsqueeze(-1), 0, x)
        transform = transform.without_scale_of(ignored)
    z = transform(x)  # (N, V)
    wide = torch.float32 if z.device.type == "mps" else torch.float64
    weight = None if p.tensors.class_weight is None else p.tensors.class_weight.to(z.dtype)  # (V,)
    if p.settings.soft:
        q = _sweep(p.soft_target()).movedim(p.axis, -1)  # (N, V)
        q = q if weight is None else q * weight
        pivot = z.detach().argmax(-1)  # (N,)
        ignored = torch.zeros_like(pivot, dtype=torch.bool)
        present = torch.ones_like(ignored)
        if p.tensors.target_table is not None:
            _, _, ignored = _read_labels(p)
    else:
        q = None
        pivot, present, ignored = _read_labels(p)  # (N,) each

    classes = torch.arange(p.classes, device=z.device)
    is_pivot = (classes == pivot.unsqueeze(-1)) & present.unsqueeze(-1)  # (N, V)
    at_pivot = torch.where(is_pivot, z, 0).sum(-1).to(wide)  # (N,)
    pivot_logit = torch.where(present, at_pivot, -INF)
    # An infinite logit is an overflow upstream; it must not look like a sure prediction.
    pivot_logit = torch.where(pivot_logit == INF, torch.nan, pivot_logit)

    rest = torch.where(is_pivot, -INF, z)  # (N, V)
    shift = _largest(rest)  # (N,)
    finite_shift = torch.where(shift == -INF, 0.0, shift)
    below_shift = finite_shift.unsqueeze(-1) - rest  # (N, V), >= 0
    # Classes at the shift are counted and the others summed: log(tops + small) keeps a tiny sum.
    # expm1 is 0 at the shift, but has the derivative that counting lacks.
    at_shift = rest == shift.unsqueeze(-1)
    at_shift = at_shift & (rest != -INF)  # (N, V)
    e = torch.exp(-below_shift)  # (N, V)
    small = torch.where(at_shift, torch.expm1(-below_shift), e).sum(-1, dtype=wide)  # (N,)
    tops = at_shift.sum(-1).to(wide)  # (N,)
    sum_ = tops + small
    empty = sum_ == 0
    tops = torch.where(tops == 0, 1.0, tops)
    log_sum = torch.where(empty, -INF, torch.log(tops) + torch.log1p(small / tops))

    shift, finite_shift = shift.to(wide), finite_shift.to(wide)
    # An infinite or NaN class makes all of its row NaN, the target's own gradient among it.
    lead = (pivot_logit - shift) * torch.where(sum_.isnan(), sum_, 1.0).detach()
    lost = _lost_in_difference(pivot_logit.detach(), shift.detach(), lead.detach())
    d = lead - (log_sum - lost)  # log-odds of the pivot
    # An exponential of d would magnify the rounding of d. Where the pivot leads, e^-d is formed
    # from the sum and from the lead, whose own rounding is known.
    trails, unlikely = lead < 0, d < 0
    rest_sum = torch.where(empty, 0.0, sum_)
    odds = torch.exp(torch.where(trails, 0.0, -lead)) * (rest_sum - rest_sum * lost)
    ratio = torch.where(unlikely, torch.exp(torch.where(unlikely, d, 0.0)), odds)  # e^-|d|
    overlap = torch.log1p(ratio)
    above = torch.where(trails, overlap - d, torch.log1p(odds))  # lse - pivot
    below = torch.where(unlikely, log_sum + overlap, lead + overlap)  # lse - shift
    below = torch.where(empty, 0.0, below)
    lse = torch.where(unlikely, finite_shift + below, pivot_logit + above)
    pivot_prob = torch.where(unlikely, ratio, 1.0) / (1.0 + ratio)
    rest_prob = torch.where(unlikely, 1.0, ratio) / (1.0 + ratio)

    fields: dict[str, Tensor] = {"shift": shift, "sum": sum_, "lse": lse}
    if q is None:
        mass = torch.ones_like(d)
        if weight is not None:
            mass = weight.index_select(0, pivot.reshape(-1)).view(pivot.shape).to(wide)
        fields |= {"log_odds": d, "log_prob": -above, "target": pivot_logit}
        fields["mass"] = torch.where(present, mass, 0.0)
    else:
        q_pivot = torch.where(is_pivot, q, 0).sum(-1).to(wide)  # (N,)
        q_rest = torch.where(is_pivot, 0, q)  # (N, V)
        unseen = (rest == -INF) & (q_rest == 0)  # 0 * inf = 0
        deficit = (q_rest * torch.where(unseen, 0, below_shift)).sum(-1, dtype=wide)
        rest_mass = q_rest.sum(-1, dtype=wide)
        nll = product(q_pivot, above) + deficit + rest_mass * below
        fields["log_prob"] = -nll
        fields["log_odds"] = logit_of_exp(-nll)
        target = product(q_pivot, pivot_logit)
        fields["target"] = target + rest_mass * finite_shift - deficit
        fields |= {"mass": q_pivot + rest_mass, "pivot_log_odds": d, "top": pivot.to(wide)}

    if "top" in p.settings.requests:
        top_logit, top = z.detach().max(-1)
        fields |= {"top": top.to(wide), "top_logit": top_logit.to(wide)}
        if q is None:
            rest_top = rest.detach().argmax(-1, keepdim=True)  # (N, 1)
            fields["rest_top"] = rest_top[..., 0].to(wide)
            fields["rest_top_logit"] = rest.gather(-1, rest_top)[..., 0].to(wide)
    for power, name in ((2, "squares"), (3, "cubes")):
        if name in p.settings.requests:  # relative to the shift, so that nothing overflows
            total = torch.exp(-power * below_shift).sum(-1, dtype=wide)
            share = rest_prob / torch.where(empty, 1.0, sum_)  # exp(shift - lse)
            fields[f"rest_{name}"] = total * share**power
    if "entropy" in p.settings.requests:
        masked = rest == -INF
        spread = (e * torch.where(masked, 0, below_shift)).sum(-1, dtype=wide)
        surprise = below + spread / torch.where(empty, 1.0, sum_)
        sure = d == INF  # nothing but the pivot, or nothing of the pivot
        hopeless = d == -INF
        in_pivot = torch.where(hopeless, 0.0, pivot_prob * torch.where(hopeless, 0.0, above))
        in_rest = torch.where(sure, 0.0, rest_prob * torch.where(sure, 0.0, surprise))
        fields |= {"entropy": in_pivot + in_rest, "log_sum": log_sum}
    if "mean" in p.settings.requests:
        masked = z == -INF
        c = p.tensors.mean_weight
        c = torch.ones_like(z) if c is None else c.to(z.dtype).expand_as(z)
        c = torch.where(masked, 0, c)  # (N, V)
        gap = torch.where(masked, 0, finite_shift.to(z.dtype).unsqueeze(-1) - z)
        support = (~masked).sum(-1).to(wide)
        c_sum = c.sum(-1, dtype=wide)
        fields["mean"] = (c_sum * finite_shift - (c * gap).sum(-1, dtype=wide)) / support
        fields |= {"support": support, "mean_mass": c_sum / support}

    names = p.fields
    rows = [fields[n] for n in names]
    if p.settings.sharded:
        # A shard without any unmasked class is the identity of the merge.
        nothing = empty & (pivot_logit == -INF)
        reached = torch.where(fields["mass"] == 0, 0.0 if p.settings.soft else -INF, -INF)
        blank: dict[str, float | Tensor] = {
            "shift": -INF,
            "lse": -INF,
            "top_logit": -INF,
            "rest_top_logit": -INF,
            "pivot_log_odds": -INF,
            "log_odds": torch.where(reached == 0, INF, -INF),
            "log_prob": reached,
            "target": reached,
            "mass": fields["mass"],
        }
        rows = [
            torch.where(nothing, blank.get(n, 0.0), v) for n, v in zip(names, rows, strict=True)
        ]
    certain = {"log_odds": INF, "support": 1.0}
    rows = [torch.where(ignored, certain.get(n, 0.0), v) for n, v in zip(names, rows, strict=True)]
    return torch.stack(rows), False


def row_gradient(
    problem: Problem,
    table: Tensor,
    partials: Sequence[Tensor | None],
    out: Tensor | None = None,
) -> Tensor:
    """The gradient with respect to the logits of the sum of every field times its partial.

    ``out``, if given, receives it. Where gradients are recorded the result is differentiable.
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


def _sweep(x: Tensor) -> Tensor:
    """Sums run in at least float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _lost_in_difference(a: Tensor, b: Tensor, difference: Tensor) -> Tensor:
    """What ``a - b`` has rounded away, exactly (Knuth); 0 where the difference is infinite."""
    minus_b = difference - a
    lost = (a - (difference - minus_b)) - (b + minus_b)
    return torch.where(lost.isfinite(), lost, 0.0)


def _largest(rest: Tensor) -> Tensor:
    """The largest value of each row as a constant; -inf where there is none."""
    rest = rest.detach()
    if rest.shape[-1] == 0:
        return rest.new_full(rest.shape[:-1], -INF)
    return rest.amax(-1)


def _read_labels(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """(class within these logits, whether it is there, whether the row is ignored)."""
    ignored = p.tensors.target == p.settings.ignore_index
    here = p.tensors.target - p.settings.first_class
    present = (here >= 0) & (here < p.classes) & ~ignored
    check_labels(p)
    return torch.where(present, here, 0), present, ignored


def check_labels(p: Problem) -> None:
    """Raise on a label that does not exist, where looking at values is possible and free.

    Elsewhere (accelerators, transforms, compilation) the row has no target, and no finite loss.
    """
    if p.labelled and not p.settings.sharded:
        s = p.settings
        labels.check_labels(p.tensors.target, p.classes, s.ignore_index, s.first_class)
