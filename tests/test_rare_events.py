"""Rare events beside their exact probabilities."""

import math

import pytest
import torch
from scipy import stats

from xent.learn import Bernoulli, Categorical, Gaussian, rare_event


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    torch.set_num_threads(1)


def total(x):
    return x.double().sum(1)


DICE = Categorical(torch.full((10, 6), 1 / 6))  # faces from 0


def sum_of_dice(at_least):
    """P(sum of ten dice >= at_least), by convolution."""
    ways = [1]
    for _ in range(10):
        ways = [sum(ways[max(k - 5, 0) : k + 1]) for k in range(len(ways) + 5)]
    return sum(ways[at_least:]) / 6**10


CASES = {
    "gaussian": (lambda x: total(x) / 2, Gaussian(torch.zeros(4), 1.0), 5.0, stats.norm.sf(5)),
    "correlated": (
        total, Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]])), 9.0,
        stats.norm.sf(9 / 3**0.5),
    ),
    "coins": (total, Bernoulli(torch.full((20,), 0.2)), 15.0, stats.binom(20, 0.2).sf(14)),
    "dice": (total, DICE, 45.0, sum_of_dice(45)),
    "common": (total, Gaussian(torch.zeros(1), 1.0), -1.0, stats.norm.sf(-1)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_estimates_have_no_bias_and_the_errors_they_claim(case):
    score, nominal, threshold, exact = CASES[case]
    found = [rare_event(score, threshold, nominal, seed=seed) for seed in range(20)]
    estimates = torch.tensor([f.probability for f in found], dtype=torch.float64)
    errors = torch.tensor([f.standard_error for f in found], dtype=torch.float64)
    assert abs(estimates.mean() - exact) < 4 * errors.mean() / 20**0.5
    ratio = ((estimates - exact) / errors).square().mean().item()
    assert stats.chi2(20).ppf(1e-4) < 20 * ratio < stats.chi2(20).ppf(1 - 1e-4)
    for f in found:
        assert f.standard_error < 0.1 * f.probability
        assert f.effective > 100
        assert f.levels[-1] == threshold
        assert f.levels == sorted(f.levels)
        population = max(1000, 100 * len(nominal.centre))
        assert f.evaluations == population * len(f.levels) + 10_000


def test_all_dimensions_are_paid_for():
    found = rare_event(total, 75.0, Bernoulli(torch.full((100,), 0.5)), seed=1)
    assert found.evaluations == 10_000 * len(found.levels) + 10_000
    assert abs(found.probability - stats.binom(100, 0.5).sf(74)) < 4 * found.standard_error


def test_rarer_events_take_twice_the_points_for_the_same_error():
    nominal, ratios = Gaussian(torch.zeros(4), 1.0), []
    for level in (stats.norm.isf(1e-3), stats.norm.isf(1e-9)):
        found = [rare_event(lambda x: total(x) / 2, level, nominal, seed=s) for s in range(4)]
        ratios.append(sum(f.standard_error / f.probability for f in found))
    assert 1.5 < (ratios[1] / ratios[0]) ** 2 < 2.5  # points for the same relative error


def test_the_same_seed_the_same_estimate():
    score, nominal, threshold, _ = CASES["coins"]
    one, again, other = (rare_event(score, threshold, nominal, seed=s) for s in (3, 3, 4))
    assert one[:5] == (*again[:4], one[4])
    assert one.probability != other.probability


def test_bad_options():
    nominal = Gaussian(torch.zeros(2), 1.0)
    cases = [
        ({"smoothing": 1.0}, "`smoothing`"),
        ({"final": 1}, "`final` must be a whole number of at least 2"),
        ({"elite": 1.0}, "an `elite` of 1.0"),
        ({"elite": 0.0}, "an `elite` of 0.0"),
        ({"elite": math.nan}, "`elite` must be a finite number"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            rare_event(total, 3.0, nominal, **options)
    with pytest.raises(ValueError, match="`threshold` must be a finite number"):
        rare_event(total, math.inf, nominal)
    with pytest.raises(ValueError, match="`scores` must be numbers"):
        rare_event(lambda x: x[:, 0] * math.nan, 3.0, nominal)
    with pytest.raises(ValueError, match=r"the scores reach \S+, not 21: the event may be impo"):
        rare_event(total, 21.0, Bernoulli(torch.full((20,), 0.5)))
