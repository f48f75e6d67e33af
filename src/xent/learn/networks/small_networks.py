"""Many small networks trained side by side, in batched matrix products.

For one network of this size nearly all of the time is overhead, so dozens cost little more. The
networks may differ in their seeds and in the rows they see. The loss gets the rows of all networks
at once, so it may differ between networks, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice

import torch
from torch import Tensor

from ..._check import is_tensor

__all__ = ["SmallNetworks"]


class SmallNetworks:
    """Networks with one hidden layer of rectified units, one for each seed.

    Networks of equal seeds start alike and see the same rows in the same order.

    Args:
        inputs: number of features.
        classes: number of classes.
        seeds: one for each network.
        hidden: number of hidden units.

    Example:
        >>> import torch, xent
        >>> from xent.learn.networks.small_networks import SmallNetworks
        >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] * x[:, 1] > 0).long()
        >>> networks = SmallNetworks(2, 2, seeds=range(3))
        >>> networks.train(x, y, xent.cross_entropy, steps=200)
        >>> (networks.accuracy(x, y) > 0.9).all().item()
        True
    """

    def __init__(
        self, inputs: int, classes: int, seeds: Sequence[int], *, hidden: int = 64
    ) -> None:
        self.seeds = list(seeds)
        self.distinct = list(dict.fromkeys(self.seeds))
        self.of_model = torch.tensor(
            [self.distinct.index(seed) for seed in self.seeds], dtype=torch.int64, device="cpu"
        )
        # One generator per seed: a network draws the same numbers whatever networks are beside it.
        self.generators = [torch.Generator().manual_seed(seed) for seed in self.distinct]
        first = [
            torch.randn(inputs, hidden, generator=g, dtype=torch.float32, device="cpu")
            for g in self.generators
        ]
        second = [
            torch.randn(hidden, classes, generator=g, dtype=torch.float32, device="cpu")
            for g in self.generators
        ]
        models = len(self.seeds)
        self.parameters = [
            torch.stack(first)[self.of_model] * (2 / inputs) ** 0.5,
            torch.zeros(models, 1, hidden, dtype=torch.float32, device="cpu"),
            torch.stack(second)[self.of_model] * (2 / hidden) ** 0.5,
            torch.zeros(models, 1, classes, dtype=torch.float32, device="cpu"),
        ]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def logits(self, x: Tensor) -> Tensor:
        """Logits of all networks, ``(models, rows, classes)``.

        Args:
            x: features, ``(rows, inputs)`` for all networks or ``(models, rows, inputs)``.
        """
        w1, b1, w2, b2 = self.parameters
        if x.ndim == 2:
            x = x.expand(len(self.seeds), *x.shape)  # (models, rows, inputs)
        return torch.baddbmm(b2, torch.baddbmm(b1, x, w1).relu(), w2)

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor) -> Tensor:
        """Share of the rows each network gets right, ``(models,)``.

        Args:
            x: features, ``(rows, inputs)``, or ``(models, rows, inputs)``.
            y: classes, ``(rows,)``, or ``(models, rows)``.
        """
        return (self.logits(x).argmax(-1) == y).float().mean(1)

    def train(
        self,
        x: Tensor,
        y: Tensor,
        loss: Callable[..., Tensor],
        *,
        steps: int,
        rows: Tensor | None = None,
        batch: int = 64,
        lr: float = 3e-3,
        after_step: Callable[[], object] | None = None,
    ) -> None:
        """Train all networks with Adam.

        Args:
            x: features, ``(rows, inputs)``.
            y: classes, ``(rows,)``.
            loss: called as ``loss(logits, target, reduction="sum")`` with the rows of all networks
                one after the other, ``batch`` of each.
            steps: how many batches each network sees.
            rows: which rows each network learns from, ``(models, n)``; by default all.
            batch: rows per step and network, drawn with replacement.
            lr: step size of Adam.
            after_step: called after each step, for a progress bar.

        Raises:
            ValueError: if ``x``, ``y`` and ``rows`` do not fit together.
        """
        for _ in islice(self.training(x, y, loss, rows=rows, batch=batch, lr=lr), steps):
            if after_step is not None:
                after_step()

    def training(
        self,
        x: Tensor,
        y: Tensor,
        loss: Callable[..., Tensor],
        *,
        rows: Tensor | None = None,
        batch: int = 64,
        lr: float = 3e-3,
    ) -> Iterator[int]:
        """Train without end: each ``next`` takes a step and returns the number of steps so far.

        Args:
            x: features; all arguments are as for :meth:`train`.
            y: classes.
            loss: the loss.
            rows: which rows each network learns from.
            batch: rows per step and network.
            lr: step size of Adam.

        Raises:
            ValueError: at the first step, if ``x``, ``y`` and ``rows`` do not fit together.
        """
        is_tensor("x", x)
        is_tensor("y", y)
        if x.ndim != 2 or y.shape != x.shape[:1]:
            raise ValueError(
                f"`x` must be (rows, features) and `y` (rows,); got {tuple(x.shape)} and "
                f"{tuple(y.shape)}"
            )
        models = len(self.seeds)
        if rows is None:
            rows = torch.arange(len(x), device="cpu").expand(models, -1)
        if rows.ndim != 2 or len(rows) != models:
            raise ValueError(
                f"`rows` must hold a line of row numbers for each of the {models} networks; got "
                f"shape {tuple(rows.shape)}"
            )
        optimizer = torch.optim.Adam(self.parameters, lr=lr, fused=True)  # three times as fast
        for step in count(1):
            drawn = [
                torch.randint(rows.shape[1], (batch,), generator=g, device="cpu")
                for g in self.generators
            ]
            pick = rows.gather(1, torch.stack(drawn)[self.of_model])  # (models, batch)
            z = self.logits(x[pick])  # (models, batch, classes)
            optimizer.zero_grad()
            (loss(z.flatten(0, 1), y[pick].flatten(), reduction="sum") / batch).backward()
            optimizer.step()
            yield step
