"""Soft targets told by tables, mixtures and short lists; teachers."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from mpmath import mpf

import xent

from .helpers import spacing, ulps, value_and_grad, worst

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

N, C = 8, 6


def logits(*shape, size=2.0):
    return size * torch.randn(*shape, dtype=torch.float64)


# ---- teachers -----------------------------------------------------------------------------------

KINDS = [("forward", 0.5), ("reverse", 0.5), ("jensen_shannon", 0.5), ("jensen_shannon", 0.1)]
EACH_KIND = pytest.mark.parametrize(("kind", "beta"), KINDS)


def direct(z, v, kind, beta, temperature=1.0):
    """The textbook formula in float64."""
    log_p, log_q = torch.log_softmax(z / temperature, -1), torch.log_softmax(v / temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward":
        return (q * (log_q - log_p)).sum(-1)
    if kind == "reverse":
        return (p * (log_p - log_q)).sum(-1)
    log_m = torch.log(beta * q + (1 - beta) * p)
    return (beta * q * (log_q - log_m) + (1 - beta) * p * (log_p - log_m)).sum(-1)


def exact_row(z, v, kind, beta, temperature):
    """Value and gradients of a row, by student and by teacher, to mpmath's digits."""
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
        xent.distillation_loss, z, v, divergence=kind, beta=beta, temperature=temperature,
        keep_gradient_size=False, reduction="none",
    )  # fmt: skip
    truth, slope = value_and_grad(direct, z, v, kind, beta, temperature)
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(grad, slope, rtol=1e-13, atol=1e-14)
    scaled = xent.distillation_loss(z, v, divergence=kind, beta=beta, temperature=temperature)
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
        xent.distillation_loss, z, v, divergence=kind, beta=beta, temperature=2.0,
        keep_gradient_size=False, reduction="none",
    )  # fmt: skip
    truth, slope = exact(z, v, kind, beta, 2.0)
    assert value[0] == 0
    assert not grad[0].any()
    torch.testing.assert_close(value[1:], truth[1:], rtol=3e-14, atol=0)
    # A class whose ratio is the mean one has a slope of 0: what is next to it is its measure.
    error = (grad - slope)[1:].abs() / slope[1:].abs().amax(-1, keepdim=True)
    assert error.max() < 1e-13


@EACH_KIND
def test_every_digit_in_float32(kind, beta):
    d = torch.arange(-80, 81, 8.0)
    z = torch.stack([d, torch.zeros_like(d), -0.5 * d], 1)
    for v in (torch.zeros_like(z), -z, z * 1.0001, z.flip(1)):
        value, grad = value_and_grad(
            xent.distillation_loss, z, v, divergence=kind, beta=beta, reduction="none"
        )
        truth, slope = exact(z, v, kind, beta)
        assert worst(value, truth) <= 1
        # Two certainties that differ: p (r_j - E_p r) with log-ratios r that are almost the same.
        rounding = 1e-15 * torch.softmax(z.double(), -1)
        assert bool(((grad - slope).abs() <= spacing(slope, grad.dtype) + rounding).all())


@EACH_KIND
def test_distillation_is_differentiable_by_both(kind, beta):
    z, v = logits(3, 4).requires_grad_(), logits(3, 4).requires_grad_()

    def loss(z, v):
        return xent.distillation_loss(z, v, divergence=kind, beta=beta, temperature=1.5)

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
    fewer, slope = value_and_grad(xent.distillation_loss, z[:, 1:], v[:, 1:], **options)
    z[:, 0] = v[:, 0] = -math.inf
    value, grad = value_and_grad(xent.distillation_loss, z, v, **options)
    torch.testing.assert_close(value, fewer, rtol=1e-14, atol=0)
    torch.testing.assert_close(grad[:, 1:], slope, rtol=1e-13, atol=1e-15)
    assert not grad[:, 0].any()
    # Classes that only one of the two has.
    for mine, theirs, infinite in ((0.3, -math.inf, "reverse"), (-math.inf, 0.3, "forward")):
        z[:, 0], v[:, 0] = mine, theirs
        value, grad = value_and_grad(xent.distillation_loss, z, v, **options)
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
            xent.distillation_loss, z, z.flip(1), divergence=kind, beta=beta, reduction="none"
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
    a = xent.distillation_loss(z, v, divergence="jensen_shannon")
    torch.testing.assert_close(a, xent.distillation_loss(v, z, divergence="jensen_shannon"))
    small = xent.distillation_loss(z, v, divergence="jensen_shannon", beta=1e-9) / 1e-9
    torch.testing.assert_close(small, xent.distillation_loss(z, v), rtol=1e-7, atol=0)


def test_the_student_learns_from_labels_too():
    z, v, y = logits(N, C), logits(N, C), torch.randint(C, (N,))
    y[2] = -100
    kept = y != -100
    soft, hard = direct(z, v, "forward", 0.5)[kept], F.cross_entropy(z[kept], y[kept])
    for alpha, share in ((None, 0.5), (0.0, 0.0), (0.3, 0.3), (1.0, 1.0)):
        value = xent.distillation_loss(z, v, y, alpha=alpha)
        truth = (1 - share) * soft.mean() + share * hard
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-14)
    dense = xent.distillation_loss(z, v, torch.softmax(v, -1), alpha=1.0)
    torch.testing.assert_close(dense, F.cross_entropy(z, torch.softmax(v, -1)))


def test_rows_of_a_distillation():
    z, v = logits(2, C, 4), logits(2, C, 4)
    each = xent.distillation_loss(z, v, reduction="none")
    truth = direct(z.movedim(1, -1), v.movedim(1, -1), "forward", 0.5)
    torch.testing.assert_close(each, truth, rtol=1e-13, atol=1e-14)
    mask = torch.rand(2, 4) > 0.4
    w = torch.rand(2, 4)
    garbage = z.clone().movedim(1, -1)
    garbage[~mask] = math.nan
    garbage = garbage.movedim(-1, 1)
    value, grad = value_and_grad(xent.distillation_loss, garbage, v, row_mask=mask)
    torch.testing.assert_close(value, truth[mask].mean(), rtol=1e-13, atol=0)
    assert grad.isfinite().all()
    assert not grad.movedim(1, -1)[~mask].any()
    weighted = xent.distillation_loss(z, v, None, mask, row_weight=w)
    truth_weighted = (truth * w)[mask].sum() / w[mask].double().sum()
    torch.testing.assert_close(weighted, truth_weighted, rtol=1e-12, atol=0)
    total = xent.distillation_loss(z, v, row_mask=mask, normalizer=7)
    torch.testing.assert_close(total, truth[mask].sum() / 7, rtol=1e-13, atol=0)
    none = torch.zeros(2, 4, dtype=torch.bool)
    assert xent.distillation_loss(z, v, row_mask=none).isnan()
    assert xent.distillation_loss(z, v, row_mask=none, empty="zero") == 0
    single = xent.distillation_loss(z[0, :, 0], v[0, :, 0])
    torch.testing.assert_close(single, truth[0, 0], rtol=1e-13, atol=0)
    assert xent.distillation_loss(z.bfloat16(), v.bfloat16()).dtype == torch.bfloat16
    assert xent.distillation_loss(z.bfloat16(), v.float()).dtype == torch.float32


def test_a_few_rows_at_a_time_are_the_same(monkeypatch):
    z, v = logits(7, C).requires_grad_(), logits(7, C).requires_grad_()
    whole = xent.distillation_loss(z, v, reduction="none")
    slopes = torch.autograd.grad(whole.sum(), (z, v))
    monkeypatch.setattr("xent.dense_loss.CHUNK", 2 * C)
    parts = xent.distillation_loss(z, v, reduction="none")
    assert torch.equal(parts, whole)
    assert all(map(torch.equal, torch.autograd.grad(parts.sum(), (z, v)), slopes))


def test_a_bad_teacher_is_told():
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
            xent.distillation_loss(z, z, **options)
    with pytest.raises(ValueError, match="same rows and classes"):
        xent.distillation_loss(z, z[:, :3])
    with pytest.raises(TypeError, match="floating-point logits"):
        xent.distillation_loss(z, torch.ones(3, 4, dtype=torch.int64))


# ---- tables -------------------------------------------------------------------------------------


def test_a_table_is_a_soft_target_for_each_class():
    table = torch.softmax(logits(C, C), -1)
    for shape in ((), (3,)):
        z, y = logits(N, C, *shape), torch.randint(C, (N, *shape))
        q = table[y].movedim(-1, 1)
        for options in ({}, {"weight": torch.rand(C).double()}, {"class_bias": logits(C)}):
            value, grad = value_and_grad(
                xent.structured_cross_entropy, z, y, table=table, **options
            )
            truth, slope = value_and_grad(xent.cross_entropy, z, q, **options)
            torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
            torch.testing.assert_close(grad, slope, rtol=1e-13, atol=1e-16)
    z, y = logits(N, C), torch.randint(C, (N,))
    a, b = (
        value_and_grad(xent.structured_cross_entropy, z, y, table=torch.eye(C).double()),
        value_and_grad(xent.cross_entropy, z, y),
    )
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-16)


def test_a_table_ignores_learns_and_refuses():
    table = torch.softmax(logits(C, C), -1)
    z, y = logits(N, C), torch.randint(C, (N,))
    y[1] = -100
    z[1] = math.nan
    kept = y != -100
    value = xent.structured_cross_entropy(z, y, table=table)
    truth = F.cross_entropy(z[kept], table[y[kept]])
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
    v = logits(C, C).requires_grad_()
    z = logits(3, C).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, v: xent.structured_cross_entropy(
            z, torch.tensor([0, 3, 3]), table=torch.softmax(v, -1)
        ),
        (z, v),
    )
    z = z.detach()
    with pytest.raises(ValueError, match=r"table.*sums from"):
        xent.structured_cross_entropy(z, y[2:5], table=2 * table)
    with pytest.raises(ValueError, match=r"soft target of each class, shape \(6, 6\)"):
        xent.structured_cross_entropy(z, y[2:5], table=table[:5, :5])
    with pytest.raises(TypeError, match="table"):
        xent.structured_cross_entropy(z, y[2:5])
    with pytest.raises(TypeError, match="floating point"):
        xent.structured_cross_entropy(z, y[2:5], table=torch.eye(C).long())
    with pytest.raises(ValueError, match="one class per row"):
        xent.structured_cross_entropy(z, torch.softmax(z, -1), table=table)


# ---- mixtures -----------------------------------------------------------------------------------


def test_mixup_is_two_cross_entropies(engine):
    z = logits(N, C, 3)
    a, b = torch.randint(C, (2, N, 3))
    b[0] = a[0]
    lam = torch.rand(N, 3, dtype=torch.float64)
    lam[1], lam[2] = 0.0, 1.0
    options = {"class_bias": logits(C), "softcap": 5.0, "logit_scale": 0.7}

    def truth(z):
        z = 5 * torch.tanh(0.7 * z / 5) + options["class_bias"][:, None]
        ce_a, ce_b = (F.cross_entropy(z, y, reduction="none") for y in (a, b))
        return lam * ce_a + (1 - lam) * ce_b

    value, grad = value_and_grad(
        xent.mixup_cross_entropy, z, a, b, lam, reduction="none", engine=engine, **options
    )
    expected, slope = value_and_grad(truth, z)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradgradcheck(
        lambda x: xent.mixup_cross_entropy(x, a[:2], b[:2], 0.3), z[:2].requires_grad_()
    )


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 1e-30])
def test_mixup_has_every_digit(lam, engine):
    d = torch.arange(-80, 81, 4.0)
    z = torch.stack([d, torch.zeros_like(d), -80 + 0 * d], 1)
    for first, second in ((0, 0), (0, 1), (1, 0)):
        a, b = torch.full((len(d),), first), torch.full((len(d),), second)
        value = xent.mixup_cross_entropy(z, a, b, lam, reduction="none", engine=engine)
        with mpmath.workdps(60):
            rows = []
            for row in z.tolist():
                e = [mpmath.exp(mpf(v)) for v in row]
                nll = [mpmath.log(mpmath.fsum(e) / v) for v in e]
                rows.append(float(mpf(lam) * nll[first] + (1 - mpf(lam)) * nll[second]))
        assert ulps(value, torch.tensor(rows, dtype=torch.float64)).max() <= 2


def test_mixup_counts_a_row_as_two():
    z, lam = logits(4, C), 0.25
    a, b = torch.tensor([0, -100, 2, -100]), torch.tensor([1, 3, -100, -100])
    z[3] = math.nan
    w = torch.rand(C, dtype=torch.float64)
    twice = torch.cat([z, z]), torch.cat([a, b])
    rows = torch.tensor([lam] * 4 + [1 - lam] * 4, dtype=torch.float64)
    for options in ({}, {"weight": w}, {"reduction": "sum", "weight": w}):
        value, grad = value_and_grad(xent.mixup_cross_entropy, z, a, b, lam, **options)
        truth, slope = value_and_grad(xent.cross_entropy, *twice, row_weight=rows, **options)
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
        torch.testing.assert_close(grad, slope[:4] + slope[4:], rtol=1e-12, atol=1e-16)
    masked = logits(2, 3)
    masked[:, 0] = -math.inf
    ends = [torch.tensor([0, 0]), torch.tensor([1, 2])]
    assert xent.mixup_cross_entropy(masked, *ends, 0.5).isinf()
    value, grad = value_and_grad(xent.mixup_cross_entropy, masked, *ends, 0.0)
    torch.testing.assert_close(value, F.cross_entropy(masked, ends[1]), rtol=1e-14, atol=0)
    assert grad.isfinite().all()


def test_mixup_of_a_batch():
    x, y = torch.rand(50, 3, 4), torch.arange(50)
    mixed, a, b, lam = xent.mixup(x, y, 0.7, torch.Generator().manual_seed(3))
    torch.testing.assert_close(mixed, lam * x[a] + (1 - lam) * x[b])
    assert torch.equal(a, y)
    assert torch.equal(b.sort().values, y)
    again = xent.mixup(x, y, 0.7, torch.Generator().manual_seed(3))
    assert torch.equal(again[0], mixed)
    drawn = torch.tensor([xent.mixup(x[:1], y[:1], 2.0)[3] for _ in range(2000)])
    assert abs(drawn.mean() - 0.5) < 0.02
    assert abs(drawn.var() - 0.05) < 0.01  # of Beta(2, 2)
    with pytest.raises(ValueError, match="alpha"):
        xent.mixup(x, y, 0.0)
    with pytest.raises(ValueError, match="rows"):
        xent.mixup(x, y[:2])


def test_a_bad_mixture_is_told():
    z, y = logits(3, C), torch.tensor([0, 1, 2])
    for lam, message in ((1.5, "lam"), (torch.tensor([0.5, -0.1, 2.0]), "lam"),
                         (torch.rand(2), "one per row")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            xent.mixup_cross_entropy(z, y, y, lam)
    with pytest.raises(xent.TargetError, match="class index 6"):
        xent.mixup_cross_entropy(z, y, y + 4, 0.5)
    with pytest.raises(ValueError, match="class indices"):
        xent.mixup_cross_entropy(z, y, torch.softmax(z, -1), 0.5)


# ---- short lists --------------------------------------------------------------------------------


def lists(n=N, k=3):
    z = logits(n, C)
    classes = torch.rand(n, C).argsort(-1)[:, :k]
    q = torch.softmax(logits(n, k + 1), -1)[:, :k]
    return z, classes, q


def test_a_list_is_a_dense_target(engine):
    z, classes, q = lists()
    dense = torch.zeros_like(z).scatter(1, classes, q)
    w = torch.rand(C, dtype=torch.float64)
    for options in ({}, {"weight": w}, {"class_bias": logits(C), "logit_scale": 0.3}):
        value, grad = value_and_grad(
            xent.sparse_cross_entropy, z, classes, q, engine=engine, **options
        )
        truth, slope = value_and_grad(xent.cross_entropy, z, dense, **options)
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
        torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-15)
    value = xent.sparse_cross_entropy(z, classes, q, tail="renormalize", engine=engine)
    truth = F.cross_entropy(z, dense / dense.sum(-1, keepdim=True))
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)


def test_the_tail_is_one_class_more(engine):
    z, classes, q = lists()
    hidden = torch.zeros_like(z).scatter(1, classes, 1.0).bool()

    def truth(z):
        rest = torch.logsumexp(z.masked_fill(hidden, -math.inf), -1, keepdim=True)
        log_p = torch.log_softmax(torch.cat([z.gather(1, classes), rest], -1), -1)
        return -(torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1) * log_p).sum(-1)

    options = {"tail": "mass", "reduction": "none", "engine": engine}
    value, grad = value_and_grad(xent.sparse_cross_entropy, z, classes, q, **options)
    expected, slope = value_and_grad(truth, z)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-15)
    # Least where the listed classes and the others have their shares.
    best = torch.where(hidden, torch.zeros_like(z).scatter(1, classes, q.log()), 0)
    best = torch.where(hidden, best, torch.log((1 - q.sum(-1, keepdim=True)) / (C - 3)))
    _, grad = value_and_grad(xent.sparse_cross_entropy, best, classes, q, **options)
    assert grad.abs().max() < 1e-15


def test_the_tail_has_every_digit(engine):
    """Classes 0 (listed) and 1 (the tail), from one as good as certain to the other."""
    d = torch.arange(-80, 81, 4.0)
    z = torch.stack([d, torch.zeros_like(d), torch.full_like(d, -math.inf)], 1)
    classes = torch.zeros(len(d), 1, dtype=torch.int64)
    for share in (0.0, 0.25, 1.0):
        value, grad = value_and_grad(
            xent.sparse_cross_entropy, z, classes, torch.full((len(d), 1), share), tail="mass",
            reduction="none", engine=engine,
        )  # fmt: skip
        with mpmath.workdps(60):
            both = [
                (mpmath.log1p(mpmath.exp(-mpf(v))), mpmath.log1p(mpmath.exp(mpf(v))))
                for v in d.tolist()
            ]
            truth = [float(share * a + (1 - share) * b) for a, b in both]
            slope = [float(1 / (1 + mpmath.exp(-mpf(v))) - share) for v in d.tolist()]
        assert worst(value, torch.tensor(truth, dtype=torch.float64)) <= 2
        slope = torch.tensor(slope, dtype=torch.float64)
        assert worst(grad[:, 0], slope, d.abs().double()) <= 4
        assert worst(grad[:, 1], -slope, d.abs().double()) <= 4


@pytest.mark.parametrize("tail", ["ignore", "mass", "renormalize"])
def test_lists_of_different_lengths(tail, engine):
    z, classes, q = lists(4, 3)
    classes[0, 1], classes[1, 0], classes[2] = -100, -100, -100
    z[2] = math.nan
    value, grad = value_and_grad(
        xent.sparse_cross_entropy, z, classes, q, tail=tail, reduction="none", engine=engine
    )
    assert value[2] == 0
    assert not grad[2].any()
    for row in (0, 1, 3):
        there = classes[row] != -100
        truth, slope = value_and_grad(
            xent.sparse_cross_entropy, z[row], classes[row, there], q[row, there], tail=tail,
            engine=engine,
        )  # fmt: skip
        torch.testing.assert_close(value[row], truth, rtol=1e-14, atol=0)
        torch.testing.assert_close(grad[row], slope, rtol=1e-13, atol=1e-16)
    mean = xent.sparse_cross_entropy(z, classes, q, tail=tail, engine=engine)
    torch.testing.assert_close(mean, value.sum() / 3, rtol=1e-14, atol=0)


@pytest.mark.parametrize("tail", ["ignore", "mass"])
def test_lists_of_every_class_and_every_axis(tail, engine):
    z = logits(2, C, 3)
    q = torch.softmax(logits(2, C, 3), 1).float()
    everything = torch.arange(C)[None, :, None].expand(2, C, 3)
    value = xent.sparse_cross_entropy(z, everything, q, tail=tail, engine=engine)
    torch.testing.assert_close(value, F.cross_entropy(z, q.double()), rtol=1e-6, atol=0)
    part = xent.sparse_cross_entropy(
        z, everything[:, :2], q[:, :2], tail=tail, reduction="none", engine=engine
    )
    alone = xent.sparse_cross_entropy(
        z[1, :, 2], everything[1, :2, 2], q[1, :2, 2], tail=tail, engine=engine
    )
    assert part.shape == (2, 3)
    torch.testing.assert_close(part[1, 2], alone, rtol=1e-14, atol=0)


def test_lists_are_differentiable():
    z, classes, _ = lists(2)
    z.requires_grad_()
    v = logits(2, 4).requires_grad_()
    for tail in ("ignore", "mass", "renormalize"):

        def loss(z, v, tail=tail):
            return xent.sparse_cross_entropy(z, classes, torch.softmax(v, -1)[:, :3], tail=tail)

        assert torch.autograd.gradcheck(loss, (z, v), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(loss, (z, v), fast_mode=True)
        whole = torch.autograd.grad(loss(z, v), z)[0]
        each = torch.func.vmap(
            torch.func.grad(lambda x, c, p, t=tail: xent.sparse_cross_entropy(x, c, p, tail=t))
        )(z.detach(), classes, torch.softmax(v.detach(), -1)[:, :3])
        torch.testing.assert_close(each / 2, whole, rtol=1e-12, atol=1e-15)


def test_a_bad_list_is_told():
    z, classes, q = lists()
    twice = classes.clone()
    twice[0, 0] = twice[0, 2]
    with pytest.raises(ValueError, match=f"no class twice in a row; {twice[0, 0]} is"):
        xent.sparse_cross_entropy(z, twice, q)
    with pytest.raises(xent.TargetError, match="class index 6"):
        xent.sparse_cross_entropy(z, torch.full_like(classes, 6), q)
    with pytest.raises(ValueError, match=r"probabilities.*at most 1"):
        xent.sparse_cross_entropy(z, classes, q + 1)
    with pytest.raises(ValueError, match="K in the place"):
        xent.sparse_cross_entropy(z, classes, q[:, :2])
    with pytest.raises(ValueError, match="K in the place"):
        xent.sparse_cross_entropy(z, classes[:, 0], q[:, 0])
    with pytest.raises(ValueError, match="tail"):
        xent.sparse_cross_entropy(z, classes, q, tail="drop")
    with pytest.raises(ValueError, match="`weight` has a number for each class"):
        xent.sparse_cross_entropy(z, classes, q, torch.ones(C).double(), tail="mass")
    with pytest.raises(TypeError, match="class indices"):
        xent.sparse_cross_entropy(z, classes.double(), q)
