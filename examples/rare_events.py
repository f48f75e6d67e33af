"""Rare events: probabilities down to 1e-13 beside the exact ones, from one place and from many.

    python examples/rare_events.py [--small] [--seeds 10] [--seed 0] [--picture PATH]

Needs scipy, and matplotlib for the picture. Takes a minute.

Problems whose probabilities are known: a sum of Gaussians, which is large in one way; the largest
of five and the sum of two absolute values, which are large in five and in four; the number of ones
among forty coins; and the length of the shortest way across a bridge of five random edges, the
classic example of the tutorial on the cross-entropy method. Each is estimated with many seeds: the
estimates must have no bias, and the intervals they claim must hold the truth. Plain sampling would
need the number of points in the last column for the same error. An event that cannot happen must
have a bound and no number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from _experiment import hold, options, save
from xent.learn import Bernoulli, Gaussian, rare_event
from xent.learn.search.rare_events import RareEvent
from xent.learn.search.search_distributions import SearchDistribution

HELD = 0.99  # share of the truths that the intervals must hold
BRIDGE = torch.tensor([0.25, 0.4, 0.1, 0.3, 0.2], dtype=torch.float64)  # mean lengths of its edges


@dataclass(frozen=True, eq=False)
class Exponential(SearchDistribution):
    """Independent waiting times: a family of distributions that a user writes."""

    mean: Tensor

    @property
    def centre(self) -> Tensor:
        """Return the likeliest point."""
        return torch.zeros_like(self.mean)

    @property
    def spread(self) -> float:
        """Return the largest standard deviation."""
        return self.mean.max().item()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points."""
        uniform = torch.rand(n, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return -self.mean * torch.log1p(-uniform)

    def fit(self, elite: Tensor, weights: Tensor | None = None) -> Exponential:
        """Return the family with the mean of the elite."""
        w = torch.ones(len(elite), dtype=elite.dtype) if weights is None else weights
        return Exponential(w @ elite / w.sum())

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density."""
        return -(x / self.mean + self.mean.log()).sum(1)


class Problem(NamedTuple):
    """A probability to estimate, and its true value."""

    score: Callable[[Tensor], Tensor]
    nominal: SearchDistribution
    thresholds: list[float]
    exact: Callable[[float], float]
    final: int = 10_000


def shortest_way(x: Tensor) -> Tensor:
    """Return the length of the shortest of the four ways, (n, 5) -> (n,)."""
    a, b, c, d, e = x.unbind(1)
    return torch.stack([a + d, a + c + e, b + e, b + c + d]).amin(0)


def bridge_probability(threshold: float, cells: int = 160) -> float:
    """Compute P(shortest way >= threshold) by quadrature.

    Given the first three edges, the last two are independent and the rest is a formula. An edge
    longer than the threshold is as good as one of its length. Cells of equal width, then half of
    it; the error is quadratic in the width, so the two extrapolate.
    """

    def at(cells: int) -> float:
        edges = np.linspace(0, threshold, cells + 1)
        places = np.append((edges[1:] + edges[:-1]) / 2, threshold)
        mean = BRIDGE.numpy()
        a, b, c = np.meshgrid(places, places, places, indexing="ij", sparse=True)
        masses = [-np.diff(np.append(np.exp(-edges / m), 0)) for m in mean[:3]]
        rest_d = np.maximum(np.maximum(threshold - a, threshold - b - c), 0)
        rest_e = np.maximum(np.maximum(threshold - b, threshold - a - c), 0)
        survive = np.exp(-rest_d / mean[3] - rest_e / mean[4])
        return float(np.einsum("i,j,k,ijk->", *masses, survive, optimize=True))

    return (4 * at(cells) - at(cells // 2)) / 3


def skewed_sum(x: Tensor) -> Tensor:
    """Return a weighted sum of Gaussians with standard deviation 1."""
    weights = torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype)
    return x @ (weights / weights.norm())


def above(x: float) -> float:
    """Return the probability that a standard normal number is more than x."""
    return float(stats.norm.sf(x))


def any_of(probability: float, times: int) -> float:
    """Return the probability that one of several independent events happens."""
    return -float(np.expm1(times * np.log1p(-probability)))


PROBLEMS = {
    "sum of 10 Gaussians": Problem(
        skewed_sum, Gaussian(torch.zeros(10), 1.0), [3.0, 5.0, 7.0], above,
    ),
    "largest of 5 Gaussians": Problem(
        lambda x: x.amax(1), Gaussian(torch.zeros(5), 1.0), [3.5, 4.5, 7.0],
        lambda level: any_of(above(level), 5),
    ),
    "|x| + |y| of 2 Gaussians": Problem(
        # |x| + |y| is the larger of |x + y| and |x - y|, which are independent.
        lambda x: x.abs().sum(1), Gaussian(torch.zeros(2), 1.0), [5.0, 7.0, 10.0],
        lambda level: any_of(2 * above(level / 2**0.5), 2),
    ),
    "ones among 40 coins": Problem(
        lambda x: x.sum(1), Bernoulli(torch.full((40,), 0.5)), [30.0, 35.0, 40.0],
        lambda level: float(stats.binom(40, 0.5).sf(level - 1)),
    ),
    "shortest way across a bridge": Problem(
        shortest_way, Exponential(BRIDGE), [1.5, 2.0, 3.0], bridge_probability, final=40_000
    ),
}  # fmt: skip


class Row(NamedTuple):
    """Estimates of one probability with many seeds."""

    name: str
    threshold: float
    exact: float
    estimates: Tensor
    errors: Tensor
    held: int
    evaluations: float

    def bias(self) -> float:
        """Deviation of the mean estimate from the truth, in standard errors of the mean."""
        deviation = self.estimates.mean() - self.exact
        return (deviation / (self.errors.mean() / len(self.estimates) ** 0.5)).item()

    def plain(self) -> float:
        """Number of points that plain sampling needs for the same error."""
        return (1 - self.exact) * self.exact / self.errors.square().mean().item()


def experiment(seeds: range) -> list[Row]:
    """Run all problems at all thresholds."""
    rows = []
    total = len(seeds) * sum(len(problem.thresholds) for problem in PROBLEMS.values())
    with tqdm(total=total, unit="estimate", mininterval=5) as bar:
        for name, problem in PROBLEMS.items():
            for threshold in problem.thresholds:
                found: list[RareEvent] = []
                for seed in seeds:
                    one = rare_event(
                        problem.score, threshold, problem.nominal, final=problem.final, seed=seed
                    )
                    found.append(one)
                    bar.update()
                exact = problem.exact(threshold)
                estimates = torch.tensor([f.probability for f in found], dtype=torch.float64)
                errors = torch.tensor([f.standard_error for f in found], dtype=torch.float64)
                held = sum(f.interval[0] <= exact <= f.interval[1] for f in found)
                points = sum(f.evaluations for f in found) / len(seeds)
                rows.append(Row(name, threshold, exact, estimates, errors, held, points))
    return rows


def show(rows: list[Row]) -> str:
    """Return the table."""
    head = f"{'':30}{'level':>6}  {'exact':>10}  {'mean estimate':>13}  {'error of one':>12}"
    lines = [f"{head}  {'held':>6}  {'points':>7}  {'plain':>8}"]
    for r in rows:
        error = (r.errors / r.estimates).mean().item()
        lines.append(
            f"{r.name:30}{r.threshold:6g}  {r.exact:10.4e}  {r.estimates.mean():13.4e}  "
            f"{error:11.1%}   {r.held:>2} / {len(r.errors)}  {r.evaluations:7.0f}  {r.plain():8.1e}"
        )
    return "\n".join(lines)


def impossible() -> RareEvent:
    """Estimate an event that cannot happen."""
    return rare_event(lambda x: x.sum(1), 41.0, PROBLEMS["ones among 40 coins"].nominal)


def claims(rows: list[Row], never: RareEvent) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    tutorial = next(r for r in rows if r.name.endswith("bridge") and r.threshold == 2.0)
    rarest = min(rows, key=lambda r: r.exact)
    runs = len(rows[0].errors)
    # One row of intervals holds at least so many truths, except once in a thousand rows.
    least, of_all = (int(stats.binom(n, HELD).ppf(1e-3)) for n in (runs, runs * len(rows)))
    return {
        "no estimate has a bias: the means are within 4 of their standard errors": all(
            abs(r.bias()) < 4 for r in rows
        ),
        f"of {runs} intervals of 99 % in a row of the table, {least} or more hold the truth": all(
            r.held >= least for r in rows
        ),
        f"and {of_all} or more of all {runs * len(rows)}": sum(r.held for r in rows) >= of_all,
        "the error claimed is less than 5 %, but for the bridge": all(
            (r.errors / r.exact).mean() < 0.05 for r in rows if not r.name.endswith("bridge")
        ),
        "the rarest takes less than a millionth of the points of plain sampling": (
            rarest.evaluations < 1e-6 * rarest.plain()
        ),
        "the bridge at 2 agrees with the tutorial, 1.34e-5 with a relative error of 0.03": (
            abs(tutorial.exact - 1.34e-5) < 2 * 0.03 * 1.34e-5
        ),
        "41 ones among 40 coins have a bound and no number": (
            bool(np.isnan(never.probability)) and 0 < never.bound < 3e-4
        ),
    }


def draw(rows: list[Row], path: Path) -> None:
    """Draw estimates over the truth, errors made over errors claimed, and places of an event."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 3, figsize=(14, 4.6), width_ratios=(3, 2, 2), layout="constrained"
    )
    left, middle, right = axes
    for place, r in enumerate(rows):
        relative = (r.estimates / r.exact).sort().values
        across = place + torch.linspace(-0.35, 0.35, len(relative))
        left.plot(across, relative, ".", markersize=3, color=f"C{place // 3}")
    left.axhline(1, color="black", linewidth=0.8)
    left.set_xticks(range(len(rows)), [f"{r.exact:.0e}" for r in rows], fontsize="x-small")
    left.tick_params(axis="x", rotation=45)
    left.set(xlabel="exact probability", ylabel="estimate / exact")
    left.set_title("Each dot is the estimate of one seed")
    for k, name in enumerate(PROBLEMS):
        left.plot([], [], "o", markersize=4, color=f"C{k}", label=name)
    left.set_ylim(top=1.16)  # room for the names
    left.legend(loc="upper center", ncols=2, fontsize="x-small")
    scores = torch.cat([(r.estimates - r.exact) / r.errors for r in rows])
    middle.hist(scores.clamp(-4, 4), bins=32, range=(-4, 4), density=True, color="0.75")
    x = np.linspace(-4, 4, 201)
    middle.plot(x, stats.norm.pdf(x), color="black", label="normal")
    middle.set(xlabel="(estimate - exact) / standard error", yticks=[])
    middle.set_title(f"{len(scores)} errors, no wider than claimed")
    middle.legend()
    threshold, problem = 7.0, PROBLEMS["|x| + |y| of 2 Gaussians"]
    found = rare_event(problem.score, threshold, problem.nominal)
    points = found.distribution.sample(2000, torch.Generator().manual_seed(0))
    hit = problem.score(points) >= threshold
    right.plot(*points[~hit].T, ".", markersize=2, color="0.75")
    right.plot(*points[hit].T, ".", markersize=2, color="C2")
    right.plot([7, 0, -7, 0, 7], [0, 7, 0, -7, 0], color="black", linewidth=0.8)
    right.set(xlabel="x", ylabel="y", aspect="equal")
    right.set_title(f"Drawn for |x| + |y| > {threshold:g}: all four places")
    save(figure, path, dpi=130)


def main() -> None:
    """Run the experiment; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(10, 1))
    torch.set_num_threads(1)
    rows = experiment(chosen.seeds)
    print(f"{len(chosen.seeds)} estimates each; held: the interval of 99 % has the truth\n")
    print(show(rows))
    never = impossible()
    print(f"\n41 ones among 40 coins: {never.probability}, at most {never.bound:.1e}")
    print(f"{never.message}\n")
    hold(claims(rows, never))
    draw(rows, chosen.picture)


if __name__ == "__main__":
    main()
