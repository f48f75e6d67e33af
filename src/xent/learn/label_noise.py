"""Estimates of a noise matrix from the predictions of a model that was trained on noisy labels.

Such a model predicts *labels*, ``p(label | x)``, not classes. What it says about rows whose class
is beyond doubt is a row of the matrix; so an estimate needs such rows for every class, and a model
that has not learnt its wrong labels by heart: predictions on held-out rows are best.

    matrix = estimate_noise_matrix(xent.softmax(model(x)))
    loss = xent.forward_corrected_cross_entropy(logits, labels, matrix=matrix)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._check import finite_number, is_tensor


def estimate_noise_matrix(probabilities: Tensor, percentile: float = 97.0) -> Tensor:
    r"""Noise matrix from anchor points: the rows that are the surest of each class.

    .. math:: \hat T_{ij} = p(j \mid x_i^*), \qquad x_i^* \text{ at the percentile of } p(i \mid x)

    Args:
        probabilities: predicted label probabilities, ``(N, C)``; for a model whose last layer is a
            softmax, ``xent.softmax(logits)``.
        percentile: which row is the anchor of a class, in order of its probability. 100 takes the
            largest, right where classes do not overlap; a little less passes over outliers. The
            rows above it must be fewer than those of any class: 97 suits ten classes, not fifty.

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


def confident_noise_matrix(probabilities: Tensor, labels: Tensor) -> Tensor:
    r"""Noise matrix from counts: which labels the rows carry that are confidently of a class.

    A row belongs to the class with the largest probability among those that reach their threshold,
    the mean :math:`p(j \mid x)` over the rows labelled ``j``. The counts of (label, class) are
    brought to the frequencies of the labels; then each class is divided by its total.

    Args:
        probabilities: predicted label probabilities of held-out rows, ``(N, C)``.
        labels: the labels the rows carry, ``(N,)``, int64; each class at least once.

    Returns:
        ``(C, C)``, float64; rows sum to 1. Entry ``[i, j]`` estimates the probability of the label
        ``j`` where the class is ``i``. A class that no row confidently belongs to is taken to be
        labelled right.

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
    classes = p.shape[1]
    labels = _check_labels(labels, p)
    carried = torch.nn.functional.one_hot(labels, classes).to(p.dtype)  # (N, C)
    frequency = carried.sum(0)
    threshold = (carried * p).sum(0) / frequency
    reached = torch.where(p >= threshold, p, -1.0)
    sure, guess = reached.max(1)
    belongs = torch.nn.functional.one_hot(guess, classes) * (sure >= 0).unsqueeze(1)
    counts = carried.T @ belongs.to(p.dtype)  # (label, class)
    # Labels are as frequent as they are, however many of their rows are sure.
    joint = counts / counts.sum(1, keepdim=True).clamp(min=1) * frequency.unsqueeze(1)
    total = joint.sum(0).unsqueeze(1)  # of each class
    identity = torch.eye(classes, dtype=p.dtype, device=p.device)
    return torch.where(total > 0, joint.T / total.clamp(min=torch.finfo(p.dtype).tiny), identity)


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
    off = (p.sum(1) - 1).abs().max().item()
    if not (bool((p >= 0).all()) and off <= 1e-2):
        raise ValueError(
            "`probabilities` must be at least 0 and sum to 1 in every row. Logits: pass "
            "xent.softmax(logits)"
        )
    return p


def _check_labels(labels: Tensor, p: Tensor) -> Tensor:
    is_tensor("labels", labels)
    if labels.dtype != torch.int64:
        raise TypeError(f"`labels` must be int64, got {labels.dtype}; call .long()")
    if labels.shape != p.shape[:1]:
        raise ValueError(
            f"`labels` must hold one class for each of the {p.shape[0]} rows, shape "
            f"({p.shape[0]},); got shape {tuple(labels.shape)}"
        )
    classes = p.shape[1]
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"`labels` must be classes, 0 to {classes - 1}")
    missing = (torch.bincount(labels, minlength=classes) == 0).nonzero().flatten().tolist()
    if missing:
        raise ValueError(f"`labels` must hold each class at least once; {missing} do not occur")
    return labels
