"""The cross-entropy method: fits that are minima of a cross-entropy, and the search itself."""

import io
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import xent
from xent.learn import Bernoulli, Categorical, CrossEntropyMethod, Gaussian


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    torch.set_num_threads(1)


def points(n, d=3):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


COVARIANCE = torch.tensor([[2.0, 0.6, 0.1], [0.6, 1.0, -0.3], [0.1, -0.3, 0.5]])
FAMILIES = {
    "diagonal": Gaussian(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 4.0, 0.25])),
    "full": Gaussian(torch.tensor([1.0, -2.0, 0.5]), COVARIANCE),
    "bits": Bernoulli(torch.tensor([0.2, 0.5, 0.9])),
    "choices": Categorical(torch.tensor([[0.2, 0.3, 0.5], [0.7, 0.1, 0.2], [0.1, 0.1, 0.8]])),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


# ---- distributions ------------------------------------------------------------------------------


def test_log_prob_is_that_of_scipy():
    x = points(5).numpy()
    for kind in ("diagonal", "full"):
        ours = FAMILIES[kind]
        cov = ours.covariance.diag() if ours.covariance.ndim == 1 else ours.covariance
        expected = stats.multivariate_normal(ours.mean.numpy(), cov.numpy()).logpdf(x)
        np.testing.assert_allclose(ours.log_prob(torch.tensor(x)), expected, rtol=1e-12)
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    p = FAMILIES["bits"].probability.numpy()
    expected = stats.bernoulli(p).logpmf(bits.numpy()).sum(1)
    np.testing.assert_allclose(FAMILIES["bits"].log_prob(bits), expected, rtol=1e-12)


def test_probabilities_of_all_points_sum_to_one():
    for kind, values in (("bits", [0.0, 1.0]), ("choices", [0, 1, 2])):
        every = torch.tensor(list(itertools.product(values, repeat=3)))
        assert FAMILIES[kind].log_prob(every).exp().sum().item() == pytest.approx(1, abs=1e-14)


def test_what_cannot_be_drawn_has_no_probability():
    assert Bernoulli(torch.tensor([0.0, 1.0])).log_prob(torch.eye(2)[1:]).item() == 0
    assert Bernoulli(torch.tensor([0.0, 1.0])).log_prob(torch.eye(2)[:1]).item() == -math.inf
    sure = Categorical(torch.tensor([[1.0, 0.0]]))
    assert sure.log_prob(torch.tensor([[0], [1]])).tolist() == [0, -math.inf]
    nowhere = torch.tensor([[0.5], [-1.0], [2.0]])
    even = Categorical(torch.tensor([[0.5, 0.5]])), Bernoulli(torch.tensor([0.5]))
    for family in even:
        assert family.log_prob(nowhere).tolist() == [-math.inf] * 3


def test_samples_have_the_moments_of_the_distribution(family):
    n = 40_000
    x = family.sample(n, torch.Generator().manual_seed(3)).double()
    assert x.shape == (n, 3)
    if isinstance(family, Gaussian):
        cov = family.covariance if family.covariance.ndim == 2 else family.covariance.diag()
        torch.testing.assert_close(x.mean(0), family.mean, atol=0.05, rtol=0)
        torch.testing.assert_close(x.T.cov(), cov, atol=0.1, rtol=0)
    else:
        torch.testing.assert_close(family.fit(x).probability, family.probability, atol=0.02, rtol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_fit_is_the_least_cross_entropy_of_the_family(family, weighted):
    x = family.sample(40, torch.Generator().manual_seed(5))
    w = torch.rand(40, dtype=torch.float64) if weighted else torch.ones(40, dtype=torch.float64)
    fitted = family.fit(x, w if weighted else None)

    def loss(distribution):
        return -(w * distribution.log_prob(x)).sum().item()

    least = loss(fitted)
    others = [family.fit(x[k:], w[k:]) for k in range(1, 8)]
    others += [fitted.blend(family, share) for share in (1e-3, 0.1, 1)]
    assert all(loss(other) > least for other in others)


def test_a_weight_is_a_repetition(family):
    x = family.sample(6, torch.Generator().manual_seed(6))
    times = torch.tensor([3, 0, 1, 2, 0, 1])
    once, again = family.fit(x, times), family.fit(x.repeat_interleave(times, 0))
    for name, value in once.parameters().items():
        torch.testing.assert_close(value, again.parameters()[name], rtol=1e-12, atol=1e-14)


def test_a_singular_covariance_draws_in_its_plane_and_has_no_density():
    plane = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 1.0]])  # two points, three dimensions
    fitted = FAMILIES["full"].fit(plane)
    x = fitted.sample(100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x[:, 1], 2 * x[:, 0], atol=1e-7, rtol=0)
    torch.testing.assert_close(x[:, 2], torch.ones(100, dtype=x.dtype), atol=1e-7, rtol=0)
    with pytest.raises(ValueError, match="singular"):
        fitted.log_prob(plane)
    assert fitted.widen(0.1).log_prob(plane).isfinite().all()
    with pytest.raises(ValueError, match="singular"):
        Gaussian(torch.zeros(2), torch.tensor([1.0, 0.0])).log_prob(torch.zeros(1, 2))


def test_centre_and_spread():
    assert FAMILIES["full"].spread == pytest.approx(2**0.5)
    assert FAMILIES["bits"].centre.tolist() == [0, 0, 1]
    assert FAMILIES["bits"].spread == 0.5
    assert FAMILIES["choices"].centre.tolist() == [2, 0, 2]
    assert Bernoulli(torch.tensor([0.0, 1.0])).spread == 0


def test_distributions_that_are_none():
    nan = torch.tensor([math.nan])
    cases = [
        (lambda: Gaussian(nan, 1.0), "`mean` must hold finite"),
        (lambda: Gaussian(torch.zeros(()), 1.0), r"`mean` must have shape \(d,\)"),
        (lambda: Gaussian(torch.zeros(3), torch.ones(2)), r"shape \(3,\) or \(3, 3\)"),
        (lambda: Gaussian(torch.zeros(3), -1.0), "no negative variance"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 1], [0, 1]])), "symmetric"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 2], [2, 1]])), "negative eigenvalue"),
        (lambda: FAMILIES["full"].log_prob(points(2, 4)), r"`x` must have shape \(n, 3\)"),
        (lambda: FAMILIES["diagonal"].log_prob(points(2, 1)), r"`x` must have shape \(n, 3\)"),
        (lambda: FAMILIES["bits"].log_prob(points(2, 1)), r"`x` must have shape \(n, 3\)"),
        (lambda: FAMILIES["full"].fit(points(0)), "`elite` must hold at least one point"),
        (lambda: Bernoulli(torch.tensor([1.1])), "from 0 to 1"),
        (lambda: Categorical(torch.tensor([0.5, 0.5])), r"shape \(d, k\)"),
        (lambda: Categorical(torch.tensor([[0.5, 0.4]])), "sum to 1"),
        (lambda: FAMILIES["bits"].fit(points(2)), "must hold bits"),
        (lambda: FAMILIES["choices"].fit(torch.tensor([[0, 1, 3]])), "integers from 0 to 2"),
        (lambda: FAMILIES["full"].fit(points(2, 4)), r"`elite` must have shape \(n, 3\)"),
        (lambda: FAMILIES["full"].fit(points(2), torch.zeros(2)), "not all 0"),
        (lambda: FAMILIES["full"].fit(points(2), torch.tensor([1.0, -1])), "none negative"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


# ---- the search ---------------------------------------------------------------------------------


def bowl(x):
    return -(x - torch.tensor([3.0, -1.0, 2.0])).square().sum(1)


@pytest.mark.parametrize("covariance", [25.0, 25 * torch.eye(3)], ids=["diagonal", "full"])
def test_it_finds_the_top_of_a_bowl(covariance):
    search = CrossEntropyMethod(Gaussian(torch.zeros(3), covariance), elite=0.2)
    found = search.run(bowl, 100, quiet=True)
    assert search.stop()
    torch.testing.assert_close(found.centre, torch.tensor([3.0, -1, 2]).double(), atol=1e-5, rtol=0)
    assert found.score == bowl(found.best[None]).item()
    assert found.evaluations == 100 * len(found.history)
    down = CrossEntropyMethod(Gaussian(torch.zeros(3), covariance), elite=0.2, maximize=False)
    mirrored = down.run(lambda x: -bowl(x), 100, quiet=True)
    assert torch.equal(mirrored.centre, found.centre)
    assert mirrored.score == -found.score
    for there, here in zip(mirrored.history, found.history, strict=True):
        assert there[:3] == tuple(-x for x in here[:3])


def test_a_full_covariance_follows_a_valley_that_a_diagonal_one_does_not():
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / 2**0.5

    def valley(x):  # long and narrow, across the coordinates
        u = (x - 8) @ turn
        return u[:, 0] ** 2 * 1e4 + u[:, 1] ** 2

    for seed in range(3):
        means = []
        for covariance in (100 * torch.eye(2), 100.0):
            start = Gaussian(torch.zeros(2), covariance)
            search = CrossEntropyMethod(start, elite=0.2, maximize=False, seed=seed)
            means.append(search.run(valley, 40, quiet=True).history[-1].mean)
        assert means[0] < 1e-6 < 1e-3 < means[1]


def test_bits_and_choices_are_found():
    goal = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])
    search = CrossEntropyMethod(Bernoulli(torch.full((8,), 0.5)), smoothing=0.3)
    found = search.run(lambda x: (x == goal).sum(1), 60, quiet=True)
    assert torch.equal(found.best.long(), goal)
    assert torch.equal(found.centre.long(), goal)
    goal = torch.tensor([3, 1, 0, 2, 2])
    search = CrossEntropyMethod(Categorical(torch.full((5, 4), 0.25)))
    found = search.run(lambda x: (x == goal).sum(1).tolist(), 60, quiet=True)
    assert torch.equal(found.best, goal)
    assert search.stop()


def test_one_update_by_hand():
    start = Gaussian(torch.zeros(1), 9.0)
    search = CrossEntropyMethod(
        start, population=5, elite=2, smoothing=0.25, noise=lambda t: max(5 - t / 10, 0)
    )
    x = torch.tensor([[0.0], [1.0], [2.0], [5.0], [-1.0]])
    search.tell(x, [0.0, 4.0, 1.0, 4.0, -math.inf])
    # The elite are 1 and 5: mean 3, variance 4; a quarter of the old; 4.9 on top.
    assert search.distribution.mean.item() == pytest.approx(0.75 * 3)
    assert search.distribution.covariance.item() == pytest.approx(0.75 * 4 + 0.25 * 9 + 4.9)
    found = search.result()
    assert (found.best.item(), found.score) == (1.0, 4.0)  # the first of two equals
    assert found.history[0][:3] == (4.0, 4.0, -math.inf)


def test_the_elite_is_a_share_rounded_up_or_a_number():
    start = Gaussian(torch.zeros(1), 1.0)
    for population, elite, count in ((30, 0.1, 3), (25, 0.1, 3), (50, 0.2, 10), (7, 5, 5)):
        search = CrossEntropyMethod(start, population=population, elite=elite)
        assert search.elite == count
    for population, elite in ((10, 0.1), (10, 1), (10, 10), (10, 1.0), (10, 0.0)):
        with pytest.raises(ValueError, match="it must be at least 2"):
            CrossEntropyMethod(start, population=population, elite=elite)


def test_points_that_failed_are_never_fitted_to():
    search = CrossEntropyMethod(Gaussian(torch.zeros(1), 1.0), population=4, elite=3)
    x = torch.tensor([[1.0], [3.0], [50.0], [60.0]])
    search.tell(x, [1.0, 2.0, -math.inf, -math.inf])
    assert search.distribution.mean.item() == 2
    before = search.state_dict()
    for scores, left in (([-math.inf] * 4, 0), ([9.0] + [-math.inf] * 3, 1)):
        with pytest.raises(ValueError, match=f"{left} of 4 points did not fail"):
            search.tell(x, scores)
    with pytest.raises(ValueError, match="`points` must be the 4 that `ask` gave, got 3"):
        search.tell(x[:3], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="must hold finite"):
        search.tell(x * math.nan, [9.0] * 4)  # a point of NaN must not become the best
    after = search.state_dict()
    assert {k: str(v) for k, v in after.items()} == {k: str(v) for k, v in before.items()}
    search.tell(x.numpy(), np.array([5.0, 6.0, 0.0, 0.0]))
    assert search.result().best.item() == 3


def test_a_schedule_of_noise_that_falls_below_zero_says_when():
    search = CrossEntropyMethod(Gaussian(torch.zeros(3), 1.0), noise=lambda t: 3.0 - t)
    with pytest.raises(ValueError, match=r"`noise` must be at least 0, got -1\.0 in iteration 4"):
        search.run(bowl, 9, quiet=True)
    assert search.iteration == len(search.result().history) == 3


def test_ctrl_c_then_resume_to_the_same_bits():
    def make():
        return CrossEntropyMethod(
            Gaussian(torch.zeros(3), 4 * torch.eye(3)), smoothing=0.1, noise=lambda t: 1 / t, seed=7
        )

    whole = make()
    expected = whole.run(bowl, 12, quiet=True)
    first = make()
    first.run(bowl, 5, quiet=True)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = make()
    second.load_state_dict(torch.load(file, weights_only=True))
    found = second.run(bowl, 12, quiet=True)
    assert torch.equal(found.centre, expected.centre)
    assert torch.equal(found.best, expected.best)
    assert found.history == expected.history
    assert found.evaluations == expected.evaluations
    assert torch.equal(second.ask(), whole.ask())
    other = CrossEntropyMethod(Gaussian(torch.zeros(2), 1.0))
    with pytest.raises(ValueError, match=r"mean \(3,\), covariance \(3, 3\), this Gaussian has"):
        other.load_state_dict(first.state_dict())
    state = first.state_dict()
    before = other.ask()
    other = CrossEntropyMethod(Gaussian(torch.zeros(2), 1.0))
    for broken in ([], {}, {**state, "generator": torch.zeros(3)}, {**state, "history": [[1.0]]}):
        with pytest.raises(ValueError, match="`state` is not what `state_dict` gave"):
            other.load_state_dict(broken)
    assert torch.equal(other.ask(), before)


def test_it_stops_at_a_target_and_shows_progress(capsys):
    search = CrossEntropyMethod(Gaussian(torch.zeros(3), 4.0))
    found = search.run(bowl, 100, target=-0.5)
    assert found.history[-1].mean >= -0.5 > found.history[-2].mean
    assert "best" in capsys.readouterr().err
    assert search.run(bowl, 100, target=-0.5).evaluations == found.evaluations  # it is met
    capsys.readouterr()
    seen = []
    down = CrossEntropyMethod(Gaussian(torch.zeros(3), 4.0), maximize=False)
    options = {"target": 0.5, "quiet": True, "callback": seen.append}
    assert down.run(lambda x: -bowl(x), 100, **options).evaluations == found.evaluations
    assert [r.evaluations for r in seen] == [100 * k for k in range(1, len(found.history) + 1)]
    search.run(bowl, 100, quiet=True)
    assert capsys.readouterr().err == ""


def test_it_leaves_the_random_numbers_of_others_alone():
    before = torch.get_rng_state()
    for family in FAMILIES.values():
        CrossEntropyMethod(family).run(lambda x: x.double().sum(1), 3, quiet=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_options_and_scores():
    start = Gaussian(torch.zeros(2), 1.0)
    cases = [
        ({"population": 2}, "`population` must be a whole number of at least 3"),
        ({"population": 10.0}, "`population` must be a whole number"),
        ({"elite": math.nan}, "`elite` must be a finite number"),
        ({"smoothing": 1.0}, "`smoothing` must be at least 0 and less than 1"),
        ({"noise": -1.0}, "`noise` must be at least 0"),
        ({"noise": lambda t: math.nan}, "`noise` must be a finite number"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            CrossEntropyMethod(start, **options)
    with pytest.raises(TypeError, match="`smoothing` keeps them from 0 and 1"):
        CrossEntropyMethod(FAMILIES["bits"], noise=4.0)
    for maximize, worst in ((True, "-inf"), (False, "inf")):
        search = CrossEntropyMethod(start, population=4, elite=2, maximize=maximize)
        x = search.ask()
        for scores in ([1.0, math.nan, 0.0, math.nan], [1, -float(worst), 0, -float(worst)]):
            with pytest.raises(ValueError, match=f"{worst} for points that failed.* points 1, 3"):
                search.tell(x, scores)
        with pytest.raises(ValueError, match=r"each of the 4 points, shape \(4,\); got \(3,\)"):
            search.tell(x, [1.0, 2.0, 3.0])
        assert search.iteration == 0


def test_the_fit_of_choices_is_the_minimum_of_cross_entropy_by_gradient():
    elite = torch.tensor([[0, 2], [1, 2], [0, 1], [0, 2]])
    fitted = Categorical(torch.full((2, 3), 1 / 3)).fit(elite).probability
    logits = fitted.clamp(min=1e-12).log().requires_grad_()
    loss = xent.cross_entropy(logits.expand(4, -1, -1).movedim(2, 1), elite)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-11
