"""The course of a training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .canvas import COLORS, LINES, new_axes, shown, styled, styles

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

Record = Mapping[str, Any]


@styled
def curves(
    records: Record | Sequence[Record],
    ax: Axes | None = None,
    *,
    over: Literal["step", "epoch", "seconds"] | None = None,
    labels: Sequence[str] | None = None,
) -> Axes:
    """Training loss (line) and validation loss (dots) of one or more runs.

    Args:
        records: what ``record.json`` of a run of ``xent train`` holds, or the ``to_dict()`` of a
            :class:`xent.learn.TrainingRecord`, whose best epoch is starred; or a list of either.
        ax: where to draw; by default a new figure that belongs to no window.
        over: the horizontal axis: ``"seconds"``, or what the records count, ``"step"`` or
            ``"epoch"``, which is the default.
        labels: a name for each run; by default the head of the run, or nothing.

    Returns:
        The axes; ``ax.figure.savefig("curves.png")`` writes them to a file.

    Raises:
        ValueError: if ``over`` is not what these records count, or there are not as many labels.
        ImportError: if matplotlib is not installed.

    Example:
        >>> from xent.plot import curves
        >>> history = {"loss": [2.0, 1.0], "seconds": [0.1, 0.2],
        ...            "validation": [{"step": 2, "seconds": 0.2, "nats": 1.5}]}
        >>> curves({"settings": {"head": "xent"}, "history": history}).get_xlabel()
        'step'
        >>> epochs = [{"epoch": 1, "seconds": 0.1, "loss": 2.0, "validation_loss": 2.1}]
        >>> curves({"epochs": epochs, "best_epoch": 1}).get_xlabel()
        'epoch'
    """
    records = [records] if isinstance(records, Mapping) else records
    runs = [_of_epochs(r) if "epochs" in r else _of_steps(r) for r in records]
    counted = runs[0].counted if runs else "step"
    if any(run.counted != counted for run in runs) or over not in (None, "seconds", counted):
        raise ValueError(f"`over` cannot be {over!r} for all of these records")
    if labels is not None and len(labels) != len(runs):
        raise ValueError(f"`labels` must name each of the {len(runs)} runs, got {len(labels)}")
    ax = ax or new_axes(8, 5)[0]
    for i, run in enumerate(runs):
        label = labels[i] if labels is not None else run.label
        _draw(run, ax, over == "seconds", f"{shown(label)}: " if label else "", i)
    ax.set_xlabel(over or counted)
    ax.set_ylabel(runs[0].unit if runs else "loss")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


class _Run(NamedTuple):
    """The curves of a record; a point of validation is (count, seconds, loss)."""

    label: str
    counted: str
    unit: str
    loss: Sequence[float]
    seconds: Sequence[float]
    validation: list[tuple[float, float, float]]
    best: int | None = None  # index of the best point


def _of_steps(record: Record) -> _Run:
    history = record["history"]
    points = [(p["step"], p["seconds"], p["nats"]) for p in history["validation"]]
    loss, seconds = history["loss"], history["seconds"]
    return _Run(record["settings"]["head"], "step", "loss, nats per token", loss, seconds, points)


def _of_epochs(record: Record) -> _Run:
    epochs, name = record["epochs"], "validation_loss"
    points = [(e["epoch"], e["seconds"], e[name]) for e in epochs if name in e]
    loss, seconds = [e["loss"] for e in epochs], [e["seconds"] for e in epochs]
    best = record["best_epoch"]
    return _Run("", "epoch", "loss", loss, seconds, points, best and best - 1)


def _draw(run: _Run, ax: Axes, timed: bool, prefix: str, number: int) -> None:
    color, line = COLORS[number % len(COLORS)], LINES[number % len(LINES)]
    x, loss = run.seconds if timed else range(1, len(run.loss) + 1), run.loss
    dots: dict[str, Any] = {"color": color, "label": f"{prefix}validation", "markersize": 4}
    if run.counted == "step":
        ax.plot(x, loss, color=color, alpha=0.2, linewidth=0.8)  # single batches, no means
        loss = _smooth(loss)
        # Runs that differ only in the head coincide; dashes and rings of other sizes show all.
        dots |= {"markersize": 5 + 4 * number, "markerfacecolor": "none" if number else color}
    ax.plot(x, loss, line, color=color, label=f"{prefix}training")
    at = [(seconds if timed else count, value) for count, seconds, value in run.validation]
    if at:
        ax.plot(*zip(*at, strict=True), "o", **dots)
    if run.best is not None:
        ax.plot(*at[run.best], "*", color=color, markersize=16, markeredgecolor="white")


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over about 2 % of the run, started without bias towards zero."""
    keep = 1 - 1 / max(1.0, 0.02 * len(values))
    total = weight = 0.0
    smooth = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight)
    return smooth


@styled
def learning_curves(
    runs: Mapping[str, Sequence[float] | Sequence[Sequence[float]]],
    ax: Axes | None = None,
    *,
    window: int = 100,
    target: float | None = None,
    unit: str = "episode",
) -> Axes:
    """Returns against episodes, as means of the last returns, for one or more ways to learn.

    Args:
        runs: by name, the returns of one run, or of several, which share a colour. A single run
            shows the returns themselves, too.
        ax: where to draw; by default new axes.
        window: how many returns each mean takes; 1 draws the returns themselves.
        target: a line to reach.
        unit: what the horizontal axis counts.

    Returns:
        The axes.

    Raises:
        ValueError: for a window below 1.
        ImportError: if matplotlib is not installed.

    Example:
        >>> from xent.plot import learning_curves
        >>> ax = learning_curves({"two seeds": [[1, 2, 4], [0, 3, 5]]}, window=2, target=4)
        >>> ax.lines[0].get_ydata().tolist()
        [1.0, 1.5, 3.0]
    """
    import numpy as np

    if window < 1:
        raise ValueError(f"`window` must be at least 1, got {window}")
    ax = ax or new_axes(8, 5)[0]
    for (name, given), (line, color) in zip(runs.items(), styles(), strict=False):
        several = len(given) > 0 and np.ndim(given[0]) > 0
        each: Sequence[Any] = given if several else [given]
        for k, returns in enumerate(each):
            x = range(1, len(returns) + 1)
            if len(runs) == len(each) == 1 and window > 1:
                ax.plot(x, returns, ".", color="0.75", markersize=3, label="each")
            label = shown(name) if k == 0 else None
            ax.plot(x, _last_means(returns, window), line, color=color, label=label)
    if target is not None:
        ax.axhline(target, color="black", linewidth=0.8, label=f"target: {target:g}")
    ax.set_xlabel(unit)
    ax.set_ylabel(f"return, mean of the last {window}" if window > 1 else "return")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def _last_means(values: Sequence[float], window: int) -> np.ndarray:
    """The mean of the last ``window`` values, or of fewer at the start, for each value."""
    import numpy as np

    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=float))])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
