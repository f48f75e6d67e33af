"""Sums over rows, in float64: the divisor of a mean before the sweep, and the loss after it.

    labels --note_down--> slope, divisor
    logits --a sweep--> sums --add_up--> parts --divide--> loss
                               add_up--> coefficients, for the sweep that stores the gradient

The programs of a kernel store one part each, and one program adds the parts: the sum has the same
bits at every run. All that is noted on the way lies in one tensor, the notes, in float64:
the slope for which the gradient is computed, the divisor, and the parts.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl

from .fields import fields_of, sums_of_rows
from .gradient import put_slopes
from .memory import find_some_rows, read_labels, weights_of
from .programs import partials_of, value_of


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
    """Return the class weight of each row that is kept; 1 without weights or for a soft target."""
    mass = weights_of(None, label, kept)
    if args.class_weight is not None and args.soft is None:
        mass = weights_of(args.class_weight, label, kept & (label >= 0))
    return mass


@triton.jit
def or_one(divisor, NEVER_ZERO: tl.constexpr):
    """Return a divisor; 1 in the place of 0, if it is never 0."""
    if NEVER_ZERO:
        divisor = tl.where(divisor == 0.0, 1.0, divisor)
    return divisor


@triton.jit
def read_slope(notes, slope, last):
    """Return (slope by the divisor, whether it is the one in the notes); keep it in ``last``."""
    noted = tl.load(notes)
    asked = noted
    if slope is not None:
        asked = tl.load(slope).to(tl.float64)
        if tl.program_id(0) == 0:
            tl.store(last, asked)
    return asked / tl.load(notes + 1), asked == noted


@triton.jit
def add_up(
    args, row_weight, sums, constants, notes, slope, last, coefficients, places, blocks,
    VALUES: tl.constexpr, READY: tl.constexpr, SUMS: tl.constexpr, NAMES: tl.constexpr,
    BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Run the program of a loss on blocks of COUNT rows, whose tiles have BLOCK classes.

    ``constants`` are those of the program. With VALUES the sum of the values of each block is
    stored in the notes. ``coefficients`` and ``places``, or None, receive what the gradient for
    ``slope`` is computed from, as :func:`.gradient.find_coefficients` stores it; see
    :func:`read_slope`.
    """
    upstream, known = read_slope(notes, slope, last)
    if READY:
        blocks = tl.where(known, 0, blocks)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        rows = find_some_rows(args, block, COUNT)
        fields = fields_of(args, rows, sums_of_rows(args, rows, sums, SUMS, BLOCK), SUMS)
        weight = weight_of_rows(row_weight, rows)
        if VALUES:
            value = tl.where(rows.kept, value_of(fields, constants) * weight, 0.0)
            tl.store(notes + 2 + block, tl.sum(value, 0))
        if coefficients is not None:
            partials = partials_of(fields, constants, upstream * weight)
            put_slopes(args, rows, fields, partials, coefficients, places, NAMES)


@triton.jit
def weight_of_rows(row_weight, rows):
    """Return the weight of each row that is kept, in float64; 1 without weights."""
    weight = tl.full(rows.n.shape, 1.0, tl.float64)
    if row_weight is not None:
        weight = tl.load(row_weight + rows.n, mask=rows.kept, other=0.0)
    return weight


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
