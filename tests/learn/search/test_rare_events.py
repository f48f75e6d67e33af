"""Rare events with exact probabilities."""

import math
import re
from pathlib import Path

import pytest
import torch
from scipy import stats

from xent.learn import Bernoulli, Categorical, Gaussian, rare_event
from xent.learn.search.proposals import Proposal
from xent.learn.search.rare_events import _chernoff, _unseen
from xent.learn.search.splitting import Counted, Population

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "rare_events.txt"


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    torch.set_num_threads(1)


def total(x):
    return x.double().sum(1)


def normal(d):
    return Gaussian(torch.zeros(d), 1.0)


def any_of(*probabilities):
    """Return the probability that one of several independent events happens."""
    return -math.expm1(sum(math.log1p(-p) for p in probabilities))


def sum_of_dice(at_least):
    """Return P(sum of five dice >= at_least), faces from 0, by convolution."""
    ways = [1]
    for _ in range(5):
        ways = [sum(ways[max(k - 5, 0) : k + 1]) for k in range(len(ways) + 5)]
    return sum(ways[at_least:]) / 6**5


DICE = Categorical(torch.full((5, 6), 1 / 6))
RELATED = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
TAIL = stats.norm.sf
CASES = {
    "one place": (lambda x: total(x) / 2, normal(4), 5.0, TAIL(5)),
    "two places": (lambda x: x[:, 0].abs(), normal(1), 5.0, 2 * TAIL(5)),
    "five places": (lambda x: x.amax(1), normal(5), 4.5, any_of(*[TAIL(4.5)] * 5)),
    "unlike places": (
        lambda x: torch.maximum(x[:, 0] - 4, -x[:, 0] - 4.9), normal(3), 0.0, TAIL(4) + TAIL(4.9),
    ),
    "a ring of places": (lambda x: x.norm(dim=1), normal(2), 6.0, math.exp(-18)),
    "a place that scores do not lead to": (
        lambda x: torch.maximum(x[:, 0], 5 * (x[:, 1] - 4)), normal(2), 5.0, any_of(*[TAIL(5)] * 2),
    ),
    "scores of 0 and 1": (
        lambda x: (x[:, 0] > 5) | (x[:, 1] < -5), normal(4), 1.0, any_of(*[TAIL(5)] * 2),
    ),
    "related": (lambda x: total(x).abs(), RELATED, 9.0, 2 * TAIL(9 / 3**0.5)),
    "coins": (total, Bernoulli(torch.full((20,), 0.2)), 15.0, stats.binom(20, 0.2).sf(14)),
    "none or all": (
        lambda x: (total(x) - 10).abs(), Bernoulli(torch.full((20,), 0.5)), 10.0, 2 * 0.5**20,
    ),
    "dice": (total, DICE, 24.0, sum_of_dice(24)),
    "common": (total, normal(1), -1.0, TAIL(-1)),
}  # fmt: skip


@pytest.mark.sample(4)
@pytest.mark.parametrize("case", CASES)
def test_estimates_have_no_bias_and_the_errors_they_claim(case):
    score, nominal, threshold, exact = CASES[case]
    found = [rare_event(score, threshold, nominal, seed=seed) for seed in range(3)]
    estimates = torch.tensor([f.probability for f in found], dtype=torch.float64)
    errors = torch.tensor([f.standard_error for f in found], dtype=torch.float64)
    assert abs(estimates.mean() - exact) < 4 * errors.mean() / 3**0.5
    assert ((estimates - exact) / errors).square().sum() < stats.chi2(3).ppf(1 - 1e-4)
    assert sum(f.interval[0] < exact < f.interval[1] for f in found) >= 2
    for f in found:
        assert f.standard_error < 0.06 * f.probability
        assert f.effective > 400
        assert exact < f.bound < 4 * exact + 2e-3
        assert f.levels == sorted(f.levels)
        assert f.levels[-1] == threshold or case == "scores of 0 and 1"
        assert not f.message


def test_in_the_kept_table_the_errors_hold_the_truth():
    text = RESULTS.read_text(encoding="utf-8")
    rows = re.findall(r"^\S.{36} (?:tuned)? +\d+ +\S+ +(\d+) +(\d+) +\d+ +(\d+) ", text, re.M)
    assert len(rows) == text.count("\n") - 1
    for runs, held, none in (map(int, row) for row in rows):
        assert held + none >= stats.binom(runs, 0.99).ppf(1e-4)  # of 100, 95


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_claimed_errors_hold_the_truth_as_often_as_they_say(case):
    score, nominal, threshold, exact = CASES[case]
    found = [rare_event(score, threshold, nominal, seed=seed) for seed in range(100, 106)]
    near = sum(abs(f.probability - exact) <= 2 * f.standard_error for f in found)
    held = sum(f.interval[0] <= exact <= f.interval[1] for f in found)
    # So many of 6 intervals hold the truth, except once in ten thousand times.
    assert near >= stats.binom(6, 0.95).ppf(1e-4)
    assert held >= stats.binom(6, 0.99).ppf(1e-4)


@pytest.mark.slow
def test_rarer_events_take_hardly_more_points_for_the_same_error():
    ratios = []
    for level in (stats.norm.isf(1e-3), stats.norm.isf(1e-9)):
        found = [rare_event(lambda x: total(x) / 2, level, normal(4), seed=s) for s in range(3)]
        ratios.append(sum(f.standard_error / f.probability for f in found))
    assert 1.2 < (ratios[1] / ratios[0]) ** 2 < 3  # points for the same relative error


def test_ten_times_as_many_are_drawn_where_few_tell_little():
    exact = TAIL(3.998) - TAIL(4.002)
    found = rare_event(
        lambda x: -(x[:, 0] - 4).abs(), -0.002, normal(1), population=500, final=2000
    )
    assert found.interval[0] < exact < found.interval[1]
    assert 20 < found.effective < 100
    assert len(found.distribution.sample(10)) == 10
    more = rare_event(lambda x: x[:, 0], 4, normal(1), population=500, final=2000)
    assert more.effective > 100
    assert found.bound < more.bound  # of 2500 nominal points in place of 700


def test_the_same_seed_the_same_estimate():
    score, nominal, threshold, _ = CASES["coins"]
    one, again, other = (rare_event(score, threshold, nominal, seed=s) for s in (3, 3, 4))
    assert one._replace(distribution=None) == again._replace(distribution=None)
    assert one.probability != other.probability


# ---- where the draws cannot tell ----------------------------------------------------------------


def no_number(found, drawn):
    assert math.isnan(found.probability)
    assert math.isnan(found.standard_error)
    assert found.interval == (0.0, found.bound)
    assert found.bound == pytest.approx(1 - 0.05 ** (1 / drawn), rel=1e-9)  # none of them hit
    return found.message


def test_an_impossible_event_has_a_bound_and_no_number():
    found = rare_event(total, 21.0, Bernoulli(torch.full((20,), 0.5)), population=500)
    assert no_number(found, 10_500) == (
        "the scores reach 20, not 21: the event may be impossible, or too rare to be found"
    )


def test_an_event_that_is_never_met_has_a_bound_and_no_number():
    ball = rare_event(lambda x: (x - 9).norm(dim=1) < 0.01, 1.0, normal(3), final=2000)
    assert no_number(ball, 4000).startswith("the scores reach 0, not 1")
    failed = rare_event(lambda x: torch.full((len(x),), -math.inf), 1.0, normal(3), final=2000)
    assert no_number(failed, 4000).startswith("the scores reach -inf, not 1")


def test_more_places_than_are_held_are_no_number():
    """1024 corners; the places that were found have a hundredth of the probability."""
    corners = rare_event(
        lambda x: x.abs().amin(1), 2.0, normal(10), population=200, final=1000, seed=1
    )
    assert math.isnan(corners.probability)
    assert corners.interval[0] <= (2 * TAIL(2)) ** 10 < corners.interval[1]
    assert "it has more places than `population` holds" in corners.message


def test_places_that_only_one_of_two_populations_found_show_that_others_are_missed():
    """7 of 7 dice of 20 faces equal: 20 places, of which no population finds half."""
    dice = Categorical(torch.full((7, 20), 1 / 20))
    found = rare_event(
        lambda x: (x == x[:, :1]).sum(1), 7.0, dice, population=300, final=2000, seed=1
    )
    assert math.isnan(found.probability)
    assert found.interval[0] < 20.0**-6 < found.interval[1]

    even, places = torch.ones(20), torch.arange(20)
    assert _unseen(even, places[:12], places) == 0
    assert math.isinf(_unseen(even, places[:10], places[10:]))
    # 12 and 10 of 20, 8 of them the same: 15 by the count alone, and 20 are not excluded.
    assert 20 / 14 < math.exp(2 * _unseen(even, places[:12], places[4:14])) < 3
    assert _unseen(even, places[:19], places[1:]) < 0.03


def test_the_bound_holds_where_a_place_was_missed():
    """A narrow event that no score leads to, beside a place that is found."""
    needle = 0.5**12

    def score(x):
        return torch.where((x[:, :12] == 1).all(1), 30.0, x[:, 12:].sum(1))

    found = rare_event(score, 12.0, Bernoulli(torch.tensor([0.5] * 12 + [0.2] * 12)), seed=2)
    assert found.bound > needle


def test_all_draws_in_the_event_are_no_certainty():
    found = rare_event(total, -9.0, normal(1))
    assert found.probability == 1
    assert 0 < found.standard_error < 1e-3
    assert found.interval[0] == pytest.approx(0.01 ** (1 / 10_000), rel=1e-9)
    assert found.evaluations == 12_000


@pytest.mark.parametrize(("hits", "n"), [(0, 50), (1, 1000), (30, 100), (99, 100), (100, 100)])
def test_bounds_are_at_least_as_wide_as_exact_ones(hits, n):
    low, high = _chernoff(hits, n, 0.05)
    exact_low = stats.beta(hits, n - hits + 1).ppf(0.05) if hits else 0.0
    exact_high = stats.beta(hits + 1, n - hits).ppf(0.95) if hits < n else 1.0
    assert low <= exact_low * (1 + 1e-9)
    assert high >= exact_high * (1 - 1e-9)
    if hits in (0, n):
        assert (low, high) == pytest.approx((exact_low, exact_high), rel=1e-9)


# ---- what it is made of -------------------------------------------------------------------------


def test_a_population_is_as_drawn_given_the_level():
    counted = Counted(lambda x: x[:, 0])
    for power in (1.0, 1 / 9):
        generator = torch.Generator().manual_seed(3)
        population = Population(normal(3), power, counted, 4000, 0.05, generator)
        assert population.climb(3.0, 800)
        population.cool()
        population.move(5)
        x, rest = population.points[:, 0], population.points[:, 1:]
        given = stats.truncnorm(3, math.inf)
        # Copies are correlated, so a twentieth of the points may differ.
        assert abs(x.mean().item() - given.mean()) < 4 * given.std() / 200**0.5
        assert abs(rest.mean().item()) < 4 / 200**0.5
        assert abs(rest.std().item() - 1) < 4 / 400**0.5


@pytest.mark.parametrize("nominal", [normal(2), RELATED], ids=["independent", "related"])
def test_a_step_leaves_its_distribution_as_it_is(nominal):
    generator = torch.Generator().manual_seed(0)
    x = nominal.sample(20_000, generator)
    y = nominal.step(x, torch.tensor(0.3), generator)
    full = RELATED.covariance if nominal is RELATED else torch.eye(2)
    assert torch.allclose(y.T.cov(), full.double(), atol=0.06)
    # Reversible: a step and its reverse are equally likely.
    there = torch.stack([x[:, 0], y[:, 1]]).cov()[0, 1]
    back = torch.stack([y[:, 0], x[:, 1]]).cov()[0, 1]
    assert abs(there - back) < 0.06


FLAT = {
    "gaussian": Gaussian(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.5])),
    "related": RELATED,
    "coins": Bernoulli(torch.tensor([0.2, 0.001])),
    "dice": Categorical(torch.tensor([[0.1, 0.2, 0.7], [0.0, 0.5, 0.5]])),
}


@pytest.mark.parametrize("name", FLAT)
def test_the_flattened_density_is_a_power(name):
    nominal = FLAT[name]
    x = nominal.sample(50, torch.Generator().manual_seed(0))
    constant = nominal.flatten(0.25).log_prob(x) - 0.25 * nominal.log_prob(x)
    assert torch.allclose(constant, constant[0].expand(50), rtol=1e-12)


def test_a_tilt_is_narrower_by_half_at_most_and_broader_as_far_as_is_sure():
    x = torch.tensor([5.0, 0.0]) + normal(2).sample(4000) * torch.tensor([0.1, 3.0])
    even = torch.ones(4000)
    for nominal in (normal(2), Gaussian(torch.zeros(2), torch.eye(2))):
        tilt = nominal.tilt(x, even)
        variances = tilt.covariance if tilt.covariance.ndim == 1 else tilt.covariance.diagonal()
        assert variances[0] == pytest.approx(0.5, rel=1e-3)  # its axes are those of the sample
        assert 8 < variances[1] < 9
    few = normal(2).tilt(normal(2).sample(10), torch.ones(10))
    assert torch.equal(few.covariance, torch.ones(2, dtype=torch.float64))


def test_a_proposal_is_the_mixture_it_says():
    parts = [Gaussian(torch.tensor([m]), 1.0) for m in (-5.0, 5.0)]
    shares = torch.tensor([0.25, 0.75], dtype=torch.float64)
    proposal = Proposal(normal(1), parts, shares, defensive=0.2, smoothing=0.05)
    x = torch.linspace(-7, 7, 41, dtype=torch.float64)[:, None]
    density = sum(
        share * torch.from_numpy(stats.norm(m, 1).pdf(x[:, 0].numpy()))
        for share, m in ((0.2, -5), (0.6, 5), (0.2, 0))
    )
    assert torch.allclose(proposal.log_prob(x), density.log(), rtol=1e-12)
    assert (proposal.log_weight(x) <= math.log(5)).all()
    drawn = proposal.sample_parts(10_000, torch.Generator().manual_seed(0))
    assert [round(part.mean().item()) for part in drawn] == [-5, 5, 0]
    assert [len(part) for part in drawn] == pytest.approx([2000, 6000, 2000], abs=200)


def test_bad_options():
    cases = [
        ({"smoothing": 1.0}, "`smoothing` must be more than 0"),
        ({"smoothing": 0.0}, "`smoothing` must be more than 0"),
        ({"defensive": 0.0}, "`defensive` must be more than 0"),
        ({"defensive": math.nan}, "`defensive` must be a finite number"),
        ({"final": 1}, "`final` must be a whole number of at least 2"),
        ({"elite": 1.0}, "an `elite` of 1.0"),
        ({"elite": 0.0}, "an `elite` of 0.0"),
        ({"elite": math.nan}, "`elite` must be a finite number"),
        ({"population": 2}, "`population` must be a whole number of at least 3"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            rare_event(total, 3.0, normal(2), **options)
    with pytest.raises(ValueError, match="`threshold` must be a finite number"):
        rare_event(total, math.inf, normal(2))
    with pytest.raises(ValueError, match="`scores` must be numbers"):
        rare_event(lambda x: x[:, 0] * math.nan, 3.0, normal(2))
