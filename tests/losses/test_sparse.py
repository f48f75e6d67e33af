"""Sparsemax and entmax against exact solutions, closed forms, limits and the entmax package."""

import itertools
import math
from fractions import Fraction

import mpmath
import pytest
import torch
from mpmath import mpf

import xent
from tests.helpers import value_and_grad, worst

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

ALPHAS = [1.05, 1.5, 2.0, 2.5, 4.0, 10.0]


def exact_sparsemax(z):
    """Return the nearest point of the simplex, found over all supports, in fractions."""
    z = [Fraction(v) for v in z]
    best = None
    for n in range(1, len(z) + 1):
        for support in itertools.combinations(range(len(z)), n):
            tau = (sum(z[j] for j in support) - 1) / n
            p = [z[j] - tau if j in support else Fraction(0) for j in range(len(z))]
            distance = sum((a - b) ** 2 for a, b in zip(p, z, strict=True))
            if min(p) >= 0 and (best is None or distance < best[0]):
                best = distance, p
    return best[1]


def exact_entmax(z, alpha):
    """Return probabilities of one row to 60 digits by bisection."""
    with mpmath.workdps(60):
        alpha = mpf(alpha)
        x = [(alpha - 1) * mpf(v) for v in z]

        def p(tau):
            return [max(v - tau, mpf(0)) ** (1 / (alpha - 1)) for v in x]

        low, high = max(x) - 1, max(x)
        for _ in range(220):
            middle = (low + high) / 2
            low, high = (middle, high) if mpmath.fsum(p(middle)) > 1 else (low, middle)
        return p(low)


def exact_rows(z, alpha):
    rows = [[float(v) for v in exact_entmax(row, alpha)] for row in z.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def rounding(p, alpha, size):
    """Return the effect of rounded logits on probabilities, p^(2 - alpha): large for rare ones."""
    return 8e-16 * (1 + size) * torch.where(p > 0, p ** (2 - alpha), 1).clamp(min=1)


def exact_loss(z, q, alpha):
    """Return the Fenchel-Young loss of a row, to 60 digits."""
    with mpmath.workdps(60):
        a = mpf(alpha)
        p = exact_entmax(z, alpha)
        entropy = mpmath.fsum(v**a for v in map(mpf, q)) - mpmath.fsum(v**a for v in p)
        inner = mpmath.fsum((b - mpf(c)) * mpf(v) for b, c, v in zip(p, q, z, strict=True))
        return inner + entropy / (a * (a - 1))


def test_sparsemax_is_the_projection():
    z = torch.randn(30, 5, dtype=torch.float64)
    truth = torch.tensor([[float(v) for v in exact_sparsemax(row)] for row in z.tolist()])
    torch.testing.assert_close(xent.sparsemax(z), truth.double(), rtol=1e-6, atol=1e-6)
    exact = torch.tensor(
        [[float(v) for v in exact_sparsemax(row)] for row in z.tolist()], dtype=torch.float64
    )
    torch.testing.assert_close(xent.sparsemax(z), exact, rtol=1e-14, atol=5e-16)
    assert bool(((xent.sparsemax(z) == 0) == (exact == 0)).all())


@pytest.mark.sample(6)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_entmax_is_exact(alpha, size):
    z = size * torch.randn(8, 6, dtype=torch.float64)
    exact, p = exact_rows(z, alpha), xent.entmax(z, alpha)
    slack = rounding(exact, alpha, size)
    assert bool(((p - exact).abs() <= slack).all())
    assert bool(((p.sum(-1) - 1).abs() <= slack.sum(-1)).all())


@pytest.mark.sample(6)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_the_loss_and_its_gradient_are_exact(alpha, size):
    z = size * torch.randn(6, 5, dtype=torch.float64)
    soft = torch.softmax(torch.randn(6, 5, dtype=torch.float64), -1)
    soft[::3] = xent.sparsemax(3 * soft[::3])  # with zeros
    y = torch.randint(5, (6,))
    hot = torch.nn.functional.one_hot(y, 5).double()
    for target, q in ((y, hot), (soft, soft)):
        value, grad = value_and_grad(
            xent.losses.entmax_loss, z, target, alpha=alpha, reduction="none"
        )
        rows = zip(z.tolist(), q.tolist(), strict=True)
        truth = torch.tensor([float(exact_loss(*row, alpha)) for row in rows], dtype=torch.float64)
        # The sum of a soft target is 1 up to rounding, and the two forms differ by that rounding.
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-15 * (1 + size))
        p = exact_rows(z, alpha)
        assert bool(((grad - (p - q)).abs() <= rounding(p, alpha, size)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 3.0])
def test_every_digit_at_every_margin(alpha, dtype):
    """Two classes have closed forms in the margin; the loss stays accurate as it goes to 0."""
    d = torch.cat(
        [torch.arange(-80, 80.5, 0.5), 1 / max(alpha - 1, 0.01) - torch.logspace(-6, -1, 9)]
    )
    d = d.to(dtype)
    z = torch.stack([d, torch.zeros_like(d)], 1)
    y = torch.zeros(len(d), dtype=torch.int64)
    value, grad = value_and_grad(xent.losses.entmax_loss, z, y, alpha=alpha, reduction="none")

    def exact(margin):
        m = mpf(margin)
        if alpha == 1:
            return mpmath.log1p(mpmath.exp(-m)), 1 / (1 + mpmath.exp(m))
        if abs(m) >= 1 / mpf(alpha - 1):
            other = mpf(m < 0)
        elif alpha == 2:
            other = (1 - m) / 2
        elif alpha == 3:  # p1 - p2 = 2 d (p^2 differs by 2 d) and p1 + p2 = 1
            other = (1 - 2 * m) / 2
        else:  # square roots differ by d / 2
            s = m / 2
            other = ((-s + mpmath.sqrt(2 - s**2)) / 2) ** 2
        a = mpf(alpha)
        entropy = (1 - (1 - other) ** a - other**a) / (a * (a - 1))
        return -other * m + entropy, other

    with mpmath.workdps(80):
        pairs = [exact(v) for v in d.double().tolist()]
    truth = torch.tensor([float(v) for v, _ in pairs], dtype=torch.float64)
    other = torch.tensor([float(p) for _, p in pairs], dtype=torch.float64)
    if dtype == torch.float64:
        near = (d - 1 / max(alpha - 1, 0.01)).abs() < 0.2  # errors grow as 1 / distance
        rtol = 1e-13
        torch.testing.assert_close(value[~near], truth[~near], rtol=rtol, atol=0)
        torch.testing.assert_close(value[near], truth[near], rtol=2e-9, atol=0)
        torch.testing.assert_close(grad[~near, 1], other[~near], rtol=rtol, atol=0)
    else:
        assert worst(value, truth) <= 1
        assert worst(grad[:, 1], other) <= 1
        assert worst(grad[:, 0], -other) <= 1


def test_limits():
    z, y = torch.randn(6, 7, dtype=torch.float64) * 3, torch.randint(7, (6,))
    ce, dce = value_and_grad(xent.cross_entropy, z, y, reduction="none")
    for alpha, tolerance in ((1.0, 1e-14), (1 + 1e-13, 1e-11), (1 + 1e-6, 1e-4)):
        value, grad = value_and_grad(xent.losses.entmax_loss, z, y, alpha=alpha, reduction="none")
        torch.testing.assert_close(value, ce, rtol=tolerance, atol=0)
        torch.testing.assert_close(grad, dce, rtol=tolerance, atol=1e-15)
    torch.testing.assert_close(xent.entmax(z, 1.0), torch.softmax(z, -1), rtol=1e-13, atol=0)
    assert torch.equal(xent.entmax(z, 2.0), xent.sparsemax(z))
    a, b = (f(z, y, reduction="none", **k) for f, k in (
        (xent.losses.sparsemax_loss, {}), (xent.losses.entmax_loss, {"alpha": 2.0})
    ))  # fmt: skip
    assert torch.equal(a, b)
    hard = xent.entmax(z, 1000.0)
    torch.testing.assert_close(hard.amax(-1), torch.ones(6, dtype=torch.float64))


def test_values_by_hand():
    z = torch.tensor([[1.0, 0.5, -1.0]])
    torch.testing.assert_close(xent.sparsemax(z), torch.tensor([[0.75, 0.25, 0.0]]), rtol=0, atol=0)
    equal = torch.zeros(2, 8)
    for alpha in ALPHAS:
        assert torch.equal(xent.entmax(equal, alpha), torch.full((2, 8), 0.125))
    tied = torch.tensor([3.0, 3.0, -50.0])
    assert xent.entmax(tied).tolist() == [0.5, 0.5, 0.0]
    assert xent.sparsemax(torch.tensor([5.0])).tolist() == [1.0]
    assert xent.sparsemax(torch.tensor(5.0)).item() == 1.0


def test_a_margin_is_enough():
    for alpha in (1.5, 2.0, 3.0):
        z = torch.tensor([[1 / (alpha - 1), 0.0, -3.0]], dtype=torch.float64)
        value, grad = value_and_grad(xent.losses.entmax_loss, z, torch.tensor([0]), alpha=alpha)
        assert value == 0
        assert not grad.any()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gradient_adds_up_to_nothing(alpha):
    z, y = 4 * torch.randn(20, 9, dtype=torch.float64), torch.randint(9, (20,))
    _, grad = value_and_grad(xent.losses.entmax_loss, z, y, alpha=alpha, reduction="sum")
    assert grad.sum(-1).abs().max() < 1e-15
    assert (grad.gather(1, y[:, None]) <= 0).all()


@pytest.mark.sample(2)
@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0, 3.0])
def test_entmax_is_differentiable(alpha):
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: xent.entmax(x, alpha), z, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: xent.entmax(x, alpha), z)
    p = xent.entmax(z.detach(), alpha)
    s = torch.where(p > 0, p ** (2 - alpha), 0)
    truth = torch.diag_embed(s) - s[:, :, None] * s[:, None, :] / s.sum(-1)[:, None, None]
    found = torch.func.vmap(torch.func.jacrev(lambda x: xent.entmax(x, alpha)))(z.detach())
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-14)


def test_a_learned_target_gets_its_gradient():
    z = torch.randn(3, 4, dtype=torch.float64)
    # Softmax keeps the targets inside the simplex, where derivatives exist.
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for alpha in (1.0, 1.5, 2.0, 3.0):
        assert torch.autograd.gradcheck(
            lambda v, a=alpha: xent.losses.entmax_loss(z, torch.softmax(v, -1), alpha=a), logits
        )


def test_masks_axes_and_types():
    z = torch.randn(2, 5, 3, dtype=torch.float64)
    z[:, 2] = -math.inf
    for function in (xent.sparsemax, xent.entmax, xent.tempered_softmax):
        p = function(z, dim=1)
        fewer = function(z[:, [0, 1, 3, 4]], dim=1)
        torch.testing.assert_close(p[:, [0, 1, 3, 4]], fewer, rtol=1e-13, atol=1e-15)
        assert not p[:, 2].any()
        assert function(torch.full((2, 3), -math.inf)).isnan().all()
        assert function(torch.empty(0, 3)).shape == (0, 3)
        assert function(z.to(torch.bfloat16), dim=1).dtype == torch.bfloat16
        assert function(z.float().to(torch.float16), dim=1).dtype == torch.float16


def test_bad_input():
    for function in (xent.sparsemax, xent.entmax):
        with pytest.raises(TypeError, match="floating-point"):
            function(torch.tensor([1, 2]))
        with pytest.raises(ValueError, match="dim"):
            function(torch.randn(3), dim=1)
    for alpha in (0.9, math.inf, "2"):
        with pytest.raises(ValueError, match="alpha"):
            xent.entmax(torch.randn(3), alpha)
        with pytest.raises(ValueError, match="alpha"):
            xent.losses.entmax_loss(torch.randn(2, 3), torch.tensor([0, 1]), alpha=alpha)


def test_the_entmax_package_agrees():
    peer = pytest.importorskip("entmax")
    z, y = 2 * torch.randn(20, 30, dtype=torch.float64), torch.randint(30, (20,))
    torch.testing.assert_close(xent.sparsemax(z), peer.sparsemax(z), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(xent.entmax(z), peer.entmax15(z), rtol=1e-12, atol=1e-15)
    for alpha in (1.2, 2.5):
        theirs = peer.entmax_bisect(z, alpha, n_iter=100)
        torch.testing.assert_close(xent.entmax(z, alpha), theirs, rtol=1e-11, atol=1e-14)
    for ours, theirs in (
        (xent.losses.sparsemax_loss, peer.sparsemax_loss),
        (xent.losses.entmax_loss, peer.entmax15_loss),
    ):
        a, da = value_and_grad(ours, z, y, reduction="none")
        b, db = value_and_grad(theirs, z, y)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(da, db, rtol=1e-12, atol=1e-14)
