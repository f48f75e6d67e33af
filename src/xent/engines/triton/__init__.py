"""The Triton kernels, and checks of whether they can run on this machine.

This file imports no Triton: the first call of a kernel does.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..modes import obstacle

INSTALLED = importlib.util.find_spec("triton") is not None
# If TRITON_INTERPRET=1 is set at import, Triton's interpreter runs the kernels on CPU tensors: for
# tests.
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ("cuda", "xpu")  # AMD's GPUs are "cuda", too
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def obstacle_of(tensors: Sequence[Tensor | None]) -> str | None:
    """Return the reason why no kernel can read these tensors, or None if a kernel can.

    Raises:
        NotImplementedError: for a device without float64, on which no engine can compute.
    """
    if not INSTALLED:
        return "Triton is not installed: pip install triton"
    device = next((tensor.device for tensor in tensors if tensor is not None), None)
    if device is not None and device.type == "xpu" and not _has_float64(device):
        raise NotImplementedError(
            f"{device} has no arithmetic in float64, in which the numbers of a row are computed: "
            "move logits and targets to the CPU"
        )
    return obstacle(tensors, (*DEVICES, "cpu") if INTERPRETED else DEVICES)


@functools.cache
def _has_float64(device: torch.device) -> bool:
    """True if an Intel GPU computes in float64, which Arc does not."""
    return bool(torch.xpu.get_device_capability(device)["has_fp64"])
