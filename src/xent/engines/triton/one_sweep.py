"""Cross-entropy and its gradient in one kernel.

The loss must be one number whose derivative by the log-probability of each row is known before the
sweep. A row that one program can hold stays on the chip between its sum and its gradient. A longer
row is read twice, the second time from the L2 cache.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl

from .algebra import finite_or_nan
from .arithmetic import (
    INF,
    LOG2E,
    ROOM,
    Base,
    base_of,
    binary_exponent,
    gap_to,
    power,
    power_times,
)
from .memory import (
    addresses,
    along,
    along_row,
    down,
    find_rows,
    has_slope,
    is_class,
    load_label_logits,
    load_logits,
    put_entry,
    scale_in_double,
    weights_of,
)
from .tables import Columns, put
from .totals import read_slope

STAGES = tl.constexpr(2)  # one tile is loaded while another is summed
# What is stored of each row for `totals.add_up`: sums of the rest, and the logit of the target. The
# gradient may be written over that logit.
SUMS = tl.constexpr("largest small target")


@triton.jit
def cross_entropy(
    args, row_weight, notes, slope, last, out, sums, blocks,
    READY: tl.constexpr, WHOLE: tl.constexpr, CLUSTER: tl.constexpr, THREADS: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store gradient and sums of blocks of ROWS rows; program k takes block k, k + programs, ...

    ``sums`` receives the sums of the rest of each row, or is None. ``notes`` holds the slope of the
    gradient and the divisor, see :mod:`.totals`. ``slope``, a number in memory or None, replaces
    the former, and is kept in ``last``. If the gradient of the former is READY and the two are the
    same, the kernel leaves the gradient alone. WHOLE says that a tile holds a whole row.
    """
    upstream, known = read_slope(notes, slope, last)
    if READY:
        blocks = tl.where(known, 0, blocks)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        rows = find_rows(args, block, ALIGN, ROWS)
        if WHOLE:
            whole_rows(args, rows, row_weight, upstream, out, sums, CLUSTER, ALIGN, ROWS, BLOCK)
        else:
            long_rows(args, rows, row_weight, upstream, out, sums, THREADS, ALIGN, ROWS, BLOCK)


@triton.jit
def whole_rows(
    args, rows, row_weight, upstream, out, sums,
    CLUSTER: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store gradient and sums of rows that stay on the chip."""
    # A tile of one row has one axis: only such tiles does Triton 3.8 divide among a cluster.
    FLAT: tl.constexpr = ROWS == 1
    classes = tl.arange(0, BLOCK)
    z, transform_slope = load_logits(args, rows, rows.mask, classes, -INF, "", ALIGN, FLAT)
    target, slope_of_target = load_targets(args, rows)  # after the logits, which need no labels
    is_target = along(classes, FLAT) == down(rows.label, FLAT)
    rest = tl.where(~is_target & down(rows.kept, FLAT), z, -INF)
    largest = tl.max(rest, 0, keep_dims=True) if FLAT else tl.max(rest, 1)
    base = base_of_rest(largest, target)
    y = binary_exponent(rest - down(base.offset, FLAT), down(base.exponent, FLAT))
    e = tl.exp2(y)
    small = tl.sum(e, 0, keep_dims=True) if FLAT else tl.sum(e, 1)
    put_sums(args, rows, sums, largest, small, target)
    factor = factor_of_rows(args, row_weight, upstream, rows)
    of_rest, own = coefficients(target, base, small, factor)
    if has_slope(args.transform):
        own = tl.where(own == 0.0, own, own * slope_of_target)
    g = gradient_of_rest(args, y, down(of_rest, FLAT), transform_slope)
    if CLUSTER:  # has no barrier between two stores
        g = tl.where(is_target & down(rows.kept, FLAT), down(own, FLAT), g)
    put_gradient(args, out, rows, classes, g, ALIGN, FLAT)
    if not CLUSTER:
        put_entry(out, rows, (rows.label, rows.label >= 0, own))


@triton.jit
def long_rows(
    args, rows, row_weight, upstream, out, sums,
    THREADS: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store gradient and sums of rows that are read twice, a tile at a time."""
    target, slope_of_target = load_targets(args, rows)
    largest, small = sums_of_long_rows(args, rows, ROWS, THREADS, BLOCK, ALIGN)
    base = base_of_rest(largest, target)
    put_sums(args, rows, sums, largest, small, target)
    factor = factor_of_rows(args, row_weight, upstream, rows)
    of_rest, own = coefficients(target, base, small, factor)
    if has_slope(args.transform):
        own = tl.where(own == 0.0, own, own * slope_of_target)
    for tile in range(args.tiles):
        # The last tiles come first, because they were read last and are in the cache.
        classes = (args.tiles - 1 - tile) * BLOCK + tl.arange(0, BLOCK)
        z, slope = load_logits(args, rows, rows.kept, classes, -INF, "evict_first", ALIGN)
        y = binary_exponent(z - base.offset[:, None], base.exponent[:, None])
        g = gradient_of_rest(args, y, of_rest[:, None], slope)
        put_gradient(args, out, rows, classes, g, ALIGN)
    put_entry(out, rows, (rows.label, rows.label >= 0, own))


@triton.jit
def load_targets(args, rows):
    """Return (logit of the target, slope of its transform) of rows.

    The sums, which wait for all threads, come after it: the gradient may be written over the logit.
    """
    target, slope = load_label_logits(args, rows)
    return finite_or_nan(target), slope


@triton.jit
def put_sums(args, rows, sums, largest, small, target):
    """Store the sums of the rest of rows, and the logits of the targets, if they are wanted."""
    if sums is not None:
        to = Columns(sums, args.rows, rows.n, rows.mask, 1, 0)
        put(to, "largest", largest, SUMS)
        put(to, "small", small, SUMS)
        put(to, "target", target, SUMS)


@triton.jit
def base_of_rest(largest, target):
    """Return the base of the exponentials of rows; the target's logit where there is no rest."""
    base = base_of(largest, False)
    alone = (largest == -INF) & (target != -INF)
    return Base(tl.where(alone, target, base.offset), base.exponent)


@triton.jit
def sums_of_long_rows(
    args, rows,
    ROWS: tl.constexpr, THREADS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Return (largest logit, sum of exponentials) of the rest of rows longer than a tile.

    Several rows have a sum each. Of a single row every thread has a sum, over the numbers that the
    thread loads, so the loop needs no barrier.
    """
    OWNERS: tl.constexpr = THREADS if ROWS == 1 else ROWS
    VECTOR: tl.constexpr = along_row(ALIGN) if ROWS == 1 else BLOCK
    largest = tl.full([OWNERS], -INF, tl.float32)
    base, total = base_of(largest, False), tl.zeros([OWNERS], tl.float32)
    for tile in tl.range(args.tiles, num_stages=STAGES):  # pyright: ignore
        places = tl.arange(0, BLOCK)
        classes = tile * BLOCK + places
        z, _ = load_logits(args, rows, rows.kept, classes, -INF, "evict_last", ALIGN)
        # Compared with the places of a tile, which are constants; the classes would be added first.
        rest = tl.where(places[None, :] == (rows.label - tile * BLOCK)[:, None], -INF, z)
        rest = tl.reshape(rest, [ROWS * BLOCK // (OWNERS * VECTOR), OWNERS, VECTOR])
        largest = tl.maximum(largest, tl.max(tl.max(rest, 2), 0))
        new = base_of(largest, False)
        e = power(rest - new.offset[None, :, None], new.exponent[None, :, None], False)
        total, base = carried(total, base, new) + tl.sum(tl.sum(e, 2), 0), new
    if ROWS == 1:
        largest = tl.max(largest, 0, keep_dims=True)
        total = tl.sum(carried(total, base, base_of(largest, False)), 0, keep_dims=True)
    return largest, total


@triton.jit
def carried(total, base, new):
    """Return sums of exponentials relative to another base."""
    factor = tl.exp2(tl.fma(base.offset - new.offset, LOG2E, base.exponent - new.exponent))
    return tl.where(total == 0.0, 0.0, total * factor)


@triton.jit
def factor_of_rows(args, row_weight, upstream, rows):
    """Return the factor on the gradient of each row, in float32; 0 for an ignored row."""
    if row_weight is None and args.class_weight is None and args.transform.scale is None:
        return tl.where(rows.label >= 0, upstream.to(tl.float32), 0.0)
    factor = upstream * weights_of(args.class_weight, rows.label, rows.label >= 0)
    if row_weight is not None:
        factor *= tl.load(row_weight + rows.n, mask=rows.mask, other=0.0)
    factor = tl.where(rows.kept, factor * scale_in_double(args, rows.n, rows.mask), 0.0)
    return factor.to(tl.float32)


@triton.jit
def coefficients(target, base, total, factor):
    """Return (coefficient of the exponentials, entry of the target) of rows, in float32.

    The gradient of a confident row may lie below the normal numbers, and is only rounded at the
    end.
    """
    floor, fraction = gap_to(target, base)  # (target - shift) log2(e)
    leads = floor >= 0
    # The smaller of the two exponentials relative to the larger: of the target or of the shift.
    behind = tl.exp2(tl.where(leads, -fraction, fraction))
    behind *= tl.exp2(tl.where(leads, ROOM - floor, floor))
    lowering = tl.where(leads, 2.0**-ROOM, 1.0)
    own, unit = tl.where(leads, 1.0, behind), tl.where(leads, behind, 1.0)
    rest = total * unit
    share = factor / (own + rest * lowering)
    # Lowered last: a tiny factor would lose its digits.
    return tl.where(total == 0.0, 0.0, share * unit * lowering), -(share * rest) * lowering


@triton.jit
def gradient_of_rest(args, y, factor, transform_slope):
    """Return ``2^y factor`` times the slope of the transform."""
    g = power_times(y, factor)
    if has_slope(args.transform):
        g = tl.where(g == 0.0, g, g * transform_slope)
    return g


@triton.jit
def put_gradient(args, out, rows, classes, g, ALIGN: tl.constexpr, FLAT: tl.constexpr = False):
    """Store the gradient of a tile."""
    mask = down(rows.mask, FLAT) & along(is_class(args, classes, ALIGN), FLAT)
    to = addresses(out, rows.outer, rows.inner, classes, ALIGN, FLAT)
    tl.store(to, g.to(out.at.dtype.element_ty), mask=mask, eviction_policy="evict_first")
