"""Arithmetic of the kernels: exponentials of float32 logits, and functions of rows and elements.

Sums over the classes run in float32, everything that is computed once per row in float64. Nothing
here calls a device library, so the same code runs in Triton's interpreter.
"""

# pyright: reportArgumentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
LOG2E = tl.constexpr(1.44269502162933349609375)  # log2(e) to the digits of float32
LOG2E_LOW = tl.constexpr(1.925963033500904e-8)  # log2(e) - LOG2E
ROUNDER = tl.constexpr(1.5 * 2**23)  # x + ROUNDER has no digits after the point
ROUNDER_BITS = tl.constexpr(0x4B400000)
EXPONENT = tl.constexpr(1.5 * 2**23 + 127)  # x + EXPONENT holds the bits of 2^x in its lowest bits
FAR = tl.constexpr(2.0**20)
ROOM = tl.constexpr(64.0)  # exponents by which small numbers are lifted
LOWEST = tl.constexpr(-110.0)  # e^x is 0 in float32 for x below this
# Minimax fit of log(1 + u) / u in [0, 1], the last power first; relative error 8e-10.
LOG1P_OVER = tl.constexpr(
    (0.00203024259141, -0.0134075368593, 0.0414782430224, -0.0824417732684, 0.124184377179,
     -0.161056923308, 0.198907479586, -0.24987270907, 0.333325596283, -0.499999814337,
     0.999999999257)
)  # fmt: skip


# ---- exponentials of logits ---------------------------------------------------------------------


class Base(NamedTuple):
    """The base of :func:`power`, in two parts: ``shift = offset + exponent / log2(e)``."""

    offset: Any  # a logit
    exponent: Any  # an integer, of 2


@triton.jit
def base_of(largest, EXACT: tl.constexpr):
    """Return the base of rows with this largest logit, in float32.

    With an integer exponent and no offset, ``2^(z log2(e) - exponent)`` is one fused operation, and
    nothing is rounded before the exponential. For logits beyond 2^20, float32 lacks the digits for
    that, and then the largest logit is the offset. So it is with EXACT, which asks for exact
    differences of logits.
    """
    offset = tl.where(largest == -INF, 0.0, largest)
    exponent = tl.zeros_like(largest)
    if not EXACT:
        near = tl.abs(largest) < FAR
        rounded = tl.fma(tl.where(near, largest, 0.0), LOG2E, ROUNDER) - ROUNDER
        exponent = tl.where(near, rounded, exponent)
        offset = tl.where(near, 0.0, offset)
    return Base(offset, exponent)


@triton.jit
def shift_of(base):
    """Return the logit whose :func:`power` is 1, in float64."""
    return base.offset.to(tl.float64) + base.exponent.to(tl.float64) / LOG2E


@triton.jit
def power(x, exponent, EXACT: tl.constexpr):
    """Return ``e^(z - shift)`` for ``x = z - offset``; 0 below the normal numbers."""
    if not EXACT:
        return tl.exp2(tl.fma(x, LOG2E, -exponent))
    e, fade = split_power(x, exponent, EXACT)
    return e * fade


@triton.jit
def split_power(x, exponent, EXACT: tl.constexpr):
    """Return :func:`power` as two normal numbers, whose product with a third may be subnormal."""
    if not EXACT:
        y = tl.fma(x, LOG2E, -exponent)
        low = y < -ROOM
        return tl.exp2(tl.where(low, y + ROOM, y)), tl.where(low, 2.0**-ROOM, 1.0)
    # A product x log2(e) that is rounded has lost its fraction; so the integer is taken off first.
    low = x < -ROOM / LOG2E
    least = -190.0 / LOG2E
    near = tl.where(x > least, x, least)
    biased = tl.fma(near, LOG2E, EXPONENT)
    fraction = tl.fma(near, LOG2E, -(biased - EXPONENT))
    raised = biased + tl.where(low, ROOM, 0.0)
    scale = (raised.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
    e = tl.where(x == x, tl.exp2(fraction) * scale, x)
    return tl.where(x < least, 0.0, e), tl.where(low, 2.0**-ROOM, 1.0)


@triton.jit
def binary_exponent(x, exponent):
    """Return the logarithm of :func:`power` to base 2, for a base that is not exact."""
    return tl.fma(x, LOG2E, -exponent)


@triton.jit
def power_times(y, factor):
    """Return ``2^y factor`` for y <= 0, which is rounded once, also below the normal numbers."""
    low = y < -ROOM
    return tl.exp2(tl.where(low, y + ROOM, y)) * tl.where(low, factor * 2.0**-ROOM, factor)


@triton.jit
def gap_to(logit, base):
    """Return ``(logit - shift) log2(e)`` as (integer, fraction), in float32.

    One number would lose the digits of its own exponential, a unit in the last place per nat.
    """
    x, exponent = logit - base.offset, base.exponent
    biased = tl.fma(x, LOG2E, -(exponent - ROUNDER))
    floor = biased - ROUNDER
    fraction = tl.fma(x, LOG2E, -(exponent + floor)) + (x - exponent / LOG2E) * LOG2E_LOW
    # A number beyond 4 * FAR, or infinite, has no fraction in float32.
    fraction = tl.where(tl.abs(x) > 4 * FAR, 0.0, fraction)
    return floor, fraction


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent: a polynomial near 0, the exponential beyond."""
    a = tl.abs(x)
    u = x * x
    tail = tl.fma(u, 0.0021465029921655, -0.0081815862462787)
    tail = tl.fma(u, tail, 0.0217025453461810)
    tail = tl.fma(u, tail, -0.0539471308563843)
    tail = tl.fma(u, tail, 0.1333320921396320)
    tail = tl.fma(u, tail, -0.3333333089354224)
    e = tl.exp2(a * (-2.0 * LOG2E))
    beyond = 1.0 - 2.0 * e / (1.0 + e)
    return tl.where(a < 0.625, tl.fma(x * u, tail, x), tl.where(x < 0, -beyond, beyond))


# ---- float32 or float64 -------------------------------------------------------------------------


@triton.jit
def constant(x):
    """Return ``x``: a kernel records no derivatives."""
    return x


@triton.jit
def product(factor, value):
    """Return ``factor * value``, where 0 times infinity is 0."""
    return tl.where(factor == 0, 0.0, factor * tl.where(factor == 0, 0.0, value))


@triton.jit
def decay(x):
    """Return ``e^x`` for x <= 0, down to the subnormal numbers."""
    if x.dtype == tl.float64:
        e = tl.exp(x)
    else:
        near = tl.where(x < LOWEST, LOWEST, x)
        rounded = tl.fma(near, LOG2E, ROUNDER)
        fraction = tl.fma(near, LOG2E_LOW, tl.fma(near, LOG2E, -(rounded - ROUNDER)))
        # In two halves, so that no product but the last can round.
        exponent = rounded.to(tl.int32, bitcast=True) - ROUNDER_BITS
        half = exponent >> 1
        e = tl.exp2(fraction) * power_of_two(half) * power_of_two(exponent - half)
    return e


@triton.jit
def power_of_two(k):
    """Return ``2^k`` in float32, for a k whose result is a normal number."""
    return ((k + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log1p(u):
    """Return ``log(1 + u)`` for u >= 0, in float32 only for u in [0, 1].

    In float64 the rounding of ``1 + u`` is corrected to first order. In float32 the logarithms of
    devices have no digits left near 1, so a polynomial takes their place.
    """
    if u.dtype == tl.float64:
        total = 1.0 + u
        log = tl.log(total) + (u - (total - 1.0)) / total
    else:
        fit = tl.fma(u, LOG1P_OVER[0], LOG1P_OVER[1])
        for k in tl.static_range(2, 11):  # pyright: ignore
            fit = tl.fma(fit, u, LOG1P_OVER[k])
        log = u * fit
    return log


# ---- float64 ------------------------------------------------------------------------------------


@triton.jit
def one_minus_exp(x):
    """Return ``1 - e^-x`` for x >= 0; the error of the exponential cancels that of its log."""
    u = tl.exp(-x)
    middle = (u > 0.01) & (u < 1.0)
    log_u = tl.log(tl.where(middle, u, 0.5))
    return tl.where(middle, (u - 1.0) * x / log_u, tl.where(u < 1.0, 1.0 - u, x))


@triton.jit
def logit_of_exp(log_prob):
    """Return ``logit(exp(log_prob))``; infinity if ``log_prob >= 0``."""
    certain = log_prob >= 0
    x = tl.where(certain, -1.0, log_prob)
    return tl.where(certain, INF, x - tl.log(one_minus_exp(-x)))
