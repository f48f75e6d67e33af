"""Loss and gradient against the probability of the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .canvas import new_axes, styled, styles
from .loss_names import Curve, make_curve, read_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Over = Literal["prob", "log-odds"]

POINTS = 193
FARTHEST = 8.0  # log-odds at the edge of the picture
UNLIKE = 10.0  # ratio of sizes from which the smaller curve looks flat


@styled
def loss_curves(
    *losses: str | Callable[..., Any],
    axes: Sequence[Axes] | None = None,
    over: Over = "prob",
    classes: int | None = None,
    target: float = 1.0,
) -> tuple[Axes, Axes]:
    """Loss and gradient of any losses against the probability of the target, or its log-odds.

    Each point is a call with one row of logits. The logits of all classes but the target are equal,
    so the probability of the target fixes the row. The gradient is the derivative by the logit of
    the target (for a sigmoid loss, by the only logit).

    Args:
        *losses: names with hyperparameters, ``"focal_loss:gamma=2"``; or functions of ``(input,
            target)``, :func:`functools.partial` objects, modules of :mod:`xent.nn`.
        axes: two to draw on, for the loss and for the gradient; by default new ones.
        over: the horizontal axis, ``"prob"`` or ``"log-odds"``.
        classes: number of classes; by default what vectors among the hyperparameters ask for, else
            10.
        target: for sigmoid losses: the target of the element, in [0, 1].

    Returns:
        Both axes. Where one curve is more than ten times as large as another, the axis is
        logarithmic far from 0, so that both can be read.

    Raises:
        ValueError: for an unknown loss or hyperparameter, for losses that are no function of a
            single row (as losses of pairs), and for bad values.
        ImportError: if matplotlib is not installed.

    Example:
        >>> from xent.plot import loss_curves
        >>> value, slope = loss_curves("cross_entropy", "focal_loss:gamma=0.5", "focal_loss")
        >>> [text.get_text() for text in value.get_legend().get_texts()]
        ['cross_entropy', 'focal_loss, gamma=0.5', 'focal_loss']
    """
    if not losses:
        raise ValueError("name at least one loss to draw")
    chosen = [read_curve(loss) if isinstance(loss, str) else make_curve(loss) for loss in losses]
    _check(chosen, over, target)
    count = _classes(chosen, classes)
    value_axis, slope_axis = new_axes(9.5, 4.4, 2) if axes is None else axes
    log_odds = _positions(over)
    across = torch.sigmoid(log_odds) if over == "prob" else log_odds
    depends, shown, sloped = False, [], []
    for curve, (line, color) in zip(chosen, styles(), strict=False):
        values, slopes = _sample(curve, log_odds, count, target)
        look = {"linestyle": line, "color": color, "linewidth": 1.8}
        value_axis.plot(across.tolist(), values.tolist(), label=curve.label, **look)
        slope_axis.plot(across.tolist(), slopes.tolist(), label=curve.label, **look)
        inside = (across >= 0.01) & (across <= 0.99) if over == "prob" else slice(None)
        shown.append(values[inside])
        sloped.append(slopes[inside])
        depends = depends or _depends_on_classes(curve, log_odds, count, values)
    if over == "prob":  # near the ends an unbounded loss would leave no room for other curves
        _fit(value_axis, torch.cat(shown))
    unlike = _scale(value_axis, shown), _scale(slope_axis, sloped)
    _label(value_axis, slope_axis, chosen, over, target, count if depends else None)
    for ax, logarithmic in zip((value_axis, slope_axis), unlike, strict=True):
        if logarithmic:
            ax.set_ylabel(f"{ax.get_ylabel()}, logarithmic far from 0")
    return value_axis, slope_axis


def _check(chosen: list[Curve], over: str, target: float) -> None:
    if over not in ("prob", "log-odds"):
        raise ValueError(f'`over` must be "prob" or "log-odds", got {over!r}')
    if not 0 <= target <= 1:
        raise ValueError(f"`target` must be between 0 and 1, got {target}")
    for curve in chosen:
        if curve.targets == "other":
            raise ValueError(
                f"{curve.label} has no curve: it is no function of one row of logits and its target"
            )
        if curve.targets != "binary" and target != 1:
            raise ValueError(
                f"`target` is for sigmoid losses; {curve.label} takes a class. Draw it apart"
            )


def _classes(chosen: list[Curve], classes: int | None) -> int:
    asked = {curve.classes: curve.label for curve in chosen if curve.classes}
    if classes is None and len(asked) > 1:
        told = " and ".join(f"{label} for {count}" for count, label in asked.items())
        raise ValueError(f"the losses are for different numbers of classes: {told}")
    count = next(iter(asked), 10) if classes is None else classes
    if count < 2:
        raise ValueError(f"`classes` must be at least 2, got {count}")
    return count


def _positions(over: Over) -> Tensor:
    """Log-odds of the target, evenly spaced; over probabilities the ends are denser."""
    edge = torch.tensor(FARTHEST, dtype=torch.float64, device="cpu")
    if over == "log-odds":
        return torch.linspace(-FARTHEST, FARTHEST, POINTS, dtype=torch.float64, device="cpu")
    # Points are denser at both ends, where a logarithm turns.
    turn = torch.linspace(0, math.pi, POINTS, dtype=torch.float64, device="cpu")
    p = (1 - turn.cos()) / 2
    return torch.logit(p.clamp(torch.sigmoid(-edge).item(), torch.sigmoid(edge).item()))


def _sample(curve: Curve, log_odds: Tensor, classes: int, target: float) -> tuple[Tensor, Tensor]:
    """Loss and derivative at each log-odds, by a call per row, since a loss may compare rows."""
    values, slopes = [], []
    for d in log_odds.unbind():
        row = torch.zeros(
            1, 1 if curve.targets == "binary" else classes, dtype=torch.float64, device="cpu"
        )
        row[0, 0] = d if curve.targets == "binary" else d + math.log(classes - 1)
        row.requires_grad_()
        value = curve.call(row, _target(curve, row, target)).sum()
        (slope,) = torch.autograd.grad(value, row)
        values.append(value.item())
        slopes.append(slope[0, 0].item())
    return torch.tensor(values, dtype=d.dtype, device="cpu"), torch.tensor(
        slopes, dtype=d.dtype, device="cpu"
    )


def _target(curve: Curve, row: Tensor, target: float) -> Tensor:
    if curve.targets == "binary":
        return torch.full_like(row, target)
    if curve.targets == "soft":
        return torch.eye(row.shape[1], dtype=row.dtype, device="cpu")[:1]
    return torch.zeros(1, dtype=torch.int64, device="cpu")


def _depends_on_classes(curve: Curve, log_odds: Tensor, classes: int, values: Tensor) -> bool:
    """Return True if the loss is more than a function of the log-odds of the target."""
    if curve.targets == "binary":
        return False
    if curve.classes is not None:
        return True
    few = log_odds[:: POINTS // 8]
    others, _ = _sample(curve, few, classes + 1, 1.0)
    return not torch.allclose(others, values[:: POINTS // 8], rtol=1e-9, atol=1e-12)


def _fit(ax: Axes, values: Tensor) -> None:
    """Make the vertical axis end a little beyond the values, and show 0."""
    values = values[values.isfinite()]
    least, most = min(0.0, values.min().item()), values.max().item()
    margin = 0.04 * (most - least)
    ax.set_ylim(least - margin, most + margin)


def _scale(ax: Axes, curves: list[Tensor]) -> bool:
    """Make curves of unlike sizes readable: linear about 0, logarithmic far from 0.

    Returns:
        True if the axis was changed; False if the sizes are alike.
    """
    curves = [values[values.isfinite()] for values in curves]
    sizes = [size for values in curves if (size := values.abs().max().item()) > 0]
    if not sizes or max(sizes) <= UNLIKE * min(sizes):
        return False
    width = min(sizes) / 2
    ax.set_yscale("asinh", linear_width=width)
    ends = [sign * max((sign * values).max().item() for values in curves) for sign in (-1, 1)]
    low, high = (1.2 * end + sign * 0.2 * width for end, sign in zip(ends, (-1, 1), strict=True))
    low, high = min(low, -0.2 * width), max(high, 0.2 * width)
    ax.set_ylim(low, high)
    decades = range(math.floor(math.log10(width)), math.ceil(math.log10(max(-low, high))))
    steps = (1, 2, 5) if len(decades) < 4 else (1,)
    sizes = [step * 10.0**k for k in decades for step in steps if step * 10.0**k >= 0.8 * width]
    ticks = [x for x in (0.0, *sizes, *(-size for size in sizes)) if low < x < high]
    ax.set_yticks(ticks, [f"{x:g}".replace("-", "\N{MINUS SIGN}") for x in ticks])
    ax.minorticks_off()
    return True


def _label(
    value_axis: Axes,
    slope_axis: Axes,
    chosen: list[Curve],
    over: Over,
    target: float,
    classes: int | None,
) -> None:
    whose = "the target" if target == 1 else "label 1"
    name = "probability" if over == "prob" else "log-odds"
    for ax in (value_axis, slope_axis):
        ax.set_xlabel(f"{name} of {whose}" + " (nats)" * (over == "log-odds"))
        ax.grid(alpha=0.3)
        ax.axhline(0, color="black", linewidth=0.8, zorder=1)
        if over == "prob":
            ax.set_xlim(0, 1)
    binary = all(curve.targets == "binary" for curve in chosen)
    notes = ["loss of an element" if binary else "loss of a row"]
    if any(curve.classes for curve in chosen):  # the classes differ, so the note says which
        notes[0] = "loss of a row of class 0"
    if target != 1:
        notes.append(f"target {target:g}")
    if classes is not None:
        notes.append(f"{classes} classes, the others equally likely")
    value_axis.set_title(", ".join(notes), fontsize="medium")
    value_axis.set_ylabel("loss (nats)" if all(curve.in_nats for curve in chosen) else "loss")
    logits = "logit" if binary else "logit of the target"
    slope_axis.set_title("its gradient", fontsize="medium")
    slope_axis.set_ylabel(f"d loss / d {logits}")
    value_axis.legend(fontsize="small")
