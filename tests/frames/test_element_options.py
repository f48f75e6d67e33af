"""Options of the sigmoid family: marks that are NaN, shares per class, smoothed labels."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import xent
from tests.registry import OF_ELEMENTS
from xent.learn.networks.epoch_means import EpochMeans
from xent.losses import CATALOG

Z = 2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
T = (torch.randn(6, 4, generator=torch.Generator().manual_seed(6)) > 0).float()
KNOWN = torch.rand(6, 4, generator=torch.Generator().manual_seed(7)) > 0.3
HOLED = torch.where(KNOWN, T, math.nan)


def with_gradient(loss, z, *args, **options):
    z = z.clone().requires_grad_()
    value = loss(z, *args, **options)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def test_probabilities_near_1_have_derivatives_with_all_digits():
    z = torch.tensor([-700.0, -40.0, -3.0, 0.0, 0.5, 3.0, 40.0, 700.0], dtype=torch.float64)
    z.requires_grad_()
    e = xent.Elements(z, torch.zeros_like(z))
    small = (-z.detach().abs()).exp()
    expected = small / (1 + small) ** 2  # p (1 - p), even in z
    sign = z.detach().sign()
    for p, slope in ((e.prob, 1.0), (e.miss, -1.0)):
        (first,) = torch.autograd.grad(p.sum(), z, create_graph=True)
        torch.testing.assert_close(first.detach(), slope * expected, rtol=2.0**-50, atol=0)
        (second,) = torch.autograd.grad(first.sum(), z)
        curve = -slope * sign * expected * (1 - small) / (1 + small)  # p (1 - p) (1 - 2 p)
        torch.testing.assert_close(second, curve, rtol=2.0**-48, atol=0)


@pytest.mark.parametrize("name", OF_ELEMENTS)
def test_nan_marks_unknown_targets(name, every_engine):
    function = CATALOG[name].function
    if every_engine != "reference":
        try:
            function(Z, T, engine=every_engine)
        except ValueError:
            pytest.skip("has no kernel")
    for reduction in ("none", "sum", "mean"):
        options = {"reduction": reduction, "engine": every_engine}
        found = with_gradient(function, Z, HOLED, ignore_value=math.nan, **options)
        marked = torch.where(KNOWN, T, -1.0)
        expected = with_gradient(function, Z, marked, ignore_value=-1, **options)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
    assert torch.isnan(HOLED).any()  # the targets of the caller are not changed


@pytest.mark.parametrize("mark", [math.nan, np.float32(np.nan), torch.tensor(math.nan)])
@pytest.mark.parametrize("name", ["multilabel_cross_entropy", "zlpr_loss"])
def test_nan_marks_labels_of_rows(name, mark):
    function, marked = CATALOG[name].function, torch.where(KNOWN, T, -1.0)
    expected = function(Z, marked, ignore_value=-1)
    assert function(Z, HOLED, ignore_value=mark) == expected
    hidden, weight = torch.randn(6, 3), torch.randn(4, 3)
    logits = xent.LinearLogits(hidden, weight)
    torch.testing.assert_close(
        function(logits, HOLED, ignore_value=mark),
        function(hidden @ weight.T, marked, ignore_value=-1),
    )


def test_means_over_batches_know_the_mark():
    """Batches of 2, 2 and 2 rows with different numbers of known targets."""
    loss = xent.nn.BCEWithLogitsLoss(ignore_value=math.nan)
    means = EpochMeans(torch.nn.Identity(), loss)
    for batch in zip(Z.split(2), HOLED.split(2), strict=True):
        means([*batch])
    assert means.take("data")["loss"] == pytest.approx(loss(Z, HOLED).item(), rel=1e-6)


def test_nan_is_nan_where_it_is_no_mark(engine):
    loss = xent.binary_cross_entropy_with_logits
    for options in ({}, {"ignore_value": -1}):
        values = loss(Z, HOLED, engine=engine, reduction="none", **options)
        assert torch.equal(values.isnan(), ~KNOWN)


# ---- shares -------------------------------------------------------------------------------------

ALPHA = torch.tensor([0.1, 0.25, 0.5, 0.9])


def focal(z, t, alpha, gamma):
    """Compute the formula, in float64."""
    z, t, alpha = z.double(), t.double(), alpha.double()
    p = torch.sigmoid(z)
    nll = -(t * F.logsigmoid(z) + (1 - t) * F.logsigmoid(-z))
    share = alpha * t + (1 - alpha) * (1 - t)
    return share * (t * (1 - p) + (1 - t) * p) ** gamma * nll


@pytest.mark.parametrize("target", [T, torch.rand(6, 4)], ids=["labels", "soft"])
def test_a_share_for_each_class(every_engine, target):
    for alpha in (ALPHA, torch.rand(6, 1), torch.rand(6, 4), ALPHA[:1]):
        options = {"alpha": alpha, "gamma": 2.0, "reduction": "none", "engine": every_engine}
        found = with_gradient(xent.losses.sigmoid_focal_loss, Z, target, **options)
        expected = with_gradient(lambda z, t=target, a=alpha: focal(z, t, a, 2.0), Z)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b.to(a.dtype), rtol=2e-6, atol=1e-7)


def test_a_share_and_what_else_there_is():
    weight = torch.rand(6, 4)
    each = focal(Z, T, ALPHA, 1.5) * weight
    options = {"alpha": ALPHA, "gamma": 1.5}
    found = xent.losses.sigmoid_focal_loss(Z, T, weight, **options)
    torch.testing.assert_close(found, each.mean().float())
    found = xent.losses.sigmoid_focal_loss(Z, T, weight, normalizer="weight", **options)
    torch.testing.assert_close(found, (each.sum() / weight.double().sum()).float())
    found = xent.losses.sigmoid_focal_loss(Z, HOLED, weight, ignore_value=math.nan, **options)
    torch.testing.assert_close(found, each[KNOWN].mean().float())
    logits = xent.LinearLogits(Z, torch.eye(4))
    torch.testing.assert_close(xent.losses.sigmoid_focal_loss(logits, T, weight, **options),
                               each.mean().float())  # fmt: skip
    maps = Z.view(1, 4, 2, 3), T.view(1, 4, 2, 3)
    torch.testing.assert_close(
        xent.losses.sigmoid_focal_loss(*maps, alpha=ALPHA[:, None, None]),
        focal(*maps, ALPHA[:, None, None], 2.0).mean().float(),
    )
    module = xent.nn.SigmoidFocalLoss(alpha=ALPHA, gamma=1.5)
    assert module(Z, T) == xent.losses.sigmoid_focal_loss(Z, T, **options)
    assert [name for name, _ in module.named_buffers()] == ["alpha"]


def test_a_share_that_is_learned():
    alpha = ALPHA.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: xent.losses.sigmoid_focal_loss(Z.double(), T.double(), alpha=a), alpha
    )


def test_bad_shares():
    for alpha, words in (
        (torch.rand(5), "broadcast"), (torch.tensor([0.5, 1.5, 0.0, 0.0]), "in every entry"),
        (torch.tensor([1, 0, 1, 0]), "floating point"), (1.5, "at most 1"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=f"`alpha`.*{words}"):
            xent.losses.sigmoid_focal_loss(Z, T, alpha=alpha)
    with pytest.raises(ValueError, match=r"alpha\.view\(-1, 1, 1\)"):
        xent.losses.sigmoid_focal_loss(Z.view(2, 4, 3, 1), T.view(2, 4, 3, 1), alpha=ALPHA)


# ---- smoothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.1, 1.0])
def test_smoothed_labels(every_engine, amount):
    moved = T.double() * (1 - amount) + amount / 2
    weight, pos_weight = torch.rand(6, 4), torch.rand(4) + 0.5
    options = {"weight": weight.double(), "pos_weight": pos_weight.double()}
    truth = with_gradient(
        lambda z: F.binary_cross_entropy_with_logits(z.double(), moved, **options), Z
    )
    found = with_gradient(
        xent.binary_cross_entropy_with_logits, Z, T, weight, pos_weight=pos_weight,
        label_smoothing=amount, engine=every_engine,
    )  # fmt: skip
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize(("amount", "mark"), [(1.0, 0.5), (0.5, 0.25), (0.1, 0.3)])
def test_a_mark_is_looked_for_before_targets_are_smoothed(amount, mark, every_engine):
    """Smoothing moves no label onto a mark; the dtype may round the mark."""
    for dtype in (torch.float32, torch.bfloat16):
        marked = torch.where(KNOWN, T, mark).to(dtype)
        value, slope = with_gradient(
            xent.binary_cross_entropy_with_logits, Z, marked, ignore_value=mark,
            label_smoothing=amount, engine=every_engine, reduction="none",
        )  # fmt: skip
        smooth = T * (1 - amount) + amount / 2
        expected = torch.where(
            KNOWN, F.binary_cross_entropy_with_logits(Z, smooth, reduction="none"), 0
        )
        torch.testing.assert_close(value, expected.to(dtype))
        torch.testing.assert_close(slope, torch.where(KNOWN, Z.sigmoid() - smooth, 0))


def test_smoothing_of_other_losses():
    moved = T * 0.8 + 0.1
    each = F.binary_cross_entropy_with_logits(Z, moved, reduction="none")
    p = torch.sigmoid(Z)
    options = {"label_smoothing": 0.2}
    torch.testing.assert_close(xent.binary_cross_entropy(p, T, **options), each.mean())
    torch.testing.assert_close(
        xent.losses.multilabel_cross_entropy(Z, T, **options), each.sum(1).mean()
    )
    for mark in (math.nan, -1.0):
        holed = torch.where(KNOWN, T, mark)
        torch.testing.assert_close(
            xent.binary_cross_entropy_with_logits(Z, holed, ignore_value=mark, **options),
            each[KNOWN].mean(),
        )
    logits = xent.LinearLogits(Z, torch.eye(4))
    torch.testing.assert_close(
        xent.binary_cross_entropy_with_logits(logits, T, **options), each.mean()
    )
    labels = T.bool()
    loss = xent.nn.BCEWithLogitsLoss(label_smoothing=0.2)
    torch.testing.assert_close(loss(Z, labels), each.mean())


def test_bad_smoothing():
    loss = xent.binary_cross_entropy_with_logits
    for amount in (-0.1, 1.5, math.nan, True, torch.rand(4)):
        with pytest.raises(ValueError, match="`label_smoothing`"):
            loss(Z, T, label_smoothing=amount)
    with pytest.raises(ValueError, match=r"`target` holds 1\.05"):  # which smoothing would hide
        loss(Z, 1.05 * T, label_smoothing=0.2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'label_smoothing'"):
        xent.losses.sigmoid_focal_loss(Z, T, label_smoothing=0.0)
