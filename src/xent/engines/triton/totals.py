"""Sums over rows, in float64: the divisor of a mean before the sweep, and the loss after it.

    labels --note_down--> slope, divisor --one_sweep--> sums --add_up--> parts --divide--> loss

The programs of a kernel store one part each, and one program adds the parts: the sum has the same
bits at every run. All that is noted on the way lies in one tensor, the notes, in float64:
the slope for which the gradient is computed, the divisor, and the parts.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl

from .algebra import odds_of
from .fields import merge_tiles, of_labels
from .memory import find_some_rows, read_labels, weights_of


@triton.jit
def note_down(
    args, row_weight, number, guess, notes, labels,
    BY: tl.constexpr, ZERO: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Store the slope for which the gradient is computed, and the divisor.

    Args:
        args: the problem.
        row_weight: a number per row, or None.
        number: address of the divisor where BY is "number", or None for 1.
        guess: address of the slope, or None for 1.
        notes: receives slope and divisor; of several programs one part of the divisor each.
        labels: receives the labels, with those of rows of weight 0 ignored; with row weights.
        BY: "weight" adds up weights, "count" counts the rows.
        ZERO: whether a divisor of 0 becomes 1.
        COUNT: rows that a program takes at once.
    """
    slope = tl.full([], 1.0, tl.float64)
    if guess is not None:
        slope = tl.load(guess)
    if tl.program_id(0) == 0:
        tl.store(notes, slope)
    total = tl.zeros([COUNT], tl.float64)
    blocks = tl.cdiv(tl.cast(args.rows, tl.int64), COUNT)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        n = tl.cast(block, tl.int64) * COUNT + tl.arange(0, COUNT)
        label, kept = read_labels(args, n, n < args.rows)
        mass = weights_of(None, label, kept)
        if BY == "weight":
            mass = mass_of(args, label, kept)
        if row_weight is not None:
            weight = tl.load(row_weight + n, mask=kept, other=0.0)
            given = tl.load(args.labels + n, mask=n < args.rows, other=args.ignore_index)
            own = tl.where(weight == 0.0, args.ignore_index, given)
            tl.store(labels + n, own, mask=n < args.rows)
            if BY == "weight":
                mass = tl.where(kept, mass * weight, 0.0)
        total += mass
    divisor, whole = tl.sum(total, 0), tl.num_programs(0) == 1
    if BY == "number":
        divisor, whole = tl.full([], 1.0, tl.float64), tl.program_id(0) == 0
        if number is not None:
            divisor = tl.load(number).to(tl.float64)
    if whole:
        tl.store(notes + 1, or_one(divisor, ZERO))
    else:
        tl.store(notes + 2 + tl.program_id(0), divisor)


@triton.jit
def mass_of(args, label, kept):
    """Return the class weight of each row that is kept, or 1, also for a label without a class."""
    if args.class_weight is not None:
        kept = kept & (label >= 0)
    return weights_of(args.class_weight, label, kept)


@triton.jit
def or_one(divisor, NEVER_ZERO: tl.constexpr):
    """Return a divisor; 1 in the place of 0, if it is never 0."""
    if NEVER_ZERO:
        divisor = tl.where(divisor == 0.0, 1.0, divisor)
    return divisor


@triton.jit
def add_up(
    args, row_weight, sums, notes, SUMS: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr
):
    """Add up cross-entropy over COUNT rows, from tiles of BLOCK classes; store one number."""
    rows = find_some_rows(args, COUNT)
    rest, _, _, _ = merge_tiles(args, rows, sums, SUMS, BLOCK)
    pivot, mass = of_labels(args, rows, sums, SUMS)
    odds = odds_of(pivot, rest.shift, rest.small, rest.ties)
    value = tl.where(rows.kept, odds.above * mass, 0.0)
    if row_weight is not None:
        value *= tl.load(row_weight + rows.n, mask=rows.kept, other=0.0)
    tl.store(notes + 2 + tl.program_id(0), tl.sum(value, 0))


@triton.jit
def divide(notes, count, out, ZERO: tl.constexpr, COUNT: tl.constexpr):
    """Store the sum of ``count`` parts by the divisor; without ``out`` the sum is the divisor."""
    total = tl.zeros([COUNT], tl.float64)
    for first in range(0, count, COUNT):
        n = first + tl.arange(0, COUNT)
        total += tl.load(notes + 2 + n, mask=n < count, other=0.0)
    result = tl.sum(total, 0)
    if out is None:
        tl.store(notes + 1, or_one(result, ZERO))
    else:
        result = result / tl.load(notes + 1)
        if out.dtype.element_ty.primitive_bitwidth < 32:
            result = result.to(tl.float32)
        tl.store(out, result.to(out.dtype.element_ty))
