"""The bi-tempered loss against its authors' numbers, 60 digits and its limits."""

import math

import mpmath
import pytest
import torch
from mpmath import mpf

import xent
from tests.helpers import nats_below_top, value_and_grad, worst

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

# Numbers that the tests of the authors' code expect, to 1e-5.
LABELS = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.2, 0.8, 0.0]])
ACTIVATIONS = torch.tensor([[-0.5, 0.1, 2.0], [0.1, 1.5, -5.0], [4.0, -3.0, -6.0]])


def exact_p(z, t):
    """Return the tempered softmax of a row and its normaliser, to 60 digits by bisection."""
    t = mpf(t)
    z = [mpf(v) for v in z]

    def p(shift):
        if t == 1:
            return [mpmath.exp(v - shift) for v in z]
        inner = [max(1 + (1 - t) * (v - shift), mpf(0)) for v in z]
        return [v ** (1 / (1 - t)) if v else mpf(0) for v in inner]

    low, high = max(z), max(z) + 1
    while mpmath.fsum(p(high)) > 1:
        high += high - low
    for _ in range(280):
        middle = (low + high) / 2
        low, high = (middle, high) if mpmath.fsum(p(middle)) > 1 else (low, middle)
    return p(low)


def exact_loss(z, q, t1, t2):
    """Return loss and gradient of a row, to the digits that mpmath works with."""
    p, q, t1, t2 = exact_p(z, t2), [mpf(v) for v in q], mpf(t1), mpf(t2)

    def log_t(v):
        return mpmath.log(v) if t1 == 1 else (v ** (1 - t1) - 1) / (1 - t1)

    total = mpmath.fsum(
        (b * (log_t(b) - log_t(a)) if b else 0) - (b ** (2 - t1) - a ** (2 - t1)) / (2 - t1)
        for a, b in zip(p, q, strict=True)
    )
    slope = [a**t2 if a else mpf(0) for a in p]
    w = [(a - b) * a ** (t2 - t1) if a else mpf(0) for a, b in zip(p, q, strict=True)]
    lost = mpmath.fsum(w) / mpmath.fsum(slope)
    return total, [a - s * lost for a, s in zip(w, slope, strict=True)]


def exact(z, q, t1, t2):
    with mpmath.workdps(140):  # t1 = 0 squares a probability of e^-80
        rows = [exact_loss(*row, t1, t2) for row in zip(z.tolist(), q.tolist(), strict=True)]
    value = torch.tensor([float(v) for v, _ in rows], dtype=torch.float64)
    return value, torch.tensor([[float(g) for g in grad] for _, grad in rows], dtype=torch.float64)


def test_the_numbers_of_the_authors():
    def loss(*temperatures, z=ACTIVATIONS, q=LABELS, **options):
        t1, t2 = temperatures
        return xent.losses.bi_tempered_loss(
            z, q, t1=t1, t2=t2, reduction="none", **options
        ).tolist()

    close = {"abs": 1e-5, "rel": 0}
    assert loss(0.5, 1.5) == pytest.approx([0.02301914, 0.18972909, 0.93874922], **close)
    assert loss(0.5, 0.8) == pytest.approx([0.21646356, 0.41836615, 1.33997854], **close)
    one = {"z": ACTIVATIONS[:1], "q": torch.tensor([[0.2, 0.5, 0.3]])}
    for step, expected in ((0.1, 0.45677936), (0.2, 0.34298314), (0.3, 0.26295574)):
        assert loss(1 - step, 1 + step, **one) == pytest.approx([expected], **close)
    # At t1 = t2 = 1 the authors' code leaves out the entropy of the target, and jumps.
    entropy = -(one["q"] * one["q"].log()).sum().item()
    assert loss(1.0, 1.0, **one)[0] + entropy == pytest.approx(1.6583576, **close)
    for target in (torch.tensor([2, 0, 1]), torch.eye(3)[[2, 0, 1]]):
        smoothed = loss(0.5, 1.5, q=target, label_smoothing=0.1, smoothed_over="others")
        truth = (1 - 0.15) * torch.eye(3)[[2, 0, 1]] + 0.05
        assert smoothed == pytest.approx(loss(0.5, 1.5, q=truth), **close)
    # The authors' test has one target per row; these targets give the three numbers.
    smoothed = [
        xent.losses.bi_tempered_loss(
            ACTIVATIONS[k], torch.tensor(y), t1=0.5, t2=1.5, label_smoothing=0.1,
            smoothed_over="others",
        ).item()
        for k, y in ((0, 0), (1, 1), (2, 2))
    ]  # fmt: skip
    assert smoothed == pytest.approx([0.76652711, 0.08627685, 1.35443510], **close)
    softmax = xent.tempered_softmax(ACTIVATIONS[0], t=4.0).tolist()  # the authors' sum is 1.00003
    assert softmax == pytest.approx([0.3205458, 0.32714278, 0.3523402], abs=2e-5)


TEMPERATURES = [(0.8, 1.2), (0.5, 1.5), (0.5, 0.8), (1, 1), (0, 2), (0.3, 0), (1, 1.3), (0.7, 1)]


@pytest.mark.sample(3)
@pytest.mark.parametrize(("t1", "t2"), TEMPERATURES)
def test_value_and_gradient_are_exact(t1, t2):
    z = 2 * torch.randn(10, 5, dtype=torch.float64)
    y = torch.randint(5, (10,))
    y = torch.where(xent.tempered_softmax(z, t2)[range(10), y] > 0, y, z.argmax(-1))
    soft = torch.softmax(z + torch.randn(10, 5), -1)
    if t2 < 1:
        soft = xent.tempered_softmax(z + torch.randn(10, 1).sign() * 1e-3 * z, t2)
    hot = torch.nn.functional.one_hot(y, 5).double()
    for target, q in ((y, hot), (soft, soft)):
        value, grad = value_and_grad(
            xent.losses.bi_tempered_loss, z, target, t1=t1, t2=t2, reduction="none"
        )
        truth, slope = exact(z, q, t1, t2)
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-16)
        torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-15)


@pytest.mark.sample(6)
@pytest.mark.parametrize("t", [0.0, 0.5, 0.9, 1 - 1e-9, 1 + 1e-9, 1.2, 2.0, 4.0])
@pytest.mark.parametrize("size", [0.1, 3.0, 50.0])
def test_the_normaliser_has_converged(t, size):
    z = size * torch.randn(8, 12, dtype=torch.float64)
    p = xent.tempered_softmax(z, t)
    with mpmath.workdps(60):
        rows = [[float(v) for v in exact_p(row, t)] for row in z.tolist()]
    truth = torch.tensor(rows, dtype=torch.float64)
    assert (p.sum(-1) - 1).abs().max() < 1e-14
    # Rounding of the logits moves p by p^t, and the power adds the error of its logarithm, in nats.
    nats = nats_below_top(z) if t > 0 else size
    slack = 1e-15 * (1 + nats) * torch.where(truth > 0, truth ** min(t, 1), 1)
    assert bool(((p - truth).abs() <= slack).all())


@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("t1", "t2"), [(0.8, 1.2), (0, 1), (0.5, 1), (1, 1), (0, 2), (0.5, 0.8)])
def test_every_digit_at_every_margin(t1, t2, dtype):
    """The loss of a confident prediction stays accurate as it goes to 0."""
    d = torch.arange(-80, 81, 8, dtype=dtype)
    if t2 < 1:  # beyond 1 / (1 - t2) a class is certain or impossible
        d = torch.arange(-4.75, 5, 0.5, dtype=dtype)
    z = torch.stack([d, torch.zeros_like(d), torch.zeros_like(d) - 1], 1)
    y = torch.zeros(len(d), dtype=torch.int64)
    value, grad = value_and_grad(xent.losses.bi_tempered_loss, z, y, t1=t1, t2=t2, reduction="none")
    truth, slope = exact(z, torch.eye(3)[y].double(), t1, t2)
    if dtype == torch.float64:
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
        torch.testing.assert_close(grad, slope, rtol=1e-12, atol=0)
    else:
        assert worst(value, truth) <= 1
        assert worst(grad, slope) <= 1


def test_the_limits_are_continuous():
    z, y = 2 * torch.randn(6, 7, dtype=torch.float64), torch.randint(7, (6,))
    soft = torch.softmax(torch.randn(6, 7, dtype=torch.float64), -1)
    for target in (y, soft):
        ce, dce = value_and_grad(xent.cross_entropy, z, target, reduction="none")
        if target is soft:
            ce = ce + (soft * soft.log()).sum(-1)
        for step in (0.0, 1e-12, 1e-8, 1e-5):
            for t1, t2 in ((1 - step, 1 + step), (1 - step, 1 - step), (1.0, 1 + step)):
                value, grad = value_and_grad(
                    xent.losses.bi_tempered_loss, z, target, t1=t1, t2=t2, reduction="none"
                )
                allowed = 1e-13 + 200 * step
                torch.testing.assert_close(value, ce, rtol=allowed, atol=1e-15)
                torch.testing.assert_close(grad, dce, rtol=allowed, atol=1e-14 + 20 * step)


@pytest.mark.parametrize("t", [0.0, 0.5, 0.9, 1.0])
def test_equal_temperatures_are_an_entmax_loss(t):
    z = torch.randn(8, 5, dtype=torch.float64)
    y = z.argmax(-1)  # a possible class: entmax has a price for impossible ones
    truth = xent.losses.entmax_loss(z, y, alpha=2 - t, reduction="none")
    value = xent.losses.bi_tempered_loss(z, y, t1=t, t2=t, reduction="none")
    torch.testing.assert_close(value, truth, rtol=1e-14, atol=0)


def test_the_bound():
    z = torch.tensor([[0.0, 1e30, 0.0], [0.0, 5.0, 5.0], [-math.inf, 0.0, 0.0]])
    for t1, t2 in ((0.8, 1.2), (0.5, 1.0), (0.0, 2.0), (0.5, 0.5)):
        value, grad = value_and_grad(
            xent.losses.bi_tempered_loss, z, torch.zeros(3, dtype=torch.int64), t1=t1, t2=t2,
            reduction="none",
        )  # fmt: skip
        assert value[0].item() == pytest.approx(1 / (1 - t1), rel=1e-5)
        assert (value <= 1 / (1 - t1) * (1 + 1e-6)).all()
        assert grad.isfinite().all()


def test_label_smoothing_is_a_soft_target():
    z = torch.randn(6, 5, dtype=torch.float64)
    z[:, 4] = -math.inf
    y = torch.randint(4, (6,))
    hot = torch.nn.functional.one_hot(y, 5).double()
    there = torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64)
    for over, target in (
        ("all", 0.8 * hot + 0.2 * there / 4),
        ("others", 0.8 * hot + 0.2 * (there - hot) / 3),
    ):
        smoothed = {"label_smoothing": 0.2, "smoothed_over": over, "reduction": "none"}
        for given in (y, hot):
            value, grad = value_and_grad(xent.losses.bi_tempered_loss, z, given, **smoothed)
            truth, slope = value_and_grad(xent.losses.bi_tempered_loss, z, target, reduction="none")
            torch.testing.assert_close(value, truth, rtol=1e-12, atol=0)
            torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("t", [0.3, 1.0, 1.2, 3.0])
def test_tempered_softmax_is_differentiable(t):
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: xent.tempered_softmax(x, t), z, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: xent.tempered_softmax(x, t), z)


def test_a_learned_target_gets_its_gradient():
    z = torch.randn(3, 4, dtype=torch.float64)
    v = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def loss(v, t1, t2, **options):
        return xent.losses.bi_tempered_loss(z, torch.softmax(v, -1), t1=t1, t2=t2, **options)

    for t1, t2 in ((0.8, 1.2), (1.0, 1.0), (0.0, 2.0)):
        assert torch.autograd.gradcheck(lambda v, a=t1, b=t2: loss(v, a, b), v)
    assert torch.autograd.gradgradcheck(lambda v: loss(v, 0.8, 1.2), v)
    # For a class with target 0 the derivative is the limit from above.
    q = torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(xent.losses.bi_tempered_loss(z[:1], q), q)
    near = torch.tensor([[0.5, 0.5, 1e-60, 1e-60]], dtype=torch.float64, requires_grad=True)
    (limit,) = torch.autograd.grad(xent.losses.bi_tempered_loss(z[:1], near), near)
    torch.testing.assert_close(slope, limit, rtol=1e-9, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles():
    z, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
    compiled = torch.compile(xent.losses.bi_tempered_loss, backend="eager")
    torch.testing.assert_close(compiled(z, y), xent.losses.bi_tempered_loss(z, y))


def test_bad_input():
    z, y = torch.randn(2, 3), torch.tensor([0, 1])
    for name, value in (("t1", 1.1), ("t1", -0.1), ("t2", -1.0), ("t2", math.inf)):
        with pytest.raises(ValueError, match=name):
            xent.losses.bi_tempered_loss(z, y, **{name: value})
    with pytest.raises(ValueError, match="label_smoothing"):
        xent.losses.bi_tempered_loss(z, y, label_smoothing=1.5)
    with pytest.raises(ValueError, match="smoothed_over"):
        xent.losses.bi_tempered_loss(z, y, label_smoothing=0.5, smoothed_over="rest")
    with pytest.raises(ValueError, match="`t`"):
        xent.tempered_softmax(z, math.nan)
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        xent.tempered_softmax("1, 2")


@pytest.mark.parametrize("classes", [2, 1000, 32000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_temperatures_beyond_the_range_of_float64_are_refused(classes, dtype):
    """The slopes of the softmax fall as C^-t; just below the limit all probabilities are equal."""
    limit = -math.log(torch.finfo(torch.float64).tiny) / math.log(classes)
    z = torch.randn(2, classes).to(dtype)
    y = torch.randint(classes, (2,))
    for t in (1.001 * limit, 1e300):
        for refused in (
            lambda t=t: xent.tempered_softmax(z, t),
            lambda t=t: xent.losses.bi_tempered_loss(z, y, t2=t),
        ):
            with pytest.raises(ValueError, match=f"must be below .* for {classes} classes"):
                refused()
    p = xent.tempered_softmax(z.double(), 0.999 * limit)
    torch.testing.assert_close(p, torch.full_like(p, 1 / classes), rtol=1e-12, atol=0)
    value, grad = value_and_grad(xent.losses.bi_tempered_loss, z, y, t2=0.999 * limit)
    assert bool(value.isfinite())
    assert bool(grad.isfinite().all())
