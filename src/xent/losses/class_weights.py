"""Class weights from how often the classes occur."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._check import class_counts
from ..arrays import takes_arrays
from ..hyperparameters import Range


@takes_arrays
def effective_number_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    r"""Class weights by the effective number of rows, :math:`(1 - \beta) / (1 - \beta^{n_c})`.

    Args:
        counts: rows per class, ``(C,)``, whole numbers or not. A class without rows gets weight 0.
        beta: in [0, 1]: 0 gives equal weights, 1 (the limit) inverse frequencies.

    Returns:
        Weights, ``(C,)``, that sum to the number of classes; for ``weight=``. In the dtype of
        ``counts``: float64 for lists, PyTorch's default dtype for tensors and arrays of whole
        numbers. Losses of this library take weights of any of these types beside any logits.

    Raises:
        ValueError: for ``beta`` outside [0, 1], negative counts, or counts that are all 0.
        TypeError: if ``counts`` holds no real numbers.

    Example:
        >>> import torch, xent
        >>> xent.losses.effective_number_weights(torch.tensor([100.0, 10.0]), beta=0.99)
        tensor([0.2621, 1.7379])

    References:
        Cui et al., *Class-balanced loss based on effective number of samples*, CVPR 2019.
    """
    counts = class_counts("counts", counts)
    beta = Range(0, 1).check("beta", beta, None)
    n = counts.double()
    if beta == 1:
        weights = 1 / n
    else:
        weights = (1 - beta) / -torch.expm1(n * (math.log(beta) if beta else -math.inf))
    weights = torch.where(n > 0, weights, 0.0)
    return (weights * (n.numel() / weights.sum())).to(counts.dtype)


def deferred_weights(
    counts: Tensor, epoch: int, start: int = 160, beta: float = 0.9999
) -> Tensor | None:
    """Class weights for deferred re-weighting: none until ``start``, then by effective number.

    Args:
        counts: rows per class, ``(C,)``.
        epoch: the current epoch.
        start: the epoch from which on rare classes weigh more.
        beta: as for :func:`effective_number_weights`.

    Returns:
        None, or weights ``(C,)``: what ``weight=`` takes.

    Raises:
        ValueError: as :func:`effective_number_weights`.
        TypeError: likewise.

    Example:
        >>> import torch, xent
        >>> counts = torch.tensor([100.0, 10.0])
        >>> late = xent.losses.deferred_weights(counts, epoch=170, beta=0.99)
        >>> xent.losses.deferred_weights(counts, epoch=3), late
        (None, tensor([0.2621, 1.7379]))

    References:
        Cao et al., *Learning imbalanced datasets with label-distribution-aware margin loss*,
        NeurIPS 2019.
    """
    return effective_number_weights(counts, beta) if epoch >= start else None
