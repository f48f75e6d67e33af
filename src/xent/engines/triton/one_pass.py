"""Cross-entropy and its gradient in one sweep: every logit is read once, every slope written once.

It needs a loss that is one number, whose slope by the log-probability of each row is known before
the sweep. A row that one program can hold stays on the chip between its sum and its gradient; of a
longer one the second look finds in the L2 cache what the first has left there.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import INF, LOG2E, ROOM, base_of, gap_to, power, split_power
from .fields import finite_or_nan, weight_of_class
from .memory import (
    addresses,
    column,
    find_rows,
    is_class,
    load_logits,
    load_pivots,
    scale_in_double,
)


@triton.jit
def load_rest(q, rows, classes, POLICY: tl.constexpr, ALIGN: tl.constexpr):
    """(every logit of a tile but the target's, slope of the transform)."""
    z, slope = load_logits(q, rows, classes, -INF, POLICY, ALIGN)
    return tl.where(classes[None, :] == rows[4][:, None], -INF, z), slope


@triton.jit
def coefficients(pivot, base, total, factor):
    """(multiple of the exponentials, entry of the target) of rows, in float32.

    Of a sure row they may lie below the normal numbers, and are not rounded before the end.
    """
    floor, fraction = gap_to(pivot, base[0], base[1])  # from the shift to the target
    sure = floor >= 0
    other = tl.exp2(-fraction) * tl.exp2(tl.where(sure, -(floor - ROOM), 0.0))
    down = tl.where(sure, 2.0**-ROOM, 1.0)
    # Sums relative to the target where it is the likeliest, to the shift where it is not.
    own = tl.where(sure, 1.0, tl.exp2(fraction) * tl.exp2(tl.where(sure, 0.0, floor)))
    unit = tl.where(sure, other, 1.0)
    rest = total * unit
    all_ = own + rest * down
    of_rest = tl.where(total == 0.0, 0.0, factor * (unit / all_) * down)
    return of_rest, -factor * (rest / all_) * down


@triton.jit
def cross_entropy(
    q, row_weight, divisor, slope, out, parts, blocks,
    READY: tl.constexpr, WHOLE: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Programs stride over blocks of ROWS rows.

    ``parts`` receives (largest, sum) of the rest of each row, or is None. ``slope`` is that of the
    loss, or None for 1; if it is 1 and the gradient READY, nothing is left to do.
    """
    upstream = 1.0
    if slope is not None:
        upstream = tl.load(slope).to(tl.float64)
        if READY:
            blocks = tl.where(upstream == 1.0, 0, blocks)
    if divisor is not None:
        upstream = upstream / tl.load(divisor).to(tl.float64)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        rows = find_rows(q, block, ALIGN, ROWS)
        n, there, _, _, place, kept = rows
        pivot = finite_or_nan(load_pivots(q, n, place, kept & (place >= 0)))
        if WHOLE:
            classes = tl.arange(0, BLOCK)
            rest, slope_of_cap = load_rest(q, rows, classes, "", ALIGN)
            largest = tl.max(rest, 1)
            base = base_of_rest(largest, pivot)
            total = tl.sum(power(rest - base[0][:, None], base[1][:, None], False), 1)
        else:
            largest, total = sums_of_tiles(q, rows, ROWS, BLOCK, ALIGN)
            base = base_of_rest(largest, pivot)
        if parts is not None:
            tl.store(parts + n, largest, mask=there)
            tl.store(parts + column(q, 1, n), total, mask=there)
        factor = factor_of_rows(q, row_weight, rows) * upstream
        slopes = coefficients(pivot, base, total, factor.to(tl.float32))
        if WHOLE:
            put_gradient(q, out, rows, classes, rest, base, slopes, slope_of_cap, ALIGN)
        else:
            for part in range(q.parts):
                # The last tiles first: they are the ones that were read last.
                classes = (q.parts - 1 - part) * BLOCK + tl.arange(0, BLOCK)
                rest, slope_of_cap = load_rest(q, rows, classes, "evict_first", ALIGN)
                put_gradient(q, out, rows, classes, rest, base, slopes, slope_of_cap, ALIGN)


@triton.jit
def base_of_rest(largest, pivot):
    """(offset, whole) of rows; of one that has but its target, that is the likeliest by far."""
    offset, whole = base_of(largest, False)
    alone = (largest == -INF) & (pivot != -INF)
    return tl.where(alone, pivot, offset), whole


@triton.jit
def factor_of_rows(q, row_weight, rows):
    """What multiplies the gradient of each row, in float64; 0 where it does not count."""
    n, there, _, _, place, kept = rows
    factor = weight_of_class(q.class_weight, place, kept & (place >= 0))
    if row_weight is not None:
        factor *= tl.load(row_weight + n, mask=there, other=0.0)
    return tl.where(kept, factor * scale_in_double(q, n, there), 0.0)


@triton.jit
def sums_of_tiles(q, rows, ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr):
    """(largest, sum) of the rest of rows that are longer than a tile."""
    largest, total = tl.full([ROWS], -INF, tl.float32), tl.zeros([ROWS], tl.float32)
    for part in range(q.parts):
        classes = part * BLOCK + tl.arange(0, BLOCK)
        rest, _ = load_rest(q, rows, classes, "evict_last", ALIGN)
        offset, whole = base_of(largest, False)
        largest = tl.maximum(largest, tl.max(rest, 1))
        to_offset, to_whole = base_of(largest, False)
        carried = tl.exp2(tl.fma(offset - to_offset, LOG2E, whole - to_whole))
        total = tl.where(total == 0.0, 0.0, total * carried)
        total += tl.sum(power(rest - to_offset[:, None], to_whole[:, None], False), 1)
    return largest, total


@triton.jit
def put_gradient(q, out, rows, classes, rest, base, slopes, slope_of_cap, ALIGN: tl.constexpr):
    """Store the gradient of a tile; rows that are left out have zeros."""
    _, there, outer, inner, place, kept = rows
    e, fade = split_power(rest - base[0][:, None], base[1][:, None], False)
    g = e * (fade * slopes[0][:, None])
    g = tl.where(classes[None, :] == place[:, None], slopes[1][:, None], g)
    g = tl.where(kept[:, None], tl.where(g == 0.0, g, g * slope_of_cap), 0.0)
    mask = there[:, None] & is_class(q, classes, ALIGN)[None, :]
    to = addresses(out, outer, inner, classes, ALIGN)
    tl.store(to, g.to(out.at.dtype.element_ty), mask=mask, eviction_policy="evict_first")
