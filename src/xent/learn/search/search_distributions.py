"""Distributions that the cross-entropy method draws from; their best fit has a closed form.

To fit a family to an elite is to minimise the cross-entropy from the elite to the family,
``-sum_i w_i log q(x_i)``. For the families here, the minimum has the moments of the elite: its mean
and covariance, or its frequencies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace

from torch import Generator, Tensor

__all__ = ["SearchDistribution"]


@dataclass(frozen=True, eq=False)
class SearchDistribution(ABC):
    """A family of distributions of points; its fields are parameters that may be averaged.

    Your own family is a frozen dataclass with these methods.
    """

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def blend(self, other: SearchDistribution, share: float) -> SearchDistribution:
        """A distribution between this one and another of the family.

        Args:
            other: one of the same family and size.
            share: how much of ``other``; 1 for all of it.
        """
        mine, theirs = self.parameters(), other.parameters()
        return replace(self, **{k: (1 - share) * mine[k] + share * theirs[k] for k in mine})

    def widen(self, variance: float) -> SearchDistribution:
        """The distribution with this variance added to each coordinate.

        Raises:
            TypeError: unless the family has a variance apart from its mean.
        """
        raise TypeError(
            f"`noise` adds variance, which a {type(self).__name__} has not apart from its "
            "probabilities; `smoothing` keeps them from 0 and 1"
        )

    @property
    @abstractmethod
    def centre(self) -> Tensor:
        """The likeliest point, ``(d,)``."""

    @property
    @abstractmethod
    def spread(self) -> float:
        """The largest standard deviation of a coordinate; 0 if only one point can be drawn."""

    @abstractmethod
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` points, ``(n, d)``."""

    @abstractmethod
    def fit(self, elite: Tensor, weights: Tensor | None = None) -> SearchDistribution:
        """The member of the family with the least cross-entropy from the elite.

        Args:
            elite: points, ``(n, d)``.
            weights: one for each, not negative, ``(n,)``; by default equal ones.
        """

    def tilt(self, elite: Tensor, weights: Tensor) -> SearchDistribution:
        """The best fit whose density ratio to this distribution stays small enough for weights.

        Rare events are sampled from tilts. By default a tilt is the fit itself.

        Args:
            elite: points, ``(n, d)``.
            weights: one for each, ``(n,)``.
        """
        return self.fit(elite, weights)

    def flatten(self, power: float) -> SearchDistribution:
        """The distribution whose density is proportional to a power of this density.

        A rare event is also looked for under a flattened distribution. By default it is this
        distribution itself.

        Args:
            power: more than 0, and at most 1.
        """
        return self

    def step(self, x: Tensor, size: Tensor, generator: Generator | None = None) -> Tensor:
        """Return points nearby, by a step that is reversible under this distribution.

        By default these are the points themselves.

        Args:
            x: points, ``(n, d)``.
            size: of each step, ``(n, 1)``, more than 0; at 1 the point is a new draw.
            generator: of the steps.
        """
        return x

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability or log-density of points ``(n, d)``, in nats, ``(n,)``."""
