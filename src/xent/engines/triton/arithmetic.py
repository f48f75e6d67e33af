"""Arithmetic of the kernels: exponentials of float32 logits, and functions of rows and elements.

The sweep over the classes runs in float32, what is done once per row in float64. Nothing here calls
a device library, so the same code runs in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
LOG2E = tl.constexpr(1.44269502162933349609375)  # log2(e) to the digits of float32
LOG2E_LOW = tl.constexpr(1.925963033500904e-8)  # and the rest
ROUNDER = tl.constexpr(1.5 * 2**23)  # what is added to this has no digits behind the point
ROUNDER_BITS = tl.constexpr(0x4B400000)
EXPONENT = tl.constexpr(1.5 * 2**23 + 127)  # and to this: those of 2^x besides, in its lowest bits
FAR = tl.constexpr(2.0**20)
ROOM = tl.constexpr(64.0)  # exponents that small numbers are lifted by
LOWEST = tl.constexpr(-110.0)  # from here down e^x is 0 in float32
# Minimax fit of log(1 + u) / u in [0, 1], the last power first; relative error 8e-10.
LOG1P_OVER = tl.constexpr(
    (0.00203024259141, -0.0134075368593, 0.0414782430224, -0.0824417732684, 0.124184377179,
     -0.161056923308, 0.198907479586, -0.24987270907, 0.333325596283, -0.499999814337,
     0.999999999257)
)  # fmt: skip


# ---- exponentials of logits ---------------------------------------------------------------------


@triton.jit
def base_of(largest, EXACT: tl.constexpr):
    """(offset, whole) of a row for :func:`power`, in float32.

    With an integer for a shift, ``2^(z log2(e) - whole)`` needs no subtraction, which would round.
    Beyond some 2^20 there are not the digits for that, and where differences of logits are wanted
    too, they must be exact: then the largest logit is subtracted first.
    """
    offset = tl.where(largest == -INF, 0.0, largest)
    whole = tl.zeros_like(largest)
    if not EXACT:
        near = tl.abs(largest) < FAR
        rounded = tl.fma(tl.where(near, largest, 0.0), LOG2E, ROUNDER) - ROUNDER
        whole = tl.where(near, rounded, whole)
        offset = tl.where(near, 0.0, offset)
    return offset, whole


@triton.jit
def shift_of(offset, whole):
    """The logit whose :func:`power` is 1, in float64."""
    return offset.to(tl.float64) + whole.to(tl.float64) / LOG2E


@triton.jit
def power(x, whole, EXACT: tl.constexpr):
    """``e^(x - whole / log2(e))`` for logits less their offset; 0 below the normal numbers."""
    if not EXACT:
        return tl.exp2(tl.fma(x, LOG2E, -whole))
    e, fade = split_power(x, whole, EXACT)
    return e * fade


@triton.jit
def split_power(x, whole, EXACT: tl.constexpr):
    """The same as a product of two normal numbers, for products that reach down to subnormals."""
    if not EXACT:
        y = tl.fma(x, LOG2E, -whole)
        low = y < -ROOM
        return tl.exp2(tl.where(low, y + ROOM, y)), tl.where(low, 2.0**-ROOM, 1.0)
    # Of a rounded product the fraction would be gone; so the whole part is taken off first.
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
def gap_to(logit, offset, whole):
    """How far a logit lies above a shift: (integer, fraction) of an exponent of 2.

    As one number it would have lost the digits of its own exponential, by an ulp per nat.
    """
    x = logit - offset
    biased = tl.fma(x, LOG2E, -(whole - ROUNDER))
    floor = biased - ROUNDER
    fraction = tl.fma(x, LOG2E, -(whole + floor)) + (x - whole / LOG2E) * LOG2E_LOW
    # Where the integer has lost its last digits, or is infinite, it says everything.
    fraction = tl.where(tl.abs(x) > 4 * FAR, 0.0, fraction)
    return floor, fraction


@triton.jit
def tanh(x):
    """An odd polynomial near 0, the exponential beyond, where little is taken from 1."""
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
def times(factor, value):
    """A product in which 0 times infinity is 0."""
    return tl.where(factor == 0, 0.0, factor * tl.where(factor == 0, 0.0, value))


@triton.jit
def decay(x):
    """``e^x`` for x <= 0, right down into the subnormal numbers."""
    if x.dtype == tl.float64:
        e = tl.exp(x)
    else:
        near = tl.where(x < LOWEST, LOWEST, x)
        rounded = tl.fma(near, LOG2E, ROUNDER)
        fraction = tl.fma(near, LOG2E_LOW, tl.fma(near, LOG2E, -(rounded - ROUNDER)))
        # In two halves, so that no product but the last can round.
        whole = rounded.to(tl.int32, bitcast=True) - ROUNDER_BITS
        half = whole >> 1
        e = tl.exp2(fraction) * power_of_two(half) * power_of_two(whole - half)
    return e


@triton.jit
def power_of_two(k):
    """``2^k`` in float32, among the normal numbers."""
    return ((k + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log1p_unit(u):
    """``log(1 + u)`` for u in [0, 1].

    In float64 what ``1 + u`` rounds away is put back to first order; in float32 the logarithms of
    devices have no digits left beside 1.
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
def overlap(d):
    """``log(1 + e^-|d|)``, the part that log sigmoid(d) and log sigmoid(-d) share."""
    return log1p_unit(tl.exp(-tl.abs(d)))


@triton.jit
def sigmoid(d):
    """``1 / (1 + e^-d)`` with all digits of small values."""
    e = tl.exp(-tl.abs(d))
    return tl.where(d < 0, e, 1.0) / (1.0 + e)


@triton.jit
def one_minus_exp(x):
    """``1 - e^-x`` for x >= 0; the error of the exponential cancels that of its logarithm."""
    u = tl.exp(-x)
    middle = (u > 0.01) & (u < 1.0)
    log_u = tl.log(tl.where(middle, u, 0.5))
    return tl.where(middle, (u - 1.0) * x / log_u, tl.where(u < 1.0, 1.0 - u, x))
