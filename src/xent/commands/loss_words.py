"""Losses by the words of a command: a name of the library, or ``module:function`` of the user."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..losses.catalog import Member
from ..losses.lookup import find
from ..plot.loss_names import hyperparameters, read_loss, read_settings
from .console import UserError

_OWN = re.compile(r"([\w.]+:\w+)(?::(.*))?", re.DOTALL)


def is_own(word: str) -> bool:
    """True if a word is ``module:function``, with settings or without."""
    return _OWN.fullmatch(word) is not None and not _is_loss(word.partition(":")[0])


def parted(word: str) -> tuple[str, str]:
    """Part a word into the name of the loss and the settings of its hyperparameters."""
    own = _OWN.fullmatch(word)
    if own and is_own(word):
        return own[1], own[2] or ""
    name, _, settings = word.partition(":")
    return name, settings


def function_of(name: str) -> Callable[..., Any]:
    """The loss with this name.

    Raises:
        ValueError: if the library has no such loss.
        UserError: if there is no such module or function.
    """
    return _load(name) if is_own(name) else find(name).function


def read_word(word: str) -> tuple[Member | Callable[..., Any], dict[str, Any]]:
    """The loss that a word names, and its hyperparameters; raises as :func:`function_of`."""
    return read_own(word) if is_own(word) else read_loss(word)


def read_own(word: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The user's loss that a word names, and its hyperparameters."""
    name, settings = parted(word)
    loss = _load(name)
    return loss, read_settings(settings, word, name, hyperparameters(loss))


def _is_loss(name: str) -> bool:
    try:
        return bool(find(name))
    except ValueError:
        return False


def _load(name: str) -> Callable[..., Any]:
    """Import the module, from the current folder too, and return the function."""
    module, _, function = name.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the module is the user's, and may raise anything
        raise UserError(f"{name}: {module} cannot be imported: {error}") from None
    finally:
        sys.path.remove(folder)
    if not callable(found):
        raise UserError(f"{name}: {module} has no function {function!r}")
    return found
