"""Tests that need a GPU: compiled kernels, graphs, linear heads, more than 2^31 logits."""

import pytest
import torch

import xent
from tests.helpers import nats_below_top, value_and_grad, worst
from xent.heads import products

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

NATS = 1.25  # see test_accuracy


def rows_of(z, y, n):
    """Return loss and gradient of some rows in float64."""
    wide = z[n].double()
    log_p = torch.log_softmax(wide, 1)
    slope = log_p.exp()
    slope[torch.arange(len(n)), y[n]] -= 1
    return -log_p.gather(1, y[n, None])[:, 0], slope


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("v", [10, 100, 1000, 8192, 32768, 50257, 128256])
def test_rows_of_every_length(dtype, reduction, v):
    z = (torch.randn(64, v, device="cuda") * 3).to(dtype)
    y = torch.randint(v, (64,), device="cuda")
    assert xent.explain(z, y).engine == "triton"
    value, grad = value_and_grad(xent.cross_entropy, z, y, reduction=reduction)
    loss, slope = rows_of(z, y, torch.arange(64, device="cuda"))
    assert worst(value, loss.sum() if reduction == "sum" else loss) <= 4
    hidden = slope.scatter(1, y[:, None], 0)  # p - 1 has fewer digits in the oracle
    assert worst(grad.scatter(1, y[:, None], 0), hidden, nats_below_top(z) * NATS) <= 8


LOSSES = {
    "focal": xent.losses.focal_loss,
    "smoothing": lambda z, y, **o: xent.cross_entropy(z, y, label_smoothing=0.1, **o),
    "z_loss": lambda z, y, **o: xent.cross_entropy(z, y, z_loss=0.1, softcap=20.0, **o),
}


def check(loss, z, y):
    """Compare loss and gradient of a sum with those of the reference in float64."""
    value, grad = value_and_grad(loss, z, y, reduction="sum")
    right, slope = value_and_grad(loss, z.double(), y, reduction="sum", engine="reference")
    digits = 2e-6 if z.dtype == torch.float32 else torch.finfo(z.dtype).eps
    torch.testing.assert_close(value.double(), right, rtol=digits, atol=0)
    largest = slope.abs().max().item()
    torch.testing.assert_close(grad.double(), slope, rtol=8 * digits, atol=digits * largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("v", [10, 100, 1000, 5000, 8192, 16384, 128256])
def test_losses_that_are_programs(dtype, loss, v):
    z = (torch.randn(64, v, device="cuda") * 3).to(dtype)
    y = torch.randint(v, (64,), device="cuda")
    y[3] = -100
    check(LOSSES[loss], z, y)


@pytest.mark.parametrize("loss", [xent.cross_entropy, *LOSSES.values()])
@pytest.mark.parametrize("offset", [1, 3, 8])
def test_views_at_odd_offsets(loss, offset):
    memory = torch.randn(64 * 1003 + 8, device="cuda").bfloat16()
    y = torch.randint(1003, (64,), device="cuda")
    check(loss, memory[offset : offset + 64 * 1003].view(64, 1003), y)


@pytest.mark.parametrize("loss", [xent.cross_entropy, *LOSSES.values()])
def test_a_side_stream(loss):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        big = torch.randn(4096, 4096, device="cuda")
        z = (big @ big / 64)[:64].clone()  # late, so that another stream would read garbage
        y = torch.randint(4096, (64,), device="cuda")
        found = value_and_grad(loss, z, y)
    side.synchronize()
    for one, other in zip(found, value_and_grad(loss, z, y), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("loss", [xent.cross_entropy, *LOSSES.values()])
def test_another_device_than_the_current_one(loss):
    with torch.cuda.device(0):
        z = torch.randn(64, 1000, device="cuda:1")
        check(loss, z, torch.randint(1000, (64,), device="cuda:1"))


def test_more_than_2_31_logits():
    n, v = 17000, 131072
    if torch.cuda.mem_get_info()[0] < 5 * n * v * 2:
        pytest.skip("no 22 GB free")
    z = torch.empty(n, v, device="cuda", dtype=torch.bfloat16).normal_()
    y = torch.randint(v, (n,), device="cuda")
    last = torch.tensor([0, 1, n // 2, n - 2, n - 1], device="cuda")
    for reduction in ("sum", "none"):
        value, grad = value_and_grad(xent.cross_entropy, z, y, reduction=reduction)
        loss, slope = rows_of(z, y, last)
        if reduction == "none":
            assert worst(value[last], loss) <= 0.51
        hidden = slope.scatter(1, y[last, None], 0)
        assert worst(grad[last].scatter(1, y[last, None], 0), hidden) <= 0.51


@pytest.mark.parametrize(
    "loss", [xent.cross_entropy, xent.losses.focal_loss, xent.losses.poly1_loss]
)
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}], ids=["mean", "none"])
def test_cuda_graphs(loss, options):
    z = torch.randn(256, 1000, device="cuda", requires_grad=True)
    y = torch.randint(1000, (256,), device="cuda")

    def step():
        return torch.autograd.grad(loss(z, y, **options).sum(), z)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grad = step()
    with torch.no_grad():
        z.normal_()
    graph.replay()
    assert torch.equal(grad, step())


def test_inductor():
    z = torch.randn(64, 500, device="cuda")
    y = torch.randint(500, (64,), device="cuda")
    compiled = torch.compile(lambda z, y: xent.losses.focal_loss(z, y), fullgraph=True)
    for ours, theirs in zip(
        value_and_grad(compiled, z, y), value_and_grad(xent.losses.focal_loss, z, y), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_no_call_waits():
    z = torch.randn(64, 500, device="cuda", requires_grad=True)
    y = torch.randint(500, (64,), device="cuda")
    losses = xent.cross_entropy, *LOSSES.values()
    for loss in losses:
        loss(z, y).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in losses:
            loss(z, y).backward()
            loss(z, y, reduction="none").sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- behind a linear head -----------------------------------------------------------------------


def head_of(dtype, rows, classes=8192, features=256):
    """Return features, weight, bias, and labels of which 60 % are ignored."""
    shapes = ((rows, features), (classes, features), (classes,))
    h, w, b = (torch.randn(shape, device="cuda") for shape in shapes)
    y = torch.randint(classes, (rows,), device="cuda")
    y[torch.randperm(rows, device="cuda")[: rows * 3 // 5]] = -100
    return [x.to(dtype).requires_grad_() for x in (h, w / features**0.5, b)], y


def behind(parts, rows=1024):
    """Return logits in chunks of so many rows."""
    return xent.LinearLogits(*parts, max_workspace=rows * len(parts[1]) * parts[1].itemsize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1000, 5000])
@pytest.mark.parametrize("loss", [xent.cross_entropy, xent.losses.focal_loss])
def test_a_linear_head(dtype, rows, loss):
    parts, y = head_of(dtype, rows)
    slope = torch.tensor(2.0**12, device="cuda")
    wide = [x.detach().double().requires_grad_() for x in parts]
    truth = loss(torch.nn.functional.linear(*wide), y)
    exact = torch.autograd.grad(truth, wide, slope.double())
    value = loss(behind(parts), y)
    rough = {torch.float32: 1e-4}.get(dtype, 2e-2)
    torch.testing.assert_close(value.double(), truth, rtol=rough / 4, atol=0)
    found = torch.autograd.grad(value, parts, slope.to(dtype), retain_graph=True)
    again = torch.autograd.grad(value, parts, slope.to(dtype))
    for one, other, g in zip(found, again, exact, strict=True):
        assert torch.equal(one, other)
        assert float((one.double() - g).norm() / g.norm()) <= rough
    assert not found[0][y < 0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_of_16_bits_are_added_up_in_float32(dtype):
    left = torch.randn(3000, 500, device="cuda").to(dtype).T
    right = torch.randn(3000, 256, device="cuda").to(dtype)
    total = torch.empty(500, 256, device="cuda")
    exact, size = left.double() @ right.double(), left.abs().double() @ right.abs().double()
    for turn in (1, 2):
        products.add(total, left, right, begun=turn > 1)
        assert bool(((total - turn * exact).abs() <= turn * 3000 * 2.0**-24 * size).all())


@pytest.mark.parametrize("rows", [1000, 5000])
def test_a_linear_head_never_waits(rows):
    parts, y = head_of(torch.bfloat16, rows)

    def step():
        xent.cross_entropy(behind(parts), y).backward()
        xent.losses.focal_loss(behind(parts), y).mul(3).backward()
        s = xent.statistics(behind(parts), y, entropy=True)
        (s.log_prob + s.entropy).sum().backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rows", [1000, 5000])
def test_cuda_graphs_of_a_linear_head(rows):
    """In a graph nobody asks how many rows are ignored: other labels have other rows."""
    parts, y = head_of(torch.bfloat16, rows)

    def step():
        return torch.autograd.grad(xent.cross_entropy(behind(parts), y), parts)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    y.copy_(head_of(torch.bfloat16, rows)[1])
    graph.replay()
    for one, other in zip(captured, step(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-4)


def test_memory_of_a_linear_head():
    """Beyond inputs and gradients: a chunk, and the gradient of the weight in float32."""
    parts, y = head_of(torch.bfloat16, 5000)
    xent.cross_entropy(behind(parts), y).backward()
    for x in parts:
        x.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    xent.cross_entropy(behind(parts), y).backward()
    taken = torch.cuda.max_memory_allocated() - before
    chunk, wide = 1024 * 8192 * 2, parts[1].numel() * 4
    gradients, features = 2 * sum(x.numel() for x in parts), 1024 * 256 * 8
    assert taken <= chunk + wide + gradients + features + (4 << 20)
