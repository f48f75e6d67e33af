"""Operations that move, join or repeat rows, done to the features instead of the logits.

Features ``(..., D)`` and logits ``(..., V)`` have the same axes of rows, so that a function of rows
takes the same arguments for both. Registered for every stand-in, as functions of torch and methods
of tensors. NotImplemented where the function looks at the classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .arithmetic import in_place
from .layouts import ClassesOnAxis1
from .log_probs import LinearEntropyTerms, LinearLogProbs, LinearProbs
from .logits import LinearLogits
from .stand_in import Lean

Function = Callable[..., Any]
ALL = object()  # the axes of a function that looks at all elements in a row

# ---- functions that are told their axes ----------------------------------------------------------

# The name of the axes among the arguments, their place, and what they are by default.
AXES: dict[str, tuple[str, int, Any]] = {
    "split": ("dim", 1, 0),
    "split_with_sizes": ("dim", 1, 0),
    "chunk": ("dim", 1, 0),
    "tensor_split": ("dim", 1, 0),
    "unbind": ("dim", 0, 0),
    "index_select": ("dim", 0, ALL),
    "narrow": ("dim", 0, ALL),
    "select": ("dim", 0, ALL),
    "repeat_interleave": ("dim", 1, ALL),
    "roll": ("dims", 1, ALL),
    "flip": ("dims", 0, ALL),
    "unflatten": ("dim", 0, ALL),
}


def _of_axes(function: Function, name: str, input: Any, *args: Any, **kwargs: Any) -> Any:
    """The answer to a function that is told its axes."""
    axes_name, place, default = AXES[name]
    axes = kwargs.get(axes_name, args[place] if len(args) > place else default)
    if name == "flip" and len(args) > 1:  # flip(0, 1)
        axes = args
    axes = axes if isinstance(axes, (tuple, list)) else (axes,)
    if not axes or any(axis is ALL or axis is None or _is_of_classes(input, axis) for axis in axes):
        return NotImplemented
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
        return NotImplemented
    return _mapped(input, lambda x: x.squeeze(axes))


def _unsqueeze(input: Any, dim: int) -> Any:
    if dim in (-1, input.ndim):
        return NotImplemented
    return _mapped(input, lambda x: x.unsqueeze(dim))


# ---- functions that are told sizes ---------------------------------------------------------------


def _sizes(sizes: tuple[Any, ...]) -> list[int]:
    given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes
    return [int(n) for n in given]


def _reshape(input: Any, *size: Any) -> Any:
    if isinstance(size[0], torch.dtype):  # as in view(dtype)
        return NotImplemented
    sizes = _sizes(size)
    known = math.prod(n for n in sizes if n != -1)
    if known and sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = input.numel() // known
    if not sizes or sizes[-1] != input.shape[-1] or math.prod(sizes) != input.numel():
        return NotImplemented
    return _mapped(input, lambda x: x.reshape(*sizes[:-1], x.shape[-1]))


def _flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    axes, shape = range(input.ndim), input.shape
    if not -len(axes) <= start_dim < len(axes) or not -len(axes) <= end_dim < len(axes):
        return NotImplemented
    start, end = axes[start_dim], axes[end_dim] + 1
    return _reshape(input, *shape[:start], math.prod(shape[start:end]), *shape[end:])


def _expand(input: Any, *size: Any) -> Any:
    sizes = _sizes(size)
    if sizes[-1] not in (-1, input.shape[-1]):
        return NotImplemented
    return _mapped(input, lambda x: x.expand(*sizes[:-1], -1))


def _repeat(input: Any, *repeats: Any) -> Any:
    sizes = _sizes(repeats)
    if sizes[-1] != 1 or len(sizes) < input.ndim:
        return NotImplemented
    return _mapped(input, lambda x: x.repeat(*sizes))


def _like(function: Function) -> Function:
    def answer(input: Any, other: Any) -> Any:
        return function(input, *other.shape)

    return answer


# ---- functions of several ------------------------------------------------------------------------


def _join(name: str) -> Function:
    """The answer to ``cat`` or ``stack``: one head, if all have the same."""
    function = getattr(torch, name)

    def answer(tensors: Any, dim: int = 0) -> Any:
        first, *others = tensors
        axes = first.ndim + (name == "stack")
        alike = (
            isinstance(first, Lean)
            and dim % axes != axes - 1
            and all(first.has_head_of(x) for x in others)
        )
        if not alike:
            return NotImplemented
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
        return NotImplemented
    return _mapped(input, lambda x: function(x, pad, mode, value))


# ---- functions of one ----------------------------------------------------------------------------


def _to(input: Any, *arguments: Any, **options: Any) -> Any:
    given = (*arguments, *options.values())
    like = [x for x in given if isinstance(x, Tensor)]
    dtypes = [x for x in given if isinstance(x, torch.dtype)] + [x.dtype for x in like]
    devices = [x for x in given if isinstance(x, (str, torch.device))] + [x.device for x in like]
    dtype = next(iter(dtypes), input.dtype)
    if not dtype.is_floating_point or any(torch.device(x) != input.device for x in devices):
        return NotImplemented
    if dtype == input.dtype:
        return input.copy() if options.get("copy") else input
    return input.cast(dtype)


def _type(input: Any, dtype: Any = None, non_blocking: bool = False) -> Any:
    outline = torch.empty(0, dtype=input.dtype, device=input.device)
    return outline.type() if dtype is None else _to(input, outline.type(dtype).dtype)


def _cast(dtype: torch.dtype) -> Function:
    return lambda input: _to(input, dtype)


def _contiguous(input: Any, memory_format: Any = torch.contiguous_format) -> Any:
    return input.compact()


def _copy(input: Any, *, memory_format: Any = torch.preserve_format) -> Any:
    return input.copy()


FOR_ALL: Mapping[str, Function] = {
    "to": _to, "type": _type, "cpu": lambda input: _to(input, "cpu"),
    "float": _cast(torch.float32), "double": _cast(torch.float64), "half": _cast(torch.float16),
    "bfloat16": _cast(torch.bfloat16), "contiguous": _contiguous, "clone": _copy,
    "detach": lambda input: input.constant(),
}  # fmt: skip
OF_ROWS: Mapping[str, Function] = {
    "squeeze": _squeeze, "unsqueeze": _unsqueeze, "expand": _expand, "repeat": _repeat,
    "reshape": _reshape, "view": _reshape, "flatten": _flatten,
    "view_as": _like(_reshape), "reshape_as": _like(_reshape), "expand_as": _like(_expand),
    "cat": _join("cat"), "concat": _join("cat"), "concatenate": _join("cat"),
    "stack": _join("stack"), "pad": _pad, "__getitem__": lambda input, index: input.picked(index),
}  # fmt: skip


def _homes(name: str) -> list[Function]:
    homes = (torch, Tensor, torch.nn.functional)
    return [getattr(home, name) for home in homes if hasattr(home, name)]


def _register(kind: type[Lean], answers: Mapping[str, Function]) -> None:
    for name, answer in answers.items():
        for function in _homes(name):
            kind.lean[function] = answer


for _kind in (LinearLogits, LinearLogProbs, LinearProbs, LinearEntropyTerms):
    _register(_kind, {**FOR_ALL, **OF_ROWS})
    for _name in AXES:
        for _function in _homes(_name):
            _kind.lean[_function] = functools.partial(_of_axes, _function, _name)
_register(ClassesOnAxis1, FOR_ALL)
_register(LinearLogits, {"squeeze_": in_place(_squeeze), "unsqueeze_": in_place(_unsqueeze)})
