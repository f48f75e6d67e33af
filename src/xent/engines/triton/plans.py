"""Plans of launches: tiles of a matrix, and the kernels that problems of one kind share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..rows.problem import Problem
from . import layout
from .kernel import Kernel
from .layout import RowLayout, alignment, steps_of
from .needed import sums_of

# These numbers are chosen so that no registers spill, a logit takes few instructions
# (tests/engines/triton/test_compile_kernels.py), and enough loads are in flight. They have not been
# timed on a GPU yet; benchmarks/gpu/logits.py does that.
COUNT = 128  # rows of a program that works on rows alone
LANES = 64 if torch.version.hip else 32  # threads of a warp
PER_WARP = 64 * LANES  # numbers of a tile for each warp, so that what is done once per row is rare
GROUP = 16384  # bytes of the rows that a warp sums up, and then finds in the cache
MOST_BLOCKS = 4  # of such rows
ROWS_PER_THREAD = 16  # of short rows; a thread does for each of them what is done once per row
TILES = (8192, 4096, 2048)  # numbers in a part of a long row
# Numbers of a row that one program can hold. Triton 3.8 and 3.9 spill 40 and 248 bytes with 32768.
ON_CHIP = 32768 if triton.__version__ < "3.8" else 16384
CLUSTER = 1  # programs that may hold a row together: 8 compile from Triton 3.8 on, but none was run
STEP_PER_WARP = 32 * LANES  # numbers of a part for each warp, where the next part is being loaded
PANEL = 2 * LANES  # rows of a tile where rows lie next to each other: two for each thread
PANEL_TILE = 32  # classes of such a tile
PANEL_STEP = 8  # classes that are in hand at a time: 64 registers, where 32 classes took 158


class Tiling(NamedTuple):
    """Tiles of a matrix. They depend on the length of the rows alone, and so do the bits."""

    rows: int
    block: int
    tiles: int  # in a row
    warps: int  # of a program
    cluster: int = 1  # programs that hold a tile together

    @classmethod
    def of(cls, classes: int, panel: bool) -> Tiling:
        """Return tiles of whole rows, several if the rows are short, or parts of a long row."""
        if panel:
            return cls._cut(classes, PANEL, min(triton.next_power_of_2(classes), PANEL_TILE))
        block = min(triton.next_power_of_2(classes), _block(classes))
        return cls._cut(classes, _rows(block), block)

    @classmethod
    def for_one_sweep(cls, classes: int, panel: bool) -> Tiling:
        """Return tiles of whole rows, or parts of a row that is too long or would waste threads."""
        if panel:
            return cls._cut(classes, PANEL, min(triton.next_power_of_2(classes), PANEL_STEP))
        whole, block = triton.next_power_of_2(classes), _block(classes)
        little_waste = 4 * whole <= 5 * triton.cdiv(classes, block) * block
        if whole <= ON_CHIP and little_waste:
            return cls._cut(classes, _rows(whole), whole)
        if whole <= ON_CHIP * CLUSTER and little_waste:
            return cls(1, whole, 1, ON_CHIP // PER_WARP, whole // ON_CHIP)
        return cls(1, block, triton.cdiv(classes, block), block // STEP_PER_WARP)

    @classmethod
    def _cut(cls, classes: int, rows: int, block: int) -> Tiling:
        return cls(rows, block, triton.cdiv(classes, block), max(1, rows * block // PER_WARP))


def _rows(block: int) -> int:
    """Return how many rows of a tile are side by side."""
    return min(max(1, PER_WARP // block), ROWS_PER_THREAD * max(1, LANES // block))


def _block(classes: int) -> int:
    """Return the longest part of a row of which little lies behind the row: at most an eighth."""
    return next((block for block in TILES if 8 * (-classes % block) <= classes), TILES[-1])


class Plan:
    """All that launches need but for the tensors, for problems that differ in their rows alone.

    Attributes:
        steps: those of logits, soft target and gradient; zeros where there is no such matrix.
        inner_rows: their number; 0 where all rows are inner ones.
        align: ALIGN of the kernels.
        tiling: tiles of the sweeps.
        whole: tiles of the kernel that sweeps once.
        group: blocks of rows whose loss and gradient one kernel finds; 0 if two sweeps do.
        kernels: those that were launched, by name and options.
    """

    def __init__(self, p: Problem, logits: Tensor, soft: Tensor | None, out: Tensor | None) -> None:
        matrices = [x for x in (logits, out, soft) if x is not None]
        rows = RowLayout.of(logits)
        assert rows is not None
        self.steps = [steps_of(x) for x in (logits, soft, out)]
        self.inner_rows = rows.inner_rows if logits.ndim > 2 else 0
        self.align = alignment(matrices)
        self.tiling = Tiling.of(p.classes, self.align < 0)
        self.whole = Tiling.for_one_sweep(p.classes, self.align < 0)
        if len(sums_of(p)) > 2:  # with half the numbers a thread spills none of them
            self.tiling = self.tiling._replace(warps=2 * self.tiling.warps)
        has_slope = p.settings.softcap or p.tensors.class_scale is not None
        if has_slope and self.whole.tiles == 1:  # and so it is with slopes beside the logits
            self.whole = self.whole._replace(warps=2 * self.whole.warps)
        self.group = self._blocks_of_group(logits, soft)
        self.sums = " ".join(sums_of(p))
        self.fields = " ".join(p.fields)
        self.kernels: dict[Any, Kernel] = {}
        self.device = p.logits.device

    def _blocks_of_group(self, logits: Tensor, soft: Tensor | None) -> int:
        """Return how many blocks of rows stay in the cache: a power of 2, or 0 for none.

        A thread with many rows of few classes, or of a panel, would spill registers.
        """
        t = self.tiling
        if self.align < 0 or t.rows > 2 * LANES * t.warps:
            return 0
        number = logits.element_size() + (0 if soft is None else soft.element_size())
        blocks = GROUP * t.warps // (t.rows * t.block * t.tiles * number)
        return min(1 << blocks.bit_length() >> 1, MOST_BLOCKS)


PLANS: dict[Any, Plan] = {}
MOST_KERNELS = 256  # of one plan
MOST_PLANS = 64  # a model has a few shapes; then the first ones are made again


def plan_of(
    p: Problem, logits: Tensor, soft: Tensor | None, out: Tensor | None, others: list[Tensor | None]
) -> Plan:
    """Return the plan of a problem, which is made at the first of its kind."""
    matrices = [
        x if x is None else (x.dtype, x.stride(), layout.address(x)) for x in (logits, soft, out)
    ]
    # Where rows lie next to each other, their number says how many may be loaded at once.
    rows = logits.shape if logits.ndim == 1 or logits.stride(0) == 1 else logits.shape[1:]
    key = (
        *p.settings[:-1], p.labelled, logits.device, rows, *matrices,
        *[x if x is None else (x.dtype, x.ndim, layout.address(x)) for x in others],
        p.rows.numel() >= 2**31,
    )  # fmt: skip
    plan = PLANS.get(key)
    if plan is None:
        if len(PLANS) >= MOST_PLANS:
            PLANS.clear()
        plan = PLANS[key] = Plan(p, logits, soft, out)
    return plan
