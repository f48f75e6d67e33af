r"""Probabilities of events too rare to wait for, by sampling where they happen.

    P(score(X) >= threshold), X from `nominal`

Let ``u`` be the density of `nominal`. Points are drawn from another distribution ``v``, under which
the event is common, and each point counts with its likelihood ratio ``u(x) / v(x)``. The best ``v``
of a family has the least cross-entropy from the distribution given the event. An event may consist
of several regions, its *places*, so ``v`` is a mixture with a component or more for each place. The
mixture is fitted to a population that multilevel splitting leads into the event from two sides:
from the nominal distribution, and from a flattened one, which finds places that the scores do not
lead to.

A sample does not see the places that its distribution misses. If an event has two equal places and
``v`` covers only one, the estimate is half of the truth, with a claimed error of 2 %. So the
weights are also taken at points that reached the event in another way, by splitting, and the larger
error counts. A missed place then makes the error many times as large as the estimate, and no number
is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ..._check import finite_number, is_whole
from .cross_entropy_method import elite_count
from .proposals import Proposal, grow
from .search_distributions import SearchDistribution
from .splitting import Counted, Population, pool

__all__ = ["RareEvent", "rare_event"]

FLATTENED = 1 / 9  # the power of the density: three times the standard deviation of a Gaussian
MOST_REFITS = 6  # fits of the mixture, each to a population that the fit before has redrawn
LEAST_GAIN = 0.1  # nats of the second moment that a further fit must gain
PER_COMPONENT = 100  # points of the population for each component
ENOUGH = 100  # effective points of an estimate; with fewer it is drawn anew
MORE = 10  # factor of the number of points when an estimate is drawn anew
FEWEST = 20  # effective points; with fewer there is no estimate
DEVIATIONS = 2.5758  # standard deviations about the mean that hold 99 % of a normal distribution
MARGIN = DEVIATIONS / 2  # factor of a standard error, so that two of them hold 99 %
DOUBT = 0.05  # how often the bound may be exceeded
PLAIN_DOUBT = 0.01  # how often each end of an interval of plain draws may be exceeded


class RareEvent(NamedTuple):
    """The probability of a rare event, or why there is none.

    Attributes:
        probability: the estimate, without bias; NaN where the draws cannot tell.
        standard_error: the claimed error, with a margin: the truth lies within two standard errors
            of the estimate in 99 of 100 runs (for a normal distribution it would be 95), if no
            place of the event was missed. NaN where the draws cannot tell.
        interval: two standard errors to both sides of the estimate, upwards as a factor, because an
            estimate that is too small claims too small an error. From 0 to ``bound`` where the
            draws cannot tell.
        bound: a number that the true probability exceeds in at most 5 of 100 runs, *whatever the
            score*. It uses only the points that were drawn from the nominal distribution: if none
            of these is in the event, a bound of ``b`` takes ``3 / b`` of them.
        effective: how many equally weighted points of the event would tell as much.
        levels: the thresholds on the way from the nominal distribution. The last one is that of the
            event, unless only points of the flattened distribution reached the event.
        distribution: what the points of the estimate were drawn from.
        evaluations: how many points were scored in all.
        message: why there is no number; empty where there is one.
    """

    probability: float
    standard_error: float
    interval: tuple[float, float]
    bound: float
    effective: float
    levels: list[float]
    distribution: Proposal | SearchDistribution
    evaluations: int
    message: str


def rare_event(
    score: Callable[[Tensor], Tensor | Sequence[float]],
    threshold: float,
    nominal: SearchDistribution,
    *,
    population: int | None = None,
    elite: float = 0.2,
    smoothing: float = 0.05,
    defensive: float = 0.1,
    final: int = 10_000,
    seed: int = 0,
) -> RareEvent:
    r"""Estimate how likely a score is to reach a threshold, by adaptive importance sampling.

    .. math:: \hat p = \frac{1}{N} \sum_i [S(x_i) \ge \gamma]\, \frac{u(x_i)}{v(x_i)},
        \qquad x_i \sim v

    Args:
        score: maps points ``(n, d)`` to their scores, ``(n,)``, for any ``n``; large ones are rare.
        threshold: the least score of a point in the event.
        nominal: the distribution ``u`` that points really have. ``v`` is a mixture of its
            :meth:`~SearchDistribution.tilt`, of up to 64, as the places of the event need.
        population: points that are led into the event from each of two sides; by default 2000, or
            10 for each dimension if that is more. More points hold more places.
        elite: the share of the population that reaches the next level, or the number of points.
        smoothing: the share of the nominal parameters in those of each component, more than 0. It
            keeps choices possible that were not seen; else the estimate could miss their share.
        defensive: the share of ``v`` that is ``u`` itself, so that no point has a weight of more
            than ``1 / defensive``.
        final: new points for the estimate; ten times as many are drawn again if these tell less
            than 100 hits of equal weight would.
        seed: of the points.

    Returns:
        A :class:`RareEvent`. Where the draws cannot tell, its ``probability`` is NaN, and its
        ``message`` says why. An estimate takes 100,000 to 500,000 evaluations: ``final`` of them
        for the number, all others to find every place of the event. Both hardly grow as the event
        gets rarer.

    Raises:
        ValueError: for values that options cannot take, or bad scores.

    Note:
        No sampling excludes a place that its draws have never met. A place is found if scores rise
        towards it from where points are likely, or if it is likely under the nominal distribution
        with three times the standard deviation (:meth:`~SearchDistribution.flatten` says what that
        is for a family). ``bound`` also holds for events with places that were missed.

    Example:
        >>> import torch
        >>> from xent.learn import Bernoulli, Gaussian, rare_event
        >>> nominal = Gaussian(torch.zeros(5), 1.0)
        >>> found = rare_event(lambda x: x.amax(1), 4.5, nominal)  # truth: 1.6988e-05
        >>> found.interval[0] < 1.6988e-05 < found.interval[1]
        True
        >>> found.standard_error < 0.05 * found.probability
        True
        >>> found = rare_event(lambda x: x.sum(1), 21.0, Bernoulli(torch.full((20,), 0.5)))
        >>> found.probability, round(found.bound, 5)
        (nan, 0.00025)
        >>> found.message
        'the scores reach 20, not 21: the event may be impossible, or too rare to be found'

    References:
        Rubinstein, *Optimization of computer simulation models with rare events*, European Journal
        of Operational Research, 1997.
        de Boer et al., *A tutorial on the cross-entropy method*, 2005.
        Hesterberg, *Weighted average importance sampling and defensive mixture distributions*,
        Technometrics, 1995.
        Owen & Zhou, *Safe and effective importance sampling*, Journal of the American Statistical
        Association, 2000.
        Botev & Kroese, *Efficient Monte Carlo simulation via the generalized splitting method*,
        Statistics and Computing, 2012.
    """
    if population is None:
        population = max(2000, 10 * len(nominal.centre))
    survivors = elite_count(elite, population)
    _check(threshold, smoothing, defensive, final)
    generator = torch.Generator().manual_seed(seed)
    counted = Counted(score)
    side = partial(
        Population, nominal, score=counted, size=population, smoothing=smoothing,
        generator=generator,
    )  # fmt: skip
    first = side(power=1.0)
    hits = int((first.scores >= threshold).sum())
    inside = [] if hits >= survivors else _led_inside(first, side, threshold, survivors)
    if len(inside) < 2:
        distribution = nominal
        found = _plain_estimate(counted, threshold, nominal, final, generator)
    else:
        both = pool(inside)
        distribution = _fit(Proposal.start(nominal, defensive, smoothing), both, generator)
        for times in (1, MORE):  # the last estimate counts: a choice would bias it
            found = _weighted_estimate(
                counted, threshold, distribution, both, inside, (times, final), generator
            )
            if found.effective >= ENOUGH:
                break
    bound = _chernoff(hits + found.hits, population + found.drawn, DOUBT)[1]
    answer = RareEvent(
        found.probability, MARGIN * found.deviation, found.interval, bound, found.effective,
        first.levels or [float(threshold)], distribution, counted.evaluations, message="",
    )  # fmt: skip
    return answer if found.effective >= FEWEST else _no_number(answer, counted.best, threshold)


def _check(threshold: float, smoothing: float, defensive: float, final: int) -> None:
    """Raise if an option is out of range."""
    finite_number("threshold", threshold)
    for name, share in (("smoothing", smoothing), ("defensive", defensive)):
        if not 0 < finite_number(name, share) < 1:
            raise ValueError(f"`{name}` must be more than 0 and less than 1, got {share}")
    if not is_whole(final) or final < 2:
        raise ValueError(f"`final` must be a whole number of at least 2, got {final!r}")


def _led_inside(
    first: Population, side: Callable[..., Population], threshold: float, survivors: int
) -> list[Population]:
    """Lead populations into the event, from the nominal distribution and from a flattened one.

    Args:
        first: a population of the nominal distribution.
        side: makes a population, of the density to a ``power``.
        threshold: the least score of a point in the event.
        survivors: how many points reach the next level.

    Returns:
        Two populations in the event, drawn apart from each other; fewer if the event was not
        reached. Where only one of the two distributions reaches it, a second population of that
        distribution is tried.
    """
    sides = {1.0: first, FLATTENED: side(power=FLATTENED)}
    inside = {power: each for power, each in sides.items() if each.climb(threshold, survivors)}
    found = list(inside.values())
    if len(inside) == 1:
        again = side(power=next(iter(inside)))
        found += [again] if again.climb(threshold, survivors) else []
    if len(found) == 2:
        for each in found:
            each.cool()
    return found


def _no_number(answer: RareEvent, best: float, threshold: float) -> RareEvent:
    """Return an answer that says why there is no probability, with the bound alone."""
    if best < threshold:
        message = (
            f"the scores reach {best:g}, not {threshold:g}: the event may be impossible, "
            "or too rare to be found"
        )
    else:
        message = (
            f"the draws amount to {answer.effective:.1f} points of the event, and a number "
            f"takes {FEWEST}: it has more places than `population` holds, or `final` is too small"
        )
    interval = (0.0, answer.bound)
    return answer._replace(
        probability=math.nan, standard_error=math.nan, interval=interval, message=message
    )


class _Estimate(NamedTuple):
    """An estimate with its errors, and the draws from the nominal distribution with their hits."""

    probability: float
    deviation: float
    interval: tuple[float, float]
    hits: int
    drawn: int

    @property
    def effective(self) -> float:
        """Number of equally weighted points of the event that would tell as much."""
        return (self.probability / self.deviation) ** 2


def _fit(proposal: Proposal, inside: Population, generator: Generator) -> Proposal:
    """Fit a mixture to a population, redraw that from the mixture, and so on while it helps."""
    best, least = proposal, math.inf
    for _ in range(MOST_REFITS):
        proposal = grow(proposal, inside.points, inside.around, generator)
        inside.enlarge(PER_COMPONENT * len(proposal.components))
        inside.redraw(proposal)
        moment = proposal.log_weight(inside.points).exp().mean().log().item()
        gain = least - moment
        if gain > 0:
            best, least = proposal, moment
        if gain < LEAST_GAIN:
            break
    return best


def _plain_estimate(
    counted: Counted, threshold: float, nominal: SearchDistribution, n: int, generator: Generator
) -> _Estimate:
    """Estimate the probability by the share of plain draws in the event."""
    hits = int((counted(nominal.sample(n, generator)) >= threshold).sum())
    # One more hit and one more miss are added, so that zero hits have an error, too.
    p = (hits + 1) / (n + 2)
    error = math.sqrt(p * (1 - p) / n)
    return _Estimate(hits / n, error, _chernoff(hits, n, PLAIN_DOUBT), hits, n)


def _weighted_estimate(
    counted: Counted,
    threshold: float,
    proposal: Proposal,
    inside: Population,
    sides: list[Population],
    size: tuple[int, int],
    generator: Generator,
) -> _Estimate:
    """Estimate the probability by the mean weight of points drawn from a mixture."""
    weights, places, hits, drawn = [], [], 0, 0
    for _ in range(size[0]):
        parts = proposal.sample_parts(size[1], generator)
        hit = [counted(x) >= threshold for x in parts]
        x = torch.cat(parts)
        weights.append(torch.where(torch.cat(hit), proposal.log_weight(x).exp(), 0.0))
        places.append(proposal.component_of(x))
        hits, drawn = hits + int(hit[-1].sum()), drawn + len(hit[-1])
    weight, place = torch.cat(weights), torch.cat(places)  # (N,) each
    p = weight.mean().item()
    if not p:
        return _Estimate(p, math.inf, (0.0, 1.0), hits, drawn)
    # From here on relative to the estimate: squares of small weights would underflow.
    weight = weight / p
    square = (weight - 1).square()
    # Where weights vary much, the largest were not drawn. So the variance is raised by two of its
    # errors, and to the variance at points that reached the event by another way.
    variance = square.mean().item() + 2 * square.std().item() / math.sqrt(len(weight))
    elsewhere = (proposal.log_weight(inside.points) - math.log(p)).exp().mean().item() - 1
    mass = place.bincount(weight, minlength=len(proposal.components))
    unseen = _unseen(mass, *(proposal.component_of(side.points) for side in sides))
    error = math.hypot(math.sqrt(max(variance, elsewhere) / len(weight)), unseen)
    beyond = DEVIATIONS * error
    interval = p * max(1 - beyond, 0.0), min(p * math.exp(min(beyond, 700.0)), 1.0)
    return _Estimate(p, p * error, interval, hits, drawn)


def _unseen(mass: Tensor, *places: Tensor) -> float:
    """Upper estimate of what neither of two populations has found of the event, over the rest.

    If one population has found half of what the other has, it has found about half of all. In this
    way animals are counted, by marking some and catching others. The result is 0 if one population
    has found all that the other has.

    Args:
        mass: of the place of each component, ``(k,)``.
        places: the components of the points of each population.
    """
    one, other = (place.bincount(minlength=len(mass)) > 0 for place in places)
    product = 1.0
    for side in (one, other):
        lacks = (mass[side & ~(one & other)].sum() / mass[side].sum()).item()
        if not lacks:
            return 0.0
        count = (mass[side].sum().square() / mass[side].square().sum()).item()
        product *= min(lacks + math.sqrt(lacks * (1 - lacks) / count) + 1 / count, 1.0)
    return product / (1 - product) if product < 1 else math.inf


def _chernoff(hits: int, n: int, doubt: float) -> tuple[float, float]:
    """Return an interval of the probability of a hit; each end fails with ``doubt`` at most.

    By Chernoff's bound, a share of hits with this divergence from its probability, or a larger one,
    has at most the probability ``exp(-n divergence)``.
    """
    share, most = hits / n, -math.log(doubt) / n

    def divergence(p: float) -> float:
        parts = ((share, p), (1 - share, 1 - p))
        return sum(a * math.log(a / b) for a, b in parts if a > 0)

    ends = []
    for end in (0.0, 1.0):
        near, far = share, end
        for _ in range(100):
            middle = (near + far) / 2
            if middle in (near, far):
                break
            near, far = (middle, far) if divergence(middle) < most else (near, middle)
        ends.append(far)
    return ends[0], ends[1]
