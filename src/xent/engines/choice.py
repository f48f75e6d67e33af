"""The choice of an engine: from a device to an engine, from an obstacle to a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .._check import one_of
from . import core, triton
from .contract import Kernels
from .modes import plain_operations

ENGINES = ("auto", "native", "triton", "reference")
KERNELS: dict[str, Kernels] = {
    "native": core,
    "triton": triton,
}  # modules that say which tensors the kernels can take


class Explanation(NamedTuple):
    """The engine that a call takes, and the reason.

    Attributes:
        engine: ``"native"``, ``"triton"`` or ``"reference"``.
        reason: one sentence.
        gradient: how the gradient is found.
        products: the type in which a linear head is multiplied, and why; empty without a head.
    """

    engine: str
    reason: str
    gradient: str
    products: str = ""

    def __str__(self) -> str:
        text = f"engine: {self.engine} ({self.reason})\ngradient: {self.gradient}"
        return f"{text}\nproducts: {self.products}" if self.products else text


def kernels_for(device: torch.device, engine: str) -> str:
    """The engine whose kernels take tensors on a device, unless an obstacle is found."""
    one_of("engine", engine, ENGINES)
    if engine in ("native", "triton"):
        return engine
    return "triton" if device.type in triton.DEVICES else "native"


def where_kernels_run(kernels: str, device: torch.device, dtype: torch.dtype) -> str:
    """The reason to give where kernels do the work."""
    if kernels == "native":
        return f"CPU logits, {dtype}; {core.isa} kernels on PyTorch's threads"
    interpreted = " in Triton's interpreter" if device.type == "cpu" else ""
    return f"logits on {device.type}, {dtype}; Triton kernels{interpreted}"


def why_reference(
    engine: str, kernels: str, arithmetic: torch.dtype, find_obstacle: Callable[[], str | None]
) -> str | None:
    """Return why the reference engine computes, or None where the engine ``kernels`` does.

    ``arithmetic`` is the type in which the native kernels would compute; a type of 16 bits stands
    for float32. ``find_obstacle`` returns why the kernels cannot take the problem, or None. Raises
    a ValueError if the caller has asked for ``kernels`` by name and they cannot.
    """
    if engine == "reference":
        return "as asked"
    reason = find_obstacle()
    if reason is None and plain_operations():
        reason = "a transform or tracer of PyTorch is active, which needs plain tensor operations"
    slow = kernels == "native" and arithmetic not in core.fast
    if engine == "auto" and reason is None and slow:
        reason = "this processor lacks fused multiply-add, which float64 kernels would emulate"
    if engine == kernels and reason is not None:
        raise ValueError(
            f'engine="{engine}" cannot do this: {reason}. engine="auto" takes the reference engine'
        )
    return reason
