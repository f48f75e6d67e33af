"""The axis of the classes, as callers name it by ``class_dim``.

Losses read the classes on axis 1, as PyTorch does, or on axis 0 of a single row. A call with
``class_dim`` is brought into this form before the loss runs: the axis of the classes moves, and
the other axes keep their order. So whatever has the shape of the rows stays as it is. Rows that lie
one after the other in memory become ``(N, C)`` instead, which kernels read fastest; both are views.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeVar, cast, overload

import torch
from torch import Tensor

from ._check import broadcasts_to, whole_number
from .engines.modes import PLAIN_TENSORS, compiling
from .heads.logits import LinearLogits
from .heads.stand_in import Lean
from .overrides import LISTS, OF_ELEMENTS
from .row_statistics import RowStatistics
from .shards import ShardedLogits
from .targets import class_axis, densified, refuse_other_rows

# Tensors and stand-ins that hold no other tensors, unlike DTensors and nested tensors.
NO_CONTAINERS = (*PLAIN_TENSORS, LinearLogits)

# Arguments by name. Those of rows hold a class or a number for each row, if they are tensors.
_CLASSES = ("target", "target_a", "target_b")
_OF_ROWS = (*_CLASSES, "row_weight", "row_mask", "logit_scale", "lam")

F = TypeVar("F", bound=Callable[..., Any])
Arguments = dict[str, Any]


@overload
def takes_class_dim(function: F, *, refuses: bool = ..., short: Any = ...) -> F: ...


@overload
def takes_class_dim(
    *, alike: Collection[str] = ..., refuses: bool = ..., elements: bool = ...
) -> Callable[[F], F]: ...


def takes_class_dim(
    function: Callable[..., Any] | None = None,
    *,
    alike: Collection[str] = ("target",),
    refuses: bool = True,
    elements: bool = False,
    short: Callable[..., Any] | None = None,
) -> Any:
    """Make a function of ``input``, logits or what is like them, take ``class_dim``. A decorator.

    Args:
        function: reads the classes on axis 1. Its ``class_dim`` is for the signature only.
        alike: the arguments that may have an axis of classes, which then lie like ``input``.
        refuses: whether calls without ``class_dim`` are refused where two axes could be meant:
            logits of three or more axes, compared with a tensor of the same shape. PyTorch's
            functions do not refuse, since their classes are on axis 1.
        elements: whether targets and weights are numbers of single elements, so that targets of any
            type may have an axis of classes, and weights broadcast.
        short: the same function for ``input`` of ``NO_CONTAINERS``.
    """
    if function is None:
        return functools.partial(takes_class_dim, alike=alike, refuses=refuses, elements=elements)
    names = [p.name for p in inspect.signature(function).parameters.values() if _has_place(p)]
    shortest = short or function

    @functools.wraps(function)
    def entry(*args: Any, class_dim: int | None = None, **kwargs: Any) -> Any:
        input: Any = args[0] if args else kwargs.get("input")
        if class_dim is None and type(input) in NO_CONTAINERS and input.ndim < 3:
            return shortest(*args, **kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if type(input) is ShardedLogits:
            return function(**_of_shard(input, class_dim, given, tuple(alike), elements))
        if not _has_axes(input) or len(given) < len(args) + len(kwargs):
            return function(*args, **kwargs)  # whose error says what is wrong
        lean = any(isinstance(given.get(name), Lean) for name in ("input", *alike))
        usual, axis = class_axis(input), axis_of_classes(input, class_dim, lean=lean)
        rows = input.shape[:axis] + input.shape[axis + 1 :]
        call = _Call(input, axis, class_dim, rows, tuple(alike), elements)
        if lean or axis == usual:
            if not lean:
                call.refuse_other_readings(given, refuses)
            return function(*args, **kwargs)
        flat = call.flattened(given)
        if flat is not None:
            return call.unflat(shortest(**flat))
        return function(**call.moved(call.read(given)))

    return entry


def _of_shard(
    input: ShardedLogits, class_dim: int | None, given: Arguments, alike: tuple[str, ...],
    elements: bool,
) -> Arguments:  # fmt: skip
    """The arguments of a call on some classes of each row, with the classes on axis 1."""
    own, axis = cast(Any, input.own), input.class_axis
    if class_dim is not None and axis_of_classes(input, class_dim) != axis:
        raise ValueError(
            f"`class_dim` is {class_dim}, but the classes of this shard are on axis {axis} of "
            f"{input.ndim}: pass class_dim={class_dim} to shard()"
        )
    if axis == class_axis(own):
        return given
    rows = own.shape[:axis] + own.shape[axis + 1 :]
    call = _Call(own, axis, axis, rows, alike, elements)
    moved = call.moved(call.read({**given, "input": own}))
    return {**moved, "input": input.with_own(moved["input"])}


def _has_axes(input: Any) -> bool:
    return isinstance(input, (Tensor, Lean)) and input.ndim > 0


def _has_place(p: inspect.Parameter) -> bool:
    return p.kind is p.POSITIONAL_OR_KEYWORD


def axis_of_classes(x: Any, class_dim: int | None, name: str = "input", lean: bool = False) -> int:
    """The axis of the classes by a caller's ``class_dim``, from 0 on; raise if there is none.

    Args:
        x: the tensor, or its stand-in.
        class_dim: as the caller gave the axis.
        name: what the caller calls ``x``.
        lean: whether the last axis is the only one, as it is behind a head.
    """
    if class_dim is None:
        return class_axis(x)
    number, ndim = whole_number("class_dim", class_dim), x.ndim
    if not -ndim <= number < ndim:
        raise ValueError(
            f"`class_dim` must name one of the {ndim} axes of `{name}`, {-ndim} to {ndim - 1}; got "
            f"{class_dim}"
        )
    axis = number % ndim
    if lean and axis != ndim - 1:
        raise ValueError(
            f"logits behind a linear head have their classes on the last axis: pass class_dim=-1 "
            f"or leave `class_dim` out; got {class_dim}"
        )
    return axis


class _Call(NamedTuple):
    """A call of a loss of logits that are a tensor."""

    input: Tensor
    axis: int  # of the classes
    class_dim: int | None  # as the caller gave the axis
    rows: torch.Size  # the shape of the rows
    alike: tuple[str, ...]
    elements: bool

    # ---- what is wrong --------------------------------------------------------------------------

    def refuse_other_readings(self, given: Arguments, refuses: bool) -> None:
        """Raise where the classes may be, or must be, on the last axis and not on axis 1."""
        input = self.input
        if input.ndim < 3 or (input.is_nested and input._ragged_idx == input.ndim - 1):  # pyright: ignore
            return  # classes are never on the axis of different lengths
        for name in self.alike if refuses and self.class_dim is None else ():
            x: Any = given.get(name)
            numbers = isinstance(x, Tensor) and (x.is_floating_point() or x.dtype == torch.bool)
            if self._is_like_input(x) and (self.elements or numbers):
                shape = tuple(input.shape)
                raise ValueError(
                    f"`{name}` has the shape of `input`, {shape}, which does not tell where the "
                    f"classes are: axis 1 of length {shape[1]}, as in PyTorch: class_dim=1; or the "
                    f"last axis of length {shape[-1]}, as in language models: class_dim=-1"
                )
        if input.is_nested or compiling():  # tracers fix the lengths that they compare
            return
        for name in _CLASSES:  # before anything else says that the logits have another length
            x = given.get(name)
            if isinstance(x, Tensor) and x.shape == input.shape[:-1]:
                refuse_other_rows(input, x, name)

    def _is_like_input(self, x: Any) -> bool:
        # The lengths of two nested tensors are compared where they are read.
        alike = isinstance(x, Tensor) and x.ndim == self.input.ndim
        return alike and (self.input.is_nested or x.shape == self.input.shape)

    def read(self, given: Arguments) -> Arguments:
        """The arguments; raise for targets that do not lie like the logits."""
        given = {name: densified(x) if name in self.alike else x for name, x in given.items()}
        for name in () if self.input.is_nested else dict.fromkeys((*_CLASSES, *self.alike)):
            x = given.get(name)
            if isinstance(x, Tensor) and not self._fits(name, x):
                raise ValueError(self._message(name, x))
        return given

    def _fits(self, name: str, x: Tensor) -> bool:
        if name in LISTS and x.ndim == self.input.ndim:
            return x.shape[: self.axis] + x.shape[self.axis + 1 :] == self.rows
        if x.shape == self.input.shape:
            return name == "input" or name in self.alike
        return name in _CLASSES and not self.elements and x.shape == self.rows

    def _message(self, name: str, x: Tensor) -> str:
        rows, shape = tuple(self.rows), tuple(self.input.shape)
        wanted = (
            [f"{rows} (a class for each row)"] if name in _CLASSES and not self.elements else []
        )
        if name in self.alike:
            of_list = " (with K in the place of the classes)" if name in LISTS else ""
            wanted.append(f"{shape}{of_list}")
        first = shape[:1] + shape[2:]
        hint = "; it fits classes on axis 1: class_dim=1" if x.shape == first else ""
        hint = "; it fits classes on the last axis: class_dim=-1" if x.shape == shape[:-1] else hint
        return (
            f"with class_dim={self.class_dim} the classes are on axis {self.axis} of `input`, "
            f"shape {shape}, so `{name}` must have shape {' or '.join(wanted)}; got "
            f"{tuple(x.shape)}{hint}"
        )

    # ---- two forms that losses read -------------------------------------------------------------

    def moved(self, given: Arguments) -> Arguments:
        """The arguments with the classes on axis 1."""
        changed: Arguments = {"input": _moved(self.input, self.axis)}
        for name in self.alike:
            x = given.get(name)
            if isinstance(x, Tensor) and x.ndim == self.input.ndim:
                changed[name] = _moved(x, self.axis)
        for name in OF_ELEMENTS if self.elements else ():
            x = given.get(name)
            if isinstance(x, Tensor):
                broadcasts_to(name, x, self.input)
                changed[name] = _moved(torch.broadcast_to(x, self.input.shape), self.axis)
        return {**given, **changed}

    def flattened(self, given: Arguments) -> Arguments | None:
        """The arguments with all rows on one axis, without a copy; None where there is none."""
        input, rows = self.input, self.rows
        last = type(input) in PLAIN_TENSORS and self.axis == input.ndim - 1 > 1
        if not last or not input.is_contiguous():
            return None
        count, changed = math.prod(rows), {}
        for name, x in given.items():
            if not isinstance(x, Tensor):
                continue
            of_rows = name in _OF_ROWS and x.ndim > 0
            if of_rows and x.shape == rows and not (self.elements and name in _CLASSES):
                changed[name] = x.reshape(count)
            elif name == "input" or name in self.alike:
                if not self._fits(name, x) or x.layout != torch.strided or not x.is_contiguous():
                    return None
                changed[name] = x.reshape(count, x.shape[-1])  # (N, C)
            elif of_rows or x.shape == rows or (name in OF_ELEMENTS and x.ndim > 1):
                return None  # a number per row by another name, or in another shape
        return {**given, **changed}

    def unflat(self, result: Any) -> Any:
        """The result of such a call in the shape of the rows; a scalar as it is."""
        if isinstance(result, Tensor):
            return result.reshape(self.rows) if result.ndim else result
        if isinstance(result, RowStatistics):
            return result.reshape(self.rows)
        return tuple(map(self.unflat, result)) if type(result) is tuple else result


def _moved(x: Tensor, axis: int) -> Tensor:
    """A view with one axis on place 1, and the others in their order."""
    if not x.is_nested:
        return x.movedim(axis, 1)
    if axis == 0:
        raise ValueError("`class_dim` names the axis of the sequences of a nested tensor")
    for k in range(axis, 1, -1):  # nested tensors know no more than exchanges
        x = x.transpose(k, k - 1)
    return x
