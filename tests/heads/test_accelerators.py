"""Heads on accelerators: large chunks, products that are rounded once, and no wait for the device.

The device is a CPU that the library takes for an accelerator; tests/engines/triton/test_gpu.py
has the same calls for a GPU. The oracle is PyTorch on all logits in float64.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.heads.accelerator import no_wait, take_for_accelerator
from tests.heads.linear_heads import (
    UNIT,
    every_reduction,
    every_way,
    exact_gradients,
    grads,
    head,
    labels,
    lean,
    near,
    rounding,
    whole,
    within,
)  # fmt: skip
from xent.engines.rows import triton as engine
from xent.heads import chunks, kept, products
from xent.heads.chunks import Chunks, Head, scaled
from xent.heads.gradients import RowFunction, sum_ahead

BF16, F16 = torch.bfloat16, torch.float16
ROWS, FEATURES, CLASSES = 700, 8, 50
SMALL = 128 * CLASSES * 2  # bytes of a chunk of 128 rows of 16 bits


@pytest.fixture(autouse=True)
def _accelerator(monkeypatch):
    take_for_accelerator(monkeypatch)


@pytest.fixture(params=["sweeps", "one sweep"])
def road(request, monkeypatch, on_triton):
    """Let an engine sum statistics, or loss and gradient at once."""
    if request.param == "sweeps":
        monkeypatch.setattr(engine, "takes", lambda *_: False)
    return request.param


def parts_of(dtype, rows=ROWS):
    """Return features, weight, bias, and labels of which 60 % are ignored."""
    parts = torch.randn(rows, FEATURES), torch.randn(CLASSES, FEATURES), torch.randn(CLASSES)
    y = torch.randint(CLASSES, (rows,))
    y[torch.randperm(rows)[: rows * 3 // 5]] = -100
    return tuple(x.to(dtype).requires_grad_() for x in parts), y


def behind(parts, **options):
    size = 128 * CLASSES * parts[0].itemsize
    return xent.LinearLogits(*parts, **{"max_workspace": size} | options)


def cross_entropy(parts, y, **options):
    return xent.cross_entropy(behind(parts), y, engine="triton", **options)


def exact(parts, y, slope=1.0, loss=F.cross_entropy):
    wide = [x.detach().double().requires_grad_() for x in parts]
    value = loss(F.linear(*wide), y)
    return value, torch.autograd.grad(value, wide, torch.tensor(slope, dtype=value.dtype))


# ---- values and gradients -----------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("slope", [1.0, 3.0])
def test_several_chunks_with_ignored_rows(slope, road):
    parts, y = parts_of(torch.float32)
    loss = cross_entropy(parts, y)
    assert Chunks((behind(parts),), None).height == 128
    truth, _ = exact(parts, y)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
    found = grads(loss, parts, torch.tensor(slope), retain_graph=True)
    again = grads(loss, parts, torch.tensor(slope))
    some = y >= 0
    rows = [parts[0].detach()[some], *parts[1:]]
    bounds = exact_gradients(*rows, y[some], slope)
    for one, other, (value, most) in zip(found, again, bounds, strict=True):
        assert torch.equal(one, other)
        within(one[some] if len(one) == ROWS else one, value, most)
    assert not found[0][~some].any()


def test_gradients_of_gradients(road):
    parts, y = parts_of(torch.float32)
    twice = []
    for loss in (cross_entropy(parts, y), F.cross_entropy(F.linear(*parts), y)):
        slopes = grads(loss, parts, create_graph=True)
        twice.append(grads(sum(g.square().sum() for g in slopes), parts))
    for ours, theirs in zip(*twice, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("rows", [128, ROWS])
@pytest.mark.parametrize("slope", [1.0, 3.0])
def test_each_gradient_is_rounded_once(dtype, rows, slope, road, monkeypatch):
    """Each gradient errs by half a unit in the last place, beside the float32 sums."""
    parts, y = parts_of(dtype, rows)
    seen, add = [], Head.add

    def note(one, index, dz):
        seen.append((one.hidden(index).double(), dz.clone().double(), index))
        return add(one, index, dz)

    monkeypatch.setattr(Head, "add", note)
    loss = cross_entropy(parts, y)
    of_hidden, of_weight, of_bias = grads(loss, parts, torch.tensor(slope, dtype=loss.dtype))
    assert len(seen) == (3 if rows == ROWS else 1)
    mean_last = road == "sweeps" or dtype == F16
    times = slope / (y >= 0).sum().item() if mean_last else slope
    # One chunk has a rounded product, and then the number.
    once = 1 if rows == ROWS or times == 1 else 2.01
    deep = (rows + 4) * UNIT
    summed = [(dz.T @ h, dz.abs().T @ h.abs()) for h, dz, _ in seen]
    value, size = (sum(x) * times for x in zip(*summed, strict=True))
    within(of_weight, value, deep * size + once * rounding(value, dtype))
    value, size = (
        sum(x) * times for x in zip(*((d.sum(0), d.abs().sum(0)) for _, d, _ in seen), strict=True)
    )
    within(of_bias, value, deep * size + rounding(value, dtype))
    w = parts[1].detach().double()
    for _, dz, index in seen:
        value = times * dz @ w
        unscaled = 1 if times == 1 else 2.01  # and then the number
        most = (CLASSES + 4) * UNIT * times * dz.abs() @ w.abs()
        within(of_hidden[index], value, most + unscaled * rounding(value, dtype))


@every_way
@every_reduction
@pytest.mark.parametrize("size", [128 * 50 * 8, 1 << 30])
def test_every_way(way, reduction, size, monkeypatch):
    """The roads of all losses, with the engine for a CPU."""
    monkeypatch.setattr("xent.heads.logits.WORKSPACE_ON_ACCELERATORS", size)
    monkeypatch.setattr("xent.heads.chunks.REFERENCE_COPIES", 1)
    parts, y = head(300), labels(300)
    monkeypatch.setattr("tests.heads.linear_heads.TEACHER", torch.randn(300, 50).double())
    ours, theirs = (f(way, parts, y, reduction) for f in (lean, whole))
    near(ours, theirs)
    slope = torch.linspace(0.5, 2, ours.numel()).double().view(ours.shape)
    for a, b in zip(grads(ours, parts, slope), grads(theirs, parts, slope), strict=True):
        near(a, b)


@pytest.mark.sample(3)
@pytest.mark.parametrize("rows", [100, 300])
@pytest.mark.parametrize("loss", [xent.cross_entropy, xent.losses.focal_loss])
def test_ignored_rows_may_hold_anything(rows, loss, road):
    (h, w, b), y = parts_of(torch.float32, rows)
    wrong = torch.where((y < 0).unsqueeze(-1), torch.nan, h.detach()).requires_grad_()
    options = {"max_workspace": SMALL * 2}
    clean, dirty = (
        grads(loss(xent.LinearLogits(x, w, b, **options), y, engine="triton"), (x, w, b))
        for x in (h, wrong)
    )
    assert all(torch.equal(a, c) for a, c in zip(clean, dirty, strict=True))


@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", [torch.float32, F16], ids=str)
@pytest.mark.parametrize("rows", [100, 300])
@pytest.mark.parametrize("loss", [xent.cross_entropy, xent.losses.focal_loss])
def test_no_row_is_kept(dtype, rows, loss, road):
    parts, y = parts_of(dtype, rows)
    value = loss(behind(parts), torch.full_like(y, -100), engine="triton")
    assert bool(value.isnan())
    assert not any(g.any() for g in grads(value, parts))


def test_statistics_only(on_triton, monkeypatch):
    """Log-probabilities and entropies, of one chunk after the other."""
    parts, y = parts_of(torch.float32)
    z = behind(parts)
    with no_wait(monkeypatch) as seen:
        s = xent.statistics(z, y, entropy=True, engine="triton")
        value = (torch.where(y >= 0, s.log_prob, 0) + 0.1 * s.entropy).sum()
        found = grads(value, parts)
    assert seen.count("count") == 2  # forward and backward
    wide = [x.detach().double().requires_grad_() for x in parts]
    log_p = torch.log_softmax(F.linear(*wide), -1)
    kept = y >= 0
    entropy = -(log_p.exp() * log_p).sum(-1)[kept].sum()
    truth = log_p[kept, y[kept]].sum() + 0.1 * entropy
    ignored = 0.1 * s.entropy[~kept].detach().sum()
    torch.testing.assert_close(value.detach(), truth.detach() + ignored, rtol=1e-6, atol=1e-5)
    for a, b in zip(found, torch.autograd.grad(truth, wide), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


# ---- no wait ------------------------------------------------------------------------------------


@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", [torch.float32, BF16, F16], ids=str)
@pytest.mark.parametrize("loss", [xent.cross_entropy, xent.losses.focal_loss])
@pytest.mark.parametrize("options", [{}, {"row_weight": torch.rand(ROWS)}], ids=["", "weights"])
def test_the_host_asks_once_and_late(dtype, loss, options, road, monkeypatch):
    parts, y = parts_of(dtype)
    with no_wait(monkeypatch) as seen:
        value = loss(behind(parts), y, engine="triton", **options)
        grads(value, parts, torch.tensor(2.0, dtype=value.dtype))
    assert seen.count("count") == 1
    before = seen[: seen.index("count")]
    # The first chunk is on its way: logits, and the gradients of features and weight.
    assert before.count("addmm") == 1
    assert before.count("mm") == 2


def test_one_chunk_asks_nothing(road, monkeypatch):
    parts, y = parts_of(BF16, 128)
    with no_wait(monkeypatch) as seen:
        value = cross_entropy(parts, y)
        grads(value, parts, torch.tensor(2.0, dtype=value.dtype))
    assert "count" not in seen
    assert "sort" not in seen


@pytest.mark.parametrize("weight", [None, torch.rand(5)], ids=["", "weights"])
def test_heads_of_their_own(weight, monkeypatch):
    """The divisor over all heads is no look at the targets, either."""
    h, w = torch.randn(6, 4), torch.randn(5, 3, 4)
    y = torch.randint(5, (6, 3))
    y[2] = -100
    found = xent.linear_cross_entropy(h, w, y, weight=weight)
    truth = F.cross_entropy(torch.einsum("nd,ckd->nck", h, w), y, weight)
    torch.testing.assert_close(found, truth)
    from xent.losses.linear import _mass

    with no_wait(monkeypatch):
        _mass(y, weight, -100)


def test_a_captured_graph_takes_all_rows(monkeypatch):
    """Fake tensors: there is no GPU."""
    rows = kept.SortedRows(SimpleNamespace(is_cuda=True, shape=(700,)))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert list(rows.chunks(300)) == [slice(0, 300), slice(300, 600), slice(600, 700)]
    assert rows.in_order(300)


def test_the_count_comes_by_pinned_memory(monkeypatch):
    steps = []

    class Number:
        is_cuda, device = True, "cuda:1"

        def copy_(self, other, non_blocking):
            steps.append(("copy", non_blocking))

        def __int__(self):
            steps.append("read")
            return 7

    def pinned(like, device, pin_memory):
        assert (device, pin_memory) == ("cpu", True)
        return Number()

    event = SimpleNamespace(synchronize=lambda: steps.append("wait"))
    stream = SimpleNamespace(record_event=lambda: steps.append("record") or event)
    monkeypatch.setattr(torch, "empty_like", pinned)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    number = kept.Arriving(Number())
    assert steps == [("copy", True), "record"]
    assert number.value() == 7
    assert steps[2:] == ["wait", "read"]


# ---- products and chunks ------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
def test_products_of_16_bits_in_float32_on_cuda(begun, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "mm", lambda *a, **k: calls.append(("mm", a, k)))
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: calls.append(("addmm", a, k)))
    left, right, total = (
        SimpleNamespace(dtype=x, is_cuda=True) for x in (BF16, BF16, torch.float32)
    )
    products.add(total, left, right, begun)
    products.add(left, left, right, begun)  # the type of the factors: nothing to say
    first, second = ((total, left, right), (left, left, right)) if begun else ((left, right),) * 2
    name = "addmm" if begun else "mm"
    assert calls == [
        (name, (*first, torch.float32), {"out": total}),
        (name, second, {"out": left}),
    ]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_products_elsewhere(begun, dtype):
    left, right = torch.randn(5, 300).to(dtype), torch.randn(300, 4).to(dtype)
    total = torch.ones(5, 4)
    products.add(total, left, right, begun)
    truth = left.double() @ right.double() + begun
    most = 302 * UNIT * (left.abs().double() @ right.abs().double() + 1)
    within(total, truth, most)


@pytest.mark.parametrize("factor", [1 / 3, 1.0, 0.0, -2.5])
@pytest.mark.parametrize("given", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("installed", [False, True])
def test_a_slope_is_not_rounded_to_16_bits(factor, given, installed, on_triton, monkeypatch):
    monkeypatch.setattr("xent.engines.triton.INSTALLED", installed)
    part = torch.randn(4096, 3).to(given)
    factor = torch.tensor(factor, dtype=torch.float64)
    exact = part.double() * factor.float().double()
    found = scaled(part, factor, BF16)
    assert found.dtype == BF16
    assert (found is part) == (given == BF16)
    within(found, exact, rounding(exact, BF16) * (1 + 2.0**-14))


@pytest.mark.parametrize(
    ("rows", "height"), [(1, 1), (100, 100), (4096, 4096), (5000, 2560), (9000, 3072)]
)
def test_chunks_fill_the_workspace_evenly(rows, height, on_triton):
    """1 GiB holds 4186 rows of bfloat16 logits of 128256 classes."""
    h, w = torch.zeros(rows, 1, dtype=BF16), torch.zeros(128256, 1, dtype=BF16)
    z = xent.LinearLogits(h, w.requires_grad_())
    assert z.max_workspace == 1 << 30
    assert Chunks((z,), None).height == height
    plan = xent.explain(z, torch.zeros(rows, dtype=torch.int64), engine="triton")
    assert f"by chunks of {height} rows, {height * 128256 * 2 / 2**20:.0f} MiB" in plan.gradient
    assert ("in 0 MiB of float32" in plan.gradient) == (rows > height)


def test_a_cpu_keeps_its_chunks(monkeypatch):
    monkeypatch.undo()
    z = xent.LinearLogits(torch.zeros(5000, 1), torch.zeros(1000, 1))
    assert z.max_workspace == 128 << 20
    assert chunks.plan(z).rows == chunks.MAX_ROWS


def test_a_divisor_that_was_changed_is_noticed(road):
    parts, y = parts_of(torch.float32, 128)
    divisor = torch.tensor(7.0, dtype=torch.float64)
    loss = cross_entropy(parts, y, normalizer=divisor)
    grads(loss, parts, retain_graph=True)
    divisor *= 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grads(loss, parts)


def test_a_loss_keeps_no_logits(road, monkeypatch):
    heads, want = [], Head.want
    monkeypatch.setattr(Head, "want", lambda *a: heads.append(a[0]) or want(*a))
    parts, y = parts_of(BF16)
    loss = cross_entropy(parts, y)
    assert loss.requires_grad
    assert [head.buffer for head in heads] == [None]


@pytest.mark.parametrize("several", [False, True])
def test_only_several_chunks_have_a_float32_buffer(several, on_triton, monkeypatch):
    made, empty = [], Head.empty
    monkeypatch.setattr(Head, "empty", lambda *a: made.append(a[2]) or empty(*a))
    parts, y = parts_of(BF16, 300 if several else 128)
    cross_entropy(parts, y)
    wide = torch.float32
    assert made == [BF16, wide if several else BF16, wide, BF16]  # the last one is the chunk


def test_no_slope_of_an_ignored_row_reaches_the_weight():
    """The body sees ignored rows, too, and may have no finite derivative there."""
    (h, w, _), y = parts_of(torch.float32)
    keeps = y != -100
    scale = torch.where(keeps, 1.0, torch.nan)
    source = xent.LinearLogits(h, w)  # one chunk of all rows

    def body(index, z):
        return torch.where(keeps[index], z.square().sum(1) * scale[index], 0).sum()

    total = sum_ahead(RowFunction((source,), kept.SortedRows(keeps), body))
    found = torch.autograd.grad(total, (h, w))
    truth = torch.autograd.grad((h @ w.T)[keeps].square().sum(), (h, w))
    for one, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-3)
