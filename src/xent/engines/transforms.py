"""Whether tensors are what they seem: torch's function transforms wrap them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import (  # pyright: ignore[reportMissingImports]
    is_legacy_batchedtensor,
)


def transforms_active() -> bool:
    """Whether torch.func (vmap, grad, jvp, ...) or forward-mode AD is at work.

    Their tensors have no memory of their own to hand to a kernel.
    """
    return (
        torch._C._are_functorch_transforms_active()  # what autograd.Function itself asks
        or torch.autograd.forward_ad._current_level >= 0
    )


def is_batched(grad: Tensor) -> bool:
    """Whether a backward pass is being vectorised over gradients, by either of torch's vmaps."""
    return transforms_active() or is_legacy_batchedtensor(grad)


def unreadable(tensors: Sequence[Tensor | None], devices: Sequence[str]) -> str | None:
    """Why kernels for some types of devices cannot read these tensors, or None if they can."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type not in devices:
            return f"the tensors are on {tensor.device}"
        if type(tensor) not in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling():
            return f"{type(tensor).__name__} is a tensor subclass"
        if tensor.layout is not torch.strided:
            return f"the layout is {tensor.layout}"
    return None


def can_look_at(values: Tensor) -> bool:
    """Whether a check may read values: on the CPU, outside transforms and compilation."""
    return (
        values.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not transforms_active()
    )
