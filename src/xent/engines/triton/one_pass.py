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
from .problem import addresses, column, find_rows, is_class, load_logits, load_pivots, read_labels
from .statistics import finite_or_nan, weight_of_class


@triton.jit
def load_rest(
    q, outer, inner, n, there, kept, place, classes, POLICY: tl.constexpr, ALIGN: tl.constexpr
):
    """(every logit of a tile but the target's, slope of the transform)."""
    z, slope = load_logits(q, outer, inner, n, there, kept, classes, -INF, POLICY, ALIGN)
    return tl.where(classes[None, :] == place[:, None], -INF, z), slope


@triton.jit
def relative(offset, whole, to_offset, to_whole):
    """The distance of two shifts as an exponent of 2."""
    return tl.fma(offset - to_offset, LOG2E, whole - to_whole)


@triton.jit
def coefficients(pivot, offset, whole, total, factor):
    """(multiple of the exponentials, entry of the target) of rows, in float32.

    Of a sure row they may lie below the normal numbers, and are not rounded before the end.
    """
    floor, fraction = gap_to(pivot, offset, whole)  # from the shift to the target
    sure = floor >= 0
    other = tl.exp2(-fraction) * tl.exp2(tl.where(sure, ROOM - floor, 0.0))
    down = tl.where(sure, 2.0**-ROOM, 1.0)
    # Sums relative to the target where it is the likeliest, to the shift where it is not.
    own = tl.where(sure, 1.0, tl.exp2(fraction) * tl.exp2(tl.where(sure, 0.0, floor)))
    unit = tl.where(sure, other, 1.0)
    rest = total * unit
    all_ = own + rest * down
    return factor * (unit / all_) * down, -factor * (rest / all_) * down


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
        n, outer, inner, there = find_rows(q, block, ALIGN, ROWS)
        place, kept = read_labels(q, n, there)
        factor = weight_of_class(q.class_weight, place, there & (place >= 0)) * upstream
        if row_weight is not None:
            factor *= tl.load(row_weight + n, mask=there, other=0.0)
        scale = tl.full([ROWS], 1.0, tl.float64)
        if q.transform.scale is not None:
            scale = tl.load(q.transform.scale + n * q.transform.scale_step, mask=there, other=1.0)
        factor = tl.where(kept, factor * scale, 0.0).to(tl.float32)
        pivot = finite_or_nan(load_pivots(q, n, place, kept & (place >= 0)))
        classes = tl.arange(0, BLOCK)
        if WHOLE:
            rest, outer_slope = load_rest(
                q, outer, inner, n, there, kept, place, classes, "", ALIGN
            )
            largest = tl.max(rest, 1)
        else:
            largest, total = sums_of_tiles(
                q, outer, inner, n, there, kept, place, ROWS, BLOCK, ALIGN
            )
        offset, whole = base_of(largest, False)
        offset = tl.where(largest == -INF, pivot, offset)  # with nothing beside it, it is sure
        if WHOLE:
            total = tl.sum(power(rest - offset[:, None], whole[:, None], False), 1)
        if parts is not None:
            tl.store(parts + n, largest, mask=there)
            tl.store(parts + column(q, 1, n), total, mask=there)
        multiple, at_pivot = coefficients(pivot, offset, whole, total, factor)
        if WHOLE:
            put_gradient(
                q, out, outer, inner, there, kept, place, classes, rest, offset, whole, multiple,
                at_pivot, outer_slope, ALIGN,
            )  # fmt: skip
        else:
            for part in range(q.parts):
                # The last tiles first: they are the ones that were read last.
                classes = (q.parts - 1 - part) * BLOCK + tl.arange(0, BLOCK)
                rest, outer_slope = load_rest(
                    q, outer, inner, n, there, kept, place, classes, "evict_first", ALIGN
                )
                put_gradient(
                    q, out, outer, inner, there, kept, place, classes, rest, offset, whole,
                    multiple, at_pivot, outer_slope, ALIGN,
                )  # fmt: skip


@triton.jit
def sums_of_tiles(
    q, outer, inner, n, there, kept, place,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """(largest, sum) of the rest of rows that are longer than a tile."""
    largest, total = tl.full([ROWS], -INF, tl.float32), tl.zeros([ROWS], tl.float32)
    for part in range(q.parts):
        classes = part * BLOCK + tl.arange(0, BLOCK)
        rest, _ = load_rest(q, outer, inner, n, there, kept, place, classes, "evict_last", ALIGN)
        offset, whole = base_of(largest, False)
        largest = tl.maximum(largest, tl.max(rest, 1))
        to_offset, to_whole = base_of(largest, False)
        carried = tl.exp2(relative(offset, whole, to_offset, to_whole))
        total = tl.where(total == 0.0, 0.0, total * carried)
        total += tl.sum(power(rest - to_offset[:, None], to_whole[:, None], False), 1)
    return largest, total


@triton.jit
def put_gradient(
    q, out, outer, inner, there, kept, place, classes, rest, offset, whole, multiple, at_pivot,
    slope, ALIGN: tl.constexpr,
):  # fmt: skip
    """Store the gradient of a tile; rows that are left out have zeros."""
    e, fade = split_power(rest - offset[:, None], whole[:, None], False)
    g = e * (fade * multiple[:, None])
    g = tl.where(classes[None, :] == place[:, None], at_pivot[:, None], g)
    g = tl.where(kept[:, None], tl.where(g == 0.0, g, g * slope), 0.0)
    mask = there[:, None] & is_class(q, classes, ALIGN)[None, :]
    to = addresses(out, outer, inner, classes, ALIGN)
    tl.store(to, g.to(out.at.dtype.element_ty), mask=mask, eviction_policy="evict_first")
