"""Launches of kernels for a sum over rows: the loss, and its gradient for the slope of the sum."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..rows.programs import LOG_LOSS, NLL, Program
from . import groups, one_sweep, totals
from .kernel import Kernel
from .launch import Launch, few, floats
from .memory import KernelArguments
from .needed import coefficients_for
from .plans import COUNT, LANES
from .programs import Compiled, bind, compiled

WIDE = 1024  # rows that a program takes at once which does nothing but add
ALONE = 8192  # rows of which one program finds the divisor
PARTS = 256  # the most programs that do
CROSS_ENTROPY = (NLL, LOG_LOSS)  # the programs that have a kernel of their own


@functools.cache
def _last_slope(device: torch.device) -> Tensor:
    """Return the slope of the last backward pass. Captured graphs write to its memory for ever."""
    return torch.ones((), dtype=torch.float64, device=device)


class Notes(NamedTuple):
    """Labels and numbers that one kernel of a sum over rows notes for the others."""

    labels: Tensor | None  # with rows of weight 0 ignored; None without row weights
    numbers: Tensor  # slope of the gradient, divisor, and parts of a sum; float64
    sums: Tensor | None = None  # of all tiles, where the gradient takes a sweep of its own


class Sums(NamedTuple):
    """Sums of tiles, ``(names, tiles, N)``, and their names."""

    numbers: Tensor
    names: str


class SumLaunch(Launch):
    """A problem whose sum over rows is wanted, in the form that its kernels take."""

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

    def total(
        self, program: Program, row_weight: Tensor | None, notes: Notes, result: Tensor
    ) -> Notes:
        """Store the sum of a loss in ``result``, and the gradient if there is a place for it.

        Return the notes for :meth:`follow`.
        """
        self._take(notes)
        code, plan = compiled(program), self.plan
        if self.out is None:
            self._add_up(code, row_weight, notes, Sums(self._sweep(), plan.sums), result)
        elif self._has_a_kernel(program):
            sums = Sums(floats((3, 1, self.rows), plan.device), one_sweep.SUMS.value)
            self._cross_entropy(row_weight, notes, None, sums.numbers)
            self._add_up(code, row_weight, notes, sums, result, tiles=1)
        elif plan.group:
            sums = self._in_groups(code, row_weight, notes)
            self._add_up(code, row_weight, notes, sums, result)
        else:
            notes = notes._replace(sums=self._sweep())
            self._by_coefficients(code, row_weight, notes, result=result)
        return notes

    def follow(
        self, program: Program, row_weight: Tensor | None, notes: Notes, slope: Tensor, ready: bool
    ) -> None:
        """Write the gradient for ``slope``, unless the one that was noted is ready, and is that."""
        self._take(notes)
        if self._has_a_kernel(program):
            self._cross_entropy(row_weight, notes, slope, None, ready)
        elif self.plan.group:
            self._in_groups(compiled(program), row_weight, notes, slope, ready)
        else:
            # Hooks may have given back logits of another layout, which other tiles divide.
            if notes.sums is None or notes.sums.shape[1] != self.plan.tiling.tiles:
                notes = notes._replace(sums=self._sweep())
            self._by_coefficients(compiled(program), row_weight, notes, slope, ready)

    def _has_a_kernel(self, program: Program) -> bool:
        """True if a kernel of its own finds a loss and its gradient."""
        return program in CROSS_ENTROPY and not self.problem.settings.soft

    def _cross_entropy(
        self, row_weight: Tensor | None, notes: Notes, slope: Tensor | None, sums: Tensor | None,
        ready: bool = False,
    ) -> None:  # fmt: skip
        """Write the gradient of cross-entropy, and its sums, if they are wanted."""
        plan, t = self.plan, self.plan.whole
        blocks, kind, last = self._blocks(t), *self._followed(slope)
        self._run(
            ("cross_entropy", row_weight is None, kind, ready),
            lambda _: self._tiled(
                one_sweep.cross_entropy, t, READY=ready, WHOLE=t.tiles == 1, CLUSTER=t.cluster > 1,
                THREADS=t.warps * LANES,
            ),
            min(blocks, few(plan.device)) if ready else blocks,
            self._by(t.tiles), row_weight, notes.numbers, slope, last, self._gradient(), sums,
            blocks,
        )  # fmt: skip

    def _in_groups(
        self, code: Compiled, row_weight: Tensor | None, notes: Notes,
        slope: Tensor | None = None, ready: bool = False,
    ) -> Sums:  # fmt: skip
        """Write the gradient of groups of rows; return the sums of all tiles."""
        plan, t, group = self.plan, self.plan.tiling, self._group()
        names = self._names(code)
        soft = self.problem.settings.soft
        sums = Sums(self._sums(0 if soft else 1), plan.sums if soft else f"{plan.sums} target")
        blocks, kind, last = -(-self._blocks(t) // group), *self._followed(slope)
        self._run(
            ("row_loss", code.functions.serial, row_weight is None, kind, ready, group),
            lambda _: self._tiled(
                bind(groups.row_loss, code.functions), t, READY=ready, SUMS=sums.names,
                NAMES=names, TILES=group * t.tiles, GROUP=group * t.rows,
            ),
            min(blocks, few(plan.device)) if ready else blocks,
            self.arguments, row_weight, code.constants, notes.numbers, slope, last, sums.numbers,
            *self._coefficients(names), self._gradient(), blocks,
        )  # fmt: skip
        return sums

    def _group(self) -> int:
        """Return the blocks of a group: as many as the cache holds, if the device stays full."""
        plan, t = self.plan, self.plan.tiling
        warps, group = self._blocks(t) * t.warps, plan.group
        while group > 1 and warps < 2 * group * few(plan.device):
            group //= 2
        return group

    def _by_coefficients(
        self, code: Compiled, row_weight: Tensor | None, notes: Notes,
        slope: Tensor | None = None, ready: bool = False, result: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Run the program on the sums of the notes, and write the gradient in a second sweep."""
        assert notes.sums is not None
        names = self._names(code)
        places = self._coefficients(names)
        sums = Sums(notes.sums, self.plan.sums)
        self._add_up(code, row_weight, notes, sums, result, slope, names, places, ready)
        self._second_sweep(names, *places, *((notes.numbers, slope) if ready else ()))

    def _names(self, code: Compiled) -> str:
        """Return the names of the coefficients that the gradient of a program needs."""
        return " ".join(coefficients_for(self.problem, code.functions.by))

    def _followed(self, slope: Tensor | None) -> tuple[torch.dtype | None, Tensor | None]:
        """Return the type of a slope, and where the device keeps it; None without a slope."""
        return (None, None) if slope is None else (slope.dtype, _last_slope(self.plan.device))

    def _add_up(
        self, code: Compiled, row_weight: Tensor | None, notes: Notes, sums: Sums,
        result: Tensor | None, slope: Tensor | None = None, names: str = "",
        places: tuple[Tensor | None, Tensor | None] = (None, None), ready: bool = False,
        tiles: int | None = None,
    ) -> None:  # fmt: skip
        """Run the program on sums; store its sum in ``result``, and coefficients, if wanted."""
        plan, blocks = self.plan, -(-self.rows // COUNT)
        block = plan.tiling.block if tiles is None else 1
        kind, last = self._followed(slope)
        self._run(
            ("add_up", code.functions.serial, sums.names, block, names, result is None,
             row_weight is None, kind, ready),
            lambda plan: Kernel(
                bind(totals.add_up, code.functions), plan.device, VALUES=result is not None,
                READY=ready, SUMS=sums.names, NAMES=names, BLOCK=block, COUNT=COUNT,
            ),
            min(blocks, few(plan.device)) if ready else blocks,
            self._by(tiles or plan.tiling.tiles), row_weight, sums.numbers, code.constants,
            notes.numbers, slope, last, *places, blocks,
        )  # fmt: skip
        if result is not None:
            self._divide(notes.numbers, blocks, result)

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
