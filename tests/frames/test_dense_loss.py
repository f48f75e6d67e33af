"""The frame of a loss of all logits of a row: losses as a user writes them."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import exact, grads, head, nats_below_top, value_and_grad, worst
from xent.hyperparameters import ClassVector

Z, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 5
W = torch.linspace(0.5, 2, 5).double()


@xent.dense_loss
def squared(rows, scale=1.0):
    """Return the squared distance of the logits from the target."""
    return (scale * rows.logits - rows.target).square().sum(-1)


@xent.dense_loss(soft=False)
def surprise(rows):
    """Return cross-entropy from the log-odds."""
    return -rows.log_prob(rows.logits)


@xent.dense_loss
def shifted(rows, shift: ClassVector):
    """Return the squared distance of shifted logits from the target."""
    return (rows.logits + shift - rows.target).square().sum(-1)


@xent.dense_loss
def by_row(rows, factor):
    """Return a sum of squares with a factor for each row."""
    return factor * rows.logits.square().sum(-1)


def test_one_line_makes_a_whole_loss():
    hot = F.one_hot(Y, 5).double()
    rows, r = (Z - hot).square().sum(1), torch.linspace(1, 3, 6).double()
    close = torch.testing.assert_close
    close(squared(Z, Y, reduction="none"), rows)
    close(squared(Z, Y), rows.mean())
    close(squared(Z, Y, W), (W[Y] * rows).sum() / W[Y].sum())
    close(squared(Z, Y, row_weight=r, normalizer=4.0), (r * rows).sum() / 4)
    close(squared(Z, Y, ignore_index=2), rows[Y != 2].mean())
    close(squared(Z, Y, scale=3.0, reduction="sum"), (3 * Z - hot).square().sum())
    q = torch.softmax(Z.flip(0), 1)
    close(squared(Z, q), (Z - q).square().sum(1).mean())
    assert squared(Z[:, :, None], Y[:, None], reduction="none").shape == (6, 1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_behind_a_head_no_loss_needs_all_logits(reduction):
    parts, y = head(36), torch.randint(50, (36,))
    shift = torch.linspace(-1, 1, 50, dtype=torch.float64)
    for loss, options in ((squared, {}), (surprise, {}), (shifted, {"shift": shift})):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lean = loss(xent.LinearLogits(*parts), y, reduction=reduction, **options)
        whole = loss(F.linear(*parts), y, reduction=reduction, **options)
        torch.testing.assert_close(lean, whole, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(grads(lean, parts), grads(whole, parts))


def test_a_tensor_that_may_hold_a_number_per_row_keeps_the_rows_together(monkeypatch):
    monkeypatch.setattr("xent.frames.dense_rows.CHUNK", 10)
    factor = torch.arange(6).double()
    expected = factor * Z.square().sum(1)
    torch.testing.assert_close(by_row(Z, Y, factor=factor, reduction="none"), expected)
    h, w = Z, torch.eye(5, dtype=torch.float64)
    with pytest.warns(UserWarning, match="needs all 30 logits"):
        lean = by_row(xent.LinearLogits(h, w), Y, factor=factor, reduction="none")
    torch.testing.assert_close(lean, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_log_probability_of_a_class_keeps_its_digits(dtype):
    margins = (-80.0, -17.5, 0.25, 16.0, 33.0, 80.0)
    z = torch.tensor([[m, 0.0, -0.75, -4.5] for m in margins], dtype=dtype)
    for y in (torch.zeros(6).long(), torch.full((6,), 2)):
        value, grad = value_and_grad(surprise, z, y, reduction="none")
        true_value, true_grad = exact(z, y)
        nats = nats_below_top(z)  # by so many units of half an epsilon the log-odds are rounded
        assert worst(value, true_value, nats.amax(1)) <= 4
        assert worst(grad, true_grad, nats.amax(1, keepdim=True)) <= 8


def test_a_row_of_one_class_is_certain():
    value, grad = value_and_grad(surprise, Z[:, :1], torch.zeros(6).long(), reduction="none")
    assert not value.any()
    assert not grad.any()


def test_soft_targets_have_no_single_class():
    q = torch.softmax(Z, 1)
    with pytest.raises(ValueError, match="surprise takes one class per row"):
        surprise(Z, q)
    lax = xent.dense_loss(lambda rows: -rows.log_prob(rows.logits))
    with pytest.raises(ValueError, match="soft targets have no single class"):
        lax(Z, q)


def test_a_function_returns_one_value_per_row():
    for body in (lambda rows: rows.logits, lambda rows: rows.logits.sum()):
        with pytest.raises(ValueError, match=r"must return one value per row, shape \(6,\)"):
            xent.dense_loss(body)(Z, Y)


def test_hyperparameters_are_checked():
    with pytest.raises(TypeError, match="needs the keyword argument `shift`"):
        shifted(Z, Y)
    with pytest.raises(ValueError, match="shift"):
        shifted(Z, Y, shift=W[:4])
    with pytest.raises(TypeError, match="unexpected keyword argument 'shft'"):
        shifted(Z, Y, shft=W)
