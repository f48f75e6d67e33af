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
from .memory import (
    addresses,
    column,
    find_some_rows,
    find_tile,
    holds,
    is_class,
    load_logits,
    load_soft,
    scale_in_double,
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
def field(source, name: tl.constexpr, FIELDS: tl.constexpr):
    """A field of the table."""
    table, q, n, there = source
    return tl.load(table + column(q, slot(FIELDS, name), n), mask=there, other=0.0)


@triton.jit
def partial(source, at, step):
    """A partial derivative per row."""
    _, _, n, there = source
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
    source = table, q, n, there
    none = tl.zeros([COUNT], tl.float64)
    if holds(NEEDED, SOFT):
        d = field(source, F_PIVOT_LOG_ODDS, FIELDS)
        pivot = field(source, F_TOP, FIELDS).to(tl.int64)
        own = soft_of_pivot(q, n, pivot, place, kept)
        all_, at_pivot, soft = slopes_of_soft(source, partials, steps, d, own, FIELDS)
    else:
        d, pivot, soft = field(source, F_LOG_ODDS, FIELDS), place, none
        all_, at_pivot = slopes_of_index(source, partials, steps, d)

    # unit e_j = p_j / (probability of the rest); without a sum, all the rest is masked
    shift, total = field(source, F_SHIFT, FIELDS), field(source, F_SUM, FIELDS)
    offset, whole = base_of(shift.to(tl.float32), holds(NEEDED, SPREAD))
    base = shift_of(offset, whole)
    gap = tl.where(shift == -INF, 0.0, base - shift)
    unit = tl.where(total == 0, 0.0, tl.exp(gap) / tl.where(total == 0, 1.0, total))

    spread, square, cube, mean = none, none, none, none
    if holds(NEEDED, SPREAD):
        more, more_at_pivot, spread = slopes_of_entropy(source, partials, steps, d, FIELDS)
        all_, at_pivot = all_ + more, at_pivot + more_at_pivot
    if holds(NEEDED, SQUARE):
        more, square, cube = slopes_of_powers(source, partials, steps, unit * sigmoid(-d), FIELDS)
        all_, at_pivot = all_ + sigmoid(-d) * more, at_pivot + sigmoid(d) * more
    if holds(NEEDED, MEAN):
        support = field(source, F_SUPPORT, FIELDS)
        mean = partial(source, partials.mean, steps.mean)
        mean = tl.where(support == 0, 0.0, mean / tl.where(support == 0, 1.0, support))
        here = kept & (pivot >= 0) & (support > 0)
        if not holds(NEEDED, SOFT):
            here = here & (field(source, F_TARGET, FIELDS) != -INF)
        at_pivot += tl.where(here, mean * weight_of_class(q.mean_weight, pivot, here), 0.0)

    scale = tl.where(kept, scale_in_double(q, n, there), 0.0)
    sink = coefficients, q, n, there
    if holds(NEEDED, AT_TOP):  # the likeliest of the rest has a partial derivative of its own
        z = field(source, F_REST_TOP_LOGIT, FIELDS)
        here = kept & (z != -INF)
        top = tl.where(here, field(source, F_REST_TOP, FIELDS).to(tl.int64), -1)
        x = tl.where(here, z, base) - base
        e = tl.exp(x)
        at_top = partial(source, partials.rest_top_logit, steps.rest_top_logit)
        at_top += e * (unit * (all_ + spread * x) + e * (square + e * cube))
        at_top += mean * weight_of_class(q.mean_weight, top, here)
        put_coefficient(sink, AT_TOP, at_top * scale, NEEDED)
        tl.store(places + column(q, 1, n), top.to(tl.int32), mask=there)
    tl.store(places + n, tl.where(kept, pivot, -1).to(tl.int32), mask=there)
    put_coefficient(sink, OFFSET, tl.where(kept, offset, 0.0), NEEDED)
    put_coefficient(sink, WHOLE, tl.where(kept, whole, 0.0), NEEDED)
    put_coefficient(sink, ALL, times(scale * unit, all_), NEEDED)
    put_coefficient(sink, AT_PIVOT, times(scale, at_pivot), NEEDED)
    put_coefficient(sink, SPREAD, times(scale * unit, spread), NEEDED)
    put_coefficient(sink, SQUARE, times(scale, square), NEEDED)
    put_coefficient(sink, CUBE, times(scale, cube), NEEDED)
    put_coefficient(sink, MEAN, times(scale, mean), NEEDED)
    put_coefficient(sink, SOFT, times(scale, soft), NEEDED)


# ``all`` below is what the rest shares by probability, times the probability of the rest.


@triton.jit
def slopes_of_index(source, partials, steps, d):
    """(all, entry of the pivot) by what every loss may look at, for an index target."""
    of_lse = partial(source, partials.lse, steps.lse)
    of_prob = partial(source, partials.log_prob, steps.log_prob)
    slope = partial(source, partials.log_odds, steps.log_odds) + times(sigmoid(-d), of_prob)
    at_pivot = of_lse * sigmoid(d) + slope + partial(source, partials.target, steps.target)
    return of_lse * sigmoid(-d) - slope, at_pivot


@triton.jit
def slopes_of_soft(source, partials, steps, d, own, FIELDS: tl.constexpr):
    """(all, entry of the pivot, soft) likewise for a soft target, which is ``own`` at the pivot."""
    mass, nll = field(source, F_MASS, FIELDS), -field(source, F_LOG_PROB, FIELDS)
    of_lse = partial(source, partials.lse, steps.lse)
    of_odds = partial(source, partials.log_odds, steps.log_odds)
    of_target = partial(source, partials.target, steps.target)
    # log_odds is a function of log_prob = sum_j q_j log p_j; its derivative is 1 / (1 - prob).
    flat = (of_odds == 0) | (nll <= 0)
    slope = tl.where(flat, 0.0, of_odds / one_minus_exp(tl.where(flat, 1.0, nll)))
    slope += partial(source, partials.log_prob, steps.log_prob)
    at_pivot = of_lse * sigmoid(d) + slope * ((own - mass) + mass * sigmoid(-d)) + of_target * own
    return (of_lse - slope * mass) * sigmoid(-d), at_pivot, slope + of_target


@triton.jit
def slopes_of_entropy(source, partials, steps, d, FIELDS: tl.constexpr):
    """(all, entry of the pivot, spread): d H / d z_j = -p_j (log p_j + H)."""
    slope = partial(source, partials.entropy, steps.entropy)
    entropy = field(source, F_ENTROPY, FIELDS)
    both = overlap(d)
    above = tl.where(d < 0, -d, 0.0) + both
    below = field(source, F_LOG_SUM, FIELDS) + tl.where(d < 0, 0.0, d) + both
    all_ = times(sigmoid(-d), slope * (below - entropy))
    return all_, times(sigmoid(d), slope * (above - entropy)), -slope * sigmoid(-d)


@triton.jit
def slopes_of_powers(source, partials, steps, unit, FIELDS: tl.constexpr):
    """(what every class shares by probability, square, cube) for ``p_j = unit e_j``.

    d (sum over the rest of p_j^k) / d z_j = k p_j (p_j^(k - 1) [j in the rest] - sum)
    """
    _, _, n, _ = source
    shared = tl.zeros(n.shape, tl.float64)
    square, cube = shared, shared
    if partials.rest_squares is not None:
        slope = 2 * partial(source, partials.rest_squares, steps.rest_squares)
        shared -= slope * field(source, F_REST_SQUARES, FIELDS)
        square = slope * unit * unit
    if partials.rest_cubes is not None:
        slope = 3 * partial(source, partials.rest_cubes, steps.rest_cubes)
        shared -= slope * field(source, F_REST_CUBES, FIELDS)
        cube = slope * unit * unit * unit
    return shared, square, cube


@triton.jit
def soft_of_pivot(q, n, pivot, place, kept):
    """The soft target of the pivot."""
    if q.labels is None:
        row = n // q.inner_rows * q.soft.outer + n % q.inner_rows * q.soft.inner
    else:
        kept = kept & (place >= 0)
        row = tl.where(kept, place, 0) * q.soft.inner
    own = tl.load(q.soft.at + row + pivot * q.soft.step, mask=kept, other=0.0).to(tl.float32)
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
