"""Points and their weights, as the distributions of the cross-entropy method take them."""

from __future__ import annotations

import torch
from torch import Tensor


def finite_numbers(name: str, value: Tensor | float) -> Tensor:
    """Return a parameter in float64, or raise unless it holds finite numbers."""
    numbers = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"`{name}` must hold finite numbers")
    return numbers


def points_of(name: str, x: Tensor, d: int) -> Tensor:
    """Return points ``(n, d)`` in float64, or raise unless they have ``d`` coordinates."""
    if x.ndim != 2 or x.shape[1] != d:
        raise ValueError(f"`{name}` must have shape (n, {d}), got {tuple(x.shape)}")
    return x.to(torch.float64)


def shares_of(elite: Tensor, weights: Tensor | None, d: int) -> tuple[Tensor, Tensor]:
    """Return the points of an elite in float64, and the share of the weight that each has."""
    x = points_of("elite", elite, d)
    if not len(x):
        raise ValueError("`elite` must hold at least one point")
    if weights is None:
        return x, x.new_full((len(x),), 1 / len(x))
    w = finite_numbers("weights", weights)
    if w.shape != (len(x),) or bool((w < 0).any()) or not bool(w.sum() > 0):
        raise ValueError(
            f"`weights` must hold {len(x)} numbers, none negative and not all 0, one per point"
        )
    return x, w / w.sum()
