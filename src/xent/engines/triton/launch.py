"""Launches of kernels: finds strides, tiles and the names of outputs from a problem."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..rows.problem import Problem
from . import fields, gradient, one_sweep, sweep
from .gradient import Partials
from .memory import KernelArguments, Strided, Transform

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
STEP_PER_WARP = 32 * LANES  # numbers of a part for each warp, where the next part is being loaded
PANEL = 2 * LANES  # rows of a tile where rows lie next to each other: two for each thread
PANEL_TILE = 32  # classes of such a tile
PANEL_STEP = 8  # classes that are in hand at a time: 64 registers, where 32 classes took 158
FEW = 16  # with this many rows next to each other, or more, a panel is faster
VECTOR = 16  # bytes that a thread loads at once
PANEL_VECTOR = 4  # bytes of a panel: with 16, a thread would have the numbers of eight rows


class Tiling(NamedTuple):
    """Tiles of a matrix. They depend on the length of the rows alone, and so do the bits."""

    rows: int
    block: int
    tiles: int  # in a row
    warps: int

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
        if whole <= ON_CHIP and 4 * whole <= 5 * triton.cdiv(classes, block) * block:
            return cls._cut(classes, _rows(whole), whole)
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


class RowLayout(NamedTuple):
    """Layout of the rows of a tensor of logits: outer x inner rows, and the steps between them."""

    outer_rows: int
    inner_rows: int
    classes: int
    steps: tuple[int, int, int]  # outer, inner, class

    @property
    def panel(self) -> bool:
        """True if rows lie next to each other and classes do not, and there are enough rows."""
        return self.steps[2] != 1 and self.steps[1] == 1 and self.inner_rows >= FEW

    @classmethod
    def of(cls, x: Tensor) -> RowLayout | None:
        """Return the layout; None if the axes after that of the classes do not step evenly."""
        if x.ndim == 1:
            return cls(1, 1, x.shape[0], (0, 0, x.stride(0)))
        if x.ndim == 2:
            return cls(1, x.shape[0], x.shape[1], (0, x.stride(0), x.stride(1)))
        try:
            flat = x.view(*x.shape[:2], math.prod(x.shape[2:]))
        except RuntimeError:
            return None
        step = flat.stride()
        return cls(x.shape[0], flat.shape[2], flat.shape[1], (step[0], step[2], step[1]))


def even(x: Tensor) -> Tensor:
    """Return the tensor, or a copy whose rows step evenly."""
    return x if RowLayout.of(x) is not None else x.contiguous()


class Launch:
    """A problem in the form that its kernels take."""

    def __init__(self, problem: Problem, out: Tensor | None = None) -> None:
        p = problem
        self.problem = p
        logits = even(p.logits)
        layout = RowLayout.of(logits)
        assert layout is not None
        soft = p.probabilities
        matrices = [m for m in (logits, out) if m is not None]
        if soft is not None:
            soft = soft.float() if soft.dtype == torch.float64 else soft
            soft = even(soft) if p.tensors.target_table is None else soft.contiguous()
            matrices.append(soft)
        self.rows = p.rows.numel()
        self.align = _alignment(matrices)
        self.tiling = Tiling.of(p.classes, self.align < 0)
        self.layout = layout
        self.programs = self._blocks(self.tiling) * self.tiling.tiles
        self.arguments = KernelArguments(
            logits=_strided(logits),
            rows=self.rows,
            inner_rows=None if layout.outer_rows == 1 else layout.inner_rows,
            classes=p.classes,
            tiles=self.tiling.tiles,
            transform=_transform(p),
            labels=p.tensors.target.contiguous() if p.labelled else None,
            ignore_index=p.settings.ignore_index,
            first_class=p.settings.first_class,
            soft=None if soft is None else _strided(soft),
            class_weight=_vector(p.tensors.class_weight),
            mean_weight=_vector(p.tensors.mean_weight),
        )

    def _blocks(self, t: Tiling) -> int:
        """Return the number of blocks of rows."""
        if self.align > 0:
            return triton.cdiv(self.rows, t.rows)
        return self.layout.outer_rows * triton.cdiv(self.layout.inner_rows, t.rows)

    def find(self) -> Tensor:
        """Return the table of statistics, (fields, N...), float64."""
        p, t = self.problem, self.tiling
        names = _sums(p)
        device = p.logits.device
        sums = _floats((len(names), t.tiles, self.rows), device)
        launch(
            sweep.sweep, self.programs, device, self.arguments, sums, SUMS=" ".join(names),
            ALIGN=self.align, ROWS=t.rows, BLOCK=t.block, num_warps=t.warps,
        )  # fmt: skip
        return self._finish(self.arguments, sums, " ".join(names), p.fields, t.block)

    def _finish(
        self, arguments: KernelArguments, sums: Tensor, names: str, wanted: Sequence[str],
        block: int,
    ) -> Tensor:  # fmt: skip
        p = self.problem
        table = sums.new_empty((len(wanted), *p.rows), dtype=torch.float64)
        launch(
            fields.finish, triton.cdiv(self.rows, COUNT), p.logits.device, arguments, sums, table,
            SUMS=names, FIELDS=" ".join(wanted), SHARDED=p.settings.sharded, BLOCK=block,
            COUNT=COUNT,
        )  # fmt: skip
        return table

    def cross_entropy(
        self, row_weight: Tensor | None, divisor: Tensor | None, out: Tensor
    ) -> Tensor:
        """Write the gradient of cross-entropy; return log-probabilities and masses, (2, N...)."""
        sums = _floats((2, 1, self.rows), out.device)
        self._one_sweep(row_weight, divisor, None, out, sums)
        arguments = self.arguments._replace(tiles=1)
        return self._finish(arguments, sums, one_sweep.SUMS.value, ("log_prob", "mass"), block=1)

    def follow(
        self, row_weight: Tensor | None, divisor: Tensor | None, slope: Tensor, out: Tensor,
        ready: bool,
    ) -> None:  # fmt: skip
        """Write the gradient for ``slope``; if ``ready``, ``out`` holds that for slope 1."""
        self._one_sweep(row_weight, divisor, slope, out, None, ready)

    def _one_sweep(
        self, row_weight: Tensor | None, divisor: Tensor | None, slope: Tensor | None, out: Tensor,
        sums: Tensor | None, ready: bool = False,
    ) -> None:  # fmt: skip
        t = Tiling.for_one_sweep(self.problem.classes, self.align < 0)
        blocks = self._blocks(t)
        launch(
            one_sweep.cross_entropy, min(blocks, _few(out.device)) if ready else blocks, out.device,
            self.arguments._replace(tiles=t.tiles), row_weight, divisor, slope, _strided(out),
            sums, blocks, READY=ready, ALIGN=self.align, ROWS=t.rows, BLOCK=t.block,
            WHOLE=t.tiles == 1, CLUSTER=False, THREADS=t.warps * LANES, num_warps=t.warps,
        )  # fmt: skip

    def differentiate(self, table: Tensor, partials: Sequence[Tensor | None], out: Tensor) -> None:
        """Write the gradient of the sum of every field times its partial derivative."""
        p, t = self.problem, self.tiling
        given = dict(zip(p.fields, partials, strict=True))
        chosen = [_partial(given.get(name)) for name in Partials._fields]
        addresses = Partials(*[at for at, _ in chosen])
        steps = Partials(*[step for _, step in chosen])
        names = _coefficients(p, addresses)
        device = p.logits.device
        coefficients = _floats((len(names), self.rows), device)
        places = torch.empty((2, self.rows), dtype=torch.int32, device=device)
        launch(
            gradient.find_coefficients, triton.cdiv(self.rows, COUNT), device, self.arguments,
            table.contiguous(), addresses, steps, coefficients, places, FIELDS=" ".join(p.fields),
            NAMES=" ".join(names), COUNT=COUNT,
        )  # fmt: skip
        launch(
            gradient.differentiate, self.programs, device, self.arguments, coefficients, places,
            _strided(out), NAMES=" ".join(names), ALIGN=self.align, ROWS=t.rows, BLOCK=t.block,
            num_warps=t.warps,
        )  # fmt: skip


def _sums(p: Problem) -> list[str]:
    """Return the names of the sums that the tiles find."""
    needed = {"every", *p.settings.requests}
    if p.settings.soft:  # the pivot is the largest class, so "top" needs no sum of its own
        needed = needed - {"top"} | {"soft"}
    groups = [names for group, names in sweep.SUMMED.items() if group in needed]
    return list(dict.fromkeys(itertools.chain(*groups)))


def _coefficients(p: Problem, addresses: Partials) -> list[str]:
    """Return the names of the coefficients that the gradient needs."""
    names = [*gradient.ALWAYS]
    if addresses.entropy is not None:
        names += ["spread"]
    if addresses.rest_squares is not None or addresses.rest_cubes is not None:
        names += ["square", "cube"]
    if addresses.mean is not None:
        names += ["mean"]
    if p.settings.soft:
        names += ["soft"]
    if addresses.rest_top_logit is not None:
        names += ["at_top"]
    return names


def _few(device: torch.device) -> int:
    """Return a number of programs that fills a device, and ends at once if there is no work."""
    if device.type != "cuda":
        return 64
    return 8 * torch.cuda.get_device_properties(device).multi_processor_count


def _floats(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return memory for float32, whatever the default dtype is."""
    return torch.empty(shape, dtype=torch.float32, device=device)


def _strided(x: Tensor) -> Strided:
    """Return the address and the steps of a matrix of rows."""
    layout = RowLayout.of(x)
    assert layout is not None
    return Strided(x.detach(), *layout.steps)


def _transform(p: Problem) -> Transform:
    """Return the transform of the logits, with contiguous vectors."""
    t, scale, per_row = p.transform, p.transform.scale, 0
    if scale is not None and scale.ndim:
        scale, per_row = scale.contiguous(), 1
    return Transform(
        scale, per_row, t.softcap or None, _vector(t.class_scale), _vector(t.class_bias)
    )


def _vector(x: Tensor | None) -> Tensor | None:
    """Return a vector of the classes in float32."""
    return None if x is None else x.detach().float().contiguous()


def _partial(partial: Tensor | None) -> tuple[Tensor | None, int]:
    """Return a partial derivative of each row, and the step between rows."""
    if partial is None:
        return None, 0
    if not any(partial.stride()):  # one number for all rows, expanded
        return partial, 0
    return partial.contiguous(), 1


def _alignment(matrices: list[Tensor]) -> int:
    """Return ALIGN of matrices of one shape; the last may be a table of targets instead."""
    layouts = [layout for x in matrices if (layout := RowLayout.of(x)) is not None]
    panels = [layout.panel for layout in layouts]
    align = 0
    for x, layout in zip(matrices, layouts, strict=True):
        size = x.element_size()
        if panels[0]:
            own, steps = (layout.inner_rows, PANEL_VECTOR // size), layout.steps[::2]
        else:
            own, steps = (layout.classes, VECTOR // size), layout.steps[:2]
        align = math.gcd(align, x.data_ptr() // size, *own, *steps)
    if not (all(panels) or all(layout.steps[2] == 1 for layout in layouts)):
        return 1  # neither rows nor classes lie next to each other everywhere
    return -align if panels[0] else align


def launch(
    kernel: Any, programs: int, device: torch.device, *arguments: Any, num_warps: int = 4,
    **constants: Any,
) -> None:  # fmt: skip
    """Run a kernel on a device, whatever the current device is."""
    here: Any = contextlib.nullcontext()
    if device.type != "cpu":  # which is Triton's interpreter
        here = torch.get_device_module(device).device(device)
    with here:  # a * b + c is fused where a kernel says fma and nowhere else: same bits everywhere
        kernel[(programs,)](*arguments, **constants, num_warps=num_warps, enable_fp_fusion=False)
