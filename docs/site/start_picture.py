"""The picture of the first page: four losses, as SVG for a light page and for a dark one.

``python docs/site/start_picture.py`` writes the copies that README shows.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
from matplotlib import style
from matplotlib.figure import Figure
from saved import save_all
from sphinx.application import Sphinx

import xent.plot
from xent.plot.canvas import STYLE, rendered

LOSSES = ("cross_entropy", "focal_loss", "generalized_cross_entropy", "mae_loss")
FOLDER = "drawn"  # beside the pages; git ignores it
# The colours of a dark page in place of those of a light one, in the letters of an SVG file.
INK = "#24272d"  # of words; black ones would have no colour in the file
DARK = {
    INK: "#dfe2e8", "#000000": "#9aa0ad", "#ffffff": "#121318", "#999999": "#6b7280",
    "#b0b0b0": "#6b7280", "#d9d9d9": "#343843",
    "#0072b2": "#62b8f0", "#d55e00": "#f5a742", "#009e73": "#3fc79a", "#cc79a7": "#e3a3c8",
}  # fmt: skip


def drawings() -> dict[str, str]:
    """The two files by name."""
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    plain = {"svg.hashsalt": "start", "axes.spines.top": False, "axes.spines.right": False}
    with style.context(STYLE), mpl.rc_context({**ink, **plain}):
        figure = Figure(figsize=(9.0, 3.5), layout="constrained")
        axes = figure.subplots(1, 2)
        xent.plot.loss_curves(*LOSSES, axes=axes)
        light = rendered(figure, "svg", transparent=True, metadata={"Date": None}).decode()
    return {"losses-light.svg": light, "losses-dark.svg": darkened(light)}


def darkened(svg: str) -> str:
    """Return a drawing in the colours of a dark page."""
    return re.sub("|".join(DARK), lambda found: DARK[found[0]], svg)


def setup(app: Sphinx) -> dict[str, bool]:
    """Draw before the pages are read."""
    app.connect("builder-inited", lambda app: save_all(Path(app.srcdir) / FOLDER, drawings()))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    save_all(Path(__file__).parents[1] / "pictures", drawings())
