r"""Losses that wrong labels mislead less than they mislead cross-entropy.

``p`` is the probability of the labelled class. Cross-entropy pulls without limit at a row whose
label is wrong. The losses here bound the pull (the mean absolute error and similar losses), share
the pull among the classes (normalised losses), or trust the prediction in part (bootstrapping).
Where the kind of noise is known, :mod:`xent.losses.noise` corrects for the noise instead.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from ..frames.row_loss import row_loss
from ..hyperparameters import Fraction, NonNegative, Range
from ..row_statistics import RowStatistics
from .catalog import member

Floor = Annotated[float, Range(0, 1, open=True)]
AboveOne = Annotated[float, Range(1, open=True)]


@member(proper=False, convex=True)
@row_loss(needs="entropy")
def bootstrap_loss(s: RowStatistics, beta: Fraction = 0.95) -> Tensor:
    r"""Cross-entropy from a target that is partly the prediction itself (soft bootstrapping).

    .. math:: \ell = -\sum_j \bigl(\beta q_j + (1 - \beta) p_j\bigr) \log p_j
        = \beta \, \mathrm{CE} + (1 - \beta) H(p)

    The gradient goes through both occurrences of ``p``, so the loss is an entropy penalty.

    Use:
        For a few wrong labels, as a bonus for predictions that are sure; not for a network that is
        too sure already, since it makes the network surer.

    Args:
        beta: how much the label counts, in [0, 1]; 1 is cross-entropy. Convex in the logits where
            ``beta / (1 - beta) >= 1 + log(classes)``.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> xent.losses.bootstrap_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.1388, 2.0388])

    References:
        Reed et al., *Training deep neural networks on noisy labels with bootstrapping*, ICLR 2015.
    """
    return -beta * s.log_prob + (1 - beta) * s.entropy


@member(proper=False, convex=False)
@row_loss(needs="top", soft=False)
def hard_bootstrap_loss(s: RowStatistics, beta: Fraction = 0.8) -> Tensor:
    r"""Cross-entropy from the label and, in part, from the predicted class.

    .. math:: \ell = -\beta \log p_y - (1 - \beta) \log \max_j p_j

    Use:
        For a few wrong labels, once the network is mostly right; not for many, where
        :func:`~xent.losses.generalized_cross_entropy` did better in the ``label_noise`` experiment.

    Args:
        beta: how much the label counts, in [0, 1]; 1 is cross-entropy.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> xent.losses.hard_bootstrap_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.1269, 1.7269])

    References:
        Reed et al., *Training deep neural networks on noisy labels with bootstrapping*, ICLR 2015.
    """
    # The prediction's log-probability is a difference, of logits or of nats: of what is smaller. If
    # the label is the prediction, it is the label's own.
    lead = s.rest_top_logit - s.target
    by_nats = lead <= s.rest_top_logit.abs()
    top = torch.where(by_nats, s.log_prob + torch.relu(lead), s.rest_top_logit - s.lse)
    return -beta * s.log_prob - (1 - beta) * top


@member(proper=False, bounded=True, convex=False, in_nats=False)
@row_loss(soft=False)
def generalized_cross_entropy(s: RowStatistics, q: Fraction = 0.7) -> Tensor:
    r"""Generalised cross-entropy: between cross-entropy and mean absolute error (GCE, alpha-loss).

    .. math:: \ell = \frac{1 - p^q}{q}

    Use:
        For wrong labels, with a dial from cross-entropy to mean absolute error; not for clean
        labels, whose hard rows it learns more slowly.

    Args:
        q: in [0, 1]. 0 is cross-entropy, 1 half the mean absolute error: the larger, the less a
            row with a wrong label pulls and the slower a hard row is learnt.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 20.0]])
        >>> xent.losses.generalized_cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.1215, 1.4286])

    References:
        Zhang and Sabuncu, *Generalized cross entropy loss for training deep neural networks with
        noisy labels*, NeurIPS 2018.
    """
    return _power_loss(s.log_prob, q)


@member(proper=False, bounded=True, convex=False, in_nats=False)
@row_loss(soft=False)
def truncated_generalized_cross_entropy(
    s: RowStatistics, q: Fraction = 0.7, threshold: Fraction = 0.5
) -> Tensor:
    r"""Generalised cross-entropy that ignores rows whose label has a low probability.

    .. math:: \ell = \frac{1 - \max(p, k)^q}{q}

    A row whose label has a probability below the threshold ``k`` has no gradient: it counts as
    wrongly labelled. An untrained model therefore learns nothing from it. The authors train with
    :func:`xent.losses.generalized_cross_entropy` first, then choose the rows to keep every few
    epochs, with the best model so far:
    ``row_weight=xent.statistics(logits, labels).prob > threshold``.

    Use:
        For wrong labels, after a first training without truncation; not from scratch, since an
        untrained model learns nothing from it.

    Args:
        q: as in :func:`xent.losses.generalized_cross_entropy`.
        threshold: ``k``, in [0, 1]; 0 truncates nothing.

    Example:
        >>> import torch, xent
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
        >>> xent.losses.truncated_generalized_cross_entropy(logits, labels, reduction="none")
        tensor([0.1215, 0.5492])
        >>> believed = xent.statistics(logits, labels).prob > 0.5
        >>> loss = xent.losses.generalized_cross_entropy(logits, labels, row_weight=believed)
        >>> f"{loss.item():.4f}"
        '0.1215'

    References:
        Zhang and Sabuncu, *Generalized cross entropy loss for training deep neural networks with
        noisy labels*, NeurIPS 2018.
    """
    floor = math.log(threshold) if threshold else -math.inf
    return _power_loss(s.log_prob.clamp(min=floor), q)


def _power_loss(log_prob: Tensor, q: float) -> Tensor:
    """``(1 - p^q) / q``, and its limit at 0."""
    if q == 0:
        return -log_prob
    x = q * log_prob
    # The derivative of expm1 is computed as expm1(x) + 1, without digits where x is far below 0.
    return torch.where(x > -1, -torch.expm1(x), 1 - torch.exp(x)) / q


@member(proper=False, bounded=True, convex=False)
@row_loss(soft=False)
def phuber_loss(s: RowStatistics, tau: AboveOne = 10.0) -> Tensor:
    r"""Cross-entropy that is linear in the probability where that is low (partially Huberised).

    .. math:: \ell = \begin{cases} -\log p & p > 1 / \tau \\
        1 + \log \tau - \tau p & \text{else} \end{cases}

    The derivative by the probability is never steeper than ``-tau``. To clip the gradient of the
    whole model gives no such robustness, because the loss of a linear model stays convex then.

    Use:
        For wrong labels, with cross-entropy unchanged where the label is likely; not for clean
        labels, whose hard rows it holds back.

    Args:
        tau: above 1. The authors take 2 for few classes, 10 for a hundred.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 20.0]])
        >>> xent.losses.phuber_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.1269, 3.3026])

    References:
        Menon et al., *Can gradient clipping mitigate label noise?*, ICLR 2020.
    """
    bend = math.log(tau)
    return torch.where(s.log_prob > -bend, -s.log_prob, 1 + bend - tau * s.prob)


@member(proper=False, bounded=True, convex=False, symmetric=True, in_nats=False)
@row_loss(soft=False)
def mae_loss(s: RowStatistics) -> Tensor:
    r"""Mean absolute error of the probabilities: the sum over the classes of ``|p - onehot|``.

    .. math:: \ell = 2 (1 - p)

    Symmetric: over all possible labels of a row it adds up to a constant, so labels that are wrong
    uniformly at random do not move its minimiser. The price is a gradient that vanishes where the
    label is improbable. Some implementations leave out the factor 2.

    Use:
        For labels that are wrong uniformly at random; not for many classes, which it learns slowly,
        nor for confusions of certain classes, where it was worst in the ``label_noise`` experiment.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 20.0]])
        >>> xent.losses.mae_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.2384, 2.0000])

    References:
        Ghosh et al., *Robust loss functions under label noise for deep neural networks*, AAAI 2017.
    """
    return 2 * s.miss


@member(proper=False, bounded=True, convex=False, symmetric=True)
@row_loss(soft=False)
def reverse_cross_entropy(s: RowStatistics, label_floor: Floor = 1e-4) -> Tensor:
    r"""Cross-entropy with prediction and label exchanged (RCE).

    .. math:: \ell = -\sum_j p_j \log q_j = -\log(f) \, (1 - p)

    The zeros of the one-hot label ``q`` are replaced by the floor ``f``. The loss is half of
    ``-log f`` times the mean absolute error, so it is symmetric, too.

    Use:
        As the robust half of a sum with cross-entropy; not alone, since it is a multiple of
        :func:`~xent.losses.mae_loss` and learns as slowly.

    Args:
        label_floor: ``f``, in (0, 1].

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 20.0]])
        >>> xent.losses.reverse_cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
        tensor([1.0979, 9.2103])

    References:
        Wang et al., *Symmetric cross entropy for robust learning with noisy labels*, ICCV 2019.
    """
    return -math.log(label_floor) * s.miss


@member(proper=False, convex=False)
@row_loss(soft=False)
def symmetric_cross_entropy(
    s: RowStatistics,
    alpha: NonNegative = 0.1,
    beta: NonNegative = 1.0,
    label_floor: Floor = 1e-4,
) -> Tensor:
    r"""Cross-entropy in both directions, between label and prediction (SCE, SL).

    .. math:: \ell = -\alpha \log p - \beta \log(f) \, (1 - p)

    "Symmetric" in label and prediction; over the labels it does not add up to a constant.

    Use:
        For wrong labels, when training must still start fast; not without tuning its two weights,
        which the authors set anew for each data set.

    Args:
        alpha: weight of cross-entropy, which learns fast.
        beta: weight of reverse cross-entropy, which is robust.
        label_floor: ``f`` of :func:`xent.losses.reverse_cross_entropy`.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 20.0]])
        >>> xent.losses.symmetric_cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
        tensor([ 1.1106, 11.2103])

    References:
        Wang et al., *Symmetric cross entropy for robust learning with noisy labels*, ICCV 2019.
    """
    return -alpha * s.log_prob - beta * math.log(label_floor) * s.miss


@member(proper=False, bounded=True, convex=False, symmetric=True, in_nats=False)
@row_loss(needs="mean", soft=False)
def normalized_cross_entropy(s: RowStatistics) -> Tensor:
    r"""Cross-entropy as a share of that of all possible labels together (NCE).

    .. math:: \ell = \frac{-\log p_y}{-\sum_j \log p_j}

    In [0, 1] and symmetric: over all labels of a row it adds up to 1. Classes masked by ``-inf``
    take no part in the sum.

    Use:
        As one half of :func:`~xent.losses.nce_rce_loss` or :func:`~xent.losses.nce_mae_loss`; not
        alone, since it underfits.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 20.0]])
        >>> xent.losses.normalized_cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.0563, 1.0000])

    References:
        Ma et al., *Normalized loss functions for deep learning with noisy labels*, ICML 2020.
    """
    return _share(s)


def _share(s: RowStatistics) -> Tensor:
    """``log p_y / sum_j log p_j``; 1 for a masked target, 0 in a row of a single class."""
    total = s.support * (s.lse - s.mean)
    nats = torch.where(s.log_prob == -torch.inf, total, -s.log_prob)
    return nats / torch.where(total == 0, 1.0, total)


@member(proper=False, bounded=True, convex=False, symmetric=True, in_nats=False)
@row_loss(needs="mean", soft=False)
def nce_rce_loss(
    s: RowStatistics,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 1.0,
    label_floor: Floor = 1e-4,
) -> Tensor:
    r"""Normalised plus reverse cross-entropy: active plus passive (APL).

    .. math:: \ell = \alpha \, \mathrm{NCE} + \beta \, \mathrm{RCE}

    Both are symmetric, hence so is the sum. The active part raises the labelled class, the passive
    one lowers the others; together they underfit less than either of them alone.

    Use:
        For many labels that are wrong uniformly at random; not for confusions whose matrix you
        know, where :func:`~xent.losses.forward_corrected_cross_entropy` did better in the
        ``label_noise`` experiment.

    Args:
        alpha: weight of :func:`xent.losses.normalized_cross_entropy`.
        beta: weight of :func:`xent.losses.reverse_cross_entropy`. For a hundred classes the authors
            take ``alpha=10, beta=0.1``.
        label_floor: ``f`` of :func:`xent.losses.reverse_cross_entropy`.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 20.0]])
        >>> xent.losses.nce_rce_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([ 1.1542, 10.2103])

    References:
        Ma et al., *Normalized loss functions for deep learning with noisy labels*, ICML 2020.
    """
    return alpha * _share(s) - beta * math.log(label_floor) * s.miss


@member(proper=False, bounded=True, convex=False, symmetric=True, in_nats=False)
@row_loss(needs="mean", soft=False)
def nce_mae_loss(s: RowStatistics, alpha: NonNegative = 1.0, beta: NonNegative = 1.0) -> Tensor:
    r"""Normalised cross-entropy plus mean absolute error: active plus passive (APL).

    .. math:: \ell = \alpha \, \mathrm{NCE} + \beta \, \mathrm{MAE}

    Use:
        For many labels that are wrong uniformly at random, with no floor to choose; not for
        confusions whose matrix you know, where :func:`~xent.losses.forward_corrected_cross_entropy`
        did better in the ``label_noise`` experiment.

    Args:
        alpha: weight of :func:`xent.losses.normalized_cross_entropy`.
        beta: weight of :func:`xent.losses.mae_loss`, which is ``2 (1 - p)``; the authors' program
            leaves out the 2, so that its ``beta`` is twice this one.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 20.0]])
        >>> xent.losses.nce_mae_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.2947, 3.0000])

    References:
        Ma et al., *Normalized loss functions for deep learning with noisy labels*, ICML 2020.
    """
    return alpha * _share(s) + 2 * beta * s.miss
