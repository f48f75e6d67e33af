r"""Probabilities of events too rare to wait for, by sampling where they happen.

    P(score(X) >= threshold), X from `nominal`

Drawn from another distribution ``v``, the event is common, and each point counts with its
likelihood ratio ``u(x) / v(x)``. The best ``v`` of a family has the least cross-entropy from the
distribution given the event. It is found by levels, each a quantile of the scores under the one
before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..._check import finite_number, is_whole
from .cross_entropy_method import elite_count, read_scores
from .search_distributions import SearchDistribution

MOST_LEVELS = 100


class RareEvent(NamedTuple):
    """The probability of a rare event.

    Attributes:
        probability: the estimate, without bias.
        standard_error: of it.
        effective: how many equally weighted points of the event would tell as much. Below a
            hundred or so, the standard error is not to be relied on either.
        levels: the thresholds on the way, the last that of the event.
        distribution: what the points of the estimate were drawn from.
        evaluations: how many points were scored in all.
    """

    probability: float
    standard_error: float
    effective: float
    levels: list[float]
    distribution: SearchDistribution
    evaluations: int


def rare_event(
    score: Callable[[Tensor], Tensor | Sequence[float]],
    threshold: float,
    nominal: SearchDistribution,
    *,
    population: int | None = None,
    elite: float = 0.1,
    smoothing: float = 0.1,
    final: int = 10_000,
    seed: int = 0,
) -> RareEvent:
    r"""Estimate how likely a score is to reach a threshold, by adaptive importance sampling.

    .. math:: \hat p = \frac{1}{N} \sum_i [S(x_i) \ge \gamma]\, \frac{u(x_i)}{v(x_i)},
        \qquad x_i \sim v

    Args:
        score: from points ``(n, d)`` to their scores, ``(n,)``; large ones are rare.
        threshold: what makes the event.
        nominal: the distribution ``u`` that points really have. ``v`` is one of its
            :meth:`~SearchDistribution.tilt`.
        population: points per level; by default 1000, or 10 in the elite for each dimension if
            that is more. With fewer, the errors of all its parameters multiply in the weights.
        elite: the share of them that reaches the next level, or how many.
        smoothing: the share of the old parameters in the new ones. More than 0 keeps a choice that
            was not seen among the elite possible; without it the estimate could miss its share.
        final: points for the estimate, drawn apart.
        seed: of the points.

    Returns:
        A :class:`RareEvent`. The points that a relative error takes hardly grow as the event gets
        rarer: for a sum of Gaussians they are twice as many at ``1e-9`` as at ``1e-3``.

    Raises:
        ValueError: for values that options cannot take, bad scores, or if the levels do not reach
            the threshold.

    Example:
        >>> import torch
        >>> from xent.learn import Gaussian, rare_event
        >>> nominal = Gaussian(torch.zeros(4), 1.0)
        >>> found = rare_event(lambda x: x.sum(1) / 2, 5.0, nominal)  # truth: 2.8665e-07
        >>> abs(found.probability - 2.8665e-07) < 4 * found.standard_error < 4e-08
        True

    References:
        Rubinstein, *Optimization of computer simulation models with rare events*, European Journal
        of Operational Research, 1997.
        de Boer et al., *A tutorial on the cross-entropy method*, 2005.
    """
    if population is None:
        part = not is_whole(elite) and 0 < finite_number("elite", elite) < 1
        share = elite if part else 1.0  # a wrong one: below
        population = max(1000, math.ceil(10 * len(nominal.centre) / share))
    count = elite_count(elite, population)
    finite_number("threshold", threshold)
    if not 0 <= finite_number("smoothing", smoothing) < 1:
        raise ValueError(f"`smoothing` must be at least 0 and less than 1, got {smoothing}")
    if not is_whole(final) or final < 2:
        raise ValueError(f"`final` must be a whole number of at least 2, got {final!r}")
    generator = torch.Generator().manual_seed(seed)
    sampling, levels = nominal, [-math.inf]
    while levels[-1] < threshold:
        if len(levels) > MOST_LEVELS:
            raise ValueError(
                f"after {MOST_LEVELS} levels the scores reach {levels[-1]:g}, not {threshold:g}: "
                "the event may be impossible, or `population` too small for it"
            )
        x = sampling.sample(population, generator)
        scores = read_scores(x, score(x))
        levels.append(min(threshold, scores.topk(count).values[-1].item()))
        reached = x[scores >= levels[-1]]
        log_ratio = nominal.log_prob(reached) - sampling.log_prob(reached)
        tilted = nominal.tilt(reached, (log_ratio - log_ratio.max()).exp())
        sampling = sampling.blend(tilted, 1 - smoothing)
    x = sampling.sample(final, generator)
    hit = read_scores(x, score(x)) >= threshold
    log_ratio = nominal.log_prob(x) - sampling.log_prob(x)
    weight = torch.where(hit, log_ratio.exp(), 0.0)
    effective = (weight.sum().square() / weight.square().sum()).item() if hit.any() else 0.0
    return RareEvent(
        weight.mean().item(), weight.std().item() / math.sqrt(final), effective, levels[1:],
        sampling, population * (len(levels) - 1) + final,
    )  # fmt: skip
