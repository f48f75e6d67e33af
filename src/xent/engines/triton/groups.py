"""Any loss of rows and its gradient in one kernel, for groups of rows that stay in the cache.

A program sums up the tiles of a few rows as :mod:`.sweep` does, runs the program of the loss on
these rows as :func:`.totals.add_up` does, and stores their gradient as
:func:`.gradient.differentiate` does. What one step leaves in memory, the next one reads: the second
look at the logits finds them in the cache, and the bits are those of two sweeps. What is done once
per row is done by a thread for each row of the group, in float64.
"""

# pyright: reportArgumentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import triton
import triton.language as tl

from .fields import fields_of, sums_of_rows
from .gradient import put_slopes, put_tile
from .memory import find_rows
from .programs import partials_of
from .sweep import sum_tile
from .tables import Columns, put
from .totals import read_slope, weight_of_rows


@triton.jit
def row_loss(
    args, row_weight, constants, notes, slope, last, sums, coefficients, places, out, groups,
    READY: tl.constexpr, SUMS: tl.constexpr, NAMES: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Store the gradient, and the sums, of groups of GROUP rows, which have TILES tiles.

    The tiles have ROWS rows and BLOCK classes. ``notes``, ``slope`` and ``last`` are those of
    :func:`.totals.read_slope`; if the gradient for the slope in the notes is READY, and ``slope``
    is the same, the kernel does nothing. The memory of ``sums``, ``coefficients`` and ``places``
    passes numbers from one step to the next.
    """
    upstream, known = read_slope(notes, slope, last)
    if READY:
        groups = tl.where(known, 0, groups)
    for group in range(tl.program_id(0), groups, tl.num_programs(0)):
        for k in range(TILES):
            sum_tile(args, sums, group * TILES + k, SUMS, ALIGN, ROWS, BLOCK)
        tl.debug_barrier()
        rows = find_rows(args, group, ALIGN, GROUP)
        row = sums_of_rows(args, rows, sums, SUMS, BLOCK, False)
        # The gradient may be written over the logit of the target.
        put(Columns(sums, args.rows, rows.n, rows.mask, args.tiles, 0), "target", row.pivot, SUMS)
        fields = fields_of(args, rows, row, SUMS)
        slopes = partials_of(fields, constants, upstream * weight_of_rows(row_weight, rows))
        put_slopes(args, rows, fields, slopes, coefficients, places, NAMES)
        tl.debug_barrier()
        for k in range(TILES):
            tile = group * TILES + (TILES - 1 - k)  # the last one is in the nearest cache
            put_tile(args, coefficients, places, out, tile, NAMES, ALIGN, ROWS, BLOCK)
