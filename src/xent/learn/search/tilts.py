"""Limits on how far a fit to few points is trusted.

A fit to few points differs from the true parameters by chance. That makes importance weights vary
more, in each dimension anew: with 55 bits fitted to 64 points, chance alone makes the second moment
of the weights 2.4 times as large. So a tilt moves its parameters only as far as the noise of the
fit allows.
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
    """Return ratios of variances as near to 1 as noise allows, and at least one half.

    Take an event that is bounded at 2 sigma in a direction. A proposal with the nominal variance
    makes the second moment of the weights 3.3 times as large, a proposal with half of it 2.4 times,
    and with a third of it the second moment is infinite. In five directions the first two factors
    are 390 and 83.
    """
    luck = (1 + math.sqrt(noise)) ** 2
    return torch.maximum(ratio / luck, (ratio * luck).clamp(min=0.5, max=1))
