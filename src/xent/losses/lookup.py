"""Losses by the names that people type."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from .. import losses
from .._suggestions import near
from .catalog import CATALOG, Member

__all__ = ["bare_signature", "find", "members"]


@cache
def members() -> dict[str, Member]:
    """Members of the catalog by every name of a loss, second names too."""
    return {
        name: CATALOG[value.__name__]
        for name, value in vars(losses).items()
        if getattr(value, "__name__", None) in CATALOG
    }


def find(name: str) -> Member:
    """The loss with a name: ``focal``, ``focal-loss`` and ``focal_loss`` find the same one.

    Raises:
        ValueError: if there is no such loss. The message suggests names that look alike.
    """
    plain = name.strip().replace("-", "_").lower()
    for candidate in (plain, f"{plain}_loss"):
        if candidate in members():
            return members()[candidate]
    raise ValueError(f"there is no loss {name!r}{near(plain, members())}")


def bare_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function for people: no types, and default functions by name."""
    parameters = []
    for p in inspect.signature(function).parameters.values():
        name = getattr(p.default, "__name__", None) if p.default is not p.empty else None
        default = _Named(name) if name else p.default
        parameters.append(p.replace(annotation=p.empty, default=default))
    return inspect.Signature(parameters)


class _Named(str):
    """A name that shows without quotes."""

    __repr__ = str.__str__
