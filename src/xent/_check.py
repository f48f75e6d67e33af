"""Checks of arguments that several rooms share, each with a message that says the way out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .modes import is_dtensor


class TargetError(ValueError, IndexError):
    """A class index outside the classes there are. An IndexError too, as PyTorch raises."""


def is_tensor(name: str, value: object) -> None:
    """Raise unless ``value`` is a tensor with a number in every place."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")
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


def finite_number(name: str, value: Any) -> float:
    """The value as a float; raise if it is none, or not finite."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not -torch.inf < value < torch.inf:
        raise ValueError(f"`{name}` must be a finite number, got {value!r}")
    return float(value)


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is among the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}; {value!r} is not a valid value")


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
        raise TypeError(f"`{name}` must be floating point, got {value.dtype}; call .float()")
    if value.device != device:
        raise ValueError(f"`{name}` is on {value.device}, the logits are on {device}")


def label_out_of_range(label: int, classes: int, ignore_index: int) -> TargetError:
    """The error for a class index that does not exist."""
    hint = "are the labels off by one?" if label == classes else "check the labels"
    if label < 0:
        hint = f"to leave rows out, mark them with ignore_index={ignore_index}"
    return TargetError(
        f"`target` holds the class index {label}, which is out of bounds for {classes} classes "
        f"(valid: 0 to {classes - 1}); {hint}. xent.diagnose(input, target) tells more"
    )
