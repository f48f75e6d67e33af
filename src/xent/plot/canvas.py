"""Parts that the pictures share: axes, colours that all readers can tell apart, text."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from functools import cache, wraps
from inspect import signature
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .._printable import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

P = ParamSpec("P")
R = TypeVar("R")

STYLE = Path(__file__).with_name("xent.mplstyle")  # for matplotlib.style.use
# The colours of that file, for what is no curve; a test compares the two.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")  # so that two curves on the same place can both be seen
LONGEST = 40  # most characters of a name, so that the picture has room


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a function draw in the style of xent, unless its caller gives axes to draw on."""

    @wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> R:
        given = signature(draw).bind(*args, **options).arguments
        if given.get("ax") is not None or given.get("axes") is not None:
            return draw(*args, **options)
        from matplotlib import style

        with style.context(STYLE):
            return draw(*args, **options)

    return drawn


def styles() -> Iterator[tuple[str, str]]:
    """Line style and colour for one curve after the other; 28 differ."""
    return zip(cycle(LINES), cycle(COLORS))


def new_axes(width: float, height: float, columns: int = 1) -> list[Axes]:
    """Axes side by side on a new figure without a window; the size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return list(figure.subplots(1, columns, squeeze=False)[0])


def shown(name: object, most: int = LONGEST) -> str:
    """Return a name as text that Matplotlib draws unchanged; the middle of a long one is cut.

    Matplotlib reads text between dollars as a formula, and leaves names that begin with an
    underscore out of legends. Letters that no installed font has become escape sequences, because
    empty boxes could not be told apart.
    """
    known = (c if ord(c) < 128 or _family_with(c) else ascii(c)[1:-1] for c in str(name))
    text = one_line("".join(known), most)
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def rendered(figure: Any, format: str = "png", **options: Any) -> bytes:
    """A picture as the content of a file.

    Args:
        figure: of Matplotlib.
        format: of the file, as its suffix names it.
        **options: of its ``savefig``.

    Raises:
        ValueError: if there is no such format.
    """
    from matplotlib.text import Text

    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # warnings of the first drawing
        figure.draw_without_rendering()  # makes the labels of ticks
        for text in figure.findobj(Text):
            families = map(_family_with, filter(lambda c: ord(c) > 127, text.get_text()))
            text.set_family([*dict.fromkeys([*text.get_family(), *filter(None, families)])])
        figure.savefig(data, format=format, **options)
    return data.getvalue()


@cache
def _family_with(character: str) -> str | None:
    """The name of an installed font that can draw a character, Matplotlib's own first."""
    from matplotlib import font_manager

    own = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).family_name
    fonts = sorted(font_manager.fontManager.ttflist, key=lambda font: font.name != own)
    for entry in fonts:
        if entry.name.startswith("Last Resort"):  # this font draws a box for every character
            continue
        try:
            font = font_manager.get_font(entry.fname)
        except (OSError, RuntimeError):  # the list may be older than the fonts
            continue
        # Fonts of pictures in one size, as those of emoji are, have no outlines to draw.
        if font.scalable and font.get_char_index(ord(character)):
            return entry.name
    return None
