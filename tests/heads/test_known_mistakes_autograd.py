"""Mistakes of other libraries' fused heads with autograd, compilers and frozen parts.

The oracle is float64 PyTorch on the whole logits, or the count of the products that are needed.
A docstring with "Elsewhere" says what another library does.
"""

import math

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import xent
from tests.heads.linear_heads import (
    WAYS,
    D,
    N,
    V,
    every_reduction,
    every_way,
    grads,
    head,
    labels,
    lean,
    near,
    whole,
)
from xent.heads import chunks as heads

# Dynamo itself warns on some Python versions.
compiling = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(heads, "MAX_ROWS", 8)
    torch._dynamo.reset()


# ---- the contract of autograd -------------------------------------------------------------------


@every_way
@every_reduction
def test_the_caller_s_tensors_are_written_over(way, reduction):
    """Elsewhere the gradient overwrites a tensor that an earlier operation has saved."""
    x, w, b = head()
    y = labels()

    def through(loss):
        h = torch.exp(x / 3)  # whose backward needs its own result
        before = [(t.detach().clone(), t._version) for t in (h, w, b, y)]
        found = grads(loss(way, (h, w, b), y, reduction).sum(), (x, w, b))
        for t, (copy, version) in zip((h, w, b, y), before, strict=True):
            assert torch.equal(t, copy)
            assert t._version == version
        return found

    near(through(lean), through(whole))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@every_way
def test_a_derivative_forward_is_zero(way):
    """Elsewhere jvp of a function without a forward derivative is None, without a word."""
    parts, y = head(), labels()
    tangents = tuple(torch.randn_like(x) for x in parts)
    slopes = grads(whole(way, parts, y), parts)
    moved = sum((g * t).sum() for g, t in zip(slopes, tangents, strict=True))
    plain = tuple(x.detach() for x in parts)

    def loss(*parts):
        return lean(way, parts, y)

    near(torch.func.jvp(loss, plain, tangents)[1], moved)
    near(torch.autograd.functional.jvp(loss, plain, tangents)[1], moved)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(plain, tangents, strict=True)]
        near(forward_ad.unpack_dual(loss(*duals)).tangent, moved)


@every_way
@every_reduction
def test_a_second_derivative_is_zero(way, reduction):
    parts, y = head(), labels()
    twice = []
    for loss in (lean, whole):
        slopes = grads(loss(way, parts, y, reduction).sum(), parts, create_graph=True)
        twice.append(grads(sum(g.square().sum() for g in slopes), parts))
    near(*twice, rtol=1e-9)


@every_way
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_loses_the_gradient(way, reentrant):
    """Elsewhere a gradient computed in forward without a graph is lost."""
    x, w, b = parts = head()
    y = labels()

    def block(x):
        return lean(way, (torch.tanh(x), w, b), y)

    checkpoint(block, x, use_reentrant=reentrant).backward()
    near(tuple(t.grad for t in parts), grads(whole(way, (torch.tanh(x), w, b), y), parts))


@every_way
@every_reduction
def test_a_loss_that_is_kept_keeps_its_tensors(way, reduction):
    """Also after backward; elsewhere old logits stay until the next step has new logits."""
    x, w, b = head()
    h = torch.exp(x / 3)
    logits = F.linear(h, w, b)
    refs = [StorageWeakRef(t.untyped_storage()) for t in (h, logits)]
    kept = [lean(way, (h, w, b), labels(), reduction).sum()]
    if way in ("smoothed", "focal", "brier"):  # the same loss of logits
        loss = {"focal": xent.losses.focal_loss, "brier": xent.losses.brier_loss}.get(
            way, xent.cross_entropy
        )
        kept.append(loss(logits, labels(), reduction=reduction).sum())
    sum(kept).backward()
    del h, logits
    assert all(ref.expired() for ref in refs)


def test_hooks_of_parameters_are_passed_by():
    """Elsewhere .grad is written in forward, before any hook."""
    h, w, _ = head()
    y, seen = labels(), []
    (truth,) = grads(F.cross_entropy(h @ w.T, y), (w,))
    w.register_hook(lambda g: seen.append("gradient") or 2 * g)
    w.register_post_accumulate_grad_hook(lambda p: seen.append("sum"))
    loss = xent.linear_cross_entropy(h, w, y)
    assert w.grad is None
    loss.backward()
    assert seen == ["gradient", "sum"]
    near(w.grad, 2 * truth)


@pytest.mark.parametrize("dtypes", [("float32",) * 2, ("bfloat16",) * 2, ("bfloat16", "float32")])
@every_reduction
def test_autocast_costs_digits_or_is_refused(dtypes, reduction):
    """Features and weights may differ in type; the loss is float32, as of F.cross_entropy."""
    h, w = (x.to(getattr(torch, t)).detach() for x, t in zip(head(), dtypes, strict=False))
    h, w, y = h.requires_grad_(), w.requires_grad_(), labels()
    with torch.autocast("cpu", torch.bfloat16):
        loss = xent.linear_cross_entropy(h, w, y, reduction=reduction, products="float32")
        other = F.cross_entropy(F.linear(h, w), y, reduction=reduction)
    assert loss.dtype == other.dtype == torch.float32
    wide = [x.detach().double().requires_grad_() for x in (h, w)]
    truth = F.cross_entropy(F.linear(*wide), y, reduction=reduction)
    near(loss.double(), truth, rtol=1e-6, atol=1e-6)
    for x, g, t in zip((h, w), grads(loss.sum(), (h, w)), grads(truth.sum(), wide), strict=True):
        assert g.dtype == x.dtype
        near(g.double(), t, rtol=torch.finfo(g.dtype).eps, atol=1e-5)


# ---- compilers ----------------------------------------------------------------------------------


@pytest.mark.sample(3)
@compiling
@pytest.mark.parametrize("way", [w for w in WAYS if w != "distilled"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_rows_count_when_compiled(way, reduction):
    """Elsewhere 61.7 instead of 21.4, gradients of zero, or no compilation at all."""
    parts, y = head(), labels()

    def loss(*parts):
        return lean(way, parts, y, reduction)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*parts)
    truth = whole(way, parts, y, reduction)
    near(compiled, truth)
    slope = torch.randn_like(truth)
    near(grads(compiled, parts, slope), grads(truth, parts, slope))


@compiling
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo looks at it itself
def test_compiled_distillation_is_another_loss():
    """The graph is broken if Dynamo gives up, and the numbers stay the same."""
    parts, y = head(), labels()
    compiled = torch.compile(lambda *parts: lean("distilled", parts, y), backend="aot_eager")
    near(compiled(*parts), whole("distilled", parts, y))
    near(grads(compiled(*parts), parts), grads(whole("distilled", parts, y), parts))


@compiling
def test_another_batch_size_needs_another_graph():
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        xent.linear_cross_entropy, fullgraph=True, backend=backend, dynamic=True
    )
    graphs = set()
    for n in (5, 12, 31):
        (h, w, _), y = head(n), labels(n)
        near(compiled(h, w, y), F.cross_entropy(h @ w.T, y))
        near(grads(compiled(h, w, y), (h, w)), grads(F.cross_entropy(h @ w.T, y), (h, w)))
        graphs.add(backend.frame_count)
    assert len(graphs) == 1


@compiling
def test_a_compiled_training_step_learns_otherwise():
    def train(compile):
        torch.manual_seed(1)
        loss = xent.nn.LinearCrossEntropyLoss(
            D, V, bias=True, label_smoothing=0.1, z_loss=1e-3, dtype=torch.float64
        )
        body = torch.nn.Linear(D, D, dtype=torch.float64)
        parameters = [*loss.parameters(), *body.parameters()]
        optimizer = torch.optim.SGD(parameters, 0.5)
        x, y = torch.randn(N, D, dtype=torch.float64), labels()

        def step(x, y):
            return loss(torch.tanh(body(x)), y)

        step = torch.compile(step, fullgraph=True, backend="aot_eager") if compile else step
        for _ in range(5):
            optimizer.zero_grad()
            step(x, y).backward()
            optimizer.step()
        return tuple(p.detach() for p in parameters)

    near(train(True), train(False), rtol=1e-10)


# ---- work for nothing ---------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Counter of the multiplications in products of matrices."""

    def __init__(self):
        super().__init__()
        self.work = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if "mm" in name:
            left, right = args[-2:]
            self.work += math.prod(left.shape) * right.shape[1]
        return out


@pytest.mark.parametrize("wanted", ["", "h", "w", "hw", "hwb", "b"])
@pytest.mark.parametrize(
    ("way", "reduction"),
    [
        ("focal", "mean"),
        ("focal", "none"),
        ("smoothed", "sum"),
        ("tokens", "none"),
        ("listed", "mean"),
        ("distilled", "mean"),
    ],
)
def test_frozen_parts_are_worked_for(way, reduction, wanted):
    """Elsewhere a frozen head costs its whole gradient. Ignored rows must not cost a product."""
    parts, y = head(), labels()
    for name, x in zip("hwb", parts, strict=True):
        x.requires_grad_(name in wanted)
    with Products() as products:
        loss = lean(way, parts, y, reduction)
        if wanted:
            loss.sum().backward()
    once = int((y != -100).sum()) * V * D
    # Values of rows need their logits again for a gradient; a sum takes it at once.
    again = bool(wanted) and reduction == "none"
    assert products.work == once * (1 + again + ("h" in wanted) + ("w" in wanted))


def test_a_frozen_head_with_an_adapter():
    """W + B A with W frozen: the adapter gets a gradient, and the head gets none."""
    h, w, b = head()
    y, w = labels(), w.detach()
    up = torch.randn(V, 2, dtype=torch.float64, requires_grad=True)
    down = torch.randn(2, D, dtype=torch.float64, requires_grad=True)
    ours = xent.linear_cross_entropy(h, w + up @ down, y, linear_bias=b)
    truth = F.cross_entropy(F.linear(h, w, b) + h @ down.T @ up.T, y)
    near(grads(ours, (h, b, up, down)), grads(truth, (h, b, up, down)))


def test_a_teacher_is_worked_for():
    """The teacher's logits are needed once; the teacher gets no gradient."""
    (h, w, _), teacher = head(), head()
    with Products() as products:
        z, t = xent.LinearLogits(h, w), xent.LinearLogits(*(x.detach() for x in teacher))
        xent.losses.distillation_loss(z, t).backward()
    assert products.work == 4 * N * V * D
