"""What the kernels are told: tensors and how to walk them, as tuples that Triton takes as one.

Rows are numbered ``outer * inner_rows + inner``; a tile is some rows and a run of classes. The
programs of one launch go through the tiles of a row first.

ALIGN numbers lie side by side and may be loaded at once: classes of a row or, if it is negative, so
many rows of a class, as in ``(N, C, d)``. Triton itself looks only whether 16 divides an address or
a stride; so rows of 1000 numbers would be loaded one by one, and those of half a batch added up in
another order than those of the whole.
"""

# pyright: reportArgumentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import INF, LOG2E, tanh


class Rows(NamedTuple):
    """Rows in memory: the steps from one outer and inner index and from one class to the next."""

    at: Any
    outer: int
    inner: int
    step: int


class Transform(NamedTuple):
    """``z = softcap tanh(scale x / softcap) class_scale + class_bias``; None leaves it out."""

    scale: Any
    scale_step: int  # 1: one per row, 0: one for all
    softcap: Any
    class_scale: Any
    class_bias: Any


class Question(NamedTuple):
    """Logits, what is done to them, and the target."""

    logits: Rows
    rows: int
    inner_rows: int
    classes: int
    parts: int  # tiles in a row
    transform: Transform
    labels: Any  # int64, or None
    ignore_index: int
    first_class: int
    soft: Any  # Rows of a soft target, or of a table with a line for each class, or None
    class_weight: Any  # of an index target or a soft one
    mean_weight: Any


@triton.constexpr_function
def holds(mask, bit):
    """Whether a bit of a set is on."""
    return bool(mask >> bit & 1)


@triton.constexpr_function
def slot(mask, bit):
    """How many members of a set come before one of them."""
    return bin(mask & ((1 << bit) - 1)).count("1")


@triton.constexpr_function
def along_row(align):
    """How many classes of a row may be loaded at once."""
    return max(align, 1)


@triton.constexpr_function
def across_rows(align):
    """How many rows of a class may."""
    return max(-align, 1)


# ---- where a program is -------------------------------------------------------------------------


@triton.jit
def multiple(x, UNIT: tl.constexpr):
    """A number that UNIT divides, said so that the compiler sees it."""
    return x // UNIT * UNIT


@triton.jit
def is_class(q, classes, ALIGN: tl.constexpr):
    """Which places of a tile are classes."""
    return classes < multiple(q.classes, along_row(ALIGN))


@triton.jit
def find_tile(q, tile, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(rows, part, classes) of a tile."""
    part = tile % q.parts
    return find_rows(q, tile // q.parts, ALIGN, ROWS), part, part * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def find_rows(q, strip, ALIGN: tl.constexpr, ROWS: tl.constexpr):
    """The rows of a strip: (number, whether it is there, outer, inner, class, whether it counts).

    The class is that of the label among these logits, or -1.
    """
    strip = tl.full([1], strip, tl.int64)
    if ALIGN > 0:
        n = strip * ROWS + tl.arange(0, ROWS)
        outer, inner = n // q.inner_rows, n % q.inner_rows
        there = n < q.rows
    else:  # rows that lie side by side, of one outer index
        strips = tl.cdiv(q.inner_rows, ROWS)
        outer, inner = strip // strips, strip % strips * ROWS + tl.arange(0, ROWS)
        there = inner < multiple(q.inner_rows, across_rows(ALIGN))
        n = outer * q.inner_rows + inner
    place, kept = read_labels(q, n, there)
    return n, there, outer, inner, place, kept


@triton.jit
def find_some_rows(q, COUNT: tl.constexpr):
    """(number, whether it is there, class, whether it counts) where classes are not looked at."""
    n = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    place, kept = read_labels(q, n, n < q.rows)
    return n, n < q.rows, place, kept


@triton.jit
def column(q, k, n):
    """Where row n has its place in line k of a table with a column for each row."""
    return tl.full([1], k, tl.int64) * q.rows + n


@triton.jit
def read_labels(q, n, there):
    """(class among these logits or -1, whether it counts); every row of a soft target counts."""
    place = tl.full(n.shape, -1, tl.int64)
    if q.labels is not None:
        label = tl.load(q.labels + n, mask=there, other=q.ignore_index)
        there = there & (label != q.ignore_index)
        here = label - q.first_class
        place = tl.where(there & (here >= 0) & (here < q.classes), here, -1)
    return place, there


@triton.jit
def addresses(rows, outer, inner, classes, ALIGN: tl.constexpr):
    """Pointers to a tile."""
    BYTES: tl.constexpr = rows.at.dtype.element_ty.primitive_bitwidth // 8
    line = outer * rows.outer + inner * rows.inner
    at = rows.at + line[:, None] + (classes.to(tl.int64) * rows.step)[None, :]
    return tl.multiple_of(at, [across_rows(ALIGN) * BYTES, along_row(ALIGN) * BYTES])


# ---- logits -------------------------------------------------------------------------------------


@triton.jit
def scale_in_double(q, n, there):
    """The factor on the logits of each row."""
    scale = tl.full(n.shape, 1.0, tl.float64)
    if q.transform.scale is not None:
        scale = tl.load(q.transform.scale + n * q.transform.scale_step, mask=there, other=1.0)
    return scale


@triton.jit
def terms_of_classes(t, classes, inside):
    """Factor on the logits of each class, and what is added to them."""
    factor = tl.full(classes.shape, 1.0, tl.float32)
    bias = tl.zeros(classes.shape, tl.float32)
    if t.class_scale is not None:
        factor = tl.load(t.class_scale + classes, mask=inside, other=1.0)
    if t.class_bias is not None:
        bias = tl.load(t.class_bias + classes, mask=inside, other=0.0)
    return factor, bias


@triton.jit
def transformed(t, z, scale, factor, bias):
    """Logits after all that is done to them. A masked class stays masked by the cap."""
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
    """What the last step of the chain rule multiplies by, but for the scale of the row."""
    slope = tl.full(x.shape, 1.0, tl.float32) * factor
    if t.softcap is not None:
        e = tl.exp2(tl.abs(x * scale) * (-2.0 * LOG2E / t.softcap))
        slope *= 4.0 * e / ((1.0 + e) * (1.0 + e))  # 1 - tanh^2
    return slope


@triton.jit
def load_logits(
    q, rows, classes,
    OTHER: tl.constexpr, POLICY: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """(transformed logits of a tile in float32, OTHER where there are none; slope).

    Rows that are left out are not read, unless they are loaded side by side.
    """
    n, there, outer, inner, _, kept = rows
    inside = is_class(q, classes, ALIGN)
    mask = kept[:, None] & inside[None, :]
    read = there[:, None] & inside[None, :] if ALIGN < 0 else mask
    at = addresses(q.logits, outer, inner, classes, ALIGN)
    z = tl.load(at, mask=read, other=OTHER, eviction_policy=POLICY).to(tl.float32)
    scale = scale_in_double(q, n, there).to(tl.float32)[:, None]
    factor, bias = terms_of_classes(q.transform, classes, inside)
    slope = slope_of_transform(q.transform, z, scale, factor[None, :])
    z = transformed(q.transform, z, scale, factor[None, :], bias[None, :])
    return tl.where(mask, z, OTHER), slope


@triton.jit
def load_pivots(q, n, place, found):
    """The transformed logit of one class of each row, -inf where it is not found."""
    place = tl.where(found, place, 0)
    row = n // q.inner_rows * q.logits.outer + n % q.inner_rows * q.logits.inner
    z = tl.load(q.logits.at + row + place * q.logits.step, mask=found, other=0.0).to(tl.float32)
    factor, bias = terms_of_classes(q.transform, place, found)
    z = transformed(q.transform, z, scale_in_double(q, n, found).to(tl.float32), factor, bias)
    return tl.where(found, z, -INF)


@triton.jit
def load_soft(q, rows, classes, ALIGN: tl.constexpr):
    """The soft target of a tile, class weights included; 0 where there is none."""
    _, _, outer, inner, place, kept = rows
    inside = is_class(q, classes, ALIGN)
    mask = kept[:, None] & inside[None, :]
    if q.labels is None:
        at = addresses(q.soft, outer, inner, classes, ALIGN)
    else:
        known = tl.where(place < 0, 0, place)
        mask = mask & (place >= 0)[:, None]
        at = addresses(q.soft, 0, known, classes, ALIGN)
    soft = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if q.class_weight is not None:
        soft *= tl.load(q.class_weight + classes, mask=inside, other=0.0)[None, :]
    return soft
