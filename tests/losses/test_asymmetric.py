"""Losses that noise misleads less: limits, digits of sure rows, and what asymmetry promises."""

import mpmath
import pytest
import torch
from mpmath import mpf

import xent
from tests.helpers import nats_below_top, value_and_grad, worst
from xent.losses import agce_loss, aul_loss, phuber_loss

MARGINS = (-60.0, -12.0, 0.25, 8.0, 16.0, 40.0, 70.0)


def agce(p, a=1, q=2):
    return ((mpf(a) + 1) ** mpf(q) - (mpf(a) + p) ** mpf(q)) / mpf(q)


def aul(p, a=1.5, q=0.9):
    return ((mpf(a) - p) ** mpf(q) - (mpf(a) - 1) ** mpf(q)) / mpf(q)


def phuber(p, tau=10):
    return -mpmath.log(p) if p > 1 / mpf(tau) else 1 + mpmath.log(tau) - tau * p


CASES = {
    "agce": (agce_loss, agce, {}),
    "agce of a root": (agce_loss, agce, {"a": 0.25, "q": 0.5}),
    "aul": (aul_loss, aul, {}),
    "aul of a square": (aul_loss, aul, {"a": 6.25, "q": 2.0}),
    "phuber": (phuber_loss, phuber, {}),
    "phuber of 2": (phuber_loss, phuber, {"tau": 2.0}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_digit_of_every_margin(name, dtype):
    loss, formula, options = CASES[name]
    z = torch.tensor([[m, 0.0, -0.75] for m in MARGINS], dtype=dtype)
    y = torch.zeros(len(z)).long()
    value, grad = value_and_grad(loss, z, y, reduction="none", **options)
    true_value, true_slope = [], []
    with mpmath.workdps(80):
        rest = mpmath.log(1 + mpmath.exp(mpf(-0.75)))

        def of_margin(m):
            return formula(1 / (1 + mpmath.exp(rest - m)), **options)

        for m in MARGINS:
            true_value.append(float(of_margin(mpf(m))))
            true_slope.append(float(mpmath.diff(of_margin, mpf(m), h=mpf(10) ** -25)))
    nats = nats_below_top(z).amax(1)
    assert worst(value, torch.tensor(true_value, dtype=torch.float64), nats) <= 8
    slope = torch.tensor(true_slope, dtype=torch.float64)
    torch.testing.assert_close(
        grad[:, 0].double(), slope, rtol=200 * torch.finfo(dtype).eps, atol=1e-30
    )


def test_exponent_1_is_half_the_mean_absolute_error():
    z, y = 3 * torch.randn(30, 5, dtype=torch.float64), torch.randint(5, (30,))
    half = xent.losses.mae_loss(z, y, reduction="none") / 2
    for loss in (agce_loss, aul_loss):
        for a in (1.5, 40.0):
            found = loss(z, y, a=a, q=1.0, reduction="none")
            torch.testing.assert_close(found, half, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("loss", "options"), [(agce_loss, {}), (aul_loss, {"a": 6.0, "q": 1.5})])
def test_the_most_likely_label_wins(loss, options):
    """With weights of the labels, certainty of the most likely one costs less than anything."""
    z = torch.cat([4 * torch.randn(500, 3), 60 * torch.eye(3)]).double()
    each = [loss(z, torch.full((503,), c), reduction="none", **options) for c in range(3)]
    costs = 0.6 * each[0] + 0.3 * each[1] + 0.1 * each[2]
    assert costs.argmin() == 500


def test_huberised_cross_entropy_is_smooth_at_the_bend():
    tau = 4.0
    p = torch.tensor([0.25 - 1e-9, 0.25 + 1e-9], dtype=torch.float64)
    z = torch.stack([torch.logit(p), torch.zeros(2)], 1)
    value, grad = value_and_grad(phuber_loss, z, torch.zeros(2).long(), tau=tau, reduction="none")
    torch.testing.assert_close(value[0], value[1], rtol=1e-7, atol=0)
    torch.testing.assert_close(grad[0], grad[1], rtol=1e-7, atol=0)


def test_parameters_out_of_range_are_refused():
    z, y = torch.zeros(1, 2), torch.tensor([0])
    for loss, options, name in (
        (phuber_loss, {"tau": 1.0}, "tau"), (agce_loss, {"a": 0.0}, "a"),
        (aul_loss, {"a": 1.0}, "a"), (aul_loss, {"q": 0.0}, "q"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"`{name}` must be greater than"):
            loss(z, y, **options)
