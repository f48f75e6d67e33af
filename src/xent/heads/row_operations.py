"""Operations that move, join or repeat rows, done to the features instead of the logits.

Features ``(..., D)`` and logits ``(..., V)`` have the same axes of rows, so that a function of rows
takes the same arguments for both. Registered for every stand-in, as functions of torch and methods
of tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .log_probs import LinearEntropyTerms, LinearLogProbs, LinearProbs
from .logits import LinearLogits
from .stand_in import Lean

Function = Callable[..., Any]
ALL = object()  # the axes of a function that looks at all elements in a row

# ---- functions that are told their axes ----------------------------------------------------------

# The names of the axes among the arguments, the place of the first, and what they are by default.
AXES: dict[str, tuple[tuple[str, ...], int, Any]] = {
    "split": (("dim",), 1, 0),
    "split_with_sizes": (("dim",), 1, 0),
    "chunk": (("dim",), 1, 0),
    "tensor_split": (("dim",), 1, 0),
    "unbind": (("dim",), 0, 0),
    "index_select": (("dim",), 0, ALL),
    "narrow": (("dim",), 0, ALL),
    "select": (("dim",), 0, ALL),
    "repeat_interleave": (("dim",), 1, ALL),
    "roll": (("dims",), 1, ALL),
    "flip": (("dims",), 0, ALL),
    "unflatten": (("dim",), 0, ALL),
}


def _of_axes(function: Function, name: str, input: Any, *args: Any, **kwargs: Any) -> Any:
    """The answer to a function that is told its axes."""
    (axes_name, *_), place, default = AXES[name]
    axes = kwargs.get(axes_name, args[place] if len(args) > place else default)
    if name == "flip" and len(args) > 1:  # flip(0, 1)
        axes = args
    axes = axes if isinstance(axes, (tuple, list)) else (axes,)
    if not axes or any(axis is ALL or axis is None or _is_of_classes(input, axis) for axis in axes):
        return function(input.materialize_for(name), *args, **kwargs)
    return _mapped(input, lambda x: function(x, *args, **kwargs))


def _mapped(input: Any, function: Function) -> Any:
    """Apply a function of rows; where it returns several tensors, return several stand-ins."""
    found = [function(x) for x in input.row_tensors]
    if isinstance(found[0], Tensor):
        return input.with_rows(found)
    return tuple(map(input.with_rows, zip(*found, strict=True)))


def _is_of_classes(input: Any, axis: Any) -> bool:
    return int(axis) in (-1, input.ndim - 1)


def _squeeze(input: Any, dim: Any = None) -> Any:
    if dim is None:
        axes = tuple(k for k, size in enumerate(input.shape) if size == 1)
    else:
        given = dim if isinstance(dim, (tuple, list)) else (dim,)
        axes = tuple(k % input.ndim for k in given if input.shape[k] == 1)
    if input.ndim - 1 in axes:
        return input.materialize_for("squeeze").squeeze(*([] if dim is None else [dim]))
    return _mapped(input, lambda x: x.squeeze(axes))


def _unsqueeze(input: Any, dim: int) -> Any:
    if dim % (input.ndim + 1) == input.ndim:
        return input.materialize_for("unsqueeze").unsqueeze(dim)
    return _mapped(input, lambda x: x.unsqueeze(dim % (input.ndim + 1)))


# ---- functions that are told sizes ---------------------------------------------------------------


def _sizes(sizes: tuple[Any, ...]) -> list[int]:
    given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes
    return [int(n) for n in given]


def _expand(input: Any, *size: Any) -> Any:
    sizes = _sizes(size)
    if sizes[-1] not in (-1, input.shape[-1]):
        return input.materialize_for("expand").expand(sizes)
    return _mapped(input, lambda x: x.expand(*sizes[:-1], -1))


def _repeat(input: Any, *repeats: Any) -> Any:
    sizes = _sizes(repeats)
    if sizes[-1] != 1 or len(sizes) < input.ndim:
        return input.materialize_for("repeat").repeat(sizes)
    return _mapped(input, lambda x: x.repeat(*sizes))


def _like(method: str) -> Function:
    def answer(input: Any, other: Any) -> Any:
        return getattr(input, method)(*other.shape)

    return answer


# ---- functions of several ------------------------------------------------------------------------


def _join(name: str) -> Function:
    """The answer to ``cat`` or ``stack``: one head, if all have the same."""
    function = getattr(torch, name)

    def answer(tensors: Any, dim: int = 0, *, out: None = None) -> Any:
        first, *others = tensors
        axes = first.ndim + (name == "stack")
        alike = (
            isinstance(first, Lean)
            and dim % axes != axes - 1
            and all(first.has_head_of(x) for x in others)
        )
        if not alike:
            whole = [x.materialize_for(name) if isinstance(x, Lean) else x for x in tensors]
            return function(whole, dim)
        if any(len(x.row_tensors) > 1 for x in tensors):  # then all take a scale per row
            tensors = [x.with_scale_per_row() for x in tensors]
        tensors = [x.without_divisor() for x in tensors]
        rows = zip(*(x.row_tensors for x in tensors), strict=True)
        return tensors[0].with_rows([function(parts, dim % axes) for parts in rows])

    return answer


def _pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    function = torch.nn.functional.pad
    zero = mode == "constant" and not value and tuple(pad[:2]) == (0, 0)
    if not zero or not input.is_zero_without_features():
        return function(input.materialize_for("pad"), pad, mode, value)
    return _mapped(input, lambda x: function(x, pad, mode, value))


# ---- functions of one ----------------------------------------------------------------------------


def _method(name: str) -> Function:
    def answer(input: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(type(input), name)(input, *args, **kwargs)

    return answer


ANSWERS: Mapping[str, Function] = {
    "squeeze": _squeeze, "unsqueeze": _unsqueeze, "expand": _expand, "repeat": _repeat,
    "view_as": _like("view"), "reshape_as": _like("reshape"), "expand_as": _like("expand"),
    "cat": _join("cat"), "concat": _join("cat"), "concatenate": _join("cat"),
    "stack": _join("stack"), "pad": _pad,
    **{
        name: _method(name)
        for name in (
            "reshape", "view", "flatten", "contiguous", "to", "float", "double", "half",
            "bfloat16", "cpu", "detach", "clone", "type", "__getitem__",
        )
    },
}  # fmt: skip


def _homes(name: str) -> list[Function]:
    homes = (torch, Tensor, torch.nn.functional)
    return [getattr(home, name) for home in homes if hasattr(home, name)]


for _kind in (LinearLogits, LinearLogProbs, LinearProbs, LinearEntropyTerms):
    for _name in AXES:
        for _function in _homes(_name):
            _kind.lean[_function] = functools.partial(_of_axes, _function, _name)
    for _name, _answer in ANSWERS.items():
        for _function in _homes(_name):
            _kind.lean[_function] = _answer
