"""Kernels of sparsemax, entmax and bi-tempered losses against the reference, and their bits."""

import math

import pytest
import torch

import xent
from tests.helpers import value_and_grad
from xent.engines import core

pytestmark = pytest.mark.skipif(not core.available(), reason="needs the compiled core")

LOSSES = [
    (xent.losses.sparsemax_loss, {}),
    (xent.losses.entmax_loss, {}),
    (xent.losses.entmax_loss, {"alpha": 1.3}),
    (xent.losses.entmax_loss, {"alpha": 3.0}),
    (xent.losses.entmax_loss, {"alpha": 1.0}),
    (xent.losses.bi_tempered_loss, {}),
    (xent.losses.bi_tempered_loss, {"t1": 0.5, "t2": 1.5}),
    (xent.losses.bi_tempered_loss, {"t1": 0.9, "t2": 1.3}),
]


def rows_of(classes, size, dtype):
    """Return logits with masked classes and labels, some of them right and one masked."""
    z = (size * torch.randn(12, classes)).to(dtype)
    y = torch.randint(classes, (12,))
    y[::3] = z[::3].float().argmax(-1)
    if classes > 4:
        z[1::4, 3] = -math.inf
        y[1] = 3
    y[5] = -100
    return z, y


@pytest.mark.skipif(torch.float64 not in core.fast, reason="the reference is taken, being faster")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("classes", "size"), [(1, 1), (5, 3), (100, 1), (4200, 0.01), (4500, 2)])
def test_kernels_agree_with_the_reference(classes, size, dtype):
    """A block of the kernels has 2048 classes; from 4096 candidates on a sample comes first."""
    z, y = rows_of(classes, size, dtype)
    unit = torch.finfo(dtype).eps
    least = 0.5 * unit * torch.finfo(dtype).smallest_normal  # half of the smallest number
    for loss, options in LOSSES:
        value, grad = value_and_grad(loss, z, y, reduction="none", **options)
        total = loss(z.clone().requires_grad_(), y, reduction="sum", **options)
        assert "TotalAhead" in total.grad_fn.name()
        hot = torch.nn.functional.one_hot(y.clamp(min=0), classes).to(torch.float64)
        truth, slope = value_and_grad(loss, z.double(), hot, reduction="none", **options)
        truth, slope = (
            torch.where(y.view(-1, *[1] * k) < 0, 0, x) for k, x in ((0, truth), (1, slope))
        )
        torch.testing.assert_close(value.double(), truth, rtol=unit, atol=1e-15 + least)
        torch.testing.assert_close(grad.double(), slope, rtol=unit, atol=1e-10 + least)


@pytest.mark.parametrize("isa", core.isas())
@pytest.mark.parametrize(("classes", "size"), [(3000, 1), (4200, 0.01)])
def test_the_bits_depend_on_nothing_else(classes, size, isa):
    z, y = rows_of(classes, size, torch.float32)
    threads, before = torch.get_num_threads(), core.isa
    for loss, options in LOSSES:
        value, grad = value_and_grad(loss, z, y, reduction="sum", **options)
        try:
            core.set_isa(isa)
            core.fast = frozenset(core.TYPES)
            torch.set_num_threads(2)
            same, slope = value_and_grad(loss, z, y, reduction="sum", **options)
        finally:
            core.set_isa(before)
            torch.set_num_threads(threads)
        assert torch.equal(same, value)
        assert torch.equal(slope, grad)


def test_rows_that_are_not_finite():
    z, y = torch.randn(4, 40), torch.zeros(4, dtype=torch.int64)
    z[0, 7], z[1, 30], z[2] = math.nan, math.inf, -math.inf
    for loss, options in LOSSES:
        value, grad = value_and_grad(loss, z, y, reduction="none", **options)
        assert value[:3].isnan().all()
        assert grad[:3].isnan().all()
        assert value[3].isfinite()
        assert grad[3].isfinite().all()


def test_layouts():
    z, y = torch.randn(3, 40, 5), torch.randint(40, (3, 5))
    for loss, options in LOSSES:
        value, grad = value_and_grad(loss, z, y, reduction="none", **options)
        flat = z.movedim(1, -1).reshape(15, 40)
        truth, slope = value_and_grad(loss, flat, y.flatten(), reduction="none", **options)
        assert torch.equal(value.flatten(), truth)
        assert torch.equal(grad.movedim(1, -1).reshape(15, 40), slope)
        none, empty = value_and_grad(loss, z[:0], y[:0], reduction="sum", **options)
        assert none == 0
        assert empty.shape == (0, 40, 5)


@pytest.mark.parametrize("t2", [20, 32, 70, 200])
@pytest.mark.parametrize("t1", [0.0, 0.5])
def test_a_high_temperature_makes_two_classes_equal(t1, t2):
    """With so heavy a tail both have probability 1/2, whatever the logits."""
    logits = torch.tensor([[3.0, -2.0], [0.5, 4.0]])
    value = xent.losses.bi_tempered_loss(logits, torch.tensor([0, 0]), t1=t1, t2=t2)
    gamma = 1 - t1
    limit = (1 - 0.5**gamma) / gamma - (1 - 2 * 0.5 ** (1 + gamma)) / (1 + gamma)
    assert value.item() == pytest.approx(limit, rel=2 ** (6 - t2) + 1e-6)
