"""Gaussians for the cross-entropy method: points of real numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal

from .points import finite_numbers, points_of, shares_of
from .search_distributions import SearchDistribution
from .tilts import effective_count, sure_shift, sure_stretch

__all__ = ["Gaussian"]


@dataclass(frozen=True, eq=False)
class Gaussian(SearchDistribution):
    """Points of real numbers; independent coordinates, or correlated ones.

    Args:
        mean: ``(d,)``; kept in float64.
        covariance: the variances, ``(d,)`` or one number for all, of independent coordinates; or
            the covariance matrix, ``(d, d)``. Every fit has the same form. A matrix fitted to fewer
            than ``d + 1`` points is singular: the Gaussian draws in the plane of the points only,
            has no density, and regains the other directions from noise or smoothing only.

    Example:
        >>> import torch
        >>> from xent.learn import Gaussian
        >>> elite = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
        >>> Gaussian(torch.zeros(2), 100.0).fit(elite).covariance
        tensor([2.6667, 2.0000], dtype=torch.float64)
        >>> Gaussian(torch.zeros(2), torch.eye(2)).fit(elite, torch.tensor([1.0, 1.0, 0.0])).mean
        tensor([1., 1.], dtype=torch.float64)
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        mean = finite_numbers("mean", self.mean)
        given = finite_numbers("covariance", self.covariance)
        if mean.ndim != 1 or not mean.numel():
            raise ValueError(f"`mean` must have shape (d,), got {tuple(mean.shape)}")
        d = len(mean)
        covariance = given.expand(d).clone() if given.ndim == 0 else given
        if covariance.shape not in ((d,), (d, d)):
            raise ValueError(
                f"`covariance` must be a number, or have shape ({d},) or ({d}, {d}) to fit `mean`; "
                f"got {tuple(given.shape)}"
            )
        if bool((_variances(covariance) < 0).any()):
            raise ValueError("`covariance` must hold no negative variance")
        if covariance.ndim == 2 and not torch.allclose(covariance, covariance.T):
            raise ValueError("`covariance` must be symmetric")
        if covariance.ndim == 2 and not _is_semidefinite(covariance):
            raise ValueError("`covariance` must have no negative eigenvalue")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @property
    def centre(self) -> Tensor:
        """The mean."""
        return self.mean

    @property
    def spread(self) -> float:
        """The largest standard deviation of a coordinate."""
        return _variances(self.covariance).max().sqrt().item()

    def widen(self, variance: float) -> Gaussian:
        """The Gaussian with this variance added to each coordinate."""
        added = torch.full_like(self.mean, variance)
        full = self.covariance.ndim == 2
        return replace(self, covariance=self.covariance + (added.diag() if full else added))

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` points, ``(n, d)``, float64."""
        z = torch.randn(n, len(self.mean), generator=generator, dtype=self.mean.dtype, device="cpu")
        if self.covariance.ndim == 1:
            return self.mean + z * self.covariance.sqrt()
        # A singular matrix has this root, but no Cholesky factor.
        values, vectors = torch.linalg.eigh(self.covariance)
        return self.mean + (z * values.clamp(min=0).sqrt()) @ vectors.T

    def fit(self, elite: Tensor, weights: Tensor | None = None) -> Gaussian:
        """The Gaussian with the moments of the elite ``(n, d)``; sums are divided by ``n``."""
        x, share = shares_of(elite, weights, len(self.mean))
        mean = share @ x
        apart = x - mean
        if self.covariance.ndim == 1:
            return Gaussian(mean, share @ apart.square())
        return Gaussian(mean, (apart.T * share) @ apart)

    def tilt(self, elite: Tensor, weights: Tensor) -> Gaussian:
        """Move towards the fit, only as far as its noise allows; variances keep at least half."""
        fitted, effective = self.fit(elite, weights), effective_count(weights)
        if self.covariance.ndim == 1:
            shift = sure_shift(fitted.mean - self.mean, fitted.covariance / effective)
            stretch = sure_stretch(fitted.covariance / self.covariance, 2 / effective)
            return Gaussian(self.mean + shift, stretch * self.covariance)
        root = torch.linalg.cholesky(self.covariance)
        inverse = torch.linalg.inv(root)
        values, vectors = torch.linalg.eigh(inverse @ fitted.covariance @ inverse.T)
        away = vectors.T @ inverse @ (fitted.mean - self.mean)
        axes = root @ vectors
        shift = axes @ sure_shift(away, values / effective)
        axes = axes * sure_stretch(values, len(self.mean) / effective).sqrt()
        return Gaussian(self.mean + shift, axes @ axes.T)

    def flatten(self, power: float) -> Gaussian:
        """Return the Gaussian with the variances of this one divided by the power."""
        return replace(self, covariance=self.covariance / power)

    def step(self, x: Tensor, size: Tensor, generator: Generator | None = None) -> Tensor:
        """Return points moved towards the mean, with fresh noise that restores the variance."""
        fresh = self.sample(len(x), generator) - self.mean
        return self.mean + (1 - size.square()).sqrt() * (x - self.mean) + size * fresh

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of points ``(n, d)``, in nats, ``(n,)``.

        Raises:
            ValueError: for a singular covariance, which has no density.
        """
        x = points_of("x", x, len(self.mean))
        if self.covariance.ndim == 1 and bool((self.covariance > 0).all()):
            log_scale = (2 * math.pi * self.covariance).log().sum()
            return -0.5 * ((x - self.mean).square() @ self.covariance.reciprocal() + log_scale)
        try:
            full = self.covariance if self.covariance.ndim == 2 else self.covariance.diag()
            return MultivariateNormal(self.mean, full, validate_args=True).log_prob(x)
        except ValueError:
            raise ValueError(
                "the covariance is singular, so there is no density: fit more points than "
                "dimensions, or add noise"
            ) from None


def _variances(covariance: Tensor) -> Tensor:
    return covariance if covariance.ndim == 1 else covariance.diagonal()


def _is_semidefinite(covariance: Tensor) -> bool:
    values = torch.linalg.eigvalsh(covariance)
    return bool(values[0] >= -1e-6 * values[-1])  # the precision of float32
