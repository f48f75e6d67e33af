r"""Robust losses that are asymmetric: with most labels right, they fit the most likely one alone.

A symmetric loss, as :func:`xent.losses.mae_loss`, has losses over all labels that add up to a
constant. An asymmetric one needs less: if one label of a row is the most likely, the weighted
losses of all labels are least where the prediction is certain of this one, as without noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..frames.row_loss import row_loss
from ..hyperparameters import Positive
from ..row_statistics import RowStatistics
from .catalog import member
from .robust import AboveOne


@member(proper=False, bounded=True, convex=False, in_nats=False)
@row_loss(soft=False)
def agce_loss(s: RowStatistics, a: Positive = 1.0, q: Positive = 2.0) -> Tensor:
    r"""Asymmetric generalised cross-entropy (AGCE).

    .. math:: \ell = \frac{(a + 1)^q - (a + p)^q}{q}

    With ``a = 0`` it would be :func:`xent.losses.generalized_cross_entropy`. From ``q = 1`` on it
    is asymmetric whatever the rates of the noise; 1 is half the mean absolute error.

    Use:
        For wrong labels, while the right label of a row is the most frequent; not for clean labels,
        since rows of low probability hardly teach.

    Args:
        a: positive; the larger, the more evenly rows of any probability pull.
        q: positive.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 20.0]])
        >>> xent.losses.agce_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.2313, 1.5000])

    References:
        Zhou et al., *Asymmetric loss functions for learning with noisy labels*, ICML 2021.
    """
    return -((a + 1) ** q) * torch.expm1(q * torch.log1p(-s.miss / (a + 1))) / q


@member(proper=False, bounded=True, convex=False, in_nats=False)
@row_loss(soft=False)
def aul_loss(s: RowStatistics, a: AboveOne = 1.5, q: Positive = 0.9) -> Tensor:
    r"""Asymmetric unhinged loss (AUL).

    .. math:: \ell = \frac{(a - p)^q - (a - 1)^q}{q}

    Use:
        For wrong labels, as a second candidate beside :func:`~xent.losses.agce_loss`; not for clean
        labels, since rows of low probability hardly teach.

    Args:
        a: above 1; the larger, the more evenly rows of any probability pull.
        q: positive; 1 is half the mean absolute error.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 20.0]])
        >>> xent.losses.aul_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([0.1264, 1.0050])

    References:
        Zhou et al., *Asymmetric loss functions for learning with noisy labels*, ICML 2021.
    """
    return (a - 1) ** q * torch.expm1(q * torch.log1p(s.miss / (a - 1))) / q
