"""Forward: every tile of a row adds up its exponentials, then the sums of a row are merged.

    logits --sweep--> parts, (quantities, tiles, N) float32 --finish--> table, (fields, N) float64

A tile looks at nothing but itself and is the same whatever else is in the batch; so rows of any
length, few or many, take the same way, and the same bits come out.
"""

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
    power,
    shift_of,
    sigmoid,
    times,
)  # fmt: skip
from .problem import find_tile, holds, load_logits, load_pivots, load_soft, read_labels, slot

# What a tile finds out, and the bit of each in the set of what is wanted. All but the last four
# are about the rest: every class but the pivot, which is the class of an index target or the
# largest class of a soft one.
LARGEST = tl.constexpr(0)  # logit of the rest
SUM = tl.constexpr(1)  # of e^(z - shift)
TIES = tl.constexpr(2)  # classes at the shift, where they are counted instead of added up
SPREAD = tl.constexpr(3)  # of (shift - z) e^(z - shift)
SQUARES = tl.constexpr(4)
CUBES = tl.constexpr(5)
TOP = tl.constexpr(6)  # the class of the largest logit
MASS = tl.constexpr(7)  # of q_j
DEFICIT = tl.constexpr(8)  # of q_j (shift - z_j)
PIVOT = tl.constexpr(9)  # of a soft target: its logit,
PIVOT_CLASS = tl.constexpr(10)  # its class within the tile,
PIVOT_SOFT = tl.constexpr(11)  # and its q
LEVEL = tl.constexpr(12)  # of c_j (z_j - offset), over all classes that are not masked
WEIGHT = tl.constexpr(13)  # of c_j
SUPPORT = tl.constexpr(14)  # of 1

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


@triton.constexpr_function
def exact_sums(found):
    """Whether there are sums of z - shift, which must then be exact."""
    return bool(found >> SPREAD.value & 1 or found >> MASS.value & 1)


# ---- the sweep ----------------------------------------------------------------------------------


@triton.jit
def put_part(parts, quantity: tl.constexpr, value, place, step, there, FOUND: tl.constexpr):
    """Store one quantity of a tile's rows."""
    tl.store(parts + slot(FOUND, quantity) * step + place, value.to(tl.float32), mask=there)


@triton.jit
def sweep(
    q, parts, rows,
    FOUND: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per tile."""
    outer, inner, there, part, classes = find_tile(q, tl.program_id(0), ROWS, BLOCK)
    n = outer * q.inner_rows + inner
    at, step, stored = part.to(tl.int64) * rows + n, q.parts * rows.to(tl.int64), there
    place, there = read_labels(q, n, there, ALIGN)
    z, _ = load_logits(q, outer, inner, n, there, classes, -INF, ALIGN)
    if holds(FOUND, PIVOT):
        pivot = tl.argmax(z, 1, tie_break_left=True)
        is_pivot = tl.arange(0, BLOCK)[None, :] == pivot[:, None]
        soft = load_soft(q, outer, inner, n, there, classes, place, ALIGN)
        put_part(parts, PIVOT, tl.max(z, 1), at, step, stored, FOUND)
        put_part(parts, PIVOT_CLASS, pivot, at, step, stored, FOUND)
        put_part(
            parts, PIVOT_SOFT, tl.sum(tl.where(is_pivot, soft, 0.0), 1), at, step, stored, FOUND
        )
        soft = tl.where(is_pivot, 0.0, soft)
    else:
        is_pivot = classes[None, :] == place[:, None]
    rest = tl.where(is_pivot, -INF, z)
    largest = tl.max(rest, 1)
    put_part(parts, LARGEST, largest, at, step, stored, FOUND)
    if holds(FOUND, TOP):
        put_part(parts, TOP, tl.argmax(rest, 1, tie_break_left=True), at, step, stored, FOUND)
    EXACT: tl.constexpr = exact_sums(FOUND)
    offset, whole = base_of(largest, EXACT)
    x = rest - offset[:, None]
    e = power(x, whole[:, None], EXACT)
    if holds(FOUND, TIES):
        tie = x == 0.0
        put_part(parts, TIES, tl.sum(tl.where(tie, 1.0, 0.0), 1), at, step, stored, FOUND)
        put_part(parts, SUM, tl.sum(tl.where(tie, 0.0, e), 1), at, step, stored, FOUND)
        spread = tl.sum(tl.where(e == 0.0, 0.0, -x * e), 1)
        put_part(parts, SPREAD, spread, at, step, stored, FOUND)
    else:
        put_part(parts, SUM, tl.sum(e, 1), at, step, stored, FOUND)
    if holds(FOUND, SQUARES):
        put_part(parts, SQUARES, tl.sum(e * e, 1), at, step, stored, FOUND)
    if holds(FOUND, CUBES):
        put_part(parts, CUBES, tl.sum(e * e * e, 1), at, step, stored, FOUND)
    if holds(FOUND, MASS):
        put_part(parts, MASS, tl.sum(soft, 1), at, step, stored, FOUND)
        deficit = tl.sum(tl.where(soft == 0.0, 0.0, -x * soft), 1)
        put_part(parts, DEFICIT, deficit, at, step, stored, FOUND)
    if holds(FOUND, LEVEL):
        here = tl.where(z == -INF, 0.0, 1.0)
        put_part(parts, SUPPORT, tl.sum(here, 1), at, step, stored, FOUND)
        if q.mean_weight is not None:
            inside = classes < q.units * ALIGN
            here *= tl.load(q.mean_weight + classes, mask=inside, other=0.0)[None, :]
        put_part(parts, WEIGHT, tl.sum(here, 1), at, step, stored, FOUND)
        gap = tl.where(z == -INF, 0.0, z - tl.where(largest == -INF, 0.0, largest)[:, None])
        put_part(parts, LEVEL, tl.sum(here * gap, 1), at, step, stored, FOUND)


# ---- the merge ----------------------------------------------------------------------------------


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
def get_part(parts, quantity: tl.constexpr, at, step, there, FOUND: tl.constexpr):
    """One quantity of a tile's rows in float64; 0 if it was not wanted."""
    value = tl.zeros(at.shape, tl.float64)
    if holds(FOUND, quantity):
        found = tl.load(parts + slot(FOUND, quantity) * step + at, mask=there, other=0.0)
        value = found.to(tl.float64)
    return value


@triton.jit
def put(table, field: tl.constexpr, value, n, rows, there, FIELDS: tl.constexpr):
    """Store one field of rows, if it is wanted."""
    if holds(FIELDS, field):
        tl.store(table + slot(FIELDS, field) * rows.to(tl.int64) + n, value, mask=there)


@triton.jit
def finite_or_nan(logit):
    """An infinite logit is an overflow upstream; it must not look like a sure prediction."""
    return tl.where(logit == INF, float("nan"), logit)


@triton.jit
def finish(
    q, parts, table, rows,
    FOUND: tl.constexpr, FIELDS: tl.constexpr, SHARDED: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Merge the tiles of COUNT rows and store their fields; a tile had BLOCK classes."""
    SOFT: tl.constexpr = holds(FOUND, PIVOT)
    n = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    there = n < rows
    place, kept = read_labels(q, n, there, ALIGN)
    step = q.parts * rows.to(tl.int64)
    none = tl.zeros([COUNT], tl.float64)
    row = none - INF, none, none, none, none, none
    top_logit, top = none - INF, none
    pivot, pivot_soft = none - INF, none
    level, weight, support, squares, cubes = none, none, none, none, none
    for part in range(q.parts):
        at = part * rows.to(tl.int64) + n
        largest = tl.load(parts + at, mask=there, other=-INF)
        offset, whole = base_of(largest, exact_sums(FOUND))
        total = get_part(parts, SUM, at, step, there, FOUND)
        ties = get_part(parts, TIES, at, step, there, FOUND)
        shift = tl.where(largest == -INF, -INF, shift_of(offset, whole))
        tile = (
            shift, total, ties, get_part(parts, SPREAD, at, step, there, FOUND),
            get_part(parts, MASS, at, step, there, FOUND),
            get_part(parts, DEFICIT, at, step, there, FOUND),
        )  # fmt: skip
        before, before_all = row[0], row[1] + row[2]
        row = merge(row, tile)
        if holds(FOUND, SQUARES):
            mine, its = carried(before_all, before, row[0]), carried(total, shift, row[0])
            squares = mine * mine * squares
            squares += its * its * get_part(parts, SQUARES, at, step, there, FOUND)
            cubes = mine * mine * mine * cubes
            cubes += its * its * its * get_part(parts, CUBES, at, step, there, FOUND)
        if holds(FOUND, TOP):
            first = get_part(parts, TOP, at, step, there, FOUND) + part * BLOCK
            top = tl.where(largest > top_logit, first, top)
        top_logit = tl.maximum(top_logit, largest.to(tl.float64))
        if holds(FOUND, LEVEL):
            of_tile = get_part(parts, WEIGHT, at, step, there, FOUND)
            base = tl.where(largest == -INF, 0.0, largest).to(tl.float64)
            level += get_part(parts, LEVEL, at, step, there, FOUND) + of_tile * base
            weight += of_tile
            support += get_part(parts, SUPPORT, at, step, there, FOUND)
        if SOFT:
            # The smaller of two pivots joins the rest.
            logit = get_part(parts, PIVOT, at, step, there, FOUND)
            its = get_part(parts, PIVOT_SOFT, at, step, there, FOUND)
            takes = logit > pivot
            loser, loser_soft = tl.where(takes, pivot, logit), tl.where(takes, pivot_soft, its)
            first = get_part(parts, PIVOT_CLASS, at, step, there, FOUND) + part * BLOCK
            top = tl.where(takes, first, top)
            pivot, pivot_soft = tl.where(takes, logit, pivot), tl.where(takes, its, pivot_soft)
            one = tl.where(loser == -INF, 0.0, 1.0)
            masked = (loser == -INF) & (loser_soft != 0)
            nothing = tl.where(masked, INF, 0.0)
            if holds(FOUND, TIES):
                row = merge(row, (loser, none, one, none, loser_soft, nothing))
            else:
                row = merge(row, (loser, one, none, none, loser_soft, nothing))
    shift, total, ties, spread, mass, deficit = row
    if not SOFT:
        pivot = load_pivots(q, n, place, kept & (place >= 0), ALIGN).to(tl.float64)

    # What follows from the sums.
    all_ = total + ties
    lost = total - (all_ - ties)
    log_sum = tl.log(all_) + tl.where(all_ == 0, 0.0, lost / all_)
    d = finite_or_nan(pivot) - shift - log_sum
    both = overlap(d)
    above = tl.where(d < 0, -d, 0.0) + both  # lse - pivot
    below = log_sum + tl.where(d < 0, 0.0, d) + both  # lse - shift
    lse = tl.where(d < 0, shift + below, pivot + above)
    if SOFT:
        nll = times(pivot_soft, above) + deficit + times(mass, below)
        flat = nll <= 0
        log_odds = tl.where(flat, INF, -nll - tl.log(one_minus_exp(tl.where(flat, 1.0, nll))))
        log_prob = -nll
        if q.labels is not None:  # a label that is none has no target
            log_prob = tl.where(place < 0, -INF, log_prob)
        target = times(pivot_soft, pivot) + times(mass, shift) - deficit
        mass = pivot_soft + mass
        reached = tl.where(mass == 0, 0.0, -INF)
        rest_top, rest_logit = top, pivot
    else:
        log_odds, log_prob, target = d, -above, finite_or_nan(pivot)
        mass = tl.where(place >= 0, 1.0, none)
        if q.class_weight is not None:
            in_range = tl.where(place >= 0, place, 0)
            its = tl.load(q.class_weight + in_range, mask=there & (place >= 0), other=0.0)
            mass = its.to(tl.float64)
        reached = none - INF
        masked = (all_ == 0) & (pivot == -INF)
        rest_top, rest_logit = top, tl.where(masked | (d == d), top_logit, float("nan"))
        class_ = place.to(tl.float64)
        tie = (pivot == top_logit) & (class_ < top)
        top = tl.where(tie | (pivot > top_logit), class_, top)
    surprise = below + tl.where(all_ > 0, spread / all_, 0.0)
    entropy = times(sigmoid(d), above) + times(sigmoid(-d), surprise)
    unit = tl.exp(-below)

    # A shard without any unmasked class is the identity of the merge, and an ignored row one that
    # is predicted with certainty.
    blank = ~kept
    log_odds = tl.where(blank, INF, log_odds)
    log_prob, target = tl.where(blank, 0.0, log_prob), tl.where(blank, 0.0, target)
    level_of_blank = none
    support_of_blank = none + 1.0
    mass = tl.where(blank, 0.0, mass)
    if SHARDED:
        nothing = kept & (all_ == 0) & (pivot == -INF)
        log_odds = tl.where(nothing, tl.where(reached == 0, INF, -INF), log_odds)
        log_prob, target = tl.where(nothing, reached, log_prob), tl.where(nothing, reached, target)
        level_of_blank = tl.where(nothing, -INF, level_of_blank)
        support_of_blank = tl.where(nothing, 0.0, support_of_blank)
        blank = blank | nothing
    put(table, F_SHIFT, tl.where(blank, level_of_blank, shift), n, rows, there, FIELDS)
    put(table, F_SUM, tl.where(blank, 0.0, all_), n, rows, there, FIELDS)
    put(table, F_LOG_ODDS, log_odds, n, rows, there, FIELDS)
    put(table, F_LOG_PROB, log_prob, n, rows, there, FIELDS)
    put(table, F_TARGET, target, n, rows, there, FIELDS)
    put(table, F_LSE, tl.where(blank, level_of_blank, lse), n, rows, there, FIELDS)
    put(table, F_MASS, mass, n, rows, there, FIELDS)
    put(table, F_TOP, tl.where(blank, 0.0, top), n, rows, there, FIELDS)
    put(table, F_TOP_LOGIT, tl.where(blank, level_of_blank, pivot), n, rows, there, FIELDS)
    put(table, F_PIVOT_LOG_ODDS, tl.where(blank, level_of_blank, d), n, rows, there, FIELDS)
    put(table, F_ENTROPY, tl.where(blank, 0.0, entropy), n, rows, there, FIELDS)
    put(table, F_LOG_SUM, tl.where(blank, 0.0, log_sum), n, rows, there, FIELDS)
    put(table, F_MEAN, tl.where(blank, 0.0, level / support), n, rows, there, FIELDS)
    put(table, F_SUPPORT, tl.where(blank, support_of_blank, support), n, rows, there, FIELDS)
    put(table, F_MEAN_MASS, tl.where(blank, 0.0, weight / support), n, rows, there, FIELDS)
    put(table, F_REST_TOP, tl.where(blank, 0.0, rest_top), n, rows, there, FIELDS)
    rest_logit = tl.where(blank, level_of_blank, rest_logit)
    put(table, F_REST_TOP_LOGIT, rest_logit, n, rows, there, FIELDS)
    squares, cubes = times(squares, unit * unit), times(cubes, unit * unit * unit)
    put(table, F_REST_SQUARES, tl.where(blank, 0.0, squares), n, rows, there, FIELDS)
    put(table, F_REST_CUBES, tl.where(blank, 0.0, cubes), n, rows, there, FIELDS)
