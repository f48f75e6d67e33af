"""Class imbalance: priors and margins from how often the classes occur.

``counts`` are numbers of rows per class, ``(C,)``, floating point. Probabilities are accepted, too,
because only the ratios matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._check import (
    at_hand,
    class_counts,
    class_indices,
    finite_number,
    is_tensor,
    is_whole,
    whole_number,
)
from ..arrays import takes_arrays
from ..class_dim import axis_of_classes, takes_class_dim
from ..engines.modes import can_look_at, wide_dtype
from ..frames.reduction import stable_sum
from ..frames.row_loss import row_loss
from ..heads.logits import are_logits
from ..hyperparameters import Counts, NonNegative, Number, Positive
from ..row_statistics import RowStatistics
from .catalog import member
from .classification import cross_entropy
from .margin import OWN_SCALE, lowered_cross_entropy

# ---- priors -------------------------------------------------------------------------------------


def _at_least_float32(counts: Tensor) -> Tensor:
    """Numbers of which a loss makes factors and shifts of logits, which half a type would spoil."""
    return counts.to(torch.promote_types(counts.dtype, torch.float32))


def _log_prior(prior: Tensor, tau: float = 1.0, **_: object) -> Tensor:
    prior = _at_least_float32(prior)
    return tau * torch.log(prior / prior.sum())


@member(proper=False, convex=True)
@row_loss(own={"class_bias": _log_prior}, weighted=True)
def logit_adjusted_loss(s: RowStatistics, prior: Counts, tau: Number = 1.0) -> Tensor:
    r"""Cross-entropy of the logits plus the log-priors: trains for balanced classes.

    .. math:: \ell = -\log \frac{\pi_y^\tau e^{z_y}}{\sum_j \pi_j^\tau e^{z_j}}

    A model trained with this loss predicts, without the priors, the posterior for classes that are
    equally common. ``xent.losses.balanced_softmax_loss`` and ``xent.losses.pc_softmax_loss``
    are the same function: the balanced softmax is this at ``tau=1``, and the probability-corrected
    softmax differs from it by the constant :math:`\log \pi_y` of each row.

    Use:
        For rare classes that count as much as common ones in the test; not when test rows are as
        unbalanced as training rows, where cross-entropy has the right prior.

    Args:
        prior: how often each class occurs, ``(C,)``: counts or probabilities. A class with 0 is
            masked.
        tau: how much of the prior to apply.

    Example:
        >>> import torch, xent
        >>> prior = torch.tensor([90.0, 10.0])
        >>> logits, label = torch.zeros(1, 2), torch.tensor([1])
        >>> loss = xent.losses.logit_adjusted_loss(logits, label, prior=prior)
        >>> f"{loss.item():.4f}"
        '2.3026'

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021. Ren et al., *Balanced
        meta-softmax*, NeurIPS 2020. Qin et al., *Rethinking softmax with cross-entropy*, 2019.
    """
    return s.nll


balanced_softmax_loss = pc_softmax_loss = logit_adjusted_loss


@takes_arrays
def adjust_logits(
    input: Tensor, prior: Tensor, tau: float = 1.0, *, class_dim: int | None = None
) -> Tensor:
    r"""Logits of a model trained with plain cross-entropy, corrected for balanced classes.

    Subtracts :math:`\tau \log \pi`: post-hoc logit adjustment, for prediction.

    Args:
        input: logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        prior: how often each class occurs, ``(C,)``: counts or probabilities, all positive.
        tau: how much of the prior to take out.
        class_dim: the axis of the classes, as for :func:`cross_entropy`.

    Returns:
        Logits in the shape and dtype of ``input``.

    Raises:
        ValueError: for a prior that is not positive or not of the number of classes.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> logits, prior = torch.tensor([[1.0, 0.0]]), torch.tensor([90.0, 10.0])
        >>> xent.losses.adjust_logits(logits, prior).argmax(1)
        tensor([1])

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021.
    """
    is_tensor("input", input)
    if not input.is_floating_point() or input.ndim == 0:
        raise TypeError(
            f"`input` must hold floating-point logits, (C,), (N, C) or (N, C, d1, ...); got "
            f"{input.dtype} of shape {tuple(input.shape)}"
        )
    prior = class_counts("prior", prior)
    tau, prior = finite_number("tau", tau), at_hand("prior", prior, input.device)
    axis = axis_of_classes(input, class_dim)
    if prior.numel() != input.shape[axis] or (can_look_at(prior) and not bool((prior > 0).all())):
        raise ValueError(
            f"`prior` must hold a positive number for each of the {input.shape[axis]} classes"
        )
    shape = [-1 if d == axis else 1 for d in range(input.ndim)]
    return input - _log_prior(prior.double(), tau).to(input.dtype).view(shape)


def _vs_scale(counts: Tensor, gamma: float = 0.3, **_: object) -> Tensor:
    counts = _at_least_float32(counts)
    return (counts / counts.max()) ** gamma


def _vs_bias(counts: Tensor, tau: float = 1.0, **_: object) -> Tensor:
    return _log_prior(counts, tau)


@member(proper=False, convex=True)
@row_loss(own={"class_scale": _vs_scale, "class_bias": _vs_bias}, weighted=True)
def vs_loss(
    s: RowStatistics, counts: Counts, gamma: NonNegative = 0.3, tau: Number = 1.0
) -> Tensor:
    r"""Vector-scaling loss: cross-entropy of logits scaled and shifted class by class.

    .. math:: \ell = -\log \mathrm{softmax}_y(\Delta \odot z + \iota), \qquad
        \Delta_j = (n_j / n_{\max})^\gamma, \quad \iota_j = \tau \log \pi_j

    The factor still has an effect late in training, when all rows are fitted; additive terms and
    class weights have none by then.

    Use:
        For the rarest classes of a network that fits all its rows; not without tuning where common
        classes matter, which paid for it in the ``imbalance`` experiment.

    Args:
        counts: rows per class, ``(C,)``, all positive.
        gamma: strength of the factors; 0 is logit adjustment.
        tau: strength of the shifts.

    Example:
        >>> import torch, xent
        >>> counts = torch.tensor([90.0, 10.0])
        >>> loss = xent.losses.vs_loss(torch.tensor([[1.0, 1.0]]), torch.tensor([1]), counts=counts)
        >>> f"{loss.item():.4f}"
        '2.7463'

    References:
        Kini et al., *Label-imbalanced and group-sensitive classification under
        overparameterization*, NeurIPS 2021.
    """
    return s.nll


# ---- margins ------------------------------------------------------------------------------------


@member(proper=False, convex=True)
@row_loss(soft=False, own=OWN_SCALE)
def ldam_loss(
    s: RowStatistics, counts: Counts, max_margin: NonNegative = 0.5, scale: Positive = 30.0
) -> Tensor:
    r"""Cross-entropy on cosines with larger margins for rarer classes.

    .. math:: \psi = s (\cos\theta_y - m_y), \qquad m_j = m \, (n_j / n_{\min})^{-1/4}

    The paper trains without weights first and then with :func:`xent.losses.deferred_weights`.

    Use:
        For rare classes behind a head of cosines, with deferred weights; not as a first choice,
        since :func:`~xent.losses.logit_adjusted_loss` did better in the ``imbalance`` experiment.

    Args:
        counts: rows per class, ``(C,)``. A class without rows has the margin of the rarest.
        max_margin: ``m``, the margin of the rarest class, in cosine.
        scale: ``s``, the factor that turns cosines into logits.

    Example:
        >>> import torch, xent
        >>> counts = torch.tensor([90.0, 10.0])
        >>> logits, label = torch.tensor([[0.5, 0.6]]), torch.tensor([1])
        >>> loss = xent.losses.ldam_loss(logits, label, counts=counts)
        >>> f"{loss.item():.4f}"
        '12.0000'

    References:
        Cao et al., *Learning imbalanced datasets with label-distribution-aware margin loss*,
        NeurIPS 2019.
    """
    n = rarest_if_unseen(_at_least_float32(counts))
    margins = max_margin * (n / n.amin()) ** -0.25
    return lowered_cross_entropy(s, scale * s.of_label(margins))


def rarest_if_unseen(counts: Tensor) -> Tensor:
    """Rows per class; one without rows has those of the rarest of the others, or 1 if all have."""
    seen = counts > 0
    rarest = torch.where(seen, counts, torch.inf).amin()
    return torch.where(seen, counts, torch.where(rarest == torch.inf, 1.0, rarest))


# ---- re-weighting during training ---------------------------------------------------------------


@member(proper=False, convex=False)
@row_loss(needs="top", soft=False, rowwise=False)
def recall_loss(s: RowStatistics, smoothing: NonNegative = 1.0) -> Tensor:
    r"""Cross-entropy with class weights that say how often the batch misses each class.

    .. math:: \ell_n = -w_{y_n} \log p_n, \qquad
        w_c = \frac{\mathrm{FN}_c + a}{\mathrm{TP}_c + \mathrm{FN}_c + a}

    The weights are constants of the batch. The mean divides by the number of rows (or their class
    weight), not by these weights.

    Use:
        For rare classes, with weights that follow what the network misses now; not with batches
        that often lack a class, since the weights are counted on the batch.

    Args:
        smoothing: ``a``, added to both counts, so that a class without misses keeps some weight.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> xent.losses.recall_loss(logits, torch.tensor([0, 0, 1]), reduction="none")
        tensor([0.0423, 0.0423, 2.1269])

    References:
        Tian et al., *Recall loss for imbalanced image classification and semantic segmentation*,
        2021.
    """
    label = s.label
    assert label is not None
    known = torch.where(label >= 0, label, s.classes).reshape(-1)  # ignored rows have their own bin
    missed = (s.top != label).to(s.mass.dtype).reshape(-1)
    empty = torch.zeros(s.classes + 1, dtype=s.mass.dtype, device=s.mass.device)
    misses = empty.scatter_add(0, known, missed)  # (C + 1,)
    rows = empty.scatter_add(0, known, torch.ones_like(missed))
    weights = (misses + smoothing) / (rows + smoothing)
    return -s.of_label(weights[:-1]) * s.log_prob


@member("other", proper=False, convex=True)
@takes_class_dim(alike=())
def hardest_loss(
    input: Tensor,
    target: Tensor,
    keep: float = 0.7,
    *,
    loss: Callable[..., Any] = cross_entropy,
    class_dim: int | None = None,
    ignore_index: int = -100,
    **options: Any,
) -> Tensor:
    r"""Mean of the largest losses of a batch: online hard example mining, top-k loss.

    .. math:: \frac1k \sum_{i=1}^k \ell_{(i)}, \qquad \ell_{(1)} \ge \ell_{(2)} \ge \dots

    Convex in all logits of the batch together if ``loss`` is.

    Use:
        When most rows are learnt and only the hardest of a batch should count; not with wrong
        labels, which stay among the hardest.

    Args:
        input: logits, as ``loss`` takes them.
        target: class indices.
        keep: which part of the rows that are not ignored to keep, in (0, 1]; or how many, if it is
            an integer.
        loss: the loss to rank by and to average, any of :mod:`xent` that takes classes.
        class_dim: the axis of the classes, as for :func:`cross_entropy`.
        ignore_index: class index that marks rows to leave out.
        **options: for ``loss``, ``weight=`` say.

    Returns:
        A scalar in the dtype of ``input``: the sum of the ``k`` largest divided by ``k``.

    Raises:
        ValueError: for ``keep`` out of range, and whatever ``loss`` raises.
        TypeError: whatever ``loss`` raises.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> f"{xent.losses.hardest_loss(logits, torch.tensor([0, 0, 0]), keep=2).item():.4f}"
        '1.4100'

    References:
        Shrivastava et al., *Training region-based object detectors with online hard example
        mining*, CVPR 2016.
    """
    are_logits("input", input)
    for name in ("reduction", "normalizer", "return_stats"):
        if name in options:
            raise TypeError(
                f"hardest_loss() is the mean of the hardest rows and takes no `{name}`; for values "
                f"of all rows call the `loss` itself"
            )
    whole = is_whole(keep)
    keep = whole_number("keep", keep) if whole else finite_number("keep", keep)
    if not (whole and keep >= 1) and not 0 < keep <= 1:
        raise ValueError(
            f"`keep` must be a part in (0, 1], or a whole number of rows from 1 on; got {keep!r}"
        )
    ignore_index = whole_number("ignore_index", ignore_index)
    rows = loss(input, target, ignore_index=ignore_index, reduction="none", **options).flatten()
    kept = class_indices("target", target).flatten() != ignore_index
    count = kept.sum()  # a tensor: no device waits, and graphs can hold it
    k = count.clamp(max=int(keep)) if whole else (keep * count.to(wide_dtype(rows))).ceil()
    largest = torch.where(kept, rows, -torch.inf).sort(descending=True).values  # (N,)
    among = torch.arange(rows.shape[0], device=rows.device) < k
    return (stable_sum(torch.where(among, largest, 0.0).to(wide_dtype(rows))) / k).to(rows.dtype)
