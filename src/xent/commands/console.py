"""Output of the subcommands: results, notes, progress bars, errors."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from .._printable import printable
from .page import Page

if TYPE_CHECKING:
    from rich.console import Console

ERROR, WARNING = "bold red", "yellow"  # styles of the name of a command, on a terminal


class UserError(Exception):
    """Input that cannot be used, or output that cannot be written: a message and exit code 2."""


def say(text: str) -> None:
    """Print a result, on a terminal with its tables as such.

    Raises:
        UserError: if the text cannot be written, as on a full disk.
        BrokenPipeError: if the reader of a pipe is gone.
    """
    console = terminal(sys.stdout)
    say_as_it_is(Page(text).on(console) if console else printable(text))


def say_json(value: Any) -> None:
    """Print a result as JSON, which has its own escape sequences; raises what :func:`say` does."""
    say_as_it_is(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def say_as_it_is(text: str) -> None:
    """Print text that holds no foreign escape sequence; raises what :func:`say` does."""
    if sys.stdout is None:
        raise UserError("the result has no place: stdout is closed")
    try:
        _write(sys.stdout, text)
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(sys.stdout)
        raise UserError(f"the result cannot be written to stdout: {error.strerror}") from None


def note(text: str, style: str = "") -> None:
    """Print a line on stderr, for people, if stderr is there; stdout is for results.

    Args:
        text: the line.
        style: of the words before its first colon, on a terminal.
    """
    if sys.stderr is not None:
        console = terminal(sys.stderr) if style else None
        with suppress(OSError):
            _write(sys.stderr, _styled(text, style, console) if console else printable(text))


def terminal(stream: IO[str] | None) -> Console | None:
    """The console of rich for a stream; None where text stays plain.

    That is where the stream is no terminal, where ``NO_COLOR`` is set, and without rich.
    """
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or stream is None or not stream.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    return None if console.legacy_windows else console


def _styled(text: str, style: str, console: Console) -> str:
    from rich.text import Text

    who, colon, rest = printable(text).partition(":")
    with console.capture() as shown:
        console.print(Text.assemble((who, style), colon, rest), end="", soft_wrap=True)
    return shown.get()


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
