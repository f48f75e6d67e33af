"""Every way in which PyTorch can differentiate works or raises; none gives a wrong number."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import xent
from tests.helpers import same_bits
from tests.registry import BASIC, Loss
from xent.engines import core

every_loss = pytest.mark.parametrize("loss", BASIC, ids=lambda loss: loss.name)
# Warnings of torch's own forward-mode formulas.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def problem(n=3, v=4, dtype=torch.float64, soft=False):
    z = torch.randn(n, v, dtype=dtype, requires_grad=True)
    y = torch.softmax(torch.randn(n, v), 1).to(dtype) if soft else torch.randint(v, (n,))
    return z, y


@pytest.mark.sample(10)
@every_loss
def test_second_derivatives(loss: Loss, engine):
    z, y = problem()
    assert gradgradcheck(lambda x: loss(x, y, engine=engine), z)


@pytest.mark.sample(8)
@every_loss
@pytest.mark.parametrize("soft", [False, True])
def test_forward_mode_and_batched_gradients(loss: Loss, soft):
    z, y = problem(soft=soft)
    assert gradcheck(
        lambda x: loss(x, y, reduction="none"), z, check_forward_ad=True, check_batched_grad=True
    )
    assert gradcheck(lambda x: loss(x, y), z, check_forward_ad=True, check_batched_grad=True)


@every_loss
def test_torch_func(loss: Loss):
    z, y = problem()
    x, t = z.detach(), torch.randn(3, 4, dtype=torch.float64)
    truth = lambda x: loss.truth(x, y).sum()  # noqa: E731
    ours = lambda x: loss(x, y, reduction="sum")  # noqa: E731
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(torch.func.grad(ours)(x), torch.func.grad(truth)(x), **close)
    torch.testing.assert_close(torch.func.hessian(ours)(x), torch.func.hessian(truth)(x), **close)
    for a, b in zip(
        torch.func.jvp(ours, (x,), (t,)), torch.func.jvp(truth, (x,), (t,)), strict=True
    ):
        torch.testing.assert_close(a, b, **close)
    rows = lambda x: loss(x, y, reduction="none")  # noqa: E731
    torch.testing.assert_close(
        torch.func.jacrev(rows)(x), torch.func.jacrev(lambda x: loss.truth(x, y))(x), **close
    )
    per_row = torch.func.vmap(lambda x, y: loss(x, y, reduction="sum"))(x, y)
    torch.testing.assert_close(per_row, loss.truth(x, y), **close)
    grads = torch.func.vmap(torch.func.grad(lambda x, y: loss(x, y, reduction="sum")))(x, y)
    torch.testing.assert_close(grads, torch.func.grad(truth)(x), **close)


def test_named_native_under_a_transform_raises():
    z, y = problem()
    with pytest.raises(ValueError, match="native"):
        torch.func.grad(lambda x: xent.cross_entropy(x, y, engine="native"))(z.detach())


def test_dual_numbers():
    z, y = problem()
    x, t = z.detach(), torch.randn(3, 4, dtype=torch.float64)
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(xent.cross_entropy(forward_ad.make_dual(x, t), y))
        slope = forward_ad.unpack_dual(F.cross_entropy(forward_ad.make_dual(x, t), y)).tangent
    torch.testing.assert_close(out.tangent, slope)


def test_hessian_is_the_softmax_jacobian(engine):
    z = torch.randn(1, 5, dtype=torch.float64)
    h = torch.autograd.functional.hessian(
        lambda x: xent.cross_entropy(x, torch.tensor([2]), engine=engine), z
    )
    torch.testing.assert_close(h.view(5, 5), xent.softmax_jacobian(z)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "name", ["target", "weight", "logit_scale", "row scale", "class_bias", "row_weight"]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_beyond_the_logits(name, smoothing):
    z, y = problem(soft=name == "target")
    make = {"weight": (4,), "class_bias": (4,), "logit_scale": (), "row_weight": (3,)}
    shape = (3,) if name == "row scale" else make.get(name)
    option = "logit_scale" if name == "row scale" else name

    def loss(z, extra):
        extra = extra if name == "target" else {option: extra}
        options = {"label_smoothing": smoothing, "z_loss": 0.01}
        if name == "target":
            return xent.cross_entropy(z, extra, **options)
        return xent.cross_entropy(z, y, **options, **extra)

    extra = y if name == "target" else torch.rand(shape, dtype=torch.float64) + 0.5
    extra = extra.detach().requires_grad_()
    assert gradcheck(loss, (z, extra), check_forward_ad=True)
    assert gradgradcheck(loss, (z, extra))


def test_gradient_of_a_target_is_minus_log_p():
    z, q = problem(soft=True)
    q.requires_grad_()
    (grad,) = torch.autograd.grad(xent.cross_entropy(z, q, reduction="sum"), q)
    torch.testing.assert_close(grad, -torch.log_softmax(z, 1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("slope", [0.0, -2.5, 65536.0])  # nothing; reversed; a gradient scaler's
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])  # plain path; frame
def test_grad_output_is_applied(slope, options):
    z, y = problem(dtype=torch.float32)
    (one,) = torch.autograd.grad(xent.cross_entropy(z, y, **options), z)
    (many,) = torch.autograd.grad(xent.cross_entropy(z, y, **options) * slope, z)
    torch.testing.assert_close(many, one * slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, {"reduction": "none"}])
def test_a_second_backward(options):
    z, y = problem()
    loss = xent.cross_entropy(z, y, **options).sum()
    (a,) = torch.autograd.grad(loss, z, retain_graph=True)
    (b,) = torch.autograd.grad(loss, z)
    assert same_bits(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, z)


def strided(x):
    return torch.stack([x, x], -1)[..., 0]


def transposed(x):
    return x.mT.contiguous().mT if x.ndim > 1 else x


LAYOUTS = {"contiguous": torch.Tensor.contiguous, "strided": strided, "transposed": transposed}
SCALARS = {
    "cross_entropy": lambda x, y, w, t: xent.cross_entropy(x, y),
    "focal_loss": lambda x, y, w, t: xent.losses.focal_loss(x, y),
    "behind a head": lambda x, y, w, t: xent.cross_entropy(xent.LinearLogits(x, w), y),
    "binary": lambda x, y, w, t: xent.binary_cross_entropy_with_logits(x, t),
    "sigmoid_focal_loss": lambda x, y, w, t: xent.losses.sigmoid_focal_loss(x, t),
}


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", LAYOUTS)
def test_saved_tensors_come_back_in_another_layout(before, after, name):
    """Hooks on saved tensors may return any strides; kernels must not trust the old ones."""
    shape = (8, 10)
    y, w, t = torch.randint(10, (8,)), torch.randn(10, 10), LAYOUTS[before](torch.rand(shape))
    x = LAYOUTS[before](torch.randn(shape)).requires_grad_()
    call = lambda: SCALARS[name](x, y, w, t)  # noqa: E731
    expected = torch.autograd.grad(call() * 0.3, x)[0]  # and later calls take the short way
    with torch.autograd.graph.saved_tensors_hooks(LAYOUTS[after], lambda t: t):
        loss = call()
    for _ in range(2):  # the second time nothing is left of the first
        grad = torch.autograd.grad(loss * 0.3, x, retain_graph=True)[0]
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("slope", [1.0, 0.3])
@pytest.mark.parametrize(
    "options", [{}, {"z_loss": 0.1}, {"engine": "reference"}, {"reduction": "none"}]
)
def test_logits_changed_between_forward_and_backward(options, slope):
    """The gradient is computed already, or backward raises; it is never silently wrong."""
    z, y = problem()
    x = z * 1
    (right,) = torch.autograd.grad(slope * xent.cross_entropy(x, y, **options).sum(), z)
    x = z * 1
    loss = slope * xent.cross_entropy(x, y, **options).sum()
    x.add_(1)
    known = slope == 1 and "reduction" not in options and "engine" not in options
    if known and z.dtype in core.fast:
        loss.backward()
        assert same_bits(z.grad, right)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_loss
def test_input_and_target_are_left_alone(loss: Loss, engine):
    z, y = problem(n=20, v=40)
    x, before, labels = z * 1, z.detach().clone(), y.clone()
    loss(x, y, engine=engine).backward(retain_graph=True)
    assert same_bits(x.detach(), before)
    assert torch.equal(y, labels)
    assert x._version == 0


def test_no_grad(engine):
    z, y = problem()
    with torch.no_grad():
        loss = xent.cross_entropy(z, y, engine=engine)
    assert not loss.requires_grad
    with torch.inference_mode():
        assert same_bits(xent.cross_entropy(z, y, engine=engine), loss)
    assert not xent.cross_entropy(z.detach(), y, engine=engine).requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
def test_checkpoint(reentrant, options):
    z, y = problem()
    step = lambda x: xent.cross_entropy(x * 2, y, **options)  # noqa: E731
    (expected,) = torch.autograd.grad(step(z), z)
    checkpoint(step, z, use_reentrant=reentrant).backward()
    assert same_bits(z.grad, expected)


def test_tensor_subclass_and_hooks():
    z, y = problem()
    seen = []
    z.register_hook(lambda g: seen.append(g) or g * 2)
    xent.cross_entropy(z, y).backward()
    torch.testing.assert_close(z.grad, 2 * seen[0])
    p = torch.nn.Parameter(z.detach().clone())
    xent.cross_entropy(p, y).backward()
    torch.testing.assert_close(p.grad, seen[0])


# ---- inplace_backward -----------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_inplace_backward(loss: Loss, engine, dtype):
    z, y = problem(n=8, v=50, dtype=dtype)
    y[2] = -100
    (expected,) = torch.autograd.grad(loss(z, y, engine=engine), z)
    for copy in (z * 1, (z * 1).t().contiguous().t()):
        memory = copy.data_ptr()
        value = loss(copy, y, engine=engine, inplace_backward=True)
        (grad,) = torch.autograd.grad(value, copy, retain_graph=True)
        assert grad.data_ptr() == memory
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(grad, expected, rtol=8 * eps, atol=4 * eps)
        # a view that was written to has left the graph, which raises as well
        with pytest.raises(RuntimeError, match=r"modified by an inplace|not have been used"):
            torch.autograd.grad(value, copy)


@pytest.mark.parametrize("first", [False, True])  # which of the two losses may overwrite
def test_inplace_backward_with_two_losses_is_right_or_raises(first):
    z, y = problem()
    x = z * 1
    loss = xent.cross_entropy(x, y, inplace_backward=first) + 2 * xent.cross_entropy(
        x, y, inplace_backward=not first
    )
    try:
        (grad,) = torch.autograd.grad(loss, z)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        (expected,) = torch.autograd.grad(3 * xent.cross_entropy(z, y), z)
        torch.testing.assert_close(grad, expected)


SHARED = {
    "leaf": lambda leaf: leaf,
    "view of a leaf": lambda leaf: leaf.view(6, 4),
    "part of a leaf": lambda leaf: leaf[:, 1:],
    "expanded": lambda leaf: (leaf[:1] * 1).expand(6, 4),
    "twice the same row": lambda leaf: (leaf[:1] * 1).expand(2, 4),
    "rows that overlap": lambda leaf: (leaf.flatten()[:9] * 1).unfold(0, 4, 1),
    "rows that overlap in part": lambda leaf: (leaf.flatten()[:19] * 1).unfold(0, 4, 3),
}


@pytest.mark.parametrize("name", SHARED)
def test_inplace_backward_refuses_memory_that_others_read(name):
    leaf = torch.nn.Parameter(torch.randn(6, 4))
    before, logits = leaf.detach().clone(), SHARED[name](leaf)
    y = torch.zeros(len(logits), dtype=torch.int64)
    with pytest.raises((ValueError, RuntimeError), match=r"inplace|in-place"):
        xent.cross_entropy(logits, y, inplace_backward=True).backward()
    assert same_bits(leaf.detach(), before)


def test_inplace_backward_refuses_what_needs_the_logits_again():
    z, y = problem()
    call = lambda x: xent.cross_entropy(x, y, inplace_backward=True)  # noqa: E731
    with pytest.raises(ValueError, match="inplace_backward"):
        torch.func.grad(call)(z.detach())
    scale = torch.tensor(2.0, requires_grad=True)
    with pytest.raises(ValueError, match="inplace_backward"):
        xent.cross_entropy(z * 1, y, logit_scale=scale, inplace_backward=True)


def test_inplace_backward_twice_differentiable():
    z, y = problem()
    plain = torch.autograd.grad(xent.cross_entropy(z * 1, y), z, create_graph=True)[0]
    (expected,) = torch.autograd.grad(plain.square().sum(), z)
    inplace = torch.autograd.grad(
        xent.cross_entropy(z * 1, y, inplace_backward=True), z, create_graph=True
    )[0]
    (second,) = torch.autograd.grad(inplace.square().sum(), z)
    torch.testing.assert_close(second, expected)
