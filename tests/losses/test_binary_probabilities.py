"""Losses of probabilities and of grey pixels."""

import math

import mpmath
import pytest
import torch

import xent
from tests.helpers import HALF, ulps, value_and_grad
from tests.registry import ELEMENTS

BCE = xent.binary_cross_entropy_with_logits
EXCESS = next(loss for loss in ELEMENTS if loss.name == "reconstruction_excess")


# ---- probabilities ------------------------------------------------------------------------------


Q = torch.tensor([1e-300, 1e-9, 0.1, 0.3, 0.5, 0.75, 1 - 1e-9], dtype=torch.float64)
T = torch.tensor([0.0, 1e-9, 0.3, 0.75, 1.0], dtype=torch.float64)


def derivatives_of_probabilities():
    q = Q.repeat(len(T)).requires_grad_()
    t = T.repeat_interleave(len(Q)).requires_grad_()
    value = xent.binary_cross_entropy(q, t, reduction="none")
    dq, dt = torch.autograd.grad(value.sum(), (q, t), create_graph=True)
    dqq, dqt = torch.autograd.grad(dq.sum(), (q, t), retain_graph=True)
    (dtq,) = torch.autograd.grad(dt.sum(), q)
    return [x.detach() for x in (q, t, value, dq, dt, dqq, dqt, dtq)]


def test_probabilities_and_all_their_derivatives():
    q, t, value, dq, dt, dqq, dqt, dtq = derivatives_of_probabilities()
    # dq is the difference of t/q and (1-t)/(1-q).
    terms = torch.maximum(t / q, (1 - t) / (1 - q))
    with mpmath.workdps(60):
        exact = [
            (mpmath.mpf(a), mpmath.mpf(b)) for a, b in zip(q.tolist(), t.tolist(), strict=True)
        ]

        def column(f):
            return torch.tensor([float(f(a, b)) for a, b in exact], dtype=torch.float64)

        log, log1p = mpmath.log, mpmath.log1p
        truth = column(lambda a, b: -b * log(a) - (1 - b) * log1p(-a))
        assert ulps(value, truth).max() <= 4
        assert ((dq - column(lambda a, b: (a - b) / (a * (1 - a)))).abs() <= 1e-15 * terms).all()
        assert ulps(dt, column(lambda a, b: log1p(-a) - log(a))).max() <= 8
        assert ulps(dqq, column(lambda a, b: b / a**2 + (1 - b) / (1 - a) ** 2)).max() <= 4
        mixed = column(lambda a, b: -1 / (a * (1 - a)))
        assert ulps(dqt, mixed).max() <= 4
        assert ulps(dtq, mixed).max() <= 4


def test_at_the_target_the_slope_is_exactly_zero():
    q = torch.rand(200, dtype=torch.float64)
    assert not value_and_grad(xent.binary_cross_entropy, q, q, reduction="none")[1].any()


def test_corners_of_probabilities():
    q = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    t = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5, 0.5])
    value, grad = value_and_grad(xent.binary_cross_entropy, q, t, reduction="none")
    inf = math.inf
    assert value.tolist() == [0, inf, inf, 0, inf, inf]
    assert grad.tolist() == [1, -inf, inf, -1, -inf, inf]


def test_no_hidden_clipping():
    """torch clamps its logarithms at -100, so its gradient vanishes there."""
    z = torch.tensor([-30.0, -50.0, -100.0], dtype=torch.float64, requires_grad=True)
    value = xent.binary_cross_entropy(torch.sigmoid(z), torch.ones_like(z), reduction="none")
    value.sum().backward()
    torch.testing.assert_close(value.detach(), -z.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(z.grad, -torch.ones_like(z), rtol=1e-12, atol=0)


def test_a_clip_is_asked_for_and_lets_the_gradient_through():
    q = torch.tensor([0.0, 1e-9, 0.5, 1.0], dtype=torch.float64)
    t = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    value, grad = value_and_grad(xent.binary_cross_entropy, q, t, eps=1e-6, reduction="none")
    low = -math.log(1e-6)
    truth = torch.tensor([low, low, math.log(2), low], dtype=torch.float64)
    torch.testing.assert_close(value, truth, rtol=1e-10, atol=0)
    slope = torch.tensor([-1e6, -1e6, -2.0, 1e6], dtype=torch.float64)
    torch.testing.assert_close(grad, slope, rtol=1e-10, atol=0)


# ---- excess over the floor ----------------------------------------------------------------------


def test_excess_near_the_floor(engine):
    """Near the floor, cross-entropy minus entropy has no digits left."""
    t = torch.tensor([1e-7, 0.01, 0.3, 0.5, 0.999], dtype=torch.float64)
    near = [1e-12, 1e-8, 1e-4, 1e-2, 0.24, 0.26]
    with mpmath.workdps(80):
        for relative in near:
            logit = torch.logit(t * (1 - relative))
            value = EXCESS(logit, t, reduction="none", engine=engine)
            for v, x, y in zip(value.tolist(), logit.tolist(), t.tolist(), strict=True):
                p, y = 1 / (1 + mpmath.exp(-mpmath.mpf(x))), mpmath.mpf(y)
                truth = y * mpmath.log(y / p) + (1 - y) * mpmath.log((1 - y) / (1 - p))
                # The gap is known with the digits of p, less those in which p and t agree.
                assert abs(v / truth - 1) < 1e-14 + 1e-14 / relative, (relative, y)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_excess_near_the_floor_in_narrow_types(every_engine, dtype):
    """The numbers are those of float64, rounded once, above and below the edge of the series."""
    t = torch.tensor([2.0**-20, 0.01, 0.3, 0.5, 0.984375]).to(dtype).double()
    for relative in (1e-6, 1e-3, 0.2, 0.24, 0.26, 0.3):
        z = torch.logit(t * (1 - relative)).to(dtype)
        value, grad = value_and_grad(EXCESS, z, t.to(dtype), reduction="none", engine=every_engine)
        truth, slope = EXCESS.truth(z, t)
        assert ulps(value, truth).max() <= 0.51
        assert ulps(grad, slope).max() <= 0.51


def test_excess_is_cross_entropy_less_entropy(engine):
    z, t = torch.randn(500, dtype=torch.float64) * 3, torch.rand(500, dtype=torch.float64)
    entropy = -torch.xlogy(t, t) - torch.xlogy(1 - t, 1 - t)
    excess, slope = value_and_grad(EXCESS, z, t, reduction="none", engine=engine)
    truth, same = value_and_grad(BCE, z, t, reduction="none")
    torch.testing.assert_close(excess, truth - entropy, rtol=0, atol=1e-14)
    torch.testing.assert_close(slope, same, rtol=0, atol=1e-14)
    assert (excess >= 0).all()


def test_continuous_bernoulli_is_a_density():
    x = torch.linspace(0, 1, 20001, dtype=torch.float64)
    for z in (-30.0, -1.0, -1e-9, 0.0, 1e-3, 0.999, 1.001, 5.0):
        density = torch.exp(
            -xent.losses.continuous_bernoulli_loss(torch.full_like(x, z), x, reduction="none")
        )
        assert abs(torch.trapezoid(density, x).item() - 1) < 1e-5
    theirs = torch.distributions.ContinuousBernoulli(logits=torch.tensor(1.5).double())
    torch.testing.assert_close(
        xent.losses.continuous_bernoulli_loss(torch.full_like(x, 1.5), x, reduction="none"),
        -theirs.log_prob(x),
    )
