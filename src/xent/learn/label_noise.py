"""Label noise, estimated from the predictions of a model: the noise matrix, and the wrong labels.

A model that was trained on noisy labels predicts *labels*, ``p(label | x)``, not classes. For a row
whose class is beyond doubt, this prediction is a row of the noise matrix. So an estimate needs such
rows for every class, and a model that has not memorised wrong labels: predictions on held-out rows
are best.

    matrix = estimate_noise_matrix(xent.softmax(model(x)))
    loss = xent.losses.forward_corrected_cross_entropy(logits, labels, matrix=matrix)

    p = torch.tensor(cross_val_predict(classifier, x, labels, method="predict_proba"))
    suspects = find_label_issues(p, labels)  # look at these rows first
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .._check import class_indices, finite_number, is_tensor, one_of
from .._probabilities import sums_to_1
from ..arrays import takes_arrays

__all__ = ["confident_noise_matrix", "estimate_noise_matrix", "find_label_issues", "label_quality"]

Filter = Literal[
    "prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given"
]
Score = Literal["self_confidence", "normalized_margin"]

TIE = 1e-6  # probabilities that differ by no more are taken for equal


@takes_arrays
def estimate_noise_matrix(probabilities: Tensor, percentile: float = 97.0) -> Tensor:
    r"""Noise matrix from anchor points: the rows that are the most probable of each class.

    .. math:: \hat T_{ij} = p(j \mid x_i^*), \qquad x_i^* \text{ at the percentile of } p(i \mid x)

    Args:
        probabilities: predicted label probabilities, ``(N, C)``; for a model whose last layer is a
            softmax, ``xent.softmax(logits)``.
        percentile: which row is the anchor of a class, in order of the probability of the class.
            100 takes the largest, which is right where classes do not overlap; a little less passes
            over outliers. The rows above the anchor must be fewer than the rows of any class: 97
            suits ten classes, not fifty.

    Returns:
        ``(C, C)``, float64; rows sum to 1. Entry ``[i, j]`` estimates the probability of the label
        ``j`` where the class is ``i``.

    Raises:
        ValueError: for anything but a matrix of probabilities, or another percentile.
        TypeError: if ``probabilities`` is no floating-point tensor.

    Example:
        >>> import torch
        >>> from xent.learn.label_noise import estimate_noise_matrix
        >>> sure, unsure = torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([[0.6, 0.4]])
        >>> estimate_noise_matrix(torch.cat([sure, unsure]), percentile=100)
        tensor([[0.9000, 0.1000],
                [0.3000, 0.7000]], dtype=torch.float64)

    References:
        Patrini et al., *Making deep neural networks robust to label noise: a loss correction
        approach*, CVPR 2017.
    """
    p = _check_probabilities(probabilities)
    if not 0 <= finite_number("percentile", percentile) <= 100:
        raise ValueError(f"`percentile` must be at least 0 and at most 100, got {percentile}")
    rank = math.ceil(percentile / 100 * (p.shape[0] - 1))
    anchors = p.argsort(0)[rank]  # (C,)
    return p[anchors] / p[anchors].sum(1, keepdim=True)


@takes_arrays
def confident_noise_matrix(probabilities: Tensor, labels: Tensor) -> Tensor:
    r"""Noise matrix from counts of labels among the rows that confidently belong to a class.

    A row confidently belongs to the class with the largest probability among those that reach their
    threshold. The threshold of class ``j`` is the mean :math:`p(j \mid x)` over the rows labelled
    ``j``. The counts of (label, class) are scaled to the frequencies of the labels; then the counts
    of each class are divided by their sum.

    Args:
        probabilities: predicted label probabilities of held-out rows, ``(N, C)``.
        labels: the labels the rows carry, ``(N,)``, int64. If no row is labelled ``j``, class ``j``
            has no threshold, and no row confidently belongs to it.

    Returns:
        ``(C, C)``, float64; rows sum to 1. Entry ``[i, j]`` estimates the probability of the label
        ``j`` where the class is ``i``. If no row confidently belongs to a class, the estimate says
        that its labels are all right.

    Raises:
        ValueError: for anything but a matrix of probabilities, or labels that do not fit.
        TypeError: for other dtypes.

    Example:
        >>> import torch
        >>> from xent.learn.label_noise import confident_noise_matrix
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.3, 0.7], [0.9, 0.1]])
        >>> confident_noise_matrix(p, torch.tensor([0, 0, 1, 1, 1]))
        tensor([[0.6667, 0.3333],
                [0.0000, 1.0000]], dtype=torch.float64)

    References:
        Northcutt et al., *Confident learning: estimating uncertainty in dataset labels*, JAIR 2021.
    """
    p = _check_probabilities(probabilities)
    labels = _check_labels(labels, p)
    counts = _confident_counts(_confident_guess(p, labels), labels, p.shape[1]).double()
    # The frequency of a label does not depend on how many of its rows are confident.
    frequency = torch.bincount(labels, minlength=p.shape[1]).unsqueeze(1)  # (C, 1)
    joint = counts / counts.sum(1, keepdim=True).clamp(min=1) * frequency
    total = joint.sum(0).unsqueeze(1)  # total of each class
    identity = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    return torch.where(total > 0, joint.T / total.clamp(min=torch.finfo(p.dtype).tiny), identity)


@takes_arrays
def label_quality(
    probabilities: Tensor, labels: Tensor, score: Score = "self_confidence"
) -> Tensor:
    r"""Score how well the label of each row agrees with its prediction; a suspect has a low score.

    Args:
        probabilities: predicted label probabilities of held-out rows, ``(N, C)``.
        labels: the labels the rows carry, ``(N,)``, int64.
        score: ``"self_confidence"``, the probability of the label :math:`p_y`; or
            ``"normalized_margin"``, :math:`p_y - \max_{j \ne y} p_j`.

    Returns:
        ``(N,)``, float64, in [0, 1] or [-1, 1].

    Raises:
        ValueError: as :func:`find_label_issues`.
        TypeError: for other dtypes.

    Example:
        >>> import torch
        >>> from xent.learn import label_quality
        >>> p = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> label_quality(p, torch.tensor([0, 1]), "normalized_margin")
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    one_of("score", score, get_args(Score))
    p = _check_probabilities(probabilities)
    return _quality(p, _check_labels(labels, p), score)


@takes_arrays
def find_label_issues(
    probabilities: Tensor,
    labels: Tensor,
    *,
    filter_by: Filter = "prune_by_noise_rate",
    rank_by: Score = "self_confidence",
) -> Tensor:
    r"""Rows whose label is probably wrong, by confident learning; the worst first.

    Rows that confidently belong to a class, as in :func:`confident_noise_matrix`, are counted by
    label and class. Scaled to the frequencies of the labels, the counts :math:`n_{ij}` estimate how
    many rows labelled ``i`` are of class ``j``, and so how many rows to look for:

    * ``"prune_by_noise_rate"``: for each ``i`` and ``j``, the :math:`n_{ij}` rows labelled ``i``
      with the largest :math:`p_j - p_i`.
    * ``"prune_by_class"``: for each ``i``, the :math:`\sum_{j \ne i} n_{ij}` rows labelled ``i``
      with the smallest :math:`p_i`.
    * ``"both"``: the rows that these two filters both find.
    * ``"confident_learning"``: the rows that were counted off the diagonal.
    * ``"predicted_neq_given"``: no counts, all rows whose label is not the most likely class.

    A row whose label is the most likely class, or less likely by no more than 1e-6, is never
    returned.

    Args:
        probabilities: predicted label probabilities of held-out rows, ``(N, C)``: a model that has
            seen the label believes it. scikit-learn's ``cross_val_predict`` makes them.
        labels: the labels the rows carry, ``(N,)``, int64; a class may be without a row.
        filter_by: how the rows are found.
        rank_by: the :func:`label_quality` by which they are sorted.

    Returns:
        Row numbers, int64, the least credible label first.

    Raises:
        ValueError: for anything but a matrix of probabilities, labels that do not fit, or an
            unknown filter or score.
        TypeError: for other dtypes.

    Example:
        >>> import torch
        >>> from xent.learn import find_label_issues
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.3, 0.7], [0.9, 0.1]])
        >>> find_label_issues(p, torch.tensor([0, 0, 1, 1, 1]))
        tensor([4])

    References:
        Northcutt et al., *Confident learning: estimating uncertainty in dataset labels*, JAIR 2021.
        The names of the filters and scores are those of its implementation, cleanlab. A row that
        reaches several thresholds counts for the likeliest of those classes, as in the article;
        cleanlab counts it for the likeliest of all, and rounds counts with equal remainders in
        another order.
    """
    one_of("filter_by", filter_by, get_args(Filter))
    one_of("rank_by", rank_by, get_args(Score))
    p = _check_probabilities(probabilities)
    labels = _check_labels(labels, p)
    found = _quality(p, labels, "normalized_margin") < -TIE
    if filter_by != "predicted_neq_given":
        guess = _confident_guess(p, labels)
        joint = _whole_joint(_confident_counts(guess, labels, p.shape[1]), labels)
        if filter_by == "confident_learning":
            found &= (guess >= 0) & (guess != labels)
        if filter_by in ("prune_by_noise_rate", "both"):
            found &= _prune_by_noise_rate(p, labels, joint)
        if filter_by in ("prune_by_class", "both"):
            found &= _prune_by_class(p, labels, joint)
    rows = found.nonzero().flatten()
    return rows[_quality(p[rows], labels[rows], rank_by).argsort(stable=True)]


def _quality(p: Tensor, labels: Tensor, score: Score) -> Tensor:
    at_label = labels.unsqueeze(1)
    given = p.gather(1, at_label).squeeze(1)
    if score == "self_confidence":
        return given
    return given - p.scatter(1, at_label, -1.0).amax(1)


def _confident_guess(p: Tensor, labels: Tensor) -> Tensor:
    """Return the class that each row confidently belongs to, or -1, ``(N,)``."""
    carried = torch.nn.functional.one_hot(labels, p.shape[1]).to(p.dtype)  # (N, C)
    threshold = (carried * p).sum(0) / carried.sum(0)  # NaN for a label without rows
    # The mean of equal numbers may be rounded up, and then none of them would reach it.
    sure, guess = torch.where(p >= threshold - TIE, p, -1.0).max(1)
    return torch.where(sure >= 0, guess, -1)


def _confident_counts(guess: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count the confident rows of each pair (label, class), ``(C, C)``."""
    sure = guess >= 0
    pairs = labels[sure] * classes + guess[sure]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def _whole_joint(counts: Tensor, labels: Tensor) -> Tensor:
    """Scale the counts of (label, class) to the frequencies of the labels, in whole rows."""
    counts = counts + torch.diag(counts.diagonal() == 0)  # at least one row of each label is right
    frequency = torch.bincount(labels, minlength=len(counts)).unsqueeze(1)  # (C, 1)
    total = counts.sum(1, keepdim=True)
    whole, remainder = counts * frequency // total, counts * frequency % total
    missing = frequency - whole.sum(1, keepdim=True)
    rank = remainder.argsort(stable=True).argsort(stable=True)
    return whole + (rank >= len(counts) - missing)  # one more where the largest remainders are


def _prune_by_noise_rate(p: Tensor, labels: Tensor, joint: Tensor) -> Tensor:
    found = torch.zeros_like(labels, dtype=torch.bool)
    for i, of_label in enumerate(joint.tolist()):
        rows = (labels == i).nonzero().flatten()
        for j, n in enumerate(of_label):
            if j != i:
                found[rows[(p[rows, i] - p[rows, j]).argsort(stable=True)[:n]]] = True
    return found


def _prune_by_class(p: Tensor, labels: Tensor, joint: Tensor) -> Tensor:
    found = torch.zeros_like(labels, dtype=torch.bool)
    for i, of_label in enumerate(joint.tolist()):
        rows = (labels == i).nonzero().flatten()
        found[rows[p[rows, i].argsort(stable=True)[: sum(of_label) - of_label[i]]]] = True
    return found


def _check_probabilities(probabilities: Tensor) -> Tensor:
    is_tensor("probabilities", probabilities)
    if not probabilities.is_floating_point():
        raise TypeError(f"`probabilities` must be floating point, got {probabilities.dtype}")
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise ValueError(
            f"`probabilities` must hold one row of class probabilities for each of some examples, "
            f"shape (N, C); got shape {tuple(probabilities.shape)}"
        )
    p = probabilities.detach().double()
    sums_to_1("probabilities", p, probabilities.dtype)
    return p


def _check_labels(labels: Tensor, p: Tensor) -> Tensor:
    labels = class_indices("labels", labels)
    if labels.shape != p.shape[:1]:
        raise ValueError(
            f"`labels` must hold one class for each of the {p.shape[0]} rows, shape "
            f"({p.shape[0]},); got shape {tuple(labels.shape)}"
        )
    classes = p.shape[1]
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"`labels` must be classes, 0 to {classes - 1}")
    return labels
