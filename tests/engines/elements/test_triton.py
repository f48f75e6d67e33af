"""The element-wise kernel for GPUs: strides, the numbers it reads, and no wait for the device.

Its results are tested with those of the other engines, in test_binary and test_engines.
"""

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import same_bits, ulps, value_and_grad
from tests.registry import ELEMENTS
from xent.engines import elements
from xent.engines import triton as rows
from xent.engines.elements import triton as engine
from xent.engines.elements.problem import ElementProblem, Form

triton = pytest.importorskip("triton")
tl = triton.language
pytestmark = pytest.mark.skipif(not rows.INTERPRETED, reason="Triton's interpreter is not at hand")
divided = pytest.importorskip("xent.engines.triton.elements").divided
KERNELS = pytest.mark.parametrize(
    "loss", [loss for loss in ELEMENTS if loss.kernel], ids=lambda loss: loss.name
)
BCE = xent.binary_cross_entropy_with_logits


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    torch.set_num_threads(1)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make a few hundred elements take several blocks, with an incomplete last block."""
    monkeypatch.setattr(engine, "BLOCK", 64)
    monkeypatch.setattr(engine, "DOUBLE_BLOCK", 64)
    monkeypatch.setattr(engine, "PROGRAMS", 3)


def batch(dtype=torch.float32, shape=(2, 3, 5, 7)):
    """Return images with confident labels and marks, channels-last, and broadcast weights."""
    z = (torch.randn(shape) * 4).to(dtype).contiguous(memory_format=torch.channels_last)
    t = torch.randint(3, shape).to(dtype) - 1
    return z, t, torch.rand(shape[1], 1, 1), torch.rand(shape[0], 1, *shape[2:])


# ---- every form ---------------------------------------------------------------------------------


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_form_against_50_digits(loss, dtype, small_blocks):
    z, t, weight, _ = batch(dtype)
    value, grad = value_and_grad(loss, z, t, weight, ignore_value=-1, engine="triton")
    kept = t >= 0
    values, slopes = loss.truth(z, t.clamp(min=0))
    share = kept * weight.double() / kept.sum()
    truth, slope = (values * share).sum(), slopes * share
    # A power multiplies the relative error; in half precision the last rounding hides that.
    power = max(v for k, v in {"gamma": 2, **loss.options}.items() if "gamma" in k)
    single = dtype == torch.float32
    assert ulps(value, truth) <= (4 if single else 0.51)
    assert ulps(grad, slope).max() <= (4 * (1 + power) if single else 0.51)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def focal(z, t, gamma=2.0):
    """Compute the formula of sigmoid focal loss for labels of 0 and 1, summed."""
    miss = torch.sigmoid(torch.where(t > 0, -z, z))
    share = torch.where(t > 0, 0.25, 0.75)
    return (share * miss**gamma * F.binary_cross_entropy_with_logits(z, t, reduction="none")).sum()


# ---- blocks and operands ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 63, 64, 192, 193, 1000])
@pytest.mark.parametrize("gamma", [2.0, 0.5])  # in float32 and in float64
def test_any_number_of_elements(count, gamma, small_blocks):
    z, t = torch.randn(count), torch.randint(2, (count,)).float()
    options = {"gamma": gamma, "reduction": "sum"}
    value, grad = value_and_grad(xent.losses.sigmoid_focal_loss, z, t, engine="triton", **options)
    truth, slope = value_and_grad(focal, z.double(), t.double(), gamma)
    assert ulps(value, truth) <= 2
    assert not count or ulps(grad, slope).max() <= 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operands_that_repeat_across_blocks(dtype, small_blocks):
    z, t, weight, pos_weight = batch(dtype)
    kept = t >= 0
    truth, slope = value_and_grad(
        F.binary_cross_entropy_with_logits, z.double(), t.clamp(min=0).double(), weight.double(),
        pos_weight=pos_weight.double(), reduction="none",
    )  # fmt: skip
    options = {"pos_weight": pos_weight, "ignore_value": -1, "reduction": "none"}
    limit = 6 if dtype == torch.float32 else 0.51
    for x in (z, z.contiguous(), z.transpose(0, 3).contiguous().transpose(0, 3)):
        value, grad = value_and_grad(BCE, x, t, weight, engine="triton", **options)
        assert ulps(value, truth * kept).max() <= limit
        assert ulps(grad, slope * kept).max() <= limit


@triton.jit
def probe(out, first, size):
    """Return quotients and remainders, one after the other."""
    steps = tl.arange(0, 64)
    quotient, remainder = divided(first, steps, size)
    tl.store(out + steps, quotient)
    tl.store(out + 64 + steps, remainder)


@pytest.mark.parametrize("size", [3, 64, 1000, 2**31 - 5, 2**31 + 5])
def test_places_are_found_in_the_type_of_the_size(size):
    out = torch.empty(2, 64, dtype=torch.int64)
    for first in {0, size // 2, size - 1}:
        probe[(1,)](out, first, size)
        assert out.T.tolist() == [list(divmod(first + k, size)) for k in range(64)]


def test_the_sum_has_the_same_bits_again():
    z, t = torch.randn(5000), torch.rand(5000)
    assert same_bits(BCE(z, t, engine="triton"), BCE(z, t, engine="triton"))
    wide = F.binary_cross_entropy_with_logits(z.double(), t.double())
    assert ulps(BCE(z, t, engine="triton"), wide) <= 1


# ---- what is computed ahead ---------------------------------------------------------------------


def problem(n=500, dtype=torch.float32) -> ElementProblem:
    z, t = torch.randn(n).to(dtype), torch.randint(2, (n,)).to(dtype)
    return ElementProblem(z, t, None, None, lambda *_: z, Form(), None, False, dtype)


def test_the_kernel_looks_at_the_slope():
    p = problem()
    _, ahead = engine.loss(p, 500.0, True)
    assert ahead is not None
    known = torch.full_like(ahead, 7.0)  # not a gradient: it shows whether anything is written
    assert engine.gradient(p, torch.tensor(1.0), 500.0, known) is known
    assert (known == 7).all()
    assert engine.gradient(p, torch.tensor(-3.0), 500.0, known) is known
    torch.testing.assert_close(known, -3 * ahead, rtol=1e-6, atol=0)
    again = engine.gradient(p, torch.tensor(1.0), 500.0)
    assert again is not ahead
    assert same_bits(again, ahead)


def test_a_divisor_on_the_device():
    p, divisor = problem(), torch.tensor(37)
    truth = F.binary_cross_entropy_with_logits(p.input.double(), p.target.double()) * 500 / 37
    for slope in (1.0, 3.0):
        loss, ahead = engine.loss(p, divisor, True)
        grad = engine.gradient(p, torch.tensor(slope), divisor, ahead)
        assert ulps(loss, truth) <= 1
        exact = (torch.sigmoid(p.input.double()) - p.target) * slope / 37
        assert ulps(grad, exact).max() <= 6


def test_slopes_in_a_sum_of_losses():
    z, t = torch.randn(300, requires_grad=True), torch.randint(2, (300,)).float()
    one, two = BCE(z, t, engine="triton"), xent.losses.sigmoid_focal_loss(z, t, engine="triton")
    (grad,) = torch.autograd.grad(one + 3 * two, z)
    x = z.detach().double().requires_grad_()
    plain = F.binary_cross_entropy_with_logits(x, t.double())
    (truth,) = torch.autograd.grad(plain + 3 * focal(x, t.double()) / 300, x)
    torch.testing.assert_close(grad.double(), truth, rtol=1e-6, atol=1e-10)


def test_nothing_waits_for_the_device(monkeypatch):
    """On a GPU, reading a number on the host would wait for the device."""

    def look(*_):
        raise AssertionError("somebody looked")

    p, slope, divisor = problem(), torch.tensor(2.0), torch.tensor(500)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, look)
    _, ahead = engine.loss(p, divisor, True)
    engine.gradient(p, slope, divisor, ahead)
    engine.values(p)
    monkeypatch.undo()
    assert ahead is not None
    assert ahead.all()


def test_why_the_engine_is_taken():
    plan = elements.choose(problem(), "triton")
    assert str(plan).startswith("engine: triton (logits on cpu, torch.float32; Triton kernels in")
    assert elements.choose(problem(dtype=torch.float64), "reference").engine == "reference"
    with pytest.raises(ValueError, match=r"a tensor of torch\.float64"):
        elements.choose(problem(dtype=torch.float64), "triton")
