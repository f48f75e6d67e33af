r"""Losses that weigh cross-entropy by how probable the target is already, or add to it.

``p`` is the probability of the target. Most of these losses are functions of the target's log-odds
alone. ``1 - p`` comes from the log-odds, too, never from a subtraction, so the losses keep their
digits however sure or wrong a row is.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..frames.dense_loss import dense_loss
from ..frames.dense_rows import DenseRows
from ..frames.element_loss import power
from ..frames.row_loss import row_loss
from ..hyperparameters import Counts, NonNegative, Range
from ..row_statistics import RowStatistics
from .catalog import member


@member(proper=False, convex=False)
@row_loss(soft=False)
def focal_loss(s: RowStatistics, gamma: NonNegative = 2.0) -> Tensor:
    r"""Cross-entropy with less weight on rows that are already right.

    .. math:: \ell = -(1 - p)^\gamma \log p

    Neither the loss nor its gradient turns into NaN at probability 1, where naive forms do for
    ``gamma`` below 1. The balancing factor alpha of the paper is ``weight``.

    Use:
        When easy rows are so many that they drown the hard ones; not against rare classes alone,
        where :func:`~xent.losses.logit_adjusted_loss` did more in the ``imbalance`` experiment, nor
        with wrong labels, which are the hardest rows.

    Args:
        gamma: how much less weight rows get that are right; 0 is cross-entropy.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> xent.losses.focal_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.0018, 1.6501])

    References:
        Lin et al., *Focal loss for dense object detection*, ICCV 2017.
    """
    if gamma == 0:  # (1 - p)^0 = 1 at p = 1, too
        return -s.log_prob
    return -(gamma * s.log_miss).exp() * s.log_prob


@member(proper=False, convex=False, second_pass=True)
@dense_loss(soft=False)
def dual_focal_loss(rows: DenseRows, gamma: NonNegative = 5.0) -> Tensor:
    r"""Focal loss that looks at the class that comes next after the target, too.

    .. math:: \ell = -(1 - p + p')^\gamma \log p, \qquad p' = \max \{p_j : p_j < p\}

    To lower the factor, the target has to rise above the next class, not only to rise; such a model
    is less underconfident than by :func:`xent.losses.focal_loss`. ``p'`` is 0 where no class is
    less probable than the target. The loss jumps where another class overtakes the target.

    Use:
        When a focal loss leaves a network underconfident; not where the loss must be continuous,
        since it jumps when another class overtakes the target.

    Args:
        gamma: how much less weight rows get whose target is far ahead; 0 is cross-entropy.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> xent.losses.dual_focal_loss(logits, torch.tensor([0, 0]), gamma=2.0, reduction="none")
        tensor([0.0072, 1.6501])

    References:
        Tao, Dong & Xu, *Dual focal loss for calibration*, ICML 2023.
    """
    z, log_odds = rows.logits, rows.log_odds(rows.logits)
    log_p = logsigmoid(log_odds)
    if gamma == 0:
        return -log_p
    target = rows.expected(z)
    below = torch.where(z < target.unsqueeze(-1), z, -torch.inf).amax(-1)
    lead = torch.where(below == -torch.inf, torch.inf, target - below)
    factor = power(logsigmoid(-log_odds).exp() + (log_p - lead).exp(), gamma)
    return -torch.where(log_p == -torch.inf, 1.0, factor) * log_p


@member(proper=False, convex=False)
@row_loss(soft=False)
def poly1_loss(s: RowStatistics, epsilon: Annotated[float, Range(-1)] = 2.0) -> Tensor:
    r"""Cross-entropy with another weight for the first term of its series in ``1 - p``.

    .. math:: \ell = -\log p + \epsilon (1 - p)

    Use:
        To tune one number on top of cross-entropy; not without tuning it, since the best value
        differs from task to task.

    Args:
        epsilon: number added to the weight 1 of the first term, at least -1; 0 is cross-entropy.

    Example:
        >>> import torch, xent
        >>> f"{xent.losses.poly1_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item():.4f}"
        '0.3653'

    References:
        Leng et al., *PolyLoss*, ICLR 2022.
    """
    return -s.log_prob + epsilon * s.miss


@member(proper=False, bounded=True, convex=False)
@row_loss(soft=False)
def taylor_cross_entropy(s: RowStatistics, terms: Annotated[int, Range(1)] = 2) -> Tensor:
    r"""The first terms of the series of cross-entropy in ``1 - p``.

    .. math:: \ell = \sum_{k=1}^{t} \frac{(1 - p)^k}{k}

    One term is half the mean absolute error, robust to wrong labels; all are cross-entropy.

    Use:
        For some wrong labels, between cross-entropy and mean absolute error; not for clean labels
        of many classes, of which few terms learn slowly.

    Args:
        terms: how many terms.

    Example:
        >>> import torch, xent
        >>> logits, label = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> f"{xent.losses.taylor_cross_entropy(logits, label).item():.4f}"
        '0.1263'

    References:
        Feng et al., *Can cross entropy loss be robust to label noise?*, IJCAI 2020.
    """
    if terms != int(terms):
        raise ValueError(f"`terms` must be a whole number, got {terms}")
    total = torch.zeros_like(s.miss)
    for k in range(int(terms), 0, -1):
        total = s.miss * (total + 1 / k)
    return total


def _as_mean_weight(prior: Tensor | None, **_: object) -> Tensor | None:
    return prior


@member(proper=False, convex=True)
@row_loss(needs="mean", soft=False, own={"mean_weight": _as_mean_weight})
def smoothed_cross_entropy(
    s: RowStatistics, smoothing: Annotated[float, Range(high=1)] = 0.1, prior: Counts | None = None
) -> Tensor:
    r"""Cross-entropy from labels that are mixed with a prior.

    .. math:: \ell = -(1 - \epsilon) \log p - \epsilon \sum_j u_j \log p_j

    Label smoothing as in :func:`xent.cross_entropy`, with three additions: any prior ``u``; a
    negative amount, which sharpens (and undoes uniform label noise, see
    :func:`xent.losses.backward_corrected_symmetric_noise_loss`); and class weights that weigh whole
    rows by their target, while in PyTorch's rule the weights of the other classes count, too.

    Use:
        To smooth labels towards a prior, or by a negative amount; not for plain smoothing, which is
        ``label_smoothing`` of :func:`~xent.cross_entropy`.

    Args:
        smoothing: the amount, at most 1. Below 0 the loss is not bounded from below.
        prior: ``u``, ``(C,)``: probabilities or counts, of which only the ratios matter; by default
            uniform. Masked classes take no part.

    Example:
        >>> import torch, xent
        >>> logits, target = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> f"{xent.losses.smoothed_cross_entropy(logits, target, smoothing=0.1).item():.4f}"
        '0.2269'
        >>> prior = torch.tensor([3.0, 1.0])
        >>> f"{xent.losses.smoothed_cross_entropy(logits, target, prior=prior).item():.4f}"
        '0.1769'

    References:
        Szegedy et al., *Rethinking the Inception architecture*, CVPR 2016. Negative amounts: Wei et
        al., *To smooth or not? When label smoothing meets noisy labels*, ICML 2022.
    """
    from_prior = s.lse - s.mean / s.mean_mass
    return -(1 - smoothing) * s.log_prob + smoothing * from_prior


@member(proper=False, convex=False)
@row_loss(needs="entropy", soft=False)
def confidence_penalty_loss(s: RowStatistics, beta: NonNegative = 0.1) -> Tensor:
    r"""Cross-entropy minus a bonus for uncertain predictions.

    .. math:: \ell = -\log p - \beta H(p_1, \dots, p_C)

    Use:
        When a classifier is surer than it is right; not where its probabilities are used as they
        are, since the best prediction is flatter than the truth.

    Args:
        beta: weight of the entropy.

    Example:
        >>> import torch, xent
        >>> logits, target = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> f"{xent.losses.confidence_penalty_loss(logits, target).item():.4f}"
        '0.0904'

    References:
        Pereyra et al., *Regularizing neural networks by penalizing confident output distributions*,
        ICLR workshop 2017.
    """
    return -s.log_prob - beta * s.entropy


@member(proper=False, convex=False)
@row_loss(soft=False)
def complementary_loss(s: RowStatistics) -> Tensor:
    r"""Minus the log-probability that the class is *not* the given one; also unlikelihood loss.

    .. math:: \ell = -\log(1 - p)

    The target names a class that is wrong: a complementary label, or a token that should not be
    generated. ``xent.losses.unlikelihood_loss`` is the same function.

    Use:
        For labels that name a wrong class, or tokens that must not be generated; not in the place
        of right labels, since ruling out one class tells little.

    Example:
        >>> import torch, xent
        >>> logits, label = torch.tensor([[2.0, 0.0]]), torch.tensor([1])
        >>> f"{xent.losses.complementary_loss(logits, label).item():.4f}"
        '0.1269'

    References:
        Welleck et al., *Neural text generation with unlikelihood training*, ICLR 2020. Kim et al.,
        *NLNL: negative learning for noisy labels*, ICCV 2019.
    """
    return -s.log_miss


unlikelihood_loss = complementary_loss


@member(proper=True, bounded=True, convex=False, in_nats=False)
@row_loss(needs="squares", soft=False)
def brier_loss(s: RowStatistics) -> Tensor:
    r"""Squared distance of the predicted probabilities from the target; between 0 and 2.

    .. math:: \ell = (1 - p)^2 + \sum_{j \ne y} p_j^2

    Use:
        For probabilities, when no single row may cost without limit; not for hard tasks from
        scratch, since its gradient vanishes at rows that are surely wrong.

    Example:
        >>> import torch, xent
        >>> f"{xent.losses.brier_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item():.4f}"
        '0.0284'

    References:
        Brier, *Verification of forecasts expressed in terms of probability*, Monthly Weather
        Review, 1950.
    """
    return s.miss.square() + s.rest_squares


@member(proper=False, convex=True)
@row_loss(needs="top", soft=False)
def crammer_singer_loss(s: RowStatistics, margin: NonNegative = 1.0) -> Tensor:
    r"""The hinge loss of multi-class support vector machines.

    .. math:: \ell = \max\bigl(0,\ m + \max_{j \ne y} z_j - z_y\bigr)

    Use:
        For a margin over the strongest other class, as in a vector machine; not when you need
        probabilities, since rows beyond the margin have no gradient.

    Args:
        margin: ``m``, by how much the target's logit has to lead.

    Example:
        >>> import torch, xent
        >>> xent.losses.crammer_singer_loss(
        ...     torch.tensor([[2.0, 0.0], [0.5, 0.0]]), torch.tensor([0, 0]), reduction="none"
        ... )
        tensor([0.0000, 0.5000])

    References:
        Crammer and Singer, *On the algorithmic implementation of multiclass kernel-based vector
        machines*, JMLR 2001.
    """
    return torch.relu(margin + s.rest_top_logit - s.target)


@member(proper=False, convex=True, second_pass=True)
@dense_loss(soft=False)
def weston_watkins_loss(rows: DenseRows, margin: NonNegative = 1.0) -> Tensor:
    r"""The sum of the hinge losses of the target against every other class.

    .. math:: \ell = \sum_{j \ne y} \max(0,\ m + z_j - z_y)

    :func:`xent.losses.crammer_singer_loss` takes the largest of them.
    ``torch.nn.functional.multi_margin_loss`` is this over the number of classes.

    Use:
        For a margin over every other class at once; not when you need probabilities, nor when the
        logits fill the memory, since it keeps tensors of their size.

    Args:
        margin: ``m``, by how much the target's logit has to lead.

    Example:
        >>> import torch, xent
        >>> xent.losses.weston_watkins_loss(
        ...     torch.tensor([[2.0, 0.0, 0.0], [0.5, 0.0, 0.5]]), torch.tensor([0, 0]),
        ...     reduction="none",
        ... )
        tensor([0.0000, 1.5000])

    References:
        Weston and Watkins, *Support vector machines for multi-class pattern recognition*, ESANN
        1999, where ``m`` is 2.
    """
    z = rows.logits
    behind = margin + z - rows.expected(z).unsqueeze(-1)
    total = torch.relu(torch.where(rows.is_label | (z == -torch.inf), 0.0, behind)).sum(-1)
    return torch.where(z.amax(-1).isfinite(), total, torch.nan)


@member(proper=False, convex=True, second_pass=True)
@dense_loss(soft=False)
def margin_smoothing_loss(
    rows: DenseRows, margin: NonNegative = 10.0, alpha: NonNegative = 0.1
) -> Tensor:
    r"""Cross-entropy plus a price on logits that are too far apart (margin-based smoothing, MbLS).

    .. math:: \ell = -\log p + \frac{\alpha}{C} \sum_j \max\bigl(0,\ \max_k z_k - z_j - m\bigr)

    Label smoothing pulls all logits together, however near they are; this price is 0 as long as no
    logit is more than ``m`` below the largest. The mean over the classes that are not masked is
    that of the authors' program; the paper writes a sum.

    Use:
        When a network is too sure, to hold back only logits that are far apart; not where one
        temperature, fitted afterwards, is enough.

    Args:
        margin: ``m``, in nats.
        alpha: the price.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[9.0, 0.0], [30.0, 0.0]])
        >>> xent.losses.margin_smoothing_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([1.2340e-04, 1.0000e+00])

    References:
        Liu et al., *The devil is in the margin: margin-based label smoothing for network
        calibration*, CVPR 2022.
    """
    z = rows.logits
    top, masked = z.max(-1, keepdim=True).values, z == -torch.inf
    price = torch.relu(top - torch.where(masked, top, z) - margin).sum(-1) / (~masked).sum(-1)
    return -rows.log_prob(z) + alpha * price
