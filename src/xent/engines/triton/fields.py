"""Forward, second kernel: merges the tiles of each row, and stores the fields, in float64.

The formulas from sums to fields are those of :mod:`xent.engines.rows.algebra`.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...row_statistics import FIELDS
from .algebra import (
    empty_entry,
    entropy_of,
    fields_of_empty_rows,
    finite_or_nan,
    odds_of,
    soft_fields,
    unit_of,
)
from .arithmetic import INF, base_of, product, shift_of
from .memory import find_some_rows, load_label_logits, weights_of
from .sweep import exact_sums
from .tables import Columns, get, has, put_all


class RestSums(NamedTuple):
    """Sums over some classes of the rest, relative to their shift; (COUNT,) each."""

    shift: Any
    small: Any
    ties: Any
    spread: Any
    mass: Any
    deficit: Any


class Peak(NamedTuple):
    """The largest logit of the rest, or of all classes under a soft target."""

    logit: Any
    place: Any  # class
    soft: Any  # its q


class Powers(NamedTuple):
    """Sums of squared and cubed exponentials of the rest."""

    squares: Any
    cubes: Any


class Mean(NamedTuple):
    """Sums over the classes that are not masked: of c_j z_j, of c_j, and their number."""

    weighted_sum: Any
    weight: Any
    support: Any


class RowSums(NamedTuple):
    """Sums over all classes of rows, and what is known of their targets."""

    rest: RestSums
    peak: Peak
    powers: Powers
    mean: Mean
    pivot: Any  # its logit
    mass: Any


# The statistics of rows, (COUNT,) each, by the names of `row_statistics.FIELDS`; zeros for those
# that nobody needs.
Fields = namedtuple("Fields", FIELDS)
NAMES = tl.constexpr(" ".join(FIELDS))
WIDTH = tl.constexpr(len(FIELDS))


# ---- sums of tiles ------------------------------------------------------------------------------


@triton.jit
def sums_of_rows(
    args, rows, sums, SUMS: tl.constexpr, BLOCK: tl.constexpr, NOTED: tl.constexpr = True
):
    """Return the sums of rows, in float64, from those of their tiles.

    If the sums have the logits of the targets, and these are NOTED already, they are read there.
    """
    rest, peak, powers, mean = merge_tiles(args, rows, sums, SUMS, BLOCK)
    if has(SUMS, "pivot"):
        pivot, mass = peak.logit, peak.soft + rest.mass
    else:
        pivot = target_of(args, rows, sums, SUMS, NOTED)
        mass = weights_of(args.class_weight, rows.label, rows.kept & (rows.label >= 0))
    return RowSums(rest, peak, powers, mean, pivot, mass)


@triton.jit
def merge_tiles(args, rows, sums, SUMS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the sums over all tiles of rows: (rest, peak, powers, mean)."""
    none = tl.zeros(rows.n.shape, tl.float64)
    rest = RestSums(none - INF, none, none, none, none, none)
    peak, powers, mean = Peak(none - INF, none, none), Powers(none, none), Mean(none, none, none)
    for tile in range(args.tiles):
        part = Columns(sums, args.rows, rows.n, rows.mask, args.tiles, tile)
        before, own = rest, rest_of_tile(part, SUMS)
        rest = merge(before, own)
        if has(SUMS, "squares"):
            powers = merge_powers(powers, part, before, own, rest.shift, SUMS)
        if has(SUMS, "support"):
            mean = add_mean(mean, part, SUMS)
        best = peak_of_tile(part, tile * BLOCK, SUMS)
        wins = best.logit > peak.logit
        if has(SUMS, "pivot"):  # the smaller of the two pivots joins the rest
            logit = tl.where(wins, peak.logit, best.logit)
            rest = merge(rest, displaced(logit, tl.where(wins, peak.soft, best.soft), SUMS))
        peak = Peak(
            tl.where(wins, best.logit, peak.logit),
            tl.where(wins, best.place, peak.place),
            tl.where(wins, best.soft, peak.soft),
        )
    return rest, peak, powers, mean


@triton.jit
def rest_of_tile(part, SUMS: tl.constexpr):
    """Load the sums over the rest of one tile."""
    largest = get(part, "largest", SUMS).to(tl.float32)
    shift = shift_of(base_of(largest, exact_sums(SUMS)))
    return RestSums(
        tl.where(largest == -INF, -INF, shift),
        get(part, "small", SUMS), get(part, "ties", SUMS), get(part, "spread", SUMS),
        get(part, "rest_mass", SUMS), get(part, "deficit", SUMS),
    )  # fmt: skip


@triton.jit
def peak_of_tile(part, first_class, SUMS: tl.constexpr):
    """Load the largest logit of the rest of a tile, or the pivot of a soft target."""
    if has(SUMS, "pivot"):
        logit, place = get(part, "pivot", SUMS), get(part, "pivot_class", SUMS)
    else:
        logit, place = get(part, "largest", SUMS), get(part, "rest_top", SUMS)
    return Peak(logit, first_class + place, get(part, "pivot_soft", SUMS))


@triton.jit
def carried(total, shift, to):
    """Return the factor that takes sums of exponentials to another shift; 0 for an empty sum."""
    return tl.where(total == 0, 0.0, tl.exp(tl.where(total == 0, 0.0, shift - to)))


@triton.jit
def merge(a, b):
    """Return the sums over the union of two sets of classes."""
    shift = tl.maximum(a.shift, b.shift)
    a_total, b_total = a.small + a.ties, b.small + b.ties
    a_factor, b_factor = carried(a_total, a.shift, shift), carried(b_total, b.shift, shift)
    a_same, b_same = a.shift == shift, b.shift == shift
    # Ties at the lower shift lie below the common one.
    a_small = tl.where(a_same, a.small, a_factor * a_total)
    b_small = tl.where(b_same, b.small, b_factor * b_total)
    ties = tl.where(a_same, a.ties, 0.0) + tl.where(b_same, b.ties, 0.0)
    a_gap = tl.where(a.shift == -INF, 0.0, shift - a.shift)
    b_gap = tl.where(b.shift == -INF, 0.0, shift - b.shift)
    spread = a_factor * (a.spread + a_gap * a_total) + b_factor * (b.spread + b_gap * b_total)
    deficit = (a.deficit + a_gap * a.mass) + (b.deficit + b_gap * b.mass)
    return RestSums(shift, a_small + b_small, ties, spread, a.mass + b.mass, deficit)


@triton.jit
def merge_powers(powers, part, before, own, shift, SUMS: tl.constexpr):
    """Return the sums of powers of the tiles before and of one more, relative to a new shift."""
    a = carried(before.small + before.ties, before.shift, shift)
    b = carried(own.small + own.ties, own.shift, shift)
    squares = a * a * powers.squares + b * b * get(part, "squares", SUMS)
    cubes = a * a * a * powers.cubes + b * b * b * get(part, "cubes", SUMS)
    return Powers(squares, cubes)


@triton.jit
def add_mean(mean, part, SUMS: tl.constexpr):
    """Return the weighted sums of the tiles before and of one more."""
    largest, weight = get(part, "largest", SUMS), get(part, "weight", SUMS)
    own = get(part, "weighted_sum", SUMS) + weight * tl.where(largest == -INF, 0.0, largest)
    support = mean.support + get(part, "support", SUMS)
    return Mean(mean.weighted_sum + own, mean.weight + weight, support)


@triton.jit
def displaced(logit, soft, SUMS: tl.constexpr):
    """Return a former pivot as sums over one class; a masked class has only its soft target."""
    none = tl.zeros(logit.shape, tl.float64)
    one = tl.where(logit == -INF, 0.0, none + 1.0)
    deficit = tl.where((logit == -INF) & (soft != 0), INF, none)
    if has(SUMS, "ties"):
        small, ties = none, one
    else:
        small, ties = one, none
    return RestSums(logit, small, ties, none, soft, deficit)


@triton.jit
def target_of(args, rows, sums, SUMS: tl.constexpr, NOTED: tl.constexpr):
    """Return the logit of the label of each row, in float64."""
    if has(SUMS, "target") and NOTED:
        table = Columns(sums, args.rows, rows.n, rows.mask, args.tiles, 0)
        logit = get(table, "target", SUMS)
    else:
        logit = load_label_logits(args, rows)[0].to(tl.float64)
    return logit


# ---- the fields ---------------------------------------------------------------------------------


class Empty(NamedTuple):
    """Rows without classes to look at."""

    mask: Any
    row: Any  # algebra.EmptyRow: their fields


@triton.jit
def finish(
    args, sums, table,
    SUMS: tl.constexpr, FIELDS: tl.constexpr, SHARDED: tl.constexpr, BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
):  # fmt: skip
    """Merge the tiles of COUNT rows, BLOCK classes each, and store the fields."""
    rows = find_some_rows(args, tl.program_id(0), COUNT)
    found = fields_of(args, rows, sums_of_rows(args, rows, sums, SUMS, BLOCK), SUMS, SHARDED)
    to = Columns(table, args.rows, rows.n, rows.mask, 1, 0)
    put_all(to, found, NAMES, WIDTH, FIELDS)


@triton.jit
def fields_of(args, rows, sums, SUMS: tl.constexpr, SHARDED: tl.constexpr = False):
    """Return the fields of rows from their sums, in float64."""
    rest, peak, powers, mean, pivot, mass = sums
    odds = odds_of(pivot, rest.shift, rest.small, rest.ties)
    nothing = rows.kept & (odds.total == 0) & (pivot == -INF) & SHARDED
    missed = nothing
    if has(SUMS, "pivot"):
        missed = nothing & (mass != 0)
    empty = Empty(nothing | ~rows.kept, fields_of_empty_rows(nothing, missed, mass))
    none = tl.zeros_like(odds.d)
    top, top_logit, pivot_log_odds, rest_top, rest_top_logit = none, none, none, none, none
    if has(SUMS, "pivot"):
        known = (rows.label >= 0) | (args.labels is None)  # False for a label outside the table
        s = soft_fields(odds, pivot, rest.shift, peak.soft, rest.mass, rest.deficit)
        log_odds, target = s.log_odds, s.target
        log_prob = tl.where(known, s.log_prob, -INF)  # an infinite loss where no target is known
        top, top_logit, pivot_log_odds = peak.place, pivot, odds.d
    else:
        log_odds, log_prob, target = odds.d, -odds.above, finite_or_nan(pivot)
        if has(SUMS, "rest_top"):
            top, rest_top, rest_top_logit = tops_of(pivot, rows.label, peak, odds)
    entropy, rest_squares, rest_cubes, average, mean_mass = none, none, none, none, none
    if has(SUMS, "spread"):
        entropy = entropy_of(odds, rest.spread)
    if has(SUMS, "squares"):
        unit = unit_of(odds)
        rest_squares = product(powers.squares, unit * unit)
        rest_cubes = product(powers.cubes, unit * unit * unit)
    if has(SUMS, "support"):
        average, mean_mass = mean.weighted_sum / mean.support, mean.weight / mean.support
    return Fields(
        unless(empty, "shift", rest.shift), unless(empty, "sum", odds.total),
        unless(empty, "log_odds", log_odds), unless(empty, "log_prob", log_prob),
        unless(empty, "target", target), unless(empty, "lse", odds.lse),
        unless(empty, "mass", mass), unless(empty, "top", top),
        unless(empty, "top_logit", top_logit), unless(empty, "pivot_log_odds", pivot_log_odds),
        unless(empty, "entropy", entropy), unless(empty, "log_sum", odds.log_sum),
        unless(empty, "mean", average), unless(empty, "support", mean.support),
        unless(empty, "mean_mass", mean_mass), unless(empty, "rest_top", rest_top),
        unless(empty, "rest_top_logit", rest_top_logit),
        unless(empty, "rest_squares", rest_squares), unless(empty, "rest_cubes", rest_cubes),
    )  # fmt: skip


@triton.jit
def unless(empty, name: tl.constexpr, value):
    """Return a field of rows; that of an empty row where a row has no classes to look at."""
    return tl.where(empty.mask, empty.row[empty_entry(name)], value)


@triton.jit
def tops_of(pivot, label, peak, odds):
    """Return (top, rest_top, rest_top_logit); of equal logits the lower class is the largest."""
    label = label.to(tl.float64)
    leads = (pivot > peak.logit) | ((pivot == peak.logit) & (label < peak.place))
    # Comparisons ignore NaN, but the log-odds of such a row are NaN. A row whose classes are all
    # masked keeps -inf, though its log-odds are NaN.
    masked = (odds.total == 0) & (pivot == -INF)
    logit = tl.where(masked | (odds.d == odds.d), peak.logit, float("nan"))
    return tl.where(leads, label, peak.place), peak.place, logit
