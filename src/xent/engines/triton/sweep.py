"""Forward: every tile of a row adds up its exponentials, then the sums of a row are merged.

    logits --sweep--> parts, (quantities, tiles, N) float32 --finish--> table, (fields, N) float64

A tile looks at nothing but itself and is the same whatever else is in the batch; so rows of any
length, few or many, take the same way, and the same bits come out. This is the sweep; the merge is
in :mod:`.fields`.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import INF, base_of, power
from .memory import column, find_tile, holds, is_class, load_logits, load_soft, slot

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


@triton.constexpr_function
def exact_sums(found):
    """Whether there are sums of z - shift, which must then be exact."""
    return bool(found >> SPREAD.value & 1 or found >> MASS.value & 1)


# ---- the sweep ----------------------------------------------------------------------------------


@triton.jit
def put_part(sink, quantity: tl.constexpr, value, FOUND: tl.constexpr):
    """Store one quantity of a tile's rows."""
    parts, q, part, n, there = sink
    at = parts + column(q, slot(FOUND, quantity) * q.parts + part, n)
    tl.store(at, value.to(tl.float32), mask=there)


@triton.jit
def first_place(values, largest, BLOCK: tl.constexpr):
    """Where a row has its largest number first. Of tl.argmax NaN may make a place past the row."""
    places = tl.arange(0, BLOCK)
    return tl.min(tl.where(values == largest[:, None], places[None, :], BLOCK - 1), 1)


@triton.jit
def sweep(
    q, parts,
    FOUND: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per tile."""
    rows, part, classes = find_tile(q, tl.program_id(0), ALIGN, ROWS, BLOCK)
    n, there, _, _, place, _ = rows
    sink = parts, q, part, n, there
    z, _ = load_logits(q, rows, classes, -INF, "", ALIGN)
    if holds(FOUND, PIVOT):
        peak = tl.max(z, 1)
        pivot = first_place(z, peak, BLOCK)
        is_pivot = tl.arange(0, BLOCK)[None, :] == pivot[:, None]
        soft = load_soft(q, rows, classes, ALIGN)
        put_part(sink, PIVOT, peak, FOUND)
        put_part(sink, PIVOT_CLASS, pivot, FOUND)
        put_part(sink, PIVOT_SOFT, tl.sum(tl.where(is_pivot, soft, 0.0), 1), FOUND)
        soft = tl.where(is_pivot, 0.0, soft)
    else:
        is_pivot = classes[None, :] == place[:, None]
    rest = tl.where(is_pivot, -INF, z)
    largest = tl.max(rest, 1)
    put_part(sink, LARGEST, largest, FOUND)
    if holds(FOUND, TOP):
        put_part(sink, TOP, first_place(rest, largest, BLOCK), FOUND)
    EXACT: tl.constexpr = exact_sums(FOUND)
    offset, whole = base_of(largest, EXACT)
    x = rest - offset[:, None]
    e = power(x, whole[:, None], EXACT)
    if holds(FOUND, TIES):
        tie = x == 0.0
        put_part(sink, TIES, tl.sum(tl.where(tie, 1.0, 0.0), 1), FOUND)
        put_part(sink, SUM, tl.sum(tl.where(tie, 0.0, e), 1), FOUND)
        spread = tl.sum(tl.where(e == 0.0, 0.0, -x * e), 1)
        put_part(sink, SPREAD, spread, FOUND)
    else:
        put_part(sink, SUM, tl.sum(e, 1), FOUND)
    if holds(FOUND, SQUARES):
        put_part(sink, SQUARES, tl.sum(e * e, 1), FOUND)
    if holds(FOUND, CUBES):
        put_part(sink, CUBES, tl.sum(e * e * e, 1), FOUND)
    if holds(FOUND, MASS):
        put_part(sink, MASS, tl.sum(soft, 1), FOUND)
        deficit = tl.sum(tl.where(soft == 0.0, 0.0, -x * soft), 1)
        put_part(sink, DEFICIT, deficit, FOUND)
    if holds(FOUND, LEVEL):
        here = tl.where(z == -INF, 0.0, 1.0)
        put_part(sink, SUPPORT, tl.sum(here, 1), FOUND)
        if q.mean_weight is not None:
            inside = is_class(q, classes, ALIGN)
            here *= tl.load(q.mean_weight + classes, mask=inside, other=0.0)[None, :]
        put_part(sink, WEIGHT, tl.sum(here, 1), FOUND)
        gap = tl.where(z == -INF, 0.0, z - tl.where(largest == -INF, 0.0, largest)[:, None])
        put_part(sink, LEVEL, tl.sum(here * gap, 1), FOUND)
