"""Mixtures to draw the points of a rare event from, with a component or more for each place.

A place is a region of points in the event, apart from its other places. A mixture is fitted to
points of the event by expectation and maximisation, which lowers the cross-entropy from these
points to the mixture step by step. Points that the mixture was not fitted to decide how many
components it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from .search_distributions import SearchDistribution

__all__ = ["Proposal"]

MOST_COMPONENTS = 64
STEPS = 3  # steps of expectation and maximisation after components are added
PATIENCE = 2  # how often components may be added without a gain
LEAST_GAIN = 0.05  # nats; a smaller fall counts as none


@dataclass(frozen=True, eq=False)
class Proposal:
    """A mixture of tilts of a distribution, and a part of the distribution itself.

    That part, the *defensive* one, bounds the weight of a point: the density of the distribution is
    nowhere more than ``1 / defensive`` times that of the mixture.

    Args:
        nominal: the distribution.
        components: tilts of the distribution.
        shares: the probability of each component among the components, ``(k,)``, with sum 1.
        defensive: the share of the distribution itself.
        smoothing: the share of the parameters of ``nominal`` in those of each tilt.
    """

    nominal: SearchDistribution
    components: list[SearchDistribution]
    shares: Tensor
    defensive: float
    smoothing: float

    @classmethod
    def start(cls, nominal: SearchDistribution, defensive: float, smoothing: float) -> Proposal:
        """The mixture of the distribution alone."""
        return cls(
            nominal,
            [nominal],
            torch.ones(1, dtype=torch.float64, device="cpu"),
            defensive,
            smoothing,
        )

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` points, ``(n, d)``, those of a part side by side, the defensive ones last."""
        return torch.cat(self.sample_parts(n, generator))

    def sample_parts(self, n: int, generator: Generator | None = None) -> list[Tensor]:
        """Draw ``n`` points, a tensor for each part, the defensive one last."""
        defensive = self.shares.new_tensor([self.defensive])
        shares = torch.cat([self.shares * (1 - self.defensive), defensive])
        drawn = torch.multinomial(shares, n, replacement=True, generator=generator)
        counts = drawn.bincount(minlength=len(shares)).tolist()
        parts = zip([*self.components, self.nominal], counts, strict=True)
        return [part.sample(count, generator) for part, count in parts]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability or log-density of points ``(n, d)``, in nats, ``(n,)``."""
        tilted = self._joint(x).logsumexp(1) + math.log1p(-self.defensive)
        return torch.logaddexp(tilted, self.nominal.log_prob(x) + math.log(self.defensive))

    def log_weight(self, x: Tensor) -> Tensor:
        """Logarithm of the importance weight of points drawn from the mixture, ``(n,)``."""
        return self.nominal.log_prob(x) - self.log_prob(x)

    def component_of(self, x: Tensor) -> Tensor:
        """Return the likeliest component of each point, ``(n,)``."""
        return self._joint(x).argmax(1)

    def tilt(self, x: Tensor, weights: Tensor) -> SearchDistribution:
        """The tilt to weighted points, smoothed."""
        return self.nominal.blend(self.nominal.tilt(x, weights), 1 - self.smoothing)

    def add(self, components: list[SearchDistribution]) -> Proposal:
        """The mixture with further components, each with the mean of the shares."""
        k, added = len(self.components), len(components)
        shares = torch.cat([self.shares * k, self.shares.new_ones(added)]) / (k + added)
        return replace(self, components=[*self.components, *components], shares=shares)

    def refit(self, x: Tensor) -> Proposal:
        """Take one step of expectation and maximisation on points ``(n, d)``."""
        parts = self._joint(x).softmax(1)  # (n, k)
        mass = parts.sum(0)
        kept = (mass >= min(2.0, mass.max().item())).nonzero().flatten()
        components = [self.tilt(x, parts[:, k]) for k in kept.tolist()]
        return replace(self, components=components, shares=mass[kept] / mass[kept].sum())

    def _joint(self, x: Tensor) -> Tensor:
        return torch.stack([c.log_prob(x) for c in self.components], 1) + self.shares.log()


def grow(
    proposal: Proposal, x: Tensor, around: Callable[[Tensor], Tensor], generator: Generator
) -> Proposal:
    r"""Fit a mixture to points of an event, and add components where it holds them worst.

    The mixture is fitted to one half of the points. Components are added as long as this lowers the
    cross-entropy from the other half, or the second moment of the weights there, :math:`E[u / v]`,
    which decides the variance of an estimate.

    Args:
        proposal: the mixture to start from.
        x: points of the event, about as the nominal distribution has them, ``(n, d)``.
        around: maps a point, ``(1, d)``, to more points of the event near it; a new component is
            fitted to these.
        generator: for the choice of points where new components start.
    """
    # Equal points are held out together, unless the event has only a few points.
    distinct, which = x.unique(dim=0, return_inverse=True)
    if len(distinct) <= MOST_COMPONENTS:
        which = torch.arange(len(x), device="cpu")
    held_out = (torch.rand(len(x), dtype=torch.float64, device="cpu", generator=generator) < 0.5)[
        which
    ]
    copies = x[:0]
    best, least_moment, least_entropy, vain = proposal, math.inf, math.inf, 0
    while True:
        fitted = x if held_out.all() else torch.cat([x[~held_out], copies])
        for _ in range(STEPS):
            proposal = proposal.refit(fitted)
        log_weight = proposal.log_weight(x[held_out] if held_out.any() else x)
        moment = log_weight.logsumexp(0).item() - math.log(len(log_weight))
        entropy = log_weight.mean().item()
        vain += 1
        if moment < least_moment - LEAST_GAIN:
            best, least_moment, vain = proposal, moment, 0
        if entropy < least_entropy - LEAST_GAIN:
            least_entropy, vain = entropy, 0
        room = MOST_COMPONENTS - len(proposal.components)
        if vain > PATIENCE or not room:
            return best
        held_badly = proposal.log_weight(x).softmax(0)
        count = min(1 + len(proposal.components) // 4, room, int(held_badly.count_nonzero()))
        worst = torch.multinomial(held_badly, count, generator=generator)
        held_out &= ~torch.isin(which, which[worst])
        places = [around(x[[k]]) for k in worst.tolist()]
        copies = torch.cat([copies, *places])
        even = torch.ones(len(places[0]), dtype=torch.float64, device="cpu")
        proposal = proposal.add([proposal.tilt(place, even) for place in places])
