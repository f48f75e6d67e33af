"""Backward: coefficients of each row from the partial derivatives of the loss, then one sweep.

    table, partials --find_coefficients--> coefficients, (names, N) float32
    logits, coefficients --differentiate--> gradient

The formulas from partial derivatives to coefficients, and from coefficients to the gradient, are
those of :mod:`xent.engines.rows.algebra`. The entries of the pivot, and of the largest logit of the
rest where the loss has a partial derivative by it, are computed in float64.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl

from .algebra import (
    Coefficients,
    coefficient_of_mean,
    coefficients_of_entropy,
    coefficients_of_index,
    coefficients_of_powers,
    coefficients_of_soft,
    gradient_at,
)
from .arithmetic import (
    INF,
    base_of,
    binary_exponent,
    power_times,
    product,
    shift_of,
    split_power,
)
from .fields import Fields
from .memory import (
    addresses,
    find_some_rows,
    find_tile,
    has_slope,
    is_class,
    load_entries,
    load_logits,
    load_soft,
    put_entry,
    scale_in_double,
    soft_of_pivots,
    weights_of,
)
from .programs import Partials
from .tables import Columns, address_in, get, has, put

# Names of the numbers of a row that `differentiate` always reads: the two parts of the base of its
# exponentials, and two of algebra.Coefficients. The other coefficients are read if the loss needs
# them, and so is "at_top", the entry of the largest logit of the rest.
ALWAYS = ("offset", "exponent", "all", "at_pivot")
PLACES = tl.constexpr("pivot rest_top")  # classes with entries of their own, int32; -1: none


# ---- coefficients -------------------------------------------------------------------------------


@triton.jit
def get_fields(table, FIELDS: tl.constexpr):
    """Load the fields of rows, in float64; zeros for those that the table lacks."""
    return Fields(
        get(table, "shift", FIELDS), get(table, "sum", FIELDS), get(table, "log_odds", FIELDS),
        get(table, "log_prob", FIELDS), get(table, "target", FIELDS), get(table, "lse", FIELDS),
        get(table, "mass", FIELDS), get(table, "top", FIELDS), get(table, "top_logit", FIELDS),
        get(table, "pivot_log_odds", FIELDS), get(table, "entropy", FIELDS),
        get(table, "log_sum", FIELDS), get(table, "mean", FIELDS), get(table, "support", FIELDS),
        get(table, "mean_mass", FIELDS), get(table, "rest_top", FIELDS),
        get(table, "rest_top_logit", FIELDS), get(table, "rest_squares", FIELDS),
        get(table, "rest_cubes", FIELDS),
    )  # fmt: skip


@triton.jit
def load_partial(rows, at, step):
    """Load a partial derivative of rows; zeros where there is none."""
    value = tl.zeros(rows.n.shape, tl.float64)
    if at is not None:
        value = tl.load(at + rows.n * step, mask=rows.mask, other=0.0)
    return value


@triton.jit
def find_coefficients(
    args, table, partials, steps, coefficients, places,
    FIELDS: tl.constexpr, NAMES: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Store the coefficients of COUNT rows, and the classes with entries of their own."""
    rows = find_some_rows(args, tl.program_id(0), COUNT)
    fields = get_fields(Columns(table, args.rows, rows.n, rows.mask, 1, 0), FIELDS)
    given = Partials(
        load_partial(rows, partials.log_odds, steps.log_odds),
        load_partial(rows, partials.log_prob, steps.log_prob),
        load_partial(rows, partials.target, steps.target),
        load_partial(rows, partials.lse, steps.lse),
        load_partial(rows, partials.entropy, steps.entropy),
        load_partial(rows, partials.mean, steps.mean),
        load_partial(rows, partials.rest_top_logit, steps.rest_top_logit),
        load_partial(rows, partials.rest_squares, steps.rest_squares),
        load_partial(rows, partials.rest_cubes, steps.rest_cubes),
    )
    put_slopes(args, rows, fields, given, coefficients, places, NAMES)


@triton.jit
def put_slopes(args, rows, fields, partials, coefficients, places, NAMES: tl.constexpr):
    """Store the coefficients of rows, and the classes with entries of their own.

    ``partials`` are the partial derivatives of the loss by the fields.
    """
    shift, total = fields.shift, fields.sum
    base = base_of(shift.to(tl.float32), has(NAMES, "spread"))
    gap = tl.where(shift == -INF, 0.0, shift_of(base) - shift)
    # 1 / sum, relative to the base. If the sum is 0, all the rest is masked, and has gradient 0.
    unit = tl.where(total == 0, 0.0, tl.exp(gap) / tl.where(total == 0, 1.0, total))
    d, pivot, k = of_target(args, rows, fields, partials, NAMES)
    k = with_requests(args, rows, fields, partials, d, unit, pivot, k, NAMES)

    scale = tl.where(rows.kept, scale_in_double(args, rows.n, rows.mask), 0.0)
    to = Columns(coefficients, args.rows, rows.n, rows.mask, 1, 0)
    to_places = Columns(places, args.rows, rows.n, rows.mask, 1, 0)
    if has(NAMES, "at_top"):
        logit = fields.rest_top_logit
        mask = rows.kept & (logit != -INF)
        top = tl.where(mask, fields.rest_top.to(tl.int64), -1)
        x = tl.where(mask, logit - shift_of(base), 0.0)
        at_top = gradient_at(x, unit, weights_of(args.mean_weight, top, mask), k)
        put(to, "at_top", (at_top + partials.rest_top_logit) * scale, NAMES)
        put(to_places, "rest_top", top, PLACES)
    put(to_places, "pivot", tl.where(rows.kept, pivot, -1), PLACES)
    put(to, "offset", tl.where(rows.kept, base.offset, 0.0), NAMES)
    put(to, "exponent", tl.where(rows.kept, base.exponent, 0.0), NAMES)
    put(to, "all", product(scale * unit, k.all), NAMES)
    put(to, "at_pivot", product(scale, k.at_pivot), NAMES)
    put(to, "spread", product(scale * unit, k.spread), NAMES)
    put(to, "square", product(scale, k.square), NAMES)
    put(to, "cube", product(scale, k.cube), NAMES)
    put(to, "mean", product(scale, k.mean), NAMES)
    put(to, "soft", product(scale, k.soft), NAMES)


@triton.jit
def of_target(args, rows, fields, partials, NAMES: tl.constexpr):
    """Return (log-odds of the pivot, pivot, coefficients) by the fields that every loss may use."""
    none = tl.zeros_like(fields.shift)
    of_lse, of_log_prob = partials.lse, partials.log_prob
    of_log_odds, of_target = partials.log_odds, partials.target
    if has(NAMES, "soft"):
        d, pivot = fields.pivot_log_odds, fields.top.to(tl.int64)
        own = soft_of_pivots(args, rows, pivot)
        all_, at_pivot, soft = coefficients_of_soft(
            d, own, fields.mass, fields.log_prob, of_lse, of_log_prob, of_log_odds, of_target
        )
    else:
        d, pivot, soft = fields.log_odds, rows.label, none
        all_, at_pivot = coefficients_of_index(d, of_lse, of_log_prob, of_log_odds, of_target)
    return d, pivot, Coefficients(all_, at_pivot, none, none, none, none, soft)


@triton.jit
def with_requests(args, rows, fields, partials, d, unit, pivot, k, NAMES: tl.constexpr):
    """Return the coefficients by all fields."""
    all_, at_pivot = k.all, k.at_pivot
    spread, square, cube, mean = k.spread, k.square, k.cube, k.mean
    if has(NAMES, "spread"):
        more, more_at_pivot, spread = coefficients_of_entropy(
            d, fields.log_sum, fields.entropy, partials.entropy
        )
        all_, at_pivot = all_ + more, at_pivot + more_at_pivot
    if has(NAMES, "square"):
        more, more_at_pivot, square, cube = coefficients_of_powers(
            d, unit, fields.rest_squares, fields.rest_cubes,
            partials.rest_squares, partials.rest_cubes,
        )  # fmt: skip
        all_, at_pivot = all_ + more, at_pivot + more_at_pivot
    if has(NAMES, "mean"):
        mean = coefficient_of_mean(fields.support, partials.mean)
        mask = rows.kept & (pivot >= 0) & (fields.support > 0)
        if not has(NAMES, "soft"):
            mask = mask & (fields.target != -INF)
        at_pivot += tl.where(mask, mean * weights_of(args.mean_weight, pivot, mask), 0.0)
    return Coefficients(all_, at_pivot, spread, square, cube, mean, k.soft)


# ---- the sweep ----------------------------------------------------------------------------------


@triton.jit
def get_column(table, name: tl.constexpr, NAMES: tl.constexpr):
    """Load one line of a table as a column, (ROWS, 1)."""
    return tl.load(address_in(table, name, NAMES), mask=table.mask, other=0)[:, None]


@triton.jit
def differentiate(
    args, coefficients, places, out, notes, slope, blocks,
    READY: tl.constexpr, NAMES: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the gradient of tiles; program k takes the tiles k, k + programs, ... from the end.

    The last rows come first, because the forward sweep has left them in the cache. If the gradient
    for the slope in the notes is READY, and ``slope`` is the same, the kernel leaves it alone.
    """
    if READY:
        blocks = tl.where(tl.load(slope).to(tl.float64) == tl.load(notes), 0, blocks)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        put_tile(args, coefficients, places, out, blocks - 1 - block, NAMES, ALIGN, ROWS, BLOCK)


@triton.jit
def put_tile(
    args, coefficients, places, out, block,
    NAMES: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the gradient of one tile."""
    rows, tile, classes = find_tile(args, block, ALIGN, ROWS, BLOCK)
    table = Columns(coefficients, args.rows, rows.n, rows.mask, 1, 0)
    special = Columns(places, args.rows, rows.n, rows.mask, 1, 0)
    # Ignored rows are not read, unless rows are loaded as vectors.
    read = rows.mask if ALIGN < 0 else rows.kept
    z, slope = load_logits(args, rows, read, classes, 0.0, "", ALIGN)  # (ROWS, BLOCK)
    if ALIGN < 0:
        z = tl.where(rows.kept[:, None], z, 0.0)
    g = gradient_of_tile(args, rows, z, slope, table, classes, NAMES, ALIGN)
    first = tile * BLOCK
    pivot = entry_of(args, rows, table, special, "at_pivot", "pivot", first, BLOCK, NAMES)
    if has(NAMES, "at_top"):
        top = entry_of(args, rows, table, special, "at_top", "rest_top", first, BLOCK, NAMES)
    if has_slope(args.transform):  # of logits that the gradient may be written over
        tl.debug_barrier()
    mask = rows.mask[:, None] & is_class(args, classes, ALIGN)[None, :]
    to = addresses(out, rows.outer, rows.inner, classes, ALIGN)
    tl.store(to, g.to(out.at.dtype.element_ty), mask=mask)
    put_entry(out, rows, pivot)
    if has(NAMES, "at_top"):
        put_entry(out, rows, top)


@triton.jit
def gradient_of_tile(args, rows, z, slope, k, classes, NAMES: tl.constexpr, ALIGN: tl.constexpr):
    """Return the gradient of a tile of logits, but for entries of single classes.

    ``k`` is the table of coefficients, and ``slope`` is that of the transform.
    """
    if has(NAMES, "spread") or has(NAMES, "square"):
        g = gradient_of_powers(z, k, NAMES)
    else:
        x, exponent = z - get_column(k, "offset", NAMES), get_column(k, "exponent", NAMES)
        g = power_times(binary_exponent(x, exponent), get_column(k, "all", NAMES))
    if has(NAMES, "mean"):
        mean = get_column(k, "mean", NAMES)
        if args.mean_weight is not None:
            mask = is_class(args, classes, ALIGN)
            mean = mean * tl.load(args.mean_weight + classes, mask=mask, other=0.0)[None, :]
        g += tl.where(z == -INF, 0.0, mean)
    if has(NAMES, "soft"):
        g += get_column(k, "soft", NAMES) * load_soft(args, rows, classes, ALIGN)
    if has_slope(args.transform):
        g = tl.where(g == 0.0, g, g * slope)
    return g


@triton.jit
def entry_of(
    args, rows, k, special, name: tl.constexpr, place: tl.constexpr, first,
    BLOCK: tl.constexpr, NAMES: tl.constexpr,
):  # fmt: skip
    """Return (class, mask, gradient) of the entries of rows that have a number of their own."""
    at = tl.load(address_in(special, place, PLACES), mask=rows.mask, other=-1)
    mask = (at >= first) & (at < first + BLOCK)
    value = tl.load(address_in(k, name, NAMES), mask=mask, other=0.0)
    if has_slope(args.transform):
        _, slope = load_entries(args, rows, tl.where(mask, at, 0), mask)
        value = tl.where(value == 0.0, value, value * slope)
    return at, mask, value


@triton.jit
def gradient_of_powers(z, k, NAMES: tl.constexpr):
    """Return ``e (all + spread x + e (square + cube e))``, for x = z - shift and e = e^x."""
    x = z - get_column(k, "offset", NAMES)
    e, fade = split_power(x, get_column(k, "exponent", NAMES), has(NAMES, "spread"))
    factor = get_column(k, "all", NAMES)
    if has(NAMES, "spread"):
        factor += tl.where(e == 0.0, 0.0, get_column(k, "spread", NAMES) * x)
    if has(NAMES, "square"):
        power = e * fade
        cube = get_column(k, "cube", NAMES)
        factor += power * (get_column(k, "square", NAMES) + power * cube)
    return e * (fade * factor)
