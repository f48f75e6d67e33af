"""Units of information, and checks of pairs of distributions."""

from __future__ import annotations

import math
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from .._check import one_of
from .._probabilities import first_row, read_distribution, read_masses, sums_off
from ..engines.modes import can_look_at

Unit = Literal["nat", "bit"]
Sums = Literal["must be 1", "normalize", "as given"]

NATS_PER_BIT = math.log(2)
"""The natural logarithm of 2: a bit is 0.693 nats."""


def nats_per(unit: str) -> float:
    """Return the number of nats in one unit."""
    one_of("unit", unit, ("nat", "bit"))
    return NATS_PER_BIT if unit == "bit" else 1.0


def in_unit(nats: Tensor, unit: str, dtype: torch.dtype) -> Tensor:
    """Convert float64 nats into another unit and dtype; adding 0 turns -0 into 0."""
    return (nats / nats_per(unit) + 0.0).to(dtype)


def read_pair(
    p: Tensor, q: Tensor, dim: int, from_logits: bool, sums: Sums | None = None
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Two distributions, checked, and the dtype of the result.

    Args:
        p: the first, as the caller gave it.
        q: the second.
        dim: the axis of the classes.
        from_logits: whether both are logits.
        sums: as for ``cross_entropy_of``; None for functions that have no such argument.
    """
    if sums is not None:
        one_of("sums", sums, get_args(Sums))
    x, y = _read("p", p, dim, from_logits, sums), _read("q", q, dim, from_logits, sums)
    if p.shape != q.shape:
        raise ValueError(
            f"`p` and `q` must have the same shape, got {tuple(p.shape)} and {tuple(q.shape)}; "
            f"to compare many with one, expand the one: q.expand_as(p)"
        )
    return x, y, torch.promote_types(p.dtype, q.dtype)


def _read(name: str, p: Tensor, dim: int, from_logits: bool, sums: Sums | None) -> Tensor:
    """Probabilities or logits of one argument, checked as ``sums`` says: float64, classes last."""
    if from_logits or sums in (None, "must be 1"):
        hint = '; or say what to do: sums="normalize", or sums="as given"' if sums else ""
        return read_distribution(name, p, dim, from_logits, hint)
    x = read_masses(name, p, dim)  # (..., C)
    if sums == "normalize":
        return x / x.sum(-1, keepdim=True)
    total, off = sums_off(x, p.dtype)
    if can_look_at(off) and bool(off.any()):
        row = first_row(off)
        where = f", first row {row} with a sum of" if row else ": its sum is"
        warnings.warn(
            f"{int(off.sum())} of {off.numel()} rows of `{name}` do not sum to 1{where} "
            f"{total[off][0].item():.6g}; taken as given, so the result is no cross-entropy of "
            "distributions",
            stacklevel=5,
        )
    return x
