"""The element-wise kernel: value and gradient of the sigmoid family from one exponential.

With ``e = exp(-|z|)`` both softplus(z) and softplus(-z) are a maximum plus ``log(1 + e)``, and both
probabilities a quotient by ``1 + e``. Every sum has terms of one sign only, so nothing cancels
where targets are 0 or 1, and the smallest losses keep their digits.

Programs stride over the blocks, so that there are a few thousand of them at most: as many sums are
left to add up, and a launch that finds nothing to do is soon over.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportInvalidTypeForm=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..elements.problem import Form
from .arithmetic import decay, log1p_unit, times

# What multiplies the log terms: nothing, error^gamma for a whole gamma, for any, or with a margin.
PLAIN = tl.constexpr(0)
WHOLE = tl.constexpr(1)
ANY = tl.constexpr(2)
MARGIN = tl.constexpr(3)

# How an operand broadcasts: a number for each element, one for all, or as its numbers say.
EACH = tl.constexpr(0)
ONE = tl.constexpr(1)
ROUND = tl.constexpr(2)


class Operand(NamedTuple):
    """A tensor that broadcasts: element i is number ``i // repeat % period``; no repeat is 1."""

    at: Any
    kind: Any
    repeat: Any = None
    period: Any = None

    @classmethod
    def of(cls, x: Tensor, repeat: int, period: int, count: int) -> Operand:
        """The operand of a problem of so many elements."""
        if (repeat == 1 and period == count) or count == 0:  # then nothing is read
            return cls(x, EACH)
        if period == 1:
            return cls(x, ONE)
        return cls(x, ROUND, None if repeat == 1 else repeat, period)


class Question(NamedTuple):
    """The elements, and what the gradient is multiplied by; None is 1 everywhere."""

    count: int
    logits: Any
    target: Operand | None
    weight: Operand | None
    pos_weight: Operand | None
    ignored: float | None  # a target that marks elements to leave out
    upstream: Operand | None
    divisor: Any  # one number on the device


class Results(NamedTuple):
    """Where results go; None: not wanted."""

    sums: Any  # of the values, one float64 per program
    value: Any  # not `values`, which Triton's tuples have
    gradient: Any


class Numbers(NamedTuple):
    """The numbers of a form, in the type of the sweep."""

    positive: Any
    negative: Any
    gamma: Any
    side: Any
    plain_above: Any
    gamma_negative: Any
    margin: Any


def modulator_of(form: Form) -> tuple[int, int]:
    """The modulator of a form, and its power if that is whole."""
    if form.margin >= 0:
        return MARGIN.value, 0
    if form == Form(side=form.side):
        return PLAIN.value, 0
    if form.gamma in range(1, 9):
        return WHOLE.value, int(form.gamma)
    return ANY.value, 0


def in_double(form: Form) -> bool:
    """Whether float32 would be left without digits.

    So it is by powers that go through logarithms, and by a difference of target and probability.
    """
    return modulator_of(form)[0] in (ANY.value, MARGIN.value) or form.side < 0


# ---- operands -----------------------------------------------------------------------------------


@triton.jit
def read(x, begin, j, there, REAL: tl.constexpr):
    """Elements ``begin + j`` of an operand."""
    if x.kind == ONE:
        value = tl.load(x.at)
    elif x.kind == EACH:
        value = tl.load(x.at + begin + j, mask=there)
    else:
        turn = j
        if x.repeat is not None:
            turn = divided(begin % x.repeat, j, x.repeat)[0]
            begin = begin // x.repeat
        value = tl.load(x.at + divided(begin % x.period, turn, x.period)[1], mask=there)
    return value.to(REAL)


@triton.jit
def divided(first, steps, size):
    """Quotient and remainder of ``first + steps`` by ``size``, for first < size.

    In the type of the size, nearly always 32 bits, which might not hold the sum.
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
    """(e, 1 / (1 + e), p, 1 - p, softplus(z), softplus(-z)) for ``e = exp(-|z|)``."""
    e = decay(-tl.abs(z))
    unit = 1.0 / (1.0 + e)
    overlap, small = log1p_unit(e), e * unit
    left = z < 0
    up, down = tl.where(z > 0, z, 0.0) + overlap, tl.where(left, -z, 0.0) + overlap
    return e, unit, tl.where(left, small, unit), tl.where(left, unit, small), up, down


@triton.jit
def error_of(f, t, no, p, q):
    """(error, turn, share) of a modulator; d error / d z = turn p q."""
    other = f.side * no
    gap = t * q + other * p
    plain = t > f.plain_above
    error = tl.where(plain, 1.0, tl.abs(gap))
    turn = tl.where(plain, 0.0, tl.where(gap < 0, t - other, other - t))
    return error, turn, tl.where(plain, t, f.positive * t + f.negative * no)


@triton.jit
def raised(log_base, exponent):
    """A power of what has this logarithm; exponent 0 makes 1 of everything."""
    return tl.exp(exponent * tl.where(log_base < -1e300, -1e300, log_base))


@triton.jit
def evaluate(f, z, t, pos_weight, MODULATOR: tl.constexpr, POWER: tl.constexpr):
    """(value, slope) of elements, without a margin."""
    e, unit, p, q, up, down = halves_of(z)
    no = 1.0 - t
    yes = t * pos_weight
    value = times(yes, down) + times(no, up)
    slope = no * p - yes * q
    if MODULATOR != PLAIN:
        error, turn, share = error_of(f, t, no, p, q)
        if MODULATOR == WHOLE:
            power = share  # times error^(gamma - 1)
            for _ in tl.static_range(1, POWER):  # pyright: ignore
                power *= error
            slope = power * (f.gamma * times(turn * p * q, value) + error * slope)
            value = power * times(error, value)
        else:
            # d log error / d z, p and q without their common factor, which may have vanished.
            other = f.side * no
            rest = tl.abs(tl.where(z < 0, t + other * e, t * e + other))
            nothing = rest == 0
            turn *= unit * tl.where(nothing, 1.0, e / tl.where(nothing, 1.0, rest))
            power = share * raised(tl.log(error), f.gamma)
            slope = power * (f.gamma * times(turn, value) + slope)
            value = times(power, value)
    return value, slope


@triton.jit
def evaluate_margin(f, z, t, pos_weight, DETACHED: tl.constexpr):
    """Targets 0 see the probability less a margin, ``max(p - margin, 0)``, with their own power."""
    _, _, p, q, up, down = halves_of(z)
    no = 1.0 - t
    inside = p > f.margin
    over, turn = tl.where(inside, p - f.margin, 0.0), tl.where(inside, p * q, 0.0)
    error = t * q + no * over
    # 1 - over from itself where that is small, where its logarithm has what 1 - over rounds away
    # put back, and from q where it is not.
    low = p < 0.5
    rest = tl.where(low, 1.0 - over, q + f.margin)
    near = tl.where(low, (-over - (rest - 1.0)) / rest, 0.0)
    log_rest = tl.log(rest) + near
    if_no, slope = times(no, -log_rest), turn / rest
    if_no = tl.where(f.margin == 0, times(no, up), if_no)  # not by q, which may have vanished
    slope = no * tl.where(f.margin == 0, p, slope) - t * (pos_weight * q)
    value = times(t, times(pos_weight, down)) + if_no
    gamma = f.gamma * t + f.gamma_negative * no
    power = raised(tl.log(error), gamma)
    if not DETACHED:
        nothing = error == 0
        of_log = (no * turn - t * p * q) / tl.where(nothing, 1.0, error)
        slope += gamma * times(tl.where(nothing, 0.0, of_log), value)
    return times(power, value), power * slope


# ---- the sweep ----------------------------------------------------------------------------------


@triton.jit
def put(to, numbers, there):
    """Store a block, rounded as if it were float32 first."""
    at = to + tl.arange(0, numbers.shape[0])
    tl.store(at, numbers.to(tl.float32).to(to.dtype.element_ty), mask=there)


@triton.jit
def sweep_block(
    q, out, f, scale, begin, there,
    MODULATOR: tl.constexpr, POWER: tl.constexpr, DETACHED: tl.constexpr, REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Values of a block, stored if they are wanted, as is the gradient; a mask for the last."""
    j = tl.arange(0, BLOCK)
    z = tl.load(q.logits + begin + j, mask=there).to(REAL)
    t = read(q.target, begin, j, there, REAL)
    pos_weight = 1.0
    if q.pos_weight is not None:
        pos_weight = read(q.pos_weight, begin, j, there, REAL)
    if MODULATOR == MARGIN:
        value, slope = evaluate_margin(f, z, t, pos_weight, DETACHED)
    else:
        value, slope = evaluate(f, z, t, pos_weight, MODULATOR, POWER)
    if q.upstream is not None:
        scale = scale * read(q.upstream, begin, j, there, REAL)
    if q.weight is not None:
        weight = read(q.weight, begin, j, there, REAL)
        value, scale = weight * value, weight * scale
    slope = scale * slope
    if q.ignored is not None:
        ignored = t == q.ignored
        value, slope = tl.where(ignored, 0.0, value), tl.where(ignored, 0.0, slope)
    if out.value is not None:
        put(out.value + begin, value, there)
    if out.gradient is not None:
        put(out.gradient + begin, slope, there)
    return value.to(tl.float64)


@triton.jit
def sweep(
    q, out, divisor: tl.float64,
    positive: tl.float64, negative: tl.float64, gamma: tl.float64, side: tl.float64,
    plain_above: tl.float64, gamma_negative: tl.float64, margin: tl.float64,
    MODULATOR: tl.constexpr, POWER: tl.constexpr, DETACHED: tl.constexpr, DOUBLE: tl.constexpr,
    UNLESS_ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Whole blocks by strides, and what is left over by the program whose turn it is."""
    if UNLESS_ONE:  # noqa: SIM102 - a constant, and the other may not be there
        if tl.load(q.upstream.at) == 1.0:
            return
    scale = 1.0 / tl.full([1], divisor, tl.float64)
    if q.divisor is not None:
        scale /= tl.load(q.divisor).to(tl.float64)
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    f = Numbers(
        tl.full([1], positive, REAL), tl.full([1], negative, REAL), tl.full([1], gamma, REAL),
        tl.full([1], side, REAL), tl.full([1], plain_above, REAL),
        tl.full([1], gamma_negative, REAL), tl.full([1], margin, REAL),
    )  # fmt: skip
    scale = scale.to(REAL)
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    blocks = q.count // BLOCK
    total = tl.zeros([BLOCK], tl.float64)
    for block in range(program, blocks, programs):
        total += sweep_block(
            q, out, f, scale, block * BLOCK, None, MODULATOR, POWER, DETACHED, REAL, BLOCK
        )
    left = q.count - blocks * BLOCK
    if (program == blocks % programs) & (left > 0):
        there = tl.arange(0, BLOCK) < left
        value = sweep_block(
            q, out, f, scale, blocks * BLOCK, there, MODULATOR, POWER, DETACHED, REAL, BLOCK
        )
        total += tl.where(there, value, 0.0)
    if out.sums is not None:
        tl.store(out.sums + program, tl.sum(total))
