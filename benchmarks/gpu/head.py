"""A linear head on a GPU: its matrix products one by one, a pipeline of them, and libraries.

    python -m benchmarks.gpu.head [--shapes N,D,V ...] [--seconds S] [--json PATH]

A chunk is some rows of the hidden states. Its logits are one product; loss and gradient of the
logits one pass; and the gradients of hidden states and weight two more products. The table gives
each piece, the bare products, that pipeline, xent, PyTorch, Liger, CCE and QuACK: milliseconds,
rates, memory, and errors of both gradients against float64. Without a GPU it runs tiny shapes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import xent

from ..harness.linear_contestants import LINEAR_CONTESTANTS
from ..harness.options import head_shape, output_file, seconds, write_json
from ..harness.report import aligned, digits, in_one_line
from .device import DEVICE, ENGINE, REHEARSAL, make_timer, median
from .report import mebibytes
from .timing import Budget, Timer, Turn, nothing

# Rows, features and classes: of Llama 3, with three numbers of rows, Gemma 2, Qwen 3, Qwen 3.5,
# GPT-2 and Qwen 2.5.
SHAPES = [
    (4096, 4096, 128256), (1024, 4096, 128256), (8192, 4096, 128256), (8192, 2304, 256000),
    (8192, 4096, 151936), (16384, 2048, 248320), (32768, 768, 50257), (2048, 3584, 152064),
]  # fmt: skip
CHUNK = 4096  # rows
MOST_LOGITS = 1_200_000_000  # for contestants that hold all logits
SAMPLE = 16  # rows and classes whose gradients are compared with float64
if REHEARSAL:
    SHAPES, CHUNK, SAMPLE = [(6, 16, 40)], 4, 3


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


def contestants(head: Head) -> dict[str, Callable[[], Gradients | None]]:
    """Return calls of loss and gradients, by name; bare products first."""
    h, w = (x.detach().requires_grad_() for x in head[:2])
    y, rows = head.target, min(len(head.target), CHUNK)
    calls: dict[str, Callable[[], Any]] = {"bare products": partial(bare_products, head, rows)}
    for size in (rows, rows // 2):
        calls[f"pipeline, {size} rows"] = partial(pipeline, head, size)
    for name, contestant in LINEAR_CONTESTANTS.items():
        if name == "torch" and len(y) * len(w) > MOST_LOGITS:
            continue
        try:
            loss = contestant.load()
        except Exception as error:  # libraries may look for a GPU when imported
            print(f"{name} does not take part: {in_one_line(error)}")
        else:
            calls[name] = lambda loss=loss: torch.autograd.grad(loss(h, w, y), (h, w))
    return calls


def exact(head: Head) -> Gradients:
    """Return the gradients of :data:`SAMPLE` rows and of as many classes, in float64."""
    w = head.weight.double()
    classes = head.target[:SAMPLE]
    of_weight = torch.zeros(len(classes), w.shape[1], dtype=torch.float64, device=DEVICE)
    of_hidden: list[Tensor] = []
    for h, _, y in head.chunks(512):
        slope = (h.double() @ w.T).softmax(1)  # (512, V)
        slope[torch.arange(len(y), device=DEVICE), y] -= 1
        of_weight += slope[:, classes].T @ h.double()
        of_hidden = of_hidden or [slope[:SAMPLE] @ w]
    return of_hidden[0] / len(head.target), of_weight / len(head.target)


def errors(found: Gradients, head: Head, truth: Gradients) -> list[float]:
    """Return the relative errors of the sampled gradients of hidden states and weight."""
    some = found[0][:SAMPLE], found[1][head.target[:SAMPLE]]
    pairs = zip(some, truth, strict=True)
    return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]


def measure(head: Head, timer: Timer) -> dict[str, dict[str, Any]]:
    """Measure every contestant: milliseconds, TFLOP/s, peak bytes, errors; or why one failed."""
    operations, truth = 6 * len(head.target) * head.weight.numel(), exact(head)
    found: dict[str, dict[str, Any]] = {}
    for name, call in contestants(head).items():
        try:
            peak = timer.peak(Turn(nothing, call))
            gradients = call()
            plain = name not in LINEAR_CONTESTANTS or LINEAR_CONTESTANTS[name].plain
            off = errors(gradients, head, truth) if gradients is not None and plain else None
            del gradients
            ms = median(timer, call)
        except Exception as error:  # whatever other libraries raise
            found[name] = {"failed": in_one_line(error)}
        else:
            rate = operations / ms / 1e9
            found[name] = {"ms": ms, "tflop_s": rate, "peak": peak, "errors": off}
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the contestants as a table, each beside the bare products."""
    rows = [["", "ms", "TFLOP/s", "% of bare", "MiB", "error of hidden", "of weight"]]
    base = found["bare products"].get("ms", math.nan)
    for name, entry in found.items():
        if "failed" not in entry:
            figures = entry["ms"], entry["tflop_s"], 100 * base / entry["ms"]
            off = [f"{x:.1e}" for x in entry["errors"] or ()] or ["-", "-"]
            rows.append([name, *map(digits, figures), mebibytes(entry["peak"]), *off])
    failed = [f"  {name} failed: {e['failed']}" for name, e in found.items() if "failed" in e]
    return "\n".join([aligned(rows), *failed])


def measure_shape(shape: tuple[int, int, int], timer: Timer) -> dict[str, Any]:
    """Measure and print the pieces and the contestants of one shape."""
    head = Head.of(*shape)
    rows = min(len(head.target), CHUNK)
    parts, found = pieces(head.chunks(rows)[0], timer), measure(head, timer)
    times = ", ".join(f"{name} {digits(ms)}" for name, ms in parts.items())
    print(f"\n{shape}: pieces of {rows} rows in ms: {times}\n{table(found)}", flush=True)
    return {"pieces": parts, "calls": found}


def main() -> int:
    """Measure shapes until the time is used up; return 0 unless xent failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", type=head_shape, nargs="+", metavar="N,D,V", default=SHAPES)
    parser.add_argument(
        "--seconds", type=seconds, default=420.0,
        help="begin nothing that would end later than this (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument("--json", type=output_file, metavar="PATH", help="write everything here")
    args = parser.parse_args()
    timer, result = make_timer(), {}
    print(timer.describe())
    budget: Budget[tuple[int, int, int]] = Budget(args.seconds)
    for shape in budget.within(args.shapes):
        result[",".join(map(str, shape))] = measure_shape(shape, timer)
        if args.json:
            write_json(args.json, result)
        timer.release()
    for shape in budget.left_out:
        print(f"left out, as there was no time: {shape}")
    calls = [(name, entry) for one in result.values() for name, entry in one["calls"].items()]
    return int(any("failed" in entry for name, entry in calls if name.startswith("xent")))


if __name__ == "__main__":
    sys.exit(main())
