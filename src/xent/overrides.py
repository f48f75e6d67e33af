"""PyTorch's protocol for whoever stands in for a tensor: ``__torch_function__``.

With it torch.fx records a loss as one call, subclasses of tensors keep their type, and modes that
watch functions (a default device is one) see the loss as a function like PyTorch's own.
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
            # What stands for logits is an argument as any other: the loss itself knows it.
            others = [x for x in given if not isinstance(x, Lean)]
            if has_torch_function(others):
                return handle_torch_function(entry, others, *args, **kwargs)
        return function(*args, **kwargs)

    entry.__overridable__ = True  # pyright: ignore
    return entry  # pyright: ignore
