"""Calibration of probabilities: the best temperature, and tables and scores of the errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import softmax, statistics
from .._probabilities import read_distribution
from ..arrays import takes_arrays
from ..engines.modes import widened
from ..information.reliability import Binning, Reliability, bin_confidences
from ..targets import class_rows

__all__ = ["brier_score", "calibration_error", "fit_temperature", "reliability"]


@takes_arrays
def fit_temperature(input: Tensor, target: Tensor, *, ignore_index: int = -100) -> float:
    r"""The temperature T at which ``softmax(logits / T)`` has the least cross-entropy.

    .. math:: \min_T\ -\sum_n \log \mathrm{softmax}(z_n / T)_{y_n}

    The cross-entropy is convex in 1/T. At the minimum, the mean cross-entropy equals the mean
    entropy of the predictions; this equation is solved. Classes keep their order, so accuracy does
    not change.

    Args:
        input: logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, of rows that the model has not
            been trained on.
        target: class indices in the shape of the rows, or probabilities in that of ``input``.
        ignore_index: class index that marks rows to leave out.

    Returns:
        T, above 1 for a model that is too sure. Use ``input / T``, or pass
        ``logit_scale=1 / T`` to a loss.

    Raises:
        ValueError: if there is no best temperature: every row is right, the targets have no more
            than the average logit, a target has probability 0, or there is no row.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch
        >>> from xent.learn.calibration import fit_temperature
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
        >>> temperature = fit_temperature(logits, torch.tensor([0, 0, 1, 0]))  # 3 of 4 are right
        >>> torch.softmax(logits[0] / temperature, 0)
        tensor([0.7500, 0.2500])

    References:
        Guo et al., *On calibration of modern neural networks*, ICML 2017.
    """
    z = widened(input.detach())
    s = statistics(z, target, ignore_index=ignore_index, mean=True, top=True)
    least, most = s.mass * s.mean - s.target, s.mass * s.top_logit - s.target
    least, most = (torch.where(s.mass > 0, x, 0.0).sum().item() for x in (least, most))
    if not bool((s.mass > 0).any()):
        raise ValueError("fit_temperature: no row is left to fit on")
    if not math.isfinite(most):
        raise ValueError(
            "fit_temperature: the loss is not finite at any temperature, because a logit is NaN or "
            "inf, or a target is masked; xent.diagnose(input, target) finds the rows"
        )
    if most <= 0:
        raise ValueError(
            "fit_temperature: every row is right, so there is no best temperature, the lower the "
            "better; fit on rows the model has not been trained on, or on more of them"
        )
    if least >= 0:
        raise ValueError(
            "fit_temperature: the targets have no more than the average logit, so the best "
            "predictions are uniform, at no finite temperature; check that `target` belongs to "
            "`input`"
        )

    def overconfidence(log_scale: float) -> float:
        s = statistics(
            z, target, ignore_index=ignore_index, logit_scale=math.exp(log_scale), entropy=True
        )
        loss, entropy = -s.log_prob.sum().item(), (s.mass * s.entropy).sum().item()
        return (loss - entropy) / (loss + entropy)

    return math.exp(-_root(overconfidence))


def _root(f: Callable[[float], float]) -> float:
    """Return the root of f, negative on the left and positive on the right (Illinois method)."""
    low = high = 0.0
    f_low = f_high = f(0.0)
    for step in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
        if f_low > 0:
            high, f_high = low, f_low
            low -= step
            f_low = f(low)
        elif f_high < 0:
            low, f_low = high, f_high
            high += step
            f_high = f(high)
    x, last = low if f_low >= 0 else high, 0.0
    for _ in range(100):
        if not f_low < 0 < f_high:
            break
        x = (low * f_high - high * f_low) / (f_high - f_low)
        y = f(x)
        if abs(y) < 1e-15 or not low < x < high:
            break
        if y < 0:
            low, f_low = x, y
            f_high /= 2 if last < 0 else 1  # the same end moved twice: move the other
        else:
            high, f_high = x, y
            f_low /= 2 if last > 0 else 1
        last = y
    return x


@takes_arrays
def reliability(
    input: Tensor,
    target: Tensor,
    bins: int = 15,
    *,
    binning: Binning = "width",
    label: int | None = None,
    from_logits: bool | None = None,
    ignore_index: int = -100,
) -> Reliability:
    r"""Table of a reliability diagram: for each bin of confidence, how often predictions are right.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n}
        \bigl| \mathrm{accuracy}_b - \mathrm{confidence}_b \bigr|

    Even a perfect model has an ECE, from chance: about the mean of
    :math:`\sqrt{2 c (1 - c) / \pi n_b}` at confidence c.

    Args:
        input: logits or probabilities, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices in the shape of the rows.
        bins: the number of bins.
        binning: ``"width"``: bins of equal width, each with its upper border; or ``"mass"``: with
            equally many rows each (adaptive ECE), as far as equal confidences, which stay together,
            allow it.
        label: look at the probability of this class and whether it is the target, instead of the
            most likely class of each row.
        from_logits: whether ``input`` holds logits. By default numbers that are all in [0, 1] are
            probabilities, and must sum to 1.
        ignore_index: class index that marks rows to leave out.

    Returns:
        A :class:`Reliability` with ``confidence``, ``accuracy``, ``count`` and ``edges`` of the
        bins, ``ece`` and ``mce``.

    Raises:
        ValueError: for shapes that do not fit, a class index out of range, rows that are no
            probabilities, or if there is no row.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch
        >>> from xent.learn.calibration import reliability
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
        >>> print(reliability(p, torch.tensor([0, 0, 1, 0]), bins=2))
                  bin    count  confidence  accuracy
         0.000-0.500        0
         0.500-1.000        4      0.7500    0.7500
        ECE 0.0000  MCE 0.0000

    References:
        Guo et al., *On calibration of modern neural networks*, ICML 2017.
        Equal mass: Nguyen & O'Connor, *Posterior calibration and exploratory analysis for natural
        language processing models*, EMNLP 2015.
    """
    p, labels, dtype = _predictions(input, target, from_logits, ignore_index)
    if label is None:
        confidence, predicted = p.max(-1)
        return bin_confidences(confidence, predicted == labels, bins, binning, dtype)
    if not 0 <= label < p.shape[-1]:
        raise ValueError(f"`label` must be a class, 0 to {p.shape[-1] - 1}, got {label}")
    return bin_confidences(p[:, label], labels == label, bins, binning, dtype)


@takes_arrays
def calibration_error(
    input: Tensor,
    target: Tensor,
    bins: int = 15,
    *,
    binning: Binning = "width",
    classwise: bool = False,
    from_logits: bool | None = None,
    ignore_index: int = -100,
) -> float:
    r"""Expected calibration error of the most likely classes, or of all.

    Args:
        input: logits or probabilities, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices in the shape of the rows.
        bins: the number of bins.
        binning: ``"width"``, or ``"mass"`` for adaptive ECE; see :func:`reliability`.
        classwise: take the error of the probability of each class, and the mean over the classes.
            That also counts probabilities that are not the largest of their row.
        from_logits: whether ``input`` holds logits; see :func:`reliability`.
        ignore_index: class index that marks rows to leave out.

    Returns:
        Between 0 and 1. The maximum calibration error is ``reliability(...).mce``.

    Raises:
        ValueError: as :func:`reliability`.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch
        >>> from xent.learn.calibration import calibration_error
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
        >>> round(calibration_error(p, torch.tensor([0, 0, 0, 0])), 4)
        0.4
        >>> round(calibration_error(p, torch.tensor([0, 0, 1, 0]), bins=2, classwise=True), 4)
        0.15

    References:
        Naeini et al., *Obtaining well calibrated probabilities using Bayesian binning*, AAAI 2015.
        Classwise: Kull et al., *Beyond temperature scaling*, NeurIPS 2019.
    """
    p, labels, dtype = _predictions(input, target, from_logits, ignore_index)
    if not classwise:
        confidence, predicted = p.max(-1)
        return bin_confidences(confidence, predicted == labels, bins, binning, dtype).ece
    of_classes = ((p[:, c], labels == c) for c in range(p.shape[-1]))
    each = [bin_confidences(*rows, bins, binning, dtype).ece for rows in of_classes]
    return math.fsum(each) / len(each)


@takes_arrays
def brier_score(
    input: Tensor,
    target: Tensor,
    *,
    from_logits: bool | None = None,
    ignore_index: int = -100,
) -> float:
    r"""Brier score: mean squared distance of the probabilities from the classes that came.

    .. math:: \frac{1}{N} \sum_n \sum_j (p_{n, j} - [j = y_n])^2

    The squares are summed over the classes, as Brier defined the score. With two classes that is
    twice the square that many libraries report.

    Args:
        input: logits or probabilities, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices in the shape of the rows.
        from_logits: whether ``input`` holds logits; see :func:`reliability`.
        ignore_index: class index that marks rows to leave out.

    Returns:
        Between 0 and 2.

    Raises:
        ValueError: as :func:`reliability`.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch
        >>> from xent.learn.calibration import brier_score
        >>> round(brier_score(torch.tensor([[0.9, 0.1]]), torch.tensor([0])), 4)
        0.02

    References:
        Brier, *Verification of forecasts expressed in terms of probability*, 1950.
    """
    p, labels, _ = _predictions(input, target, from_logits, ignore_index)
    came = torch.nn.functional.one_hot(labels, p.shape[-1])
    return (p - came).square().sum(-1).mean().item()


def _predictions(
    input: Tensor, target: Tensor, from_logits: bool | None, ignore_index: int
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Return probabilities (n, C) in float64 and classes (n,) of the kept rows, and a dtype.

    The dtype is that in which the probabilities were computed.
    """
    rows, labels = class_rows(input, target, ignore_index)
    if labels.numel() == 0:
        raise ValueError("there is no row to calibrate on: all are ignored, or `input` is empty")
    rows = rows.detach()
    if from_logits is None:
        from_logits = not bool(((rows >= 0) & (rows <= 1)).all())
    p = read_distribution("input", rows, -1, from_logits)
    return (softmax(p), labels, p.dtype) if from_logits else (p, labels, input.dtype)
