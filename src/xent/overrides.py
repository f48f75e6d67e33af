"""PyTorch's protocol for objects in the place of tensors: ``__torch_function__``.

With this protocol torch.fx records a loss as one call, subclasses of tensors keep their type, and
modes that watch functions (a default device is one) see the loss as one of PyTorch's functions.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_map_only

from .arrays import OPTIONS, TENSORS, Door
from .engines.modes import compiling
from .heads.distributed import DistributedLogits
from .heads.stand_in import Lean
from .shards import ShardedLogits, across_ranks

# Arguments that lie like the logits, with K numbers in the place of the classes.
LISTS = ("classes", "probabilities")
# Arguments of losses of single elements that broadcast to the logits.
OF_ELEMENTS = ("weight", "pos_weight")

F = TypeVar("F", bound=Callable[..., Any])


@overload
def overridable(function: F) -> F: ...


@overload
def overridable(*, classes_last: bool) -> Callable[[F], F]: ...


def overridable(function: Any = None, *, classes_last: bool = False) -> Any:
    """Let an argument with ``__torch_function__`` answer in place of the function. A decorator.

    Arrays and lists become tensors first (``arrays``).

    Args:
        function: takes tensors, and stand-ins for logits.
        classes_last: whether the function reads the classes on the last axis of tensors, too.
    """
    if function is None:
        return functools.partial(overridable, classes_last=classes_last)
    if hasattr(function, "__overridable__"):
        return function
    names, door = tuple(inspect.signature(function).parameters), Door(function)
    seldom = door.seldom

    def of_tensors(*args: Any, **kwargs: Any) -> Any:
        input = kwargs.get("input")
        if isinstance(input, DistributedLogits) and input.is_local:
            input = input.sharded()
            kwargs = {**kwargs, "input": input}
        if type(input) is ShardedLogits and input.shard.agreement is None:
            return across_ranks(function, kwargs)
        for name, value in kwargs.items():
            if type(value) is ShardedLogits and value is not input:
                value.materialize_for(f"`{name}` of {function.__name__}")
        given = (*args, *kwargs.values())
        if has_torch_function(given) and not compiling():
            # Our own stand-ins for logits do not answer: the loss itself takes them.
            others = [x for x in given if not isinstance(x, Lean)]
            if has_torch_function(others):
                return handle_torch_function(entry, others, *args, **kwargs)
            if len(others) < len(given):
                named = {**dict(zip(names, args, strict=False)), **kwargs}
                if len(named) == len(given):
                    return _of_stand_ins(function, entry, named, classes_last, "dim" in names)
        return function(*args, **kwargs)

    @functools.wraps(function)
    def entry(*args: Any, **kwargs: Any) -> Any:
        # As `door.usual`, without a call of its own on the shortest way.
        usual = TENSORS.issuperset(map(type, args)) and (
            not kwargs
            or (OPTIONS.issuperset(map(type, kwargs.values())) and seldom.isdisjoint(kwargs))
        )
        if not usual and not compiling():
            return door.enter(of_tensors, args, kwargs)
        if has_torch_function((*args, *kwargs.values()) if kwargs else args):
            return of_tensors(*args, **kwargs)
        return function(*args, **kwargs)

    entry.__overridable__ = True  # pyright: ignore
    return entry  # pyright: ignore


def _of_stand_ins(
    function: Callable[..., Any], entry: Callable[..., Any], given: dict[str, Any],
    classes_last: bool, any_axis: bool,
) -> Any:  # fmt: skip
    """Call a function for logits behind a head, whose classes losses take on the last axis.

    Args:
        function: the function.
        entry: the function as callers have it.
        given: its arguments by name.
        classes_last: whether the function reads the classes on the last axis of tensors, too.
        any_axis: whether the function takes an axis by ``dim`` and needs tensors.
    """
    target = given.get("target")
    if isinstance(target, Lean) and target.normalised:  # soft targets are read as numbers
        given = {**given, "target": target.materialize_for(function.__name__)}
    moved: Any = next((x for x in given.values() if isinstance(x, Lean) and x.moved), None)
    if moved is not None:
        elsewhere = given.get("class_dim") not in (None, 1, 1 - moved.ndim)
        any_axis |= classes_last or elsewhere or moved.overwritten
    if any_axis:
        name = function.__name__
        return function(**tree_map_only(Lean, lambda x: x.materialize_for(name), given))
    if moved is None:
        return function(**given)
    result = entry(**{name: _with_classes_last(moved, name, x) for name, x in given.items()})
    of_elements = isinstance(result, Tensor) and result.ndim == moved.ndim
    return result.movedim(-1, 1) if of_elements else result


def _with_classes_last(moved: Lean, name: str, x: Any) -> Any:
    """An argument beside logits that were moved to axis 1, as it is beside those not moved."""
    if isinstance(x, Lean):
        return x.logits if x.moved else x
    if name == "class_dim":
        return None
    if not isinstance(x, Tensor):
        return x
    if name in OF_ELEMENTS and x.ndim > 1:
        x = torch.broadcast_to(x, moved.shape)
    like_logits = x.shape == moved.shape or (name in LISTS and x.ndim == moved.ndim)
    return x.movedim(1, -1) if like_logits else x
