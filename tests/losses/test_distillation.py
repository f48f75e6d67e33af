"""Students and teachers: every divergence against the textbook, 80 digits and its limits."""

import functools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from mpmath import mpf

import xent
from tests.helpers import spacing, value_and_grad, worst

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

N, C = 8, 6


def logits(*shape, size=2.0):
    return size * torch.randn(*shape, dtype=torch.float64)


KINDS = [("forward", 0.5), ("reverse", 0.5), ("jensen_shannon", 0.5), ("jensen_shannon", 0.1)]
EACH_KIND = pytest.mark.parametrize(("kind", "beta"), KINDS)


def direct(z, v, kind, beta, temperature=1.0):
    """Compute the textbook formula in float64."""
    log_p, log_q = torch.log_softmax(z / temperature, -1), torch.log_softmax(v / temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward":
        return (q * (log_q - log_p)).sum(-1)
    if kind == "reverse":
        return (p * (log_p - log_q)).sum(-1)
    log_m = torch.log(beta * q + (1 - beta) * p)
    return (beta * q * (log_q - log_m) + (1 - beta) * p * (log_p - log_m)).sum(-1)


def exact_row(z, v, kind, beta, temperature):
    """Return value and gradients of a row, by student and by teacher, in mpmath's digits."""
    t = mpf(temperature)
    e = [[mpmath.exp(mpf(x) / t) for x in row] for row in (z, v)]
    p, q = ([x / mpmath.fsum(row) for x in row] for row in e)

    def kl(a, b):
        return mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(a, b, strict=True) if x)

    b = mpf(beta)
    m = [b * x + (1 - b) * y for x, y in zip(q, p, strict=True)]
    if kind == "forward":
        value = kl(q, p)
        return value, [x - y for x, y in zip(p, q, strict=True)]
    if kind == "reverse":
        value, by_p = kl(p, q), [mpmath.log(x / y) for x, y in zip(p, q, strict=True)]
    else:
        value = b * kl(q, m) + (1 - b) * kl(p, m)
        by_p = [(1 - b) * mpmath.log(x / y) for x, y in zip(p, m, strict=True)]
    mean = mpmath.fsum(x * y for x, y in zip(p, by_p, strict=True))
    return value, [x * (y - mean) for x, y in zip(p, by_p, strict=True)]


def exact(z, v, kind, beta, temperature=1.0):
    with mpmath.workdps(80):
        rows = [
            exact_row(*row, kind, beta, temperature)
            for row in zip(z.tolist(), v.tolist(), strict=True)
        ]
    value = torch.tensor([float(v) for v, _ in rows], dtype=torch.float64)
    slope = [[float(g) / temperature for g in grad] for _, grad in rows]
    return value, torch.tensor(slope, dtype=torch.float64)


@EACH_KIND
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_textbook_formula(kind, beta, temperature):
    z, v = logits(N, C), logits(N, C)
    value, grad = value_and_grad(
        xent.losses.distillation_loss, z, v, divergence=kind, beta=beta, temperature=temperature,
        keep_gradient_size=False, reduction="none",
    )  # fmt: skip
    truth, slope = value_and_grad(direct, z, v, kind, beta, temperature)
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(grad, slope, rtol=1e-13, atol=1e-14)
    scaled = xent.losses.distillation_loss(
        z, v, divergence=kind, beta=beta, temperature=temperature
    )
    torch.testing.assert_close(scaled, truth.mean() * temperature**2, rtol=1e-13, atol=0)


@EACH_KIND
@pytest.mark.parametrize("distance", [1e-1, 1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("size", [1.0, 20.0])
def test_every_digit_of_a_student_near_its_teacher(kind, beta, distance, size):
    # Numbers whose differences are exact, so that the formula can be right to the last digits.
    v, noise = ((x * 2.0**45).round() / 2.0**45 for x in (logits(N, C, size=size), logits(N, C)))
    z = v + (distance * noise * 2.0**45).round() / 2.0**45 + 3.0
    z[0] = v[0] + 3.0
    value, grad = value_and_grad(
        xent.losses.distillation_loss, z, v, divergence=kind, beta=beta, temperature=2.0,
        keep_gradient_size=False, reduction="none",
    )  # fmt: skip
    truth, slope = exact(z, v, kind, beta, 2.0)
    assert value[0] == 0
    assert not grad[0].any()
    torch.testing.assert_close(value[1:], truth[1:], rtol=3e-14, atol=0)
    # A class with the mean ratio has slope 0: the slopes of other classes are the scale.
    error = (grad - slope)[1:].abs() / slope[1:].abs().amax(-1, keepdim=True)
    assert error.max() < 1e-13


@EACH_KIND
def test_every_digit_in_float32(kind, beta):
    d = torch.arange(-80, 81, 8.0)
    z = torch.stack([d, torch.zeros_like(d), -0.5 * d], 1)
    for v in (torch.zeros_like(z), -z, z * 1.0001, z.flip(1)):
        value, grad = value_and_grad(
            xent.losses.distillation_loss, z, v, divergence=kind, beta=beta, reduction="none"
        )
        truth, slope = exact(z, v, kind, beta)
        assert worst(value, truth) <= 1
        # Two confident, different predictions: p (r_j - E_p r) with nearly equal log-ratios r.
        rounding = 1e-15 * torch.softmax(z.double(), -1)
        assert bool(((grad - slope).abs() <= spacing(slope, grad.dtype) + rounding).all())


@EACH_KIND
def test_distillation_is_differentiable_by_both(kind, beta):
    z, v = logits(3, 4).requires_grad_(), logits(3, 4).requires_grad_()

    def loss(z, v):
        return xent.losses.distillation_loss(z, v, divergence=kind, beta=beta, temperature=1.5)

    assert torch.autograd.gradcheck(loss, (z, v), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (z, v))
    near = (z.detach() + 0.01 * torch.randn_like(z)).requires_grad_()
    assert torch.autograd.gradgradcheck(loss, (z, near))
    (slope,) = torch.autograd.grad(loss(z, v), z)
    each = torch.func.vmap(torch.func.grad(loss))(z.detach(), v.detach())
    torch.testing.assert_close(each / 3, slope, rtol=1e-12, atol=1e-15)


@EACH_KIND
def test_masked_classes_of_student_and_teacher(kind, beta):
    z, v = logits(4, 5), logits(4, 5)
    options = {"divergence": kind, "beta": beta, "reduction": "none"}
    fewer, slope = value_and_grad(xent.losses.distillation_loss, z[:, 1:], v[:, 1:], **options)
    z[:, 0] = v[:, 0] = -math.inf
    value, grad = value_and_grad(xent.losses.distillation_loss, z, v, **options)
    torch.testing.assert_close(value, fewer, rtol=1e-14, atol=0)
    torch.testing.assert_close(grad[:, 1:], slope, rtol=1e-13, atol=1e-15)
    assert not grad[:, 0].any()
    # Classes that only one of the two has.
    for mine, theirs, infinite in ((0.3, -math.inf, "reverse"), (-math.inf, 0.3, "forward")):
        z[:, 0], v[:, 0] = mine, theirs
        value, grad = value_and_grad(xent.losses.distillation_loss, z, v, **options)
        if kind == infinite:
            assert value.isinf().all()
            continue
        tiny = (torch.where(x == -math.inf, -700.0, x) for x in (z, v))
        truth, slope = value_and_grad(direct, *tiny, kind, beta)
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-15)


def test_divergences_of_certainties_are_finite():
    z = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]])
    for kind, beta in KINDS:
        value, grad = value_and_grad(
            xent.losses.distillation_loss,
            z,
            z.flip(1),
            divergence=kind,
            beta=beta,
            reduction="none",
        )
        assert value.isfinite().all()
        assert grad.isfinite().all()
        if kind == "jensen_shannon":
            bound = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))
            assert value[0].item() == pytest.approx(bound, rel=1e-6)
        else:
            assert value[0] == 2000
        assert value[1] == 0


def test_jensen_shannon_is_symmetric_at_one_half():
    z, v = logits(N, C), logits(N, C)
    a = xent.losses.distillation_loss(z, v, divergence="jensen_shannon")
    torch.testing.assert_close(a, xent.losses.distillation_loss(v, z, divergence="jensen_shannon"))
    small = xent.losses.distillation_loss(z, v, divergence="jensen_shannon", beta=1e-9) / 1e-9
    torch.testing.assert_close(small, xent.losses.distillation_loss(z, v), rtol=1e-7, atol=0)


def test_the_student_learns_from_labels_too():
    z, v, y = logits(N, C), logits(N, C), torch.randint(C, (N,))
    y[2] = -100
    kept = y != -100
    soft, hard = direct(z, v, "forward", 0.5)[kept], F.cross_entropy(z[kept], y[kept])
    for alpha, share in ((None, 0.5), (0.0, 0.0), (0.3, 0.3), (1.0, 1.0)):
        value = xent.losses.distillation_loss(z, v, y, alpha=alpha)
        truth = (1 - share) * soft.mean() + share * hard
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-14)
    dense = xent.losses.distillation_loss(z, v, torch.softmax(v, -1), alpha=1.0)
    torch.testing.assert_close(dense, F.cross_entropy(z, torch.softmax(v, -1)))


def test_rows_of_a_distillation():
    loss = functools.partial(xent.losses.distillation_loss, class_dim=1)
    z, v = logits(2, C, 4), logits(2, C, 4)
    each = loss(z, v, reduction="none")
    truth = direct(z.movedim(1, -1), v.movedim(1, -1), "forward", 0.5)
    torch.testing.assert_close(each, truth, rtol=1e-13, atol=1e-14)
    mask = torch.rand(2, 4) > 0.4
    w = torch.rand(2, 4)
    garbage = z.clone().movedim(1, -1)
    garbage[~mask] = math.nan
    garbage = garbage.movedim(-1, 1)
    value, grad = value_and_grad(loss, garbage, v, row_mask=mask)
    torch.testing.assert_close(value, truth[mask].mean(), rtol=1e-13, atol=0)
    assert grad.isfinite().all()
    assert not grad.movedim(1, -1)[~mask].any()
    weighted = loss(z, v, None, mask, row_weight=w)
    truth_weighted = (truth * w)[mask].sum() / w[mask].double().sum()
    torch.testing.assert_close(weighted, truth_weighted, rtol=1e-12, atol=0)
    total = loss(z, v, row_mask=mask, normalizer=7)
    torch.testing.assert_close(total, truth[mask].sum() / 7, rtol=1e-13, atol=0)
    none = torch.zeros(2, 4, dtype=torch.bool)
    assert loss(z, v, row_mask=none).isnan()
    assert loss(z, v, row_mask=none, empty="zero") == 0
    single = xent.losses.distillation_loss(z[0, :, 0], v[0, :, 0])
    torch.testing.assert_close(single, truth[0, 0], rtol=1e-13, atol=0)
    assert loss(z.bfloat16(), v.bfloat16()).dtype == torch.bfloat16
    assert loss(z.bfloat16(), v.float()).dtype == torch.float32


@EACH_KIND
def test_gradients_of_any_axes(kind, beta):
    z, v = (torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    options = {"divergence": kind, "beta": beta, "reduction": "sum"}
    flat = [x.movedim(1, -1).reshape(-1, 5) for x in (z, v)]
    found = torch.autograd.grad(xent.losses.distillation_loss(z, v, class_dim=1, **options), (z, v))
    expected = torch.autograd.grad(xent.losses.distillation_loss(*flat, **options), (z, v))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_few_rows_at_a_time_are_the_same(monkeypatch):
    z, v = logits(7, C).requires_grad_(), logits(7, C).requires_grad_()
    whole = xent.losses.distillation_loss(z, v, reduction="none")
    slopes = torch.autograd.grad(whole.sum(), (z, v))
    monkeypatch.setattr("xent.losses.divergence.CHUNK", 2 * C)
    parts = xent.losses.distillation_loss(z, v, reduction="none")
    assert torch.equal(parts, whole)
    assert all(map(torch.equal, torch.autograd.grad(parts.sum(), (z, v)), slopes))


def test_a_bad_teacher_is_refused_with_the_reason():
    z = logits(3, 4)
    for options, message in (
        ({"temperature": 0.0}, "temperature"),
        ({"beta": 1.0}, "beta"),
        ({"divergence": "kl"}, "divergence"),
        ({"alpha": 0.5}, "`alpha` is the share"),
        ({"alpha": 1.5}, "alpha"),
        ({"row_mask": torch.ones(3)}, "row_mask"),
        ({"reduction": "batchmean"}, "reduction"),
    ):
        with pytest.raises(ValueError, match=message):
            xent.losses.distillation_loss(z, z, **options)
    with pytest.raises(ValueError, match="same rows and classes"):
        xent.losses.distillation_loss(z, z[:, :3])
    with pytest.raises(TypeError, match="floating-point logits"):
        xent.losses.distillation_loss(z, torch.ones(3, 4, dtype=torch.int64))
