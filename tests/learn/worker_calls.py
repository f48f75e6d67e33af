"""Functions for workers, in a module of their own: they travel to other processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOAL = torch.tensor([3.0, -1.0], dtype=torch.float64)


def score(point: Tensor) -> Tensor:
    """The score of a point, whatever the worker."""
    assert point.shape == (2,)
    return -(point - GOAL).square().sum()


def lucky_score(point: Tensor, iteration: int, number: int) -> float:
    """A score with noise, whose seed belongs to the point."""
    luck = torch.Generator().manual_seed(1000 * iteration + number)
    return float(score(point)) + torch.rand((), generator=luck).item()


class FailingScore:
    """A score that fails once, for a point of an iteration; a file tells that it has failed."""

    def __init__(self, folder: Path, iteration: int, number: int, deadly: bool) -> None:
        self.file, self.place, self.deadly = folder / "failed", (iteration, number), deadly

    def __call__(self, point: Tensor, iteration: int, number: int) -> float:
        if (iteration, number) == self.place and not self.file.exists():
            self.file.touch()
            if self.deadly:
                os._exit(1)
            raise ValueError("the simulator is out of fuel")
        return lucky_score(point, iteration, number)


def judge(formulas: list[Any], round: int) -> list[float]:
    """Score formulas by how near they are to a place, with luck that the round sets."""
    luck = torch.rand((), generator=torch.Generator().manual_seed(round)).item()
    return [-abs(f.coefficients[1] - 0.3) - abs(f.coefficients[0] - 1) + luck for f in formulas]
