"""The contestants of ``xent bench linear``, their inputs, and their errors and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xent import LinearLogits
from xent.losses import cross_entropy, focal_loss, smoothed_cross_entropy

from .contestants import ERROR_ELEMENTS, truth
from .memory import peak_beyond_now
from .report import in_one_line

Loss = Callable[[Tensor, Tensor, Tensor], Any]  # of hidden (N, D), weight (V, D) and target (N,)
SURE = 60.0  # logit of the target in the sure batch; the other logits reach some 10 to 20


class LinearCell(NamedTuple):
    """One problem: features of ``(rows, features)`` behind a head of ``classes``."""

    rows: int
    features: int
    classes: int
    dtype: str
    device: str

    def __str__(self) -> str:
        return f"{self.rows}, {self.features}, {self.classes} {self.dtype}"


TINY = LinearCell(8, 16, 64, "float32", "cpu")


class LinearContestant(NamedTuple):
    """A way to compute a loss behind a linear head.

    Attributes:
        load: makes the loss, with the imports that it needs.
        plain: whether the loss is plain cross-entropy, whose exact value is known here.
    """

    load: Callable[[], Loss]
    plain: bool = True

    def unavailable(self, device: str) -> str | None:
        """Try the contestant; return why it cannot take part here, or None."""
        try:
            both(self.load(), *make_inputs(TINY._replace(device=device)))
        except Exception as error:
            return in_one_line(error)
        return None


def _lean(loss: Callable[..., Any]) -> Callable[[], Loss]:
    return lambda: lambda h, w, y: loss(LinearLogits(h, w), y)


def _ignoring() -> Loss:
    lean = _lean(cross_entropy)()

    def loss(h: Tensor, w: Tensor, y: Tensor) -> Any:
        few = torch.where(torch.arange(len(y), device=y.device) % 5 < 3, -100, y)
        return lean(h, w, few)

    return loss


def _chunked() -> Loss:
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda h, w, y: F.linear_cross_entropy(h, w, y, options=options)


def _liger() -> Loss:
    from liger_kernel.transformers.functional import (  # pyright: ignore
        liger_fused_linear_cross_entropy,
    )

    return liger_fused_linear_cross_entropy


def _cce() -> Loss:
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore

    return linear_cross_entropy


def _quack() -> Loss:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy  # pyright: ignore

    return chunked_linear_cross_entropy


LINEAR_CONTESTANTS = {
    "xent": LinearContestant(_lean(cross_entropy)),
    "xent, 60 % ignored": LinearContestant(_ignoring, plain=False),
    "xent, focal": LinearContestant(_lean(focal_loss), plain=False),
    "xent, smoothing": LinearContestant(_lean(smoothed_cross_entropy), plain=False),
    "torch": LinearContestant(lambda: lambda h, w, y: F.cross_entropy(F.linear(h, w), y)),
    "torch, chunked": LinearContestant(_chunked),
    "liger": LinearContestant(_liger),
    "cce": LinearContestant(_cce),
    "quack": LinearContestant(_quack),
}


def make_inputs(cell: LinearCell, *, sure: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Draw normal features and weights, uniform targets; ``sure``: features near their targets."""
    random = torch.Generator().manual_seed(cell.rows + cell.classes)
    hidden = torch.randn(cell.rows, cell.features, generator=random)
    weight = torch.randn(cell.classes, cell.features, generator=random) / cell.features**0.5
    target = torch.randint(cell.classes, (cell.rows,), generator=random)
    if sure:
        weight /= weight.norm(dim=1, keepdim=True)
        hidden = SURE * weight[target]
    dtype = getattr(torch, cell.dtype)
    hidden, weight = (x.to(cell.device, dtype).requires_grad_() for x in (hidden, weight))
    return hidden, weight, target.to(cell.device)


def products(hidden: Tensor, weight: Tensor) -> None:
    """Compute the three products of matrices that loss and gradient need."""
    with torch.no_grad():
        logits = hidden @ weight.T
        _ = logits @ weight, logits.T @ hidden


def both(loss: Loss, hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    """Compute loss and gradient, in fresh memory that is freed again."""
    loss(hidden, weight, target).backward()
    hidden.grad = weight.grad = None


def errors(loss: Loss, cell: LinearCell) -> dict[str, dict[str, float]]:
    """Measure errors against float64 on random rows and on sure rows, no more rows than needed.

    Returns:
        For each batch, the relative error of the ``loss``; and for the ``gradient`` of features and
        weight, the worst error relative to the largest entry.
    """
    cell = cell._replace(rows=max(1, min(cell.rows, ERROR_ELEMENTS // cell.classes)))
    found = {}
    for batch in ("random", "sure"):
        h, w, y = make_inputs(cell, sure=batch == "sure")
        value = loss(h, w, y)
        gradients = torch.autograd.grad(value, (h, w))
        h, w = h.detach().double(), w.detach().double()
        true_value, over_logits = truth(h @ w.T, y)
        true_gradients = over_logits @ w, over_logits.T @ h
        wrong = [
            ((g.double() - true).abs().max() / true.abs().max()).item()
            for g, true in zip(gradients, true_gradients, strict=True)
        ]
        off = (value.detach().double() - true_value).abs() / true_value
        found[batch] = {"loss": off.item(), "gradient": max(wrong)}
    return found


def memory(name: str, cell: LinearCell, threads: int) -> int:
    """Measure bytes at the peak beyond inputs and gradients; on a CPU, in a fresh process only."""
    torch.set_num_threads(threads)
    loss = LINEAR_CONTESTANTS[name].load()
    both(loss, *make_inputs(TINY._replace(device=cell.device, dtype=cell.dtype)))
    h, w, y = make_inputs(cell)

    def call() -> None:
        loss(h, w, y).backward()

    if cell.device == "cpu":
        peak = peak_beyond_now(call)
    else:
        before = torch.accelerator.memory_allocated()
        torch.accelerator.reset_peak_memory_stats()
        call()
        peak = torch.accelerator.max_memory_allocated() - before
    assert h.grad is not None
    assert w.grad is not None
    return max(0, peak - h.grad.nbytes - w.grad.nbytes)
