"""What the pictures share: axes of their own, and colours that everyone can tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The palette of Okabe and Ito, dark ones first; its yellow is too faint for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")  # so that of curves that coincide both are seen


def styles() -> Iterator[tuple[str, str]]:
    """Line style and colour for one curve after the other; 28 differ."""
    return zip(cycle(LINES), cycle(COLORS))


def new_axes(width: float, height: float, columns: int = 1) -> list[Axes]:
    """Axes side by side on a new figure without a window; the size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return list(figure.subplots(1, columns, squeeze=False)[0])
