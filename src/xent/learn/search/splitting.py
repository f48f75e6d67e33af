"""Multilevel splitting: a population of points that is led into an event too rare to draw.

The population is distributed as points whose scores reach a level. The next level is a score that
some of these points reach. These points are copied, and the copies move by Metropolis steps that
stay above the level. Unlike a fitted distribution, a population holds many places (separate regions
of the event) at once.

Copies of few points hold few places: of 40 equal places a population of 2000 holds 20 after ten
levels. From the distribution with three times the standard deviation one level is enough, and the
population holds all 40. Where neither holds all (7 of 7 dice of 20 faces equal: the estimate is
0.15 of the truth, with an error of 1 %), two populations are compared: the places that only one of
them has found tell how many both have missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Generator, Tensor

from .cross_entropy_method import read_scores
from .proposals import Proposal
from .search_distributions import SearchDistribution
from .tilts import effective_count

MOST_LEVELS = 100
MOST_GATHERINGS = 10  # most rounds that collect points at a new level
ROUNDS = 2  # rounds of moves after each level
SMALLEST_STEP = 0.05
COPIES = 64  # copies of a point that explore its surroundings
COPY_ROUNDS = 6  # rounds of moves of these copies
REDRAWS = 3


class Counted:
    """A score that counts the points it has scored, and keeps the best score."""

    def __init__(self, score: Callable[[Tensor], Tensor | Sequence[float]]) -> None:
        self._score = score
        self.evaluations = 0
        self.best = -math.inf

    def __call__(self, x: Tensor) -> Tensor:
        """Scores in float64, ``(n,)``, of points ``(n, d)``."""
        if not len(x):
            return torch.zeros(0, dtype=torch.float64, device="cpu")
        scores = read_scores(x, self._score(x))
        self.evaluations += len(x)
        self.best = max(self.best, scores.max().item())
        return scores


class Population:
    """Points of a distribution, or of a flattened one, given that their scores reach a level.

    Args:
        nominal: the distribution.
        power: of its density; less than 1 flattens it.
        score: scores points; the levels are scores.
        size: how many points.
        smoothing: the share of the parameters of ``nominal`` in those that are fitted to points.
        generator: of all that is drawn.
    """

    def __init__(
        self,
        nominal: SearchDistribution,
        power: float,
        score: Counted,
        size: int,
        smoothing: float,
        generator: Generator,
    ) -> None:
        self.levels: list[float] = []
        self._nominal = nominal
        self._power = power
        self._law = self._at(power)
        self._level = -math.inf
        self._score = score
        self._smoothing = smoothing
        self._generator = generator
        self.points = self._law.sample(size, generator)
        self.scores = score(self.points)

    def climb(self, threshold: float, survivors: int) -> bool:
        """Raise the level to the threshold, and return True if it got there.

        Args:
            threshold: the last level.
            survivors: how many reach the next level, if their scores differ.
        """
        while self._level < threshold:
            level = self._next_level(survivors)
            if level is None or len(self.levels) == MOST_LEVELS:
                return False
            self._level = min(level, threshold)
            self.levels.append(self._level)
            self._gather(survivors)
            self.move(ROUNDS)
        return True

    def cool(self) -> None:
        """Move from the flattened distribution to the distribution itself, in even steps."""
        while self._power < 1:
            power = 1.0
            while _effective(self._log_ratio(power)) < 0.5 and power > self._power + 1e-3:
                power = (self._power + power) / 2
            weights = self._log_ratio(power).softmax(0)
            self._power, self._law = power, self._at(power)
            self._resample(weights)
            self.move(ROUNDS)

    def around(self, point: Tensor) -> Tensor:
        """Points of the population near one of them, ``(1, d)``: copies that have moved."""
        here = copy(self)
        here.points = point.expand(COPIES, -1).clone()
        here.scores = torch.full((COPIES,), self._level, dtype=torch.float64, device="cpu")
        here.move(COPY_ROUNDS)
        return here.points

    def enlarge(self, size: int) -> None:
        """Copy points until there are so many, if there are fewer, and shuffle them."""
        order = torch.randperm(len(self.points), device="cpu", generator=self._generator)
        self._choose(order[torch.arange(max(size, len(order)), device="cpu") % len(order)])

    def redraw(self, proposal: Proposal) -> None:
        """Take Metropolis steps to points of a mixture, and some to points nearby."""
        for _ in range(REDRAWS):
            drawn = proposal.sample(len(self.points), self._generator)
            drawn = drawn[torch.randperm(len(drawn), device="cpu", generator=self._generator)]
            self._accept(drawn, proposal.log_weight(drawn) - proposal.log_weight(self.points))
        self.move(1)

    def move(self, rounds: int) -> None:
        """Take Metropolis steps at all scales, which keep the distribution given the level."""
        fitted = self._law.blend(self._law.fit(self.points), 1 - self._smoothing)
        for _ in range(rounds):
            size = SMALLEST_STEP ** self._uniform(len(self.points), 1)
            self._accept(
                self._law.step(self.points, size, self._generator),
                torch.zeros((), dtype=torch.float64, device="cpu"),
            )
            for proposal in (self._law, fitted):
                self._swap(proposal)

    def _swap(self, proposal: SearchDistribution) -> None:
        """Swap some coordinates with those of a drawn point, from one of them to all."""
        n, d = self.points.shape
        drawn = proposal.sample(n, self._generator)
        swap = self._uniform(n, d) < d ** -self._uniform(n, 1)  # (n, d)
        swap.scatter_(1, (self._uniform(n, 1) * d).long(), True)
        new = torch.where(swap, drawn, self.points)
        rest = torch.where(swap, self.points, drawn)
        # Hastings ratio of the pair: one point under the law, the other under the proposal.
        log_ratio = (
            self._law.log_prob(new) - self._law.log_prob(self.points)
            + proposal.log_prob(rest) - proposal.log_prob(drawn)
        )  # fmt: skip
        self._accept(new, log_ratio)

    def _accept(self, new: Tensor, log_ratio: Tensor) -> None:
        """Accept the moves that Metropolis accepts and whose score stays above the level."""
        likely = self._uniform(len(new)).log() < log_ratio
        tried = (likely & (new != self.points).any(1)).nonzero().flatten()
        scores = self._score(new[tried])
        high = scores >= self._level
        moved = tried[high]
        self.points[moved], self.scores[moved] = new[moved], scores[high]

    def _next_level(self, survivors: int) -> float | None:
        """The score that ``survivors`` points reach; if that is no progress, the next one above.

        None if no point is above the level.
        """
        level = self.scores.topk(survivors).values[-1].item()
        if level > self._level:
            return level
        above = self.scores[self.scores > self._level]
        return above.min().item() if len(above) else None

    def _gather(self, survivors: int) -> None:
        """Copy the points that reach the new level.

        If only few do, points move further above the last level, and those that reach the new level
        are added, because copies of few points hold few places.
        """
        size, level, found = len(self.points), self._level, []
        self._level = self.levels[-2] if len(self.levels) > 1 else -math.inf
        for _ in range(MOST_GATHERINGS):
            high = self.scores >= level
            found.append((self.points[high], self.scores[high]))
            if sum(len(scores) for _, scores in found) >= survivors:
                break
            self.move(1)
        self._level = level
        self.points, self.scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.enlarge(size)

    def _resample(self, weights: Tensor) -> None:
        """Copy points in proportion to their weights, as evenly as whole numbers can."""
        n = len(weights)
        ends = weights.cumsum(0) / weights.sum() * n
        at = torch.arange(n, device="cpu") + self._uniform(1)
        self._choose(torch.searchsorted(ends, at, right=True).clamp(max=n - 1))

    def _at(self, power: float) -> SearchDistribution:
        return self._nominal if power == 1 else self._nominal.flatten(power)

    def _log_ratio(self, power: float) -> Tensor:
        return self._at(power).log_prob(self.points) - self._law.log_prob(self.points)

    def _choose(self, index: Tensor) -> None:
        index = index[torch.randperm(len(index), device="cpu", generator=self._generator)]
        self.points, self.scores = self.points[index], self.scores[index]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, device="cpu", generator=self._generator)


def pool(populations: list[Population]) -> Population:
    """The points of several populations of one distribution at one level, shuffled."""
    one = copy(populations[0])
    one.points = torch.cat([each.points for each in populations])
    one.scores = torch.cat([each.scores for each in populations])
    one._choose(torch.arange(len(one.points), device="cpu"))
    return one


def _effective(log_weights: Tensor) -> float:
    """The share of equally weighted points that would tell as much."""
    return effective_count(log_weights.softmax(0)) / len(log_weights)
