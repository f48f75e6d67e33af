"""PyTorch's protocol for objects in the place of tensors: ``__torch_function__``.

With this protocol torch.fx records a loss as one call, subclasses of tensors keep their type, and
modes that watch functions (a default device is one) see the loss as one of PyTorch's functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch.overrides import handle_torch_function, has_torch_function

from .engines.modes import compiling
from .heads.stand_in import Lean

F = TypeVar("F", bound=Callable[..., Any])


def overridable(function: F) -> F:
    """Let an argument with ``__torch_function__`` answer in place of the function. A decorator."""
    if hasattr(function, "__overridable__"):
        return function

    @functools.wraps(function)
    def entry(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values()) if kwargs else args
        if has_torch_function(given) and not compiling():
            moved = next((x for x in given if isinstance(x, Lean) and x.moved), None)
            if moved is not None:
                args, kwargs = _with_classes_last(moved, args, kwargs)
                return function(*args, **kwargs)
            # Our own stand-ins for logits do not answer: the loss itself takes them.
            others = [x for x in given if not isinstance(x, Lean)]
            if has_torch_function(others):
                return handle_torch_function(entry, others, *args, **kwargs)
        return function(*args, **kwargs)

    entry.__overridable__ = True  # pyright: ignore
    return entry  # pyright: ignore


def _with_classes_last(
    moved: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put the logits behind a head, whose classes are on the last axis, into a call."""

    def inner(x: Any) -> Any:
        return x.logits if isinstance(x, Lean) and x.moved else moved.classes_last(x)

    kept = {k: inner(x) for k, x in kwargs.items() if (k, x) != ("class_dim", 1)}
    return tuple(map(inner, args)), kept
