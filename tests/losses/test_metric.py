"""Losses of labelled features: each equal to its formula on the matrix of all pairs."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import grads, same_bits
from xent.heads import chunks as heads
from xent.losses import (
    circle_loss,
    decoupled_contrastive_loss,
    multi_similarity_loss,
    nca_loss,
    supcon_loss,
)

every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
N, D = 14, 5
# Three classes of several examples, two examples of a class of their own, one to ignore.
Y = torch.tensor([0, 1, 0, 2, 1, 0, 7, 2, -100, 2, 9, 1, 2, 0])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Make even small problems take several chunks."""
    monkeypatch.setattr(heads, "MAX_ROWS", 4)


def features(n=N, d=D):
    return torch.randn(n, d, dtype=torch.float64, requires_grad=True)


# ---- the formulas, row by row -------------------------------------------------------------------


def each_row(x, y):
    """Yield similarities to positives and negatives of each row, None where the row is ignored."""
    for n in range(len(y)):
        others = [m for m in range(len(y)) if m != n and y[m] != -100]
        near = torch.tensor([m for m in others if y[m] == y[n]], dtype=torch.int64)
        far = torch.tensor([m for m in others if y[m] != y[n]], dtype=torch.int64)
        yield None if y[n] == -100 else (x[n], x[near], x[far])


def supcon(a, near, far, temperature=0.07):
    if not len(near):
        return None
    p, q = near @ a / temperature, far @ a / temperature
    return torch.cat([p, q]).logsumexp(0) - p.mean()


def nca(a, near, far, temperature=1.0):
    if not len(near):
        return None
    p, q = (-(x - a).square().sum(1) / temperature for x in (near, far))
    return -F.logsigmoid(p.logsumexp(0) - q.logsumexp(0))


def decoupled(a, near, far, temperature=0.1):
    if not len(near) or not len(far):
        return None
    return (far @ a / temperature).logsumexp(0) - (near @ a / temperature).mean()


def multi_similarity(a, near, far, alpha=2.0, beta=50.0, base=0.5):
    p, q = torch.exp(-alpha * (near @ a - base)).sum(), torch.exp(beta * (far @ a - base)).sum()
    return torch.log1p(p) / alpha + torch.log1p(q) / beta


def circle(a, near, far, margin=0.4, gamma=80.0):
    if not len(near) or not len(far):
        return None
    p, q = near @ a, far @ a
    pull, push = (1 + margin - p.detach()).clamp(min=0), (q.detach() + margin).clamp(min=0)
    p = (-gamma * pull * (p - 1 + margin)).logsumexp(0)
    return -F.logsigmoid(-p - (gamma * push * (q - margin)).logsumexp(0))


# The loss, its formula, whether features are normalised by default, other hyperparameters.
LOSSES = {
    "supcon": (supcon_loss, supcon, True, {"temperature": 0.5}),
    "nca": (nca_loss, nca, False, {"temperature": 2.5}),
    "decoupled": (decoupled_contrastive_loss, decoupled, True, {"temperature": 0.4}),
    "multi-similarity": (
        multi_similarity_loss, multi_similarity, True, {"alpha": 1.5, "beta": 8.0, "base": 0.2},
    ),
    "circle": (circle_loss, circle, True, {"margin": 0.25, "gamma": 6.0}),
}  # fmt: skip
each = pytest.mark.parametrize("name", LOSSES)


def expected_of(name, x, y, normalize=None, **settings):
    """Return the loss of each row, 0 for rows that are left out, and a mask of the kept ones."""
    _, formula, unit, _ = LOSSES[name]
    x = F.normalize(x, dim=1) if (unit if normalize is None else normalize) else x
    values = [None if row is None else formula(*row, **settings) for row in each_row(x, y)]
    kept = torch.tensor([v is not None for v in values])
    return torch.stack([x.new_zeros(()) if v is None else v for v in values]), kept


def reduced(values, weight, reduction):
    values = values * weight
    return {"none": values, "sum": values.sum(), "mean": values.sum() / weight.sum()}[reduction]


def agree(found, expected, parts, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-13)
    slopes = (torch.autograd.grad((x * 1.5).sum(), parts) for x in (found, expected))
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@each
@every_reduction
@pytest.mark.parametrize("weighted", [True, False])
def test_value_and_gradient_are_those_of_the_formula(name, reduction, weighted):
    loss, _, _, others = LOSSES[name]
    for settings in ({}, {**others, "normalize": True}, {**others, "normalize": False}):
        x = features()
        values, kept = expected_of(name, x, Y, **settings)
        weight = torch.rand(N, dtype=torch.float64) if weighted else torch.ones(N).double()
        weight[2] = 0 if weighted else 1
        options = {"row_weight": weight} if weighted else {}
        found = loss(x, Y, reduction=reduction, **options, **settings)
        # Exponents of hundreds of nats are rounded to a unit.
        size = max(1.0, values.detach().abs().max().item())
        agree(found, reduced(values, weight * kept, reduction), (x,), 1e-12, 1e-12 * size)


@each
def test_temperature_that_is_learned(name):
    loss, _, _, others = LOSSES[name]
    if "temperature" not in others:
        pytest.skip("has no temperature")
    x, t = features(), torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    values, kept = expected_of(name, x, Y, temperature=t)
    agree(loss(x, Y, temperature=t), values.sum() / kept.sum(), (x, t))


@each
def test_second_derivatives(name):
    loss, _, _, others = LOSSES[name]
    x = features(7, 3)
    y = torch.tensor([0, 0, 1, 1, 0, 1, 9])  # the last example has a label of its own

    def by_xent(a):
        return loss(a, y, **others)

    def by_formula(a):
        values, kept = expected_of(name, a, y, **others)
        return values.sum() / kept.sum()

    if name != "circle":  # whose gradient is not that of its value: the weights are constants
        assert torch.autograd.gradcheck(by_xent, x)
        assert torch.autograd.gradgradcheck(by_xent, x)
    found, truth = (
        torch.autograd.grad(f(x), x, create_graph=True)[0] for f in (by_xent, by_formula)
    )
    twice, expected = (torch.autograd.grad(g.square().sum(), x)[0] for g in (found, truth))
    torch.testing.assert_close(twice, expected, rtol=1e-11, atol=1e-11)


@each
def test_float32_is_near_float64(name):
    loss, _, _, others = LOSSES[name]
    x, y = torch.randn(60, 16), torch.randint(8, (60,))
    wide = x.double().requires_grad_()
    values, kept = expected_of(name, wide, y, **others)
    truth = values.sum() / kept.sum()
    found = loss(x, y, **others)
    assert found.dtype == torch.float32
    assert abs(found.item() - truth.item()) <= 2e-6 * abs(truth.item())
    narrow = x.requires_grad_()
    (a,), (b,) = grads(loss(narrow, y, **others), [narrow]), grads(truth, [wide])
    assert (a.double() - b).norm() <= 5e-6 * b.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_common_offset_costs_no_digit_of_a_distance(dtype):
    x, y = (torch.randn(60, 16) + 100).to(dtype), torch.randint(8, (60,))
    y[7], dirty = -100, x.clone()
    dirty[7] = torch.nan
    wide = x.double().requires_grad_()
    values, kept = expected_of("nca", wide, y)
    truth = values.sum() / kept.sum()
    limit = max(2e-6, torch.finfo(dtype).eps)
    narrow = dirty.requires_grad_()
    found = nca_loss(narrow, y)
    assert abs(found.item() - truth.item()) <= limit * truth.item()
    (a,), (b,) = grads(found, [narrow]), grads(truth, [wide])
    assert (a.double() - b).norm() <= 2.5 * limit * b.norm()


def test_narrow_products_of_distances_are_taken_if_asked_for():
    x, y = torch.randn(60, 16).bfloat16() / 4, torch.randint(8, (60,))
    truth = nca_loss(x.double(), y).item()
    assert nca_loss(x, y, products="float32").item() == nca_loss(x, y).item()
    found = nca_loss(x, y, products="input").item()
    assert found == pytest.approx(truth, rel=2**-6)


# ---- laws ---------------------------------------------------------------------------------------


@each
def test_the_order_of_the_rows_does_not_matter(name):
    loss, order = LOSSES[name][0], torch.randperm(N)
    x = features().detach()
    a, b = loss(x, Y, reduction="none"), loss(x[order], Y[order], reduction="none")
    torch.testing.assert_close(a[order], b, rtol=1e-12, atol=1e-13)


@each
def test_the_workspace_does_not_matter(name):
    loss, x = LOSSES[name][0], features()
    agree(loss(x, Y, max_workspace=1), loss(x, Y), (x,), atol=1e-10)


@each
def test_an_ignored_row_is_a_row_left_out(name):
    loss, x = LOSSES[name][0], features().detach()
    rest = Y != -100
    values = loss(x[rest], Y[rest], reduction="none")
    x[~rest] = torch.nan
    x.requires_grad_()
    found = loss(x, Y, reduction="none")
    torch.testing.assert_close(found[rest], values, rtol=1e-12, atol=1e-13)
    assert found[~rest].tolist() == [0.0]
    (grad,) = torch.autograd.grad(loss(x, Y), x)
    assert grad.isfinite().all()
    assert not grad[~rest].any()
    moved = torch.where(rest, Y, 3)
    torch.testing.assert_close(
        loss(x, moved, ignore_index=3, reduction="none"), found, rtol=0, atol=0
    )


@each
def test_no_rows(name):
    loss, unit = LOSSES[name][0], LOSSES[name][0] is multi_similarity_loss
    x = torch.randn(0, D, requires_grad=True)
    y = torch.zeros(0, dtype=torch.int64)
    assert loss(x, y).isnan()
    assert loss(x, y, empty="zero") == 0
    assert loss(x, y, reduction="none").shape == (0,)
    x = torch.randn(3, D, requires_grad=True)
    for labels in (torch.full((3,), -100), *([] if unit else [torch.arange(3)])):
        value = loss(x, labels, empty="zero")
        value.backward()
        assert value == 0
        assert not x.grad.any()
        assert loss(x, labels).isnan()


def test_two_views_are_nt_xent():
    a, b = features(6), features(6)
    y = torch.arange(6).repeat(2)
    found = supcon_loss(torch.cat([a, b]), y, temperature=0.3)
    agree(found, xent.losses.nt_xent_loss(a, b, temperature=0.3), (a, b))


def test_a_neighbour_is_the_class_of_a_set():
    x = features(9)
    y = torch.randint(3, (9,))
    z = -torch.cdist(x, x).square().masked_fill(torch.eye(9).bool(), torch.inf)
    kept = torch.tensor([(y == k).sum() > 1 for k in y]).double()
    expected = xent.losses.set_cross_entropy(z, y, groups=y, row_weight=kept)
    torch.testing.assert_close(nca_loss(x, y), expected, rtol=1e-12, atol=1e-13)


def test_a_sure_pair_keeps_its_digits():
    """In float32, similarity 1 for the pair and 0 for all others, at a temperature of 1/60."""
    x = torch.eye(3).repeat(2, 1)
    y = torch.arange(3).repeat(2)
    truth = mpmath.log1p(4 * mpmath.exp(-mpmath.mpf(60)))
    found = supcon_loss(x, y, temperature=1 / 60)
    assert abs(found.item() - float(truth)) <= 8 * 2**-24 * 60 * truth
    truth = mpmath.log1p(4 * mpmath.exp(-mpmath.mpf(120)))
    found = nca_loss(math.sqrt(60) * x.double(), y)
    assert abs(found.item() - float(truth)) <= 8 * 2**-53 * 120 * truth


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_types(name, dtype):
    loss, _, _, others = LOSSES[name]
    x, y = torch.randn(40, 16).to(dtype) / 2, torch.randint(5, (40,))
    found = loss(x, y, normalize=False, **others)
    assert found.dtype == dtype
    truth = loss(x.double(), y, normalize=False, **others).item()
    assert abs(found.item() - truth) <= torch.finfo(dtype).eps * abs(truth)


@each
def test_no_matrix_of_pairs(name):
    """No tensor is larger than a chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    self.numel = max(self.numel, x.untyped_storage().nbytes() // x.itemsize)
            return out

    n = 64
    x = torch.randn(n, 4, requires_grad=True)
    for options in ({}, {"reduction": "none"}):
        with Largest() as seen:
            LOSSES[name][0](x, torch.arange(n) % 5, **options).sum().backward()
        assert seen.numel < n * n / 2


@each
def test_the_facts_of_the_catalog(name):
    """Convex in the similarities, or not; not bounded. A Gram matrix may be any of its kind."""
    loss, _, _, others = LOSSES[name]
    member = xent.losses.CATALOG[loss.__name__]
    y = torch.tensor([0, 0, 1, 1, 0])

    def of_gram(gram):
        return loss(torch.linalg.cholesky(gram), y, normalize=False, **others).item()

    sags = []
    for step in [1.0, 0.1] * 50:
        near = (
            0.2 * torch.rand(2, 5, 5, dtype=torch.float64) - 0.35
        )  # a weight of circle_loss ends at -0.25
        a, b = ((g + g.T) / 2 + 2 * torch.eye(5) for g in (near[0], near[0].lerp(near[1], step)))
        at_a, at_b = of_gram(a), of_gram(b)
        sags.append((of_gram((a + b) / 2) - (at_a + at_b) / 2) / (1 + abs(at_a) + abs(at_b)))
    assert max(sags) <= 1e-12 if member.convex else max(sags) > 1e-6
    x = torch.eye(3, dtype=torch.float64)[[0, 1, 0, 1, 2]]  # as wrong as can be
    near, far = (loss(size * x, y, normalize=False, **others) for size in (100, 200))
    assert not member.bounded
    assert far > 1.5 * near


BAD = {
    "features": (lambda loss: loss(torch.randn(5), Y[:5]), ValueError, "`features` must"),
    "integers": (lambda loss: loss(torch.ones(5, 2).long(), Y[:5]), ValueError, "`features`"),
    "labels": (lambda loss: loss(torch.randn(5, 2), Y[:4]), ValueError, "`labels` must"),
    "no labels": (lambda loss: loss(torch.randn(5, 2), torch.rand(5)), TypeError, "`labels`"),
    "weight": (
        lambda loss: loss(torch.randn(5, 2), Y[:5], row_weight=torch.ones(4)),
        ValueError, "`row_weight`",
    ),
    "an option": (lambda loss: loss(torch.randn(5, 2), Y[:5], sharp=1), TypeError, "'sharp'"),
}  # fmt: skip


@each
@pytest.mark.parametrize("bad", BAD)
def test_bad_input(name, bad):
    call, kind, message = BAD[bad]
    with pytest.raises(kind, match=message):
        call(LOSSES[name][0])


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        (supcon_loss, "temperature"), (nca_loss, "temperature"),
        (decoupled_contrastive_loss, "temperature"), (multi_similarity_loss, "alpha"),
        (multi_similarity_loss, "beta"), (circle_loss, "gamma"),
    ],
)  # fmt: skip
def test_a_hyperparameter_that_must_be_positive(loss, option):
    with pytest.raises(ValueError, match=f"`{option}` must be"):
        loss(torch.randn(5, 2), Y[:5], **{option: 0.0})


@pytest.mark.parametrize("loss", [nca_loss, multi_similarity_loss])
def test_a_loss_of_0_has_no_sign(loss):
    x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0])
    if loss is multi_similarity_loss:
        y = torch.tensor([0, -100])  # nothing to compare the first example with
    assert same_bits(loss(x, y, reduction="none"), torch.zeros(2))
