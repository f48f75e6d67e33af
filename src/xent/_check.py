"""Checks of arguments that several rooms share, each with a message that says the way out."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .engines.modes import can_look_at, is_dtensor


class TargetError(ValueError, IndexError):
    """Error for a class index that is no class. Also an IndexError, because PyTorch raises that."""


def is_tensor(name: str, value: object) -> None:
    """Raise unless ``value`` is a dense tensor: not sparse, not nested, no DTensor."""
    if not isinstance(value, Tensor):
        whole = getattr(type(value), "whole", None)  # the method of a stand-in that gives a tensor
        make = "from_numpy" if type(value).__module__ == "numpy" else "tensor"
        raise TypeError(
            f"`{name}` must be a torch.Tensor, got {type(value).__name__}; pass "
            + (f"{name}.{whole}()" if whole else f"torch.{make}({name})")
        )
    if value.layout is torch.strided and not value.is_nested and not is_dtensor(value):
        return
    kind, inside = f"a tensor of layout {value.layout}", "to_dense()"
    if is_dtensor(value):
        kind, inside = "a DTensor", "to_local()"
    elif value.is_nested:
        kind, inside = "a nested tensor", "values()"
        if value.layout is torch.strided:
            raise TypeError(f"`{name}` is nested; make it with layout=torch.jagged, or dense")
    raise TypeError(
        f"`{name}` is {kind}, but must be dense; pass {name}.{inside}. (xent.cross_entropy and "
        f"its like take DTensors and nested tensors as they are.)"
    )


# ---- numbers ------------------------------------------------------------------------------------

_SYMBOLS = (torch.SymInt, torch.SymFloat)  # numbers of a traced graph, whose values are open
_MOST = sys.float_info.max
INT64 = range(-(2**63), 2**63)  # the whole numbers that tensors hold
_NOT_NUMBERS = "bcmMSU"  # kinds of numpy's dtypes that float() takes without an error


def finite_number(name: str, value: Any) -> float:
    """The value as a float; raise unless the value is a finite number.

    A number has ``__float__`` or ``__index__`` and no axis, and is no bool: Python's own numbers,
    those of numpy, fractions and decimals, 0-d tensors. ``float(value)`` alone would also take
    text, ``True``, arrays with an axis, complex scalars, and tensors that require a gradient, which
    is then lost.
    """
    if isinstance(value, _SYMBOLS):
        return value  # pyright: ignore[reportReturnType]
    number = value if type(value) in (float, int) else _converted(name, value, float)
    if number is None or not -_MOST <= number <= _MOST:
        raise ValueError(f"`{name}` must be a finite number, got {value!r}")
    return float(number)


def number_or_nan(name: str, value: Any) -> float:
    """Return a number as :func:`finite_number` does, or NaN."""
    number = _converted(name, value, float)
    return number if number is not None and number != number else finite_number(name, value)


def whole_number(name: str, value: Any) -> int:
    """The value as an int of 64 bits; raise for bools, axes, and values without ``__index__``."""
    if isinstance(value, torch.SymInt):
        return value  # pyright: ignore[reportReturnType]
    number = value if type(value) is int else _converted(name, value, operator.index)
    if number is None:
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if number not in INT64:
        raise ValueError(f"`{name}` must be an integer of 64 bits, got {value!r}")
    return number


def is_whole(value: Any) -> bool:
    """True if a value is an integer of any library."""
    return type(value) is int or _converted("", value, operator.index) is not None


def scalar(name: str, value: Any, device: torch.device) -> float | Tensor:
    """A finite number as a float, or a 0-d tensor unchanged, for options that may be learned."""
    if not isinstance(value, Tensor):
        return finite_number(name, value)
    if value.ndim or value.dtype == torch.bool or value.is_complex():
        raise ValueError(
            f"`{name}` must be a number or a 0-d tensor, got {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )
    return at_hand(name, value, device)


def at_hand(name: str, value: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device of the logits. A tensor on the CPU is sent there; others raise."""
    if value.is_complex():
        raise TypeError(f"`{name}` must hold real numbers, got {value.dtype}")
    if value.device.type not in ("cpu", device.type):
        raise ValueError(
            f"`{name}` is on {value.device}, the logits are on {device}; reading it there would "
            f"wait for the device. Make it on {device}"
        )
    return value.to(device)


def _converted(name: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    """Convert a value to a number; None if the value is no number.

    Raise for a tensor whose gradient would be lost, or whose device would have to be waited for.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    axes = getattr(value, "ndim", 0)
    has_number = hasattr(value, "__float__") or hasattr(value, "__index__")
    if isinstance(value, bool) or axes or not has_number or (kind and kind in _NOT_NUMBERS):
        return None
    if isinstance(value, Tensor):
        if value.dtype == torch.bool or value.is_complex():
            return None
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"`{name}` requires a gradient, and would not get one; pass a number, {name}.item()"
            )
        if value.device.type != "cpu":
            raise ValueError(
                f"`{name}` is on {value.device}, and reading it would wait for the device; pass "
                f"a number"
            )
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        return None


# ---- other arguments ----------------------------------------------------------------------------


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    """The value; raise unless it is among the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}; {value!r} is not a valid value")
    return value


def class_indices(name: str, labels: Any) -> Tensor:
    """Labels of any integer type as int64; raise for another type."""
    is_tensor(name, labels)
    if labels.dtype is torch.int64:
        return labels
    if labels.dtype not in INTEGERS:
        raise TypeError(
            f"`{name}` must hold integers, as class indices are, but it is {labels.dtype}; call "
            f"{name}.long()"
        )
    wide = labels.to(torch.int64)
    if labels.dtype == torch.uint64:  # too large for int64: no class, and no negative mark either
        wide = torch.where(wide < 0, torch.iinfo(torch.int64).max, wide)
    return wide


INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def broadcasts_to(name: str, value: Tensor, input: Any) -> None:
    """Raise unless ``value`` broadcasts to the shape of the logits and is on their device."""
    try:
        fits = torch.broadcast_shapes(value.shape, input.shape) == input.shape
    except RuntimeError:
        fits = False
    if not fits:
        axis = input.ndim - 2
        per_class = input.ndim > 2 and value.shape == input.shape[1:2]
        hint = f"; one per class is {name}.view(-1{', 1' * axis})" if per_class else ""
        raise ValueError(
            f"`{name}` must broadcast to the shape of `input`, {tuple(input.shape)}; got "
            f"{tuple(value.shape)}{hint}"
        )
    if value.device != input.device:
        raise ValueError(f"`{name}` is on {value.device}, the logits are on {input.device}")


def vector_of_classes(name: str, value: object, classes: int, device: torch.device) -> None:
    """Raise unless ``value`` holds one floating-point number per class, on the logits' device."""
    is_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.shape != (classes,):
        raise ValueError(
            f"`{name}` must hold one number for each of the {classes} classes, shape "
            f"({classes},); got shape {tuple(value.shape)}"
        )
    if not value.is_floating_point():
        raise TypeError(f"`{name}` must be floating point, got {value.dtype}; call {name}.float()")
    if value.device != device:
        raise ValueError(f"`{name}` is on {value.device}, the logits are on {device}")


def class_counts(name: str, counts: Tensor) -> Tensor:
    """The counts, checked; whole numbers in PyTorch's default dtype, as its own functions do it."""
    is_tensor(name, counts)
    if counts.dtype in INTEGERS:
        counts = counts.to(torch.get_default_dtype())
    if not counts.is_floating_point():
        raise TypeError(f"`{name}` must be floating point, got {counts.dtype}; call {name}.float()")
    wrong = counts.ndim != 1
    if not wrong and can_look_at(counts):
        wrong = bool((counts < 0).any()) or not bool((counts > 0).any())
    if wrong:
        raise ValueError(
            f"`{name}` must hold one number of rows per class, none negative and not all 0; got "
            f"{counts.tolist() if counts.numel() < 20 and counts.is_cpu else tuple(counts.shape)}"
        )
    return counts


def label_out_of_range(
    label: int, classes: int, ignore_index: int, name: str = "target"
) -> TargetError:
    """The error for a class index that does not exist."""
    hint = "the labels may be off by one" if label == classes else "check the labels"
    if label < 0:
        hint = f"to leave rows out, mark them with ignore_index={ignore_index}"
    return TargetError(
        f"`{name}` holds the class index {label}, which is out of bounds for {classes} classes "
        f"(valid: 0 to {classes - 1}); {hint}. xent.diagnose(input, target) tells more"
    )
