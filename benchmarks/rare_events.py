"""Coverage of the errors that `rare_event` claims: 42 known truths, 100 seeds each.

    python -m benchmarks.rare_events [--seeds 100] [NAME ...]

Needs scipy. Takes half an hour.

Each truth is a formula or a quadrature. A row says in how many runs the interval held the truth, in
how many the truth was within two standard errors, and in how many there was no estimate; then the
mean estimate divided by the truth, the claimed error, the number of scored points, and the seconds
of a run. The problems marked `tuned` were used while the method was developed, the others were not.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scipy import integrate, stats
from torch import Tensor

from xent.learn import Bernoulli, Categorical, Gaussian, rare_event

SearchDistribution = Gaussian | Bernoulli | Categorical


class Problem(NamedTuple):
    """A probability to estimate, and its true value."""

    score: Callable[[Tensor], Tensor]
    threshold: float
    nominal: SearchDistribution
    exact: float


def normal(d: int) -> Gaussian:
    """``d`` standard normal numbers."""
    return Gaussian(torch.zeros(d), 1.0)


def coins(d: int, p: float) -> Bernoulli:
    """``d`` coins."""
    return Bernoulli(torch.full((d,), p))


def dice(d: int) -> Categorical:
    """``d`` dice, faces from 0."""
    return Categorical(torch.full((d, 6), 1 / 6))


def above(x: float) -> float:
    """The probability that a standard normal number is more than x."""
    return float(stats.norm.sf(x))


def farther(r: float, d: int) -> float:
    """The probability that ``d`` standard normal numbers are farther than ``r`` from the origin."""
    return float(stats.chi2(d).sf(r * r))


def successes(k: int, n: int, p: float) -> float:
    """The probability of ``k`` or more successes in ``n`` trials."""
    return float(stats.binom(n, p).sf(k - 1))


def any_of(*probabilities: float) -> float:
    """The probability that one of several independent events happens."""
    return -math.expm1(sum(math.log1p(-p) for p in probabilities))


def product_exceeds(threshold: float) -> float:
    """P(|xy| > threshold) of two standard normal numbers."""
    peak = math.sqrt(threshold)
    density = lambda x: 4 * stats.norm.pdf(x) * stats.norm.sf(threshold / x)  # noqa: E731
    parts = [(0.1, peak / 2), (peak / 2, peak), (peak, 2 * peak), (2 * peak, 6 * peak)]
    return sum(integrate.quad(density, *part, epsrel=1e-10, epsabs=0)[0] for part in parts)


def sum_of_dice(at_least: int, d: int = 10) -> float:
    """P(sum of ``d`` dice >= at_least)."""
    ways = [1]
    for _ in range(d):
        ways = [sum(ways[max(k - 5, 0) : k + 1]) for k in range(len(ways) + 5)]
    return sum(ways[at_least:]) / 6**d


def half_spaces(distances: list[float]) -> Callable[[Tensor], Tensor]:
    """Return a score: the largest excess of a coordinate over its distance."""
    return lambda x: (x[:, : len(distances)] - x.new_tensor(distances)).amax(1)


def distance_to(*centres: float) -> Callable[[Tensor], Tensor]:
    """Return a score: minus the distance to the nearest centre, each the same number d times."""
    return lambda x: -torch.stack([(x - c).norm(dim=1) for c in centres]).amin(0)


def waits(x: Tensor) -> Tensor:
    """Exponential waiting times of mean 1, from standard normal numbers."""
    return -torch.special.log_ndtr(-x)


def most_equal(x: Tensor) -> Tensor:
    """Number of dice that show the most frequent face."""
    return torch.stack([(x == face).sum(1) for face in range(6)]).amax(0).double()


def fullest_block(x: Tensor, size: int) -> Tensor:
    """The number of ones in the block with the most ones."""
    return x.unflatten(1, (-1, size)).sum(2).amax(1)


SKEWED = torch.tensor([[0.9, 0.09, 0.01]]).expand(12, 3)
RELATED = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))

TUNED = {
    "|x| > 5": Problem(lambda x: x[:, 0].abs(), 5.0, normal(1), 2 * above(5)),
    "x > 7": Problem(lambda x: x[:, 0], 7.0, normal(1), above(7)),
    "max of 5 normals > 4.5": Problem(
        lambda x: x.amax(1), 4.5, normal(5), any_of(*[above(4.5)] * 5)
    ),
    "max of 20 normals > 5.5": Problem(
        lambda x: x.amax(1), 5.5, normal(20), any_of(*[above(5.5)] * 20)
    ),
    "sum of 20 normals, 6 sigma": Problem(
        lambda x: x.sum(1) / 20**0.5, 6.0, normal(20), above(6)
    ),
    "|x| > 6 in 2 dimensions": Problem(lambda x: x.norm(dim=1), 6.0, normal(2), math.exp(-18)),
    "|x| > 9 in 20 dimensions": Problem(
        lambda x: x.norm(dim=1), 9.0, normal(20), farther(9, 20)
    ),
    "all of 5 normals > 2": Problem(lambda x: x.amin(1), 2.0, normal(5), above(2) ** 5),
    "4 and 4.9 sigma": Problem(
        lambda x: torch.maximum(x[:, 0] - 4, -x[:, 0] - 4.9), 0.0, normal(3), above(4) + above(4.9)
    ),
    "two events, one without slope": Problem(
        lambda x: torch.maximum(x[:, 0], 5 * (x[:, 1] - 4)), 5.0, normal(2), any_of(*[above(5)] * 2)
    ),
    "two events, score 0 or 1": Problem(
        lambda x: (x[:, 0] > 5) | (x[:, 1] < -5), 1.0, normal(4), any_of(*[above(5)] * 2)
    ),
    "xy > 14 or < -14": Problem(
        lambda x: (x[:, 0] * x[:, 1]).abs(), 14.0, normal(2), product_exceeds(14)
    ),
    "two balls in 3 dimensions": Problem(
        distance_to(2.0, -2.0), -0.5, normal(3), 2 * float(stats.ncx2(3, 12).cdf(0.25))
    ),
    "|sum| of two related > 9": Problem(
        lambda x: x.sum(1).abs(), 9.0, RELATED, 2 * above(9 / 3**0.5)
    ),
    "85 of 100 coins": Problem(
        lambda x: x.sum(1), 85.0, coins(100, 0.5), successes(85, 100, 0.5)
    ),
    "8 of 20 coins of 0.02": Problem(
        lambda x: x.sum(1), 8.0, coins(20, 0.02), successes(8, 20, 0.02)
    ),
    "14 of 15 coins, two groups": Problem(
        lambda x: fullest_block(x, 15), 14.0, coins(30, 0.3),
        any_of(*[successes(14, 15, 0.3)] * 2)
    ),
    "none or all of 30 coins": Problem(
        lambda x: (x.sum(1) - 15).abs(), 15.0, coins(30, 0.5), 2 * 0.5**30
    ),
    "sum of 10 dice": Problem(lambda x: x.double().sum(1), 45.0, dice(10), sum_of_dice(45)),
    "9 of 10 dice equal": Problem(most_equal, 9.0, dice(10), 6 * successes(9, 10, 1 / 6)),
}  # fmt: skip
HELD_OUT = {
    "|x| > 6.3": Problem(lambda x: x[:, 0].abs(), 6.3, normal(1), 2 * above(6.3)),
    "|x - 4| < 0.01": Problem(
        lambda x: -(x[:, 0] - 4).abs(), -0.01, normal(1), above(3.99) - above(4.01)
    ),
    "|sum| of 15 normals, 6.3 sigma": Problem(
        lambda x: x.sum(1).abs() / 15**0.5, 6.3, normal(15), 2 * above(6.3)
    ),
    "max of 10 |normals| > 3.9": Problem(
        lambda x: x.abs().amax(1), 3.9, normal(10), any_of(*[2 * above(3.9)] * 10)
    ),
    "max of 8 normals > 6": Problem(
        lambda x: x.amax(1), 6.0, normal(8), any_of(*[above(6)] * 8)
    ),
    "half-spaces 3.7 to 4.6 in 6 d": Problem(
        half_spaces([3.7, 3.9, 4.2, 4.6]), 0.0, normal(6),
        any_of(*[above(x) for x in (3.7, 3.9, 4.2, 4.6)]),
    ),
    "half-spaces 5, 5.5, 5.9 in 12 d": Problem(
        half_spaces([5.0, 5.5, 5.9]), 0.0, normal(12), any_of(above(5), above(5.5), above(5.9))
    ),
    "|x| + |y| > 7": Problem(
        lambda x: x.abs().sum(1), 7.0, normal(2), any_of(*[2 * above(7 / 2**0.5)] * 2)
    ),
    "|x| > 5 in 5 dimensions": Problem(
        lambda x: x.norm(dim=1), 5.0, normal(5), farther(5, 5)
    ),
    "|x| > 7.5 in 10 dimensions": Problem(
        lambda x: x.norm(dim=1), 7.5, normal(10), farther(7.5, 10)
    ),
    "both > 3.5 or both < -3.5": Problem(
        lambda x: torch.maximum(x.amin(1), -x.amax(1)), 3.5, normal(2), 2 * above(3.5) ** 2
    ),
    "all of 3 |normals| > 2.5": Problem(
        lambda x: x.abs().amin(1), 2.5, normal(3), (2 * above(2.5)) ** 3
    ),
    "two events in 8 d, one without slope": Problem(
        lambda x: torch.maximum(x[:, 0], 8 * (x[:, 1] - 4.3)), 4.8, normal(8),
        any_of(above(4.8), above(4.9)),
    ),
    "whole numbers, |x| >= 5": Problem(
        lambda x: x[:, 0].abs().floor(), 5.0, normal(2), 2 * above(5)
    ),
    "4 of 10 coins of 0.001": Problem(
        lambda x: x.sum(1), 4.0, coins(10, 0.001), successes(4, 10, 0.001)
    ),
    "a full block of 4, coins of 0.02": Problem(
        lambda x: fullest_block(x, 4), 4.0, coins(20, 0.02), any_of(*[0.02**4] * 5)
    ),
    "12 of 12, or 11 of the other 12 coins": Problem(
        lambda x: torch.maximum(x[:, :12].sum(1) - 1, x[:, 12:].sum(1)), 11.0, coins(24, 0.3),
        any_of(0.3**12, successes(11, 12, 0.3)),
    ),
    "6 of 12 in the rarest of 3 classes": Problem(
        lambda x: (x == 2).sum(1), 6.0, Categorical(SKEWED), successes(6, 12, 0.01)
    ),
    "8 of 8 dice equal": Problem(most_equal, 8.0, dice(8), 6 * (1 / 6) ** 8),
    "longest of 4 waits > 20": Problem(
        lambda x: waits(x).amax(1), 20.0, normal(4),
        any_of(*[math.exp(-20)] * 4),
    ),
    "sum of 6 waits > 30": Problem(
        lambda x: waits(x).sum(1), 30.0, normal(6),
        float(stats.gamma(6).sf(30)),
    ),
    "certain but for 1e-3": Problem(lambda x: x[:, 0], -3.0, normal(2), above(-3)),
}  # fmt: skip
PROBLEMS = TUNED | HELD_OUT


def estimate(name: str, seed: int) -> Any:
    """Estimate a problem once."""
    problem = PROBLEMS[name]
    return rare_event(problem.score, problem.threshold, problem.nominal, seed=seed)


HEAD = (
    f"{'':37} {'':5} {'d':>3} {'truth':>9} {'runs':>4} {'in':>4} {'in 2':>4} {'none':>4} "
    f"{'mean':>6} {'error':>6} {'points':>7} {'s':>4}"
)


def row(name: str, runs: list[Any], seconds: float) -> str:
    """A line of the table."""
    exact = PROBLEMS[name].exact
    told = [run for run in runs if not run.message]
    held = sum(run.interval[0] <= exact <= run.interval[1] for run in told)
    near = sum(abs(run.probability - exact) <= 2 * run.standard_error for run in told)
    error = sum(run.standard_error for run in told) / max(len(told), 1) / exact
    mean = sum(run.probability for run in told) / max(len(told), 1) / exact
    evaluations = sum(run.evaluations for run in runs) / len(runs)
    kind, d = "tuned" if name in TUNED else "", len(PROBLEMS[name].nominal.centre)
    none = len(runs) - len(told)
    return (
        f"{name:37} {kind:5} {d:3} {exact:9.2e} {len(runs):4} {held:4} {near:4} {none:4} "
        f"{mean:6.3f} {error:6.1%} {evaluations:7.0f} {seconds / len(runs):4.1f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--seeds", type=int, default=100, help="default 100")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD)
    for name in chosen.names or PROBLEMS:
        start = time.process_time()
        runs = [estimate(name, seed) for seed in range(chosen.seeds)]
        print(row(name, runs, time.process_time() - start), flush=True)


if __name__ == "__main__":
    main()
