"""Series of functions whose closed form loses digits."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exp_beyond_line(x: Tensor) -> Tensor:
    """``exp(-x) - 1 + x`` for x in [-1, 1]: 19 terms reach the last bit."""
    one = torch.ones_like(x)
    tail = one
    for k in range(20, 2, -1):
        tail = torch.addcmul(one, tail, x, value=-1 / k)
    return x * x / 2 * tail


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(-x))`` for x above 0: from ``1 - exp(-x)`` up to log 2, from ``exp(-x)`` on."""
    small = x < math.log(2)
    low = torch.expm1(-torch.where(small, x, 1.0)).neg().log()
    return torch.where(small, low, torch.log1p(-torch.exp(-torch.where(small, 1.0, x))))
