"""Losses by what people call them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from .. import losses
from .catalog import CATALOG, Member


@cache
def members() -> dict[str, Member]:
    """Every name of a loss, second names too, and its member of the catalog."""
    return {
        name: CATALOG[value.__name__]
        for name, value in vars(losses).items()
        if getattr(value, "__name__", None) in CATALOG
    }


def find(name: str) -> Member:
    """The loss of a name; ``focal``, ``focal-loss`` and ``focal_loss`` are the same.

    Raises:
        ValueError: if there is none. The message says which names are near.
    """
    plain = name.strip().replace("-", "_").lower()
    for candidate in (plain, f"{plain}_loss"):
        if candidate in members():
            return members()[candidate]
    raise ValueError(f"there is no loss {name!r}{near(plain, members())}")


def near(name: str, known: Iterable[str]) -> str:
    """A question about the names that look like this one; empty if none does."""
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


def bare_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature for people: without types, and functions among the defaults by name."""
    parameters = []
    for p in inspect.signature(function).parameters.values():
        name = getattr(p.default, "__name__", None) if p.default is not p.empty else None
        default = _Named(name) if name else p.default
        parameters.append(p.replace(annotation=p.empty, default=default))
    return inspect.Signature(parameters)


class _Named(str):
    """A name that shows without quotes."""

    __repr__ = str.__str__
