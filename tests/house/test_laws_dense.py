"""The laws for losses that need all logits of a row at once, and run without an engine."""

import math

import pytest
import torch

import xent
from tests.helpers import ulps
from tests.house.test_laws import (  # noqa: F401
    test_a_constant_added_to_the_logits_changes_nothing,
    test_a_masked_class_is_a_class_that_is_not_there,
    test_a_one_hot_row_is_its_class,
    test_a_row_weight_is_a_repetition,
    test_extra_axes_are_more_rows,
    test_garbage_in_an_ignored_row_stays_there,
    test_gradcheck,
    test_ignored_rows_are_rows_left_out,
    test_reductions_agree,
    test_the_mean_of_no_rows,
    test_the_order_of_the_classes_does_not_matter,
    test_value_and_gradient_are_those_of_the_formula,
)
from tests.registry import DENSE

pytestmark = [
    pytest.mark.parametrize("loss", DENSE, ids=lambda loss: loss.name),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


@pytest.fixture
def every_engine():
    """Give no engine: these losses have none."""


@pytest.fixture
def engine(every_engine):
    """Give no engine: these losses have none."""


def test_twice_differentiable(loss):
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([2, -100, 0])
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y), z)


def test_transforms(loss):
    z, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([2, 0, 1, 3, 3])
    leaf = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf, y, reduction="sum"), leaf)
    v = torch.randn_like(z)
    value, moved = torch.func.jvp(lambda x: loss(x, y, reduction="sum"), (z,), (v,))
    torch.testing.assert_close(value, loss(z, y, reduction="sum"), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(moved, (slope * v).sum(), rtol=1e-12, atol=1e-12)
    single = torch.func.grad(lambda x, label: loss(x, label, reduction="sum"))
    each = torch.func.vmap(single)(z, y)
    torch.testing.assert_close(each, slope, rtol=1e-12, atol=1e-14)
    forward = torch.func.jacfwd(torch.func.grad(lambda x: loss(x, y)))(z)
    reverse = torch.func.jacrev(torch.func.grad(lambda x: loss(x, y)))(z)
    plain = torch.autograd.functional.hessian(lambda x: loss(x, y), z)
    torch.testing.assert_close(forward, plain, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(reverse, plain, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_float32_is_float64_rounded(loss, size):
    if any(isinstance(value, torch.Tensor) for value in loss.settings(9).values()):
        pytest.skip("the numbers of the classes are rounded, too")
    z, y = size * torch.randn(20, 9), torch.randint(9, (20,))
    wide = z.double().requires_grad_()
    narrow = z.clone().requires_grad_()
    truth, value = (loss(x, y, reduction="none") for x in (wide, narrow))
    assert value.isfinite().all()
    truth.sum().backward()
    value.sum().backward()
    # Many numbers of sparse losses lie half-way between two in float32, and the last bit in float64
    # says to which they are rounded.
    for found, exact in ((value, truth), (narrow.grad, wide.grad)):
        assert ulps(found, exact).max() <= 0.5 + 2**-20


def test_infinite_logits_stay_in_their_row(loss):
    z = torch.randn(4, 5, dtype=torch.float64)
    clean = loss(z, torch.tensor([0, 1, 2, 3]), reduction="none")
    z[0, 3], z[1, 1], z[2] = math.nan, math.inf, -math.inf
    value = loss(z, torch.tensor([0, 1, 2, 3]), reduction="none")
    assert value[:3].isnan().all()
    assert value[3] == clean[3]


def test_bad_input(loss):
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(xent.TargetError, match="class index 4"):
        loss(z, torch.tensor([0, 4, 1]))
    with pytest.raises(ValueError, match="batch_size"):
        loss(z, y[:2])
    soft = [r"target.*sums from", r"target.*smallest entry -0.5"]
    for q, match in zip(([0.5] * 4, [1.5, -0.5, 0.0, 0.0]), soft, strict=True):
        with pytest.raises(ValueError, match=match if loss.soft else "one class per row"):
            loss(z, torch.tensor([q]).expand(3, 4))
    with pytest.raises(ValueError, match="reduction"):
        loss(z, y, reduction="batchmean")
    with pytest.raises(TypeError, match="unexpected keyword"):
        loss(z, y, gama=1.0)


def test_a_few_rows_at_a_time_are_the_same(loss, monkeypatch):
    z, y = torch.randn(7, 5, 2, dtype=torch.float64, requires_grad=True), torch.randint(5, (7, 2))

    def everything(target):
        value = loss(z, target, reduction="none", class_dim=1)
        (slope,) = torch.autograd.grad(value.square().sum(), z, create_graph=True)
        return value, slope, *torch.autograd.grad(slope.square().sum(), z)

    soft = torch.softmax(torch.randn(7, 5, 2, dtype=torch.float64), 1)
    for target in (y, soft) if loss.soft else (y,):
        whole = everything(target)
        with monkeypatch.context() as m:
            m.setattr("xent.frames.dense_rows.CHUNK", 15)
            *parts, twice = everything(target)
        assert all(map(torch.equal, parts, whole))
        # The parts of a second derivative are added up in an order that autograd chooses.
        torch.testing.assert_close(twice, whole[-1], rtol=1e-14, atol=1e-14)


def test_one_row_that_is_no_distribution_is_found(loss):
    if not loss.soft:
        pytest.skip("takes no distributions")
    z, good = torch.randn(3, 3), [0.25, 0.75, 0.0]
    loss(z, torch.tensor([good] * 3))
    for bad in ([1.5, -0.25, -0.25], [0.5, 0.25, 0.0], [0.5, 0.5, 0.25], [math.nan, 0.5, 0.5]):
        for target in ([good, good, bad], [bad, good, good]):
            with pytest.raises(ValueError, match=r"`target` must hold .* must sum to 1; got sums"):
                loss(z, torch.tensor(target))
