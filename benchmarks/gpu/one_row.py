"""The kernel of ``clusters``: cross-entropy of a row that stays on chip between two uses."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
ALIGNED = tl.constexpr(8)  # logits that one load of 16 bytes brings


@triton.jit
def one_row(
    logits, labels, gradient, sums, rows, pitch, CLASSES: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the softmax of one row without its label; and its largest logit and sum, to ``sums``.

    Args:
        logits: (rows, CLASSES) bfloat16, ``pitch`` apart.
        labels: (rows,) int64.
        gradient: as the logits.
        sums: (2, rows) float32.
        rows: number of rows.
        pitch: logits from one row to the next.
        CLASSES: number of classes, which 8 divides.
        BLOCK: the next power of 2.
    """
    row = tl.program_id(0)
    classes = tl.arange(0, BLOCK)
    there = classes < CLASSES // ALIGNED * ALIGNED
    start = row.to(tl.int64) * pitch
    places = tl.multiple_of(logits + start + classes, 16)
    z = tl.load(places, mask=there, other=-float("inf")).to(tl.float32)
    label = tl.load(labels + row).to(tl.int32)
    z = tl.where(classes == label, -float("inf"), z)
    largest = tl.max(z, 0)
    exponentials = tl.exp2((z - largest) * LOG2E)
    total = tl.sum(exponentials, 0)
    tl.store(sums + row, largest)
    tl.store(sums + rows + row, total)
    p = (exponentials / total).to(gradient.dtype.element_ty)
    tl.store(tl.multiple_of(gradient + start + classes, 16), p, mask=there)
