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


KINDS = [
    ("forward", 0.5), ("reverse", 0.5), ("jensen_shannon", 0.5), ("jensen_shannon", 0.1),
    ("skew", 0.1), ("skew", 0.7), ("total_variation", 0.5),
]  # fmt: skip
EACH_KIND = pytest.mark.parametrize(("kind", "beta"), KINDS)


def direct(z, v, kind, beta, temperature=1.0):
    """Compute the textbook formula in float64."""
    log_p, log_q = torch.log_softmax(z / temperature, -1), torch.log_softmax(v / temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward":
        return (q * (log_q - log_p)).sum(-1)
    if kind == "reverse":
        return (p * (log_p - log_q)).sum(-1)
    if kind == "total_variation":
        return (p - q).abs().sum(-1) / 2
    log_m = torch.log(beta * q + (1 - beta) * p)
    if kind == "skew":
        return (q * (log_q - log_m)).sum(-1)
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
    elif kind == "skew":
        value, by_p = kl(q, m), [-(1 - b) * y / x for x, y in zip(m, q, strict=True)]
    elif kind == "total_variation":
        value = mpmath.fsum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2
        by_p = [mpmath.sign(x - y) / 2 for x, y in zip(p, q, strict=True)]
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


@pytest.mark.sample(2)
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
        bounds = {
            "jensen_shannon": -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta)),
            "skew": -math.log(beta),
            "total_variation": 1.0,
        }
        assert value[0].item() == pytest.approx(bounds.get(kind, 2000.0), rel=1e-6)
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


# ---- a teacher of its own temperature and centre --------------------------------------------


def test_a_teacher_that_is_sharpened_and_centred():
    """The loss of DINO, up to the entropy of the teacher."""
    z, v, c = logits(N, C).requires_grad_(), logits(N, C).requires_grad_(), logits(C)
    for kind, beta in KINDS:
        options = {"temperature": 0.5, "teacher_temperature": 0.2, "center": c}
        loss = xent.losses.distillation_loss(
            z, v, **options, divergence=kind, beta=beta, keep_gradient_size=False, reduction="none"
        )
        truth = direct(z / 0.5, (v - c) / 0.2, kind, beta)
        torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-14)
        found, expected = (torch.autograd.grad(x.sum(), (z, v)) for x in (loss, truth))
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    q = torch.softmax((v - c) / 0.04, 1).detach()
    dino = -(q * torch.log_softmax(z / 0.1, 1)).sum(1).mean()
    entropy = -(q * torch.log_softmax((v - c) / 0.04, 1)).sum(1).mean()
    loss = xent.losses.distillation_loss(
        z, v, temperature=0.1, teacher_temperature=0.04, center=c, keep_gradient_size=False
    )
    torch.testing.assert_close(loss, dino - entropy, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axes", [(), (3,), (3, 2)])
def test_a_centre_lies_on_the_axis_of_the_classes(axes, monkeypatch):
    monkeypatch.setattr("xent.frames.dense_rows.CHUNK", 2 * C)
    z, v, c = logits(N, *axes, C), logits(N, *axes, C), logits(C)
    loss = functools.partial(xent.losses.distillation_loss, center=c, teacher_temperature=0.5)
    last = loss(z, v, class_dim=-1, reduction="none")
    torch.testing.assert_close(last, direct(z, (v - c) / 0.5, "forward", 0.5))
    second = loss(z.movedim(-1, 1), v.movedim(-1, 1), class_dim=1, reduction="none")
    torch.testing.assert_close(second, last)


def test_a_teacher_like_the_student_is_the_usual_one():
    z, v = logits(N, C), logits(N, C)
    plain = xent.losses.distillation_loss(z, v, temperature=2.0)
    zero = torch.zeros(C).double()
    same = xent.losses.distillation_loss(
        z, v, temperature=2.0, teacher_temperature=2.0, center=zero
    )
    torch.testing.assert_close(same, plain, rtol=1e-13, atol=0)


def test_defaults_of_the_mixture():
    z, v = logits(N, C), logits(N, C)
    for kind, beta in (("skew", 0.1), ("jensen_shannon", 0.5)):
        loss = functools.partial(xent.losses.distillation_loss, z, v, divergence=kind)
        assert loss() == loss(beta=beta)
    assert xent.explain(z.float(), v.float(), loss=xent.losses.distillation_loss).engine
    for wrong, match in (({"beta": 1.0}, "`beta`"), ({"teacher_temperature": 0.0}, "`teacher_")):
        with pytest.raises(ValueError, match=match):
            xent.losses.distillation_loss(z, v, **wrong)
    for shape in ((C + 1,), (1, C + 1), (2, C)):
        with pytest.raises(ValueError, match="`center`"):
            xent.losses.distillation_loss(z, v, center=torch.zeros(shape))


# ---- the target and the other classes apart -------------------------------------------------


def decoupled(z, v, y, temperature=4.0, alpha=1.0, beta=8.0):
    """Compute the textbook formula in float64."""
    p, q = torch.softmax(z / temperature, 1), torch.softmax(v / temperature, 1)
    hot = F.one_hot(y, z.shape[1]).bool()

    def kl(b, a):
        return (b * (b.log() - a.log())).sum(1)

    both = [torch.stack([x[hot], 1 - x[hot]], 1) for x in (q, p)]
    others = [x[~hot].view(len(y), -1) for x in (q, p)]
    others = [x / x.sum(1, keepdim=True) for x in others]
    return temperature**2 * (alpha * kl(*both) + beta * kl(*others))


def test_the_decoupled_parts(monkeypatch):
    monkeypatch.setattr("xent.frames.dense_rows.CHUNK", 2 * C)
    z, v = logits(N, C).requires_grad_(), logits(N, C).requires_grad_()
    y = torch.randint(C, (N,))
    for options in ({}, {"temperature": 1.0, "alpha": 0.5, "beta": 0.0}, {"alpha": 0.0}):
        loss = xent.losses.decoupled_distillation_loss(z, v, y, reduction="none", **options)
        truth = decoupled(z, v, y, **options)
        torch.testing.assert_close(loss, truth, rtol=1e-11, atol=1e-13)
        found, expected = (torch.autograd.grad(x.sum(), (z, v)) for x in (loss, truth))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_decoupled_parts_with_the_weight_of_the_teacher_are_the_whole_divergence():
    """The chain rule of the divergence, row by row; also for a student that is sure."""
    for size in (1.0, 30.0):
        z, v = logits(1, C, size=size), logits(1, C, size=size)
        y = torch.tensor([2])
        rest = -torch.expm1(torch.log_softmax(v, 1)[0, 2]).item()
        found = xent.losses.decoupled_distillation_loss(z, v, y, temperature=1.0, beta=rest)
        whole = xent.losses.distillation_loss(z, v)
        torch.testing.assert_close(found, whole, rtol=1e-11, atol=0)


@pytest.mark.parametrize("sides", ["both", "student", "teacher"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_decoupled_parts_behind_heads(sides, reduction, monkeypatch):
    monkeypatch.setattr("xent.heads.chunks.MAX_ROWS", 4)
    h, w = torch.randn(2, N, 3).double().unbind(0), torch.randn(2, C, 3).double().unbind(0)
    parts = [x.requires_grad_() for x in (*h, *w)]
    lean = [xent.LinearLogits(h[k], w[k]) for k in (0, 1)]
    whole = [h[k] @ w[k].T for k in (0, 1)]
    given = [
        lean[k] if sides in ("both", side) else whole[k].detach()
        for k, side in enumerate(("student", "teacher"))
    ]
    if sides != "both":
        other = 1 if sides == "student" else 0
        whole[other] = whole[other].detach()
    y = torch.tensor([0, 1, -100, 3, 4, 5, 0, 1])
    options = {"row_weight": torch.rand(N, dtype=torch.float64), "reduction": reduction}
    found = xent.losses.decoupled_distillation_loss(*given, y, **options)
    expected = xent.losses.decoupled_distillation_loss(*whole, y, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    for a, b in zip(
        *(torch.autograd.grad(x.sum(), parts, allow_unused=True) for x in (found, expected)),
        strict=True,
    ):
        if a is not None or b is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_rows_of_decoupled_parts():
    z, v, y = logits(N, C), logits(N, C), torch.arange(N) % C
    each = xent.losses.decoupled_distillation_loss(z, v, y, reduction="none")
    mask = torch.arange(N) != 3
    z[3] = torch.nan
    found = xent.losses.decoupled_distillation_loss(z, v, y, row_mask=mask)
    torch.testing.assert_close(found, each[mask].mean())
    ignored = xent.losses.decoupled_distillation_loss(z, v, torch.where(mask, y, -100))
    torch.testing.assert_close(ignored, found)
    nothing = torch.full((N,), -100)
    assert xent.losses.decoupled_distillation_loss(z, v, nothing).isnan()
    assert xent.losses.decoupled_distillation_loss(z, v, nothing, empty="zero") == 0
    with pytest.raises(xent.TargetError, match=f"class index {C}"):
        xent.losses.decoupled_distillation_loss(z, v, torch.full((N,), C))
    with pytest.raises(ValueError, match="`target` must hold one class"):
        xent.losses.decoupled_distillation_loss(z, v, y[:-1])
    with pytest.raises(ValueError, match="`beta`"):
        xent.losses.decoupled_distillation_loss(z, v, y, beta=-1.0)


def test_decoupled_parts_in_float32_are_those_of_float64():
    z, v, y = 20 * torch.randn(40, C), 20 * torch.randn(40, C), torch.randint(C, (40,))
    loss = functools.partial(xent.losses.decoupled_distillation_loss, target=y, reduction="none")
    torch.testing.assert_close(loss(z, v).double(), loss(z.double(), v.double()), rtol=2e-7, atol=0)
    a = logits(3, C).requires_grad_()
    b, y = logits(3, C).requires_grad_(), torch.tensor([0, 1, -100])
    assert torch.autograd.gradcheck(
        lambda a, b: xent.losses.decoupled_distillation_loss(a, b, y), (a, b)
    )


def test_decoupled_parts_of_masked_and_single_classes():
    """Nothing is left to learn where there is no other class; no gradient is NaN."""
    loss, y, inf = xent.losses.decoupled_distillation_loss, torch.tensor([0]), torch.inf
    of = functools.partial(torch.tensor, dtype=torch.float64)
    wide, alone = of([[2.0, 1.0, 0.0]]), of([[2.0, -inf, -inf]])
    for z, v in ((of([[2.0]]), of([[1.0]])), (alone, alone), (3 * alone, alone)):
        value, grad = value_and_grad(loss, z, v, y)
        assert value == 0
        assert torch.equal(grad, torch.zeros_like(z))
    value, grad = value_and_grad(loss, wide, alone, y, temperature=1.0)  # only cross-entropy
    expected = value_and_grad(xent.cross_entropy, wide, y)
    torch.testing.assert_close((value, grad), expected, rtol=1e-14, atol=1e-16)
    for z, v in ((alone, wide), (of([[-inf, 1.0, 0.0]]), wide), (of([[-inf, 1.0, 0.0]]), alone)):
        for weights in ({}, {"alpha": 0.0}, {"beta": 0.0}):
            value, grad = value_and_grad(loss, z, v, y, **weights)
            assert not value.isnan()
            assert grad.isfinite().all()
            assert value == inf or weights == {"alpha": 0.0}
    assert value_and_grad(loss, alone, wide, y, alpha=0.0)[0] == inf
    both = of([[-inf, 1.0, 0.0]])  # impossible for both: only the other classes differ
    value, grad = value_and_grad(loss, both, of([[-inf, 2.0, 2.0]]), y, temperature=1.0, beta=1.0)
    expected = (2 * F.softplus(of(1.0)) - 1) / 2 - math.log(2)
    assert value.item() == pytest.approx(expected.item(), rel=1e-14)
    assert grad.isfinite().all()


def test_names_of_the_authors():
    """DINO keeps its centre as a row of a matrix; the skew divergence has an alpha."""
    z, v, c = logits(N, C), logits(N, C), logits(C)
    found = xent.losses.distillation_loss(z, v, center=c[None])
    assert torch.equal(found, xent.losses.distillation_loss(z, v, center=c))
    with pytest.raises(ValueError, match="the share of the teacher in the mixture is `beta`"):
        xent.losses.distillation_loss(z, v, divergence="skew", alpha=0.1)
    with pytest.raises(ValueError, match=r"pass them as `target`, too$"):
        xent.losses.distillation_loss(z, v, alpha=0.1)
