"""Backward: coefficients per row from the loss's partial derivatives, then one sweep.

    table, partials --find_slopes--> coefficients, (C, N) float32 --differentiate--> gradient

With ``e_j = exp(z_j - shift)``, for every class but the pivot

    d loss / d z_j = e_j (all + spread (z_j - shift) + e_j (square + cube e_j))
                     + mean c_j + soft q_j

The entries of the pivot, and of the likeliest other class where it has a partial derivative of its
own, are formed in float64 from the log-odds: no "p - 1".
"""

# pyright: reportArgumentType=false, reportAssignmentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import INF, base_of, one_minus_exp, overlap, shift_of, sigmoid, split_power, times
from .fields import (
    F_ENTROPY,
    F_LOG_ODDS,
    F_LOG_PROB,
    F_LOG_SUM,
    F_MASS,
    F_PIVOT_LOG_ODDS,
    F_REST_CUBES,
    F_REST_SQUARES,
    F_REST_TOP,
    F_REST_TOP_LOGIT,
    F_SHIFT,
    F_SUM,
    F_SUPPORT,
    F_TARGET,
    F_TOP,
    weight_of_class,
)
from .problem import (
    addresses,
    column,
    find_some_rows,
    find_tile,
    holds,
    is_class,
    load_logits,
    load_soft,
    slot,
)

# The coefficients, and the bit of each in the set of those that are needed.
OFFSET = tl.constexpr(0)
WHOLE = tl.constexpr(1)
ALL = tl.constexpr(2)
AT_PIVOT = tl.constexpr(3)
SPREAD = tl.constexpr(4)
SQUARE = tl.constexpr(5)
CUBE = tl.constexpr(6)
MEAN = tl.constexpr(7)
SOFT = tl.constexpr(8)
AT_TOP = tl.constexpr(9)


class Partials(NamedTuple):
    """Partial derivatives by the fields, one float64 per row; None for zeros."""

    log_odds: Any
    log_prob: Any
    target: Any
    lse: Any
    entropy: Any
    mean: Any
    rest_top_logit: Any
    rest_squares: Any
    rest_cubes: Any


@triton.jit
def field(q, table, name: tl.constexpr, n, there, FIELDS: tl.constexpr):
    """A field of the table."""
    return tl.load(table + column(q, slot(FIELDS, name), n), mask=there, other=0.0)


@triton.jit
def partial(at, step, n, there):
    """A partial derivative per row."""
    value = tl.zeros(n.shape, tl.float64)
    if at is not None:
        value = tl.load(at + n * step, mask=there, other=0.0)
    return value


@triton.jit
def put_coefficient(sink, name: tl.constexpr, value, NEEDED: tl.constexpr):
    """Store one coefficient of rows, if it is needed."""
    to, q, n, there = sink
    if holds(NEEDED, name):
        at = to + column(q, slot(NEEDED, name), n)
        tl.store(at, value.to(tl.float32), mask=there)


@triton.jit
def find_slopes(
    q, table, partials, steps, coefficients, places,
    FIELDS: tl.constexpr, NEEDED: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The coefficients of COUNT rows, and the places of pivot and top, (2, N) int32."""
    n, there, place, kept = find_some_rows(q, COUNT)
    sink = coefficients, q, n, there
    EXACT: tl.constexpr = holds(NEEDED, SPREAD)
    IS_SOFT: tl.constexpr = q.soft is not None
    shift = field(q, table, F_SHIFT, n, there, FIELDS)
    total = field(q, table, F_SUM, n, there, FIELDS)
    if IS_SOFT:
        d = field(q, table, F_PIVOT_LOG_ODDS, n, there, FIELDS)
        pivot = field(q, table, F_TOP, n, there, FIELDS).to(tl.int64)
    else:
        d = field(q, table, F_LOG_ODDS, n, there, FIELDS)
        pivot = place
    pivot_p, rest_p = sigmoid(d), sigmoid(-d)
    # unit e_j = p_j / rest_p; without a sum, all the rest is masked
    offset, whole = base_of(shift.to(tl.float32), EXACT)
    base = shift_of(offset, whole)
    gap = tl.where(shift == -INF, 0.0, base - shift)
    unit = tl.where(total == 0, 0.0, tl.exp(gap) / tl.where(total == 0, 1.0, total))
    of_lse = partial(partials.lse, steps.lse, n, there)
    of_odds = partial(partials.log_odds, steps.log_odds, n, there)
    of_prob = partial(partials.log_prob, steps.log_prob, n, there)
    of_target = partial(partials.target, steps.target, n, there)
    soft = tl.zeros([COUNT], tl.float64)
    if IS_SOFT:
        mass = field(q, table, F_MASS, n, there, FIELDS)
        nll = -field(q, table, F_LOG_PROB, n, there, FIELDS)
        # log_odds is a function of log_prob = sum_j q_j log p_j; its derivative is 1 / (1 - prob).
        flat = (of_odds == 0) | (nll <= 0)
        slope = of_prob + tl.where(flat, 0.0, of_odds / one_minus_exp(tl.where(flat, 1.0, nll)))
        own = soft_of_pivot(q, n, pivot, place, kept)
        all_ = (of_lse - slope * mass) * rest_p
        at_pivot = of_lse * pivot_p + slope * ((own - mass) + mass * rest_p) + of_target * own
        soft = slope + of_target
    else:
        slope = of_odds + times(rest_p, of_prob)
        all_ = of_lse * rest_p - slope
        at_pivot = of_lse * pivot_p + slope + of_target
    spread, square = tl.zeros([COUNT], tl.float64), tl.zeros([COUNT], tl.float64)
    cube, mean = tl.zeros([COUNT], tl.float64), tl.zeros([COUNT], tl.float64)
    if holds(NEEDED, SPREAD):  # d H / d z_j = -p_j (log p_j + H)
        slope = partial(partials.entropy, steps.entropy, n, there)
        entropy = field(q, table, F_ENTROPY, n, there, FIELDS)
        both = overlap(d)
        above = tl.where(d < 0, -d, 0.0) + both
        log_sum = field(q, table, F_LOG_SUM, n, there, FIELDS)
        below = log_sum + tl.where(d < 0, 0.0, d) + both
        all_ += times(rest_p, slope * (below - entropy))
        at_pivot += times(pivot_p, slope * (above - entropy))
        spread = -slope * rest_p
    if holds(NEEDED, SQUARE):
        # d (sum over the rest of p_j^k) / d z_j = k p_j (p_j^(k - 1) [j in the rest] - sum)
        slope = tl.zeros([COUNT], tl.float64)
        p = unit * rest_p
        if partials.rest_squares is not None:
            of_squares = partial(partials.rest_squares, steps.rest_squares, n, there)
            slope += 2 * of_squares * field(q, table, F_REST_SQUARES, n, there, FIELDS)
            square = 2 * of_squares * p * p
        if partials.rest_cubes is not None:
            of_cubes = partial(partials.rest_cubes, steps.rest_cubes, n, there)
            slope += 3 * of_cubes * field(q, table, F_REST_CUBES, n, there, FIELDS)
            cube = 3 * of_cubes * p * p * p
        all_ -= rest_p * slope
        at_pivot -= pivot_p * slope
    if holds(NEEDED, MEAN):
        support = field(q, table, F_SUPPORT, n, there, FIELDS)
        slope = partial(partials.mean, steps.mean, n, there)
        mean = tl.where(support == 0, 0.0, slope / tl.where(support == 0, 1.0, support))
        here = kept & (pivot >= 0) & (support > 0)
        if not IS_SOFT:
            here = here & (field(q, table, F_TARGET, n, there, FIELDS) != -INF)
        at_pivot += tl.where(here, mean * weight_of_class(q.mean_weight, pivot, here), 0.0)

    scale = tl.full([COUNT], 1.0, tl.float64)
    if q.transform.scale is not None:
        scale = tl.load(q.transform.scale + n * q.transform.scale_step, mask=there, other=1.0)
    top = tl.full([COUNT], -1, tl.int64)
    if holds(NEEDED, AT_TOP):  # the likeliest of the rest has a partial derivative of its own
        z = field(q, table, F_REST_TOP_LOGIT, n, there, FIELDS)
        here = kept & (z != -INF)
        top = tl.where(here, field(q, table, F_REST_TOP, n, there, FIELDS).to(tl.int64), -1)
        x = tl.where(here, z, base) - base
        e = tl.exp(x)
        at_top = partial(partials.rest_top_logit, steps.rest_top_logit, n, there)
        at_top += e * (unit * (all_ + spread * x) + e * (square + e * cube))
        at_top += mean * weight_of_class(q.mean_weight, top, here)
        put_coefficient(sink, AT_TOP, at_top * scale, NEEDED)

    unit *= scale
    all_ = tl.where(kept, times(unit, all_), 0.0)
    put_coefficient(sink, OFFSET, tl.where(kept, offset, 0.0), NEEDED)
    put_coefficient(sink, WHOLE, tl.where(kept, whole, 0.0), NEEDED)
    put_coefficient(sink, ALL, all_, NEEDED)
    put_coefficient(sink, AT_PIVOT, at_pivot * scale, NEEDED)
    spread = tl.where(kept, unit * spread, 0.0)
    put_coefficient(sink, SPREAD, spread, NEEDED)
    square, cube = tl.where(kept, scale * square, 0.0), tl.where(kept, scale * cube, 0.0)
    put_coefficient(sink, SQUARE, square, NEEDED)
    put_coefficient(sink, CUBE, cube, NEEDED)
    mean, soft = tl.where(kept, scale * mean, 0.0), tl.where(kept, scale * soft, 0.0)
    put_coefficient(sink, MEAN, mean, NEEDED)
    put_coefficient(sink, SOFT, soft, NEEDED)
    tl.store(places + n, tl.where(kept, pivot, -1).to(tl.int32), mask=there)
    if holds(NEEDED, AT_TOP):
        tl.store(places + column(q, 1, n), top.to(tl.int32), mask=there)


@triton.jit
def soft_of_pivot(q, n, pivot, place, kept):
    """The soft target of the pivot."""
    if q.labels is None:
        row = n // q.inner_rows * q.soft.outer + n % q.inner_rows * q.soft.inner
    else:
        kept = kept & (place >= 0)
        row = tl.where(kept, place, 0) * q.soft.inner
    own = tl.load(q.soft.at + row + pivot * q.soft.step, mask=kept, other=0.0)
    own = own.to(tl.float32)
    if q.class_weight is not None:
        own *= tl.load(q.class_weight + pivot, mask=kept, other=0.0)
    return own.to(tl.float64)


# ---- the sweep ----------------------------------------------------------------------------------


@triton.jit
def coefficient(source, name: tl.constexpr, NEEDED: tl.constexpr):
    """One coefficient of rows, beside their classes."""
    table, q, n, there = source
    return tl.load(table + column(q, slot(NEEDED, name), n), mask=there, other=0.0)[:, None]


@triton.jit
def differentiate(
    q, coefficients, places, out,
    NEEDED: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per tile, the last rows first: forward has left them in the cache."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    rows, _, classes = find_tile(q, tile, ALIGN, ROWS, BLOCK)
    n, there, outer, inner, _, _ = rows
    source = coefficients, q, n, there
    z, slope = load_logits(q, rows, classes, 0.0, "", ALIGN)
    x = z - coefficient(source, OFFSET, NEEDED)
    whole = coefficient(source, WHOLE, NEEDED)
    e, fade = split_power(x, whole, holds(NEEDED, SPREAD))
    factor = coefficient(source, ALL, NEEDED)
    if holds(NEEDED, SPREAD):
        factor += tl.where(e == 0.0, 0.0, coefficient(source, SPREAD, NEEDED) * x)
    if holds(NEEDED, SQUARE):
        cube = coefficient(source, CUBE, NEEDED)
        power = e * fade
        factor += power * (coefficient(source, SQUARE, NEEDED) + power * cube)
    g = e * (fade * factor)
    inside = is_class(q, classes, ALIGN)
    if holds(NEEDED, MEAN):
        mean = coefficient(source, MEAN, NEEDED)
        if q.mean_weight is not None:
            mean = mean * tl.load(q.mean_weight + classes, mask=inside, other=0.0)[None, :]
        g += tl.where(z == -INF, 0.0, mean)
    if holds(NEEDED, SOFT):
        soft = load_soft(q, rows, classes, ALIGN)
        g += coefficient(source, SOFT, NEEDED) * soft
    pivot = tl.load(places + n, mask=there, other=-1)[:, None]
    at_pivot = coefficient(source, AT_PIVOT, NEEDED)
    g = tl.where(classes[None, :] == pivot, at_pivot, g)
    if holds(NEEDED, AT_TOP):
        top = tl.load(places + column(q, 1, n), mask=there, other=-1)[:, None]
        at_top = coefficient(source, AT_TOP, NEEDED)
        g = tl.where(classes[None, :] == top, at_top, g)
    g = tl.where(g == 0.0, g, g * slope)
    to = addresses(out, outer, inner, classes, ALIGN)
    tl.store(to, g.to(out.at.dtype.element_ty), mask=there[:, None] & inside[None, :])
