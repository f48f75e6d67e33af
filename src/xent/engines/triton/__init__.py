"""The Triton kernels, and checks of whether they can run on this machine.

This file imports no Triton: the first call of a kernel does.
"""

from __future__ import annotations

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
    """Return the reason why no kernel can read these tensors, or None if a kernel can."""
    if not INSTALLED:
        return "Triton is not installed: pip install triton"
    return obstacle(tensors, (*DEVICES, "cpu") if INTERPRETED else DEVICES)
