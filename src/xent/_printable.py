"""Text of others, such as names of files, columns and classes, made fit to be shown."""

from __future__ import annotations

import unicodedata
from functools import cache

# What acts on a terminal, hides, or turns the direction of writing; but emoji and Persian are
# spelt with joiners, and icons are characters of private use.
HIDDEN = {"Cc", "Cf", "Cn", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"


class _Escapes(dict[int, str]):
    """Characters by code point, or their escape sequences as source text has them."""

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
        text: of others.
        most: of a longer text the middle is left out.
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
