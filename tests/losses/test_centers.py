"""Several centers per class: the loss of the best one's cosine, or of a soft choice."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

import xent
from xent.heads import chunks as heads
from xent.losses import arcface_loss, cosface_loss

K, C, N = 3, 5, 12
LOSSES = pytest.mark.parametrize("loss", [arcface_loss, cosface_loss])
CHOICES = pytest.mark.parametrize("temperature", [None, 0.1])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Make even small problems take several chunks."""
    monkeypatch.setattr(heads, "MAX_ROWS", 5)


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).requires_grad_()


def cosines_of_classes(z, temperature):
    """Return one cosine per class, (N, C), class by class."""
    found = []
    for c in range(C):
        own = z[:, K * c : K * (c + 1)]
        if temperature is None:
            found.append(own.max(1).values)
        else:
            found.append((own * torch.softmax(own / temperature, 1)).sum(1))
    return torch.stack(found, 1)


def formula(loss, z, y, temperature, scale=8.0):
    """Return the loss of each row by cross-entropy of changed logits; 0 for ignored rows."""
    cos = cosines_of_classes(z, temperature)
    own = F.one_hot(y.clamp(min=0), C).bool()
    if loss is cosface_loss:
        target = cos - 0.35
    else:
        turned = torch.cos(torch.acos(cos) + 0.5)
        target = torch.where(cos >= -math.cos(0.5), turned, cos - 0.5 * math.sin(0.5))
    return F.cross_entropy(scale * torch.where(own, target, cos), y, reduction="none")


def labels():
    y = torch.randint(C, (N,))
    y[4] = -100
    return y


def agree(found, expected, parts):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    slopes = (torch.autograd.grad((x * 1.5).sum(), parts) for x in (found, expected))
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@LOSSES
@CHOICES
@every_reduction
@pytest.mark.parametrize("lean", [True, False])
def test_value_and_gradient_are_those_of_the_formula(loss, temperature, reduction, lean):
    a, w, y = unit(N, 6), unit(C * K, 6), labels()
    weight = torch.linspace(0.5, 2, C, dtype=torch.float64)
    row_weight = torch.rand(N, dtype=torch.float64)
    row_weight[2] = 0
    found = loss(
        xent.LinearLogits(a, w) if lean else a @ w.T, y, weight, scale=8.0, centers=K,
        center_temperature=temperature, reduction=reduction, row_weight=row_weight,
    )  # fmt: skip
    mass = torch.where(y >= 0, weight[y.clamp(min=0)], 0) * row_weight
    values = formula(loss, a @ w.T, y, temperature) * mass
    mean = values.sum() / mass.sum()
    agree(found, {"none": values, "sum": values.sum(), "mean": mean}[reduction], (a, w))


@LOSSES
def test_one_center_is_the_loss_itself(loss):
    z, y = torch.rand(N, C), labels()
    assert loss(z, y, centers=1, center_temperature=0.1) == loss(z, y)
    apart = z.repeat_interleave(K, 1)  # all centers of a class alike
    for temperature in (None, 0.1):
        found = loss(apart, y, centers=K, center_temperature=temperature)
        torch.testing.assert_close(found, loss(z, y), rtol=2e-6, atol=0)


@LOSSES
@CHOICES
def test_rows_that_are_left_out_are_not_read(loss, temperature):
    a, w, y = unit(N, 6), unit(C * K, 6).detach(), labels()
    options = {"centers": K, "center_temperature": temperature, "row_weight": torch.ones(N)}
    options["row_weight"][7] = 0
    rest = (y >= 0) & (options["row_weight"] > 0)
    with torch.no_grad():
        a[~rest] = torch.nan
    for logits in (xent.LinearLogits(a, w), a @ w.T):
        found = loss(logits, y, **options)
        (slope,) = torch.autograd.grad(found, a)
        clean = loss(a[rest] @ w.T, y[rest], centers=K, center_temperature=temperature)
        torch.testing.assert_close(found, clean)
        assert slope[rest].isfinite().all()


@LOSSES
def test_axes_and_statistics(loss):
    z, y = torch.rand(2, 3, C * K), torch.randint(C, (2, 3))
    options = {"centers": K, "reduction": "none"}
    flat = loss(z.view(6, -1), y.view(6), **options).view(2, 3)
    assert torch.equal(loss(z, y, class_dim=-1, **options), flat)
    assert torch.equal(loss(z.movedim(-1, 1), y, **options), flat)
    a, w = torch.rand(2, 3, 4), torch.rand(C * K, 4)
    lean = loss(xent.LinearLogits(a / 4, w), y, **options)
    torch.testing.assert_close(lean, loss(a / 4 @ w.T, y, class_dim=-1, **options))
    value, stats = loss(z.view(6, -1), y.view(6), centers=K, return_stats=True)
    assert value == loss(z.view(6, -1), y.view(6), centers=K)
    assert stats.log_prob.shape == (6,)


@LOSSES
@CHOICES
def test_derivatives(loss, temperature):
    z = torch.tanh(torch.randn(4, 2 * K, dtype=torch.float64)).requires_grad_()
    run = functools.partial(
        loss, target=torch.tensor([0, 1, -100, 1]), scale=3.0, centers=K,
        center_temperature=temperature,
    )  # fmt: skip
    assert torch.autograd.gradcheck(run, z)
    assert torch.autograd.gradgradcheck(run, z)


def test_modules_take_centers():
    z, y = torch.rand(N, C * K), labels()
    module = xent.nn.ArcFaceLoss(centers=K, center_temperature=0.1)
    assert module(z, y) == arcface_loss(z, y, centers=K, center_temperature=0.1)


@LOSSES
def test_what_cannot_be_is_refused(loss):
    z, y = torch.rand(N, C * K), labels()
    for centers, message in ((4, "`input` must hold `centers`"), (0, "`centers` must be")):
        with pytest.raises(ValueError, match=message):
            loss(z, y, centers=centers)
    with pytest.raises(TypeError, match="`centers`"):
        loss(z, y, centers=1.5)
    with pytest.raises(ValueError, match="`center_temperature`"):
        loss(z, y, centers=K, center_temperature=0.0)
    head = xent.LinearLogits(torch.rand(N, 4), torch.rand(C * K, 4))
    for option in ("return_stats", "inplace_backward"):
        with pytest.raises(ValueError, match=f"`{option}` needs a tensor"):
            loss(head, y, centers=K, **{option: True})
