"""Limits on how far a fit to few points is trusted.

A parameter that differs by luck makes weights vary for nothing, in each dimension anew; so a tilt
differs from its distribution only as far as is sure.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective_count(weights: Tensor) -> float:
    """Number of points of equal weight that tell as much."""
    return (weights.sum().square() / weights.square().sum()).item()


def sure_shift(shift: Tensor, variance: Tensor) -> Tensor:
    """Shifts less the standard deviation of their noise."""
    return shift.sign() * (shift.abs() - variance.sqrt()).clamp(min=0)


def sure_stretch(ratio: Tensor, noise: float) -> Tensor:
    """Ratios of variances, as near to 1 as noise allows; below a half weights have no variance."""
    luck = (1 + math.sqrt(noise)) ** 2
    return torch.maximum(ratio / luck, (ratio * luck).clamp(min=0.5, max=1))
