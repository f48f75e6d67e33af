"""Soft targets given by tables, mixtures and short lists."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from mpmath import mpf

import xent
from tests.helpers import ulps, value_and_grad, widest, worst

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

N, C = 8, 6


@pytest.fixture
def engine(every_engine):
    """Run on Triton's kernels, too."""
    return every_engine


def logits(*shape):
    return 2 * torch.randn(*shape, dtype=torch.float64)


# ---- tables -------------------------------------------------------------------------------------


def test_a_table_is_a_soft_target_for_each_class():
    table = torch.softmax(logits(C, C), -1)
    for shape in ((), (3,)):
        z, y = logits(N, C, *shape), torch.randint(C, (N, *shape))
        q = table[y].movedim(-1, 1)
        for options in ({}, {"weight": torch.rand(C).double()}, {"class_bias": logits(C)}):
            value, grad = value_and_grad(
                xent.losses.structured_cross_entropy, z, y, table=table, **options
            )
            truth, slope = value_and_grad(xent.cross_entropy, z, q, **options)
            torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
            torch.testing.assert_close(grad, slope, rtol=1e-13, atol=1e-16)
    z, y = logits(N, C), torch.randint(C, (N,))
    a, b = (
        value_and_grad(xent.losses.structured_cross_entropy, z, y, table=torch.eye(C).double()),
        value_and_grad(xent.cross_entropy, z, y),
    )
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-16)


def test_a_table_ignores_learns_and_refuses():
    table = torch.softmax(logits(C, C), -1)
    z, y = logits(N, C), torch.randint(C, (N,))
    y[1] = -100
    z[1] = math.nan
    kept = y != -100
    value = xent.losses.structured_cross_entropy(z, y, table=table)
    truth = F.cross_entropy(z[kept], table[y[kept]])
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
    v = logits(C, C).requires_grad_()
    z = logits(3, C).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, v: xent.losses.structured_cross_entropy(
            z, torch.tensor([0, 3, 3]), table=torch.softmax(v, -1)
        ),
        (z, v),
    )
    z = z.detach()
    with pytest.raises(ValueError, match=r"table.*sums from"):
        xent.losses.structured_cross_entropy(z, y[2:5], table=2 * table)
    with pytest.raises(ValueError, match=r"soft target of each class, shape \(6, 6\)"):
        xent.losses.structured_cross_entropy(z, y[2:5], table=table[:5, :5])
    with pytest.raises(TypeError, match="table"):
        xent.losses.structured_cross_entropy(z, y[2:5])
    with pytest.raises(TypeError, match="floating point"):
        xent.losses.structured_cross_entropy(z, y[2:5], table=torch.eye(C).long())
    with pytest.raises(ValueError, match="one class per row"):
        xent.losses.structured_cross_entropy(z, torch.softmax(z, -1), table=table)


# ---- mixtures -----------------------------------------------------------------------------------


@pytest.mark.float64
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
        xent.losses.mixup_cross_entropy, z, a, b, lam, reduction="none", engine=engine, **options
    )
    expected, slope = value_and_grad(truth, z)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradgradcheck(
        lambda x: xent.losses.mixup_cross_entropy(x, a[:2], b[:2], 0.3), z[:2].requires_grad_()
    )


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 1e-30])
def test_mixup_has_every_digit(lam, engine):
    d = torch.arange(-80, 81, 4.0)
    z = torch.stack([d, torch.zeros_like(d), -80 + 0 * d], 1)
    for first, second in ((0, 0), (0, 1), (1, 0)):
        a, b = torch.full((len(d),), first), torch.full((len(d),), second)
        value = xent.losses.mixup_cross_entropy(z, a, b, lam, reduction="none", engine=engine)
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
        value, grad = value_and_grad(xent.losses.mixup_cross_entropy, z, a, b, lam, **options)
        truth, slope = value_and_grad(xent.cross_entropy, *twice, row_weight=rows, **options)
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
        torch.testing.assert_close(grad, slope[:4] + slope[4:], rtol=1e-12, atol=1e-16)
    masked = logits(2, 3)
    masked[:, 0] = -math.inf
    ends = [torch.tensor([0, 0]), torch.tensor([1, 2])]
    assert xent.losses.mixup_cross_entropy(masked, *ends, 0.5).isinf()
    value, grad = value_and_grad(xent.losses.mixup_cross_entropy, masked, *ends, 0.0)
    torch.testing.assert_close(value, F.cross_entropy(masked, ends[1]), rtol=1e-14, atol=0)
    assert grad.isfinite().all()


def test_mixup_of_a_batch():
    x, y = torch.rand(50, 3, 4), torch.arange(50)
    mixed, a, b, lam = xent.losses.mixup(x, y, 0.7, torch.Generator().manual_seed(3))
    torch.testing.assert_close(mixed, lam * x[a] + (1 - lam) * x[b])
    assert torch.equal(a, y)
    assert torch.equal(b.sort().values, y)
    again = xent.losses.mixup(x, y, 0.7, torch.Generator().manual_seed(3))
    assert torch.equal(again[0], mixed)
    drawn = torch.tensor([xent.losses.mixup(x[:1], y[:1], 2.0)[3] for _ in range(2000)])
    assert abs(drawn.mean() - 0.5) < 0.02
    assert abs(drawn.var() - 0.05) < 0.01  # of Beta(2, 2)
    with pytest.raises(ValueError, match="alpha"):
        xent.losses.mixup(x, y, 0.0)
    with pytest.raises(ValueError, match="rows"):
        xent.losses.mixup(x, y[:2])


def test_a_bad_mixture_is_refused_with_the_reason():
    z, y = logits(3, C), torch.tensor([0, 1, 2])
    for lam, message in ((1.5, "lam"), (torch.tensor([0.5, -0.1, 2.0]), "lam"),
                         (torch.rand(2), "one per row")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            xent.losses.mixup_cross_entropy(z, y, y, lam)
    with pytest.raises(xent.TargetError, match="class index 6"):
        xent.losses.mixup_cross_entropy(z, y, y + 4, 0.5)
    with pytest.raises(ValueError, match="class indices"):
        xent.losses.mixup_cross_entropy(z, y, torch.softmax(z, -1), 0.5)


# ---- short lists --------------------------------------------------------------------------------


def lists(n=N, k=3):
    z = logits(n, C)
    classes = torch.rand(n, C).argsort(-1)[:, :k]
    q = torch.softmax(logits(n, k + 1), -1)[:, :k]
    return z, classes, q


@pytest.mark.float64
def test_a_list_is_a_dense_target(engine):
    z, classes, q = lists()
    dense = torch.zeros_like(z).scatter(1, classes, q)
    w = torch.rand(C, dtype=torch.float64)
    for options in ({}, {"weight": w}, {"class_bias": logits(C), "logit_scale": 0.3}):
        value, grad = value_and_grad(
            xent.losses.sparse_cross_entropy, z, classes, q, engine=engine, **options
        )
        truth, slope = value_and_grad(xent.cross_entropy, z, dense, **options)
        torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
        torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-15)
    value = xent.losses.sparse_cross_entropy(z, classes, q, tail="renormalize", engine=engine)
    truth = F.cross_entropy(z, dense / dense.sum(-1, keepdim=True))
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)


@pytest.mark.float64
def test_a_list_without_mass_costs_nothing(engine):
    z, classes, q = lists(3)
    q[1] = 0
    options = {"reduction": "none", "engine": engine}
    value, grad = value_and_grad(xent.losses.sparse_cross_entropy, z, classes, q, **options)
    assert value[1] == 0
    assert (value[[0, 2]] > 0).all()
    assert (grad[1] == 0).all()


@pytest.mark.parametrize("tail", ["ignore", "mass", "renormalize"])
def test_lists_in_float32(tail, engine):
    z, classes, q = (x.float() if x.is_floating_point() else x for x in lists())
    options = {"tail": tail, "reduction": "none"}
    value, grad = value_and_grad(
        xent.losses.sparse_cross_entropy, z, classes, q, engine=engine, **options
    )
    truth, slope = value_and_grad(
        xent.losses.sparse_cross_entropy,
        z.double(),
        classes,
        q.double(),
        engine="reference",
        **options,
    )
    torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), slope, rtol=4e-6, atol=1e-6)


@pytest.mark.float64
def test_the_tail_is_one_class_more(engine):
    z, classes, q = lists()
    hidden = torch.zeros_like(z).scatter(1, classes, 1.0).bool()

    def truth(z):
        rest = torch.logsumexp(z.masked_fill(hidden, -math.inf), -1, keepdim=True)
        log_p = torch.log_softmax(torch.cat([z.gather(1, classes), rest], -1), -1)
        return -(torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1) * log_p).sum(-1)

    options = {"tail": "mass", "reduction": "none", "engine": engine}
    value, grad = value_and_grad(xent.losses.sparse_cross_entropy, z, classes, q, **options)
    expected, slope = value_and_grad(truth, z)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-15)
    # The loss is least where the listed classes and the others have their shares.
    best = torch.where(hidden, torch.zeros_like(z).scatter(1, classes, q.log()), 0)
    best = torch.where(hidden, best, torch.log((1 - q.sum(-1, keepdim=True)) / (C - 3)))
    _, grad = value_and_grad(xent.losses.sparse_cross_entropy, best, classes, q, **options)
    assert grad.abs().max() < 1e-15


def test_the_tail_has_every_digit(engine):
    """Classes 0 (listed) and 1 (the tail), with probabilities from nearly 0 to nearly 1."""
    d = torch.arange(-80, 81, 4.0)
    z = torch.stack([d, torch.zeros_like(d), torch.full_like(d, -math.inf)], 1)
    classes = torch.zeros(len(d), 1, dtype=torch.int64)
    for share in (0.0, 0.25, 1.0):
        value, grad = value_and_grad(
            xent.losses.sparse_cross_entropy,
            z,
            classes,
            torch.full((len(d), 1), share),
            tail="mass",
            reduction="none",
            engine=engine,
        )
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


@pytest.mark.float64
@pytest.mark.parametrize("tail", ["ignore", "mass", "renormalize"])
def test_lists_of_different_lengths(tail, engine):
    z, classes, q = lists(4, 3)
    classes[0, 1], classes[1, 0], classes[2] = -100, -100, -100
    z[2] = math.nan
    value, grad = value_and_grad(
        xent.losses.sparse_cross_entropy, z, classes, q, tail=tail, reduction="none", engine=engine
    )
    assert value[2] == 0
    assert not grad[2].any()
    for row in (0, 1, 3):
        there = classes[row] != -100
        truth, slope = value_and_grad(
            xent.losses.sparse_cross_entropy, z[row], classes[row, there], q[row, there], tail=tail,
            engine=engine,
        )  # fmt: skip
        torch.testing.assert_close(value[row], truth, rtol=1e-14, atol=0)
        torch.testing.assert_close(grad[row], slope, rtol=1e-13, atol=1e-16)
    mean = xent.losses.sparse_cross_entropy(z, classes, q, tail=tail, engine=engine)
    torch.testing.assert_close(mean, value.sum() / 3, rtol=1e-14, atol=0)


@pytest.mark.parametrize("tail", ["ignore", "mass"])
def test_lists_of_every_class_and_every_axis(tail, engine):
    z = logits(2, C, 3).to(widest(engine))
    q = torch.softmax(logits(2, C, 3), 1).float()
    everything = torch.arange(C)[None, :, None].expand(2, C, 3)
    value = xent.losses.sparse_cross_entropy(
        z, everything, q, tail=tail, engine=engine, class_dim=1
    )
    truth = F.cross_entropy(z.double(), q.double())
    torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=0)
    part = xent.losses.sparse_cross_entropy(
        z, everything[:, :2], q[:, :2], tail=tail, reduction="none", engine=engine
    )
    alone = xent.losses.sparse_cross_entropy(
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
            return xent.losses.sparse_cross_entropy(
                z, classes, torch.softmax(v, -1)[:, :3], tail=tail
            )

        assert torch.autograd.gradcheck(loss, (z, v), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(loss, (z, v), fast_mode=True)
        whole = torch.autograd.grad(loss(z, v), z)[0]
        each = torch.func.vmap(
            torch.func.grad(
                lambda x, c, p, t=tail: xent.losses.sparse_cross_entropy(x, c, p, tail=t)
            )
        )(z.detach(), classes, torch.softmax(v.detach(), -1)[:, :3])
        torch.testing.assert_close(each / 2, whole, rtol=1e-12, atol=1e-15)


def test_a_bad_list_is_refused_with_the_reason():
    z, classes, q = lists()
    twice = classes.clone()
    twice[0, 0] = twice[0, 2]
    with pytest.raises(ValueError, match=f"no class twice in a row; {twice[0, 0]} is"):
        xent.losses.sparse_cross_entropy(z, twice, q)
    with pytest.raises(xent.TargetError, match="class index 6"):
        xent.losses.sparse_cross_entropy(z, torch.full_like(classes, 6), q)
    with pytest.raises(ValueError, match=r"probabilities.*at most 1"):
        xent.losses.sparse_cross_entropy(z, classes, q + 1)
    with pytest.raises(ValueError, match="K in the place"):
        xent.losses.sparse_cross_entropy(z, classes, q[:, :2])
    with pytest.raises(ValueError, match="K in the place"):
        xent.losses.sparse_cross_entropy(z, classes[:, 0], q[:, 0])
    with pytest.raises(ValueError, match="tail"):
        xent.losses.sparse_cross_entropy(z, classes, q, tail="drop")
    with pytest.raises(ValueError, match="`weight` has a number for each class"):
        xent.losses.sparse_cross_entropy(z, classes, q, torch.ones(C).double(), tail="mass")
    with pytest.raises(TypeError, match="class indices"):
        xent.losses.sparse_cross_entropy(z, classes.double(), q)


def test_a_target_of_0_has_a_slope_for_every_class():
    """Also the likeliest class, which kernels keep apart from the others."""
    z = torch.tensor([[3.0, 0.0, 1.0], [0.0, 3.0, -torch.inf]], dtype=torch.float64)
    q = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(xent.cross_entropy(z, q, reduction="sum"), q)
    truth = -torch.log_softmax(z, 1)
    torch.testing.assert_close(slope[0], truth[0])
    torch.testing.assert_close(slope[1, :2], truth[1, :2])
    assert slope.isfinite().all()
