"""Text that others wrote, such as names of files, columns and classes, made safe to print."""

from __future__ import annotations

import unicodedata
from functools import cache

# Categories of characters that control a terminal, are invisible, or change the direction of
# writing. Joiners are printed, because emoji and Persian need them; so are characters of private
# use, because icons are among them.
HIDDEN = {"Cc", "Cf", "Cn", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"


class _Escapes(dict[int, str]):
    """Table for ``str.translate``: characters by code point, hidden ones as escape sequences."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        hidden = unicodedata.category(character) in HIDDEN and character not in JOINERS
        self[code] = ascii(character)[1:-1] if hidden else character
        return self[code]


_ONE_LINE = _Escapes()
_LINES = _Escapes({ord(character): character for character in "\n\t"})


def printable(text: str) -> str:
    """The text with control characters as escape sequences; line breaks and tabs stay."""
    return text.translate(_LINES)


def one_line(text: str, most: int | None = None) -> str:
    """Return text as :func:`printable` does, with escape sequences for line breaks and tabs, too.

    Args:
        text: any text.
        most: the largest length; the middle of a longer text is left out.
    """
    text = text.translate(_ONE_LINE)
    if most is None or len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[-(most // 2) :]}"


def columns(text: str) -> int:
    """Width of a text on a terminal: Chinese characters take two columns, marks none."""
    return sum(_columns_of(character) for character in text)


@cache
def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 1 + (unicodedata.east_asian_width(character) in "WF")
