"""Cross-entropy behind a linear head: time, memory and error beside PyTorch and the bare products.

    python benchmarks/linear.py [--shapes 1024,512,32000 ...] [--dtype float32]

Shapes are N,D,V. One run, everybody in turn, medians of forward and backward as multiples of the
three products of matrices that nobody can do without: ``hidden @ weight.T``, and the two of its
gradient. Memory is how far a fresh process grows at its peak beyond inputs and gradients. Errors
are those of the weight's gradient against float64, relative to its largest entry.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import xent
from xent.commands.bench import describe_machine
from xent.commands.bench_report import machine_text

Loss = Callable[[Tensor, Tensor, Tensor], Any]
SHAPES = ["1024,512,32000", "2048,256,50257", "512,1024,128256", "4096,64,8192"]
ROUNDS = 5


def lean(loss: Callable[..., Any]) -> Loss:
    return lambda h, w, y: loss(xent.LinearLogits(h, w), y)


def lean_ignoring(h: Tensor, w: Tensor, y: Tensor) -> Any:
    few = torch.where(torch.arange(y.numel()) % 5 < 3, -100, y)
    return lean(xent.cross_entropy)(h, w, few)


def chunked(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.linear_cross_entropy(h, w, y, options=torch.nn.LinearCrossEntropyOptions())


LOSSES: dict[str, Loss] = {
    "xent": lean(xent.cross_entropy),
    "xent, 60 % of the rows ignored": lean_ignoring,
    "xent, focal": lean(xent.focal_loss),
    "xent, label smoothing": lean(xent.smoothed_cross_entropy),
    "torch, unfused": lambda h, w, y: F.cross_entropy(h @ w.T, y),
    "torch, chunked": chunked,
}


def problem(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, features, classes = shape
    torch.manual_seed(0)
    h, w = torch.randn(rows, features), torch.randn(classes, features) / features**0.5
    y = torch.randint(classes, (rows,))
    return h.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), y


def products(h: Tensor, w: Tensor) -> None:
    with torch.no_grad():
        z = h @ w.T
        _ = z @ w, z.T @ h


def step(loss: Loss, h: Tensor, w: Tensor, y: Tensor) -> None:
    loss(h, w, y).backward()
    h.grad = w.grad = None


def times(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, float]:
    """Median seconds."""
    h, w, y = problem(shape, dtype)
    calls: dict[str, Callable[[], None]] = {"products": lambda: products(h, w)}
    for name, loss in LOSSES.items():
        calls[name] = lambda loss=loss: step(loss, h, w, y)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def peak(reset: bool = False) -> float:
    """MiB of this process at its peak, since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def grow(shape: tuple[int, ...], dtype: torch.dtype, name: str, answer: Any) -> None:
    """MiB beyond inputs and gradients, and the error; in a process of its own."""
    step(LOSSES[name], *problem((8, 8, 64), dtype))
    h, w, y = problem(shape, dtype)
    before = peak(reset=True)
    LOSSES[name](h, w, y).backward()
    assert h.grad is not None
    assert w.grad is not None
    answer.put(peak() - before - (h.grad.nbytes + w.grad.nbytes) / 2**20)


def memory(shape: tuple[int, ...], dtype: torch.dtype, name: str) -> float:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=grow, args=(shape, dtype, name, answer))
    process.start()
    value = answer.get(timeout=600)
    process.join()
    return value


def error(dtype: torch.dtype, name: str) -> float:
    """Of the weight's gradient, where every target is 20 nats more likely than all the rest."""
    h, w, y = problem((64, 32, 500), torch.float64)
    with torch.no_grad():
        w /= w.norm(dim=1, keepdim=True)
        h.copy_(w[y] * 60)
    h, w = (x.detach().to(dtype).requires_grad_() for x in (h, w))
    wide = w.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(LOSSES[name](h, w, y), w)
    (truth,) = torch.autograd.grad(LOSSES["xent"](h.detach().double(), wide, y), wide)
    return ((found.double() - truth).abs().max() / truth.abs().max()).item()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    print(machine_text(describe_machine(torch.get_num_threads())))
    for text in args.shapes:
        shape = tuple(map(int, text.split(",")))
        seconds = times(shape, dtype)
        base = seconds.pop("products")
        print(f"\nN, D, V = {text}, {args.dtype}: products {base * 1e3:.0f} ms")
        for name, value in seconds.items():
            mib = memory(shape, dtype, name)
            print(f"{name:34}{value / base:8.2f}{mib:9.0f} MiB", flush=True)
    print("\nerror of the gradient on rows 20 nats and more sure of their targets")
    for name in ("xent", "torch, unfused", "torch, chunked"):
        print(f"{name:34}{error(dtype, name):10.1e}")


if __name__ == "__main__":
    main()
