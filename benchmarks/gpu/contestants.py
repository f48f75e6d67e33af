"""Cross-entropy of given logits by xent, PyTorch and others, and its exact value.

A contestant takes part where its library can be imported. Liger overwrites its input with the
gradient in the forward pass, so it gets a fresh copy for each call, which is not timed. flash-attn
returns the losses of rows; their mean is taken here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import xent

from ..harness.contestants import ERROR_ELEMENTS, Cell, truth
from ..harness.report import in_one_line
from .timing import WARM_UP, Turn

Loss = Callable[..., Any]  # of logits (N, V) and labels (N,): their mean
BY_ROW = "xent-by-row"


class Contestant(NamedTuple):
    """A way to compute the mean.

    Attributes:
        load: makes the loss, with the imports that it needs, given the engine xent is to take.
        overwrites: whether the loss overwrites the logits.
    """

    load: Callable[[str], Loss]
    overwrites: bool = False

    def unavailable(self, engine: str) -> str | None:
        """Return why the contestant cannot take part here, or None."""
        try:
            self.load(engine)
        except Exception as error:  # libraries for GPUs raise many kinds without a GPU
            return in_one_line(error)
        return None


def _xent(engine: str) -> Loss:
    return partial(xent.cross_entropy, engine=engine)


def _by_row(engine: str) -> Loss:
    loss = _xent(engine)
    return lambda z, y: loss(z, y, reduction="none").mean()


def _compiled(engine: str) -> Loss:
    torch.compiler.reset()  # otherwise each call checks the code of all earlier shapes
    return torch.compile(lambda z, y: F.cross_entropy(z, y), dynamic=False)


def _liger(engine: str) -> Loss:
    from liger_kernel.transformers.functional import liger_cross_entropy  # pyright: ignore

    return liger_cross_entropy


def _quack(engine: str) -> Loss:
    from quack.cross_entropy import cross_entropy  # pyright: ignore

    return partial(cross_entropy, reduction="mean")


def _flash(engine: str) -> Loss:
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss  # pyright: ignore

    return lambda z, y: cross_entropy_loss(z, y)[0].mean()  # the second result is the z-loss


CONTESTANTS = {
    "xent": Contestant(_xent),
    BY_ROW: Contestant(_by_row),
    "torch": Contestant(lambda engine: F.cross_entropy),
    "compile": Contestant(_compiled),
    "liger": Contestant(_liger, overwrites=True),
    "quack": Contestant(_quack),
    "flash-attn": Contestant(_flash),
}


class Task:
    """Calls to time and to check, of one loss with its logits in place."""

    def __init__(self, loss: Loss, logits: Tensor, target: Tensor, overwrites: bool = False):
        self.loss, self.logits, self.target = loss, logits, target
        self.overwrites = overwrites
        self.leaf = (logits.clone() if overwrites else logits.detach()).requires_grad_()
        self.value: Any = None

    def turn(self, mode: str) -> Turn:
        """Return the turn of ``forward``, ``backward`` or ``both``."""
        return Turn(partial(self.ready, mode), getattr(self, mode))

    def warm_up(self, modes: Iterable[str]) -> None:
        """Compile and tune what the modes need."""
        for mode in modes:
            for _ in range(WARM_UP):
                self.ready(mode)
                getattr(self, mode)()

    def ready(self, mode: str) -> None:
        """Prepare a call; this is not timed."""
        if self.overwrites:
            with torch.no_grad():
                self.leaf.copy_(self.logits)
        self.value = self.loss(self.leaf, self.target) if mode == "backward" else None

    def forward(self) -> Tensor:
        """Compute the loss alone."""
        with torch.no_grad():
            return self.loss(self.leaf.detach(), self.target)

    def backward(self) -> Tensor:
        """Compute the gradient of a loss that :meth:`ready` has computed."""
        value, self.value = self.value, None
        return torch.autograd.grad(value, self.leaf)[0]

    def both(self) -> tuple[Tensor, Tensor]:
        """Compute loss and gradient, as within a model: nothing is accumulated or cloned."""
        value = self.loss(self.leaf, self.target)
        return value.detach(), torch.autograd.grad(value, self.leaf)[0]


# ---- inputs and the truth ------------------------------------------------------------------------


def make_inputs(cell: Cell, device: str) -> tuple[Tensor, Tensor]:
    """Draw normal logits and uniform labels on the device."""
    random = torch.Generator(device).manual_seed(cell.rows + cell.classes)
    dtype = getattr(torch, cell.dtype)
    shape = cell.rows, cell.classes
    logits = torch.randn(shape, generator=random, device=device, dtype=dtype)
    return logits, torch.randint(cell.classes, shape[:1], generator=random, device=device)


class Truth(NamedTuple):
    """Loss and gradient in float64.

    Attributes:
        loss: the mean over all rows.
        rows: numbers of some rows, the first and the last, where offsets of 32 bits overflow.
        gradient: of the loss, in these rows.
    """

    loss: Tensor
    rows: Tensor
    gradient: Tensor


def truth_of(logits: Tensor, target: Tensor) -> Truth:
    """Compute the exact loss and gradient of logits of any size, a part of the rows at a time."""
    part, rows = max(1, ERROR_ELEMENTS // logits.shape[1]), len(logits)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for z, y in zip(logits.split(part), target.split(part), strict=True):
        total += truth(z, y)[0] * len(z)
    half = max(1, part // 2)
    numbers = torch.arange(rows, device=logits.device)
    chosen = torch.cat([numbers[:half], numbers[-half:]]).unique()
    gradient = truth(logits[chosen], target[chosen])[1] * (len(chosen) / rows)
    return Truth(total / rows, chosen, gradient)


def errors(loss: Tensor, gradient: Tensor, exact: Truth) -> dict[str, float]:
    """Measure the relative error of the loss, and of the gradient, in units of the last place."""
    info, size = torch.finfo(gradient.dtype), exact.gradient.abs()
    ulp = info.eps * size.clamp(min=info.tiny).log2().floor().exp2()
    wrong = (gradient[exact.rows].double() - exact.gradient).abs()
    off = (loss.double() - exact.loss).abs() / exact.loss
    return {"loss": off.item(), "gradient_ulps": (wrong / ulp).max().item()}
