"""The kernel of the sigmoid family: value and gradient of each element from one exponential.

With ``e = exp(-|z|)`` both softplus(z) and softplus(-z) are a maximum plus ``log(1 + e)``, and both
probabilities are a quotient by ``1 + e``. Every sum has terms of one sign, so nothing cancels
where targets are 0 or 1, and the smallest losses keep their digits.

Program k takes the blocks k, k + programs, and so on. So there are a few thousand programs at most:
there are few partial sums to add up, and a launch that finds nothing to do ends soon.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportInvalidTypeForm=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import decay, log1p, product

# How an operand broadcasts: one number for each element, one number for all, with a period, or with
# a repeat and a period.
EACH = tl.constexpr(0)
ONE = tl.constexpr(1)
PERIODIC = tl.constexpr(2)
REPEATED = tl.constexpr(3)


class Operand(NamedTuple):
    """A tensor that broadcasts: element i is number ``i // repeat % period``.

    No entry is None: Triton 3.6 could not tell an operand with such an entry from None.
    """

    at: Any
    kind: Any
    repeat: int = 1
    period: int = 1


class ElementArguments(NamedTuple):
    """The elements, and the factors of the gradient; None is 1 everywhere."""

    count: int
    logits: Any
    target: Operand | None
    weight: Operand | None
    pos_weight: Operand | None
    ignored: float | None  # a target that marks elements to leave out
    upstream: Operand | None  # derivative of the result by the values
    divisor: Any  # one number on the device


class Results(NamedTuple):
    """Outputs of the kernel; None for an output that is not wanted."""

    sums: Any  # of the values, one float64 per program
    value: Any  # `values` is an attribute of Triton's tuples
    gradient: Any


class Numbers(NamedTuple):
    """The numbers of a form, in the dtype of the arithmetic."""

    positive: Any
    negative: Any
    gamma: Any
    side: Any
    plain_above: Any
    gamma_negative: Any
    margin: Any
    smoothing: Any


# ---- operands -----------------------------------------------------------------------------------


@triton.jit
def read(x, begin, j, mask, REAL: tl.constexpr):
    """Load the elements ``begin + j`` of an operand."""
    if x.kind == ONE:
        value = tl.load(x.at)
    elif x.kind == EACH:
        value = tl.load(x.at + begin + j, mask=mask)
    else:
        steps = j
        if x.kind == REPEATED:
            steps = divided(begin % x.repeat, j, x.repeat)[0]
            begin = begin // x.repeat
        value = tl.load(x.at + divided(begin % x.period, steps, x.period)[1], mask=mask)
    return value.to(REAL)


@triton.jit
def divided(first, steps, size):
    """Return quotient and remainder of ``first + steps`` by ``size``, for first < size.

    The arithmetic has the type of the size, nearly always 32 bits, which may not hold the sum.
    """
    first = first.to(size.dtype)
    beyond = steps - (size - first)
    inside = beyond < 0
    beyond = tl.where(inside, 0, beyond)
    quotient = tl.where(inside, 0, 1 + beyond // size)
    return quotient, tl.where(inside, first + steps, beyond % size)


# ---- one element --------------------------------------------------------------------------------


@triton.jit
def halves_of(z):
    """Return (e, 1 / (1 + e), p, 1 - p, softplus(z), softplus(-z)) for ``e = exp(-|z|)``."""
    e = decay(-tl.abs(z))
    unit = 1.0 / (1.0 + e)
    overlap, small = log1p(e), e * unit
    left = z < 0
    up, down = tl.where(z > 0, z, 0.0) + overlap, tl.where(left, -z, 0.0) + overlap
    return e, unit, tl.where(left, small, unit), tl.where(left, unit, small), up, down


@triton.jit
def error_of(f, t, no, p, q):
    """Return (error, turn, share): the modulator is share error^gamma, d error / d z = turn p q."""
    other = f.side * no
    gap = t * q + other * p
    plain = t > f.plain_above
    error = tl.where(plain, 1.0, tl.abs(gap))
    turn = tl.where(plain, 0.0, tl.where(gap < 0, t - other, other - t))
    return error, turn, tl.where(plain, t, f.positive * t + f.negative * no)


@triton.jit
def raised(log_base, exponent):
    """Return ``exp(exponent log_base)``; 1 for exponent 0, whatever the base."""
    return tl.exp(exponent * tl.where(log_base < -1e300, -1e300, log_base))


@triton.jit
def evaluate(f, z, t, no, pos_weight, MODULATOR: tl.constexpr, POWER: tl.constexpr):
    """Return (value, slope) of elements, without a margin.

    ``no`` is 1 - t, given apart where 1 minus the rounded t would lose digits.
    """
    e, unit, p, q, up, down = halves_of(z)
    yes = t * pos_weight
    value = product(yes, down) + product(no, up)
    slope = no * p - yes * q
    if MODULATOR != "plain":
        error, turn, share = error_of(f, t, no, p, q)
        if MODULATOR == "whole":
            power = share  # times error^(gamma - 1)
            for _ in tl.static_range(1, POWER):  # pyright: ignore
                power *= error
            slope = power * (f.gamma * product(turn * p * q, value) + error * slope)
            value = power * product(error, value)
        else:
            # d log error / d z, from p and q without their common factor, which may be rounded to 0
            other = f.side * no
            rest = tl.abs(tl.where(z < 0, t + other * e, t * e + other))
            nothing = rest == 0
            turn *= unit * tl.where(nothing, 1.0, e / tl.where(nothing, 1.0, rest))
            power = share * raised(tl.log(error), f.gamma)
            slope = power * (f.gamma * product(turn, value) + slope)
            value = product(power, value)
    return value, slope


@triton.jit
def evaluate_margin(f, z, t, pos_weight, DETACHED: tl.constexpr):
    """Return (value, slope) of elements, with a margin.

    A target 0 sees ``max(p - margin, 0)`` in the place of p, and has a power of its own.
    """
    _, _, p, q, up, down = halves_of(z)
    no = 1.0 - t
    inside = p > f.margin
    over, turn = tl.where(inside, p - f.margin, 0.0), tl.where(inside, p * q, 0.0)
    error = t * q + no * over
    # rest = 1 - over. Where over is small, the logarithm gets back what 1 - over rounds away;
    # elsewhere q + margin has all digits.
    low = over < 0.5
    rest = tl.where(low, 1.0 - over, q + f.margin)
    near = tl.where(low, (-over - (rest - 1.0)) / rest, 0.0)
    log_rest = tl.log(rest) + near
    if_no, slope = product(no, -log_rest), turn / rest
    if_no = tl.where(f.margin == 0, product(no, up), if_no)  # not from q, which may be 0
    slope = no * tl.where(f.margin == 0, p, slope) - t * (pos_weight * q)
    value = product(t, product(pos_weight, down)) + if_no
    gamma = f.gamma * t + f.gamma_negative * no
    power = raised(tl.log(error), gamma)
    if not DETACHED:
        nothing = error == 0
        of_log = (no * turn - t * p * q) / tl.where(nothing, 1.0, error)
        slope += gamma * product(tl.where(nothing, 0.0, of_log), value)
    return product(power, value), power * slope


@triton.jit
def divergence_term(a, gap, log_ratio):
    """Return ``a log(a / b) + gap``, not negative, for probabilities a and ``b = a + gap``.

    Near 0, where ``log(a / b) = -log(1 + x)`` with ``x = gap / a``, it is ``a (x - log(1 + x))``
    without the parts that cancel: ``log(1 + x) = 2 (s + s^3 / 3 + ...)`` with ``s = x / (2 + x)``.
    """
    close = tl.abs(gap) < 0.25 * a
    s = tl.where(close, gap, 0.0) / tl.where(close, 2.0 * a + gap, 1.0)
    square = s * s
    tail = square * 0.0 + 1.0 / 19
    for k in tl.static_range(8):  # pyright: ignore
        tail = tail * square + 1.0 / (17 - 2 * k)
    series = s * (gap - 2.0 * a * square * tail)
    return tl.where(close, series, gap + product(a, log_ratio))


@triton.jit
def evaluate_excess(z, t):
    """Return (value, slope) of cross-entropy less the entropy of the target.

    The logarithms of t / p and (1 - t) / q need none of p and q, which may be rounded to 0. The gap
    p - t is the slope.
    """
    e, _, p, q, _, _ = halves_of(z)
    no = 1.0 - t
    slope = no * p - t * q
    from_yes = tl.log(t * (1.0 + e)) + tl.where(z < 0, -z, 0.0)
    from_no = tl.log(no * (1.0 + e)) + tl.where(z > 0, z, 0.0)
    return divergence_term(t, slope, from_yes) + divergence_term(no, -slope, from_no), slope


# ---- the sweep ----------------------------------------------------------------------------------


@triton.jit
def store_block(to, numbers, mask):
    """Store a block, rounded to float32 first and then to the dtype of the result."""
    at = to + tl.arange(0, numbers.shape[0])
    tl.store(at, numbers.to(tl.float32).to(to.dtype.element_ty), mask=mask)


@triton.jit
def sweep_block(
    args, out, f, scale, begin, mask,
    MODULATOR: tl.constexpr, POWER: tl.constexpr, DETACHED: tl.constexpr, REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the values of a block in float64; store values and gradient, if they are wanted."""
    j = tl.arange(0, BLOCK)
    z = tl.load(args.logits + begin + j, mask=mask).to(REAL)
    label = read(args.target, begin, j, mask, REAL)
    t = label * (1.0 - f.smoothing) + 0.5 * f.smoothing
    pos_weight = 1.0
    if args.pos_weight is not None:
        pos_weight = read(args.pos_weight, begin, j, mask, REAL)
    if MODULATOR == "margin":
        value, slope = evaluate_margin(f, z, t, pos_weight, DETACHED)
    elif MODULATOR == "excess":
        value, slope = evaluate_excess(z, t)
    else:
        no = (1.0 - label) * (1.0 - f.smoothing) + 0.5 * f.smoothing
        value, slope = evaluate(f, z, t, no, pos_weight, MODULATOR, POWER)
    if args.upstream is not None:
        scale = scale * read(args.upstream, begin, j, mask, REAL)
    if args.weight is not None:
        weight = read(args.weight, begin, j, mask, REAL)
        value, scale = weight * value, weight * scale
    slope = scale * slope
    if args.ignored is not None:
        ignored = label == args.ignored
        value, slope = tl.where(ignored, 0.0, value), tl.where(ignored, 0.0, slope)
    if out.value is not None:
        store_block(out.value + begin, value, mask)
    if out.gradient is not None:
        store_block(out.gradient + begin, slope, mask)
    return value.to(tl.float64)


@triton.jit
def sweep(
    args, out, divisor: tl.float64,
    positive: tl.float64, negative: tl.float64, gamma: tl.float64, side: tl.float64,
    plain_above: tl.float64, gamma_negative: tl.float64, margin: tl.float64,
    smoothing: tl.float64,
    MODULATOR: tl.constexpr, POWER: tl.constexpr, DETACHED: tl.constexpr, DOUBLE: tl.constexpr,
    UNLESS_ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sweep the blocks of one program; an incomplete last block is shared out as all others are."""
    if UNLESS_ONE:  # noqa: SIM102 - otherwise there may be no `upstream` to load
        if tl.load(args.upstream.at) == 1.0:
            return
    scale = 1.0 / tl.full([1], divisor, tl.float64)
    if args.divisor is not None:
        scale /= tl.load(args.divisor).to(tl.float64)
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    f = Numbers(
        tl.full([1], positive, REAL), tl.full([1], negative, REAL), tl.full([1], gamma, REAL),
        tl.full([1], side, REAL), tl.full([1], plain_above, REAL),
        tl.full([1], gamma_negative, REAL), tl.full([1], margin, REAL),
        tl.full([1], smoothing, REAL),
    )  # fmt: skip
    scale = scale.to(REAL)
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    blocks = args.count // BLOCK
    total = tl.zeros([BLOCK], tl.float64)
    for block in range(program, blocks, programs):
        total += sweep_block(
            args, out, f, scale, block * BLOCK, None, MODULATOR, POWER, DETACHED, REAL, BLOCK
        )
    left = args.count - blocks * BLOCK
    if (program == blocks % programs) & (left > 0):
        mask = tl.arange(0, BLOCK) < left
        value = sweep_block(
            args, out, f, scale, blocks * BLOCK, mask, MODULATOR, POWER, DETACHED, REAL, BLOCK
        )
        total += tl.where(mask, value, 0.0)
    if out.sums is not None:
        tl.store(out.sums + program, tl.sum(total))
