"""Losses of rows with several labels, and of pairs."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import HALF, ulps, value_and_grad

BCE = xent.binary_cross_entropy_with_logits
ML = xent.losses.multilabel_cross_entropy


def rows(*shape):
    return torch.randn(shape, dtype=torch.float64) * 3, torch.randint(2, shape).double()


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 5, 2), (2, 5, 3, 2)], ids=str)
def test_labels_first_rows_then(engine, shape):
    z, t = rows(*shape)
    axis = 0 if len(shape) == 1 else 1
    each = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    for labels, row in (("sum", each.sum(axis)), ("mean", each.mean(axis))):
        for reduction, truth in (("none", row), ("sum", row.sum()), ("mean", row.mean())):
            value, grad = value_and_grad(
                ML, z, t, labels=labels, reduction=reduction, engine=engine, class_dim=axis
            )
            torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
            share = (1 if labels == "sum" else shape[axis]) * (
                row.numel() if reduction == "mean" else 1
            )
            torch.testing.assert_close(grad, (torch.sigmoid(z) - t) / share, rtol=1e-12, atol=1e-16)


def test_the_mean_of_labels_is_soft_margin_of_torch():
    z, t = rows(6, 4)
    truth = F.multilabel_soft_margin_loss(z, t)
    torch.testing.assert_close(ML(z, t, labels="mean"), truth, rtol=1e-13, atol=0)


@pytest.mark.parametrize("labels", ["sum", "mean"])
def test_unknown_labels_and_rows_without_any(engine, labels):
    z, t = rows(5, 4)
    unknown = torch.rand(5, 4) < 0.4
    unknown[2] = True
    z = torch.where(unknown, torch.nan, z)
    marked = torch.where(unknown, -1.0, t)
    value, grad = value_and_grad(ML, z, marked, labels=labels, ignore_value=-1, engine=engine)
    kept = [k for k in range(5) if not unknown[k].all()]
    truth = sum(ML(z[k][~unknown[k]], t[k][~unknown[k]], labels=labels) for k in kept) / len(kept)
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
    assert not grad[unknown].any()
    assert grad[~unknown].all()
    nothing = torch.full((2, 3), -1.0)
    assert ML(torch.zeros(2, 3), nothing, ignore_value=-1, engine=engine).isnan()
    assert ML(torch.zeros(2, 3), nothing, ignore_value=-1, empty="zero", engine=engine) == 0


def test_weights_of_elements_labels_and_rows(engine):
    z, t = rows(6, 4)
    element, label, row = torch.rand(6, 4).double(), torch.rand(4).double(), torch.rand(6).double()
    each = F.binary_cross_entropy_with_logits(
        z, t, weight=element, pos_weight=label, reduction="none"
    )
    value = ML(z, t, element, pos_weight=label, row_weight=row, engine=engine)
    truth = (each.sum(1) * row).sum() / row.sum()
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)
    counted = ML(z, t, element, pos_weight=label, row_weight=row, normalizer="count", engine=engine)
    torch.testing.assert_close(counted, truth * row.sum() / 6, rtol=1e-13, atol=0)


def test_half_precision_is_added_up_in_full(engine):
    z, t = torch.randn(3, 2000).bfloat16(), torch.randint(2, (3, 2000)).bfloat16()
    value = ML(z, t, reduction="none", engine=engine)
    assert value.dtype == torch.bfloat16
    truth = ML(z.double(), t.double(), reduction="none")
    assert ulps(value, truth).max() <= 0.51


# ---- ZLPR ---------------------------------------------------------------------------------------


def test_zlpr_against_50_digits():
    z = torch.tensor([[3.0, -2.0, 60.0], [-80.0, 90.0, 0.7], [50.0, 50.0, -50.0], [-100, -90, -80]])
    t = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.5], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    for dtype, limit in ((torch.float64, 1e-14), (torch.float32, 3e-7)):
        value, grad = value_and_grad(
            xent.losses.zlpr_loss, z.to(dtype), t.to(dtype), reduction="none"
        )
        for n in range(len(z)):
            x, y = [[mpmath.mpf(v) for v in row.tolist()] for row in (z[n], t[n])]
            above = [(1 - b) * mpmath.exp(a) for a, b in zip(x, y, strict=True)]
            below = [b * mpmath.exp(-a) for a, b in zip(x, y, strict=True)]
            truth = mpmath.log1p(sum(above)) + mpmath.log1p(sum(below))
            assert abs(value[n].item() / truth - 1) < limit
            for k in range(3):
                slope = above[k] / (1 + sum(above)) - below[k] / (1 + sum(below))
                assert abs(grad[n, k].item() - slope) <= limit * abs(slope) + 1e-45


def test_zlpr_of_one_label_is_two_softmax_losses():
    """One softmax loss has the classes above a score of 0, the other those below."""
    z, y = torch.randn(7, 5, dtype=torch.float64), torch.randint(5, (7,))
    t = F.one_hot(y, 5)
    zero = torch.zeros(7, 1).double()
    others = torch.cat([zero, z.masked_fill(t.bool(), -torch.inf)], 1)
    mine = torch.cat([zero, -z.gather(1, y[:, None])], 1)
    truth = torch.logsumexp(others, 1) + torch.logsumexp(mine, 1)
    torch.testing.assert_close(
        xent.losses.zlpr_loss(z, t, reduction="none"), truth, rtol=1e-13, atol=0
    )


def test_zlpr_masks_unknown_labels_and_extra_axes():
    z, t = rows(3, 5, 2)
    whole = xent.losses.zlpr_loss(z, t, reduction="none", class_dim=1)
    assert whole.shape == (3, 2)
    marked = t.clone()
    marked[:, 3:] = -1
    z[:, 3:] = torch.nan
    value, grad = value_and_grad(
        xent.losses.zlpr_loss, z, marked, ignore_value=-1, reduction="none", class_dim=1
    )
    few = xent.losses.zlpr_loss(z[:, :3], t[:, :3], reduction="none", class_dim=1)
    torch.testing.assert_close(value, few, rtol=1e-13, atol=0)
    assert not grad[:, 3:].any()
    z = torch.tensor([[-math.inf, 1.0]]).double()  # a masked class
    t = torch.tensor([[0.0, 1.0]]).double()
    alone = xent.losses.zlpr_loss(z[:, 1:], t[:, 1:])
    value, grad = value_and_grad(xent.losses.zlpr_loss, z, t)
    torch.testing.assert_close(value, alone)
    assert grad[0, 0] == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_derivatives_of_zlpr_and_multilabel():
    z, t = rows(3, 4)
    z.requires_grad_()
    for loss in (
        xent.losses.zlpr_loss,
        ML,
        lambda x, y: xent.losses.siglip_loss(x, y, bias=-1.0, scale=2.0),
    ):
        assert torch.autograd.gradcheck(lambda x, f=loss: f(x, t), z)
        assert torch.autograd.gradgradcheck(lambda x, f=loss: f(x, t), z)
        value, grad = value_and_grad(loss, z, t)
        v = torch.randn_like(z).detach()
        out, slope = torch.func.jvp(lambda x, f=loss: f(x, t), (z.detach(),), (v,))
        torch.testing.assert_close(out, value)
        torch.testing.assert_close(slope, (grad * v).sum())
        z3, t3 = rows(2, 3, 4)
        each = torch.func.vmap(loss)(z3, t3)
        torch.testing.assert_close(
            each, torch.stack([loss(a, b) for a, b in zip(z3, t3, strict=True)])
        )


# ---- SigLIP -------------------------------------------------------------------------------------


def test_siglip_is_the_double_sum_over_pairs_by_the_rows(engine):
    x = torch.rand(5, 5, dtype=torch.float64) * 2 - 1
    scale, bias = 7.0, -3.0
    total = 0.0
    for n in range(5):
        for m in range(5):
            sign = 1 if n == m else -1
            total -= math.log(1 / (1 + math.exp(-sign * (scale * x[n, m].item() + bias))))
    value = xent.losses.siglip_loss(x, scale=scale, bias=bias, engine=engine)
    assert math.isclose(value.item(), total / 5, rel_tol=1e-13)


@pytest.mark.parametrize("dtype", HALF)
def test_similarities_with_few_digits_make_logits_with_many(engine, dtype):
    x = (torch.rand(30, 30) * 2 - 1).to(dtype)
    value, grad = value_and_grad(xent.losses.siglip_loss, x, reduction="none", engine=engine)
    truth, slope = value_and_grad(xent.losses.siglip_loss, x.double(), reduction="none")
    assert ulps(value, truth).max() <= 0.51  # rounded once
    assert ulps(grad, slope).max() <= 0.51


def test_siglip_learns_its_temperature_and_takes_any_pairs(engine):
    x, t = torch.rand(3, 6), torch.randint(2, (3, 6))
    scale = torch.tensor(10.0, requires_grad=True)
    bias = torch.tensor(-10.0, requires_grad=True)
    xent.losses.siglip_loss(x, t, scale=scale, bias=bias, engine=engine).backward()
    p = torch.sigmoid(10 * x - 10)
    torch.testing.assert_close(bias.grad, (p - t).sum() / 3)
    torch.testing.assert_close(scale.grad, ((p - t) * x).sum() / 3)
    assert xent.losses.siglip_loss(x, t, reduction="none").shape == (3,)


WRONG = {
    "labels": (lambda: ML(torch.zeros(2, 3), torch.zeros(2, 3), labels="all"), "`labels`"),
    "scalar": (lambda: ML(torch.zeros(()), torch.zeros(())), "axis of labels"),
    "one row of targets": (lambda: ML(torch.zeros(2, 3), torch.zeros(3)), "shape"),
    "row_weight": (
        lambda: ML(torch.zeros(2, 3), torch.zeros(2, 3), row_weight=torch.ones(3)),
        "`row_weight`",
    ),
    "target": (lambda: ML(torch.zeros(2, 3), torch.ones(2, 3) * 2), "between 0 and 1"),
    "zlpr target": (
        lambda: xent.losses.zlpr_loss(torch.zeros(2, 3), torch.ones(2, 3) * 2),
        "between 0",
    ),
    "zlpr classes": (
        lambda: xent.losses.zlpr_loss(torch.zeros(2, 3), torch.ones(2).long()),
        "shape",
    ),
    "no matrix": (lambda: xent.losses.siglip_loss(torch.zeros(3)), r"\(N, M\)"),
    "scale": (lambda: xent.losses.siglip_loss(torch.zeros(3, 3), scale=torch.ones(3)), "`scale`"),
    "bias": (lambda: xent.losses.siglip_loss(torch.zeros(3, 3), bias=math.inf), "`bias`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mean_over_labels_and_rows_is_bce(engine):
    z, t = rows(6, 4)
    torch.testing.assert_close(
        ML(z, t, labels="mean", engine=engine), BCE(z, t), rtol=1e-13, atol=0
    )
