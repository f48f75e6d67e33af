r"""Margins for logits that are cosines: the target is made harder before it is compared.

    loss = -log sigmoid(psi(target) - rest)

Only the target's logit changes, so a margin is a function of ``(target, rest)``. A drop
``target - psi`` lowers the log-odds by the same number, and nothing cancels. ``scale`` turns
cosines into logits; the losses apply it themselves.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._check import at_hand, finite_number, scalar
from ..frames.row_loss import row_loss
from ..hyperparameters import Logits, NonNegative, Positive, Range, Rule
from ..row_statistics import RowStatistics
from ..targets import class_axis
from .catalog import member
from .centers import takes_centers


def _scale(scale: float | Tensor, **_: object) -> float | Tensor:
    return scale


class _PerRow(Rule):
    """A rule for a number, or a tensor of one number per row."""

    def check(self, name: str, value: Any, input: Logits | None) -> Any:
        """The number or tensor; raise unless it fits the rows."""
        if not isinstance(value, Tensor):
            return finite_number(name, value)
        if input is None:
            return value
        axis = class_axis(input)
        rows = input.shape[:axis] + input.shape[axis + 1 :]
        if value.ndim and value.shape != rows:
            raise ValueError(
                f"`{name}` must be a number or one per row, shape {tuple(rows)}; got shape "
                f"{tuple(value.shape)}"
            )
        return (
            at_hand(name, value, input.device) if value.ndim else scalar(name, value, input.device)
        )


OWN_SCALE = {"logit_scale": _scale}


def lowered_cross_entropy(s: RowStatistics, drop: Tensor | float) -> Tensor:
    """Cross-entropy of logits whose target is ``drop`` lower."""
    return 0.0 - logsigmoid(s.log_odds - drop)  # 0, not -0, of a single class


@member(proper=False, convex=True)
@takes_centers
@row_loss(soft=False, own=OWN_SCALE)
def cosface_loss(
    s: RowStatistics,
    margin: NonNegative = 0.35,
    scale: Positive = 64.0,
    centers: int = 1,
    center_temperature: Positive | None = None,
) -> Tensor:
    r"""Cross-entropy on cosines, the target's lowered by a margin; large-margin cosine loss.

    .. math:: \ell = -\log \frac{e^{s (\cos\theta_y - m)}}
        {e^{s (\cos\theta_y - m)} + \sum_{j \ne y} e^{s \cos\theta_j}}

    ``input`` holds cosines: products of normalised features with normalised class vectors.

    Use:
        For features of many classes, such as faces, with a margin in cosine; not for logits of an
        ordinary layer, since the input must be cosines.

    Args:
        margin: ``m``, in cosine.
        scale: ``s``, the factor that turns cosines into logits.
        centers: how many cosines each class has, next to each other: ``input`` has ``C * centers``
            of them. A class counts by its best one.
        center_temperature: counts a class by the mean of its cosines under the softmax of cosines
            divided by this number, 0.1 say (SoftTriple); None for the largest.

    Example:
        >>> import torch, xent
        >>> cosines = torch.tensor([[0.8, 0.3, -0.2]])
        >>> f"{xent.losses.cosface_loss(cosines, torch.tensor([0]), scale=10.0).item():.4f}"
        '0.2026'

    References:
        Wang et al., *CosFace: large margin cosine loss for deep face recognition*, CVPR 2018. Qian
        et al., *SoftTriple loss: deep metric learning without triplet sampling*, ICCV 2019.
    """
    return lowered_cross_entropy(s, scale * margin)


@member(proper=False, convex=False)
@takes_centers
@row_loss(soft=False, own=OWN_SCALE)
def arcface_loss(
    s: RowStatistics,
    margin: Annotated[float, Range(0, math.pi / 2)] = 0.5,
    scale: Positive = 64.0,
    centers: int = 1,
    center_temperature: Positive | None = None,
) -> Tensor:
    r"""Cross-entropy on cosines with a margin added to the target's angle.

    .. math:: \psi = \cos(\theta_y + m) \quad (\theta_y \le \pi - m), \qquad
        \psi = \cos\theta_y - m \sin m \quad \text{beyond}

    The second branch keeps ``psi`` falling where the angle would pass pi. ``input`` holds cosines.

    Use:
        For features of many classes when the margin should be an angle; not for logits of an
        ordinary layer, nor where the loss must be convex, as :func:`~xent.losses.cosface_loss` is.

    Args:
        margin: ``m``, in radians, at most pi / 2.
        scale: the factor that turns cosines into logits.
        centers: how many cosines each class has, next to each other: ``input`` has ``C * centers``
            of them. A class counts by its best one.
        center_temperature: counts a class by the mean of its cosines under the softmax of cosines
            divided by this number, 0.1 say (SoftTriple); None for the largest.

    Example:
        >>> import torch, xent
        >>> cosines = torch.tensor([[0.8, 0.3, -0.2]])
        >>> f"{xent.losses.arcface_loss(cosines, torch.tensor([0]), scale=10.0).item():.4f}"
        '0.2781'

    References:
        Deng et al., *ArcFace: additive angular margin loss for deep face recognition*, CVPR 2019,
        and *Sub-center ArcFace*, ECCV 2020.
    """
    cos = (s.target / scale).clamp(-1, 1)
    # The sine has an infinite derivative at the poles; a sine below 1e-6 counts as constant.
    sin = ((1 - cos) * (1 + cos)).clamp(min=1e-12).sqrt()
    turned = cos * math.cos(margin) - sin * math.sin(margin)
    psi = torch.where(cos >= -math.cos(margin), turned, cos - margin * math.sin(margin))
    return lowered_cross_entropy(s, scale * (cos - psi))


@member(proper=False, convex=False)
@row_loss(soft=False, own=OWN_SCALE)
def large_margin_loss(
    s: RowStatistics,
    margin: Annotated[int, Range(1)] = 4,
    scale: Annotated[float | Tensor, _PerRow()] = 1.0,
) -> Tensor:
    r"""Cross-entropy with the target's angle multiplied; large-margin softmax, SphereFace.

    .. math:: \psi = (-1)^k \cos(m \theta_y) - 2k, \qquad k = \lfloor m \theta_y / \pi \rfloor

    ``psi`` falls all the way from 1 at angle 0. ``input`` holds cosines. If ``scale`` holds the
    length of the features of each row, the logits are those of an ordinary layer with normalised
    weights.

    Use:
        To reproduce SphereFace and large-margin softmax; not as a first choice, since its margin
        can only be a whole number.

    Args:
        margin: ``m``, a whole number; 1 is cross-entropy.
        scale: the factor that turns cosines into logits, a number or one per row.

    Example:
        >>> import torch, xent
        >>> cosines = torch.tensor([[0.8, 0.3, -0.2]])
        >>> loss = xent.losses.large_margin_loss(cosines, torch.tensor([0]), margin=2, scale=10.0)
        >>> f"{loss.item():.4f}"
        '0.8018'

    References:
        Liu et al., *Large-margin softmax loss for convolutional neural networks*, ICML 2016, and
        *SphereFace*, CVPR 2017.
    """
    if margin != int(margin):
        raise ValueError(f"`margin` must be a whole number, got {margin}")
    cos = (s.target / scale).clamp(-1, 1)
    turns = torch.floor(margin * torch.acos(cos.detach()) / math.pi).clamp(max=margin - 1)
    psi = torch.where(turns % 2 == 0, 1.0, -1.0) * _chebyshev(cos, int(margin)) - 2 * turns
    return lowered_cross_entropy(s, scale * (cos - psi))


def _chebyshev(x: Tensor, n: int) -> Tensor:
    """``cos(n arccos x)``, without the infinite derivative of arccos."""
    before, now = x, torch.ones_like(x)
    for _ in range(n):
        before, now = now, 2 * x * now - before
    return now
