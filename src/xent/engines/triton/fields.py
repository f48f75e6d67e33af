"""The merge: from the sums of the tiles of a row to the fields of its statistics, in float64."""

# pyright: reportArgumentType=false, reportAssignmentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl

from ...row_statistics import INDEX
from .arithmetic import (
    INF,
    base_of,
    one_minus_exp,
    overlap,
    shift_of,
    sigmoid,
    times,
)
from .memory import column, find_some_rows, holds, load_pivots, slot
from .sweep import (
    CUBES,
    DEFICIT,
    LEVEL,
    MASS,
    PIVOT,
    PIVOT_CLASS,
    PIVOT_SOFT,
    SPREAD,
    SQUARES,
    SUM,
    SUPPORT,
    TIES,
    TOP,
    WEIGHT,
    exact_sums,
)

# The fields of the table.
F_SHIFT = tl.constexpr(INDEX["shift"])
F_SUM = tl.constexpr(INDEX["sum"])
F_LOG_ODDS = tl.constexpr(INDEX["log_odds"])
F_LOG_PROB = tl.constexpr(INDEX["log_prob"])
F_TARGET = tl.constexpr(INDEX["target"])
F_LSE = tl.constexpr(INDEX["lse"])
F_MASS = tl.constexpr(INDEX["mass"])
F_TOP = tl.constexpr(INDEX["top"])
F_TOP_LOGIT = tl.constexpr(INDEX["top_logit"])
F_PIVOT_LOG_ODDS = tl.constexpr(INDEX["pivot_log_odds"])
F_ENTROPY = tl.constexpr(INDEX["entropy"])
F_LOG_SUM = tl.constexpr(INDEX["log_sum"])
F_MEAN = tl.constexpr(INDEX["mean"])
F_SUPPORT = tl.constexpr(INDEX["support"])
F_MEAN_MASS = tl.constexpr(INDEX["mean_mass"])
F_REST_TOP = tl.constexpr(INDEX["rest_top"])
F_REST_TOP_LOGIT = tl.constexpr(INDEX["rest_top_logit"])
F_REST_SQUARES = tl.constexpr(INDEX["rest_squares"])
F_REST_CUBES = tl.constexpr(INDEX["rest_cubes"])


# ---- sums of tiles ------------------------------------------------------------------------------


@triton.jit
def carried(total, shift, to):
    """What takes sums of exponentials to another shift. Nothing is moved where there is nothing."""
    return tl.where(total == 0, 0.0, tl.exp(tl.where(total == 0, 0.0, shift - to)))


@triton.jit
def merge(a, b):
    """(shift, sum, ties, spread, mass, deficit) of two sets of classes, as those of their union."""
    a_shift, a_sum, a_ties, a_spread, a_mass, a_deficit = a
    b_shift, b_sum, b_ties, b_spread, b_mass, b_deficit = b
    shift = tl.maximum(a_shift, b_shift)
    a_all, b_all = a_sum + a_ties, b_sum + b_ties
    a_factor, b_factor = carried(a_all, a_shift, shift), carried(b_all, b_shift, shift)
    a_same, b_same = a_shift == shift, b_shift == shift
    total = tl.where(a_same, a_sum, a_factor * a_all) + tl.where(b_same, b_sum, b_factor * b_all)
    ties = tl.where(a_same, a_ties, 0.0) + tl.where(b_same, b_ties, 0.0)
    a_gap = tl.where(a_shift == -INF, 0.0, shift - a_shift)
    b_gap = tl.where(b_shift == -INF, 0.0, shift - b_shift)
    spread = a_factor * (a_spread + a_gap * a_all) + b_factor * (b_spread + b_gap * b_all)
    deficit = (a_deficit + a_gap * a_mass) + (b_deficit + b_gap * b_mass)
    return shift, total, ties, spread, a_mass + b_mass, deficit


@triton.jit
def get_part(source, quantity: tl.constexpr, FOUND: tl.constexpr):
    """One quantity of a tile's rows in float64; 0 if it was not wanted."""
    parts, q, part, n, there = source
    value = tl.zeros(n.shape, tl.float64)
    if holds(FOUND, quantity):
        at = parts + column(q, slot(FOUND, quantity) * q.parts + part, n)
        value = tl.load(at, mask=there, other=0.0).to(tl.float64)
    return value


@triton.jit
def merge_tiles(q, parts, n, there, FOUND: tl.constexpr, BLOCK: tl.constexpr):
    """What the tiles of rows add up to: (row, peak, powers, mean), each a tuple.

    ``row`` is what :func:`merge` merges; ``peak`` the largest logit of the rest, or the pivot of a
    soft target: (logit, class, q).
    """
    none = tl.zeros(n.shape, tl.float64)
    row = none - INF, none, none, none, none, none
    logit, class_, soft = none - INF, none, none
    squares, cubes, level, weight, support = none, none, none, none, none
    for part in range(q.parts):
        source = parts, q, part, n, there
        largest = tl.load(parts + column(q, part, n), mask=there, other=-INF)
        offset, whole = base_of(largest, exact_sums(FOUND))
        tile = (
            tl.where(largest == -INF, -INF, shift_of(offset, whole)),
            get_part(source, SUM, FOUND),
            get_part(source, TIES, FOUND),
            get_part(source, SPREAD, FOUND),
            get_part(source, MASS, FOUND),
            get_part(source, DEFICIT, FOUND),
        )
        before = row
        row = merge(before, tile)
        if holds(FOUND, SQUARES):
            a = carried(before[1] + before[2], before[0], row[0])
            b = carried(tile[1] + tile[2], tile[0], row[0])
            squares = a * a * squares + b * b * get_part(source, SQUARES, FOUND)
            tile_cubes = get_part(source, CUBES, FOUND)
            cubes = a * a * a * cubes + b * b * b * tile_cubes
        if holds(FOUND, LEVEL):
            tile_weight = get_part(source, WEIGHT, FOUND)
            base = tl.where(largest == -INF, 0.0, largest).to(tl.float64)
            level += get_part(source, LEVEL, FOUND) + tile_weight * base
            weight += tile_weight
            support += get_part(source, SUPPORT, FOUND)
        if holds(FOUND, PIVOT):
            tile_logit = get_part(source, PIVOT, FOUND)
            tile_soft = get_part(source, PIVOT_SOFT, FOUND)
            wins = tile_logit > logit
            loser = tl.where(wins, logit, tile_logit)
            row = merge(row, released(loser, tl.where(wins, soft, tile_soft), FOUND))
            soft = tl.where(wins, tile_soft, soft)
            place = get_part(source, PIVOT_CLASS, FOUND)
        else:
            tile_logit = largest.to(tl.float64)
            wins = tile_logit > logit
            place = get_part(source, TOP, FOUND)
        class_ = tl.where(wins, part * BLOCK + place, class_)
        logit = tl.where(wins, tile_logit, logit)
    return row, (logit, class_, soft), (squares, cubes), (level, weight, support)


@triton.jit
def released(logit, soft, FOUND: tl.constexpr):
    """A former pivot as one of the rest. Masked, it is nothing, but for what is wanted of it."""
    none = tl.zeros(logit.shape, tl.float64)
    one = tl.where(logit == -INF, 0.0, none + 1.0)
    deficit = tl.where((logit == -INF) & (soft != 0), INF, none)
    if holds(FOUND, TIES):
        return logit, none, one, none, soft, deficit
    return logit, one, none, none, soft, deficit


# ---- the fields ---------------------------------------------------------------------------------


@triton.jit
def finite_or_nan(logit):
    """An infinite logit is an overflow upstream; it must not look like a sure prediction."""
    return tl.where(logit == INF, float("nan"), logit)


@triton.jit
def put(sink, field: tl.constexpr, value, of_blank, FIELDS: tl.constexpr):
    """Store one field of rows, if it is wanted; ``of_blank`` is that of a row without classes."""
    table, q, n, there, blank = sink
    if holds(FIELDS, field):
        at = table + column(q, slot(FIELDS, field), n)
        tl.store(at, tl.where(blank, of_blank, value), mask=there)


@triton.jit
def finish(
    q, parts, table,
    FOUND: tl.constexpr, FIELDS: tl.constexpr, SHARDED: tl.constexpr, BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
):  # fmt: skip
    """Merge the tiles of COUNT rows and store their fields; a tile had BLOCK classes."""
    n, there, place, kept = find_some_rows(q, COUNT)
    row, peak, powers, mean = merge_tiles(q, parts, n, there, FOUND, BLOCK)
    if holds(FOUND, PIVOT):
        pivot = peak[0]
    else:
        pivot = load_pivots(q, n, place, kept & (place >= 0)).to(tl.float64)
    odds = odds_of(pivot, row, FOUND)
    d, above, below, total, log_sum = odds
    shift, _, _, spread, rest_mass, _ = row
    if holds(FOUND, PIVOT):
        mass = peak[2] + rest_mass
    else:
        mass = weight_of_class(q.class_weight, place, kept & (place >= 0))
    blanks = blank_rows(kept, pivot, total, mass, holds(FOUND, PIVOT), SHARDED)
    blank, level, _, _, support = blanks
    sink = table, q, n, there, blank
    none = tl.zeros([COUNT], tl.float64)
    put(sink, F_SHIFT, shift, level, FIELDS)
    put(sink, F_SUM, total, none, FIELDS)
    put(sink, F_LOG_SUM, log_sum, none, FIELDS)
    # A shard without classes still has its share of the target, an ignored row has none.
    put(sink, F_MASS, mass, tl.where(level == -INF, mass, 0.0), FIELDS)
    put(sink, F_LSE, tl.where(d < 0, shift + below, pivot + above), level, FIELDS)
    if holds(FOUND, PIVOT):
        known = (place >= 0) | (q.labels is None)  # of a label that is none there is no target
        put_soft(sink, row, peak, odds, blanks, known, FIELDS)
    else:
        put_index(sink, pivot, odds, blanks, FIELDS)
        if holds(FOUND, TOP):
            put_top(sink, pivot, place, peak, odds, level, FIELDS)
    if holds(FOUND, SPREAD):
        surprise = below + tl.where(total > 0, spread / total, 0.0)
        entropy = times(sigmoid(d), above) + times(sigmoid(-d), surprise)
        put(sink, F_ENTROPY, entropy, none, FIELDS)
    if holds(FOUND, SQUARES):
        unit = tl.exp(-below)
        put(sink, F_REST_SQUARES, times(powers[0], unit * unit), none, FIELDS)
        put(sink, F_REST_CUBES, times(powers[1], unit * unit * unit), none, FIELDS)
    if holds(FOUND, LEVEL):
        put(sink, F_MEAN, mean[0] / mean[2], none, FIELDS)
        put(sink, F_MEAN_MASS, mean[1] / mean[2], none, FIELDS)
        put(sink, F_SUPPORT, mean[2], support, FIELDS)


@triton.jit
def odds_of(pivot, row, FOUND: tl.constexpr):
    """(log-odds of the pivot, lse - pivot, lse - shift, sum of the rest, its logarithm)."""
    shift, small, ties, _, _, _ = row
    total = small + ties
    log_sum = tl.log(total)
    if holds(FOUND, TIES):  # what a few small terms beside a count would lose
        log_sum += tl.where(total == 0, 0.0, (small - (total - ties)) / total)
    d = finite_or_nan(pivot) - shift - log_sum
    both = overlap(d)
    above = tl.where(d < 0, -d, 0.0) + both
    return d, above, log_sum + tl.where(d < 0, 0.0, d) + both, total, log_sum


@triton.jit
def blank_rows(kept, pivot, total, mass, SOFT: tl.constexpr, SHARDED: tl.constexpr):
    """(which rows are blank, and of those: level, log-odds, log-probability, support).

    An ignored row is a row predicted with certainty; a shard without any unmasked class is the
    identity of the merge.
    """
    none = tl.zeros(pivot.shape, tl.float64)
    blank, level, certain, reached, support = ~kept, none, none + INF, none, none + 1.0
    if SHARDED:
        nothing = kept & (total == 0) & (pivot == -INF)
        blank = blank | nothing
        level, support = tl.where(nothing, -INF, level), tl.where(nothing, 0.0, support)
        missed = nothing
        if SOFT:
            missed = nothing & (mass != 0)
        reached, certain = tl.where(missed, -INF, reached), tl.where(missed, -INF, certain)
    return blank, level, certain, reached, support


@triton.jit
def put_index(sink, pivot, odds, blanks, FIELDS: tl.constexpr):
    """The fields of an index target."""
    d, above, _, _, _ = odds
    _, _, certain, reached, _ = blanks
    put(sink, F_LOG_ODDS, d, certain, FIELDS)
    put(sink, F_LOG_PROB, -above, reached, FIELDS)
    put(sink, F_TARGET, finite_or_nan(pivot), reached, FIELDS)


@triton.jit
def put_top(sink, pivot, place, peak, odds, level, FIELDS: tl.constexpr):
    """The largest logit of all, and of the rest; ties to the lowest class."""
    d, _, _, total, _ = odds
    logit, rest_class, _ = peak
    class_ = place.to(tl.float64)
    put(sink, F_REST_TOP, rest_class, 0.0, FIELDS)
    leads = (pivot > logit) | ((pivot == logit) & (class_ < rest_class))
    put(sink, F_TOP, tl.where(leads, class_, rest_class), 0.0, FIELDS)
    # Comparisons have passed NaN over, the log-odds have not.
    masked = (total == 0) & (pivot == -INF)
    put(sink, F_REST_TOP_LOGIT, tl.where(masked | (d == d), logit, float("nan")), level, FIELDS)


@triton.jit
def put_soft(sink, row, peak, odds, blanks, known, FIELDS: tl.constexpr):
    """The fields of a soft target; without one the loss is infinite."""
    shift, _, _, _, mass, deficit = row
    pivot, pivot_class, own = peak
    d, above, below, _, _ = odds
    _, level, certain, reached, _ = blanks
    nll = times(own, above) + deficit + times(mass, below)
    flat = nll <= 0
    log_odds = -nll - tl.log(one_minus_exp(tl.where(flat, 1.0, nll)))
    put(sink, F_LOG_ODDS, tl.where(flat, INF, log_odds), certain, FIELDS)
    put(sink, F_LOG_PROB, tl.where(known, -nll, -INF), reached, FIELDS)
    target = times(own, pivot) + times(mass, shift) - deficit
    put(sink, F_TARGET, target, reached, FIELDS)
    put(sink, F_TOP, pivot_class, 0.0, FIELDS)
    put(sink, F_TOP_LOGIT, pivot, level, FIELDS)
    put(sink, F_PIVOT_LOG_ODDS, d, level, FIELDS)


@triton.jit
def weight_of_class(weights, place, there):
    """The weight of one class of each row, 1 without weights; 0 where it is not there."""
    weight = tl.where(there, 1.0, tl.zeros(place.shape, tl.float64))
    if weights is not None:
        weight = tl.load(weights + place, mask=there, other=0.0).to(tl.float64)
    return weight
