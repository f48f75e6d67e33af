"""The contestants of ``xent bench``, their inputs, and the exact losses and gradients."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xent import cross_entropy

MODES = ("both", "forward")  # forward+backward, and forward alone without a graph
CONFIDENCE = 20.0  # nats between the target and all the rest in the confident batch
ERROR_ELEMENTS = 1 << 23  # most logits for errors, since their float64 copies are large


class Cell(NamedTuple):
    """One problem: logits of ``(rows, classes)`` in a dtype, named as in torch."""

    rows: int
    classes: int
    dtype: str

    @property
    def logit_bytes(self) -> int:
        """Return the size of the logits."""
        return self.rows * self.classes * getattr(torch, self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.rows} x {self.classes} {self.dtype}"


# -- The contestants -------------------------------------------------------------------------------


class Task(NamedTuple):
    """Calls to time and to check, of one contestant with its inputs in place.

    Attributes:
        both: computes loss and gradient, and frees both.
        forward: computes the loss; it is called under ``torch.no_grad()``.
        evaluate: returns loss and gradient.
    """

    both: Callable[[], object]
    forward: Callable[[], object] | None = None
    evaluate: Callable[[], tuple[Tensor, Tensor]] | None = None


class Contestant(NamedTuple):
    """A way to compute the loss.

    Attributes:
        build: makes the task for logits and target.
        needs: packages that must be installed.
        what: the call in words.
    """

    build: Callable[[Tensor, Tensor], Task]
    needs: tuple[str, ...]
    what: str

    def unavailable(self) -> str | None:
        """Return why the contestant cannot take part here, or None."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None


def _torch_task(loss: Callable[[Tensor, Tensor], Any], logits: Tensor, target: Tensor) -> Task:
    leaf = logits.requires_grad_()

    def both() -> None:
        loss(leaf, target).backward()
        leaf.grad = None  # so that every call pays for a fresh gradient, and for freeing it

    def evaluate() -> tuple[Tensor, Tensor]:
        value = loss(leaf, target)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    return Task(both, lambda: loss(leaf, target), evaluate)


def _xent(logits: Tensor, target: Tensor) -> Task:
    return _torch_task(cross_entropy, logits, target)


def _eager(logits: Tensor, target: Tensor) -> Task:
    return _torch_task(F.cross_entropy, logits, target)


def _call_of_torch(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target)


def _compiled(logits: Tensor, target: Tensor) -> Task:
    return _torch_task(torch.compile(_call_of_torch, dynamic=False), logits, target)


def _optax(logits: Tensor, target: Tensor) -> Task:
    import jax  # pyright: ignore
    import jax.numpy as jnp  # pyright: ignore
    import numpy as np
    import optax  # pyright: ignore

    def mean_loss(x: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    dtype = str(logits.dtype).removeprefix("torch.")
    x = jnp.asarray(logits.float().numpy()).astype(dtype)  # NumPy has no bfloat16; this is exact
    y = jnp.asarray(target.int().numpy())
    forward, both = jax.jit(mean_loss), jax.jit(jax.value_and_grad(mean_loss))

    def evaluate() -> tuple[Tensor, Tensor]:
        value, gradient = (torch.from_numpy(np.array(a, dtype=np.float32)) for a in both(x, y))
        return value, gradient

    return Task(
        lambda: jax.block_until_ready(both(x, y)),
        lambda: jax.block_until_ready(forward(x, y)),
        evaluate,
    )


def _copy(logits: Tensor, target: Tensor) -> Task:
    out = torch.empty_like(logits)
    return Task(lambda: out.copy_(logits))


CONTESTANTS = {
    "xent": Contestant(_xent, (), "xent.cross_entropy"),
    "torch": Contestant(_eager, (), "torch.nn.functional.cross_entropy"),
    "compile": Contestant(_compiled, (), "torch.compile of it, inductor"),
    "optax": Contestant(
        _optax, ("jax", "optax"), "jitted optax.softmax_cross_entropy_with_integer_labels().mean()"
    ),
    "copy": Contestant(_copy, (), "a plain copy of the logits into existing memory"),
}


# -- Inputs and exact results ----------------------------------------------------------------------


def make_inputs(cell: Cell, *, confident: bool = False) -> tuple[Tensor, Tensor]:
    """Draw normal logits and uniform targets; ``confident`` puts each target above the rest."""
    random = torch.Generator().manual_seed(cell.rows + cell.classes)
    logits = torch.randn(cell.rows, cell.classes, generator=random)
    target = torch.randint(cell.classes, (cell.rows,), generator=random)
    if confident:
        column = target[:, None]
        rest = logits.scatter(1, column, -torch.inf).logsumexp(1, keepdim=True)
        logits.scatter_(1, column, rest + CONFIDENCE)
    return logits.to(getattr(torch, cell.dtype)), target


def truth(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean loss and gradient in float64, without subtracting ``lse - z_y`` or ``p - 1``."""
    z, column = logits.double(), target[:, None]
    odds = torch.exp(z - z.gather(1, column)).scatter_(1, column, 0.0)  # p_j / p_y
    rest = odds.sum(1, keepdim=True)  # (1 - p_y) / p_y
    gradient = odds.scatter_(1, column, -rest).div_(1 + rest).div_(len(z))
    return rest.log1p().mean(), gradient


def errors(
    evaluate: Callable[[], tuple[Tensor, Tensor]], logits: Tensor, target: Tensor
) -> dict[str, float]:
    """Measure errors of loss and gradient against :func:`truth`.

    Returns:
        ``loss_ulps`` in units in the last place of the logits' dtype, ``gradient`` relative to the
        largest true entry, and ``target_entry``, the worst relative error at a target.
    """
    loss, gradient = evaluate()
    true_loss, true_gradient = truth(logits.detach(), target)
    ulp = torch.finfo(logits.dtype).eps * true_loss.log2().floor().exp2()
    column = target[:, None]
    true_entry = true_gradient.gather(1, column)
    largest = true_gradient.abs().max()
    wrong = true_gradient.neg_().add_(gradient).abs_()
    return {
        "loss_ulps": ((loss.double() - true_loss).abs() / ulp).item(),
        "gradient": (wrong.max() / largest).item(),
        "target_entry": (wrong.gather(1, column) / true_entry.abs()).max().item(),
    }
