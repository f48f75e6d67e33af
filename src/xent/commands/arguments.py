"""Arguments of commands: kinds of numbers, and a parser that suggests words for typos."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from typing import IO, Any, NoReturn

from .._suggestions import near, nearest
from .console import ERROR, note, say, say_as_it_is, terminal


class Parser(argparse.ArgumentParser):
    """A parser that suggests similar words, and prints only what a terminal can show."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.color = False  # of argparse in Python 3.14; rich-argparse has other colours

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse all words, or say which word cannot be understood."""
        for word in self._own(args or ()):
            if word.startswith("--") and " " not in word and not self._begins_option(word):
                self._refuse_option(word)
        found, rest = super().parse_known_args(args, namespace)
        if rest and rest[0].startswith("-"):
            self._refuse_option(rest[0])
        if rest:
            self.error(f"there is no use for {' '.join(map(repr, rest))}; leave it out")
        return found, rest

    def _own(self, words: Iterable[str]) -> Iterable[str]:
        """Return the words that are for this parser, and not for a command below it."""
        for word in words:
            if word == "--" or (self._subparsers and not word.startswith("-")):
                return
            yield word

    def _begins_option(self, word: str) -> bool:
        """True if a word is an option, or the beginning of an option, which argparse takes, too."""
        name = word.partition("=")[0]
        return any(option.startswith(name) for option in self._option_string_actions)

    def _refuse_option(self, word: str) -> NoReturn:
        name = word.partition("=")[0]
        known = {o.strip("-").replace("_", "-") for o in self._option_string_actions}
        bare = name.strip("-").replace("_", "-")
        close = get_close_matches(bare, known, 3, 0.75) or nearest(bare, known)
        meant = " or ".join(f"--{one}" for one in close)
        hint = f"did you mean {meant}?" if meant else f"{self.prog} --help lists them"
        self.error(f"there is no option {name}; {hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check a choice as argparse does, with a suggestion."""
        if action.choices is not None and value not in action.choices:
            words = [str(choice) for choice in action.choices]
            hint = near(str(value), words)
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}{hint} (choose from {', '.join(words)})"
            )

    def print_help(self, file: IO[str] | None = None) -> None:
        """Print the help, with colours where stdout is a terminal and rich-argparse is there."""
        console = terminal(sys.stdout) if file is None else None
        if console:
            with suppress(ImportError):
                self.formatter_class = _coloured(console)
                return say_as_it_is(self.format_help().removesuffix("\n"))
        return super().print_help(file)

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit."""
        self.print_usage(sys.stderr)
        note(f"{self.prog}: error: {message}", ERROR)
        sys.exit(2)

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:
        if message:
            tell = say if file is sys.stdout else note
            tell(message.removesuffix("\n"))


def _coloured(console: Any) -> Any:
    """The class that formats help for a console; the words are those of the plain help."""
    from rich_argparse import RichHelpFormatter

    class Coloured(RichHelpFormatter):
        group_name_formatter, help_markup, text_markup = str, False, False

    return partial(Coloured, console=console)


def whole(text: str, least: int = 1) -> int:
    """A whole number from the command line."""
    number = int(text) if text.lstrip("+-").isdecimal() else None
    if number is None or number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got {text!r}")
    return number


def finite(text: str) -> float:
    """A number from the command line that is neither NaN nor infinite."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return number


def amount(text: str) -> float:
    """A positive number from the command line."""
    number = finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"expected a number greater than 0, got {text!r}")
    return number
