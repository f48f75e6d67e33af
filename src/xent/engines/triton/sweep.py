"""Forward, first kernel: every tile of a row adds up its exponentials.

    logits --sweep--> sums, (names, tiles, N) float32 --finish--> table, (fields, N) float64

A tile depends on nothing but its own logits. So rows of any length, few or many, are summed in the
same way, with the same bits. The second kernel, which merges the tiles of a row, is in
:mod:`.fields`.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import INF, base_of, power
from .memory import find_tile, is_class, load_logits, load_soft
from .tables import Columns, has, put

# Names of the sums of a tile: those that every problem needs, those of a soft target, and those of
# each request. The sums of "mean" run over all classes that are not masked, all others over the
# rest: every class but the pivot, which is the class of an index target, or under a soft target the
# largest logit of the tile.
_POWERS = (
    "squares",  # sum of e^2(z - shift)
    "cubes",  # sum of e^3(z - shift)
)
SUMMED = {
    "every": (
        "largest",  # the largest logit of the rest
        "small",  # sum of e^(z - shift)
    ),
    "soft": (
        "rest_mass",  # sum of q_j
        "deficit",  # sum of q_j (shift - z_j)
        "pivot",  # the logit of the pivot
        "pivot_class",  # the place of the pivot in the tile
        "pivot_soft",  # q of the pivot
    ),
    "top": ("rest_top",),  # the place of the largest logit in the tile
    "entropy": (
        "ties",  # number of classes at the shift, which are then not in `small`
        "spread",  # sum of (shift - z) e^(z - shift)
    ),
    "mean": (
        "weighted_sum",  # sum of c_j (z_j - largest)
        "weight",  # sum of c_j
        "support",  # number of classes that are not masked
    ),
    "squares": _POWERS,
    "cubes": _POWERS,
}


@triton.constexpr_function
def exact_sums(names):
    """Return True if a sum needs z - shift, which must then be exact."""
    return "spread" in names.split() or "deficit" in names.split()


@triton.jit
def first_place(values, largest, BLOCK: tl.constexpr):
    """Return the first place of the largest number of each row.

    The result of tl.argmax may lie outside a row with NaN.
    """
    places = tl.arange(0, BLOCK)
    return tl.min(tl.where(values == largest[:, None], places[None, :], BLOCK - 1), 1)


@triton.jit
def sweep(
    args, sums,
    SUMS: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum up one tile per program."""
    sum_tile(args, sums, tl.program_id(0), SUMS, ALIGN, ROWS, BLOCK)


@triton.jit
def sum_tile(
    args, sums, number,
    SUMS: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the sums of the tile of this number."""
    rows, tile, classes = find_tile(args, number, ALIGN, ROWS, BLOCK)
    to = Columns(sums, args.rows, rows.n, rows.mask, args.tiles, tile)
    # Ignored rows are read, too: a load that waited for the labels would begin later by a load.
    z, _ = load_logits(args, rows, rows.mask, classes, -INF, "", ALIGN)  # (ROWS, BLOCK)
    if has(SUMS, "pivot"):
        peak = tl.max(z, 1)
        pivot = first_place(z, peak, BLOCK)
        is_pivot = tl.arange(0, BLOCK)[None, :] == pivot[:, None]
        soft = load_soft(args, rows, classes, ALIGN)
        put(to, "pivot", peak, SUMS)
        put(to, "pivot_class", pivot, SUMS)
        put(to, "pivot_soft", tl.sum(tl.where(is_pivot, soft, 0.0), 1), SUMS)
        soft = tl.where(is_pivot, 0.0, soft)
    else:
        is_pivot = classes[None, :] == rows.label[:, None]
    rest = tl.where(is_pivot, -INF, z)
    largest = tl.max(rest, 1)  # (ROWS,)
    put(to, "largest", largest, SUMS)
    if has(SUMS, "rest_top"):
        put(to, "rest_top", first_place(rest, largest, BLOCK), SUMS)
    x = sum_powers(to, rest, largest, SUMS)
    if has(SUMS, "deficit"):
        put(to, "rest_mass", tl.sum(soft, 1), SUMS)
        put(to, "deficit", tl.sum(tl.where(soft == 0.0, 0.0, -x * soft), 1), SUMS)
    if has(SUMS, "support"):
        sum_logits(args, to, z, largest, classes, SUMS, ALIGN)


@triton.jit
def sum_powers(to, rest, largest, SUMS: tl.constexpr):
    """Store the sums of exponentials of the rest; return the rest less the offset of its base."""
    EXACT: tl.constexpr = exact_sums(SUMS)
    base = base_of(largest, EXACT)
    x = rest - base.offset[:, None]
    e = power(x, base.exponent[:, None], EXACT)
    if has(SUMS, "ties"):
        tie = x == 0.0
        put(to, "ties", tl.sum(tl.where(tie, 1.0, 0.0), 1), SUMS)
        put(to, "small", tl.sum(tl.where(tie, 0.0, e), 1), SUMS)
        put(to, "spread", tl.sum(tl.where(e == 0.0, 0.0, -x * e), 1), SUMS)
    else:
        put(to, "small", tl.sum(e, 1), SUMS)
    if has(SUMS, "squares"):
        put(to, "squares", tl.sum(e * e, 1), SUMS)
    if has(SUMS, "cubes"):
        put(to, "cubes", tl.sum(e * e * e, 1), SUMS)
    return x


@triton.jit
def sum_logits(args, to, z, largest, classes, SUMS: tl.constexpr, ALIGN: tl.constexpr):
    """Store the weighted sum of the logits that are not masked."""
    weight = tl.where(z == -INF, 0.0, 1.0)
    put(to, "support", tl.sum(weight, 1), SUMS)
    if args.mean_weight is not None:
        mask = is_class(args, classes, ALIGN)
        weight *= tl.load(args.mean_weight + classes, mask=mask, other=0.0)[None, :]
    put(to, "weight", tl.sum(weight, 1), SUMS)
    gap = tl.where(z == -INF, 0.0, z - tl.where(largest == -INF, 0.0, largest)[:, None])
    put(to, "weighted_sum", tl.sum(weight * gap, 1), SUMS)
