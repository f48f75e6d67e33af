"""The sigmoid family with a factor on cross-entropy that depends on how right an element is."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from ..engines.elements.problem import ElementProblem, Form
from ..frames.element_loss import Elements, element_loss, power
from ..hyperparameters import NonNegative, PerElement, Range
from .catalog import member


def _shares(alpha: float | None, gamma: float) -> Form:
    return Form(gamma=gamma) if alpha is None else Form(alpha, 1 - alpha, gamma)


def _weigh_by_shares(
    problem: ElementProblem, settings: dict[str, Any]
) -> tuple[ElementProblem, dict[str, Any]]:
    """Turn a tensor of shares into weights of the elements."""
    alpha, t = settings["alpha"], problem.target
    if not isinstance(alpha, Tensor):
        return problem, settings
    share = alpha * t + (1 - alpha) * (1 - t)
    weight = share if problem.weight is None else problem.weight * share
    return problem._replace(weight=weight), {**settings, "alpha": None}


@member("binary", proper=False, convex=False)
@element_loss(form=_shares, share=_weigh_by_shares)
def sigmoid_focal_loss(
    e: Elements,
    alpha: Annotated[float | Tensor, PerElement(0, 1)] | None = 0.25,
    gamma: NonNegative = 2.0,
) -> Tensor:
    r"""Sigmoid cross-entropy with less weight on elements that are already right.

    .. math:: \ell = \bigl(\alpha t + (1 - \alpha)(1 - t)\bigr) (1 - p_t)^\gamma
        \bigl(-t \log p - (1 - t) \log(1 - p)\bigr), \qquad
        1 - p_t = t (1 - p) + (1 - t) p

    The formula of ``torchvision.ops.sigmoid_focal_loss``, whose ``reduction`` is ``"none"`` by
    default. Neither loss nor gradient turns into NaN or 0 where ``p`` is nearly 0 or 1, also for
    ``gamma`` below 1. Whole numbers up to 8 are the fastest ``gamma``.

    Use:
        For few positives among many easy negatives, as in dense detection; not where the
        probabilities are used as they are, since the loss is not proper.

    Args:
        alpha: weight of the targets 1, in [0, 1]; targets 0 get ``1 - alpha``. None gives both the
            weight 1. A number, or a tensor that broadcasts to the shape of ``input``: ``(C,)`` for
            the classes of ``(N, C)``, ``(C, 1, 1)`` for those of ``(N, C, H, W)``.
        gamma: how much less weight elements get that are right; 0 is cross-entropy.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([2.0, -2.0, 100.0])
        >>> xent.losses.sigmoid_focal_loss(logits, torch.tensor([1, 1, 0]), reduction="none")
        tensor([4.5089e-04, 4.1252e-01, 7.5000e+01])

    References:
        Lin et al., *Focal loss for dense object detection*, ICCV 2017.
    """
    loss = power(e.error, gamma) * e.nll
    return loss if alpha is None else (alpha * e.target + (1 - alpha) * (1 - e.target)) * loss


@member("binary", proper=False, convex=True)
@element_loss
def sigmoid_poly1_loss(e: Elements, epsilon: Annotated[float, Range(-1)] = 1.0) -> Tensor:
    r"""Sigmoid cross-entropy with another weight for the first term of its series in ``1 - p_t``.

    .. math:: \ell = -t \log p - (1 - t) \log(1 - p) + \epsilon \bigl(t (1 - p) + (1 - t) p\bigr)

    Use:
        To tune one number on top of sigmoid cross-entropy; not without tuning it, since the best
        value differs from task to task.

    Args:
        epsilon: added to the weight of the first term, at least -1; up to 1 the loss is convex.

    Example:
        >>> import torch, xent
        >>> xent.losses.sigmoid_poly1_loss(torch.tensor([2.0, -2.0]), torch.tensor([1, 1]))
        tensor(1.6269)

    References:
        Leng et al., *PolyLoss*, ICLR 2022.
    """
    return e.nll + epsilon * e.error


@member("binary", proper=False, convex=False)
@element_loss(form=lambda beta: Form(gamma=beta, side=-1.0))
def quality_focal_loss(e: Elements, beta: NonNegative = 2.0) -> Tensor:
    r"""Focal loss for targets between 0 and 1, such as the overlap of a box with the truth.

    .. math:: \ell = |t - p|^\beta \bigl(-t \log p - (1 - t) \log(1 - p)\bigr)

    The loss is 0 where ``p`` is the target, and positive elsewhere. For labels 0 and 1 it is
    :func:`xent.losses.sigmoid_focal_loss` with ``alpha=None``.

    Use:
        For detectors whose targets are overlaps between 0 and 1; not for labels 0 and 1, where
        :func:`~xent.losses.sigmoid_focal_loss` weighs the two sides.

    Args:
        beta: how much less weight elements get that are nearly right; 0 is cross-entropy.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([0.0, 2.0])
        >>> xent.losses.quality_focal_loss(logits, torch.tensor([0.5, 0.5]), reduction="none")
        tensor([0.0000, 0.1634])

    References:
        Li et al., *Generalized focal loss*, NeurIPS 2020.
    """
    return power(e.residual.abs(), beta) * e.nll


@member("binary", proper=False, convex=False)
@element_loss(form=lambda alpha, gamma: Form(negative=alpha, gamma=gamma, plain_above=0.0))
def varifocal_loss(e: Elements, alpha: NonNegative = 0.75, gamma: NonNegative = 2.0) -> Tensor:
    r"""Cross-entropy that weighs positives by their quality and gives easy negatives less weight.

    .. math:: \ell = \begin{cases}
        t \bigl(-t \log p - (1 - t) \log(1 - p)\bigr) & t > 0 \\
        -\alpha \, p^\gamma \log(1 - p) & t = 0
        \end{cases}

    Use:
        For detectors in which a positive counts by the overlap of its box; not for soft labels in
        general, since a small target hardly counts.

    Args:
        alpha: factor on the negatives.
        gamma: how much less weight negatives get that are right.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([0.0, 0.0])
        >>> xent.losses.varifocal_loss(logits, torch.tensor([0.5, 0.0]), reduction="none")
        tensor([0.3466, 0.1300])

    References:
        Zhang et al., *VarifocalNet: an IoU-aware dense object detector*, CVPR 2021.
    """
    return torch.where(e.target > 0, e.target, alpha * power(e.prob, gamma)) * e.nll
