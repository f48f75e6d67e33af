"""A lower bound of the mutual information of pairs, by InfoNCE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._check import finite_number, is_tensor
from ...arrays import takes_arrays
from ...information import NATS_PER_BIT
from ...losses import cross_entropy, info_nce_loss

__all__ = ["InfoNCEBound", "info_nce_bound"]


@dataclass(frozen=True)
class InfoNCEBound:
    """A lower bound of mutual information, and the cap that it cannot exceed.

    Attributes:
        nats: ``log M`` less the InfoNCE loss; on average not above the mutual information.
        keys: ``M``, how many keys each query chose from.
    """

    nats: float
    keys: int

    @property
    def bits(self) -> float:
        """The bound in bits."""
        return self.nats / NATS_PER_BIT

    @property
    def cap(self) -> float:
        """``log M`` in nats, the largest value that the bound can take."""
        return math.log(self.keys)

    def __str__(self) -> str:
        return f"at least {self.nats:.4f} nats; cannot exceed log {self.keys} = {self.cap:.4f}"


@takes_arrays
def info_nce_bound(
    query: Tensor,
    key: Tensor | None = None,
    *,
    target: Tensor | None = None,
    temperature: float = 1.0,
    normalize: bool = False,
) -> InfoNCEBound:
    r"""Estimate a lower bound of the mutual information of pairs, by InfoNCE.

    .. math:: I(X; Y) \ge \log M - \mathrm{E}\Bigl[-\log
        \frac{e^{f(x_n, y_n)}}{\sum_m e^{f(x_n, y_m)}}\Bigr]

    The estimate holds on average for scores f that were not fitted to these pairs. The bound
    never exceeds :math:`\log M`; if it comes near, more keys may show more information.

    Args:
        query: features ``(N, D)``, whose products with ``key`` are the scores; or without ``key``
            the scores ``(N, M)`` of a critic of any form.
        key: features, ``(M, D)``.
        target: which key belongs to each query, ``(N,)``; None for key n of query n.
        temperature: divides the scores.
        normalize: divide features by their length first.

    Returns:
        An :class:`InfoNCEBound`.

    Raises:
        ValueError: for shapes that do not fit, scores that are not finite, no pair, or
            ``normalize`` without ``key``.
        TypeError: for anything but floating-point tensors.

    Example:
        >>> import torch
        >>> from xent.learn import info_nce_bound
        >>> print(info_nce_bound(torch.eye(4), torch.eye(4), temperature=0.2))
        at least 1.3663 nats; cannot exceed log 4 = 1.3863

    References:
        van den Oord, Li & Vinyals, *Representation learning with contrastive predictive coding*,
        2018. Poole et al., *On variational bounds of mutual information*, ICML 2019.
    """
    if key is not None:
        loss = info_nce_loss(query, key, target, temperature=temperature, normalize=normalize)
        return _bound(loss, len(key))
    is_tensor("query", query)
    if normalize:
        raise ValueError("`normalize` is about features; without `key`, `query` holds scores")
    if query.ndim != 2 or (target is None and query.shape[0] > query.shape[1]):
        raise ValueError(
            f"`query` must hold scores (N, M), M at least N or `target` given; got "
            f"{tuple(query.shape)}"
        )
    if finite_number("temperature", temperature) <= 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}")
    each = torch.arange(len(query), device=query.device) if target is None else target
    return _bound(cross_entropy(query / temperature, each), query.shape[1])


def _bound(loss: Any, keys: int) -> InfoNCEBound:
    if not math.isfinite(loss.item()):
        raise ValueError(
            f"the loss is {loss.item()}: there must be pairs, and their scores must be finite"
        )
    return InfoNCEBound(math.log(keys) - loss.item(), keys)
