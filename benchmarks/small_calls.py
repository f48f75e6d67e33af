"""Small calls, where the call itself takes the time: ``python -m benchmarks.small_calls``.

Every call is timed forward and backward on logits of 32 x 10. Calls take turns, round after round;
microseconds are medians. The column beside them says how many times as long the call of xent takes
as another call, which is named: PyTorch's function with the same options where it has them, the
textbook formula in PyTorch, or PyTorch's plain cross-entropy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import xent

from .harness.machine import describe_machine
from .harness.options import output_file, positive, write_json
from .harness.race import Plan, race, turn_of
from .harness.report import aligned, machine_text, spread

ROWS, CLASSES, FEATURES = 32, 10, 16
Loss = Callable[[], Tensor]


class Pair(NamedTuple):
    """A call of xent and the call to compare it with."""

    name: str
    ours: Loss
    theirs: str  # a name in the table of other calls


class Batch:
    """Inputs of all calls; leaves whose gradient is wanted, targets and weights."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.z = torch.randn(ROWS, CLASSES, generator=g, requires_grad=True)
        self.z16 = self.z.detach().bfloat16().requires_grad_()
        self.hidden = torch.randn(ROWS, FEATURES, generator=g, requires_grad=True)
        self.weight = torch.randn(CLASSES, FEATURES, generator=g, requires_grad=True)
        self.y = torch.randint(CLASSES, (ROWS,), generator=g)
        self.labels = (torch.rand(ROWS, CLASSES, generator=g) > 0.5).float()
        self.of_classes = torch.rand(CLASSES, generator=g) + 0.5
        self.of_rows = torch.rand(ROWS, generator=g) + 0.5

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that get a gradient."""
        return self.z, self.z16, self.hidden, self.weight


def textbook_focal(z: Tensor, y: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss as its paper writes it."""
    log_p = torch.log_softmax(z, 1).gather(1, y.unsqueeze(1)).squeeze(1)
    return (-((1 - log_p.exp()) ** gamma) * log_p).mean()


def textbook_generalized(z: Tensor, y: Tensor, q: float = 0.7) -> Tensor:
    """Generalised cross-entropy as its paper writes it."""
    p = torch.softmax(z, 1).gather(1, y.unsqueeze(1)).squeeze(1)
    return ((1 - p**q) / q).mean()


def others(b: Batch) -> dict[str, Loss]:
    """Calls of PyTorch and textbook formulas, by name."""
    binary = F.binary_cross_entropy_with_logits
    return {
        "plain": lambda: F.cross_entropy(b.z, b.y),
        "bfloat16": lambda: F.cross_entropy(b.z16, b.y),
        "weight": lambda: F.cross_entropy(b.z, b.y, b.of_classes),
        "ignore_index": lambda: F.cross_entropy(b.z, b.y, ignore_index=7),
        "sum": lambda: F.cross_entropy(b.z, b.y, reduction="sum"),
        "smoothing": lambda: F.cross_entropy(b.z, b.y, label_smoothing=0.1),
        "none": lambda: F.cross_entropy(b.z, b.y, reduction="none").sum(),
        "focal, textbook": lambda: textbook_focal(b.z, b.y),
        "generalised, textbook": lambda: textbook_generalized(b.z, b.y),
        "cross_entropy(h @ W.T)": lambda: F.cross_entropy(b.hidden @ b.weight.T, b.y),
        "binary": lambda: binary(b.z, b.labels),
        "binary, weight": lambda: binary(b.z, b.labels, b.of_classes),
    }


def pairs(b: Batch) -> list[Pair]:
    """The calls of xent, each with the name of the other call."""
    loss, family = xent.cross_entropy, xent.losses
    binary = xent.binary_cross_entropy_with_logits
    return [
        Pair("cross_entropy", lambda: loss(b.z, b.y), "plain"),
        Pair("weight", lambda: loss(b.z, b.y, b.of_classes), "weight"),
        Pair("row_weight", lambda: loss(b.z, b.y, row_weight=b.of_rows), "plain"),
        Pair("label_smoothing", lambda: loss(b.z, b.y, label_smoothing=0.1), "smoothing"),
        Pair("z_loss", lambda: loss(b.z, b.y, z_loss=1e-3), "plain"),
        Pair("ignore_index", lambda: loss(b.z, b.y, ignore_index=7), "ignore_index"),
        Pair("normalizer", lambda: loss(b.z, b.y, normalizer=20.0), "plain"),
        Pair('reduction="sum"', lambda: loss(b.z, b.y, reduction="sum"), "sum"),
        Pair("bfloat16", lambda: loss(b.z16, b.y), "bfloat16"),
        Pair("logit_scale", lambda: loss(b.z, b.y, logit_scale=2.0), "plain"),
        Pair("softcap", lambda: loss(b.z, b.y, softcap=30.0), "plain"),
        Pair("class_bias", lambda: loss(b.z, b.y, class_bias=b.of_classes), "plain"),
        Pair('reduction="none"', lambda: loss(b.z, b.y, reduction="none").sum(), "none"),
        Pair("focal_loss", lambda: family.focal_loss(b.z, b.y), "focal, textbook"),
        Pair(
            "generalized_cross_entropy",
            lambda: family.generalized_cross_entropy(b.z, b.y),
            "generalised, textbook",
        ),
        Pair(
            "LinearLogits",
            lambda: loss(xent.LinearLogits(b.hidden, b.weight), b.y),
            "cross_entropy(h @ W.T)",
        ),
        Pair("binary, logits", lambda: binary(b.z, b.labels), "binary"),
        Pair(
            "binary, weight",
            lambda: binary(b.z, b.labels, weight=b.of_classes),
            "binary, weight",
        ),
    ]


def measure(batch: Batch, plan: Plan) -> list[dict[str, Any]]:
    """Time all calls in turn; return an entry per call of xent, with both times."""
    table, theirs = pairs(batch), others(batch)
    calls = {("xent", p.name): p.ours for p in table} | {("other", n): f for n, f in theirs.items()}
    times = race({key: turn_of(_step(f, batch.leaves)) for key, f in calls.items()}, plan).times
    return [
        {"call": p.name, "ours": times["xent", p.name], "other": p.theirs,
         "theirs": times["other", p.theirs]}
        for p in table
    ]  # fmt: skip


def _step(loss: Loss, leaves: tuple[Tensor, ...]) -> Callable[[], None]:
    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return step


def text(entries: Sequence[dict[str, Any]]) -> str:
    """The table, in microseconds."""
    lines = [("xent", "us", "spread", "times", "other call", "us")]
    for entry in entries:
        ours, theirs = entry["ours"], entry["theirs"]
        us, them = (f"{1e3 * time['ms']:.1f}" for time in (ours, theirs))
        times = f"{ours['ms'] / theirs['ms']:.2f}"
        lines.append((entry["call"], us, spread(ours), times, entry["other"], them))
    return aligned(lines)


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_calls", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=positive, default=15, help="default: %(default)s")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument(
        "--json", type=output_file, metavar="PATH", help="write everything measured here"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"machine": describe_machine(args.threads)}
    result["calls"] = measure(Batch(), Plan(0.0, repeats=args.rounds))
    print(f"{text(result['calls'])}\n\n{machine_text(result['machine'])}")
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
