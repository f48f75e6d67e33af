"""The reference engine for dense losses: plain operations in float64, the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import DenseProblem


def plain_values(problem: DenseProblem) -> Tensor:
    """The weighted value of each row, float64, by operations that transforms can differentiate."""
    p, kept = problem, problem.kept()
    student, teacher = (None if x is None else _rows(x, p.axis, kept) for x in p.sides)
    assert student is not None
    target = p.target
    if target is not None and kept is not None:
        target = torch.where(kept, target, 0)
    values = p.body(student, teacher, target) * p.scale
    if p.row_weight is not None:
        values = values * p.row_weight
    return values if kept is None else torch.where(kept, values, 0.0)


def _rows(logits: Tensor, axis: int, kept: Tensor | None) -> Tensor:
    """The logits, classes last. Rows that are left out are 0: they may hold NaN."""
    if kept is not None:
        logits = torch.where(kept.unsqueeze(axis), logits, 0)
    return logits.movedim(axis, -1)
