"""Suggestions for messages: known names that look like an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message, ``; did you mean ...?``; empty if no known name looks like this one."""
    close = nearest(name, known)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three names that look like this one, the nearest first."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 3, 0.5)
    initials = ["".join(word[:1] for word in n.split("_")) for n in names]
    close += [
        n
        for n, letters in zip(names, initials, strict=True)
        if name and n not in close and (name in n or letters.startswith(name))
    ][: 3 - len(close)]
    return close
