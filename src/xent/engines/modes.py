"""Modes of PyTorch: when a tensor's memory may be read, and when values may be looked at.

Kernels read memory, and checks look at values. Neither is possible while PyTorch records operations
or transforms them, nor for tensors whose numbers lie elsewhere or in another form. Every entry of
the library asks the functions of this module; where they say no, plain tensor operations are used.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._functorch import (
    get_unwrapped,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
)
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

PLAIN_TENSORS = (Tensor, torch.nn.Parameter)  # the types that the shortest ways take

_TRACERS = (
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)


class OnDevice(Protocol):
    """A tensor, or an object that stands for one."""

    @property
    def device(self) -> torch.device:
        """The device of the numbers."""
        ...


# ---- modes --------------------------------------------------------------------------------------


def compiling() -> bool:
    """True under torch.compile or torch.export, which see the operators of this library."""
    return torch.compiler.is_compiling()


def plain_operations() -> bool:
    """True if only plain tensor operations are possible.

    They are under torch.func (vmap, grad, jvp, ...) and forward-mode AD, whose tensors have no
    memory of their own, and under torch.jit.trace, make_fx, fake and functional tensors, which
    record one operation after the other. For compilers ask :func:`compiling`; the code that they
    compile may use torch.func.
    """
    return _transformed() or (not compiling() and _recorded())  # compilers have their own tracers


def deferred() -> bool:
    """True if values cannot be looked at: they do not exist yet, or a transform hides them."""
    return compiling() or _transformed() or _recorded()


def has_tangent(tensor: Tensor) -> bool:
    """True for a dual number of forward-mode AD."""
    forward = torch.autograd.forward_ad
    return forward._current_level >= 0 and forward.unpack_dual(tensor).tangent is not None


def autocasts(tensor: OnDevice) -> bool:
    """True if autocast is on for the device of a tensor; some types of devices have none."""
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast is off for a tensor's device."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def _transformed() -> bool:
    """True under torch.func or forward-mode AD."""
    functorch = torch._C._are_functorch_transforms_active()  # what autograd.Function itself asks
    return functorch or torch.autograd.forward_ad._current_level >= 0


def _recorded() -> bool:
    """Tell whether a tracer records the operations."""
    return (
        torch._C._get_tracing_state() is not None
        or (torch._C._len_torch_dispatch_stack() > 0 and _a_tracer_is_active())
        or _len_torch_dispatch_stack_pre_dispatch() > 0
    )


def _a_tracer_is_active() -> bool:
    # Other dispatch modes (counters of operations, selective checkpoints) leave memory alone.
    return any(
        getattr(mode, "_mode_key", None) in _TRACERS for mode in _get_current_dispatch_mode_stack()
    )


# ---- tensors ------------------------------------------------------------------------------------


def _keys(tensor: Tensor) -> int:
    """The dispatch keys of a tensor as bits."""
    return torch._C._dispatch_keys(tensor).raw_repr()


@functools.cache
def _keys_of_memory(device: str) -> int:
    """The keys of a fresh tensor on a type of device, whatever is active."""
    with _disable_current_modes(), torch._C._DisableFuncTorch():
        return _keys(torch.empty(0, dtype=torch.float32, device=device))


_KEYS_BEYOND_CPU = ~_keys_of_memory("cpu")


def in_cpu_memory(tensor: Tensor) -> bool:
    """True if a tensor is plain memory of the CPU, and has some.

    PyTorch's dispatcher marks whatever is not plain memory with a key of its own. A tensor with a
    key that a fresh tensor lacks is turned away, whatever that key may be.
    """
    return not _keys(tensor) & _KEYS_BEYOND_CPU and bool(tensor.data_ptr())


def in_memory_of(device: str, tensor: Tensor) -> bool:
    """True if a tensor is plain memory of a type of device, and has some."""
    return not _keys(tensor) & ~_keys_of_memory(device) and bool(tensor.data_ptr())


def unreadable(tensor: Tensor) -> str | None:
    """Return why the memory of a tensor does not hold its numbers, or None if it does."""
    if compiling():  # the operators will read the tensors when the code runs
        return None if tensor.layout is torch.strided else f"the layout is {tensor.layout}"
    if in_cpu_memory(tensor):
        return None
    if tensor.layout is not torch.strided:
        return f"the layout is {tensor.layout}"
    if _keys(tensor) & ~_keys_of_memory(tensor.device.type):
        return _reason(tensor)
    if tensor.numel() and not tensor.data_ptr():
        return "the tensor has no memory"
    return None


def _reason(tensor: Tensor) -> str:
    if torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python):
        return f"{type(tensor).__name__} is a tensor subclass that keeps its numbers elsewhere"
    if tensor.is_neg():
        return "the tensor waits to be negated (.resolve_neg() does it)"
    return f"to PyTorch the tensor is more than memory: {torch._C._dispatch_keys(tensor)}"


def is_dtensor(x: Any) -> bool:
    """True if something is a DTensor; then its module has been imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def wide_dtype(tensor: OnDevice) -> torch.dtype:
    """The dtype for numbers of rows: float64 where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def widened(tensor: Tensor) -> Tensor:
    """The tensor in the dtype for numbers of rows."""
    return tensor.to(wide_dtype(tensor))


def obstacle(tensors: Sequence[Tensor | None], devices: Sequence[str]) -> str | None:
    """Return why kernels for these devices cannot read the tensors, or None if they can."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type not in devices:
            return f"the tensors are on {tensor.device}"
        reason = unreadable(tensor)
        if reason is not None:
            return reason
    return None


def version(tensor: Tensor | None) -> int | None:
    """The number of times that a tensor was changed in place; None where nobody counts."""
    if tensor is None or compiling() or _transformed() or tensor.is_inference():
        return None
    return tensor._version


def share_memory(a: Tensor, b: Tensor) -> bool:
    """True if two tensors have the same storage, and where nobody can tell."""
    if compiling() or plain_operations() or not {type(a), type(b)} <= set(PLAIN_TENSORS):
        return True
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def is_freed(tensor: Tensor) -> bool:
    """True if a plain tensor, or that of a DTensor, has a shape but no memory any more."""
    if deferred():
        return False
    tensor = tensor._local_tensor if is_dtensor(tensor) else tensor  # pyright: ignore
    plain = type(tensor) in PLAIN_TENSORS and tensor.layout is torch.strided
    return plain and tensor.numel() > 0 and not tensor.untyped_storage().size()


def only_differentiable(*grads: Tensor | None) -> bool:
    """True if a backward pass must be plain operations, given the incoming gradients.

    They are needed where the pass is recorded for a second derivative, where one of PyTorch's two
    vmaps vectorises it, and where kernels cannot read the incoming gradients.
    """
    if torch.is_grad_enabled() or plain_operations():
        return True
    for grad in grads:
        if grad is not None and (is_legacy_batchedtensor(grad) or unreadable(grad) is not None):
            return True
    return False


def are_there(values: Tensor) -> bool:
    """True if values can be looked at, even if that means to wait for a device."""
    return not deferred() and unreadable(settled(values)) is None


def on_accelerator(x: OnDevice) -> bool:
    """True for numbers on another device than the CPU: a look at them waits for that device."""
    return x.device.type != "cpu"


def can_look_at(values: Tensor) -> bool:
    """True if a check may read values: they exist, and reading waits for no device."""
    return not on_accelerator(values) and are_there(values)


def refuse_where(wrong: Tensor, error: Callable[[], Exception], in_short: str) -> None:
    """Raise ``error()`` if ``wrong`` holds anywhere.

    Compiled code raises a RuntimeError that says ``in_short`` what is wrong. Where looking is
    impossible or would wait for a device, nothing is raised.
    """
    if compiling() and not plain_operations() and wrong.device.type == "cpu":
        torch._assert_async(torch.logical_not(wrong.any()), in_short)  # pyright: ignore
    elif can_look_at(wrong) and bool(wrong.any()):
        raise error()


def behind_transforms(values: Tensor) -> Tensor | None:
    """The tensor inside the wrappers of torch.func; None where its values cannot be looked at.

    For checks of single numbers: they hold whatever axis a transform has taken away.
    """
    if compiling() or _recorded():
        return None
    while is_functorch_wrapped_tensor(values):
        values = get_unwrapped(values)
    with torch._C._DisableFuncTorch():
        return values if in_cpu_memory(values) else None


def settled(tensor: Tensor) -> Tensor:
    """The tensor with a pending negation carried out, so that kernels can read its memory."""
    return tensor.resolve_neg() if not compiling() and tensor.is_neg() else tensor
