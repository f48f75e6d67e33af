"""Layouts of rows in memory, and the forms of tensors that kernels read."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..rows.problem import Problem

FEW = 16  # with this many rows next to each other, or more, a panel is faster
VECTOR = 16  # bytes that a thread loads at once
PANEL_VECTOR = 4  # bytes of a panel: with 16, a thread would have the numbers of eight rows


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
        # A view of one image has steps of its own for axes of length 1.
        steps = x.stride(0), flat.stride(2), x.stride(1)
        return cls(x.shape[0], flat.shape[2], flat.shape[1], steps)


def even(x: Tensor) -> Tensor:
    """Return the tensor, or a copy whose rows step evenly."""
    return x if x.ndim < 3 or RowLayout.of(x) is not None else x.contiguous()


def steps_of(x: Tensor | None) -> tuple[int, int, int]:
    """Return the steps of a matrix of rows, or zeros for none."""
    if x is None:
        return 0, 0, 0
    layout = RowLayout.of(x)
    assert layout is not None
    return layout.steps


def soft_of(p: Problem) -> Tensor | None:
    """Return the probabilities of a soft target, in a type and layout that kernels read."""
    soft = p.probabilities
    if soft is None:
        return None
    soft = soft.float() if soft.dtype == torch.float64 else soft
    return even(soft) if p.tensors.target_table is None else soft.contiguous()


def vector(x: Tensor | None) -> Tensor | None:
    """Return a vector of the classes in float32."""
    return None if x is None else x.detach().float().contiguous()


def address(x: Tensor) -> int:
    """Return the address of a tensor, as far as vectors of 16 bytes need it."""
    return x.data_ptr() % VECTOR


def alignment(matrices: list[Tensor]) -> int:
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
        align = math.gcd(align, address(x) // size, *own, *steps)
    if not (all(panels) or all(layout.steps[2] == 1 for layout in layouts)):
        return 1  # neither rows nor classes lie next to each other everywhere
    return -align if panels[0] else align
