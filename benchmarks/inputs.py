"""Layouts of logits and kinds of targets, beside PyTorch: ``python -m benchmarks.inputs``.

Forward and backward of ``xent.cross_entropy`` and its kind, where the logits are not one dense row
after the other, or where the target is more than a class. ``torch`` is PyTorch's call with the same
options, or the textbook formula where it has no such call. The yardstick is a plain copy of the
logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import xent
from xent.losses import binary_cross_entropy_with_logits, sparse_cross_entropy

from .harness.calls import Loss, step
from .harness.command import Cell, run

TOP = 8  # classes of a list
# Why lines are slower where there is little else to do.
WHY = {
    f"{TOP} listed": "the lists are read by dozens of tensor operations, in float64 and with a look"
    " for classes that are listed twice; the textbook takes six in float32"
}
SECONDS = 2.0


class Problem(NamedTuple):
    """Logits with the classes on axis 1, and the targets of every kind."""

    logits: Tensor
    classes: Tensor  # of each row
    soft: Tensor | None = None  # as wide as the logits


def rows(count: int, classes: int, dtype: torch.dtype) -> Problem:
    """Dense rows."""
    z = torch.randn(count, classes).to(dtype)
    soft = torch.rand(count, classes)
    return Problem(
        z, torch.randint(classes, (count,)), (soft / soft.sum(1, keepdim=True)).to(dtype)
    )


def middle(batch: int, classes: int, pixels: int, dtype: torch.dtype) -> Problem:
    """Classes on the middle axis, as of images."""
    z = torch.randn(batch, classes, pixels).to(dtype)
    return Problem(z, torch.randint(classes, (batch, pixels)))


def transposed(count: int, classes: int, dtype: torch.dtype) -> Problem:
    """Rows that are columns in memory."""
    z = torch.randn(classes, count).to(dtype).T
    return Problem(z, torch.randint(classes, (count,)))


def padded(count: int, classes: int, dtype: torch.dtype) -> Problem:
    """The first classes of longer rows."""
    z = torch.randn(count, classes + 64).to(dtype)[:, :classes]
    return Problem(z, torch.randint(classes, (count,)))


class Pair(NamedTuple):
    """A call of xent and that of PyTorch, of logits and this target."""

    name: str
    target: Tensor
    ours: Loss
    theirs: Loss


def plain(p: Problem) -> list[Pair]:
    """Calls on the logits as they lie."""
    return [Pair("classes", p.classes, xent.cross_entropy, F.cross_entropy)]


def kinds(p: Problem) -> list[Pair]:
    """Calls with every kind of target."""
    assert p.soft is not None
    weight = torch.rand(p.logits.shape[1]).add_(0.5).to(p.logits.dtype)
    mass, places = p.soft.float().topk(TOP, 1)
    mass /= mass.sum(1, keepdim=True)
    some = torch.where(torch.rand(len(p.classes)) < 0.5, -100, p.classes)

    def listed(z: Tensor, y: Tensor) -> Tensor:
        return -(mass * F.log_softmax(z, 1).gather(1, y)).sum(1).mean()

    def smoothed(z: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, y * 0.9 + 0.05)

    ours, theirs = xent.cross_entropy, F.cross_entropy
    smooth = {"weight": weight, "label_smoothing": 0.1}
    return [
        Pair("weights, smoothing", p.classes, partial(ours, **smooth), partial(theirs, **smooth)),
        Pair("half ignored", some, ours, theirs),
        Pair("one loss per row", p.classes, _each(ours), _each(theirs)),
        Pair(f"{TOP} listed", places, lambda z, y: sparse_cross_entropy(z, y, mass), listed),
        Pair("soft", p.soft, ours, theirs),
        Pair("soft, one loss per row", p.soft, _each(ours), _each(theirs)),
        Pair(
            "binary", p.soft, binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits
        ),
        Pair(
            "binary, smoothing",
            p.soft,
            partial(binary_cross_entropy_with_logits, label_smoothing=0.1),
            smoothed,
        ),
    ]


def _each(loss: Callable[..., Tensor]) -> Loss:
    return lambda z, y: loss(z, y, reduction="none").sum()


LAYOUTS = {
    "16 x 19 x 65536, middle axis": lambda dtype: middle(16, 19, 65536, dtype),
    "4096 x 21 x 16, middle axis": lambda dtype: middle(4096, 21, 16, dtype),
    "8 x 32000 x 64, middle axis": lambda dtype: middle(8, 32000, 64, dtype),
    "2048 x 8192, transposed": lambda dtype: transposed(2048, 8192, dtype),
    "2048 x 8192, padded rows": lambda dtype: padded(2048, 8192, dtype),
}
TARGETS = {
    "1024 x 1000, targets": lambda dtype: rows(1024, 1000, dtype),
    "2048 x 8192, targets": lambda dtype: rows(2048, 8192, dtype),
    "65536 x 100, targets": lambda dtype: rows(65536, 100, dtype),
}


def cells(dtypes: list[str], spread: float) -> Iterator[Cell]:
    """Yield a cell for each layout and for each shape of targets."""
    for builders, calls in ((LAYOUTS, plain), (TARGETS, kinds)):
        for name, build in builders.items():
            for dtype in dtypes:
                torch.manual_seed(0)
                p = build(getattr(torch, dtype))
                p.logits.mul_(spread)
                steps = {
                    (pair.name, who): step(loss, p.logits, pair.target)
                    for pair in calls(p)
                    for who, loss in (("xent", pair.ours), ("torch", pair.theirs))
                }
                yield Cell(f"{name} {dtype}", steps, p.logits, WHY)


if __name__ == "__main__":
    raise SystemExit(run(__doc__, "inputs", cells, SECONDS))
