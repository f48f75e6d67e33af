"""Output of the subcommands: results, notes, progress bars, tables, errors."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import IO, Any

from .._printable import columns, one_line, printable

WIDEST = 48  # characters of a cell of a table


class UserError(Exception):
    """Input that cannot be used, or output that cannot be written: a message and exit code 2."""


def say(text: str) -> None:
    """Print a result.

    Raises:
        UserError: if the text cannot be written, as on a full disk.
        BrokenPipeError: if the reader of a pipe is gone.
    """
    _say(printable(text))


def say_json(value: Any) -> None:
    """Print a result as JSON, which has its own escape sequences; raises what :func:`say` does."""
    _say(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def _say(text: str) -> None:
    if sys.stdout is None:
        raise UserError("the result has no place: stdout is closed")
    try:
        _write(sys.stdout, text)
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(sys.stdout)
        raise UserError(f"the result cannot be written to stdout: {error.strerror}") from None


def note(text: str) -> None:
    """Print a line on stderr, for people, if stderr is there; stdout is for results."""
    if sys.stderr is not None:
        with suppress(OSError):
            _write(sys.stderr, printable(text))


def _write(stream: IO[str], text: str) -> None:
    """Print with escape sequences for characters that the encoding of a stream lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def abandon(stream: IO[str] | None) -> None:
    """Discard the rest of a stream that cannot be written to.

    Otherwise the interpreter would flush the stream when it exits, and print an error.
    """
    with suppress(AttributeError, OSError):  # the stream is closed, or no file of the system
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # pyright: ignore


def as_options(message: str, names: Iterable[str]) -> str:
    """Return a message of the library with its arguments named as options of a command.

    Args:
        message: of an exception or a warning.
        names: the arguments that are options; the message may have them in backticks.
    """
    words = "|".join(map(re.escape, names))
    message = message.replace("resume=True", "--resume").replace("np.inf", "inf")
    return re.sub(
        rf"`(?:{words})`|(?<![-\w])(?:{words})(?= must|=|$)",
        lambda found: f"--{found[0].strip('`').replace('_', '-')}",
        message,
    )


def progress_bar(quiet: bool, **options: Any) -> Any:
    """A bar of tqdm, or a bar that shows nothing if ``quiet``, or without tqdm or stderr."""
    if quiet or sys.stderr is None:
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
    """Align rows of cells as lines; only the last cell of a line may be long."""
    rows = [[*(one_line(cell, WIDEST) for cell in row[:-1]), one_line(row[-1])] for row in rows]
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(_padded, row, widths)).rstrip() for row in rows)


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - columns(cell))
