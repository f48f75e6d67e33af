"""Launches of kernels: finds strides, tiles and the names of outputs from a problem."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..rows.problem import Problem
from . import fields, gradient, layout, one_sweep, sweep, totals
from .gradient import Partials
from .kernel import Kernel
from .layout import RowLayout, alignment, even, soft_of, steps_of, vector
from .memory import KernelArguments, Strided, Transform
from .needed import coefficients_for, sums_of

# These numbers are chosen so that no registers spill, a logit takes few instructions
# (tests/engines/triton/test_compile_kernels.py), and enough loads are in flight. They have not been
# timed on a GPU yet; benchmarks/gpu/logits.py does that.
COUNT = 128  # rows of a program that works on rows alone
LANES = 64 if torch.version.hip else 32  # threads of a warp
PER_WARP = 64 * LANES  # numbers of a tile for each warp, so that what is done once per row is rare
ROWS_PER_THREAD = 16  # of short rows; a thread does for each of them what is done once per row
TILES = (8192, 4096, 2048)  # numbers in a part of a long row
# Numbers of a row that one program can hold. Triton 3.8 and 3.9 spill 40 and 248 bytes with 32768.
ON_CHIP = 32768 if triton.__version__ < "3.8" else 16384
CLUSTER = 1  # programs that may hold a row together: 8 compile from Triton 3.8 on, but none was run
STEP_PER_WARP = 32 * LANES  # numbers of a part for each warp, where the next part is being loaded
PANEL = 2 * LANES  # rows of a tile where rows lie next to each other: two for each thread
PANEL_TILE = 32  # classes of such a tile
PANEL_STEP = 8  # classes that are in hand at a time: 64 registers, where 32 classes took 158
WIDE = 1024  # rows that a program takes at once which does nothing but add
ALONE = 8192  # rows of which one program finds the divisor
PARTS = 256  # the most programs that do


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
        if len(sums_of(p)) > 2:  # with half the numbers a thread spills none of them
            self.tiling = self.tiling._replace(warps=2 * self.tiling.warps)
        self.whole = Tiling.for_one_sweep(p.classes, self.align < 0)
        self.sums = " ".join(sums_of(p))
        self.fields = " ".join(p.fields)
        self.kernels: dict[Any, Kernel] = {}
        self.device = p.logits.device


@functools.cache
def _last_slope(device: torch.device) -> Tensor:
    """The slope of the last backward pass on a device. Captured graphs write to it for ever."""
    return torch.ones((), dtype=torch.float64, device=device)


PLANS: dict[Any, Plan] = {}
MOST_PLANS = 64  # a model has a few shapes; then the first ones are made again


def _plan_of(
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


class Notes(NamedTuple):
    """Labels and numbers that one kernel of a sum over rows notes for the others."""

    labels: Tensor | None  # with rows of weight 0 ignored; None without row weights
    numbers: Tensor  # slope of the gradient, divisor, and parts of a sum; float64


class Launch:
    """A problem in the form that its kernels take."""

    def __init__(self, problem: Problem, out: Tensor | None = None) -> None:
        self.problem, t = problem, problem.tensors
        logits, soft = even(problem.logits), soft_of(problem)
        labels = t.target.contiguous() if problem.labelled else None
        scale, per_row = t.scale, 0
        if scale is not None and scale.ndim:
            scale, per_row = scale.contiguous(), 1
        vectors = [vector(x) for x in (t.class_scale, t.class_bias, t.class_weight, t.mean_weight)]
        self.plan = plan = _plan_of(problem, logits, soft, out, [labels, scale, *vectors])
        self.rows = rows = problem.rows.numel()
        self.inner_rows, self.out = plan.inner_rows or rows, out
        class_scale, class_bias, class_weight, mean_weight = vectors
        settings, steps = problem.settings, plan.steps
        self.arguments = KernelArguments(
            Strided(logits, *steps[0]), rows, plan.inner_rows or None, problem.classes,
            plan.tiling.tiles,
            Transform(scale, per_row, settings.softcap or None, class_scale, class_bias),
            labels, settings.ignore_index, settings.first_class,
            None if soft is None else Strided(soft, *steps[1]), class_weight, mean_weight,
        )  # fmt: skip

    def _blocks(self, t: Tiling) -> int:
        """Return the number of blocks of rows."""
        if self.plan.align > 0:
            return -(-self.rows // t.rows)
        return self.rows // self.inner_rows * -(-self.inner_rows // t.rows)

    def _run(
        self, key: Any, make: Callable[[Plan], Kernel], programs: int, *arguments: Any
    ) -> None:
        """Launch the kernel of this key, which is made at the first launch."""
        kernels = self.plan.kernels
        kernel = kernels.get(key)
        if kernel is None:
            kernel = kernels[key] = make(self.plan)
        kernel(programs, *arguments)

    def _tiled(self, function: Any, t: Tiling, **constants: Any) -> Kernel:
        """Return a kernel that works on tiles."""
        plan = self.plan
        return Kernel(
            function, plan.device, t.warps, t.cluster, ALIGN=plan.align, ROWS=t.rows, BLOCK=t.block,
            **constants,
        )  # fmt: skip

    # ---- fields, and their gradient ------------------------------------------------------------

    def find(self) -> Tensor:
        """Return the table of statistics, (fields, N...), float64."""
        p, plan, sums = self.problem, self.plan, self._sweep()
        shape = (len(p.fields), *p.rows)
        table = torch.empty(shape, dtype=torch.float64, device=plan.device)
        self._run(
            "finish",
            lambda plan: Kernel(
                fields.finish, plan.device, SUMS=plan.sums, FIELDS=plan.fields,
                SHARDED=p.settings.sharded, BLOCK=plan.tiling.block, COUNT=COUNT,
            ),
            -(-self.rows // COUNT), self.arguments, sums, table,
        )  # fmt: skip
        return table

    def _sweep(self) -> Tensor:
        """Return the sums of all tiles."""
        t, plan = self.plan.tiling, self.plan
        sums = _floats((plan.sums.count(" ") + 1, t.tiles, self.rows), plan.device)
        self._run(
            "sweep", lambda plan: self._tiled(sweep.sweep, t, SUMS=plan.sums),
            self._blocks(t) * t.tiles, self.arguments, sums,
        )  # fmt: skip
        return sums

    def differentiate(self, table: Tensor, partials: Sequence[Tensor | None]) -> None:
        """Write the gradient of the sum of every field times its partial derivative."""
        p, plan, t = self.problem, self.plan, self.plan.tiling
        given = dict(zip(p.fields, partials, strict=True))
        chosen = [_partial(given.get(name)) for name in Partials._fields]
        addresses = Partials(*[at for at, _ in chosen])
        steps = Partials(*[step for _, step in chosen])
        key = steps, *[x is None for x in addresses]
        names = coefficients_for(p, addresses)
        coefficients = _floats((len(names), self.rows), plan.device)
        places = torch.empty((2, self.rows), dtype=torch.int32, device=plan.device)
        self._run(
            ("find_coefficients", key),
            lambda plan: Kernel(
                gradient.find_coefficients, plan.device, FIELDS=plan.fields, NAMES=" ".join(names),
                COUNT=COUNT,
            ),
            -(-self.rows // COUNT), self.arguments, table.contiguous(), addresses, steps,
            coefficients, places,
        )  # fmt: skip
        self._run(
            ("differentiate", key),
            lambda _: self._tiled(gradient.differentiate, t, NAMES=" ".join(names)),
            self._blocks(t) * t.tiles, self.arguments, coefficients, places, self._gradient(),
        )  # fmt: skip

    def _gradient(self) -> Strided:
        """Return the matrix that receives the gradient."""
        return Strided(self.out, *self.plan.steps[2])

    # ---- a sum over rows -----------------------------------------------------------------------

    def note(
        self, row_weight: Tensor | None, by: str, number: Tensor | None, never_zero: bool,
        guess: bool,
    ) -> Notes:  # fmt: skip
        """Note the divisor, and the slope of the gradient: a guess, or 1.

        Args:
            row_weight: a number per row, float64, contiguous, or None.
            by: ``"weight"``, ``"count"`` or ``"number"``, which takes the number.
            number: a tensor of one number, or None for 1.
            never_zero: True if a divisor of 0 becomes 1.
            guess: True for the slope of the last backward pass.
        """
        plan, labels = self.plan, None
        alone = row_weight is None and by == "number"
        programs = 1 if alone else min(-(-self.rows // ALONE), PARTS)
        if row_weight is not None:
            labels = torch.empty_like(self.arguments.labels)
        parts = max(programs, -(-self.rows // COUNT))
        numbers = torch.empty(2 + parts, dtype=torch.float64, device=plan.device)
        kind = None if number is None else number.dtype
        expected = _last_slope(plan.device) if guess else None
        self._run(
            ("note", by, never_zero, guess, row_weight is None, kind),
            lambda plan: Kernel(
                totals.note_down, plan.device, BY=by, ZERO=never_zero, COUNT=WIDE, num_warps=8
            ),
            programs, self.arguments, row_weight, number, expected, numbers, labels,
        )  # fmt: skip
        if programs > 1 and by != "number":
            self._divide(numbers, programs, None, never_zero)
        return Notes(labels, numbers)

    def cross_entropy(self, row_weight: Tensor | None, notes: Notes, result: Tensor) -> None:
        """Store the loss in ``result``, and write the gradient if the launch has a place for it."""
        self._take(notes)
        if self.out is None:
            tiles, block, names = self.plan.tiling.tiles, self.plan.tiling.block, self.plan.sums
            sums = self._sweep()
        else:
            tiles, block, names = 1, 1, one_sweep.SUMS.value
            sums = _floats((3, 1, self.rows), self.plan.device)
            self._one_sweep(row_weight, notes, None, sums)
        programs = -(-self.rows // COUNT)
        self._run(
            ("add_up", names, block, row_weight is None),
            lambda plan: Kernel(
                totals.add_up, plan.device, SUMS=names, BLOCK=block, COUNT=COUNT
            ),
            programs, self._by(tiles), row_weight, sums, notes.numbers,
        )  # fmt: skip
        self._divide(notes.numbers, programs, result)

    def _take(self, notes: Notes) -> None:
        """Take the labels of the notes."""
        if notes.labels is not None:
            self.arguments = self.arguments._replace(labels=notes.labels)

    def _by(self, tiles: int) -> KernelArguments:
        """Return the arguments for another number of tiles."""
        given = self.arguments
        return given if given.tiles == tiles else given._replace(tiles=tiles)

    def _divide(
        self, notes: Tensor, parts: int, out: Tensor | None, never_zero: bool = False
    ) -> None:
        """Store the sum of the parts by the divisor; without ``out`` the sum is the divisor."""
        self._run(
            ("divide", None if out is None else out.dtype, never_zero),
            lambda plan: Kernel(totals.divide, plan.device, ZERO=never_zero, COUNT=WIDE),
            1, notes, parts, out,
        )  # fmt: skip

    def follow(self, row_weight: Tensor | None, notes: Notes, slope: Tensor, ready: bool) -> None:
        """Write the gradient for ``slope``, unless the one that was noted is ready, and is that."""
        self._take(notes)
        self._one_sweep(row_weight, notes, slope, None, ready)

    def _one_sweep(
        self, row_weight: Tensor | None, notes: Notes, slope: Tensor | None, sums: Tensor | None,
        ready: bool = False,
    ) -> None:  # fmt: skip
        plan, t = self.plan, self.plan.whole
        blocks = self._blocks(t)
        slope_type = None if slope is None else slope.dtype
        self._run(
            ("cross_entropy", row_weight is None, slope_type, ready),
            lambda _: self._tiled(
                one_sweep.cross_entropy, t, READY=ready, WHOLE=t.tiles == 1, CLUSTER=t.cluster > 1,
                THREADS=t.warps * LANES,
            ),
            min(blocks, _few(plan.device)) if ready else blocks,
            self._by(t.tiles), row_weight, notes.numbers, slope,
            None if slope is None else _last_slope(plan.device), self._gradient(), sums, blocks,
        )  # fmt: skip


@functools.cache
def _few(device: torch.device) -> int:
    """Return a number of programs that fills a device, and ends at once if there is no work."""
    if device.type != "cuda":
        return 64
    return 8 * torch.cuda.get_device_properties(device).multi_processor_count


def _floats(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return memory for float32, whatever the default dtype is."""
    return torch.empty(shape, dtype=torch.float32, device=device)


def _partial(partial: Tensor | None) -> tuple[Tensor | None, int]:
    """Return a partial derivative of each row, and the step between rows."""
    if partial is None:
        return None, 0
    if not any(partial.stride()):  # one number for all rows, expanded
        return partial, 0
    return partial.contiguous(), 1


def launch(
    kernel: Any, programs: int, device: torch.device, *arguments: Any, num_warps: int = 4,
    **constants: Any,
) -> None:  # fmt: skip
    """Run a kernel once on a device, whatever the current device is."""
    here: Any = contextlib.nullcontext()
    if device.type != "cpu":  # which is Triton's interpreter
        here = torch.get_device_module(device).device(device)
    with here:  # a * b + c is fused where a kernel says fma and nowhere else: same bits everywhere
        kernel[(programs,)](*arguments, **constants, num_warps=num_warps, enable_fp_fusion=False)
