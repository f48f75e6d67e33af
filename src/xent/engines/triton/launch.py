"""Launches of kernels: statistics of rows, and the gradient for partial derivatives by them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..rows.problem import Problem
from . import fields, gradient, sweep
from .kernel import Kernel
from .layout import even, soft_of, vector
from .memory import KernelArguments, Strided, Transform
from .needed import coefficients_for
from .plans import COUNT, MOST_KERNELS, Plan, Tiling, plan_of
from .programs import Partials


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
        self.plan = plan = plan_of(problem, logits, soft, out, [labels, scale, *vectors])
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
            if len(kernels) >= MOST_KERNELS:  # of programs that change at every step
                kernels.clear()
            kernel = kernels[key] = make(self.plan)
        kernel(programs, *arguments)

    def _tiled(self, function: Any, t: Tiling, **constants: Any) -> Kernel:
        """Return a kernel that works on tiles."""
        plan = self.plan
        return Kernel(
            function, plan.device, t.warps, t.cluster, ALIGN=plan.align, ROWS=t.rows, BLOCK=t.block,
            **constants,
        )  # fmt: skip

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
        t, sums = self.plan.tiling, self._sums()
        self._run(
            "sweep", lambda plan: self._tiled(sweep.sweep, t, SUMS=plan.sums),
            self._blocks(t) * t.tiles, self.arguments, sums,
        )  # fmt: skip
        return sums

    def _sums(self, more: int = 0) -> Tensor:
        """Return memory for the sums of all tiles, and for some more of each."""
        plan = self.plan
        names = plan.sums.count(" ") + 1 + more
        return floats((names, plan.tiling.tiles, self.rows), plan.device)

    def differentiate(self, table: Tensor, partials: Sequence[Tensor | None]) -> None:
        """Write the gradient of the sum of every field times its partial derivative."""
        p = self.problem
        given = dict(zip(p.fields, partials, strict=True))
        chosen = [_partial(given.get(name)) for name in Partials._fields]
        addresses = Partials(*[at for at, _ in chosen])
        steps = Partials(*[step for _, step in chosen])
        by = [name for name, at in addresses._asdict().items() if at is not None]
        names = " ".join(coefficients_for(p, by))
        coefficients, places = self._coefficients(names)
        self._run(
            ("find_coefficients", steps, *by),
            lambda plan: Kernel(
                gradient.find_coefficients, plan.device, FIELDS=plan.fields, NAMES=names,
                COUNT=COUNT,
            ),
            -(-self.rows // COUNT), self.arguments, table.contiguous(), addresses, steps,
            coefficients, places,
        )  # fmt: skip
        self._second_sweep(names, coefficients, places)

    def _coefficients(self, names: str) -> tuple[Tensor, Tensor]:
        """Return memory for the coefficients of rows, and for the classes with entries."""
        coefficients = floats((names.count(" ") + 1, self.rows), self.plan.device)
        places = torch.empty((2, self.rows), dtype=torch.int32, device=self.plan.device)
        return coefficients, places

    def _second_sweep(
        self, names: str, coefficients: Tensor, places: Tensor, notes: Tensor | None = None,
        slope: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Write the gradient; with a slope only if it is not the one of the notes."""
        t, ready = self.plan.tiling, slope is not None
        blocks = self._blocks(t) * t.tiles
        self._run(
            ("differentiate", names, None if slope is None else slope.dtype),
            lambda _: self._tiled(gradient.differentiate, t, NAMES=names, READY=ready),
            min(blocks, few(self.plan.device)) if ready else blocks,
            self.arguments, coefficients, places, self._gradient(), notes, slope, blocks,
        )  # fmt: skip

    def _gradient(self) -> Strided:
        """Return the matrix that receives the gradient."""
        return Strided(self.out, *self.plan.steps[2])


@functools.cache
def few(device: torch.device) -> int:
    """Return a number of programs that fills a device, and ends at once if there is no work."""
    if device.type != "cuda":
        return 64
    return 8 * torch.cuda.get_device_properties(device).multi_processor_count


def floats(shape: tuple[int, ...], device: torch.device) -> Tensor:
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
