"""Losses of doubt: digits of sure rows, lengths without logits, rows that no label belongs to."""

import math
import warnings

import mpmath
import pytest
import torch
import torch.nn.functional as F
from mpmath import mpf

import xent
from tests.helpers import grads, head, nats_below_top, value_and_grad, worst
from xent.losses import evidential_loss, logit_norm_loss

MARGINS = (-90.0, -40.0, -12.5, 0.25, 3.0, 17.0, 40.0, 90.0)


def exact_evidential(row, y, form):
    """Return the loss of a row in 100 digits."""
    alpha = [1 + mpmath.exp(mpf(z)) for z in row]
    function = mpmath.log if form == "likelihood" else mpmath.digamma
    return function(mpmath.fsum(alpha)) - function(alpha[y])


@pytest.mark.parametrize("form", ["likelihood", "expected"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evidence_of_sure_rows_keeps_its_digits(form, dtype):
    others = [0.0, -0.75, 2.5]
    z = torch.tensor([[m, *others] for m in MARGINS], dtype=dtype)
    for y in (0, 2):
        labels = torch.full((len(z),), y)
        value, grad = value_and_grad(evidential_loss, z, labels, form=form, reduction="none")
        true_value, true_grad = [], []
        with mpmath.workdps(100):
            for row in z.double().tolist():
                true_value.append(float(exact_evidential(row, y, form)))
                slopes = []
                for j, h in enumerate([mpf(10) ** -40] * len(row)):
                    up, down = ([v + s * h * (i == j) for i, v in enumerate(row)] for s in (1, -1))
                    ends = exact_evidential(up, y, form) - exact_evidential(down, y, form)
                    slopes.append(float(ends / (2 * h)))
                true_grad.append(slopes)
        true_value, true_grad = (
            torch.tensor(x, dtype=torch.float64) for x in (true_value, true_grad)
        )
        limit = 1e-13 if dtype is torch.float64 else 2e-7
        torch.testing.assert_close(value.double(), true_value, rtol=limit, atol=0)
        torch.testing.assert_close(grad.double(), true_grad, rtol=100 * limit, atol=limit)


def test_evidence_overflows_nowhere():
    z = torch.tensor([[800.0, 0.0], [0.0, 800.0], [-800.0, -900.0]], dtype=torch.float64)
    for form, doubt in (("likelihood", math.log(2)), ("expected", 1.0)):
        y = torch.zeros(3).long()
        value, grad = value_and_grad(evidential_loss, z, y, form=form, reduction="none")
        assert grad.isfinite().all()
        assert value[0] < 1e-300
        assert value[2].item() == pytest.approx(doubt, rel=1e-14)
        of_two = math.log(2) if form == "likelihood" else 1 - 0.5772156649015329
        assert value[1].item() == pytest.approx(800 - of_two, rel=1e-14)


def test_a_row_of_one_class_has_no_doubt():
    z, y = torch.tensor([[1.0, -torch.inf], [-torch.inf, 1.0]]).double(), torch.tensor([0, 1])
    for form in ("likelihood", "expected"):
        value, grad = value_and_grad(evidential_loss, z, y, form=form, reduction="none")
        assert not value.any()
        assert not grad.any()


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form"):
        evidential_loss(torch.zeros(1, 2), torch.tensor([0]), form="squares")


def plain_logit_norm(z, y, temperature):
    return F.cross_entropy(z / (temperature * z.norm(dim=-1, keepdim=True)), y, reduction="none")


HEADS = {
    "plain": lambda h, w, b: (xent.LinearLogits(h, w), F.linear(h, w)),
    "bias": lambda h, w, b: (xent.LinearLogits(h, w, b), F.linear(h, w, b)),
    "scale": lambda h, w, b: (xent.LinearLogits(h, w, b) * 3.0, F.linear(h, w, b)),
    "negative": lambda h, w, b: (xent.LinearLogits(h, w, b) * -0.5, -F.linear(h, w, b)),
    "capped": lambda h, w, b: (
        2 * torch.tanh(xent.LinearLogits(h, w, b) / 2), 2 * torch.tanh(F.linear(h, w, b) / 2)
    ),
    "learned scale": lambda h, w, b: (
        xent.LinearLogits(h, w) * torch.tensor(2.0), F.linear(h, w)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_lengths_behind_a_head(name, reduction, monkeypatch):
    monkeypatch.setattr("xent.heads.chunks.MAX_ROWS", 8)
    monkeypatch.setattr("xent.losses.uncertainty.CHUNK", 6)  # several parts of the weight
    parts, y = head(36), torch.randint(50, (36,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits, z = HEADS[name](*parts)
        lean = logit_norm_loss(logits, y, temperature=0.1, reduction=reduction)
    whole = plain_logit_norm(z, y, 0.1)
    whole = whole if reduction == "none" else whole.mean()
    torch.testing.assert_close(lean, whole, rtol=1e-12, atol=1e-12)
    used = parts if name not in ("plain", "learned scale") else parts[:2]
    torch.testing.assert_close(grads(lean, used), grads(whole, used), rtol=1e-9, atol=1e-11)


def test_garbage_and_zeros_behind_a_head():
    h, w, _ = head(5)
    with torch.no_grad():
        h[1], h[2], h[3] = torch.nan, 0.0, torch.inf
    y, row_weight = torch.tensor([1, -100, 2, 3, 4]), torch.tensor([1.0, 1, 1, 0, 1]).double()
    loss = logit_norm_loss(xent.LinearLogits(h, w), y, row_weight=row_weight, reduction="none")
    assert loss[2].item() == pytest.approx(math.log(50), rel=1e-14)
    assert not loss[[1, 3]].any()
    slope = torch.autograd.grad(loss.sum(), (h, w))
    assert all(x.isfinite().all() for x in slope)
    assert not slope[0][[1, 3]].any()


def test_a_masked_class_adds_nothing_to_the_length():
    h, w, _ = head(9)
    y = torch.randint(7, (9,))
    bias = torch.zeros(50, dtype=torch.float64)
    bias[7:] = -torch.inf
    masked = xent.LinearLogits(h, w).masked_fill(bias == -torch.inf, -torch.inf)
    whole = plain_logit_norm(F.linear(h, w[:7]), y, 0.04).mean()
    torch.testing.assert_close(logit_norm_loss(masked, y), whole)
    torch.testing.assert_close(logit_norm_loss(F.linear(h, w) + bias, y), whole)


def test_lengths_of_features_in_16_bits_are_those_of_float64():
    h, w, b = (x.detach().bfloat16() for x in head(40, 64))
    y = torch.randint(50, (40,))
    exact = plain_logit_norm(F.linear(*(x.double() for x in (h, w, b))), y, 0.04)
    found = logit_norm_loss(xent.LinearLogits(h, w, b, products="float32"), y, reduction="none")
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-12)


def test_soft_targets_are_refused():
    z = torch.randn(3, 4)
    for loss in (
        xent.losses.outlier_exposure_loss, xent.losses.energy_loss, xent.losses.entropy_loss,
        evidential_loss, logit_norm_loss,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{loss.__name__} takes one class per row"):
            loss(z, torch.softmax(z, 1))


@pytest.mark.parametrize("name", ["outlier_exposure_loss", "energy_loss", "entropy_loss"])
def test_the_class_of_an_outlier_has_no_say(name):
    loss, z = getattr(xent.losses, name), torch.randn(4, 5, dtype=torch.float64)
    values = [loss(z, torch.full((4,), c), reduction="none") for c in range(5)]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-14, atol=1e-14)


def test_outlier_exposure_is_the_divergence_from_the_uniform_distribution():
    """Up to its least value, log C."""
    z = torch.randn(6, 5, dtype=torch.float64)
    loss = xent.losses.outlier_exposure_loss(z, torch.zeros(6).long(), reduction="none")
    uniform = torch.full_like(z, 0.2)
    divergence = F.kl_div(torch.log_softmax(z, 1), uniform, reduction="none").sum(1)
    torch.testing.assert_close(loss - torch.tensor(5.0).double().log(), divergence)


def test_float32_is_float64_rounded():
    z, y = 30 * torch.randn(50, 7), torch.randint(7, (50,))
    for name, options in (
        ("outlier_exposure_loss", {}), ("energy_loss", {"margin": -60.0}), ("entropy_loss", {}),
        ("energy_loss", {"outliers": True}), ("evidential_loss", {}),
        ("evidential_loss", {"form": "expected"}), ("logit_norm_loss", {}),
    ):  # fmt: skip
        loss = getattr(xent.losses, name)
        narrow, wide = (loss(x, y, reduction="none", **options) for x in (z, z.double()))
        assert worst(narrow, wide, nats_below_top(z).amax(1)) <= 4, name


UNLABELLED = ["outlier_exposure_loss", "energy_loss", "entropy_loss"]


@pytest.mark.parametrize("name", UNLABELLED)
@pytest.mark.parametrize("shape", [(5,), (4, 5), (0, 5), (2, 5, 3), (2, 5, 2, 2)])
def test_without_a_target_all_rows_count(name, shape):
    loss, z = getattr(xent.losses, name), torch.randn(shape, dtype=torch.float64)
    zeros = torch.zeros(shape[:1] + shape[2:] if len(shape) > 1 else ()).long()
    for options in ({"reduction": "none"}, {"empty": "zero"}, {"return_stats": True}):
        found, expected = loss(z, **options), loss(z, zeros, **options)
        found, expected = (x[0] if "return_stats" in options else x for x in (found, expected))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    last = z.movedim(1, -1) if z.ndim > 1 else z
    torch.testing.assert_close(loss(last, class_dim=-1), loss(z), equal_nan=True)
    weight = torch.rand(zeros.shape)
    torch.testing.assert_close(
        loss(z, row_weight=weight), loss(z, zeros, row_weight=weight), equal_nan=True
    )


@pytest.mark.parametrize("name", UNLABELLED)
def test_without_a_target_elsewhere(name):
    loss, (h, w, b) = getattr(xent.losses, name), head(9)
    z, zeros = F.linear(h, w, b), torch.zeros(9).long()
    lean, whole = loss(xent.LinearLogits(h, w, b)), loss(z, zeros)
    torch.testing.assert_close(lean, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads(lean, (h, w, b)), grads(whole, (h, w, b)))
    module = getattr(xent.nn, name.removesuffix("_loss").title().replace("_", "") + "Loss")()
    torch.testing.assert_close(module(z), whole)
    each = torch.func.vmap(lambda row: loss(row, reduction="none"))(z.detach())
    torch.testing.assert_close(each, loss(z.detach(), reduction="none"))
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: loss(z), backend="aot_eager", fullgraph=True)(z.detach())
    torch.testing.assert_close(compiled, whole.detach())
    nested = torch.nested.nested_tensor_from_jagged(z.detach(), torch.tensor([0, 4, 9]))
    torch.testing.assert_close(loss(nested, class_dim=-1), whole.detach())
    with pytest.raises(TypeError, match="`input`"):
        loss("text")
    with pytest.raises(TypeError, match="target"):
        xent.cross_entropy(z)
