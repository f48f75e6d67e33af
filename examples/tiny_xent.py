"""The idea of this library in less than 200 lines of plain PyTorch: read me first.

    python examples/tiny_xent.py [--small]

Takes a few seconds and needs nothing but PyTorch. Read it from top to bottom: seven sections, one
idea after the other. The library does the same faster and with options; each heading says where.
At the end the file checks itself against formulas in float64 and against the library.
With ``--small`` it is the same: seconds are small.

Letters: N rows, V classes, D features. ``z`` (N, V) are logits, one row for each example, and
``y`` (N,) are labels, the number of the right class of each row. All logarithms are natural.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from _experiment import hold, options

# ---- 1. The problem --------------------------------------------------------------------------


def textbook(z: Tensor, y: Tensor) -> Tensor:
    """Compute the cross-entropy of each row, (N,), as textbooks do.

    The model gives class j the probability ``p_j = exp(z_j) / sum_k exp(z_k)``. Cross-entropy is
    ``-log p_y = logsumexp(z) - z_y``. If the model is sure of the right class, the two terms are
    nearly equal. Rounding then hides their small difference: in float32 the result is 0 as soon as
    ``z_y`` is 17 above the other logits.
    """
    return z.logsumexp(1) - z.gather(1, y[:, None]).squeeze(1)


# ---- 2. Two numbers for each row (src/xent/row_statistics.py) ----------------------------------


class Statistics(NamedTuple):
    """Two numbers for each row, which are all that a loss needs to know."""

    target: Tensor  # (N,) z_y, the logit of the right class
    rest: Tensor  # (N,) logsumexp of the logits of all other classes

    @property
    def log_odds(self) -> Tensor:
        """Return ``log(p_y / (1 - p_y))``, (N,): how sure the model is of the right class.

        ``p_y`` is proportional to ``exp(target)`` and ``1 - p_y`` to ``exp(rest)``. For a sure
        row ``log_odds`` is a large number, and a large number is not hurt by rounding.
        """
        return self.target - self.rest


def statistics(z: Tensor, y: Tensor) -> Statistics:
    """Compute the statistics of each row; ``y`` may also point to a class that is not in ``z``.

    The statistics are float64. That costs little, because a row has V logits but 2 statistics.
    """
    z = z.double()
    is_target = torch.arange(z.shape[1]) == y[:, None]  # (N, V), at most one True per row
    target = z.masked_fill(~is_target, -torch.inf).amax(1)
    rest = z.masked_fill(is_target, -torch.inf).logsumexp(1)
    return Statistics(target, rest)


# ---- 3. Parts of a row merge (RowStatistics.merge in src/xent/row_statistics.py) ---------------


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Combine the statistics of two sets of classes into those of their union.

    The right class is in one of the two sets; in the other set ``target`` is ``-inf``. Order and
    grouping do not matter. So the parts may be the tiles of a kernel that reads a row only once,
    chunks of a large vocabulary, or shards on several machines.
    """
    return Statistics(torch.maximum(a.target, b.target), torch.logaddexp(a.rest, b.rest))


# ---- 4. A loss is a line of code on the log-odds (src/xent/losses, src/xent/frames) ------------

Loss = Callable[[Tensor], Tensor]  # log-odds (N,) -> loss of each row (N,)


def nll(log_odds: Tensor) -> Tensor:
    """Compute cross-entropy, ``-log p_y``, since ``p_y = sigmoid(log_odds)``."""
    return -F.logsigmoid(log_odds)


def focal(log_odds: Tensor) -> Tensor:
    """Compute the focal loss, ``(1 - p_y)**2 * -log p_y``, which gives easy rows less weight."""
    miss = torch.sigmoid(-log_odds)  # 1 - p_y, without the subtraction
    return miss**2 * nll(log_odds)


# ---- 5. One gradient for every loss (src/xent/engines) -----------------------------------------


def value_and_slope(loss: Loss, log_odds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each row and its derivative with respect to the log-odds, both (N,).

    Autograd finds the derivative. It sees N numbers here and not N times V, so it is quick.
    """
    d = log_odds.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(d)
        (slope,) = torch.autograd.grad(value.sum(), d)
    return value.detach(), slope


def gradient(z: Tensor, y: Tensor, rest: Tensor, slope: Tensor) -> Tensor:
    """Apply the chain rule: turn ``slope`` (N,) into the gradient of the logits, (N, V).

    The derivative of ``log_odds = z_y - rest`` is 1 for ``z_y``. For another logit ``z_j`` it is
    ``-exp(z_j - rest)``, where the exponential is the share of class j among the other classes.
    Neither depends on the loss, so one function serves every loss.
    """
    is_target = torch.arange(z.shape[1]) == y[:, None]  # (N, V)
    rest = rest.clamp(min=torch.finfo(rest.dtype).min)  # -inf - -inf, of masked classes, is NaN
    share = torch.exp(z - rest[:, None])  # (N, V), float64; sums to 1 over the other classes
    return torch.where(is_target, slope[:, None], -slope[:, None] * share).to(z.dtype)


# ---- 6. The loss of logits ---------------------------------------------------------------------

IGNORED = -100  # the label of rows that do not count


class RowLoss(torch.autograd.Function):
    """Any loss of each row; keeps two numbers per row for the backward pass, beside the logits."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor, loss: Loss) -> Tensor:
        """Return the loss of each row, (N,)."""
        s = statistics(z, y)
        value, slope = value_and_slope(loss, s.log_odds)
        ctx.save_for_backward(z, y, s.rest, slope)
        return value.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits, computed from the logits and not from kept softmax."""
        z, y, rest, slope = ctx.saved_tensors
        return gradient(z, y, rest, upstream * slope), None, None


def mean_loss(z: Tensor, y: Tensor, loss: Loss = nll) -> Tensor:
    """Return the mean loss of the rows that are not ignored."""
    kept = y != IGNORED
    return RowLoss.apply(z[kept], y[kept], loss).mean()


# ---- 7. Behind a linear head, without the logits (src/xent/heads) ------------------------------


class HeadLoss(torch.autograd.Function):
    """The mean loss of the logits ``hidden @ weight.T``, computed a few rows at a time.

    The logits of a language model, (N, V), are the largest tensor of its training step. Here they
    never exist as a whole: the forward pass computes the logits of a chunk of rows, adds up the
    gradients of ``hidden`` and ``weight``, and drops the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, y: Tensor, loss: Loss, rows: int
    ) -> Tensor:
        """Return the mean loss of ``hidden`` (N, D), ``weight`` (V, D) and labels (N,)."""
        total = torch.zeros((), dtype=torch.float64)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for first in range(0, len(y), rows):
            chunk = slice(first, first + rows)
            z = hidden[chunk] @ weight.T  # (rows, V), the only logits in memory
            s = statistics(z, y[chunk])
            value, slope = value_and_slope(loss, s.log_odds)
            d_z = gradient(z, y[chunk], s.rest, slope / len(y))  # (rows, V)
            total += value.sum()
            d_hidden[chunk] = d_z @ weight  # (rows, D)
            d_weight += d_z.T @ hidden[chunk]  # (V, D)
        ctx.save_for_backward(d_hidden, d_weight)
        return (total / len(y)).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return the gradients of the forward pass, times the slope of what follows the loss."""
        d_hidden, d_weight = ctx.saved_tensors
        return upstream * d_hidden, upstream * d_weight, None, None, None


def mean_loss_behind_head(
    hidden: Tensor, weight: Tensor, y: Tensor, loss: Loss = nll, rows: int = 256
) -> Tensor:
    """Return ``mean_loss(hidden @ weight.T, y, loss)`` without the logits as one tensor."""
    kept = y != IGNORED
    return HeadLoss.apply(hidden[kept], weight, y[kept], loss, rows)


# ---- What it shows -----------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Watch all operations of PyTorch, and remember the largest tensor that one returned."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and look at its result."""
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.bytes = max([self.bytes, *(x.nbytes for x in tensors)])
        return result


def show(title: str, numbers: dict[str, str]) -> None:
    """Print a small table."""
    print(title)
    for name, number in numbers.items():
        print(f"    {name:42}{number:>15}")
    print()


def confident_row() -> dict[str, bool]:
    """Compare loss and gradient of a row that is sure of its class with their formulas."""
    z, y = torch.tensor([[10.0, -10.0, -10.0]], requires_grad=True), torch.tensor([0])
    truth = torch.log1p(2 * torch.exp(torch.tensor(-20.0, dtype=torch.float64))).item()
    plain, loss = textbook(z, y), mean_loss(z, y)
    (d_z,) = torch.autograd.grad(loss, z)
    numbers = {
        "lse - z_y": f"{plain.item():.6e}",
        "from the log-odds": f"{loss.item():.6e}",
        "the formula in float64": f"{truth:.6e}",
        "gradient of z_y, from the log-odds": f"{d_z[0, 0].item():.6e}",
    }
    show("Loss of a row that is sure of its class, logits 10, -10, -10 in float32", numbers)
    right = abs(loss.item() / truth - 1) < 1e-7
    return {"lse - z_y is 0, the loss from the log-odds is right": plain.item() == 0 and right}


def two_parts() -> dict[str, bool]:
    """Compare the merged statistics of two parts of a row with those of the whole row."""
    z, y = torch.randn(1, 12, dtype=torch.float64), torch.tensor([2])
    parts = statistics(z[:, :7], y), statistics(z[:, 7:], y - 7)
    rest = [s.rest.item() for s in (*parts, merge(*parts), statistics(z, y))]
    names = ("classes 0 to 6", "classes 7 to 11", "both, merged", "all classes at once")
    show(
        "The rest of a row of 12 classes", {n: f"{r:.9f}" for n, r in zip(names, rest, strict=True)}
    )
    return {"two parts merge into the whole": abs(rest[2] - rest[3]) < 1e-14}


def slopes() -> dict[str, bool]:
    """Compare gradients with finite differences along a random direction."""
    z, y = torch.randn(5, 12, dtype=torch.float64, requires_grad=True), torch.randint(12, (5,))
    way, step, numbers, apart = torch.randn_like(z), 1e-5, {}, []
    for loss in (nll, focal):
        (d_z,) = torch.autograd.grad(mean_loss(z, y, loss), z)
        ahead, behind = (mean_loss(z + h * way, y, loss).item() for h in (step, -step))
        pair = (d_z * way).sum().item(), (ahead - behind) / (2 * step)
        numbers[f"{loss.__name__}, gradient"], numbers[f"{loss.__name__}, finite difference"] = (
            f"{number:.9f}" for number in pair
        )
        apart.append(abs(pair[0] - pair[1]))
    show("Slope of two losses along a random direction", numbers)
    return {"one gradient serves both losses, to 1e-9 of finite differences": max(apart) < 1e-9}


def head() -> dict[str, bool]:
    """Compare a head in chunks with a head whose logits exist as a tensor."""
    rows, classes, features = 1024, 8000, 64
    hidden = torch.randn(rows, features, requires_grad=True)
    weight = (torch.randn(classes, features) / 8).requires_grad_()
    y = torch.randint(classes, (rows,))
    with LargestTensor() as whole:
        loss = F.cross_entropy(hidden @ weight.T, y)
        expected = (loss, *torch.autograd.grad(loss, (hidden, weight)))
    with LargestTensor() as chunk:
        loss = mean_loss_behind_head(hidden, weight, y, rows=32)
        found = (loss, *torch.autograd.grad(loss, (hidden, weight)))
    apart = max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True))
    numbers = {
        "largest tensor, all logits, MiB": f"{whole.bytes / 2**20:.2f}",
        "largest tensor, 32 rows at a time, MiB": f"{chunk.bytes / 2**20:.2f}",
        "difference of loss and gradients": f"{apart:.0e}",
    }
    show(f"A head of {classes} classes over {rows} rows", numbers)
    return {
        "in chunks loss and gradients are the same, to 1e-6": apart < 1e-6,
        "no tensor of the chunks is a tenth as large as all logits": chunk.bytes < whole.bytes / 10,
    }


def library() -> dict[str, bool]:
    """Compare two losses with the library."""
    import xent

    z, y = torch.randn(50, 30, dtype=torch.float64), torch.randint(30, (50,))
    y[::7] = IGNORED
    pairs = {
        "cross_entropy": (mean_loss(z, y), xent.cross_entropy(z, y)),
        "focal_loss": (mean_loss(z, y, focal), xent.losses.focal_loss(z, y, gamma=2.0)),
    }
    numbers = {}
    for name, (tiny, xents) in pairs.items():
        numbers[f"{name}, here"], numbers[f"{name}, xent"] = f"{tiny:.12f}", f"{xents:.12f}"
    show("The same losses in the library", numbers)
    same = all(abs(a - b) < 1e-13 for a, b in pairs.values())
    return {"the library computes the same, to 1e-13": same}


def main() -> None:
    """Show each idea and check it."""
    options(__file__, __doc__, picture=False)
    torch.manual_seed(0)
    hold({**confident_row(), **two_parts(), **slopes(), **head(), **library()})


if __name__ == "__main__":
    main()
