"""Sums of cross-entropy on Triton: the divisor and the slope that the device notes, and plans."""

import math

import pytest
import torch

import xent
from benchmarks.harness.internals import take_for_gpu
from tests.helpers import same_bits, value_and_grad, worst
from xent.engines import triton
from xent.engines.rows import MODULES

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("on_triton")

from xent.engines.triton import launch, launch_sums, plans  # noqa: E402 - imports Triton

ON_TRITON = {"engine": "triton"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_last_slope_is_expected_and_changes_no_bit(monkeypatch, dtype):
    z, y = torch.randn(6, 50).to(dtype).requires_grad_(), torch.randint(50, (6,))
    ahead = []
    real = MODULES["triton"].total_ahead

    def spied(*args):
        found = real(*args)
        ahead.append(args[-1].clone())
        return found

    monkeypatch.setattr(MODULES["triton"], "total_ahead", spied)

    def gradient(slope):
        loss = xent.cross_entropy(z, y, **ON_TRITON)
        return torch.autograd.grad(loss, z, torch.tensor(slope, dtype=dtype))[0]

    for slope in (1.0, 3.0, 3.0, -0.3, 1.0, 1.0):
        grad = gradient(slope)
        assert same_bits(grad, gradient(slope))  # the first may be computed again, not this one
        assert same_bits(ahead[-1], grad)
        wide = z.detach().double().requires_grad_()
        exactly = xent.cross_entropy(wide, y, engine="reference")
        (truth,) = torch.autograd.grad(exactly, wide, torch.tensor(slope, dtype=dtype).double())
        torch.testing.assert_close(
            grad.double(), truth, rtol=2e-6 if grad.itemsize > 2 else 8e-3, atol=1e-7
        )
    assert same_bits(gradient(5.0), gradient(5.0))


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("options", [{}, {"normalizer": "count"}, {"normalizer": 7.3}])
def test_a_divisor_that_many_programs_find(monkeypatch, options, empty):
    plans.PLANS.clear()
    monkeypatch.setattr(launch_sums, "ALONE", 3)
    z, y, w = torch.randn(10, 4), torch.randint(4, (10,)), torch.rand(4) + 0.5
    y[2] = -100
    rows = torch.linspace(0, 2, 10)
    for more in ({}, {"row_weight": rows}, {"weight": w}, {"weight": w, "row_weight": rows}):
        given = {**options, **more, "empty": empty}
        value, grad = value_and_grad(xent.cross_entropy, z, y, **given, **ON_TRITON)
        same = {k: x.double() if isinstance(x, torch.Tensor) else x for k, x in given.items()}
        expected, slope = value_and_grad(
            xent.cross_entropy, z.double(), y, engine="reference", **same
        )
        torch.testing.assert_close(value.double(), expected, rtol=2e-7, atol=0)
        torch.testing.assert_close(grad.double(), slope, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_no_row_counts(empty):
    z, y = torch.randn(5, 4), torch.full((5,), -100)
    value, grad = value_and_grad(xent.cross_entropy, z, y, empty=empty, **ON_TRITON)
    assert value.isnan() if empty == "nan" else value == 0
    assert empty == "nan" or not bool(grad.any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_of_rows_that_are_not_adjacent(dtype):
    z, y, rows = torch.randn(5, 4), torch.randint(4, (5,)), torch.rand(10, dtype=dtype)
    value, grad = value_and_grad(xent.cross_entropy, z, y, row_weight=rows[::2], **ON_TRITON)
    same = value_and_grad(xent.cross_entropy, z, y, row_weight=rows[::2].clone(), **ON_TRITON)
    assert same_bits(value, same[0])
    assert same_bits(grad, same[1])


def test_a_row_of_weight_0_may_hold_anything():
    z, y = torch.randn(4, 6), torch.randint(6, (4,))
    z[2] = math.nan
    y_before = y.clone()
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5])
    value, grad = value_and_grad(xent.cross_entropy, z, y, row_weight=weights, **ON_TRITON)
    kept = weights > 0
    expected, slope = value_and_grad(
        xent.cross_entropy, z[kept].double(), y[kept], row_weight=weights[kept].double(),
        engine="reference",
    )  # fmt: skip
    torch.testing.assert_close(value.double(), expected, rtol=2e-7, atol=0)
    torch.testing.assert_close(grad[kept].double(), slope, rtol=2e-6, atol=1e-8)
    assert not bool(grad[2].any())
    assert torch.equal(y, y_before)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_alone_sweeps_once(monkeypatch, reduction):
    z, y = torch.randn(7, 9000), torch.randint(9000, (7,))
    losses, sweep = [], launch.Launch.find
    monkeypatch.setattr(launch.Launch, "find", lambda self: losses.append(1) or sweep(self))
    with torch.no_grad():
        value = xent.cross_entropy(z, y, reduction=reduction, **ON_TRITON)
    loss = torch.nn.functional.cross_entropy(z.double(), y, reduction="none")
    assert not losses  # no table of fields
    assert worst(value, loss.sum() if reduction == "sum" else loss.mean()) <= 2


def test_plans_are_few_and_do_not_ask_for_the_number_of_rows(monkeypatch):
    plans.PLANS.clear()
    monkeypatch.setattr(plans, "MOST_PLANS", 5)
    for rows in (1, 3, 16, 17):
        value_and_grad(
            xent.cross_entropy, torch.randn(rows, 24), torch.zeros(rows).long(), **ON_TRITON
        )
    assert len(plans.PLANS) == 1
    for classes in range(1, plans.MOST_PLANS + 4):
        xent.cross_entropy(torch.randn(2, classes), torch.zeros(2).long(), **ON_TRITON)
    assert len(plans.PLANS) <= plans.MOST_PLANS


@pytest.mark.skipif(not triton.INTERPRETED, reason="for Triton's interpreter")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"row_weight": torch.linspace(0, 2, 6)},
        {"weight": torch.linspace(1, 2, 5), "label_smoothing": 0.1},
    ],
    ids="+".join,
)
def test_the_short_way_of_a_device_has_the_same_bits(options):
    z, y = torch.randn(6, 5), torch.randint(5, (6,))
    expected = value_and_grad(xent.cross_entropy, z, y, **options, **ON_TRITON)
    with take_for_gpu():
        for _ in range(3):  # read, known, known
            found = value_and_grad(xent.cross_entropy, z, y, **options)
            for ours, theirs in zip(found, expected, strict=True):
                assert same_bits(ours, theirs)
    assert "Triton" not in str(xent.explain(z, y))


def test_a_plan_of_one_image_serves_several():
    """Axes of length 1 have any step, and a plan is kept for all numbers of images."""
    big, y = torch.randn(4, 6, 5), torch.randint(3, (4, 5))
    for images in (1, 2, 4):
        z, target = big[:images, :3], y[:images]
        found = xent.cross_entropy(z, target, reduction="none", **ON_TRITON)
        wide = xent.cross_entropy(z.double(), target, reduction="none", engine="reference")
        assert worst(found, wide) <= 4


def test_tiny_slopes_keep_their_digits():
    z, y = torch.randn(5, 40), torch.arange(5)
    z[torch.arange(5), y] += torch.tensor([0.0, 5.0, 20.0, 40.0, 60.0])
    for slope in (1e-12, 1e-22, 1e-26):
        leaf = z.clone().requires_grad_()
        loss = xent.cross_entropy(leaf, y, reduction="sum", **ON_TRITON)
        (found,) = torch.autograd.grad(loss, leaf, torch.tensor(slope))
        wide = z.double().requires_grad_()
        exactly = xent.cross_entropy(wide, y, reduction="sum", engine="reference")
        (truth,) = torch.autograd.grad(exactly, wide, torch.tensor(slope).double())
        torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-44)
