"""Robust losses at every margin, at limits of hyperparameters, and their promised properties.

The laws of every loss (tests/house/test_laws.py) run over tests/registry.
"""

import math

import mpmath
import pytest
import torch
from mpmath import mpf

import xent
from tests.helpers import nats_below_top, same_bits, value_and_grad, worst
from tests.registry import settings_of
from tests.registry.formulas import FLOOR
from xent.losses import CATALOG

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

ROBUST = [name for name, member in CATALOG.items() if member.room in ("robust", "noise")]
Z = torch.randn(64, 13, generator=torch.Generator().manual_seed(1)).double() * 3
Y = torch.arange(64) % 13
EXACT_FLOOR = mpmath.log(mpf(10) ** 4)


def log(p):
    return mpmath.log(p)


def share(p, y):
    return log(p[y]) / mpmath.fsum(log(v) for v in p)


# Formulas of the probabilities for 100 digits, so 1 - p may be written as in textbooks.
EXACT = {
    xent.losses.bootstrap_loss: lambda p, y: (
        -mpf(0.95) * log(p[y]) - (1 - mpf(0.95)) * mpmath.fsum(v * log(v) for v in p)
    ),
    xent.losses.hard_bootstrap_loss: lambda p, y: (
        -mpf(0.8) * log(p[y]) - (1 - mpf(0.8)) * log(max(p))
    ),
    xent.losses.generalized_cross_entropy: lambda p, y: (1 - p[y] ** mpf(0.7)) / mpf(0.7),
    xent.losses.truncated_generalized_cross_entropy: lambda p, y: (
        (1 - max(p[y], mpf(0.5)) ** mpf(0.7)) / mpf(0.7)
    ),
    xent.losses.mae_loss: lambda p, y: mpmath.fsum(abs(v - (j == y)) for j, v in enumerate(p)),
    xent.losses.reverse_cross_entropy: lambda p, y: EXACT_FLOOR * (1 - p[y]),
    xent.losses.symmetric_cross_entropy: lambda p, y: (
        -mpf(0.1) * log(p[y]) + EXACT_FLOOR * (1 - p[y])
    ),
    xent.losses.normalized_cross_entropy: share,
    xent.losses.nce_rce_loss: lambda p, y: share(p, y) + EXACT_FLOOR * (1 - p[y]),
    xent.losses.nce_mae_loss: lambda p, y: share(p, y) + 2 * (1 - p[y]),
}
MEMBERS = pytest.mark.parametrize("loss", EXACT, ids=lambda loss: loss.__name__)


def exact(formula, z, y):
    """Return value and gradient of the rows of ``z`` in 100 digits, rounded to float64."""

    def of_logits(*row):
        e = [mpmath.exp(v - max(row)) for v in row]
        return formula([v / mpmath.fsum(e) for v in e], y)

    values, grads = [], []
    with mpmath.workdps(100):
        for row in z.double().tolist():
            row = [mpf(v) for v in row]
            values.append(float(of_logits(*row)))
            order = [tuple(int(j == k) for k in range(len(row))) for j in range(len(row))]
            grads.append([float(mpmath.diff(of_logits, row, n)) for n in order])
    return torch.tensor(values, dtype=torch.float64), torch.tensor(grads, dtype=torch.float64)


def rows_of_margin(*margins):
    """Return rows whose class 0 has these margins above the next class."""
    others = torch.tensor([0.0, -0.75, -4.5])
    return torch.stack([torch.cat([torch.tensor([m]), others]) for m in margins]) + 2.0


@MEMBERS
def test_every_margin_in_float32(loss):
    z = rows_of_margin(-80.0, -40.0, -17.5, -3.0, 0.25, 5.0, 16.0, 33.0, 80.0)
    value, grad = value_and_grad(loss, z, torch.zeros(len(z)).long(), reduction="none")
    true_value, true_grad = exact(EXACT[loss], z, 0)
    assert worst(value, true_value) <= 4
    if "mean" in loss.needs():
        # Normalised losses add p_j / total and -share (C p_j - 1) / total, which nearly cancel for
        # some classes. So the limit is an ulp of the row's largest gradient.
        largest = true_grad.abs().amax(1, keepdim=True)
        small = (grad - true_grad).abs() <= 2 * torch.finfo(grad.dtype).eps * largest
        grad = torch.where(small, true_grad.float(), grad)
    assert worst(grad, true_grad, nats_below_top(z)) <= 8


@MEMBERS
def test_value_and_gradient_in_float64(loss):
    z = torch.cat([rows_of_margin(-20.0, -2.5, 0.5, 20.0).double(), Z[:6, :4]])
    value, grad = value_and_grad(loss, z, torch.zeros(len(z)).long(), reduction="none")
    true_value, true_grad = exact(EXACT[loss], z, 0)
    torch.testing.assert_close(value, true_value, rtol=1e-13, atol=0)
    torch.testing.assert_close(grad, true_grad, rtol=1e-13, atol=1e-16)


@MEMBERS
def test_a_height_that_logits_share_costs_no_digit(loss):
    z = (Z * 1024).round() / 1024  # exact at both heights
    y = Z.argmin(1)
    limit = 1e-13
    if "mean" in loss.needs():  # the mean logit of a row is rounded where it is
        limit = 1e-10
    for a, b in zip(
        value_and_grad(loss, z, y, reduction="none"),
        value_and_grad(loss, z + 2.0**14, y, reduction="none"),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit * 1e-3)


@MEMBERS
@pytest.mark.parametrize("height", [100.0, 1e4])
def test_no_nan_far_out(loss, height):
    z = torch.tensor([[height, -height, 0.0], [-height, height, 0.0], [0.0, 0.0, -torch.inf]])
    for dtype in (torch.float32, torch.float64):
        value, grad = value_and_grad(loss, z.to(dtype), torch.zeros(3).long(), reduction="none")
        assert value.isfinite().all()
        assert grad.isfinite().all()


@MEMBERS
def test_one_class_and_a_masked_target(loss):
    value, grad = value_and_grad(loss, torch.tensor([[3.0]]), torch.tensor([0]))
    assert value == 0
    assert not grad.any()
    value, grad = value_and_grad(loss, torch.tensor([[-torch.inf, 1.0, 0.0]]), torch.tensor([0]))
    far, _ = value_and_grad(loss, torch.tensor([[-1e9, 1.0, 0.0]]), torch.tensor([0]))
    assert value.isfinite() == CATALOG[loss.__name__].bounded
    torch.testing.assert_close(value, far if value.isfinite() else value)
    assert not grad.isnan().any()


@pytest.mark.parametrize("loss", settings_of(*ROBUST), ids=lambda loss: loss.name)
def test_derivatives_of_every_kind(loss):
    z = torch.randn(2, 3, dtype=torch.float64)
    y = torch.tensor([0, 2])

    def rows(x):
        return loss(x, y, reduction="none")

    assert torch.autograd.gradgradcheck(rows, z.requires_grad_())
    z = z.detach()
    jacobian = torch.autograd.functional.jacobian(rows, z)
    tangent = torch.randn_like(z)
    _, slope = torch.func.jvp(rows, (z,), (tangent,))
    torch.testing.assert_close(slope, (jacobian * tangent).sum((1, 2)))
    each = torch.func.vmap(lambda x, t: loss(x, t, reduction="sum"))(z[:, None], y[:, None])
    torch.testing.assert_close(each, rows(z))


# ---- limits ---------------------------------------------------------------------------------


def same(loss, other, scale=1.0, rtol=1e-13, **options):
    a, da = value_and_grad(loss, Z, Y, reduction="none", **options)
    b, db = value_and_grad(other, Z, Y, reduction="none")
    torch.testing.assert_close(a, b * scale, rtol=rtol, atol=0)
    torch.testing.assert_close(da, db * scale, rtol=rtol, atol=1e-15)


def test_limits():
    same(xent.losses.generalized_cross_entropy, xent.cross_entropy, q=0)
    same(xent.losses.generalized_cross_entropy, xent.cross_entropy, q=1e-15, rtol=1e-12)
    same(xent.losses.generalized_cross_entropy, xent.losses.mae_loss, q=1, scale=0.5)
    same(
        xent.losses.truncated_generalized_cross_entropy,
        xent.losses.generalized_cross_entropy,
        threshold=0,
    )
    same(xent.losses.bootstrap_loss, xent.cross_entropy, beta=1)
    same(xent.losses.hard_bootstrap_loss, xent.cross_entropy, beta=1)
    same(xent.losses.reverse_cross_entropy, xent.losses.mae_loss, scale=FLOOR / 2)
    same(xent.losses.symmetric_cross_entropy, xent.cross_entropy, alpha=1, beta=0)
    same(xent.losses.symmetric_cross_entropy, xent.losses.reverse_cross_entropy, alpha=0)
    same(xent.losses.nce_rce_loss, xent.losses.normalized_cross_entropy, beta=0)
    same(xent.losses.nce_rce_loss, xent.losses.reverse_cross_entropy, alpha=0)
    same(xent.losses.nce_mae_loss, xent.losses.mae_loss, alpha=0)
    # Reverse cross-entropy is the mean absolute error in other units: 2 against -log floor.
    same(
        xent.losses.nce_mae_loss, lambda *a, **k: xent.losses.nce_rce_loss(*a, beta=2 / FLOOR, **k)
    )


def test_near_cross_entropy_keeps_its_digits():
    z = torch.tensor([[30.0, 0.0], [36.0, 0.0]])
    for q in (1e-8, 0.3, 1.0):
        value = xent.losses.generalized_cross_entropy(
            z, torch.tensor([0, 0]), q=q, reduction="none"
        )
        truth = [
            float((1 - (1 / (1 + mpmath.exp(-m))) ** mpf(q)) / mpf(q)) for m in (mpf(30), mpf(36))
        ]
        assert worst(value, torch.tensor(truth, dtype=torch.float64)) <= 1


def test_bootstrapping_is_a_target_made_of_label_and_prediction():
    p = torch.softmax(Z, 1)
    hot = torch.nn.functional.one_hot(Y, 13).double()
    mixed = xent.cross_entropy(Z, 0.95 * hot + 0.05 * p, reduction="none")
    torch.testing.assert_close(xent.losses.bootstrap_loss(Z, Y, reduction="none"), mixed)
    soft = torch.softmax(Z.flip(1), 1)
    mixed = xent.cross_entropy(Z, 0.95 * soft + 0.05 * p, reduction="none")
    torch.testing.assert_close(xent.losses.bootstrap_loss(Z, soft, reduction="none"), mixed)
    predicted = torch.nn.functional.one_hot(Z.argmax(1), 13).double()
    mixed = xent.cross_entropy(Z, 0.8 * hot + 0.2 * predicted, reduction="none")
    torch.testing.assert_close(xent.losses.hard_bootstrap_loss(Z, Y, reduction="none"), mixed)


def test_truncation_prunes():
    p = torch.softmax(Z, 1).gather(1, Y[:, None])[:, 0]
    believed = p > 0.2
    assert 0 < believed.sum() < 64
    value, grad = value_and_grad(
        xent.losses.truncated_generalized_cross_entropy, Z, Y, threshold=0.2, reduction="none"
    )
    plain, plain_grad = value_and_grad(
        xent.losses.generalized_cross_entropy, Z, Y, reduction="none"
    )
    assert same_bits(value[believed], plain[believed])
    assert same_bits(grad[believed], plain_grad[believed])
    assert not grad[~believed].any()
    constant = torch.full_like(value, (1 - 0.2**0.7) / 0.7)
    torch.testing.assert_close(value[~believed], constant[~believed])


# ---- facts of the catalog -------------------------------------------------------------------

SYMMETRIC = [loss for loss in EXACT if CATALOG[loss.__name__].symmetric]


def over_labels(loss, z):
    """Return the sum of the losses of all labels, one per row."""
    labels = torch.arange(z.shape[1])
    return sum(loss(z, torch.full((len(z),), int(y)), reduction="none") for y in labels)


@MEMBERS
def test_symmetric_losses_add_up_to_a_constant(loss):
    totals = over_labels(loss, Z)
    constant = bool(((totals - totals[0]).abs() < 1e-12 * totals[0]).all())
    assert constant == CATALOG[loss.__name__].symmetric


def test_the_constants():
    for loss, total in (
        (xent.losses.mae_loss, 2 * 12),
        (xent.losses.reverse_cross_entropy, FLOOR * 12),
        (xent.losses.normalized_cross_entropy, 1.0),
    ):
        torch.testing.assert_close(
            over_labels(loss, Z), torch.full((64,), total, dtype=torch.float64)
        )


@MEMBERS
def test_bounded_losses_have_a_bound(loss):
    z = torch.zeros(3, 5, dtype=torch.float64)
    z[:, 0] = torch.tensor([-50.0, -5000.0, -500000.0])
    value = loss(z, torch.zeros(3).long(), reduction="none")
    assert bool(value[2] <= value[1] * 1.01) == CATALOG[loss.__name__].bounded


@pytest.mark.parametrize("loss", SYMMETRIC, ids=lambda loss: loss.__name__)
def test_uniform_noise_does_not_move_the_slope(loss):
    # Symmetric losses are robust, because noise scales the mean loss and adds a constant.
    matrix = xent.losses.symmetric_noise_matrix(13, 0.4)
    _, clean = value_and_grad(loss, Z, Y, reduction="none")
    noisy = torch.zeros_like(Z)
    for label in range(13):
        _, grad = value_and_grad(loss, Z, torch.full((64,), label), reduction="none")
        noisy += matrix[Y, label].unsqueeze(1) * grad
    torch.testing.assert_close(noisy, (1 - 0.4 * 13 / 12) * clean, rtol=1e-10, atol=1e-14)


@MEMBERS
def test_convexity(loss):
    # A convex function is nowhere above its chords. Short chords find kinks, long ones curvature.
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(20000, 4, generator=generator, dtype=torch.float64) * 3
    step = torch.randn(a.shape, generator=generator, dtype=torch.float64)
    b = a + step * torch.logspace(-1, 1, len(a), dtype=torch.float64).unsqueeze(1)
    at_a, at_b, between = (
        loss(z, torch.zeros(len(a)).long(), reduction="none") for z in (a, b, (a + b) / 2)
    )
    above = (between - (at_a + at_b) / 2).max().item()
    assert (above < 1e-12) == CATALOG[loss.__name__].convex


def test_none_is_proper():
    # At the prediction p the expected loss has a gradient, or another prediction costs less.
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    elsewhere = torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64)
    for loss in EXACT:
        assert not CATALOG[loss.__name__].proper

        def expected(q, loss=loss):
            rows = q.log().expand(3, 3)
            return (p * loss(rows, torch.arange(3), reduction="none")).sum()

        z = p.log().requires_grad_()
        (slope,) = torch.autograd.grad(expected(torch.softmax(z, 0)), z)
        assert slope.abs().max() > 1e-3 or expected(elsewhere) < expected(p)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (xent.losses.bootstrap_loss, {"beta": 1.1}),
        (xent.losses.hard_bootstrap_loss, {"beta": -0.1}),
        (xent.losses.generalized_cross_entropy, {"q": 1.5}),
        (xent.losses.truncated_generalized_cross_entropy, {"threshold": math.nan}),
        (xent.losses.reverse_cross_entropy, {"label_floor": 0.0}),
        (xent.losses.symmetric_cross_entropy, {"alpha": -1.0}),
        (xent.losses.nce_rce_loss, {"beta": math.inf}),
        (xent.losses.nce_mae_loss, {"alpha": "1"}),
    ],
)
def test_hyperparameters_out_of_range(loss, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        loss(Z, Y, **options)
