"""Tests that need a GPU: compiled kernels, graphs, more than 2^31 logits."""

import pytest
import torch

import xent
from tests.helpers import nats_below_top, value_and_grad, worst

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
    xent.cross_entropy(z, y).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        xent.cross_entropy(z, y).backward()
        xent.losses.focal_loss(z, y, reduction="none").sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
