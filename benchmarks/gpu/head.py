"""A linear head on a GPU: its matrix products one by one, a pipeline of them, and libraries.

    python -m benchmarks.gpu.head [--json PATH]

A chunk is some rows of the hidden states. Its logits are one product; loss and gradient of the
logits one pass; and the gradients of hidden states and weight two more products. The table gives
each piece, the bare products, that pipeline, xent, PyTorch and Liger.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import xent

from ..harness.options import output_file, write_json
from ..harness.report import aligned, digits, in_one_line
from .device import DEVICE, ENGINE, REHEARSAL, make_timer, median
from .report import mebibytes
from .timing import Timer, Turn, nothing

SHAPES = [(4096, 4096, 128256), (1024, 4096, 128256), (8192, 4096, 128256), (8192, 2304, 256000)]
CHUNK = 4096  # rows
MOST_LOGITS = 1_200_000_000  # for contestants that hold all logits
if REHEARSAL:
    SHAPES, CHUNK = [(6, 16, 40)], 4


class Head(NamedTuple):
    """Inputs of a loss behind a head, in bfloat16.

    Attributes:
        hidden: hidden states, ``(N, D)``.
        weight: ``(V, D)``.
        target: class indices, ``(N,)``.
    """

    hidden: Tensor
    weight: Tensor
    target: Tensor

    @classmethod
    def of(cls, rows: int, features: int, classes: int) -> Head:
        """Draw inputs."""
        hidden = torch.randn(rows, features, device=DEVICE, dtype=torch.bfloat16)
        weight = torch.randn(classes, features, device=DEVICE, dtype=torch.bfloat16)
        target = torch.randint(classes, (rows,), device=DEVICE)
        return cls(hidden, weight.div_(features**0.5), target)

    def chunks(self, rows: int) -> list[Head]:
        """Cut the rows into chunks."""
        parts = zip(self.hidden.split(rows), self.target.split(rows), strict=True)
        return [Head(hidden, self.weight, target) for hidden, target in parts]


Gradients = tuple[Tensor, Tensor]  # of hidden states and weight


def gradient_of_logits(logits: Tensor, target: Tensor, divisor: float) -> Tensor:
    """Return the gradient of the sum of cross-entropy over ``divisor``, found in one pass."""
    leaf = logits.detach().requires_grad_()
    loss: Any = xent.cross_entropy(leaf, target, normalizer=divisor, engine=ENGINE)
    return torch.autograd.grad(loss, leaf)[0]


def add_product(out: Tensor, a: Tensor, b: Tensor, keep: bool) -> None:
    """Write ``a @ b`` to ``out`` in float32, added to what is there if ``keep``."""
    if REHEARSAL:  # no product of bfloat16 with a result in float32 on CPUs
        product = a.float() @ b.float()
        out.copy_(out + product if keep else product)
    elif keep:
        torch.addmm(out, a, b, torch.float32, out=out)
    else:
        torch.mm(a, b, torch.float32, out=out)


def pieces(head: Head, timer: Timer) -> dict[str, float]:
    """Measure each piece of one chunk, in milliseconds."""
    h, w, y = head
    logits = h @ w.T  # (N, V)
    slope = gradient_of_logits(logits, y, float(len(y)))
    of_hidden, of_weight = torch.empty_like(h), torch.empty_like(w)
    wide_hidden = torch.zeros(h.shape, device=DEVICE)
    wide_weight = torch.zeros(w.shape, device=DEVICE)
    calls = {
        "logits": partial(torch.mm, h, w.T, out=logits),
        "one pass": partial(gradient_of_logits, logits, y, float(len(y))),
        "hidden, bfloat16": partial(torch.mm, slope, w, out=of_hidden),
        "hidden, float32": partial(add_product, wide_hidden, slope, w, False),
        "weight, bfloat16": partial(torch.mm, slope.T, h, out=of_weight),
        "weight, float32": partial(add_product, wide_weight, slope.T, h, False),
        "weight, added": partial(add_product, wide_weight, slope.T, h, True),
        "weight rounded": partial(of_weight.copy_, wide_weight),
    }
    return {name: median(timer, call) for name, call in calls.items()}


def bare_products(head: Head, rows: int) -> None:
    """Compute the three products of every chunk, and nothing else."""
    for h, w, _ in head.chunks(rows):
        logits = h @ w.T
        _ = logits @ w, logits.T @ h


def pipeline(head: Head, rows: int) -> Gradients:
    """Compute the gradients by chunks, with three products and one pass for each chunk.

    The host never waits for the GPU, and the gradient of the weight is rounded once.
    """
    of_hidden, of_weight = torch.empty_like(head.hidden), torch.empty_like(head.weight)
    sum_of_weight = torch.empty(head.weight.shape, device=DEVICE)
    chunks = head.chunks(rows)
    for k, (part, (h, w, y)) in enumerate(zip(of_hidden.split(rows), chunks, strict=True)):
        slope = gradient_of_logits(h @ w.T, y, float(len(head.target)))
        torch.mm(slope, w, out=part)
        if len(chunks) == 1:
            torch.mm(slope.T, h, out=of_weight)
        else:
            add_product(sum_of_weight, slope.T, h, keep=k > 0)
    if len(chunks) > 1:
        of_weight.copy_(sum_of_weight)
    return of_hidden, of_weight


def contestants(head: Head) -> dict[str, Callable[[], object]]:
    """Return calls of loss and gradients, by name; bare products first."""
    h, w = (x.detach().requires_grad_() for x in head[:2])
    y = head.target
    rows = min(len(y), CHUNK)

    def gradients(loss: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(h, w, y), (h, w))

    calls: dict[str, Callable[[], object]] = {"bare products": partial(bare_products, head, rows)}
    for size in (rows, rows // 2):
        calls[f"pipeline, {size} rows"] = partial(pipeline, head, size)
    calls["xent"] = gradients(xent.linear_cross_entropy)
    if len(y) * len(w) <= MOST_LOGITS:
        calls["torch"] = gradients(lambda h, w, y: F.cross_entropy(F.linear(h, w), y))
    try:
        from liger_kernel.transformers.functional import (  # pyright: ignore
            liger_fused_linear_cross_entropy,
        )
    except Exception as error:  # libraries may look for a GPU when imported
        print(f"liger does not take part: {in_one_line(error)}")
    else:
        calls["liger"] = gradients(liger_fused_linear_cross_entropy)
    return calls


def measure(head: Head, timer: Timer) -> dict[str, dict[str, Any]]:
    """Measure every contestant: milliseconds, TFLOP/s, bytes at the peak; or why one failed."""
    operations = 6 * len(head.target) * head.weight.numel()
    found: dict[str, dict[str, Any]] = {}
    for name, call in contestants(head).items():
        try:
            peak = timer.peak(Turn(nothing, call))
            ms = median(timer, call)
        except Exception as error:  # whatever other libraries raise
            found[name] = {"failed": in_one_line(error)}
        else:
            found[name] = {"ms": ms, "tflop_s": operations / ms / 1e9, "peak": peak}
    return found


def error_of_pipeline(head: Head) -> float:
    """Return the relative error of the pipeline's gradient of some hidden states, in float64."""
    some = slice(0, 16)
    h, w, y = head.hidden[some].double(), head.weight.double(), head.target[some]
    slope = (h @ w.T).softmax(1)
    slope[torch.arange(len(y)), y] -= 1
    true = slope @ w / len(head.target)
    found = pipeline(head, min(len(head.target), CHUNK))[0][some].double()
    return ((found - true).norm() / true.norm()).item()


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the contestants as a table, each beside the bare products."""
    rows = [["", "ms", "TFLOP/s", "% of bare", "MiB"]]
    base = found["bare products"].get("ms", math.nan)
    for name, entry in found.items():
        if "failed" not in entry:
            figures = [
                digits(entry["ms"]),
                digits(entry["tflop_s"]),
                digits(100 * base / entry["ms"]),
            ]
            rows.append([name, *figures, mebibytes(entry["peak"])])
    failed = [f"  {name} failed: {e['failed']}" for name, e in found.items() if "failed" in e]
    return "\n".join([aligned(rows), *failed])


def main() -> int:
    """Print pieces, contestants and the check of every shape; return 0 unless xent failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=output_file, metavar="PATH", help="write everything here")
    args = parser.parse_args()
    timer = make_timer()
    print(timer.describe())
    result: dict[str, Any] = {}
    for shape in SHAPES:
        head = Head.of(*shape)
        rows = min(len(head.target), CHUNK)
        parts = pieces(head.chunks(rows)[0], timer)
        found = measure(head, timer)
        error = error_of_pipeline(head)
        result[",".join(map(str, shape))] = {"pieces": parts, "calls": found, "error": error}
        times = ", ".join(f"{name} {digits(ms)}" for name, ms in parts.items())
        print(f"\n{shape}: pieces of {rows} rows in ms: {times}\n{table(found)}")
        print(f"relative error of the pipeline: {error:.1e}", flush=True)
        if args.json:
            write_json(args.json, result)
        timer.release()
    calls = [(name, entry) for one in result.values() for name, entry in one["calls"].items()]
    return int(any("failed" in entry for name, entry in calls if name.startswith("xent")))


if __name__ == "__main__":
    sys.exit(main())
