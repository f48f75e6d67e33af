"""Units and precision of information, and checks of probability vectors, for this room."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .._check import is_tensor, one_of, whole_number
from .._probabilities import rounding
from ..engines.modes import can_look_at

Unit = Literal["nat", "bit"]

NATS_PER_BIT = math.log(2)


def nats_per(unit: str) -> float:
    """Return the number of nats in one unit."""
    one_of("unit", unit, ("nat", "bit"))
    return NATS_PER_BIT if unit == "bit" else 1.0


def in_unit(nats: Tensor, unit: str, dtype: torch.dtype) -> Tensor:
    """Float64 nats in the unit and dtype asked for; the sum turns -0 into 0."""
    return (nats / nats_per(unit) + 0.0).to(dtype)


def widened(x: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return x.double() if x.device.type != "mps" else x.float()


def read_pair(
    p: Tensor, q: Tensor, dim: int, from_logits: bool
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both sides as :func:`read` gives them, and the dtype of the result."""
    x, y = read("p", p, dim, from_logits), read("q", q, dim, from_logits)
    if p.shape != q.shape:
        raise ValueError(
            f"`p` and `q` must have the same shape, got {tuple(p.shape)} and {tuple(q.shape)}; "
            f"to compare many with one, expand the one: q.expand_as(p)"
        )
    return x, y, torch.promote_types(p.dtype, q.dtype)


def read(name: str, x: Tensor, dim: int, from_logits: bool) -> Tensor:
    """In float64, the classes last; checked."""
    check_axis(name, x, dim)
    wide = widened(x).movedim(dim, -1)
    if not from_logits and can_look_at(wide):
        _check_probabilities(name, wide, rounding(x.dtype))
    return wide


def _check_probabilities(name: str, p: Tensor, slack: float) -> None:
    """Raise unless rows are distributions, up to rounding. NaN passes, and comes out as NaN."""
    if bool((p < 0).any()):
        raise ValueError(
            f"`{name}` holds {p.min().item():g}, which is no probability; for logits pass "
            f"from_logits=True"
        )
    total = p.sum(-1)
    off = (total - 1).abs() > slack
    if bool(off.any()):
        raise ValueError(
            f"`{name}` must sum to 1 along `dim`, got {total[off].flatten()[0].item():.9g}. "
            f"Normalise: {name} / {name}.sum(dim, keepdim=True), in the precision it is used in; "
            f"for logits pass from_logits=True, for counts call entropy_from_counts"
        )


def check_axis(name: str, x: Tensor, dim: int) -> None:
    """Raise unless ``dim`` is an axis of the floating-point tensor ``x``."""
    check_floating(name, x)
    dim = whole_number("dim", dim)
    if x.ndim == 0 or not -x.ndim <= dim < x.ndim:
        raise ValueError(
            f"`dim` must name the axis of the classes among the {x.ndim} of `{name}`, got {dim}"
        )


def check_floating(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is a floating-point tensor."""
    is_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(
            f"`{name}` must be floating point, got {x.dtype}; for counts call entropy_from_counts"
        )
