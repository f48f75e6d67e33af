"""The picture of a loss: its errors over margin and type, beside those of others."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..harness.internals import rendered
from .rows import MARGINS
from .run import DTYPES

WHAT = ("value", "gradient")
TICKS = (0.5, 1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7)


def picture(loss: str, lines: list[dict[str, Any]]) -> bytes:
    """Return a PNG: a column for each contestant, a row for values and one for gradients."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    who = list(dict.fromkeys(line["by"] for line in lines))
    figure = Figure(figsize=(1.4 + 2.1 * len(who), 3.4), dpi=80, layout="constrained")
    axes = figure.subplots(2, len(who), squeeze=False, sharex=True, sharey=True)
    norm = LogNorm(TICKS[0], TICKS[-1], clip=True)
    drawn = None
    for column, by in enumerate(who):
        for row, what in enumerate(WHAT):
            ax = axes[row][column]
            drawn = ax.imshow(_grid(lines, by, what), norm=norm, cmap="cividis", aspect="auto")
            ax.set_facecolor("0.85")  # where nothing was measured
            if row == 0:
                ax.set_title(by, fontsize=10)
    _label(axes)
    assert drawn is not None
    bar = figure.colorbar(drawn, ax=axes.ravel().tolist(), ticks=TICKS, pad=0.01)
    bar.set_label("worst error, ulps", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.minorticks_off()
    figure.suptitle(loss, fontsize=11)
    return rendered(figure, pil_kwargs={"optimize": True})


def _grid(lines: list[dict[str, Any]], by: str, what: str) -> np.ndarray:
    """Return errors, (types, margins), NaN where there are none."""
    grid = np.full((len(DTYPES), len(MARGINS)), np.nan)
    for line in lines:
        if line["by"] == by:
            grid[DTYPES.index(line["dtype"])] = [np.nan if x is None else x for x in line[what]]
    return np.maximum(grid, TICKS[0])


def _label(axes: Any) -> None:
    for row, what in enumerate(WHAT):
        axes[row][0].set_yticks(range(len(DTYPES)), DTYPES, fontsize=7)
        axes[row][0].set_ylabel(what, fontsize=9)
    for ax in axes[-1]:
        ax.set_xticks(range(len(MARGINS)), MARGINS, fontsize=6, rotation=90)
        ax.set_xlabel("margin, nats", fontsize=8)
