r"""Corrections of cross-entropy for labels that are wrong at known rates.

The rates are a noise matrix ``T``: ``T[i, j]`` is the probability that a row of class ``i`` carries
the label ``j``. Forward correction compares the label with what noise makes of the prediction;
backward correction weighs the losses of all labels so that their average over the noise is the loss
of the true class. :mod:`xent.learn.label_noise` estimates ``T``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..class_dim import takes_class_dim
from ..engines.modes import can_look_at
from ..frames.dense_loss import dense_loss, explained
from ..frames.dense_rows import DenseRows
from ..frames.reduction import Reduction
from ..frames.row_loss import row_loss
from ..heads.logits import LinearLogits, are_logits
from ..row_statistics import RowStatistics
from .catalog import member
from .noise_matrix import (
    LEAST_CONDITION,
    STOCHASTIC,
    Condition,
    NoiseMatrix,
    NoiseRate,
    inverse,
)


@member(proper=False, convex=False, second_pass=True)
@explained
@takes_class_dim(refuses=False)
def forward_corrected_cross_entropy(
    input: Tensor | LinearLogits,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    matrix: NoiseMatrix,
    max_condition: Condition | None = 1e6,
    class_dim: int | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Cross-entropy of noisy labels from the prediction as the noise would change it.

    .. math:: \ell = -\log \sum_j p_j T_{jy}

    Its minimiser on noisy labels is the clean posterior. Computed as :math:`-\log\sigma(d)` with
    the log-odds of the observed label,

    .. math:: d = \log \sum_j T_{jy} e^{z_j} - \log \sum_j (1 - T_{jy}) e^{z_j}

    which is :func:`xent.cross_entropy` to the last digits where ``T`` is the identity. In plain
    operations, in float64. Differentiable with respect to the matrix: to learn it, pass
    ``xent.softmax(parameter)``; only then all logits behind a linear head are computed.

    Use:
        For wrong labels whose confusion matrix you know or can estimate; not when the matrix is a
        guess, since a wrong matrix moves the minimum.

    Args:
        matrix: ``T``, ``(C, C)``: ``T[i, j]`` is the probability of the label ``j`` where the class
            is ``i``. Rows sum to 1.
        max_condition: largest condition number accepted, as for
            :func:`xent.losses.backward_corrected_cross_entropy`: above it, different clean
            posteriors look alike. None skips the check, and with it an inversion.

    Returns:
        In nats; a scalar, or the shape of the rows for ``reduction="none"``, in the dtype of
        ``input`` (float32 under autocast).

    Example:
        >>> import torch, xent
        >>> logits, labels = torch.tensor([[20.0, 0.0], [20.0, 0.0]]), torch.tensor([0, 1])
        >>> matrix = torch.tensor([[0.8, 0.2], [0.0, 1.0]])
        >>> loss = xent.losses.forward_corrected_cross_entropy
        >>> loss(logits, labels, matrix=matrix, reduction="none")
        tensor([0.2231, 1.6094])

    References:
        Patrini et al., *Making deep neural networks robust to label noise: a loss correction
        approach*, CVPR 2017. Learning the matrix: Sukhbaatar et al., *Training convolutional
        networks with noisy labels*, ICLR 2015 workshop.
    """
    are_logits("input", input)
    if input.ndim:
        matrix = STOCHASTIC.check("matrix", matrix, input)
    max_condition = LEAST_CONDITION.check("max_condition", max_condition, input)
    if max_condition is not None and can_look_at(matrix):
        inverse(matrix.detach(), max_condition)
    return _forward_corrected(
        input, target, weight, ignore_index=ignore_index, reduction=reduction,
        normalizer=normalizer, row_weight=row_weight, empty=empty, matrix=matrix,
    )  # fmt: skip


@dense_loss(soft=False)
def _forward_corrected(rows: DenseRows, matrix: NoiseMatrix) -> Tensor:
    z = rows.logits
    z = torch.where(z == torch.inf, torch.nan, z)  # an overflow must not look like certainty
    seen = matrix.to(z.dtype).T[rows.label]  # (..., C): T[:, y] of every row
    # The largest logit enters as a constant. Then its derivative is minus the sum of the others,
    # not a difference of two numbers near 1.
    top = z.detach().argmax(-1, keepdim=True)
    is_top = torch.arange(z.shape[-1], device=z.device) == top
    gap = torch.where(is_top, 0.0, z - z.gather(-1, top))
    unseen = (1 - seen).clamp(min=0.0)  # an entry may be rounded to above 1
    return -logsigmoid(_log_sum_exp(gap, seen) - _log_sum_exp(gap, unseen))


def _log_sum_exp(x: Tensor, weight: Tensor) -> Tensor:
    """``log sum_j weight_j e^{x_j}``, differentiable in weights that are 0, too."""
    shift = torch.where(weight > 0, x, -torch.inf).detach().amax(-1, keepdim=True)
    shift = torch.where(shift == -torch.inf, 0.0, shift)
    # Only entries of weight 0 can lie above the shift; they must not become 0 * inf.
    total = (weight * (x - shift).clamp(max=700.0).exp()).sum(-1)
    empty = total == 0
    return torch.where(empty, -torch.inf, shift[..., 0] + torch.where(empty, 1.0, total).log())


def _backward_table(matrix: Tensor, max_condition: float | None) -> Tensor:
    return inverse(matrix, math.inf if max_condition is None else max_condition)


@member(proper=False, convex=True)
@row_loss(soft=False, own={"target_table": _backward_table})
def backward_corrected_cross_entropy(
    s: RowStatistics, matrix: NoiseMatrix, max_condition: Condition | None = 1e6
) -> Tensor:
    r"""Cross-entropy of noisy labels, weighed so that the noise averages out.

    .. math:: \ell = -\sum_j (T^{-1})_{yj} \log p_j

    The mean of this loss over the labels that noise makes of a class is the cross-entropy of that
    class. The loss is convex, too. But the inverse has negative entries, so the loss has no lower
    bound and may fall without end on a finite set of rows: forward correction is the safer choice.
    The matrix is inverted at every call. Class weights belong to the clean classes ``j``.

    Use:
        For linear models and a known confusion matrix, convex and unbiased; not for networks, since
        it has no lower bound and did worse than forward correction in the ``label_noise``
        experiment.

    Args:
        matrix: ``T``, ``(C, C)``: ``T[i, j]`` is the probability of the label ``j`` where the class
            is ``i``. Rows sum to 1.
        max_condition: largest condition number of the matrix accepted. In the maximum norm that is
            the largest absolute row sum of the inverse: how much a wrong label can weigh. None
            accepts every matrix.

    Example:
        >>> import torch, xent
        >>> matrix = torch.tensor([[0.8, 0.2], [0.1, 0.9]], dtype=torch.float64)
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
        >>> noisy = xent.losses.backward_corrected_cross_entropy(
        ...     logits, torch.tensor([0, 1]), matrix=matrix, reduction="none"
        ... )
        >>> matrix @ noisy  # averaged over the label, for each class
        tensor([0.1269, 2.1269], dtype=torch.float64)

    References:
        Patrini et al., *Making deep neural networks robust to label noise: a loss correction
        approach*, CVPR 2017. Natarajan et al., *Learning with noisy labels*, NeurIPS 2013.
    """
    return -s.log_prob


@member(proper=False, bounded=True, convex=False)
@row_loss(needs="mean", soft=False)
def forward_corrected_symmetric_noise_loss(s: RowStatistics, rate: NoiseRate) -> Tensor:
    r"""Forward correction for labels that are exchanged uniformly at random.

    .. math:: \ell = -\log\Bigl((1 - \eta) \, p + \frac{\eta}{C - 1} (1 - p)\Bigr)

    :func:`xent.losses.forward_corrected_cross_entropy` with
    :func:`xent.losses.symmetric_noise_matrix`, at the price of cross-entropy. ``C`` counts the
    classes that are not masked by ``-inf``.

    Use:
        For labels that are exchanged uniformly, at a rate you know; not for confusions of certain
        classes, which need a matrix.

    Args:
        rate: ``eta``, the share of labels that are wrong, each other class being as likely; less
            than ``(C - 1) / C``. 0 is cross-entropy.

    Example:
        >>> import torch, xent
        >>> logits, labels = torch.tensor([[20.0, 0.0], [20.0, 0.0]]), torch.tensor([0, 1])
        >>> loss = xent.losses.forward_corrected_symmetric_noise_loss
        >>> loss(logits, labels, rate=0.2, reduction="none")
        tensor([0.2231, 1.6094])

    References:
        Patrini et al., *Making deep neural networks robust to label noise: a loss correction
        approach*, CVPR 2017.
    """
    if rate == 0:
        return -s.log_prob
    stray = math.log(rate) - (s.support - 1).clamp(min=1).log()
    return -torch.logaddexp(math.log1p(-rate) + s.log_prob, stray + s.log_miss)


@member(proper=False, convex=True)
@row_loss(needs="mean", soft=False)
def backward_corrected_symmetric_noise_loss(s: RowStatistics, rate: NoiseRate) -> Tensor:
    r"""Backward correction for labels that are exchanged uniformly at random.

    .. math:: \ell = -(1 - \epsilon) \log p_y - \frac{\epsilon}{C} \sum_j \log p_j, \qquad
        \epsilon = -\frac{\eta C}{C - 1 - \eta C}

    The loss is label smoothing by a negative amount, and
    :func:`xent.losses.backward_corrected_cross_entropy` with
    :func:`xent.losses.symmetric_noise_matrix`. ``C`` counts the classes that are not masked by
    ``-inf``.

    Use:
        For linear models and labels exchanged uniformly, at a rate you know; not for networks,
        since the loss has no lower bound.

    Args:
        rate: ``eta``, the share of labels that are wrong, each other class being as likely; less
            than ``(C - 1) / C``. 0 is cross-entropy.

    Example:
        >>> import torch, xent
        >>> logits, labels = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
        >>> loss = xent.losses.backward_corrected_symmetric_noise_loss
        >>> loss(logits, labels, rate=0.2, reduction="none")
        tensor([-0.5397,  2.7936])

    References:
        Patrini et al., *Making deep neural networks robust to label noise: a loss correction
        approach*, CVPR 2017. As smoothing: Lukasik et al., *Does label smoothing mitigate label
        noise?*, ICML 2020.
    """
    exchanged = rate * s.support
    smoothing = -exchanged / ((s.support - 1).clamp(min=1) - exchanged)
    return -(1 - smoothing) * s.log_prob + smoothing * (s.lse - s.mean)
