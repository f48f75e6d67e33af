"""Behind a linear head: each entry of the gradient, the bits of the loss, and the memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import xent
from tests.heads.linear_heads import exact_gradients, grads, logit_error, rounding, within
from tests.helpers import same_bits
from xent.engines import core as native
from xent.heads import chunks as heads

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# One sum has many terms, over rows, features or classes; the last has several chunks of rows.
# A float16 gradient of sure rows is nothing but zeros unless the loss is scaled.
SCALE = {torch.float32: 1.0, torch.bfloat16: 1.0, torch.float16: 2.0**14}
SHAPES = [(64, 32, 100), (30, 64, 700), (500, 48, 40), (30, 300, 50)]


def ordinary(n, d, v, dtype):
    parts = (torch.randn(n, d), torch.randn(v, d) / d**0.5, 0.3 * torch.randn(v))
    return tuple(x.to(dtype).requires_grad_() for x in parts), torch.randint(v, (n,))


def confident(n, d, v, dtype, margin):
    """Return rows whose target is that many nats above the log-sum-exp of the other classes."""
    (h, w, b), y = ordinary(n, d, v, dtype)
    h, w, b = (x.detach().double() for x in (h, w, b))
    toward, far = w[y] / w[y].square().sum(-1, keepdim=True), torch.full((n,), 400.0)
    low, rows = torch.zeros(n), torch.arange(n)
    for _ in range(30):
        middle = (low + far) / 2
        z = F.linear(0.3 * h + middle.unsqueeze(-1) * toward, w, b)
        others = z.scatter(-1, y.unsqueeze(-1), -torch.inf).logsumexp(-1)
        below = z[rows, y] - others < margin
        low, far = torch.where(below, middle, low), torch.where(below, far, middle)
    assert bool((far < 400).all())  # every row has the margin
    h = 0.3 * h + low.unsqueeze(-1) * toward
    return tuple(x.to(dtype).requires_grad_() for x in (h, w, b)), y


def both_gradients(parts, y, scale, reduction="mean", products="float32"):
    """Return the gradients of xent, and those of the unfused path in the same dtype."""
    (h, w, b), options = parts, {"reduction": reduction, "products": products}
    ours = xent.linear_cross_entropy(h, w, y, linear_bias=b, **options)
    theirs = F.cross_entropy(F.linear(h, w, b), y, reduction=reduction)
    return [grads(loss, parts, torch.full_like(loss, scale)) for loss in (ours, theirs)]


def spread(x, exact):
    return (x.double() - exact).square().mean().sqrt().item()


# ---- gradients ----------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("margin", [None, 4, 8, 16, 20, 25])
def test_every_entry_of_the_gradient(dtype, shape, margin):
    """Each error is within the bound of the arithmetic; all together are no worse than unfused."""
    for seed in range(2 if margin is None else 1):
        torch.manual_seed(seed)
        parts, y = ordinary(*shape, dtype) if margin is None else confident(*shape, dtype, margin)
        ours, theirs = both_gradients(parts, y, SCALE[dtype])
        exact = exact_gradients(*parts, y, SCALE[dtype])
        for a, t, (truth, most) in zip(ours, theirs, exact, strict=True):
            assert a.dtype == dtype
            within(a, truth, most)
            # Ordinary float32 rows have the same sums in another order, which makes as much
            # noise. In other cases PyTorch rounds p, or p - 1, to the type.
            same_sums = margin is None and dtype == torch.float32
            assert spread(a, truth) <= spread(t, truth) * (2.0 if same_sums else 1.0)


@every_dtype
@pytest.mark.parametrize("margin", [18, 20, 25])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_target_of_a_sure_row_still_learns(dtype, margin, reduction):
    """In float32 p rounds to 1 and p - 1 to 0: torch has a gradient of exactly 0."""
    (h, w, b), y = parts, _ = confident(1, 32, 100, dtype, margin)
    ours, theirs = both_gradients(parts, y, SCALE[dtype], reduction)
    exact = exact_gradients(h, w, b, y, SCALE[dtype])
    for k, part in enumerate((slice(None), y, y)):
        truth, most = (x[part] for x in exact[k])
        within(ours[k][part], truth, most)
        assert spread(ours[k][part], truth) < 0.5 * spread(theirs[k][part], truth)


# ---- the bits of the loss -----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 7, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_any_chunking_has_the_loss_of_its_logits(engine, rows, dtype, monkeypatch):
    """Equal to the bit; up to rounding if products of fewer rows round differently."""
    monkeypatch.setattr(heads, "MAX_ROWS", rows)
    (h, w, b), y = ordinary(100, 32, 60, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    z = torch.cat([part.to(wide) @ w.to(wide).T for part in h.split(rows)]) + b.to(wide)
    options = {"reduction": "none", "engine": engine}
    lean = xent.cross_entropy(xent.LinearLogits(h, w, b), y, **options)
    assert same_bits(lean.detach(), xent.cross_entropy(z, y, **options).to(dtype).detach())
    exact = xent.cross_entropy(F.linear(h.double(), w.double(), b.double()), y, **options)
    if dtype != torch.float64:
        within(lean, exact, 2 * logit_error(h, w, b).amax(-1) + 1.01 * rounding(exact, dtype))


def products(h, w, y):
    """Return the three products of a training step, as one chunk has them."""
    z = h @ w.T
    dz = torch.softmax(z, -1)
    dz[torch.arange(len(y)), y] -= 1
    return z, dz @ w, dz.T @ h


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_same_bits_from_run_to_run_and_for_any_threads(dtype, reduction, core):
    """This holds if torch's products have the same bits, which they need not for any threads."""
    (h, w, _), y = ordinary(300, 64, 500, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def run(threads):
        torch.set_num_threads(threads)
        loss = xent.linear_cross_entropy(h, w, y, reduction=reduction)
        plain = products(h.detach().to(wide), w.detach().to(wide), y)
        return [loss.detach(), *grads(loss.sum(), (h, w))], plain

    first, plain = run(2)
    for threads in (2, 1):
        again, others = run(threads)
        same = [same_bits(a, b) for a, b in zip(plain, others, strict=True)]
        same = [same[0], same[0] and same[1], same[0] and same[2]]
        assert all(same) or threads == 1
        assert all(same_bits(a, b) for a, b, s in zip(first, again, same, strict=True) if s)


# ---- memory -------------------------------------------------------------------------------------


class Memory(TorchDispatchMode):
    """The most bytes that tensors made inside take at a time."""

    def __init__(self, *given):
        super().__init__()
        self.known = {StorageWeakRef(x.untyped_storage()).cdata for x in given}
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                ref = StorageWeakRef(storage)
                if ref.cdata not in self.known:
                    self.live[ref.cdata] = (ref, storage.nbytes())
        self.live = {k: (r, n) for k, (r, n) in self.live.items() if not r.expired()}
        self.peak = max(self.peak, sum(n for _, n in self.live.values()))
        return out


def step(h, w, y, way, size):
    z = xent.LinearLogits(h, w, max_workspace=size)
    if way == "tokens":
        (-xent.token_log_probs(z, y).sum()).backward()
    else:
        xent.cross_entropy(z, y, reduction=way).sum().backward()


@pytest.mark.parametrize("way", ["mean", "none", "tokens"])
@pytest.mark.parametrize(
    ("n", "d", "v", "size", "dtype"),
    [
        (1000, 16, 3000, 1 << 19, torch.float32),
        (1000, 16, 3000, 1 << 19, torch.bfloat16),
        (40, 64, 4_000, 1, torch.float32),
        (48, 4, 1_000_000, 32 << 20, torch.float32),
    ],
)
def test_memory_beyond_the_gradients(way, n, d, v, size, dtype, core):
    """One chunk of logits, and a few numbers per row."""
    h, w = (torch.randn(k, d).to(dtype).requires_grad_() for k in (n, v))
    y = torch.randint(v, (n,))
    with Memory(h, w, y) as memory:
        step(h, w, y, way, size)
    # Gradients are added up in float32. In 16 bits they are there in both types for a moment.
    gradients = (n + v) * d * (4 if dtype == torch.float32 else 4 + 2)
    rows = heads.plan(xent.LinearLogits(h, w, max_workspace=size)).rows
    chunk = max(size, rows * v * 4)  # a chunk has at least one row
    features = 2 * rows * d * 4  # of a chunk, widened, and their gradient
    assert memory.peak <= gradients + chunk + features + 200 * n


@pytest.mark.parametrize("size", [1 << 20, 4 << 20])
def test_without_the_core_a_chunk_and_its_copies_fit_the_workspace(size, monkeypatch):
    monkeypatch.setattr(native, "fast", frozenset())
    h, w = torch.randn(200, 8).requires_grad_(), torch.randn(3000, 8).requires_grad_()
    y = torch.randint(3000, (200,))
    with Memory(h, w, y) as memory:
        z = xent.LinearLogits(h, w, max_workspace=size)
        xent.cross_entropy(z, y, engine="reference").backward()
    assert memory.peak <= 4 * (h.numel() + w.numel()) + size


@pytest.mark.parametrize("way", ["mean", "none", "tokens"])
def test_no_logits_of_rows_that_are_ignored(way, core):
    h, w = torch.randn(400, 8, requires_grad=True), torch.randn(5000, 8, requires_grad=True)
    y = torch.full((400,), -100)
    y[::100] = 3
    with Memory(h, w, y) as memory:
        step(h, w, y, way, 128 << 20)
    assert memory.peak <= (5000 + 400) * 8 * 4 + 4 * 5000 * 4 + 200 * 400


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_second_derivatives_of_features_that_are_their_own_weight(reduction, smoothing):
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y, options = torch.arange(6).roll(1), {"reduction": reduction, "label_smoothing": smoothing}
    twice = []
    for logits in (xent.LinearLogits(x, x), x @ x.T):
        loss = xent.cross_entropy(logits, y, **options).sum()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        twice.append(torch.autograd.grad(slope.square().sum(), x)[0])
    torch.testing.assert_close(*twice, rtol=1e-11, atol=1e-12)


def test_second_derivatives_of_other_losses_of_such_features():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    twice = []
    for logits in (xent.LinearLogits(x, x), x @ x.T):
        loss = xent.losses.sparsemax_loss(logits, torch.arange(6).roll(1))
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        twice.append(torch.autograd.grad(slope.square().sum(), x)[0])
    torch.testing.assert_close(*twice, rtol=1e-11, atol=1e-12)
