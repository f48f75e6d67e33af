"""What the cross-entropy method draws from: families whose best fit to a sample is known.

To fit a family to an elite is to minimise the cross-entropy from the elite to the family,
``-sum_i w_i log q(x_i)``. For the families here the minimum is that of the moments: the mean and
covariance of the elite, or its frequencies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace

import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal

from ..._probabilities import sums_to_1
from .tilts import effective_count, sure_shift, sure_stretch


@dataclass(frozen=True, eq=False)
class SearchDistribution(ABC):
    """A family of distributions of points; its fields are parameters that may be averaged.

    A family of one's own is a frozen dataclass with these methods.
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
        """The largest standard deviation of a coordinate; 0 if it can only draw one point."""

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
        """The best fit whose ratio to this distribution stays bounded enough to be a weight.

        What rare events are sampled from; the fit itself, unless a family says otherwise.

        Args:
            elite: points, ``(n, d)``.
            weights: one for each, ``(n,)``.
        """
        return self.fit(elite, weights)

    def flatten(self, power: float) -> SearchDistribution:
        """The distribution whose density is proportional to a power of this one's.

        A rare event is also looked for under it. This distribution itself, unless a family says
        otherwise.

        Args:
            power: more than 0, and at most 1.
        """
        return self

    def step(self, x: Tensor, size: Tensor, generator: Generator | None = None) -> Tensor:
        """Points nearby, by a step that is reversible under this distribution.

        The points themselves, unless a family says otherwise.

        Args:
            x: points, ``(n, d)``.
            size: of each step, ``(n, 1)``, more than 0; at 1 the point is a new draw.
            generator: of the steps.
        """
        return x

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability or log-density of points ``(n, d)``, in nats, ``(n,)``."""


@dataclass(frozen=True, eq=False)
class Gaussian(SearchDistribution):
    """Points of real numbers; independent coordinates, or correlated ones.

    Args:
        mean: ``(d,)``; kept in float64.
        covariance: the variances, ``(d,)`` or one number for all, of independent coordinates; or
            the covariance matrix, ``(d, d)``. Its form is that of every fit. A matrix of fewer
            points than ``d + 1`` is singular: it draws within the points' plane, has no density,
            and regains the other directions from noise or smoothing only.

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
        mean = _numbers("mean", self.mean)
        given = _numbers("covariance", self.covariance)
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
        # A root that a singular matrix has, too, unlike the one of Cholesky.
        values, vectors = torch.linalg.eigh(self.covariance)
        return self.mean + (z * values.clamp(min=0).sqrt()) @ vectors.T

    def fit(self, elite: Tensor, weights: Tensor | None = None) -> Gaussian:
        """Mean and covariance of the elite ``(n, d)``; the sum is divided by ``n``."""
        x, share = _elite(elite, weights, len(self.mean))
        mean = share @ x
        apart = x - mean
        if self.covariance.ndim == 1:
            return Gaussian(mean, share @ apart.square())
        return Gaussian(mean, (apart.T * share) @ apart)

    def tilt(self, elite: Tensor, weights: Tensor) -> Gaussian:
        """The fit, no further from this than is sure, and no variance less than half."""
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
        """The Gaussian whose variances are those of this one over the power."""
        return replace(self, covariance=self.covariance / power)

    def step(self, x: Tensor, size: Tensor, generator: Generator | None = None) -> Tensor:
        """Points nearer to the mean, with the variance put back that this took."""
        fresh = self.sample(len(x), generator) - self.mean
        return self.mean + (1 - size.square()).sqrt() * (x - self.mean) + size * fresh

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of points ``(n, d)``, in nats, ``(n,)``.

        Raises:
            ValueError: for a singular covariance, which has no density.
        """
        x = _points("x", x, len(self.mean))
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


@dataclass(frozen=True, eq=False)
class Bernoulli(SearchDistribution):
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

    probability: Tensor

    def __post_init__(self) -> None:
        p = _numbers("probability", self.probability)
        if p.ndim != 1 or not p.numel() or bool(((p < 0) | (p > 1)).any()):
            raise ValueError("`probability` must hold numbers from 0 to 1, shape (d,)")
        object.__setattr__(self, "probability", p)

    @property
    def centre(self) -> Tensor:
        """The likelier bit of each place."""
        return (self.probability > 0.5).to(self.probability.dtype)

    @property
    def spread(self) -> float:
        """The largest standard deviation of a bit."""
        return (self.probability * (1 - self.probability)).max().sqrt().item()

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` points, ``(n, d)``, float64."""
        return torch.bernoulli(self.probability.expand(n, -1), generator=generator)

    def fit(self, elite: Tensor, weights: Tensor | None = None) -> Bernoulli:
        """How often each place is 1 in the elite ``(n, d)``."""
        x, share = _elite(elite, weights, len(self.probability))
        if bool(((x != 0) & (x != 1)).any()):
            raise ValueError("`elite` must hold bits, 0 or 1")
        return Bernoulli((share @ x).clamp(0, 1))

    def tilt(self, elite: Tensor, weights: Tensor) -> Bernoulli:
        """The fit, no further from this than is sure."""
        p = self.probability
        shift = self.fit(elite, weights).probability - p
        return Bernoulli(p + sure_shift(shift, p * (1 - p) / effective_count(weights)))

    def flatten(self, power: float) -> Bernoulli:
        """The bits whose log-odds are those of these times the power."""
        return Bernoulli(torch.sigmoid(power * torch.logit(self.probability)))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of points ``(n, d)``, in nats, ``(n,)``."""
        x = _points("x", x, len(self.probability))
        one, zero = self.probability.log(), torch.log1p(-self.probability)
        if bool((one.isfinite() & zero.isfinite()).all()):  # a third of the time of what follows
            bits = ((x == 0) | (x == 1)).all(1)
            return torch.where(bits, x @ (one - zero) + zero.sum(), -math.inf)
        return torch.where(x == 1, one, torch.where(x == 0, zero, -math.inf)).sum(-1)


@dataclass(frozen=True, eq=False)
class Categorical(SearchDistribution):
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

    probability: Tensor

    def __post_init__(self) -> None:
        p = _numbers("probability", self.probability)
        if p.ndim != 2 or not p.numel():
            raise ValueError("`probability` must have shape (d, k)")
        sums_to_1("probability", p)
        object.__setattr__(self, "probability", p / p.sum(1, keepdim=True))

    @property
    def centre(self) -> Tensor:
        """The likeliest choice of each place."""
        return self.probability.argmax(1)

    @property
    def spread(self) -> float:
        """The largest standard deviation of whether a choice is made."""
        return (self.probability * (1 - self.probability)).max().sqrt().item()

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` points, ``(n, d)``, int64."""
        drawn = torch.multinomial(self.probability, n, replacement=True, generator=generator)
        return drawn.T.contiguous()

    def fit(self, elite: Tensor, weights: Tensor | None = None) -> Categorical:
        """How often each choice is made in the elite ``(n, d)``."""
        places, choices = self.probability.shape
        x, share = _elite(elite, weights, places)
        made, possible = self._choices(x)
        if not bool(possible.all()):
            raise ValueError(f"`elite` must hold choices, integers from 0 to {choices - 1}")
        frequency = torch.zeros_like(self.probability)
        frequency.scatter_add_(1, made.T, share.expand(places, -1))
        return Categorical(frequency)

    def tilt(self, elite: Tensor, weights: Tensor) -> Categorical:
        """The fit, no further from this than is sure."""
        p = self.probability
        shift = self.fit(elite, weights).probability - p
        sure = p + sure_shift(shift, p * (1 - p) / effective_count(weights))
        return Categorical(sure / sure.sum(1, keepdim=True))

    def flatten(self, power: float) -> Categorical:
        """The choices whose log-probabilities differ by the power times as much."""
        return Categorical((power * self.probability.log()).softmax(1))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of points ``(n, d)``, in nats, ``(n,)``."""
        made, possible = self._choices(_points("x", x, len(self.probability)))
        each = self.probability.log().gather(1, made.clamp(0, self.probability.shape[1] - 1).T).T
        return torch.where(possible, each, -math.inf).sum(-1)

    def _choices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Points as integers, and where these are choices that there are."""
        made = x.long()
        return made, (made == x) & (made >= 0) & (made < self.probability.shape[1])


def _numbers(name: str, value: Tensor | float) -> Tensor:
    numbers = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"`{name}` must hold finite numbers")
    return numbers


def _variances(covariance: Tensor) -> Tensor:
    return covariance if covariance.ndim == 1 else covariance.diagonal()


def _is_semidefinite(covariance: Tensor) -> bool:
    values = torch.linalg.eigvalsh(covariance)
    return bool(values[0] >= -1e-6 * values[-1])  # as exact as one computed in float32


def _points(name: str, x: Tensor, d: int) -> Tensor:
    """The points in float64, of the right dimension."""
    if x.ndim != 2 or x.shape[1] != d:
        raise ValueError(f"`{name}` must have shape (n, {d}), got {tuple(x.shape)}")
    return x.to(torch.float64)


def _elite(elite: Tensor, weights: Tensor | None, d: int) -> tuple[Tensor, Tensor]:
    """The points in float64, and each one's share of the weight."""
    x = _points("elite", elite, d)
    if not len(x):
        raise ValueError("`elite` must hold at least one point")
    if weights is None:
        return x, x.new_full((len(x),), 1 / len(x))
    w = _numbers("weights", weights)
    if w.shape != (len(x),) or bool((w < 0).any()) or not bool(w.sum() > 0):
        raise ValueError(
            f"`weights` must hold {len(x)} numbers, none negative and not all 0, one per point"
        )
    return x, w / w.sum()
