"""Targets that are sets of classes: closed forms, and the laws of sets."""

import inspect

import mpmath
import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import head, same_bits, ulps, value_and_grad, widest
from xent.heads import chunks as heads
from xent.heads.problem import make_problem
from xent.losses import set_cross_entropy
from xent.losses.sets import set_statistics

N, C = 12, 7
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture
def small_chunks(monkeypatch):
    """Make even small problems behind a head take several chunks."""
    monkeypatch.setattr(heads, "MAX_ROWS", 5)


def some_sets(rows=N, classes=C):
    """Return random sets, none of them empty or full."""
    inside = torch.rand(rows, classes) < 0.4
    inside[:, 0], inside[:, 1] = True, False
    return inside[:, torch.randperm(classes)]


def log_odds(z, inside):
    """Return the log-odds of sets, in float64."""
    z = z.double()
    within, without = (z.masked_fill(m, -torch.inf).logsumexp(-1) for m in (~inside, inside))
    return within - without


def closed_form(z, inside):
    return -F.logsigmoid(log_odds(z, inside))


def reduced(values, weight, reduction):
    values = values * weight
    return {"none": values, "sum": values.sum(), "mean": values.sum() / weight.sum()}[reduction]


def agree(found, expected, parts, rtol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-13)
    slopes = (torch.autograd.grad((x * 1.5).sum(), parts) for x in (found, expected))
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


@every_reduction
def test_value_and_gradient_are_those_of_the_formula(reduction, every_engine):
    z = 3 * torch.randn(N, C, dtype=torch.float64)
    z, inside = z.to(widest(every_engine)), some_sets()
    weight = torch.rand(N, dtype=torch.float64)
    weight[3] = 0
    bias = torch.linspace(-1, 1, C, dtype=z.dtype)
    scale = torch.linspace(0.5, 1.5, N, dtype=torch.float64)
    parts = [z.requires_grad_()]
    if z.dtype == torch.float64:  # a learned scale makes logits in float64
        parts.append(scale.requires_grad_())
    found = set_cross_entropy(
        z, inside, reduction=reduction, row_weight=weight, logit_scale=scale, softcap=6.0,
        class_bias=bias, engine=every_engine,
    )  # fmt: skip
    x = 6 * torch.tanh(z.double() * scale[:, None] / 6) + bias.double()
    expected = reduced(closed_form(x, inside), weight, reduction).to(z.dtype)
    agree(found, expected, parts, 1e-12 if z.dtype == torch.float64 else 4e-6)


def test_in_float32_a_sure_set_keeps_its_digits(every_engine):
    z = torch.tensor([[20.0, 19.0, -5.0, -6.0]])
    some = torch.tensor([[True, True, False, False]])
    value, grad = value_and_grad(set_cross_entropy, z, some, engine=every_engine)
    odds = (mpmath.exp(20) + mpmath.exp(19)) / (mpmath.exp(-5) + mpmath.exp(-6))
    loss, miss = mpmath.log1p(1 / odds), 1 / (1 + odds)
    assert f"{value.item():.2e}" == "1.39e-11"
    assert abs(value.item() - float(loss)) <= 2e-6 * float(loss)
    share = 1 / (1 + mpmath.exp(-1))
    for k, sign in enumerate((-1, -1, 1, 1)):
        slope = float(sign * miss * (share if k % 2 == 0 else 1 - share))
        assert abs(grad[0, k].item() - slope) <= 2e-6 * abs(slope)


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0, 60.0])
def test_float32_is_near_float64(size):
    z, inside = size * torch.randn(200, 50), some_sets(200, 50)
    z[:, inside[0]] += size  # sure rows, too
    value, grad = value_and_grad(set_cross_entropy, z, inside, reduction="none")
    leaf = z.double().requires_grad_()
    truth = closed_form(leaf, inside)
    (slope,) = torch.autograd.grad(truth.sum(), leaf)
    torch.testing.assert_close(value.double(), truth.detach(), rtol=2e-6, atol=1e-37)
    torch.testing.assert_close(grad.double(), slope, rtol=2e-6, atol=1e-37)


# ---- laws ---------------------------------------------------------------------------------------


def test_a_set_of_one_class_is_that_class(every_engine):
    z, y = 5 * torch.randn(N, C).to(widest(every_engine)), torch.randint(C, (N,))
    inside = F.one_hot(y, C).bool()
    a, da = value_and_grad(set_cross_entropy, z, inside, reduction="none", engine=every_engine)
    b, db = value_and_grad(xent.cross_entropy, z, y, reduction="none", engine=every_engine)
    assert ulps(a, b.double()).max() <= 2
    eps = torch.finfo(z.dtype).eps
    torch.testing.assert_close(da, db, rtol=8 * eps, atol=0)


def test_the_complement_has_the_opposite_log_odds():
    z, inside = 5 * torch.randn(N, C), some_sets()
    problem = make_problem(z, torch.zeros(N, dtype=torch.int64))
    a, b = (set_statistics(problem, s) for s in (inside, ~inside))
    assert torch.equal(a.log_odds, -b.log_odds)
    assert torch.equal(a.log_miss, b.log_prob)


def test_the_sets_of_a_partition_have_probabilities_that_add_up_to_1():
    z, groups = torch.randn(N, C).double(), torch.tensor([0, 1, 0, 2, 2, 1, 0])
    losses = [
        set_cross_entropy(z, torch.full((N,), k), groups=groups, reduction="none") for k in range(3)
    ]
    torch.testing.assert_close((-torch.stack(losses)).exp().sum(0), torch.ones(N).double())


def test_the_order_of_the_classes_does_not_matter():
    z, inside, order = torch.randn(N, C).double(), some_sets(), torch.randperm(C)
    a, da = value_and_grad(set_cross_entropy, z, inside, reduction="none")
    b, db = value_and_grad(set_cross_entropy, z[:, order], inside[:, order], reduction="none")
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(da[:, order], db, rtol=1e-14, atol=1e-15)


@every_reduction
def test_groups_are_masks(reduction):
    z, groups = torch.randn(N, C).double(), torch.tensor([4, 9, 4, -1, 9, 4, 0])
    y = torch.tensor([4, 9, 0, -1, 4, 4, 9, 9, -100, -1, 0, 4])
    inside, kept = groups == y[:, None], (y != -100).double()
    a, da = value_and_grad(set_cross_entropy, z, y, groups=groups, reduction=reduction)
    options = {"reduction": reduction, "row_weight": kept}
    b, db = value_and_grad(set_cross_entropy, z, inside, **options)
    assert torch.equal(a, b)
    assert torch.equal(da, db)


def test_the_empty_set_costs_infinity_and_the_full_set_nothing(every_engine):
    z = torch.randn(3, C)
    none, every = torch.zeros(3, C, dtype=torch.bool), torch.ones(3, C, dtype=torch.bool)
    value, _ = value_and_grad(set_cross_entropy, z, none, reduction="none", engine=every_engine)
    assert torch.equal(value, torch.full((3,), torch.inf))
    value, grad = value_and_grad(set_cross_entropy, z, every, engine=every_engine)
    assert value == 0
    assert not grad.any()
    groups = torch.zeros(C, dtype=torch.int64)
    assert set_cross_entropy(z, torch.ones(3, dtype=torch.int64), groups=groups) == torch.inf


def test_masked_classes_are_in_no_set():
    z, inside = torch.randn(N, C).double(), some_sets()
    z[:, 2] = -torch.inf
    found = set_cross_entropy(z, inside, reduction="none")
    apart = [0, 1, 3, 4, 5, 6]
    expected = set_cross_entropy(z[:, apart], inside[:, apart], reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_losses_of_row_statistics_are_losses_of_sets():
    """Focal loss and generalized cross-entropy with the probability of the set as p."""
    z, inside = torch.randn(N, C).double(), some_sets()
    s = set_statistics(make_problem(z, torch.zeros(N, dtype=torch.int64)), inside)
    p = (torch.softmax(z, 1) * inside).sum(1)
    focal = inspect.unwrap(xent.losses.focal_loss)(s, gamma=2.0)
    torch.testing.assert_close(focal, -((1 - p) ** 2) * p.log(), rtol=1e-12, atol=0)
    generalized = inspect.unwrap(xent.losses.generalized_cross_entropy)(s, q=0.7)
    torch.testing.assert_close(generalized, (1 - p**0.7) / 0.7, rtol=1e-12, atol=0)


@pytest.mark.parametrize("grouped", [True, False])
def test_derivatives(grouped):
    z = torch.randn(4, C, dtype=torch.float64, requires_grad=True)
    y, options = some_sets(4), {}
    if grouped:
        y = torch.tensor([0, 1, -100, 1])
        options["groups"] = torch.tensor([0, 1, 0, 2, 2, 1, 0])
    for reduction in ("mean", "none"):

        def loss(x, reduction=reduction):
            return set_cross_entropy(x, y, reduction=reduction, **options)

        assert torch.autograd.gradcheck(loss, z)
        assert torch.autograd.gradgradcheck(loss, z)


# ---- rows, axes, heads --------------------------------------------------------------------------


def test_rows_that_are_left_out_are_not_read():
    z, inside = torch.randn(N, C), some_sets()
    weight = torch.ones(N)
    weight[5] = 0
    rest = torch.arange(N) != 5
    y, groups = torch.randint(3, (N,)), torch.tensor([0, 1, 0, 2, 2, 1, 0])
    y[5] = -1
    z[5] = torch.nan
    for found, expected in (
        (
            value_and_grad(set_cross_entropy, z, inside, row_weight=weight),
            value_and_grad(set_cross_entropy, z[rest], inside[rest]),
        ),
        (
            value_and_grad(set_cross_entropy, z, y, groups=groups, ignore_index=-1),
            value_and_grad(set_cross_entropy, z[rest], y[rest], groups=groups),
        ),
    ):
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1][rest], expected[1])
        assert not found[1][5].any()


def test_no_rows():
    z = torch.randn(0, C, requires_grad=True)
    inside, groups = torch.zeros(0, C, dtype=torch.bool), torch.arange(C)
    assert set_cross_entropy(z, inside).isnan()
    assert set_cross_entropy(z, inside, empty="zero") == 0
    assert set_cross_entropy(z, inside, reduction="none").shape == (0,)
    ignored = torch.full((3,), -100)
    x = torch.randn(3, C, requires_grad=True)
    loss = set_cross_entropy(x, ignored, groups=groups, empty="zero")
    loss.backward()
    assert loss == 0
    assert not x.grad.any()
    lean = xent.LinearLogits(torch.randn(3, 2, requires_grad=True), torch.randn(C, 2))
    assert set_cross_entropy(lean, ignored, groups=groups).isnan()


def test_other_axes():
    z = torch.randn(2, 3, C)
    inside = some_sets(6).view(2, 3, C)
    flat = set_cross_entropy(z.view(6, C), inside.view(6, C), reduction="none").view(2, 3)
    last = set_cross_entropy(z, inside, class_dim=-1, reduction="none")
    torch.testing.assert_close(last, flat)
    second = set_cross_entropy(
        z.movedim(-1, 1), inside.movedim(-1, 1), class_dim=1, reduction="none"
    )
    torch.testing.assert_close(second, flat)
    one = set_cross_entropy(z[0, 0], inside[0, 0])
    torch.testing.assert_close(one, flat[0, 0])
    with pytest.raises(ValueError, match="class_dim=-1"):
        set_cross_entropy(z, inside)


@every_reduction
@pytest.mark.parametrize("grouped", [True, False])
def test_behind_a_head(grouped, reduction, small_chunks):
    h, w, b = parts = head(N, 3, C)
    weight = torch.rand(N)
    weight[1] = 0
    y, options = some_sets(), {"reduction": reduction, "row_weight": weight, "softcap": 3.0}
    if grouped:
        y = torch.randint(3, (N,))
        y[4], options["groups"] = -100, torch.tensor([0, 1, 0, 2, 2, 1, 0])
    lean = set_cross_entropy(xent.LinearLogits(*parts), y, **options)
    agree(lean, set_cross_entropy(F.linear(*parts), y, **options), parts, 1e-11)
    folded = xent.LinearLogits(h.view(3, 4, 3), w, b)
    options["row_weight"] = weight.view(3, 4)
    again = set_cross_entropy(folded, y.view(3, 4, *y.shape[1:]), **options)
    torch.testing.assert_close(again, lean.view(again.shape))


def test_groups_behind_a_head_need_no_tensor_of_all_logits(small_chunks):
    n, c = 64, 96
    h, w = torch.randn(n, 3, requires_grad=True), torch.randn(c, 3, requires_grad=True)
    groups, y, largest = torch.arange(c) % 5, torch.arange(n) % 5, 0

    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    with Sizes():
        set_cross_entropy(xent.LinearLogits(h, w), y, groups=groups).backward()
        set_cross_entropy(
            xent.LinearLogits(h, w), y, groups=groups, reduction="none"
        ).sum().backward()
    assert largest < n * c / 2


Z, Y, G = torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 1])
BAD = {
    "no booleans": (lambda: set_cross_entropy(Z, Y), TypeError, "pass `groups`"),
    "another shape": (lambda: set_cross_entropy(Z, Z[:2] > 0), ValueError, "`target` must have"),
    "few groups": (lambda: set_cross_entropy(Z, Y, groups=G[:2]), ValueError, "`groups` must"),
    "groups of probabilities": (
        lambda: set_cross_entropy(Z, Y, groups=G / 2), TypeError, "`groups`"
    ),
    "a mask with groups": (lambda: set_cross_entropy(Z, Z > 0, groups=G), TypeError, "`target`"),
    "rows": (lambda: set_cross_entropy(Z, Y[:2], groups=G), ValueError, "`target` must hold"),
    "classes": (lambda: set_cross_entropy(Z.long(), Y, groups=G), TypeError, "`input`"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_the_full_set_costs_0_without_a_sign():
    z = torch.randn(3, 4, dtype=torch.float64)
    for x in (z, z[:, :1]):
        of_mask = set_cross_entropy(x, torch.ones_like(x, dtype=torch.bool), reduction="none")
        y, groups = torch.zeros(3).long(), torch.zeros(x.shape[1]).long()
        of_groups = set_cross_entropy(x, y, groups=groups, reduction="none")
        for values in (of_mask, of_groups):
            assert same_bits(values, torch.zeros(3).double())
