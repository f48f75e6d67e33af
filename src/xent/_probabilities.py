"""Checks of probabilities that every room shares, with one tolerance for rounding.

Values are read only where that is possible and costs no wait for a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._check import is_tensor, whole_number
from .engines.modes import can_look_at, refuse_where, widened


def rounding(dtype: torch.dtype = torch.float32) -> float:
    """Tolerance: how far the sum of a distribution may be from 1, a log-probability above 0.

    The tolerance is ``eps^(2/3)``, two thirds of the digits that a type has: 2e-5, 1e-2 and 4e-2
    for float32, float16 and bfloat16. That is well above the rounding errors of softmax, with any
    number of classes, and below the error of a real mistake. Float64 has the tolerance of float32,
    because its numbers may have been computed in float32.
    """
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) ** (2 / 3)


def sums_to_1(
    name: str, p: Tensor, dtype: torch.dtype | None = None, *, at_most: bool = False, hint: str = ""
) -> None:
    """Raise unless the last axis holds a distribution, or with ``at_most`` a part of one.

    Args:
        name: name of the argument.
        p: the numbers, ``(..., C)``.
        dtype: dtype in which the caller gave the numbers, if ``p`` has another one.
        at_most: whether sums below 1 are allowed.
        hint: text that ends the message.
    """
    if p.device.type != "cpu" or p.numel() == 0:
        return
    p = p.detach()
    total = p.sum(-1, dtype=torch.float64)
    off = (total - 1).clamp(min=0) if at_most else (total - 1).abs()
    wanted = (
        f"`{name}` must hold probabilities, none below 0 or NaN, and each row must sum to "
        f"{'at most ' * at_most}1"
    )
    bad = (p < 0).any(-1) | ~(off <= rounding(dtype or p.dtype))

    def error() -> ValueError:
        found = f"sums from {total.min():.6g} to {total.max():.6g}, smallest entry {p.min():.4g}"
        row = first_row(bad)
        first = f", first bad row {row} with a sum of {total[bad][0]:.6g}" if row else ""
        return ValueError(
            f"{wanted}; got {found}{first}. Divide each row by its sum, or take the softmax of "
            f"logits{hint}"
        )

    refuse_where(bad, error, wanted)


def first_row(bad: Tensor) -> str:
    """The place of the first of the bad rows, as ``"2"`` or ``"0, 2"``; empty for a single row."""
    return ", ".join(map(str, bad.nonzero()[0].tolist())) if bad.ndim else ""


def probabilities(name: str, p: Tensor, counted: Tensor | None = None) -> None:
    """Raise for a number outside [0, 1] where ``counted``."""
    bad = (p < 0) | (p > 1 + rounding(p.dtype))
    wanted = f"`{name}` must hold probabilities between 0 and 1"
    _refuse(p, bad, counted, wanted, "of logits take the softmax")


def log_probabilities(name: str, x: Tensor, counted: Tensor | None = None) -> None:
    """Raise for a number above 0 where ``counted``."""
    wanted = f"`{name}` must hold log-probabilities, which are at most 0"
    hint = "of probabilities take the logarithm, of logits xent.log_softmax"
    _refuse(x, x > rounding(x.dtype), counted, wanted, hint)


def _refuse(x: Tensor, bad: Tensor, counted: Tensor | None, wanted: str, hint: str) -> None:
    if x.device.type != "cpu":
        return
    bad = (bad if counted is None else bad & counted).detach()

    def error() -> ValueError:
        return ValueError(f"{wanted}, but it holds {x.detach()[bad][0].item():.6g}; {hint}")

    refuse_where(bad, error, wanted)


# ---- distributions along an axis ---------------------------------------------------------------


def read_distribution(name: str, x: Tensor, dim: int, from_logits: bool, hint: str = "") -> Tensor:
    """Distributions along ``dim``, checked: in float64, classes last. Logits are not checked."""
    wide = read_masses(name, x, dim, from_logits)
    if not from_logits and can_look_at(wide):
        total, off = sums_off(wide, x.dtype)
        if bool(off.any()):
            row = first_row(off)
            where = f"; the first row that does not is row {row}, whose sum is" if row else ", got"
            raise ValueError(
                f"`{name}` must sum to 1 along `dim`{where} {total[off][0].item():.9g}. "
                f"Divide it by {name}.sum(dim, keepdim=True), in the precision it is used in; for "
                f"logits pass from_logits=True, for counts call entropy_from_counts{hint}"
            )
    return wide


def read_masses(name: str, x: Tensor, dim: int, from_logits: bool = False) -> Tensor:
    """Numbers along ``dim``, none negative: in float64, classes last. NaN passes."""
    check_axis(name, x, dim)
    wide = widened(x).movedim(dim, -1)
    if not from_logits and can_look_at(wide) and bool((wide < 0).any()):
        raise ValueError(
            f"`{name}` holds {wide.min().item():g}, which is no probability; for logits pass "
            f"from_logits=True"
        )
    return wide


def sums_off(p: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The sums of rows, and which of them differ from 1 by more than rounding to a dtype."""
    total = p.sum(-1)
    return total, (total - 1).abs() > rounding(dtype)


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
            f"`{name}` must be floating point, got {x.dtype}; make floats of one-hot rows, for "
            f"counts call entropy_from_counts"
        )
