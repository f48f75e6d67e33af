"""Drop-in for torch.nn.functional.cross_entropy: values, gradients, shapes, dtypes, errors."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import HALF, spacing, ulps

# One row; a batch; one, two and three extra axes; nothing in the batch or in an axis; one class.
SHAPES = [
    (5,),
    (4, 5),
    (3, 5, 2),
    (2, 5, 3, 2),
    (2, 3, 2, 1, 2),
    (0, 5),
    (2, 5, 0),
    (1, 1),
    (6, 300),
]
REDUCTIONS = ["mean", "sum", "none"]


def case(shape, dtype=torch.float64, kind="index"):
    z = (torch.randn(shape, dtype=torch.float64) * 3).to(dtype)
    axis = 0 if len(shape) == 1 else 1
    rows = shape[:axis] + shape[axis + 1 :]
    if kind == "soft":
        return z, torch.softmax(torch.randn(shape, dtype=torch.float64), axis).to(dtype)
    return z, torch.randint(shape[axis], rows)


def run(function, z, y, **options):
    z = z.detach().clone().requires_grad_()
    loss = function(z, y, **options)
    slope = ((torch.arange(loss.numel()) % 3 + 1) / 2).to(loss.dtype).view(loss.shape)
    (grad,) = torch.autograd.grad(loss, z, slope)
    return loss.detach(), grad


def assert_parity(z, y, engine="auto", **options):
    value, grad = run(lambda *a, **k: xent.cross_entropy(*a, engine=engine, **k), z, y, **options)
    # torch takes uint8 for (N, C) logits only; xent takes uint8 wherever it takes int64.
    expected, slope = run(F.cross_entropy, z, y.long() if y.dtype == torch.uint8 else y, **options)
    assert value.shape == expected.shape
    assert value.dtype == expected.dtype
    assert grad.dtype == slope.dtype
    eps = torch.finfo(torch.float64).eps
    torch.testing.assert_close(value, expected, rtol=64 * eps, atol=64 * eps, equal_nan=True)
    torch.testing.assert_close(grad, slope, rtol=64 * eps, atol=64 * eps, equal_nan=True)


@pytest.mark.sample(150)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["index", "uint8", "soft"])  # all targets that torch takes
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])  # none; usual; the uniform target alone
def test_every_option(engine, shape, kind, weighted, smoothing):
    z, y = case(shape, kind=kind)
    y = y.to(torch.uint8) if kind == "uint8" else y
    classes = shape[0] if len(shape) == 1 else shape[1]
    weight = torch.rand(classes, dtype=torch.float64) + 0.1 if weighted else None
    # the default; a class that exists
    for reduction, index in itertools.product(REDUCTIONS, (-100, 0)):
        if kind == "soft" and index >= 0:
            continue
        options = {"reduction": reduction, "ignore_index": index, "label_smoothing": smoothing}
        assert_parity(z, y, engine, weight=weight, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_all_rows_ignored(engine, reduction, smoothing):
    for shape in ((4, 5), (2, 5, 3), (5,)):
        z, y = case(shape)
        options = {"reduction": reduction, "label_smoothing": smoothing}
        value = xent.cross_entropy(z, torch.full_like(y, -100), engine=engine, **options)
        expected = F.cross_entropy(z, torch.full_like(y, -100), **options)
        torch.testing.assert_close(value, expected, equal_nan=True, rtol=0, atol=0)


def test_zero_class_weights(engine):
    z, y = case((4, 5))
    for reduction in REDUCTIONS:
        assert_parity(z, y, engine, weight=torch.zeros(5).double(), reduction=reduction)
        assert_parity(
            z, y, engine, weight=torch.tensor([0, 1, 0, 2, 0.0]).double(), reduction=reduction
        )


def test_a_single_row_with_its_target_in_a_vector(engine):
    z = torch.randn(5, dtype=torch.float64)
    for reduction in REDUCTIONS:  # torch computes the loss, but fails in backward
        value = xent.cross_entropy(z, torch.tensor([3]), reduction=reduction, engine=engine)
        expected = F.cross_entropy(z, torch.tensor([3]), reduction=reduction)
        torch.testing.assert_close(value, expected)
        assert value.shape == ()


def test_targets_that_are_no_distribution(engine):
    z = torch.randn(4, 5, dtype=torch.float64)
    q = torch.randn(4, 5, dtype=torch.float64) * 2  # negative entries, rows of any sum
    for reduction, smoothing in itertools.product(REDUCTIONS, (0.0, 0.1)):
        assert_parity(z, q, engine, reduction=reduction, label_smoothing=smoothing)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("kind", ["index", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("spread", [1, 8])  # rows that are unsure; sure
def test_no_element_is_further_from_the_truth_than_torch(engine, dtype, kind, smoothing, spread):
    z, y = case((64, 200), dtype, kind)
    z = z * spread
    options = {"label_smoothing": smoothing, "reduction": "none"}
    truth, slope = run(F.cross_entropy, z.double(), y.double() if kind == "soft" else y, **options)
    theirs, their_grad = run(F.cross_entropy, z, y, **options)
    ours, our_grad = run(
        lambda *a, **k: xent.cross_entropy(*a, engine=engine, **k), z, y, **options
    )
    slack = 1.0
    assert bool((ulps(ours, truth) <= ulps(theirs, truth) + slack).all())
    # Where terms cancel (p_j near q_j) an element is known to an ulp of the terms, not of itself.
    term = (
        torch.softmax(z.double(), 1).maximum(slope.abs()).maximum(slope.new_tensor(smoothing / 200))
    )
    gap = (z.double().amax(1, keepdim=True) - z.double()) / 2 + 4
    error, their_error = (our_grad.double() - slope).abs(), (their_grad.double() - slope).abs()
    unit = torch.finfo(torch.float32).eps * term * gap + spacing(slope, dtype)
    assert bool((error <= their_error + unit).all())


@pytest.mark.parametrize("logits", [torch.float32, torch.float64, *HALF], ids=str)
@pytest.mark.parametrize("target", [torch.float32, torch.float64, *HALF], ids=str)
def test_dtype_of_the_result_with_mixed_soft_targets(engine, logits, target):
    z, q = case((4, 5), logits)[0], case((4, 5), target, "soft")[1]
    if engine == "native" and target == torch.float64 and logits != target:
        with pytest.raises(ValueError, match="float64"):
            xent.cross_entropy(z, q, engine=engine)
        engine = "auto"
    for reduction, weight in itertools.product(REDUCTIONS, (None, torch.ones(5, dtype=target))):
        expected, slope = run(F.cross_entropy, z, q, reduction=reduction, weight=weight)
        value, grad = run(
            lambda *a, **k: xent.cross_entropy(*a, engine=engine, **k),
            z, q, reduction=reduction, weight=weight,
        )  # fmt: skip
        assert (value.dtype, grad.dtype) == (expected.dtype, slope.dtype)
        eps = torch.finfo(min(logits, target, key=lambda d: -torch.finfo(d).eps)).eps
        torch.testing.assert_close(value, expected, rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("low", HALF, ids=str)
@pytest.mark.parametrize("kind", ["index", "soft"])
def test_dtype_under_autocast(dtype, low, kind):
    z, y = case((4, 5), dtype, kind)
    weight = torch.rand(5)
    with torch.autocast("cpu", dtype=low):
        for reduction in REDUCTIONS:
            for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}):
                expected, slope = run(F.cross_entropy, z, y, reduction=reduction, **options)
                value, grad = run(xent.cross_entropy, z, y, reduction=reduction, **options)
                assert (value.dtype, grad.dtype) == (expected.dtype, slope.dtype)
                torch.testing.assert_close(value, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
def test_legacy_flags(size_average, reduce):
    z, y = case((4, 5))
    if size_average is None and reduce is None:
        pytest.skip("no flag, nothing legacy")
    options = {"size_average": size_average, "reduce": reduce}
    with warnings.catch_warnings(record=True) as theirs:
        warnings.simplefilter("always")
        expected = F.cross_entropy(z, y, **options)
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        value = xent.cross_entropy(z, y, **options)
    torch.testing.assert_close(value, expected)
    assert [w.category for w in ours] == [w.category for w in theirs] == [UserWarning]
    assert ours[0].filename == __file__  # points at the caller


def test_arguments_in_the_order_of_torch():
    z, y = case((4, 5))
    w = torch.rand(5).double()
    value = xent.cross_entropy(z, y, w, None, 3, None, "sum", 0.1)
    torch.testing.assert_close(value, F.cross_entropy(z, y, w, None, 3, None, "sum", 0.1))


def test_module_twin():
    z, y = case((4, 5))
    w = torch.rand(5).double()
    for args in ((), (w,), (w, None, 3, None, "sum", 0.1)):
        ours, theirs = xent.nn.CrossEntropyLoss(*args), torch.nn.CrossEntropyLoss(*args)
        torch.testing.assert_close(ours(z, y), theirs(z, y))
        assert ours.state_dict().keys() == theirs.state_dict().keys()
