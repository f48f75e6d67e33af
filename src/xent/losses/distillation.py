"""Learning from a teacher: divergences of two predictions that are both given as logits."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._check import finite_number, is_tensor, one_of
from ..frames.dense_loss import by_rows, explained, wide_dtype
from ..frames.reduction import Reduction, check_reduction, reduce_rows
from ..hyperparameters import Range
from ..measurement import autocasts
from ..targets import class_axis
from .catalog import member
from .classification import cross_entropy
from .tsallis import bregman, log_softmax_t


@member("other", proper=True, convex=True, second_pass=True)
@explained
def distillation_loss(
    input: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    row_mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward",
    beta: float = 0.5,
    alpha: float | None = None,
    keep_gradient_size: bool = True,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""How far a student is from a teacher, both given by their logits.

    With :math:`q = \mathrm{softmax}(\text{teacher} / T)` and
    :math:`p = \mathrm{softmax}(\text{input} / T)`, :math:`T^2` times one of

    .. math::
        \text{forward:}\; & D(q \| p) = \sum_j q_j \log \frac{q_j}{p_j} \qquad
        \text{reverse:}\; D(p \| q) \\
        \text{Jensen-Shannon:}\; & \beta D(q \| m) + (1 - \beta) D(p \| m), \quad
        m = \beta q + (1 - \beta) p

    and with ``target``, :math:`1 - \alpha` times that plus :math:`\alpha` times the cross-entropy
    of the labels at temperature 1.

    Never negative, and right to the last digits however near the student is: a sum of terms
    :math:`q_j (e^{y_j} - 1 - y_j)` of the log-ratios, which come from the difference of the two
    logits. The teacher gets its gradient, too, if it wants one: detach it, or compute it under
    ``torch.no_grad()``. Works on float64 tensors of the size of the logits.

    Args:
        input: logits of the student, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; ``-inf`` masks a
            class.
        teacher: logits of the teacher, in the shape of ``input``.
        target: labels to learn from besides, as for :func:`xent.cross_entropy`. Rows that they
            ignore are left out.
        row_mask: bool, in the shape of the rows: which of them count.
        temperature: ``T``, positive. Divides both logits; above 1 the improbable classes tell more.
        divergence: ``"forward"`` covers all that the teacher does, ``"reverse"`` seeks what it does
            most, ``"jensen_shannon"`` is between the two, and bounded.
        beta: share of the teacher in the mixture of Jensen-Shannon, above 0 and below 1.
        alpha: share of the labels, in [0, 1]; 0.5 unless given. Only with ``target``.
        keep_gradient_size: multiply by :math:`T^2`, so that gradients do not shrink as the
            temperature grows. False gives the plain divergence.
        ignore_index: class index in ``target`` that marks rows to leave out.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept.

    Example:
        >>> import torch, xent
        >>> teacher = torch.tensor([[3.0, 1.0, 0.0]])
        >>> f"{xent.distillation_loss(teacher + torch.tensor([0, 0, 1e-3]), teacher).item():.4e}"
        '2.0129e-08'
        >>> round(xent.distillation_loss(torch.zeros(1, 3), teacher, temperature=2.0).item(), 4)
        0.7706

    References:
        Hinton, Vinyals & Dean, *Distilling the knowledge in a neural network*, 2015.
        Agarwal et al., *On-policy distillation of language models*, ICLR 2024 (reverse and
        generalised Jensen-Shannon).
    """
    _check_teacher(input, teacher)
    Range(0, open=True).check("temperature", temperature, None)
    one_of("divergence", divergence, tuple(_DIVERGENCES))
    if not 0 < finite_number("beta", beta) < 1:
        raise ValueError(f"`beta` must be above 0 and below 1, got {beta}")
    Range(0, 1).check("alpha", alpha, None)
    if target is None and alpha is not None:
        raise ValueError("`alpha` is the share of the labels: pass them as `target`, too")
    axis = class_axis(input)
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    row_weight = check_reduction(reduction, normalizer, row_weight, empty, rows)
    kept = _rows_kept(input, target, row_mask, ignore_index, rows)
    student = torch.where(kept.unsqueeze(axis), input, 0)
    teacher = torch.where(kept.unsqueeze(axis), teacher, 0)
    values = by_rows(
        lambda z, v: _DIVERGENCES[divergence](_compare(z, v, temperature), beta).sum(-1),
        student.movedim(axis, -1),
        teacher.movedim(axis, -1),
    )
    if keep_gradient_size:
        values = values * temperature**2
    if target is not None:
        alpha = 0.5 if alpha is None else alpha
        hard = cross_entropy(student, target, ignore_index=ignore_index, reduction="none")
        assert isinstance(hard, Tensor)
        values = (1 - alpha) * values + alpha * torch.where(kept, hard, 0)
    dtype = torch.promote_types(input.dtype, teacher.dtype)
    return reduce_rows(
        values, kept, kept.to(values.dtype), reduction=reduction, normalizer=normalizer,
        row_weight=row_weight, empty=empty,
    ).to(torch.float32 if autocasts(input) and dtype.itemsize < 4 else dtype)  # fmt: skip


def _check_teacher(input: Tensor, teacher: Tensor) -> None:
    for name, value in (("input", input), ("teacher", teacher)):
        is_tensor(name, value)
        if not value.is_floating_point():
            raise TypeError(f"`{name}` must hold floating-point logits, got {value.dtype}")
    if input.ndim == 0 or input.shape != teacher.shape:
        raise ValueError(
            f"`input` and `teacher` must hold logits of the same rows and classes; got shapes "
            f"{tuple(input.shape)} and {tuple(teacher.shape)}"
        )
    if input.device != teacher.device:
        raise ValueError(f"`input` is on {input.device} but `teacher` on {teacher.device}")


def _rows_kept(
    input: Tensor, target: Tensor | None, row_mask: Tensor | None, ignore_index: int,
    rows: torch.Size,
) -> Tensor:  # fmt: skip
    kept = torch.ones(rows, dtype=torch.bool, device=input.device)
    if row_mask is not None:
        is_tensor("row_mask", row_mask)
        if row_mask.shape != rows or row_mask.dtype != torch.bool:
            raise ValueError(
                f"`row_mask` must be bool, one per row, shape {tuple(rows)}; got {row_mask.dtype} "
                f"of shape {tuple(row_mask.shape)}"
            )
        kept = kept & row_mask
    if target is not None and target.shape == rows:
        kept = kept & (target != ignore_index)
    return kept


class _Comparison(NamedTuple):
    log_p: Tensor  # of the student
    log_q: Tensor  # of the teacher
    log_ratio: Tensor  # log(p / q)


def _compare(student: Tensor, teacher: Tensor, temperature: float) -> _Comparison:
    r"""Both log-probabilities and their difference, of which a small one has all its digits.

    From the differences ``d`` of the logits: ``log(p / q) = d - log E_q e^d``, whatever constant is
    added to ``d``. With their mean as the zero the expectation is 1 plus something small.
    """
    wide = wide_dtype(student)
    z, v = student.to(wide) / temperature, teacher.to(wide) / temperature
    log_p, log_q = log_softmax_t(z, 1), log_softmax_t(v, 1)
    q = log_q.exp()
    either, both = (z == -torch.inf) | (v == -torch.inf), (z == -torch.inf) & (v == -torch.inf)
    d = torch.where(either, 0, (student.to(wide) - teacher.to(wide)) / temperature)
    with torch.no_grad():
        origin = d.gather(-1, v.argmax(-1, keepdim=True))
        mean = (q * (d - origin)).sum(-1, keepdim=True)
    d = (d - origin) - mean
    raised = torch.where(
        d < 1, q * torch.expm1(d.clamp(max=1)), (log_q + d).clamp(max=30).exp() - q
    ).sum(-1, keepdim=True)
    near = (raised < 1) & (either == both).all(-1, keepdim=True)
    close = d - torch.log1p(torch.where(near, raised, 0))
    far = torch.where(both, 0, log_p) - torch.where(both, 0, log_q)
    return _Comparison(log_p, log_q, torch.where(near, close, far))


def _forward(c: _Comparison, beta: float) -> Tensor:
    return bregman(c.log_q.exp(), c.log_p, 1.0, c.log_ratio)


def _reverse(c: _Comparison, beta: float) -> Tensor:
    return bregman(c.log_p.exp(), c.log_q, 1.0, -c.log_ratio)


def _jensen_shannon(c: _Comparison, beta: float) -> Tensor:
    to_p, to_q = _log_mixture(-c.log_ratio, beta), _log_mixture(c.log_ratio, 1 - beta)
    # From the larger of the two: the smaller one may have nothing to do with the mixture.
    log_m = torch.where(c.log_ratio < 0, c.log_q + to_q, c.log_p + to_p)
    teacher = bregman(c.log_q.exp(), log_m, 1.0, to_q)
    return beta * teacher + (1 - beta) * bregman(c.log_p.exp(), log_m, 1.0, to_p)


def _log_mixture(log_ratio: Tensor, share: float) -> Tensor:
    """``log(m / a)`` of the mixture of ``a`` and this share of ``b``, given ``log(b / a)``."""
    near = log_ratio < 1
    small, large = torch.where(near, log_ratio, 0), torch.where(near, 1, log_ratio)
    return torch.where(
        near,
        torch.log1p(share * torch.expm1(small)),
        large + torch.log1p((1 - share) * torch.expm1(-large)),
    )


_DIVERGENCES = {"forward": _forward, "reverse": _reverse, "jensen_shannon": _jensen_shannon}
