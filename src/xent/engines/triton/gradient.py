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
from .problem import (
    addresses,
    find_tile,
    holds,
    is_class,
    load_logits,
    load_soft,
    read_labels,
    slot,
)  # fmt: skip
from .statistics import (
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
)  # fmt: skip

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
def field(table, name: tl.constexpr, n, rows, there, FIELDS: tl.constexpr):
    """A field of the table."""
    return tl.load(table + slot(FIELDS, name) * rows.to(tl.int64) + n, mask=there, other=0.0)


@triton.jit
def partial(at, step, n, there):
    """A partial derivative per row."""
    value = tl.zeros(n.shape, tl.float64)
    if at is not None:
        value = tl.load(at + n * step, mask=there, other=0.0)
    return value


@triton.jit
def put_coefficient(to, name: tl.constexpr, value, n, rows, there, NEEDED: tl.constexpr):
    """Store one coefficient of rows, if it is needed."""
    if holds(NEEDED, name):
        at = to + slot(NEEDED, name) * rows.to(tl.int64) + n
        tl.store(at, value.to(tl.float32), mask=there)


@triton.jit
def find_slopes(
    q, table, partials, steps, coefficients, places, rows,
    FIELDS: tl.constexpr, NEEDED: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The coefficients of COUNT rows, and the places of pivot and top, (2, N) int32."""
    n = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    there = n < rows
    place, kept = read_labels(q, n, there)
    EXACT: tl.constexpr = holds(NEEDED, SPREAD)
    IS_SOFT: tl.constexpr = q.soft is not None
    shift = field(table, F_SHIFT, n, rows, there, FIELDS)
    total = field(table, F_SUM, n, rows, there, FIELDS)
    if IS_SOFT:
        d = field(table, F_PIVOT_LOG_ODDS, n, rows, there, FIELDS)
        pivot = field(table, F_TOP, n, rows, there, FIELDS).to(tl.int64)
    else:
        d = field(table, F_LOG_ODDS, n, rows, there, FIELDS)
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
        mass = field(table, F_MASS, n, rows, there, FIELDS)
        nll = -field(table, F_LOG_PROB, n, rows, there, FIELDS)
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
        entropy = field(table, F_ENTROPY, n, rows, there, FIELDS)
        both = overlap(d)
        above = tl.where(d < 0, -d, 0.0) + both
        log_sum = field(table, F_LOG_SUM, n, rows, there, FIELDS)
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
            slope += 2 * of_squares * field(table, F_REST_SQUARES, n, rows, there, FIELDS)
            square = 2 * of_squares * p * p
        if partials.rest_cubes is not None:
            of_cubes = partial(partials.rest_cubes, steps.rest_cubes, n, there)
            slope += 3 * of_cubes * field(table, F_REST_CUBES, n, rows, there, FIELDS)
            cube = 3 * of_cubes * p * p * p
        all_ -= rest_p * slope
        at_pivot -= pivot_p * slope
    if holds(NEEDED, MEAN):
        support = field(table, F_SUPPORT, n, rows, there, FIELDS)
        slope = partial(partials.mean, steps.mean, n, there)
        mean = tl.where(support == 0, 0.0, slope / tl.where(support == 0, 1.0, support))
        here = kept & (pivot >= 0) & (support > 0)
        if not IS_SOFT:
            here = here & (field(table, F_TARGET, n, rows, there, FIELDS) != -INF)
        at_pivot += tl.where(here, mean * weight_of_class(q.mean_weight, pivot, here), 0.0)

    scale = tl.full([COUNT], 1.0, tl.float64)
    if q.transform.scale is not None:
        scale = tl.load(q.transform.scale + n * q.transform.scale_step, mask=there, other=1.0)
    top = tl.full([COUNT], -1, tl.int64)
    if holds(NEEDED, AT_TOP):  # the likeliest of the rest has a partial derivative of its own
        z = field(table, F_REST_TOP_LOGIT, n, rows, there, FIELDS)
        here = kept & (z != -INF)
        top = tl.where(here, field(table, F_REST_TOP, n, rows, there, FIELDS).to(tl.int64), -1)
        x = tl.where(here, z, base) - base
        e = tl.exp(x)
        at_top = partial(partials.rest_top_logit, steps.rest_top_logit, n, there)
        at_top += e * (unit * (all_ + spread * x) + e * (square + e * cube))
        at_top += mean * weight_of_class(q.mean_weight, top, here)
        put_coefficient(coefficients, AT_TOP, at_top * scale, n, rows, there, NEEDED)

    unit *= scale
    all_ = tl.where(kept, times(unit, all_), 0.0)
    put_coefficient(coefficients, OFFSET, tl.where(kept, offset, 0.0), n, rows, there, NEEDED)
    put_coefficient(coefficients, WHOLE, tl.where(kept, whole, 0.0), n, rows, there, NEEDED)
    put_coefficient(coefficients, ALL, all_, n, rows, there, NEEDED)
    put_coefficient(coefficients, AT_PIVOT, at_pivot * scale, n, rows, there, NEEDED)
    spread = tl.where(kept, unit * spread, 0.0)
    put_coefficient(coefficients, SPREAD, spread, n, rows, there, NEEDED)
    square, cube = tl.where(kept, scale * square, 0.0), tl.where(kept, scale * cube, 0.0)
    put_coefficient(coefficients, SQUARE, square, n, rows, there, NEEDED)
    put_coefficient(coefficients, CUBE, cube, n, rows, there, NEEDED)
    mean, soft = tl.where(kept, scale * mean, 0.0), tl.where(kept, scale * soft, 0.0)
    put_coefficient(coefficients, MEAN, mean, n, rows, there, NEEDED)
    put_coefficient(coefficients, SOFT, soft, n, rows, there, NEEDED)
    tl.store(places + n, tl.where(kept, pivot, -1).to(tl.int32), mask=there)
    if holds(NEEDED, AT_TOP):
        tl.store(places + rows.to(tl.int64) + n, top.to(tl.int32), mask=there)


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
def coefficient(table, name: tl.constexpr, n, rows, there, NEEDED: tl.constexpr):
    """One coefficient of rows, beside their classes."""
    at = table + slot(NEEDED, name) * rows.to(tl.int64) + n
    return tl.load(at, mask=there, other=0.0)[:, None]


@triton.jit
def differentiate(
    q, coefficients, places, out, rows,
    NEEDED: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per tile, the last rows first: forward has left them in the cache."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    outer, inner, there, _, classes = find_tile(q, tile, ALIGN, ROWS, BLOCK)
    n = outer * q.inner_rows + inner
    place, kept = read_labels(q, n, there)
    z, slope = load_logits(q, outer, inner, n, there, kept, classes, 0.0, "", ALIGN)
    x = z - coefficient(coefficients, OFFSET, n, rows, there, NEEDED)
    whole = coefficient(coefficients, WHOLE, n, rows, there, NEEDED)
    e, fade = split_power(x, whole, holds(NEEDED, SPREAD))
    factor = coefficient(coefficients, ALL, n, rows, there, NEEDED)
    if holds(NEEDED, SPREAD):
        factor += coefficient(coefficients, SPREAD, n, rows, there, NEEDED) * x
        factor = tl.where(e == 0.0, 0.0, factor)
    if holds(NEEDED, SQUARE):
        cube = coefficient(coefficients, CUBE, n, rows, there, NEEDED)
        power = e * fade
        factor += power * (coefficient(coefficients, SQUARE, n, rows, there, NEEDED) + power * cube)
    g = e * (fade * factor)
    inside = is_class(q, classes, ALIGN)
    if holds(NEEDED, MEAN):
        mean = coefficient(coefficients, MEAN, n, rows, there, NEEDED)
        if q.mean_weight is not None:
            mean = mean * tl.load(q.mean_weight + classes, mask=inside, other=0.0)[None, :]
        g += tl.where(z == -INF, 0.0, mean)
    if holds(NEEDED, SOFT):
        soft = load_soft(q, outer, inner, n, kept, classes, place, ALIGN)
        g += coefficient(coefficients, SOFT, n, rows, there, NEEDED) * soft
    pivot = tl.load(places + n, mask=there, other=-1)[:, None]
    at_pivot = coefficient(coefficients, AT_PIVOT, n, rows, there, NEEDED)
    g = tl.where(classes[None, :] == pivot, at_pivot, g)
    if holds(NEEDED, AT_TOP):
        top = tl.load(places + rows.to(tl.int64) + n, mask=there, other=-1)[:, None]
        at_top = coefficient(coefficients, AT_TOP, n, rows, there, NEEDED)
        g = tl.where(classes[None, :] == top, at_top, g)
    g = tl.where(g == 0.0, g, g * slope)
    to = addresses(out, outer, inner, classes, ALIGN)
    tl.store(to, g.to(out.at.dtype.element_ty), mask=there[:, None] & inside[None, :])
