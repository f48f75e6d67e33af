"""The picture of what classes over ranks cost, as SVG for a light page and for a dark one."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from saved import save_all
from sphinx.application import Sphinx
from start_picture import FOLDER, INK, darkened

from benchmarks.cost_model import (
    BETWEEN,
    ENGINE,
    FLASH,
    FUSED,
    GATHERED,
    INSIDE,
    LOSS_PARALLEL,
    MEGATRON,
    MOST_RANKS,
    ONE_GATHER,
    TITAN,
    TWO_STEPS,
    Case,
    Design,
    Link,
    first_faster,
)  # fmt: skip
from xent.plot.canvas import COLORS, STYLE, rendered

RANKS = [round(2 ** (k / 4)) for k in range(4, 4 * MOST_RANKS.bit_length() - 3)]
TICKS = (2, 8, 64, 512, 4096)
BLUE, ORANGE, GREEN, PINK, AMBER, SKY, BLACK = COLORS
# Line, colour and width of each design.
LOOKS: dict[str, tuple[Design, str, str, float]] = {
    "shard, one gather": (ONE_GATHER, "-", BLUE, 2.6),
    "shard, two steps": (TWO_STEPS, "--", BLUE, 2.6),
    "loss_parallel": (LOSS_PARALLEL, "-", ORANGE, 1.4),
    "Megatron, Liger": (MEGATRON, "-", GREEN, 1.4),
    "Megatron, fused": (FUSED, ":", GREEN, 1.8),
    "torchtitan, 8 chunks": (TITAN, "-.", GREEN, 1.4),
    "TransformerEngine": (ENGINE, "-", PINK, 1.4),
    "flash-attention": (FLASH, "--", PINK, 1.4),
    "all logits gathered": (GATHERED, "-", BLACK, 1.4),
}
# Lines that would lie on that of Megatron.
SAME_BYTES = ("Megatron, fused", "torchtitan, 8 chunks")
SAME_TIME = ("loss_parallel",)


def drawings() -> dict[str, str]:
    """The two files by name."""
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    plain = {"svg.hashsalt": "costs", "axes.spines.top": False, "axes.spines.right": False}
    with style.context(STYLE), mpl.rc_context({**ink, **plain}):
        light = rendered(figure(), "svg", transparent=True, metadata={"Date": None}).decode()
    return {"costs-light.svg": light, "costs-dark.svg": darkened(light)}


def figure() -> Figure:
    """Bytes, and times on two kinds of links, against the number of ranks."""
    case = Case()
    figure = Figure(figsize=(9.2, 4.6), layout="constrained")
    of_bytes, *of_times = figure.subplots(1, 3)
    for name, (design, line, color, width) in LOOKS.items():
        look = {"linestyle": line, "color": color, "linewidth": width, "label": name}
        cases = [case._replace(P=ranks) for ranks in RANKS]
        if name not in SAME_BYTES:
            of_bytes.plot(RANKS, [design.received(one) for one in cases], **look)
        for ax, link in zip(of_times, (INSIDE, BETWEEN) * (name not in SAME_TIME), strict=False):
            ax.plot(RANKS, [1e3 * design.seconds(one, link) for one in cases], **look)
    of_bytes.set(title="bytes that a rank receives", ylabel="bytes")
    for ax, link in zip(of_times, (INSIDE, BETWEEN), strict=True):
        _mark(ax, case, link)
        ax.set(
            title=f"modelled time, {link.name}\n{link.bandwidth / 1e9:.0f} GB/s, "
            f"{1e6 * link.latency:.0f} µs a collective",
            ylabel="ms", ylim=(8e-3, 100),
        )  # fmt: skip
    for ax in (of_bytes, *of_times):
        ax.set(xscale="log", yscale="log", xlabel="ranks")
        ax.set_xticks(TICKS, [str(tick) for tick in TICKS])
        ax.xaxis.minorticks_off()
        ax.grid(alpha=0.3)
    handles = {
        line.get_label(): line for ax in (of_bytes, of_times[0]) for line in ax.lines[: len(LOOKS)]
    }
    figure.legend(
        [handles[name] for name in LOOKS], list(LOOKS), loc="outside lower center", ncols=5
    )
    figure.suptitle(
        f"A model, not a measurement: {case.N} rows, {case.V:,} classes, bfloat16",
        fontsize="medium",
    )
    return figure


def _mark(ax: Axes, case: Case, link: Link) -> None:
    """Mark where other designs become faster than one gather."""
    for design, side in ((TWO_STEPS, 1), (MEGATRON, -1)):
        ranks = first_faster(design, ONE_GATHER, case, link)
        if ranks is None:
            continue
        time = 1e3 * ONE_GATHER.seconds(case._replace(P=ranks), link)
        ax.plot([ranks], [time], "o", color=BLUE, markersize=6, zorder=4)
        ax.annotate(
            f"{ranks} ranks", (ranks, time), (7 * side, -12 * side), textcoords="offset points",
            ha="right" if side < 0 else "left", va="center", fontsize="small",
        )  # fmt: skip


def setup(app: Sphinx) -> dict[str, bool]:
    """Draw before the pages are read."""
    app.connect("builder-inited", lambda app: save_all(Path(app.srcdir) / FOLDER, drawings()))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
