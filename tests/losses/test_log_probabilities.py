"""``nll_loss`` and ``kl_div``: equal to PyTorch's, and right where PyTorch gives no number."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

import xent

SHAPES = [(5,), (4, 5), (4, 5, 3), (2, 5, 3, 2)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about size_average, reduce and the mean of elements
        yield


def log_probs(shape, dtype=torch.float64):
    return torch.log_softmax(2 * torch.randn(shape, dtype=dtype), 0 if len(shape) == 1 else 1)


def labels(shape):
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    return torch.randint(5, rows)


def agree(ours, theirs, tensors, eps=None):
    """Compare values and gradients of two functions."""
    dtype = tensors[0].dtype
    eps = 8 * torch.finfo(dtype).eps if eps is None else eps
    results = []
    for function in (ours, theirs):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        value = function(*leaves)
        slopes = torch.autograd.grad((value * 1.5).sum(), leaves)
        results.append((value.detach(), *slopes))
    for a, b in zip(*results, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        torch.testing.assert_close(a, b, rtol=eps, atol=eps, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nll_loss_is_that_of_torch(shape, dtype):
    x, y, w = log_probs(shape, dtype), labels(shape), torch.rand(5, dtype=dtype)
    for options in (
        {}, {"weight": w}, {"ignore_index": 2}, {"weight": w, "ignore_index": int(y.flatten()[0])},
        {"reduction": "sum"}, {"reduction": "none", "weight": w}, {"reduce": False},
        {"size_average": False},
    ):  # fmt: skip
        agree(lambda a, o=options: xent.nll_loss(a, y, **o),
              lambda a, o=options: F.nll_loss(a.float() if dtype.itemsize < 4 else a, y, **{
                  k: v.float() if dtype.itemsize < 4 and k == "weight" else v
                  for k, v in o.items()}).to(dtype), [x])  # fmt: skip


def test_nll_loss_by_place():
    x, y, w = log_probs((4, 5)), labels((4, 5)), torch.rand(5).double()
    torch.testing.assert_close(
        xent.nll_loss(x, y, w, None, 2, None, "sum"), F.nll_loss(x, y, w, None, 2, None, "sum")
    )
    module = xent.nn.NLLLoss(w, None, 2, None, "sum")
    assert isinstance(module, torch.nn.NLLLoss)
    torch.testing.assert_close(module(x, y), torch.nn.NLLLoss(w, None, 2, None, "sum")(x, y))
    assert list(module.state_dict()) == list(torch.nn.NLLLoss(w).state_dict())


def test_nll_loss_beyond_torch():
    x, y = log_probs((4, 5)), torch.tensor([0, 1, 2, 3])
    each = F.nll_loss(x, y, reduction="none")
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0]).double()
    holed = torch.where(weight[:, None] == 0, math.nan, x)
    torch.testing.assert_close(
        xent.nll_loss(holed, y, row_weight=weight), (each * weight).sum() / 4
    )
    assert xent.nll_loss(x, y.to(torch.int16), normalizer=8) == each.sum() / 8
    nothing = torch.full_like(y, -100)
    assert xent.nll_loss(x, nothing).isnan()
    assert xent.nll_loss(x, nothing, empty="zero") == 0
    hidden, head = torch.randn(4, 3).double(), torch.randn(5, 3).double()
    lean = torch.log_softmax(xent.LinearLogits(hidden, head), -1)
    torch.testing.assert_close(xent.nll_loss(lean, y), F.cross_entropy(hidden @ head.T, y))


@pytest.mark.parametrize("shape", [(), *SHAPES])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div_is_that_of_torch(shape, dtype, log_target):
    x = -torch.rand(shape, dtype=dtype) - 0.1
    t = torch.rand(shape, dtype=dtype) * 0.9 + 0.05
    t = t.log() if log_target else t
    for reduction in ("none", "sum", "mean", "batchmean"):
        agree(lambda a, b, r=reduction: xent.kl_div(a, b, reduction=r, log_target=log_target),
              lambda a, b, r=reduction: F.kl_div(a, b, reduction=r, log_target=log_target),
              [x, t])  # fmt: skip


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_nll_loss_behind_a_head(reduction):
    h, w, c = torch.randn(4, 3).double(), torch.randn(5, 3).double(), torch.rand(5).double()
    y = torch.tensor([0, 4, -1, 2])
    options = {"ignore_index": -1, "reduction": reduction}
    log_p = F.log_softmax(xent.LinearLogits(h, w), -1)
    found = xent.nll_loss(log_p, y, c, **options)
    torch.testing.assert_close(found, F.nll_loss(F.log_softmax(h @ w.T, -1), y, c, **options))


def test_kl_div_of_what_weighs_nothing():
    x, t, w = log_probs((2, 5)), log_probs((2, 5)).exp(), torch.ones(2, 5).double()
    x[0, 1] = t[1, 2] = math.nan
    w[0, 1] = w[1, 2] = 0
    x.requires_grad_()
    value = xent.kl_div(x, t, reduction="none", weight=w)
    value.sum().backward()
    truth = torch.where(w == 0, 0, t * (t.log() - x.detach()))
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(x.grad, torch.where(w == 0, 0, -t))


def test_kl_div_by_place():
    x, t = log_probs((4, 5)), log_probs((4, 5))
    expected = F.kl_div(x, t, None, None, "sum", True)
    torch.testing.assert_close(xent.kl_div(x, t, None, None, "sum", True), expected)
    module = xent.nn.KLDivLoss(None, None, "batchmean", True)
    assert isinstance(module, torch.nn.KLDivLoss)
    expected = torch.nn.KLDivLoss(None, None, "batchmean", True)(x, t)
    torch.testing.assert_close(module(x, t), expected)


def test_kl_div_of_distributions():
    x, t = log_probs((6, 5)), log_probs((6, 5)).exp()
    truth = xent.information.kl_divergence(t, x.exp())
    torch.testing.assert_close(xent.kl_div(x, t, reduction="none").sum(1), truth)
    torch.testing.assert_close(xent.kl_div(x, t, reduction="batchmean"), truth.mean())
    with pytest.warns(UserWarning, match="batchmean"):
        torch.testing.assert_close(xent.kl_div(x, t), truth.mean() / 5)


@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div_where_a_target_is_0(log_target):
    """Two classes have target 0; one of them also has probability 0."""
    p = torch.tensor([0.5, 0.25, 0.25, 0.0]).double()
    t = torch.tensor([0.25, 0.75, 0.0, 0.0]).double()
    target = t.log() if log_target else t
    x, leaf = p.log().requires_grad_(), target.clone().requires_grad_()
    value = xent.kl_div(x, leaf, reduction="none", log_target=log_target)
    truth = torch.tensor([0.25 * math.log(0.5), 0.75 * math.log(3), 0, 0]).double()
    torch.testing.assert_close(value.detach(), truth)
    dx, dt = torch.autograd.grad(value.sum(), (x, leaf))
    torch.testing.assert_close(dx, -t)
    slope = (t[:2] / p[:2]).log() + 1
    torch.testing.assert_close(dt[:2], slope * t[:2] if log_target else slope)
    assert (dt[2:] == 0).all()
    p, t = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])
    assert xent.kl_div(p.log(), t, reduction="sum") == math.inf


def test_kl_div_weighted():
    x, t, w = log_probs((4, 5)), log_probs((4, 5)).exp(), torch.rand(5).double()
    each = F.kl_div(x, t, reduction="none")
    torch.testing.assert_close(xent.kl_div(x, t, weight=w, reduction="sum"), (each * w).sum())
    w[2] = 0
    holed = x.clone()
    holed[:, 2] = math.nan
    holed.requires_grad_()
    value = xent.kl_div(holed, t, weight=w, reduction="sum")
    torch.testing.assert_close(value.detach(), (each * w).sum())
    (slope,) = torch.autograd.grad(value, holed)
    torch.testing.assert_close(slope, -t * w)


X, P = log_probs((4, 5)), log_probs((4, 5)).exp()
Y = torch.tensor([0, 1, 2, 3])
BAD = {
    "probabilities": (lambda: xent.nll_loss(P, Y), ValueError, "`input` must hold log-prob"),
    "soft": (lambda: xent.nll_loss(X, P), ValueError, "`target` has the shape of `input`"),
    "column": (lambda: xent.nll_loss(X, Y[:, None]), ValueError, r"target\.squeeze\(1\)"),
    "no such class": (lambda: xent.nll_loss(X, Y + 3), IndexError, "out of bounds"),
    "short weight": (lambda: xent.nll_loss(X, Y, torch.ones(4)), ValueError, "`weight`"),
    "of probabilities": (lambda: xent.kl_div(P, P), ValueError, "`input` must hold log-prob"),
    "log target": (lambda: xent.kl_div(X, X), ValueError, "`target` must hold probabilities"),
    "no log target": (
        lambda: xent.kl_div(X, P, log_target=True), ValueError, "`target` must hold log-prob",
    ),
    "labels": (lambda: xent.kl_div(X, Y), TypeError, "nll_loss"),
    "another shape": (lambda: xent.kl_div(X, P[:1]), ValueError, "nothing is broadcast"),
    "reduction": (lambda: xent.kl_div(X, P, reduction="avg"), ValueError, "`reduction`"),
    "weight": (
        lambda: xent.kl_div(X, P, weight=torch.ones(4)), ValueError, "`weight` must broadcast",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call()


def test_rounding_is_no_mistake():
    """In float32 PyTorch's log_softmax may be above 0 by a rounding error."""
    x = torch.tensor([[1e-6, -14.0]])
    assert xent.nll_loss(x, torch.tensor([0])) == pytest.approx(-1e-6)
    with pytest.raises(ValueError, match="at most 0"):
        xent.nll_loss(x + 1e-3, torch.tensor([0]))
    assert xent.nll_loss(x + 1, torch.tensor([-100]), empty="zero") == 0
