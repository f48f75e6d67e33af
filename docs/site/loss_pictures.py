"""Pictures of the losses: value and gradient, as SVG for a light page and for a dark one."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from loss_settings import SETTINGS, SPECIAL, Special
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from start_picture import DARK, INK, darkened
from torch import Tensor

import xent.plot
from xent.losses import CATALOG
from xent.plot.canvas import COLORS, LINES, STYLE

# Losses without a picture, and why.
WITHOUT = {
    "hardest_loss": "It is a mean over the hardest rows of a batch, not a function of one row.",
    "sparse_cross_entropy": "It depends on a list of probabilities for each row.",
    "wordtree_cross_entropy": "It is cross-entropy at each step of a path through a tree.",
    "yolo_loss": "It is a sum of cross-entropies over the cells of a grid.",
}
ALONE = {"energy_loss", "entropy_loss"}  # cross-entropy beside these would mean nothing
BASELINES = {"classes": "cross_entropy", "binary": "binary_cross_entropy_with_logits"}
POINTS = 121
SMALL = 200, 110  # the size of a thumbnail


class Picture(NamedTuple):
    """The drawings of a loss as SVG, by file name ending, and a description in words."""

    drawings: dict[str, str]
    alt: str


def picture(name: str) -> Picture:
    """Draw a loss; a name of :data:`WITHOUT` has no picture."""
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with style.context(STYLE), mpl.rc_context(options):
        figure = Figure(figsize=(7.0, 3.1))
        figure.subplots_adjust(left=0.11, right=0.985, top=0.9, bottom=0.16, wspace=0.3)
        axes = figure.subplots(1, 2)
        what = _special(SPECIAL[name], axes) if name in SPECIAL else _ordinary(name, axes)
        curve = axes[0].lines[0].get_xydata()
        whole, small = _svg(figure), _thumbnail(axes[0])
    drawings = {"light": whole, "dark": _with_dark_words(whole)}
    drawings |= {"thumb-light": small, "thumb-dark": darkened(small)}
    return Picture(drawings, f"Loss and gradient of {name} against {what}: {_in_words(curve)}.")


def _ordinary(name: str, axes: Any) -> str:
    """Draw a loss of one row, or of one element, against the probability of its target."""
    member = CATALOG[name]
    loss: Any = partial(member.function, **SETTINGS.get(name, {}))
    baseline = BASELINES[member.targets]
    beside = [] if name in ALONE or name == baseline else [baseline]
    xent.plot.loss_curves(loss, *beside, axes=axes)
    for axis in axes:
        axis.lines[0].set_zorder(3)
        axis.title.set_fontsize("small")
    legend = axes[0].get_legend()
    legend.get_texts()[0].set_text(name)
    if not beside:
        legend.remove()
    return "the probability of the target"


def _special(special: Special, axes: Any) -> str:
    """Draw what :data:`SPECIAL` says."""
    low, high = special.ends
    x = torch.linspace(low, high, POINTS, dtype=torch.float64)
    for (label, loss), line, color in zip(special.curves.items(), LINES, COLORS, strict=False):
        value, slope = _sample(loss, x)
        for axis, y in zip(axes, (value, slope), strict=True):
            axis.plot(x.tolist(), y.tolist(), line, color=color, linewidth=1.8, label=label)
    titles = (special.title, "its gradient")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.set_xlabel(special.over)
        axis.grid(alpha=0.3)
        axis.axhline(0, color="black", linewidth=0.8, zorder=1)
    axes[0].set_ylabel("loss")
    axes[1].set_ylabel(f"d loss / d {special.variable}")
    if len(special.curves) > 1:
        axes[0].legend()
    return special.over


def _sample(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and derivative at each place."""
    pairs = []
    for place in x:
        here = place.clone().requires_grad_()
        value = loss(here)
        pairs.append((value.detach(), torch.autograd.grad(value, here)[0]))
    values, slopes = zip(*pairs, strict=True)
    return torch.stack(values), torch.stack(slopes)


def _thumbnail(axis: Axes) -> str:
    """The curves of the loss alone, without numbers, as SVG."""
    width, height = SMALL
    shapes = [f'<path d="M3 0V{height - 3}H{width}" stroke="#999999"/>']
    for line in reversed(axis.lines):
        if len(line.get_xdata()) > 2:  # the line at 0 has two points
            places = axis.transAxes.inverted().transform(
                axis.transData.transform(line.get_xydata())
            )
            points = [(3 + x * (width - 3), (1 - y) * (height - 3)) for x, y in places[::2]]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            color = to_hex(line.get_color())
            dashes = "" if line.get_linestyle() == "-" else ' stroke-dasharray="6 4"'
            shapes.append(f'<polyline points="{path}" stroke="{color}" stroke-width="2"{dashes}/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" fill="none">'
    return "\n".join([head, *shapes, "</svg>\n"])


def _svg(figure: Figure) -> str:
    """The figure as SVG with text as text, on no background, without a date."""
    data = io.StringIO()
    figure.savefig(data, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", data.getvalue())


def _with_dark_words(svg: str) -> str:
    """Return the drawing for a dark page, with a colour for words, which have none in the file."""
    return darkened(svg).replace("<svg ", f'<svg fill="{DARK[INK]}" ', 1)


def _in_words(curve: Any) -> str:
    """Return words for three values of the curve, a quarter, half and three quarters along."""
    places = [curve[round(share * (len(curve) - 1))] for share in (0.25, 0.5, 0.75)]
    return ", ".join(f"the loss is {y:.3g} at {round(x, 2) + 0:g}" for x, y in places)
