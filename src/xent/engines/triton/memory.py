"""Arguments of the kernels, and how kernels load from tensors and store to them.

Rows are numbered ``outer * inner_rows + inner``. A tile is some rows and a run of classes; one
program works on one tile, and programs with consecutive numbers on the tiles of one row.

ALIGN numbers lie next to each other and may be loaded at once: classes of a row or, if ALIGN is
negative, rows of a class, as in ``(N, C, d)``. Triton itself only tests whether 16 divides an
address or a stride. So rows of 1000 numbers would be loaded one number at a time. And the rows of
half a batch could be added up in another order than those of the whole batch.
"""

# pyright: reportArgumentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import INF, LOG2E, tanh


class Strided(NamedTuple):
    """A matrix in memory: its address, and the steps between outer rows, inner rows and classes."""

    at: Any
    outer: int
    inner: int
    step: int


class Transform(NamedTuple):
    """``z = softcap tanh(scale x / softcap) class_scale + class_bias``; None leaves a part out."""

    scale: Any
    scale_step: int  # 1: one per row, 0: one for all
    softcap: Any
    class_scale: Any
    class_bias: Any


class KernelArguments(NamedTuple):
    """Logits, their transform, and the target."""

    logits: Strided
    rows: int
    inner_rows: int | None  # None where rows have one axis, which spares kernels a division
    classes: int
    tiles: int  # in a row
    transform: Transform
    labels: Any  # int64, or None
    ignore_index: int
    first_class: int
    soft: Any  # Strided: a soft target, or with labels a table with a line for each class; or None
    class_weight: Any  # of an index target or a soft one
    mean_weight: Any


class RowBlock(NamedTuple):
    """Rows that a program works on: (ROWS,) each."""

    n: Any  # number of the row
    mask: Any  # True if the row exists
    outer: Any
    inner: Any
    label: Any  # class among these logits, or line of a table of soft targets; -1: none
    kept: Any  # True if the row exists and is not ignored


@triton.constexpr_function
def along_row(align):
    """Return the number of classes of a row that may be loaded as one vector."""
    return max(align, 1)


@triton.constexpr_function
def across_rows(align):
    """Return the number of rows of a class that may be loaded as one vector."""
    return max(-align, 1)


# ---- the place of a program ---------------------------------------------------------------------


@triton.jit
def multiple(x, UNIT: tl.constexpr):
    """Return ``x``, which UNIT divides, in a form that tells the compiler so."""
    return x // UNIT * UNIT


@triton.jit
def is_class(args, classes, ALIGN: tl.constexpr):
    """Return which places of a tile are classes."""
    return classes < multiple(args.classes, along_row(ALIGN))


@triton.jit
def find_tile(args, program, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return (rows, number of the tile in its row, classes) of a program."""
    tile = program % args.tiles
    classes = tile * BLOCK + tl.arange(0, BLOCK)
    return find_rows(args, program // args.tiles, ALIGN, ROWS), tile, classes


@triton.jit
def find_rows(args, block, ALIGN: tl.constexpr, ROWS: tl.constexpr):
    """Return the rows of a block of ROWS rows."""
    block = tl.full([1], block, tl.int64)
    if ALIGN > 0:
        n = block * ROWS + tl.arange(0, ROWS)
        outer, inner = split_rows(args, n)
        mask = n < args.rows
    else:  # rows that lie next to each other, of one outer index
        inner_rows = args.rows if args.inner_rows is None else args.inner_rows
        blocks = tl.cdiv(inner_rows, ROWS)
        outer, inner = block // blocks, block % blocks * ROWS + tl.arange(0, ROWS)
        mask = inner < multiple(inner_rows, across_rows(ALIGN))
        n = outer * inner_rows + inner
    label, kept = read_labels(args, n, mask)
    return RowBlock(n, mask, outer, inner, label, kept)


@triton.jit
def split_rows(args, n):
    """Return (outer, inner) numbers of rows."""
    outer, inner = tl.zeros_like(n), n
    if args.inner_rows is not None:
        outer, inner = n // args.inner_rows, n % args.inner_rows
    return outer, inner


@triton.jit
def find_some_rows(args, block, COUNT: tl.constexpr):
    """Return the rows of a block of COUNT rows, for a kernel that works on rows alone."""
    n = tl.cast(block, tl.int64) * COUNT + tl.arange(0, COUNT)
    mask = n < args.rows
    outer, inner = split_rows(args, n)
    label, kept = read_labels(args, n, mask)
    return RowBlock(n, mask, outer, inner, label, kept)


@triton.jit
def read_labels(args, n, mask):
    """Return (label, kept) of rows; every row of a soft target is kept."""
    place = tl.full(n.shape, -1, tl.int32)
    if args.labels is not None:
        label = tl.load(args.labels + n, mask=mask, other=args.ignore_index)
        mask = mask & (label != args.ignore_index)
        here = label - args.first_class
        inside = here.to(tl.uint64, bitcast=True) < args.classes  # one comparison for both ends
        place = tl.where(mask & inside, here.to(tl.int32), -1)
    return place, mask


@triton.jit
def down(x, FLAT: tl.constexpr):
    """Return numbers of rows in the shape that broadcasts over a tile."""
    if not FLAT:
        x = x[:, None]
    return x


@triton.jit
def along(x, FLAT: tl.constexpr):
    """Return numbers of classes in the shape that broadcasts over a tile."""
    if not FLAT:
        x = x[None, :]
    return x


@triton.jit
def addresses(matrix, outer, inner, classes, ALIGN: tl.constexpr, FLAT: tl.constexpr = False):
    """Return the addresses of a tile, (ROWS, BLOCK), or of a FLAT one, (BLOCK,)."""
    BYTES: tl.constexpr = matrix.at.dtype.element_ty.primitive_bitwidth // 8
    row = matrix.at + outer * matrix.outer + inner * matrix.inner
    at = down(row, FLAT) + along(classes.to(tl.int64) * matrix.step, FLAT)
    if FLAT:
        at = tl.multiple_of(at, along_row(ALIGN) * BYTES)
    else:
        at = tl.multiple_of(at, [across_rows(ALIGN) * BYTES, along_row(ALIGN) * BYTES])
    return at


@triton.jit
def entries(matrix, rows, classes):
    """Return the addresses of one class of each row, (ROWS,)."""
    row = rows.outer * matrix.outer + rows.inner * matrix.inner
    return matrix.at + row + classes.to(tl.int64) * matrix.step


@triton.jit
def put_entry(out, rows, entry):
    """Store entries over those of the tile, which other threads may have written."""
    at, mask, value = entry
    tl.debug_barrier()
    tl.store(entries(out, rows, at), value.to(out.at.dtype.element_ty), mask=mask)


# ---- logits -------------------------------------------------------------------------------------


@triton.jit
def scale_in_double(args, n, mask):
    """Return the factor on the logits of each row, in float64."""
    scale = tl.full(n.shape, 1.0, tl.float64)
    if args.transform.scale is not None:
        scale = tl.load(args.transform.scale + n * args.transform.scale_step, mask=mask, other=1.0)
    return scale


@triton.jit
def factor_and_bias(t, classes, mask):
    """Return the class scale and the class bias of some classes."""
    factor = tl.full(classes.shape, 1.0, tl.float32)
    bias = tl.zeros(classes.shape, tl.float32)
    if t.class_scale is not None:
        factor = tl.load(t.class_scale + classes, mask=mask, other=1.0)
    if t.class_bias is not None:
        bias = tl.load(t.class_bias + classes, mask=mask, other=0.0)
    return factor, bias


@triton.jit
def transformed(t, z, scale, factor, bias):
    """Return the transformed logits. A masked class stays masked under the cap."""
    if t.scale is not None:
        z *= scale
    if t.softcap is not None:
        z = tl.where(z == -INF, z, tanh(tl.div_rn(z, t.softcap)) * t.softcap)
    if t.class_scale is not None:
        z *= factor
    if t.class_bias is not None:
        z += bias
    return z


@triton.jit
def slope_of_transform(t, x, scale, factor):
    """Return the derivative of the transform by ``x``, without the scale of the row."""
    slope = tl.zeros_like(x) + factor
    if t.softcap is not None:
        e = tl.exp2(tl.abs(x * scale) * (-2.0 * LOG2E / t.softcap))
        slope *= 4.0 * e / ((1.0 + e) * (1.0 + e))  # 1 - tanh^2
    return slope


@triton.jit
def load_logits(
    args, rows, row_mask, classes,
    OTHER: tl.constexpr, POLICY: tl.constexpr, ALIGN: tl.constexpr, FLAT: tl.constexpr = False,
):  # fmt: skip
    """Return (transformed logits of a tile, slope of the transform), (ROWS, BLOCK) in float32.

    A FLAT tile, (BLOCK,), is one row. OTHER stands behind the last class, and in rows outside of a
    mask. The slope lacks the scale of the row, and is 1 unless the transform :func:`has_slope`.
    """
    class_mask = is_class(args, classes, ALIGN)
    mask = down(row_mask, FLAT) & along(class_mask, FLAT)
    at = addresses(args.logits, rows.outer, rows.inner, classes, ALIGN, FLAT)
    z = tl.load(at, mask=mask, other=OTHER, eviction_policy=POLICY).to(tl.float32)
    t = args.transform
    slope = tl.full(z.shape, 1.0, tl.float32)
    if is_transformed(t):
        scale = down(scale_in_double(args, rows.n, rows.mask).to(tl.float32), FLAT)
        factor, bias = factor_and_bias(t, classes, class_mask)
        factor, bias = along(factor, FLAT), along(bias, FLAT)
        if has_slope(t):
            slope = slope_of_transform(t, z, scale, factor)
        z = tl.where(mask, transformed(t, z, scale, factor, bias), OTHER)
    return z, slope


@triton.jit
def is_transformed(t):
    """Return True if the logits have a scale, a cap or a bias."""
    return (
        t.scale is not None or t.softcap is not None
        or t.class_scale is not None or t.class_bias is not None
    )  # fmt: skip


@triton.jit
def has_slope(t):
    """Return True if the transform has a slope beside the scale of the row."""
    return t.softcap is not None or t.class_scale is not None


@triton.jit
def load_entries(args, rows, classes, mask):
    """Return (transformed logits of one class of each row, slope of the transform), (ROWS,)."""
    t = args.transform
    x = tl.load(entries(args.logits, rows, classes), mask=mask, other=0.0).to(tl.float32)
    factor, bias = factor_and_bias(t, classes, mask)
    scale = scale_in_double(args, rows.n, mask).to(tl.float32)
    return transformed(t, x, scale, factor, bias), slope_of_transform(t, x, scale, factor)


@triton.jit
def load_label_logits(args, rows):
    """Return (transformed logit of the label of each row, slope there); -inf without a label."""
    mask = rows.label >= 0
    z, slope = load_entries(args, rows, tl.where(mask, rows.label, 0), mask)
    return tl.where(mask, z, -INF), slope


@triton.jit
def load_soft(args, rows, classes, ALIGN: tl.constexpr):
    """Return the soft target of a tile with class weights, (ROWS, BLOCK); 0 where none is known."""
    class_mask = is_class(args, classes, ALIGN)
    mask = rows.kept[:, None] & class_mask[None, :]
    if args.labels is None:
        at = addresses(args.soft, rows.outer, rows.inner, classes, ALIGN)
    else:
        mask = mask & (rows.label >= 0)[:, None]
        line = tl.where(rows.label < 0, 0, rows.label).to(tl.int64)
        at = addresses(args.soft, 0, line, classes, ALIGN)
    soft = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if args.class_weight is not None:
        soft *= tl.load(args.class_weight + classes, mask=class_mask, other=0.0)[None, :]
    return soft


@triton.jit
def soft_of_pivots(args, rows, pivot):
    """Return the soft target of one class of each row with class weights, float64, (ROWS,)."""
    mask = rows.kept
    if args.labels is None:
        row = rows.outer * args.soft.outer + rows.inner * args.soft.inner
    else:
        mask = mask & (rows.label >= 0)
        row = tl.where(mask, rows.label, 0).to(tl.int64) * args.soft.inner
    own = tl.load(args.soft.at + row + pivot * args.soft.step, mask=mask, other=0.0).to(tl.float32)
    if args.class_weight is not None:
        own *= tl.load(args.class_weight + pivot, mask=mask, other=0.0)
    return own.to(tl.float64)


@triton.jit
def weights_of(weights, classes, mask):
    """Return the weight of one class of each row, float64: 1 without weights, 0 outside a mask."""
    weight = tl.where(mask, 1.0, tl.zeros(classes.shape, tl.float64))
    if weights is not None:
        weight = tl.load(weights + classes, mask=mask, other=0.0).to(tl.float64)
    return weight
