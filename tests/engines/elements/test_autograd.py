"""Losses of single elements: derivatives of every kind, and compilers."""

import gc

import pytest
import torch

import xent
from tests.engines.elements.test_engines import BCE, EACH, LAYOUTS, pair
from tests.helpers import opcheck, value_and_grad, widest
from xent.engines.elements import operators


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    """Use one thread: the tensors are too small for two."""
    torch.set_num_threads(1)


# ---- derivatives --------------------------------------------------------------------------------


@EACH
def test_gradcheck_and_gradgradcheck(loss, engine):
    if engine == "native" and not loss.kernel:
        pytest.skip("has no kernel")
    z, t = pair(2, 3)
    z.requires_grad_()
    weight = torch.rand(3).double()
    for reduction in ("mean", "none"):

        def call(x, reduction=reduction):
            return loss(x, t, weight, reduction=reduction, engine=engine)

        assert torch.autograd.gradcheck(call, z)
        assert torch.autograd.gradgradcheck(call, z)


@EACH
def test_gradients_towards_targets_and_weights(loss):
    z, t = pair(1, 2)
    weight = torch.rand(1, 1).double()
    tensors = [x.requires_grad_() for x in (z, t, weight)]
    call = lambda z, t, w: loss(z, t, w)  # noqa: E731
    assert torch.autograd.gradcheck(call, tensors)
    if "varifocal" not in loss.name:  # its weight is the target itself
        assert torch.autograd.gradgradcheck(call, tensors)


def test_gradients_towards_pos_weight_and_probabilities():
    z, t = pair(2, 3)
    q = torch.sigmoid(z).requires_grad_()
    tensors = [x.requires_grad_() for x in (z, t, torch.rand(3).double())]
    assert torch.autograd.gradcheck(lambda z, t, w: BCE(z, t, pos_weight=w), tensors)
    assert torch.autograd.gradgradcheck(lambda z, t, w: BCE(z, t, pos_weight=w), tensors)
    q = q.detach().requires_grad_()
    assert torch.autograd.gradcheck(xent.binary_cross_entropy, (q, t))
    assert torch.autograd.gradgradcheck(xent.binary_cross_entropy, (q, t))


@EACH
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_transforms(loss):
    z, t = pair(4, 3)
    call = lambda x, y: loss(x, y)  # noqa: E731
    value, grad = value_and_grad(loss, z, t)
    torch.testing.assert_close(torch.func.grad(call)(z, t), grad, rtol=1e-12, atol=1e-15)
    v = torch.randn_like(z)
    out, slope = torch.func.jvp(lambda x: loss(x, t), (z,), (v,))
    torch.testing.assert_close(out, value)
    torch.testing.assert_close(slope, (grad * v).sum(), rtol=1e-11, atol=1e-14)
    each = torch.func.vmap(call)(z, t)
    torch.testing.assert_close(each, torch.stack([loss(a, b) for a, b in zip(z, t, strict=True)]))
    hessian = torch.func.hessian(lambda x: loss(x, t[0]))(z[0])
    assert not (hessian - torch.diag(torch.diagonal(hessian))).any()


def test_a_jacobian_in_one_vectorised_pass(every_engine):
    z, t = pair(5, dtype=widest(every_engine))
    eps = torch.finfo(z.dtype).eps
    call = lambda x: BCE(x, t, reduction="none", engine=every_engine)  # noqa: E731
    whole = torch.autograd.functional.jacobian(call, z, vectorize=True)
    torch.testing.assert_close(whole, torch.diag(torch.sigmoid(z) - t), rtol=4e3 * eps, atol=eps)


def test_any_slope_and_any_number_of_backward_passes(every_engine):
    z, t = pair(40, 50, dtype=torch.float32)
    z.requires_grad_()
    loss = BCE(z, t, engine=every_engine)
    first = torch.autograd.grad(loss, z, retain_graph=True)[0]
    first.add_(1e9)  # a change of this gradient must not reach the next pass
    again = torch.autograd.grad(loss, z, retain_graph=True)[0]
    truth = ((torch.sigmoid(z.double()) - t) / 2000).detach()
    torch.testing.assert_close(again.double(), truth, rtol=1e-5, atol=1e-10)
    for slope in (0.0, -3.0, 65536.0):
        scaled = torch.autograd.grad(loss * slope, z, retain_graph=True)[0]
        torch.testing.assert_close(
            scaled.double(), slope * truth, rtol=1e-5, atol=1e-10 * abs(slope)
        )
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_loss_scale_saves_small_gradients_of_half_precision(every_engine):
    """The gradient is not rounded to float16 before it is scaled."""
    z = torch.zeros(300, 100 if every_engine == "triton" else 1000, dtype=torch.float16)
    z.requires_grad_()
    t, normalizer = torch.full_like(z, 0.5 + 2**-8).detach(), 2.0**18
    (BCE(z, t, normalizer=normalizer, engine=every_engine).float() * 2.0**14).backward()
    truth = -(2.0**-8) / normalizer
    assert -truth < 2.0**-25  # 0 in float16
    torch.testing.assert_close(z.grad[0, 0].item(), truth * 2**14, rtol=1e-3, atol=0)


def test_changing_the_logits_before_a_recomputed_backward_raises(every_engine):
    z, t = pair(4, 5, dtype=widest(every_engine))
    z.requires_grad_()
    x = z * 1
    loss = BCE(x, t, reduction="none", engine=every_engine).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        loss.backward()


def test_without_gradients_nothing_is_kept(every_engine):
    engine = every_engine
    z, t = pair(*(30, 30) if engine == "triton" else (300, 300), dtype=torch.float32)
    assert not BCE(z, t, engine=engine).requires_grad
    with torch.no_grad():
        assert not BCE(z.requires_grad_(), t, engine=engine).requires_grad
    with torch.inference_mode():
        BCE(z.detach(), t, engine=engine)


def test_the_graph_is_freed(every_engine):
    engine = every_engine
    z, t = pair(*(10, 70) if engine == "triton" else (100, 700), dtype=torch.float32)
    z.requires_grad_()
    for _ in range(3):
        BCE(z, t, engine=engine)
    gc.collect()
    alive = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.shape == z.shape]
    assert len(alive) <= 2


@EACH
def test_autocast(loss):
    z, t = torch.randn(6, 4).bfloat16().requires_grad_(), torch.rand(6, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(z, t)
    assert value.dtype == torch.float32
    value.backward()
    assert z.grad.dtype == torch.bfloat16
    wide = loss(z.detach().double(), t.double())
    torch.testing.assert_close(value.double(), wide, rtol=1e-6, atol=1e-8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(z.detach().double(), t.double())
    assert value.dtype == torch.float64
    assert torch.equal(value, wide)


# ---- compilers ----------------------------------------------------------------------------------


@pytest.mark.sample(4)
@EACH
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_fullgraph(loss):
    torch._dynamo.reset()
    z, t = pair(6, 9, dtype=torch.float32)
    weight = torch.rand(9)
    for reduction in ("mean", "none"):
        options = {"reduction": reduction, "ignore_value": 0.25}
        step = torch.compile(
            lambda x, y, w, o=options: loss(x, y, w, **o), fullgraph=True, backend="aot_eager"
        )
        a, da = value_and_grad(step, z, t, weight)
        b, db = value_and_grad(loss, z, t, weight, **options)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(da, db, rtol=1e-5, atol=1e-7)


@pytest.mark.sample(1)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fullgraph_dynamic_shapes_and_bad_targets(kernels, reduction):
    torch._dynamo.reset()
    call = lambda x, y: BCE(x, y, reduction=reduction, engine=kernels)  # noqa: E731
    step = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (3, 7, 20):
        z, t = pair(n, 4, dtype=torch.float32)
        a, da = value_and_grad(step, z, t)
        b, db = value_and_grad(BCE, z, t, reduction=reduction)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(da, db)
    with pytest.raises(ValueError, match="divide by 255"):
        step(z, t * 255)


@pytest.mark.sample(4)
@pytest.mark.parametrize("op", ["element_total", "element_values", "element_gradient"])
@pytest.mark.parametrize("layout", ["plain", "channels last"])
def test_opcheck(kernels, op, layout):
    z, t = pair(2, 3, 4, 2, dtype=torch.float32)
    if layout != "plain":
        z = LAYOUTS[layout](z)
    form = [0.25, 0.75, 2.0, 1.0, 1.0, 0.0, -1.0, 0.0]
    arguments = [z, t, torch.rand(2), None, form, -1.0, True, torch.float32, 0.1, kernels]
    if op == "element_gradient":
        arguments = [torch.randn_like(z), *arguments]
    else:
        z.requires_grad_()
    opcheck(getattr(operators, op), arguments)
