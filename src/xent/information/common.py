"""Units of information, and checks of pairs of distributions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .._check import one_of
from .._probabilities import read_distribution

Unit = Literal["nat", "bit"]

NATS_PER_BIT = math.log(2)


def nats_per(unit: str) -> float:
    """Return the number of nats in one unit."""
    one_of("unit", unit, ("nat", "bit"))
    return NATS_PER_BIT if unit == "bit" else 1.0


def in_unit(nats: Tensor, unit: str, dtype: torch.dtype) -> Tensor:
    """Convert float64 nats into another unit and dtype; adding 0 turns -0 into 0."""
    return (nats / nats_per(unit) + 0.0).to(dtype)


def read_pair(
    p: Tensor, q: Tensor, dim: int, from_logits: bool
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Two distributions, checked, and the dtype of the result."""
    x, y = read_distribution("p", p, dim, from_logits), read_distribution("q", q, dim, from_logits)
    if p.shape != q.shape:
        raise ValueError(
            f"`p` and `q` must have the same shape, got {tuple(p.shape)} and {tuple(q.shape)}; "
            f"to compare many with one, expand the one: q.expand_as(p)"
        )
    return x, y, torch.promote_types(p.dtype, q.dtype)
