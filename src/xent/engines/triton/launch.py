"""From a problem to the numbers and tensors of a launch: strides, tiles, and what is wanted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...row_statistics import INDEX
from ..rows.problem import Problem
from . import fields, gradient, one_pass, sweep
from .gradient import Partials
from .memory import Question, Rows, Transform

# Chosen so that registers hold what a thread works on (tests/test_gpu_compile.py looks), and loads
# enough are under way; no GPU has timed them yet (benchmarks/gpu/logits.py does).
COUNT = 128  # rows of a program that works on rows
TILE = 8192  # numbers in a tile of rows that are longer
SMALL_TILE = 4096  # and in one of several rows
LANES = 64 if torch.version.hip else 32  # of a warp; a program has 1024 at most
PER_WARP = 16 * LANES  # numbers: 16 a thread stay in registers
ON_CHIP = 16384  # numbers of a row that one program can hold
PANEL = 64  # rows side by side, where the classes are not
FEW = 16  # rows side by side for which a panel is not worth while
VECTOR = 16  # bytes that a thread loads at once


class Tiling(NamedTuple):
    """How a matrix is cut up. It depends on the length of the rows alone, and so do the bits."""

    rows: int
    block: int
    parts: int
    warps: int

    @classmethod
    def of(cls, classes: int, panel: bool) -> Tiling:
        """Whole rows, several of them if they are short; or tiles of a long row."""
        most = SMALL_TILE // PANEL if panel else TILE
        block = min(triton.next_power_of_2(classes), most)
        rows = PANEL if panel else max(1, SMALL_TILE // block)
        return cls(rows, block, triton.cdiv(classes, block), max(1, rows * block // PER_WARP))

    @classmethod
    def of_rows(cls, classes: int, panel: bool) -> Tiling:
        """Whole rows as far as a program can hold them, for sweeps that see them twice."""
        if panel:
            return cls.of(classes, panel)
        block = min(triton.next_power_of_2(classes), ON_CHIP)
        rows = max(1, SMALL_TILE // block)
        return cls(rows, block, triton.cdiv(classes, block), max(1, rows * block // PER_WARP))


class Layout(NamedTuple):
    """Where the rows of a tensor of logits lie: outer x inner rows, and the steps between them."""

    outer_rows: int
    inner_rows: int
    classes: int
    steps: tuple[int, int, int]  # outer, inner, class

    @property
    def panel(self) -> bool:
        """Whether rows lie side by side, enough of them to be loaded together, and not classes."""
        return self.steps[2] != 1 and self.steps[1] == 1 and self.inner_rows >= FEW

    @classmethod
    def of(cls, x: Tensor) -> Layout | None:
        """The layout; None if the axes behind that of the classes do not step evenly."""
        if x.ndim == 1:
            return cls(1, 1, x.shape[0], (0, 0, x.stride(0)))
        if x.ndim == 2:
            return cls(1, x.shape[0], x.shape[1], (0, x.stride(0), x.stride(1)))
        try:
            flat = x.view(*x.shape[:2], -1)
        except RuntimeError:
            return None
        step = flat.stride()
        return cls(x.shape[0], flat.shape[2], flat.shape[1], (step[0], step[2], step[1]))


def even(x: Tensor) -> Tensor:
    """The tensor, or a copy of it whose rows step evenly."""
    return x if Layout.of(x) is not None else x.contiguous()


class Launch:
    """A problem as its kernels take it."""

    def __init__(self, problem: Problem, out: Tensor | None = None) -> None:
        p = problem
        self.problem = p
        logits = even(p.logits)
        layout = Layout.of(logits)
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
        self.tiles = self._blocks(self.tiling) * self.tiling.parts
        labels = p.tensors.target.contiguous() if p.labelled else None
        transform = p.transform
        scale = transform.scale
        if scale is not None and scale.ndim:
            scale = scale.contiguous()
        self.question = Question(
            self._rows(logits),
            self.rows,
            layout.inner_rows,
            p.classes,
            self.tiling.parts,
            Transform(
                scale, 1 if scale is not None and scale.ndim else 0,
                transform.softcap or None,
                _vector(transform.class_scale), _vector(transform.class_bias),
            ),
            labels,
            p.settings.ignore_index,
            p.settings.first_class,
            None if soft is None else self._rows(soft),
            _vector(p.tensors.class_weight),
            _vector(p.tensors.mean_weight),
        )  # fmt: skip

    def _rows(self, x: Tensor) -> Rows:
        layout = Layout.of(x)
        assert layout is not None
        return Rows(x.detach(), *layout.steps)

    def _blocks(self, t: Tiling) -> int:
        if self.align > 0:
            return triton.cdiv(self.rows, t.rows)
        return self.layout.outer_rows * triton.cdiv(self.layout.inner_rows, t.rows)

    def find(self) -> Tensor:
        """The table of statistics."""
        p, t = self.problem, self.tiling
        found = _found(p)
        device = p.logits.device
        parts = _floats((found.bit_count(), t.parts, self.rows), device)
        launch(
            sweep.sweep, self.tiles, device, self.question, parts, FOUND=found,
            ALIGN=self.align, ROWS=t.rows, BLOCK=t.block, num_warps=t.warps,
        )  # fmt: skip
        return self._finish(self.question, parts, found, p.mask, t.block)

    def _finish(
        self, question: Question, parts: Tensor, found: int, mask: int, block: int
    ) -> Tensor:
        p = self.problem
        table = parts.new_empty((mask.bit_count(), *p.rows), dtype=torch.float64)
        launch(
            fields.finish, triton.cdiv(self.rows, COUNT), p.logits.device, question, parts,
            table, FOUND=found, FIELDS=mask, SHARDED=p.settings.sharded,
            BLOCK=block, COUNT=COUNT,
        )  # fmt: skip
        return table

    def cross_entropy(
        self, row_weight: Tensor | None, divisor: Tensor | None, out: Tensor
    ) -> Tensor:
        """Write the gradient of cross-entropy; log-probabilities and masses, (2, N...)."""
        parts = _floats((2, 1, self.rows), out.device)
        self._one_pass(row_weight, divisor, None, out, parts)
        found = 1 << sweep.LARGEST.value | 1 << sweep.SUM.value
        mask = 1 << INDEX["log_prob"] | 1 << INDEX["mass"]
        question = self.question._replace(parts=1)
        return self._finish(question, parts, found, mask, block=1)

    def follow(
        self, row_weight: Tensor | None, divisor: Tensor | None, slope: Tensor, out: Tensor,
        ready: bool,
    ) -> None:  # fmt: skip
        """Write the gradient for another slope than 1; what is ``ready`` for 1 is left alone."""
        self._one_pass(row_weight, divisor, slope, out, None, ready)

    def _one_pass(
        self, row_weight: Tensor | None, divisor: Tensor | None, slope: Tensor | None, out: Tensor,
        parts: Tensor | None, ready: bool = False,
    ) -> None:  # fmt: skip
        t = Tiling.of_rows(self.problem.classes, self.align < 0)
        blocks = self._blocks(t)
        launch(
            one_pass.cross_entropy, min(blocks, _few(out.device)) if ready else blocks, out.device,
            self.question._replace(parts=t.parts), row_weight, divisor, slope, self._rows(out),
            parts, blocks, READY=ready, ALIGN=self.align, ROWS=t.rows, BLOCK=t.block,
            WHOLE=t.parts == 1, num_warps=t.warps,
        )  # fmt: skip

    def differentiate(self, table: Tensor, partials: Sequence[Tensor | None], out: Tensor) -> None:
        """Write the gradient."""
        p, t = self.problem, self.tiling
        given = dict(zip(p.fields, partials, strict=True))
        chosen = [_partial(given.get(name)) for name in Partials._fields]
        slopes = Partials(*[at for at, _ in chosen])
        steps = Partials(*[step for _, step in chosen])
        needed = _needed(p, slopes)
        device = p.logits.device
        coefficients = _floats((needed.bit_count(), self.rows), device)
        places = torch.empty((2, self.rows), dtype=torch.int32, device=device)
        launch(
            gradient.find_slopes, triton.cdiv(self.rows, COUNT), device, self.question,
            table.contiguous(), slopes, steps, coefficients, places, FIELDS=p.mask,
            NEEDED=needed, COUNT=COUNT,
        )  # fmt: skip
        launch(
            gradient.differentiate, self.tiles, device, self.question, coefficients, places,
            self._rows(out), NEEDED=needed, ALIGN=self.align, ROWS=t.rows,
            BLOCK=t.block, num_warps=t.warps,
        )  # fmt: skip


def _found(p: Problem) -> int:
    """What the tiles find out, as the bits of `sweep`."""
    s = sweep
    names = [s.LARGEST, s.SUM]
    if p.settings.soft:
        names += [s.MASS, s.DEFICIT, s.PIVOT, s.PIVOT_CLASS, s.PIVOT_SOFT]
    elif "top" in p.settings.requests:
        names += [s.TOP]
    if "entropy" in p.settings.requests:
        names += [s.TIES, s.SPREAD]
    if "mean" in p.settings.requests:
        names += [s.LEVEL, s.WEIGHT, s.SUPPORT]
    if "squares" in p.settings.requests or "cubes" in p.settings.requests:
        names += [s.SQUARES, s.CUBES]
    return sum(1 << name.value for name in names)


def _needed(p: Problem, slopes: Partials) -> int:
    """The coefficients of the gradient, as the bits of `gradient`."""
    g = gradient
    names = [g.OFFSET, g.WHOLE, g.ALL, g.AT_PIVOT]
    if slopes.entropy is not None:
        names += [g.SPREAD]
    if slopes.rest_squares is not None or slopes.rest_cubes is not None:
        names += [g.SQUARE, g.CUBE]
    if slopes.mean is not None:
        names += [g.MEAN]
    if p.settings.soft:
        names += [g.SOFT]
    if slopes.rest_top_logit is not None:
        names += [g.AT_TOP]
    return sum(1 << name.value for name in names)


def _few(device: torch.device) -> int:
    """Programs enough to fill a device, and few enough to cost nothing where nothing is to do."""
    if device.type != "cuda":
        return 64
    return 8 * torch.cuda.get_device_properties(device).multi_processor_count


def _floats(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Memory for float32, whatever the default dtype."""
    return torch.empty(shape, dtype=torch.float32, device=device)


def _partial(partial: Tensor | None) -> tuple[Tensor | None, int]:
    """A partial derivative per row, and the step between rows."""
    if partial is None:
        return None, 0
    if not any(partial.stride()):  # one number for all rows, expanded
        return partial, 0
    return partial.contiguous(), 1


def _alignment(matrices: list[Tensor]) -> int:
    """ALIGN of some matrices of one shape, or with a table of targets among them."""
    layouts = [layout for x in matrices if (layout := Layout.of(x)) is not None]
    panels = [layout.panel for layout in layouts]
    align = 0
    for x, layout in zip(matrices, layouts, strict=True):
        size = x.element_size()
        own = (layout.inner_rows if panels[0] else layout.classes, VECTOR // size)
        steps = layout.steps[::2] if panels[0] else layout.steps[:2]
        align = math.gcd(align, x.data_ptr() // size, *own, *steps)
    if not (all(panels) or all(layout.steps[2] == 1 for layout in layouts)):
        return 1  # neither rows nor classes lie side by side everywhere
    return -align if panels[0] else align


def _vector(x: Tensor | None) -> Tensor | None:
    """A vector of the classes in float32."""
    return None if x is None else x.detach().float().contiguous()


def launch(
    kernel: Any, programs: int, device: torch.device, *arguments: Any, num_warps: int = 4,
    **constants: Any,
) -> None:  # fmt: skip
    """Run a kernel on a device, in whatever context the caller is."""
    here: Any = contextlib.nullcontext()
    if device.type != "cpu":  # which is Triton's interpreter
        here = torch.get_device_module(device).device(device)
    with here:  # a * b + c is fused where it says so and nowhere else: same bits everywhere
        kernel[(programs,)](*arguments, **constants, num_warps=num_warps, enable_fp_fusion=False)
