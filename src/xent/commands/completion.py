"""``xent --print-completion SHELL``: a script with which a shell completes words of the command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .._package import not_installed
from ..losses.lookup import members
from .console import UserError

LOSSES = {"loss", "losses", "name"}  # arguments that are the name of a loss
FILES = {"TABLE", "FILE", "PATH"}  # metavars


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script.

    Args:
        parser: of the command, with the options of all commands below it, for this use only.
        shell: bash, zsh, fish or tcsh.

    Raises:
        UserError: if shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise UserError(not_installed("shtab", "cli")) from None
    for action in _actions(parser):
        if action.dest in LOSSES:
            action.choices = sorted(members())
        elif action.metavar in FILES:
            setattr(action, "complete", shtab.FILE)  # noqa: B010  where shtab looks
        elif action.dest == "out":
            setattr(action, "complete", shtab.DIRECTORY)  # noqa: B010
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of all parsers below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
