"""What the subcommands say and how: notes, progress bars, tables, and errors without traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """Input that cannot be used; the command prints the message and exits with code 2."""


def note(text: str) -> None:
    """One line for the person at the terminal; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def progress_bar(quiet: bool, **options: Any) -> Any:
    """A tqdm bar, or one that shows nothing where that is asked for or tqdm is not installed."""
    if quiet:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()
    pace = 0.5 if sys.stderr.isatty() else 10.0  # seconds between updates; few for a log file
    return tqdm(file=sys.stderr, dynamic_ncols=True, mininterval=pace, **options)


class _NoBar:
    n = 0.0

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: float = 1) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as aligned lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
