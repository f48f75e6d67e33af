"""Series of functions whose closed form loses digits."""

from __future__ import annotations

import torch
from torch import Tensor


def exp_beyond_line(x: Tensor) -> Tensor:
    """``exp(-x) - 1 + x`` for x in [-1, 1]: 19 terms reach the last bit."""
    one = torch.ones_like(x)
    tail = one
    for k in range(20, 2, -1):
        tail = torch.addcmul(one, tail, x, value=-1 / k)
    return x * x / 2 * tail
