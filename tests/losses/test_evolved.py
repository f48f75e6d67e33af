"""The evolved losses against their published formulas, written out class by class."""

import math

import mpmath
import pytest
import torch

import xent
from tests.helpers import nats_below_top, value_and_grad, widest
from tests.registry import settings_of
from tests.registry.formulas import ALPHA, CROSS_ENTROPY, hot, ngl, polynomial
from xent.losses import CATALOG

# PyTorch scripts its own decompositions for forward-mode AD.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
mp = mpmath.mp
MNIST = (-10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513)
NAMES = ("baikal_loss", "baikal_cma_loss", "taylorglo_loss", "ngl_loss")
every_setting = pytest.mark.parametrize("loss", settings_of(*NAMES), ids=lambda loss: loss.name)


# ---- fifty digits -------------------------------------------------------------------------------


def probabilities(z):
    e = [mp.exp(mp.mpf(v)) for v in z.tolist()]
    total = mp.fsum(e)
    return [v / total for v in e]


def through_softmax(p, slopes):
    """Return the gradient in the logits from that in the probabilities, and its scale."""
    n = range(len(p))
    grad = [p[k] * mp.fsum(p[j] * (slopes[k] - slopes[j]) for j in n if j != k) for k in n]
    sizes = [
        p[k] * mp.fsum(p[j] * (abs(slopes[k]) + abs(slopes[j])) for j in n if j != k) for k in n
    ]
    return grad, sizes


def exact_baikal(z, y):
    p, c = probabilities(z), len(z)
    nats = -mp.log(p[y])
    inverse = 1 / p[y] if nats <= 20 else mp.e**20 * (1 + nats - 20)
    slope = min(1 / p[y], mp.e**20)  # derivative of the inverse by the nats
    others = mp.fsum(pj for j, pj in enumerate(p) if j != y)
    parts = [(pj, -mp.mpf(1) / c, slope / c * pj) for pj in p]
    parts[y] = (1 - mp.mpf(1) / c, -others, -slope / c * others)
    value = -mp.fsum(map(mp.log, p)) / c + inverse / c
    sizes = [mp.fsum(map(abs, part)) for part in parts]
    return value, value, list(map(mp.fsum, parts)), sizes


def exact_ngl(z, y):
    p, c, alpha = probabilities(z), len(z), mp.mpf(ALPHA)
    hit = [mp.mpf(j == y) for j in range(c)]
    terms = [
        mp.exp(alpha - a - a * h) - mp.cos(mp.cos(mp.sin(a))) for a, h in zip(p, hit, strict=True)
    ]
    slopes = [
        (
            -(1 + h) * mp.exp(alpha - a - a * h)
            - mp.sin(mp.cos(mp.sin(a))) * mp.sin(mp.sin(a)) * mp.cos(a)
        )
        / c
        for a, h in zip(p, hit, strict=True)
    ]
    value = mp.fsum(terms) / c
    return value, value, *through_softmax(p, slopes)


def exact_taylorglo(z, y):
    p, theta = probabilities(z), [mp.mpf(t) for t in MNIST]
    hit = [mp.mpf(j == y) for j in range(len(p))]

    def slope(x, a):
        return mp.diff(lambda q: polynomial(x, q, theta), a)

    constants = mp.fsum(polynomial(x, mp.mpf(0), theta) for x in hit) + slope(mp.mpf(0), mp.mpf(0))
    terms = [polynomial(x, a, theta) for x, a in zip(hit, p, strict=True)]
    slopes = [-slope(x, a) for x, a in zip(hit, p, strict=True)]
    # The size of the terms: the linear one of the target, and the squares.
    size = 140 * p[y] + 156 * mp.fsum(a**2 for a in p)
    return constants - mp.fsum(terms), size, *through_softmax(p, slopes)


EXACT = {
    "baikal_loss": (exact_baikal, {}),
    "taylorglo_loss": (exact_taylorglo, {"theta": MNIST}),
    "ngl_loss": (exact_ngl, {}),
}


@pytest.mark.parametrize("name", EXACT)
def test_fifty_digits_at_every_margin(name, engine):
    call, (exact, settings) = settings_of(name)[0], EXACT[name]
    options = {"reduction": "none", "engine": engine, **settings}
    margins = torch.tensor([-80.0, -40, -25, -19, -8, -2, 0.5, 2, 8, 16, 25, 40, 80])
    z = torch.randn(len(margins), 5) * 0.5
    z[:, 2] = z[:, [0, 1, 3, 4]].amax(1) + margins
    y = torch.full((len(margins),), 2)
    value, grad = value_and_grad(call, z, y, **options)
    wide, wide_grad = value_and_grad(call, z.double(), y, **options)
    for row, of_row in enumerate(z.double()):
        truth, size, slopes, sizes = exact(of_row, 2)
        # Each probability is an exponential, whose argument is rounded once.
        nats = (nats_below_top(of_row) / 2).tolist()
        for got, eps, limit in ((value, 2**-23, 4), (wide, 2**-52, 4)):
            # The inverse of the target's probability is one, too.
            assert abs(got[row].item() - truth) <= (limit + nats[2]) * eps * abs(size)
        for got, eps, limit in ((grad, 2**-23, 4), (wide_grad, 2**-52, 4)):
            for k, (entry, scale) in enumerate(zip(slopes, sizes, strict=True)):
                error = abs(got[row, k].item() - entry)
                assert error <= (limit + nats[k]) * eps * scale, (margins[row], k, error / scale)


FLAT = (0.5, 0.5, 0.75, -0.75, 1.0, 1.5, -1.5, 0.0)  # 3/4 of CROSS_ENTROPY: exact numbers


@pytest.mark.parametrize("margin", [2.0, 10.0, 30.0, 100.0])
def test_a_polynomial_that_is_flat_at_1_keeps_its_digits(margin, engine):
    # Of two classes it is 3 q^2 / 2 - 1 for q = 1 - p, with the slope -3 q^2 p by the target.
    z, y = torch.tensor([[margin, 0.0]], dtype=torch.float64), torch.tensor([0])
    z = z.to(widest(engine))
    _, grad = value_and_grad(xent.losses.taylorglo_loss, z, y, theta=FLAT, engine=engine)
    q, p = torch.sigmoid(-z[0, 0].double()), torch.sigmoid(z[0, 0].double())
    limit = (16 + 2 * margin) * torch.finfo(z.dtype).eps
    assert abs(grad[0, 0].double() / (-3 * q * q * p) - 1) <= limit
    assert abs(grad[0, 1].double() / (3 * q * q * p) - 1) <= limit


def test_small_probabilities_differ_in_their_own_slopes():
    # The slopes of all small probabilities are nearly equal, and only differences move a logit.
    z = torch.tensor([[0.0] * 3000 + [-1.0] * 2000], dtype=torch.float64)
    _, grad = value_and_grad(xent.losses.ngl_loss, z, torch.tensor([4999]))
    with mp.workdps(50):
        first = 1 / (3000 + 2000 / mp.e)
        p, times = [first, first / mp.e, first / mp.e], [3000, 1999, 1]
        slopes = [
            -(1 + h) * mp.exp(mp.mpf(ALPHA) - (1 + h) * a)
            - mp.sin(mp.cos(mp.sin(a))) * mp.sin(mp.sin(a)) * mp.cos(a)
            for a, h in zip(p, (0, 0, 1), strict=True)
        ]
        mean = mp.fsum(a * s * n for a, s, n in zip(p, slopes, times, strict=True))
        truth = [float(a * (s - mean) / 5000) for a, s in zip(p, slopes, strict=True)]
    for k, a, expected in zip((0, 3000, 4999), p, truth, strict=True):
        terms = 2 * math.exp(ALPHA) * float(a * first) / 5000  # without the slope of all
        # Two sums of 5000 terms have 24 roundings.
        assert abs(grad[0, k].item() - expected) <= 2.0**-47 * (terms + abs(expected))


# ---- what the papers say ------------------------------------------------------------------------


def test_ngl_of_one_class():
    # First a sure target alone, then with an impossible class beside it.
    alone = xent.losses.ngl_loss(torch.zeros(1, 1), torch.tensor([0]))
    two = xent.losses.ngl_loss(torch.tensor([[100.0, 0.0]]), torch.tensor([0]))
    assert abs(alone.item() - 0.71954) < 5e-6
    assert abs(2 * two.item() - 0.71954 - 10.5848) < 5e-5


def test_the_polynomial_the_authors_write_for_cross_entropy():
    # The polynomial multiplied out, as in the experiments that were published with the paper.
    z, y = torch.randn(20, 7, dtype=torch.float64), torch.randint(7, (20,))
    p, x = torch.softmax(z, -1), hot(z, y)
    published = 0.166667 - p + 2 * p * p - 1.33333 * p**3 + x * (2.19315 - 4 * p + 2 * p * p)
    loss = xent.losses.taylorglo_loss(z, y, theta=CROSS_ENTROPY, reduction="none")
    gaps = published.sum(-1) - loss
    assert (gaps - gaps.mean()).abs().max() < 1e-5  # the paper prints six digits


def test_every_parameter_of_taylorglo_that_can_steer_does():
    z, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    theta = torch.tensor(MNIST, dtype=torch.float64)

    def slope(theta):
        return torch.func.grad(lambda x: xent.losses.taylorglo_loss(x, y, theta=theta))(z)

    steering = torch.func.jacfwd(slope)(theta).abs().amax((0, 1))  # per parameter
    assert steering[2] == 0  # multiplies the sum of the probabilities
    assert (steering[[0, 1, 3, 4, 5, 6, 7]] > 1e-3).all()


def test_theta_may_be_learnt():
    z, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(4, (5,))
    theta = torch.tensor(CROSS_ENTROPY, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: xent.losses.taylorglo_loss(z, y, theta=t), theta)
    batch = torch.stack([theta.detach(), torch.tensor(MNIST, dtype=torch.float64)])
    both = torch.func.vmap(lambda t: xent.losses.taylorglo_loss(z, y, theta=t))(batch)
    for row, value in zip(batch.tolist(), both, strict=True):
        torch.testing.assert_close(value, xent.losses.taylorglo_loss(z, y, theta=row))


def test_baikal_cma_of_ones_is_baikal():
    z, y = torch.randn(9, 5, dtype=torch.float64) * 9, torch.randint(5, (9,))
    ones = xent.losses.baikal_cma_loss(z, y, coefficients=(1,) * 6, reduction="none")
    torch.testing.assert_close(
        ones, xent.losses.baikal_loss(z, y, reduction="none"), rtol=1e-14, atol=0
    )


# ---- finite, smooth, differentiable in every mode -----------------------------------------------


@every_setting
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_finite_at_a_hundred(loss, dtype):
    z = torch.tensor([[100.0, -100, 0], [-100, 100, 0], [100, 100, -100]], dtype=dtype)
    value, grad = value_and_grad(loss, z, torch.tensor([0, 0, 2]), reduction="none")
    assert value.isfinite().all()
    assert grad.isfinite().all()
    if dtype == torch.float64:  # others cannot hold e^-200, the gradient of a bounded loss
        assert grad[1, 0] < 0


@pytest.mark.parametrize("call", [xent.losses.baikal_loss, xent.losses.baikal_cma_loss])
def test_the_tangent_takes_over_smoothly(call):
    nats = torch.tensor([19.999, 20.0, 20.001, 25.0, 30.0], dtype=torch.float64)
    z = torch.stack([torch.zeros_like(nats), torch.log(torch.expm1(nats))], 1)
    value, grad = value_and_grad(call, z, torch.zeros(5, dtype=torch.int64), reduction="none")
    steps = value.diff() / nats.diff()
    assert (steps[1:] / steps[1] - 1).abs().max() < 1e-6  # a straight line, except for lse - mean
    assert abs(steps[0] / steps[1] - 1) < 1e-3
    assert (grad[1:, 0] / grad[1, 0] - 1).abs().max() < 1e-6


@every_setting
def test_derivatives_of_every_mode(loss):
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    y, tangent = torch.randint(5, (4,)), torch.randn(4, 5, dtype=torch.float64)

    def call(x):
        return loss(x, y, reduction="none")

    assert torch.autograd.gradcheck(call, z, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, z)
    value, slope = torch.func.jvp(call, (z.detach(),), (tangent,))
    (grad,) = torch.autograd.grad(call(z).sum(), z)
    torch.testing.assert_close(value, call(z).detach())
    torch.testing.assert_close(slope.sum(), (grad * tangent).sum())
    rows = torch.func.vmap(lambda x, t: loss(x[None], t[None]))(z.detach(), y)
    torch.testing.assert_close(rows, call(z).detach())


@pytest.mark.sample(2)
@every_setting
def test_compiles_in_one_graph(loss):
    z, y = torch.randn(4, 5), torch.randint(5, (4,))
    compiled = torch.compile(lambda x: loss(x, y), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z), loss(z, y))


# ---- the facts of the catalog -------------------------------------------------------------------


def least_expected(call, q):
    """Return the probabilities of the least expected loss, by Newton's method with a fallback."""
    classes = torch.arange(len(q))
    z = q.log().clone().requires_grad_()
    optimiser = torch.optim.LBFGS([z], max_iter=300, line_search_fn="strong_wolfe")

    def step():
        optimiser.zero_grad()
        rows = z.expand(len(q), -1)
        loss = (q * call(rows, classes, reduction="none")).sum()
        loss.backward()
        return loss

    optimiser.step(step)
    return torch.softmax(z.detach(), 0)


@pytest.mark.parametrize("name", NAMES)
def test_facts(name):
    fact, call = CATALOG[name], getattr(xent.losses, name)
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert not fact.proper
    assert (least_expected(call, q) - q).abs().max() > 0.02
    y = torch.arange(3)
    z = torch.randn(40, 1, 3, dtype=torch.float64).expand(40, 3, 3) * 2
    total = call(z.reshape(-1, 3), y.repeat(40), reduction="none").view(40, 3).sum(1)
    assert not fact.symmetric
    assert total.std() > 1e-3
    far = torch.diag(torch.full((3,), -300.0, dtype=torch.float64))
    assert (call(far, y, reduction="none") < 1e4).all() == fact.bounded
    a, b = torch.randn(2, 2000, 3, dtype=torch.float64) * 6
    t = torch.randint(3, (2000,))
    middle, ends = (
        call((a + b) / 2, t, reduction="none"),
        (call(a, t, reduction="none") + call(b, t, reduction="none")),
    )
    assert (middle <= ends / 2 * (1 + 1e-12) + 1e-12).all() == fact.convex
    assert fact.second_pass == (name == "ngl_loss")
    assert fact.targets == "classes"


# ---- bad input ----------------------------------------------------------------------------------


def test_bad_input():
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for name in NAMES:
        if name != "ngl_loss":
            with pytest.raises(ValueError, match="one class per row"):
                getattr(xent.losses, name)(z, torch.softmax(z, 1))
        with pytest.raises(ValueError, match="out of bounds"):
            getattr(xent.losses, name)(z, y + 2)
        with pytest.raises(TypeError, match="unexpected keyword"):
            getattr(xent.losses, name)(z, y, gamma=1)
    for theta in ((1.0,) * 7, 3.0, "eight ch", torch.ones(7), torch.ones(8, dtype=torch.int64)):
        with pytest.raises(ValueError, match="`theta` must hold 8"):
            xent.losses.taylorglo_loss(z, y, theta=theta)
    with pytest.raises(ValueError, match="`theta` must be a finite number"):
        xent.losses.taylorglo_loss(z, y, theta=(float("nan"),) * 8)
    for bad in ((1, 1, 0, 1, 1, 1), (1, 1, 1, 1, 1, 0)):
        with pytest.raises(ValueError, match="positive third"):
            xent.losses.baikal_cma_loss(z, y, coefficients=bad)
    with pytest.raises(ValueError, match="`coefficients` must hold 6"):
        xent.losses.baikal_cma_loss(z, y, coefficients=(1, 2, 3, 4))
    for alpha in (float("inf"), 800.0):  # exp(800) is beyond float64
        with pytest.raises(ValueError, match="`alpha`"):
            xent.losses.ngl_loss(z, y, alpha=alpha)
    with pytest.raises(ValueError, match="reduction"):
        xent.losses.ngl_loss(z, y, reduction="average")


def test_ngl_of_soft_targets():
    z, q = torch.randn(2, 6, 4, dtype=torch.float64)
    q = torch.softmax(q, -1)
    p = torch.softmax(z, -1)
    expected = (torch.exp(ALPHA - p - p * q) - torch.cos(torch.cos(torch.sin(p)))).mean(-1)
    torch.testing.assert_close(xent.losses.ngl_loss(z, q, reduction="none"), expected)


def test_ngl_weighs_and_counts_as_the_frame_does():
    z, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, -100, 1])
    w = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    rows = xent.losses.ngl_loss(z, y, w, reduction="none")
    assert rows[4] == 0
    kept = y >= 0
    torch.testing.assert_close(rows[kept], ngl(z[kept], y[kept], {}) * w[y[kept]])
    mean = xent.losses.ngl_loss(z, y, w)
    torch.testing.assert_close(mean, rows.sum() / w[y[kept]].sum())
    torch.testing.assert_close(xent.losses.ngl_loss(z, y, w, normalizer="count"), rows.sum() / 5)
    picture = z.T.reshape(1, 4, 2, 3)
    torch.testing.assert_close(xent.losses.ngl_loss(picture, y.view(1, 2, 3), w), mean)
    capped = xent.losses.ngl_loss(
        z, y, logit_scale=2.0, softcap=3.0, class_bias=w, reduction="none"
    )
    shown = 3 * torch.tanh(2 * z / 3) + w
    torch.testing.assert_close(capped[kept], ngl(shown[kept], y[kept], {}))
