"""Mixtures of models: their log-probability, and the weights of least cross-entropy."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

import xent
from xent.learn import fit_logit_weights, fit_mixture_weights, mixture_log_prob

F64 = torch.float64
close = torch.testing.assert_close


def draw(members, rows, classes=5, seed=0, sharpness=3.0):
    g = torch.Generator().manual_seed(seed)
    z = sharpness * torch.randn(members, rows, classes, generator=g, dtype=F64)
    return z, torch.randint(classes, (rows,), generator=g)


def of_target(z, y):
    return torch.log_softmax(z, -1)[:, torch.arange(len(y)), y].T  # (N, K)


def best_by_scipy(loss, members):
    """Return the least value that a general solver finds on the simplex."""
    result = minimize(
        lambda w: loss(torch.tensor(w)).item(), [1 / members] * members, method="SLSQP",
        bounds=[(1e-12, 1)] * members, constraints={"type": "eq", "fun": lambda w: sum(w) - 1},
        options={"ftol": 1e-13, "maxiter": 500},
    )  # fmt: skip
    return result.fun


# ---- the log-probability of a mixture -----------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(-2000, 0), st.floats(0.01, 1)), min_size=1, max_size=6),
)
def test_log_prob_against_many_digits(pairs):
    log_p, w = (torch.tensor(column, dtype=F64) for column in zip(*pairs, strict=True))
    w = w / w.sum()
    with mpmath.workdps(60):
        terms = zip(w.tolist(), log_p.tolist(), strict=True)
        truth = float(mpmath.log(mpmath.fsum(mpmath.mpf(a) * mpmath.exp(b) for a, b in terms)))
    assert mixture_log_prob(log_p, w).item() == pytest.approx(truth, rel=1e-14, abs=1e-14)


def test_log_prob_where_nothing_is_left_of_the_probabilities():
    half = torch.tensor([0.5, 0.5])
    assert mixture_log_prob(torch.tensor([-1000.0, -1000.0]), half) == -1000
    assert mixture_log_prob(torch.tensor([-math.inf, -3.0]), half).item() == pytest.approx(
        -3 - math.log(2)
    )
    assert mixture_log_prob(torch.tensor([-math.inf, -math.inf]), half) == -math.inf
    assert mixture_log_prob(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])) == -1


def test_log_prob_of_whole_distributions_and_its_gradient():
    z, _ = draw(3, 7)
    w = torch.tensor([0.5, 0.5, 0.0], dtype=F64)
    log_q = mixture_log_prob(torch.log_softmax(z, -1), w, dim=0)
    close(log_q.exp(), torch.tensordot(w, torch.softmax(z, -1), 1))
    log_p, w = torch.log_softmax(z, -1).requires_grad_(), w.clone().requires_grad_()
    mixture_log_prob(log_p, w, dim=0).sum().backward()
    assert log_p.grad.isfinite().all()
    assert w.grad.isfinite().all()
    inner = torch.tensor([0.2, 0.3, 0.5], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(mixture_log_prob(log_p.detach(), inner, 0).sum(), inner)
    close(
        slope,
        (log_p.detach().exp() / log_p.detach().exp().mul(inner.detach()[:, None, None]).sum(0)).sum(
            (1, 2)
        ),
    )


def test_no_mixture_is_worse_than_the_mean_of_its_members():
    z, y = draw(4, 1000)
    w = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    log_p = of_target(z, y)
    mean = -(log_p @ w)
    arithmetic = -mixture_log_prob(log_p, w)
    geometric = xent.cross_entropy(torch.tensordot(w, z, 1), y, reduction="none")
    assert (arithmetic <= mean + 1e-12).all()
    assert (geometric <= mean + 1e-12).all()


# ---- the best weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("members", [1, 2, 5, 9])
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
@pytest.mark.filterwarnings("ignore:Values in x were outside bounds:RuntimeWarning")  # SciPy 1.15
def test_probability_weights_are_the_best(members, sharpness):
    z, y = draw(members, 80, sharpness=sharpness, seed=members)
    fit = fit_mixture_weights(z, y)
    log_p = of_target(z, y)
    assert fit.gap <= 1e-9
    assert fit.weights.sum().item() == pytest.approx(1, abs=1e-14)
    # Karush, Kuhn and Tucker: 1 for members that count, at most 1 for the others.
    ratio = (log_p.exp() / (log_p.exp() @ fit.weights)[:, None]).mean(0)
    assert ratio.max() <= 1 + 1e-8
    close(
        ratio[fit.weights > 1e-6],
        torch.ones(int((fit.weights > 1e-6).sum()), dtype=F64),
        rtol=0,
        atol=1e-6,
    )
    least = best_by_scipy(lambda w: -(log_p.exp() @ w).log().mean(), members)
    assert fit.cross_entropy <= least + 1e-9
    assert fit.cross_entropy == pytest.approx(-mixture_log_prob(log_p, fit.weights).mean().item())
    assert fit.cross_entropy == pytest.approx(fit_mixture_weights(log_p).cross_entropy, abs=1e-9)


@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_logit_weights_are_the_best(members, sharpness):
    z, y = draw(members, 60, sharpness=sharpness, seed=members)
    fit = fit_logit_weights(z, y)
    assert fit.gap <= 1e-9

    def loss(w):
        return torch.nn.functional.cross_entropy(torch.tensordot(w, z, 1), y)

    assert fit.cross_entropy == pytest.approx(loss(fit.weights).item(), abs=1e-12)
    assert fit.cross_entropy <= best_by_scipy(loss, members) + 1e-9


def test_two_members_by_calculus():
    # -a log(w) - b log(1 - w) is least at w = a / (a + b): each is sure of its own rows.
    log_p = torch.tensor([[0.0, -math.inf]] * 3 + [[-math.inf, 0.0]] * 7, dtype=F64)
    fit = fit_mixture_weights(log_p)
    close(fit.weights, torch.tensor([0.3, 0.7], dtype=F64), rtol=0, atol=1e-9)
    assert fit.cross_entropy == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7))


def test_members_that_add_nothing_get_nothing():
    z, y = draw(4, 300)
    right = 4.0 * torch.nn.functional.one_hot(y, 5)
    z[0] = right + z[0] / 4
    for fit in (fit_mixture_weights(z, y), fit_logit_weights(z, y)):
        assert fit.weights[0] > 0.9
    log_p = of_target(z, y)
    worse = torch.cat([log_p, log_p[:, :1] - 0.5], 1)  # never as good as the first
    assert fit_mixture_weights(worse).weights[-1] == 0


def test_members_that_are_alike():
    z, y = draw(3, 100)
    for fit in (fit_mixture_weights, fit_logit_weights):
        once, twice = fit(z, y), fit(z[[0, 1, 2, 0, 0]], y)
        assert twice.gap <= 1e-9
        assert twice.cross_entropy == pytest.approx(once.cross_entropy, abs=1e-9)
        same = fit(z[[1, 1]], y)
        assert same.cross_entropy == pytest.approx(xent.cross_entropy(z[1], y).item())


def test_rows_far_below_what_exp_can_hold():
    z, y = draw(3, 50)
    log_p = of_target(z, y)
    far = log_p - 1000 * torch.arange(50)[:, None]
    a, b = fit_mixture_weights(log_p), fit_mixture_weights(far)
    close(a.weights, b.weights, rtol=0, atol=1e-6)
    assert b.cross_entropy == pytest.approx(a.cross_entropy + 24_500, abs=1e-6)


def test_ignored_rows_and_other_dtypes():
    z, y = draw(3, 40)
    more = torch.cat([z, 100 * z[:, :5]], 1)
    marked = torch.cat([y, torch.full((5,), -100)])
    for fit in (fit_mixture_weights, fit_logit_weights):
        close(fit(more, marked).weights, fit(z, y).weights)
        close(fit(z.float(), y).weights, fit(z, y).weights, rtol=0, atol=1e-4)


# ---- bad input ----------------------------------------------------------------------------------


def test_bad_input():
    z, y = draw(3, 6)
    for fit in (fit_mixture_weights, fit_logit_weights):
        with pytest.raises(ValueError, match=r"\(K, N, C\)"):
            fit(z[0], y)
        with pytest.raises(ValueError, match=r"\(K, N, C\)"):
            fit(z, y[:-1])
        with pytest.raises(TypeError, match="indices"):
            fit(z, y.double())
        with pytest.raises(TypeError, match="floating"):
            fit(z.long(), y)
        with pytest.raises(ValueError, match="row with a target"):
            fit(z, torch.full_like(y, -100))
        with pytest.raises(ValueError, match="out of bounds"):
            fit(z, y + 5)
        with pytest.raises(ValueError, match=r"finite|NaN"):
            fit(z * math.nan, y)
    with pytest.raises(ValueError, match="impossible"):
        fit_mixture_weights(torch.tensor([[-1.0, -2.0], [-math.inf, -math.inf]]))
    with pytest.raises(ValueError, match="fit_mixture_weights"):
        fit_logit_weights(torch.where(z > 2, -math.inf, z), y)
    for bad in (torch.zeros(3), torch.zeros(0, 2), torch.zeros(2, 3, 4)):
        with pytest.raises(ValueError, match=r"\(N, K\)"):
            fit_mixture_weights(bad)
    with pytest.raises(TypeError, match="members"):
        fit_mixture_weights("members")
    half = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="each of the 3 members"):
        mixture_log_prob(torch.zeros(4, 3), half)
    for w in (torch.tensor([0.5, 0.6]), torch.tensor([1.5, -0.5])):
        with pytest.raises(ValueError, match="sum to 1"):
            mixture_log_prob(torch.zeros(4, 2), w)
    with pytest.raises(TypeError, match="log_probs"):
        mixture_log_prob(torch.zeros(2).long(), half)
