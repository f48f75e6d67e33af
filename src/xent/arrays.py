"""Arrays at the door: lists, NumPy, and whatever has ``__dlpack__`` or ``__array__``, as tensors.

A function that takes tensors takes these, too, and gives tensors. They are copied, so that a later
change of an array changes nothing here. No gradient leads back to them.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .engines.modes import PLAIN_TENSORS, compiling

F = TypeVar("F", bound=Callable[..., Any])

# Arguments of losses whose signatures have no annotations: those that every loss takes.
_SHARED = (
    "input", "target", "weight", "row_weight", "class_bias", "pos_weight", "logit_scale",
    "features", "labels",
)  # fmt: skip
# Arguments that hold labels, so that integers of Python stay integers.
_WHOLE = (
    "target", "target_a", "target_b", "labels", "key_labels", "groups", "group", "samples",
    "classes", "documents",
)  # fmt: skip
_WORDS = ("Tensor", "ClassVector", "Counts", "NoiseMatrix")  # of annotations of tensors
_NO_TENSORS = ("Callable", "Sequence", "Iterable", "Mapping")  # of annotations of other things
_KINDS = {"float": "float", "long": "int", "bool": "bool"}  # what arrays write as `astype`
_OF_ARRAYS = ("argmax", "astype", "flatten", "reshape", "squeeze", "sum")  # as tensors have them
# Types of arguments that no door has to read.
TENSORS = frozenset({*PLAIN_TENSORS, type(None)})
OPTIONS = TENSORS | {bool, int, float, str}


class Door:
    """The arguments of a function that may be arrays."""

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = {p.name: str(p.annotation) for p in _parameters(function)}
        self.places = [p.name for p in _parameters(function) if p.kind is not p.KEYWORD_ONLY]
        self.arrays = frozenset(name for name, hint in hints.items() if _may_be_array(name, hint))
        self.numbers = frozenset(
            name for name in self.arrays if hints[name] == "Tensor" or name in ("input", "target")
        )
        self.seldom = self.numbers | {"axis"}  # keywords of arguments that are read
        self.axis = next((name for name in ("dim", "class_dim") if name in hints), None)
        self.name = function.__name__

    def usual(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """True if all arguments are tensors and options, which need no reading."""
        return TENSORS.issuperset(map(type, args)) and (
            not kwargs
            or (OPTIONS.issuperset(map(type, kwargs.values())) and self.seldom.isdisjoint(kwargs))
        )

    def read(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, by name, with tensors in the place of arrays."""
        if "axis" in kwargs and self.axis:
            raise TypeError(
                f"{self.name}() calls the axis of the classes `{self.axis}`: pass "
                f"{self.axis}={kwargs['axis']!r} in the place of `axis`"
            )
        given = {**dict(zip(self.places, args, strict=False)), **kwargs}
        if len(given) < len(args) + len(kwargs):
            return args, kwargs  # the function itself says what is wrong
        read = {name: self._read_one(name, x) for name, x in given.items()}
        input = read.get("input")
        if hasattr(type(input), "__torch_function__"):
            made = {name for name, x in read.items() if x is not given[name]} - {"input"}
            for name in made:
                read[name] = _beside_logits(name, read[name], input, _of_python(given[name]))
        return (), read

    def enter(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a function with tensors in the place of arrays; its errors speak of the arrays."""
        placed, read = self.read(args, kwargs)
        try:
            return function(*placed, **read)
        except (TypeError, ValueError, IndexError) as error:
            given = {**dict(zip(self.places, args, strict=False)), **kwargs}
            arrays = {name: x for name, x in given.items() if read.get(name, x) is not x}
            if error.args and isinstance(error.args[0], str):
                error.args = (_in_words_of(arrays, error.args[0]), *error.args[1:])
            raise

    def _read_one(self, name: str, x: Any) -> Any:
        if name not in self.arrays or (_is_number(x) and name not in self.numbers):
            return x
        return as_tensor(name, x)


def _in_words_of(arrays: dict[str, Any], message: str) -> str:
    """A message about tensors, whose advice fits arguments that came as arrays or lists."""
    for name, x in arrays.items():
        if hasattr(x, "astype"):
            for method, kind in _KINDS.items():
                message = re.sub(rf"\b{name}\.{method}\(\)", f"{name}.astype({kind})", message)
        kept = rf"(?!(?:{'|'.join(_OF_ARRAYS)})\()" if hasattr(x, "astype") else ""
        called = rf"(?<![\w.]){name}\.{kept}(?=\w+\()"
        message = re.sub(called, f"torch.as_tensor({name}).", message)
    return message


def takes_arrays(function: F) -> F:
    """Make a function of tensors take arrays. A decorator."""
    door = Door(function)

    @functools.wraps(function)
    def entry(*args: Any, **kwargs: Any) -> Any:
        if not door.usual(args, kwargs) and not compiling():
            return door.enter(function, args, kwargs)
        return function(*args, **kwargs)

    return cast(F, entry)


def as_tensor(name: str, value: Any) -> Any:
    """The tensor of an array or nested list; whatever is no array, tensors included, as it is.

    Python's floats become float64, and its integers too, but int64 where an argument holds labels.

    Args:
        name: of the argument, for messages.
        value: a number, nested lists of numbers or arrays, or an array of another library.

    Raises:
        TypeError: for an array without numbers, and a traced array of JAX.
        ValueError: for lists of different lengths in one list.
    """
    if hasattr(type(value), "__torch_function__"):
        return value
    if _is_number(value) or isinstance(value, (list, tuple)):
        return _of_list(name, value)
    if _is_traced(value):
        raise TypeError(
            f"`{name}` is a traced array of JAX, inside jax.jit, jax.grad or jax.vmap; gradients "
            "do not pass between PyTorch and JAX. Call xent outside, with arrays of numbers"
        )
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array_interface__"):
        return torch.from_dlpack(value).clone()
    return _of_array(name, value) if hasattr(value, "__array__") else value


def _beside_logits(name: str, x: Tensor, input: Any, of_python: bool) -> Tensor:
    """A tensor made of an array as losses need it beside logits: on their device.

    Integers of Python in the shape of the logits are numbers, and no class indices. Class weights
    have the dtype of the logits.
    """
    if name == "target" and of_python and x.dtype == torch.int64 and x.ndim == input.ndim:
        x = x.double()
    if name == "weight" and input.dtype.is_floating_point:
        x = x.to(input.dtype)
    return x.to(input.device)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _may_be_array(name: str, hint: str) -> bool:
    if hint in (str(inspect.Parameter.empty), "Any"):
        return name in _SHARED
    other = any(word in hint for word in _NO_TENSORS)
    return any(word in hint for word in _WORDS) and not other


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))  # bools, too, and float64 of NumPy


def _of_python(value: Any) -> bool:
    return isinstance(value, (list, tuple, int)) and not hasattr(value, "__array__")


def _is_traced(value: Any) -> bool:
    kinds = type(value).__mro__
    return any(kind.__name__ == "Tracer" and kind.__module__.startswith("jax") for kind in kinds)


def _of_list(name: str, value: Any) -> Tensor:
    """The tensor of a number or of nested lists."""
    kinds = _kinds(value)
    if object in kinds:
        parts = [as_tensor(name, x) for x in value]
        _raise_unless_tensors(name, parts)
        if len({part.shape for part in parts}) > 1:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts[:3])
            raise ValueError(f"`{name}` is a list of arrays of different shapes: {shapes}")
        dtype = functools.reduce(torch.promote_types, [part.dtype for part in parts])
        return torch.stack([part.to(dtype) for part in parts])
    if complex in kinds:
        raise TypeError(f"`{name}` must hold real numbers, got complex ones")
    if kinds == {bool}:
        dtype = torch.bool
    else:
        whole = name in _WHOLE and kinds <= {bool, int}
        dtype = torch.int64 if whole else torch.float64
    try:
        return torch.tensor(value, dtype=dtype, device="cpu")
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"`{name}` is a list that is no array of numbers: {error}") from None


def _kinds(value: Any) -> set[type]:
    """The kinds of numbers in nested lists: bool, int, float, complex; object for others."""
    if isinstance(value, (list, tuple)):
        return set().union(*map(_kinds, value))
    kinds = (bool, int, float, complex)
    return {next((kind for kind in kinds if isinstance(value, kind)), object)}


def _raise_unless_tensors(name: str, parts: list[Any]) -> None:
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"`{name}` is a list that holds {part!r}, which is no number")


def _of_array(name: str, value: Any) -> Tensor:
    """The tensor of an array that NumPy can read, copied."""
    import numpy

    masked = sys.modules.get("numpy.ma")
    if masked is not None and masked.is_masked(value):
        raise TypeError(
            f"`{name}` is an array with masked entries, which would count; pass {name}.filled(...) "
            "with what they shall be"
        )
    array = numpy.array(value)
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError:
        raise TypeError(
            f"`{name}` is an array of {array.dtype}, which PyTorch does not have; pass "
            f"{name}.astype(float)"
        ) from None
