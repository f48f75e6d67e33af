"""Elementary functions of float64 for the programs of losses, as those of csrc/elementary.h."""

# pyright: reportArgumentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import INF, product


@triton.jit
def expm1(x):
    """Return ``e^x - 1``; the error of the exponential cancels that of its logarithm."""
    u = tl.exp(x)
    near = (u > 0.01) & (u < 3.0) & (u != 1.0)
    log_u = tl.log(tl.where(near, u, 2.0))
    return tl.where(near, (u - 1.0) * x / log_u, tl.where(u == 1.0, x, u - 1.0))


@triton.jit
def log1p_of(x):
    """Return ``log(1 + x)``; what ``1 + x`` rounds away is added to first order."""
    total = 1.0 + x
    lost = (x - (total - 1.0)) / total
    return tl.log(total) + tl.where(lost == lost, lost, 0.0)


@triton.jit
def log_sigmoid(x):
    """Return ``log(1 / (1 + e^-x))``."""
    return tl.where(x < 0, x, 0.0) - log1p_of(tl.exp(-tl.abs(x)))


@triton.jit
def tanh_of(x):
    """Return the hyperbolic tangent."""
    e = expm1(-2.0 * tl.abs(x))
    size = -e / (2.0 + e)
    return tl.where(x < 0, -size, size)


@triton.jit
def pow_of(x, y):
    """Return ``x^y``, with the limits of the C standard."""
    size = tl.abs(x)
    power = tl.exp(product(tl.log(tl.where(size == 0, 1.0, size)), y))  # 0 * inf is 0
    power = tl.where(size == 0, tl.where(y > 0, 0.0, INF), power)
    whole = tl.floor(y) == y
    odd = whole & (tl.floor(y * 0.5) * 2.0 != y)
    negative = (x < 0) | (1.0 / x < 0)  # -0.0, too
    power = tl.where(negative & odd, -power, power)
    power = tl.where((x < 0) & (size < INF) & ~whole, float("nan"), power)
    power = tl.where((x == x) & (y == y), power, x + y)
    return tl.where((y == 0) | (x == 1.0), 1.0, power)
