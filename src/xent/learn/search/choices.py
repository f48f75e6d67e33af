"""Bits and choices for the cross-entropy method: points of whole numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..._probabilities import sums_to_1
from .points import finite_numbers, points_of, shares_of
from .search_distributions import SearchDistribution
from .tilts import effective_count, sure_shift

__all__ = ["Bernoulli", "Categorical"]


@dataclass(frozen=True, eq=False)
class _Choices(SearchDistribution):
    """Points of independent choices, each made with a probability."""

    probability: Tensor

    @property
    def spread(self) -> float:
        """The largest standard deviation of whether a choice is made."""
        return (self.probability * (1 - self.probability)).max().sqrt().item()

    def _sure(self, fitted: Tensor, weights: Tensor) -> Tensor:
        """Return probabilities moved towards fitted ones, only as far as noise allows."""
        p = self.probability
        return p + sure_shift(fitted - p, p * (1 - p) / effective_count(weights))


@dataclass(frozen=True, eq=False)
class Bernoulli(_Choices):
    """Points of independent bits, 0.0 or 1.0.

    Args:
        probability: of a 1 in each place, ``(d,)``; kept in float64.

    Example:
        >>> import torch
        >>> from xent.learn import Bernoulli
        >>> elite = torch.tensor([[0, 1, 1], [0, 0, 1]])
        >>> Bernoulli(torch.full((3,), 0.5)).fit(elite).probability
        tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """

    def __post_init__(self) -> None:
        p = finite_numbers("probability", self.probability)
        if p.ndim != 1 or not p.numel() or bool(((p < 0) | (p > 1)).any()):
            raise ValueError("`probability` must hold numbers from 0 to 1, shape (d,)")
        object.__setattr__(self, "probability", p)

    @property
    def centre(self) -> Tensor:
        """The likelier bit of each place."""
        return (self.probability > 0.5).to(self.probability.dtype)

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` points, ``(n, d)``, float64."""
        return torch.bernoulli(self.probability.expand(n, -1), generator=generator)

    def fit(self, elite: Tensor, weights: Tensor | None = None) -> Bernoulli:
        """Return bits with the frequency of a 1 in each place of the elite ``(n, d)``."""
        x, share = shares_of(elite, weights, len(self.probability))
        if bool(((x != 0) & (x != 1)).any()):
            raise ValueError("`elite` must hold bits, 0 or 1")
        return Bernoulli((share @ x).clamp(0, 1))

    def tilt(self, elite: Tensor, weights: Tensor) -> Bernoulli:
        """Move towards the fit, only as far as the noise of the fit allows."""
        return Bernoulli(self._sure(self.fit(elite, weights).probability, weights))

    def flatten(self, power: float) -> Bernoulli:
        """Return the bits with the log-odds of these times the power."""
        return Bernoulli(torch.sigmoid(power * torch.logit(self.probability)))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of points ``(n, d)``, in nats, ``(n,)``."""
        x = points_of("x", x, len(self.probability))
        one, zero = self.probability.log(), torch.log1p(-self.probability)
        if bool((one.isfinite() & zero.isfinite()).all()):  # a third of the time of the form below
            bits = ((x == 0) | (x == 1)).all(1)
            return torch.where(bits, x @ (one - zero) + zero.sum(), -math.inf)
        return torch.where(x == 1, one, torch.where(x == 0, zero, -math.inf)).sum(-1)


@dataclass(frozen=True, eq=False)
class Categorical(_Choices):
    """Points of independent choices among ``k``, integers from 0.

    Args:
        probability: of each choice in each place, ``(d, k)``; lines sum to 1. Kept in float64.

    Example:
        >>> import torch
        >>> from xent.learn import Categorical
        >>> elite = torch.tensor([[0, 2], [1, 2]])
        >>> Categorical(torch.full((2, 3), 1 / 3)).fit(elite).probability
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 1.0000]], dtype=torch.float64)
    """

    def __post_init__(self) -> None:
        p = finite_numbers("probability", self.probability)
        if p.ndim != 2 or not p.numel():
            raise ValueError("`probability` must have shape (d, k)")
        sums_to_1("probability", p)
        object.__setattr__(self, "probability", p / p.sum(1, keepdim=True))

    @property
    def centre(self) -> Tensor:
        """The likeliest choice of each place."""
        return self.probability.argmax(1)

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` points, ``(n, d)``, int64."""
        drawn = torch.multinomial(self.probability, n, replacement=True, generator=generator)
        return drawn.T.contiguous()

    def fit(self, elite: Tensor, weights: Tensor | None = None) -> Categorical:
        """Return choices with the frequency of each choice in the elite ``(n, d)``."""
        places, choices = self.probability.shape
        x, share = shares_of(elite, weights, places)
        made, possible = self._choices(x)
        if not bool(possible.all()):
            raise ValueError(f"`elite` must hold choices, integers from 0 to {choices - 1}")
        frequency = torch.zeros_like(self.probability)
        frequency.scatter_add_(1, made.T, share.expand(places, -1))  # made.T: (d, n)
        return Categorical(frequency)

    def tilt(self, elite: Tensor, weights: Tensor) -> Categorical:
        """Move towards the fit, only as far as the noise of the fit allows."""
        sure = self._sure(self.fit(elite, weights).probability, weights)
        return Categorical(sure / sure.sum(1, keepdim=True))

    def flatten(self, power: float) -> Categorical:
        """Return the choices with log-probabilities times the power, normalised."""
        return Categorical((power * self.probability.log()).softmax(1))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of points ``(n, d)``, in nats, ``(n,)``."""
        made, possible = self._choices(points_of("x", x, len(self.probability)))
        each = self.probability.log().gather(1, made.clamp(0, self.probability.shape[1] - 1).T).T
        return torch.where(possible, each, -math.inf).sum(-1)

    def _choices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return points as integers, and True where an integer is one of the choices."""
        made = x.long()
        return made, (made == x) & (made >= 0) & (made < self.probability.shape[1])
