"""The course of a training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .canvas import LINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]


def curves(
    records: Record | Sequence[Record],
    ax: Axes | None = None,
    *,
    over: Literal["step", "seconds"] = "step",
) -> Axes:
    """Training loss (line) and validation loss (dots) of one or more runs of ``xent train``.

    Args:
        records: what ``record.json`` of a run holds, or several of them.
        ax: where to draw; by default a new figure that belongs to no window.
        over: the horizontal axis.

    Returns:
        The axes; ``ax.figure.savefig("curves.png")`` writes them to a file.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:
        >>> history = {"loss": [2.0, 1.0], "seconds": [0.1, 0.2],
        ...            "validation": [{"step": 2, "seconds": 0.2, "nats": 1.5}]}
        >>> curves({"settings": {"head": "xent"}, "history": history}).get_xlabel()
        'step'
    """
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(8, 5), layout="constrained").subplots()
    records = [records] if isinstance(records, Mapping) else records
    for i, record in enumerate(records):
        _draw(record, ax, over, i)
    ax.set_xlabel(over)
    ax.set_ylabel("loss, nats per token")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def _draw(record: Record, ax: Axes, over: str, number: int) -> None:
    # Runs that differ in the head alone coincide: different dashes, and rings around the dots.
    color, line = f"C{number}", LINES[number % len(LINES)]
    history, head = record["history"], record["settings"]["head"]
    loss = history["loss"]
    x = history["seconds"] if over == "seconds" else range(1, len(loss) + 1)
    ax.plot(x, loss, color=color, alpha=0.2, linewidth=0.8)
    ax.plot(x, _smooth(loss), line, color=color, label=f"{head}: training")
    points = history["validation"]
    ax.plot(
        [p[over] for p in points], [p["nats"] for p in points], "o", color=color,
        markersize=5 + 4 * number, markerfacecolor="none" if number else color,
        label=f"{head}: validation",
    )  # fmt: skip


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over about 2 % of the run, started without bias towards zero."""
    keep = 1 - 1 / max(1.0, 0.02 * len(values))
    total = weight = 0.0
    smooth = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight)
    return smooth
