"""Text of others, such as names of files, columns and classes, made fit to be shown."""

from __future__ import annotations

import unicodedata

# What acts on a terminal, hides, or turns the direction of writing; but emoji and Persian are
# spelt with joiners, and icons are characters of private use.
HIDDEN = {"Cc", "Cf", "Cn", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"


class _Escapes(dict[int, str]):
    """By code point the character, or its escape sequence as source text has it."""

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


def one_line(text: str) -> str:
    """As :func:`printable`, with line breaks and tabs as escape sequences, too."""
    return text.translate(_ONE_LINE)
