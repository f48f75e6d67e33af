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
from .arithmetic import INF, LOG2E, ROOM, Base, base_of, gap_to, power, split_power
from .memory import (
    Columns,
    addresses,
    find_rows,
    is_class,
    load_label_logits,
    load_logits,
    put,
    scale_in_double,
    weights_of,
)

SUMS = tl.constexpr("largest small")  # of the rest of each row, for `fields.finish`


@triton.jit
def cross_entropy(
    args, row_weight, divisor, slope, out, sums, blocks,
    READY: tl.constexpr, WHOLE: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store gradient and sums of blocks of ROWS rows; program k takes block k, k + programs, ...

    ``sums`` receives the sums of the rest of each row, or is None. ``slope`` is a number in memory,
    or None for 1. If the slope is 1 and the gradient is READY, the kernel writes nothing. WHOLE
    says that a tile holds a whole row.
    """
    upstream = 1.0
    if slope is not None:
        upstream = tl.load(slope).to(tl.float64)
        if READY:
            blocks = tl.where(upstream == 1.0, 0, blocks)
    if divisor is not None:
        upstream = upstream / tl.load(divisor).to(tl.float64)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        rows = find_rows(args, block, ALIGN, ROWS)
        target = finite_or_nan(load_label_logits(args, rows))
        if WHOLE:
            classes = tl.arange(0, BLOCK)
            rest, transform_slope = load_rest(args, rows, classes, "", ALIGN)
            largest = tl.max(rest, 1)
            base = base_of_rest(largest, target)
            e = power(rest - base.offset[:, None], base.exponent[:, None], False)
            small = tl.sum(e, 1)
        else:
            largest, small = sums_of_tiles(args, rows, ROWS, BLOCK, ALIGN)
            base = base_of_rest(largest, target)
        if sums is not None:
            to = Columns(sums, args.rows, rows.n, rows.mask, 1, 0)
            put(to, "largest", largest, SUMS)
            put(to, "small", small, SUMS)
        factor = factor_of_rows(args, row_weight, rows) * upstream
        factors = coefficients(target, base, small, factor.to(tl.float32))
        if WHOLE:
            put_gradient(args, out, rows, classes, rest, base, factors, transform_slope, ALIGN)
        else:
            for tile in range(args.tiles):
                # The last tiles come first, because they were read last and are in the cache.
                classes = (args.tiles - 1 - tile) * BLOCK + tl.arange(0, BLOCK)
                rest, transform_slope = load_rest(args, rows, classes, "evict_first", ALIGN)
                put_gradient(args, out, rows, classes, rest, base, factors, transform_slope, ALIGN)


@triton.jit
def load_rest(args, rows, classes, POLICY: tl.constexpr, ALIGN: tl.constexpr):
    """Return (logits of a tile, -inf in the place of the target; slope of the transform)."""
    z, slope = load_logits(args, rows, classes, -INF, POLICY, ALIGN)
    return tl.where(classes[None, :] == rows.label[:, None], -INF, z), slope


@triton.jit
def base_of_rest(largest, target):
    """Return the base of the exponentials of rows; the target's logit where there is no rest."""
    base = base_of(largest, False)
    alone = (largest == -INF) & (target != -INF)
    return Base(tl.where(alone, target, base.offset), base.exponent)


@triton.jit
def sums_of_tiles(args, rows, ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr):
    """Return (largest logit, sum of exponentials) of the rest of rows longer than a tile."""
    largest, total = tl.full([ROWS], -INF, tl.float32), tl.zeros([ROWS], tl.float32)
    for tile in range(args.tiles):
        classes = tile * BLOCK + tl.arange(0, BLOCK)
        rest, _ = load_rest(args, rows, classes, "evict_last", ALIGN)
        base = base_of(largest, False)
        largest = tl.maximum(largest, tl.max(rest, 1))
        new = base_of(largest, False)
        offset, exponent = base.offset - new.offset, base.exponent - new.exponent
        carried = tl.exp2(tl.fma(offset, LOG2E, exponent))
        total = tl.where(total == 0.0, 0.0, total * carried)
        total += tl.sum(power(rest - new.offset[:, None], new.exponent[:, None], False), 1)
    return largest, total


@triton.jit
def factor_of_rows(args, row_weight, rows):
    """Return the factor on the gradient of each row, in float64; 0 for an ignored row."""
    factor = weights_of(args.class_weight, rows.label, rows.kept & (rows.label >= 0))
    if row_weight is not None:
        factor *= tl.load(row_weight + rows.n, mask=rows.mask, other=0.0)
    return tl.where(rows.kept, factor * scale_in_double(args, rows.n, rows.mask), 0.0)


@triton.jit
def coefficients(target, base, total, factor):
    """Return (coefficient of the exponentials, entry of the target) of rows, in float32.

    The gradient of a confident row may lie below the normal numbers, and is only rounded at the
    end.
    """
    floor, fraction = gap_to(target, base)  # (target - shift) log2(e)
    leads = floor >= 0
    other = tl.exp2(-fraction) * tl.exp2(tl.where(leads, -(floor - ROOM), 0.0))
    down = tl.where(leads, 2.0**-ROOM, 1.0)
    # All numbers are relative to the target where the target leads, and to the shift elsewhere.
    own = tl.where(leads, 1.0, tl.exp2(fraction) * tl.exp2(tl.where(leads, 0.0, floor)))
    unit = tl.where(leads, other, 1.0)
    rest = total * unit
    all_ = own + rest * down
    of_rest = tl.where(total == 0.0, 0.0, factor * (unit / all_) * down)
    return of_rest, -factor * (rest / all_) * down


@triton.jit
def put_gradient(
    args, out, rows, classes, rest, base, factors, transform_slope, ALIGN: tl.constexpr
):
    """Store the gradient of a tile; ignored rows have zeros."""
    e, fade = split_power(rest - base.offset[:, None], base.exponent[:, None], False)
    g = e * (fade * factors[0][:, None])
    g = tl.where(classes[None, :] == rows.label[:, None], factors[1][:, None], g)
    g = tl.where(rows.kept[:, None], tl.where(g == 0.0, g, g * transform_slope), 0.0)
    mask = rows.mask[:, None] & is_class(args, classes, ALIGN)[None, :]
    to = addresses(out, rows.outer, rows.inner, classes, ALIGN)
    tl.store(to, g.to(out.at.dtype.element_ty), mask=mask, eviction_policy="evict_first")
