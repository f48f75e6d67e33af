"""The Triton kernels, and whether they can run here.

Importing this package imports no Triton; the kernels are imported by the first call.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..modes import obstacle

INSTALLED = importlib.util.find_spec("triton") is not None
# Set before the first call, it runs the kernels in Python, on CPU tensors: for tests.
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ("cuda", "xpu")  # AMD's GPUs are "cuda", too
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def obstacle_of(tensors: Sequence[Tensor | None]) -> str | None:
    """Why no kernel can read these tensors, or None if one can."""
    if not INSTALLED:
        return "Triton is not installed: pip install triton"
    return obstacle(tensors, (*DEVICES, "cpu") if INTERPRETED else DEVICES)
