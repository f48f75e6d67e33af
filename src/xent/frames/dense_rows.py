"""Rows of logits for losses that read all of them, and the work on some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engines.modes import deferred

CHUNK = 2**17  # numbers that a dense loss works on at a time: 1 MB in float64 fits into the cache


class DenseRows(NamedTuple):
    """Rows for a dense loss, in float64 where the device has it, with one of two targets.

    Attributes:
        logits: ``(N..., C)``, after scale, softcap and bias; ``-inf`` masks a class.
        soft: target probabilities of each class, ``(N..., C)``; None for class indices.
        label: the class of each row, ``(N...)``; None for probabilities.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[40.0, 0.0, 0.0]], dtype=torch.float64)
        >>> rows = xent.DenseRows(logits, None, torch.tensor([0]))
        >>> rows.target
        tensor([[1., 0., 0.]], dtype=torch.float64)
        >>> rows.expected(rows.logits)
        tensor([40.], dtype=torch.float64)
        >>> f"{-rows.log_prob(rows.logits).item():.4e}"
        '8.4967e-18'
    """

    logits: Tensor
    soft: Tensor | None
    label: Tensor | None

    @property
    def target(self) -> Tensor:
        """The target distribution of each row, one-hot for a class."""
        if self.label is None:
            assert self.soft is not None
            return self.soft
        return self.is_label.to(self.logits.dtype)

    @property
    def is_label(self) -> Tensor:
        """True for the class of each row, ``(N..., C)``; for class indices only."""
        if self.label is None:
            raise ValueError("is_label: soft targets have no single class")
        classes = torch.arange(self.logits.shape[-1], device=self.logits.device)
        return classes == self.label.unsqueeze(-1)

    def expected(self, values: Tensor) -> Tensor:
        """Return the mean under the target of one value per class, ``(N..., C)`` or ``(C,)``."""
        if self.label is None:
            return (self.target * values).sum(-1)
        values = values.expand_as(self.logits)
        return values.gather(-1, self.label.unsqueeze(-1))[..., 0]

    def log_odds(self, logits: Tensor) -> Tensor:
        """Return the log-odds of the class of each row by these logits, for class indices only.

        Their :func:`torch.nn.functional.logsigmoid` is the log-probability with all its digits,
        where ``logits - lse`` has none of a row that is sure. Infinite, without a gradient, where
        there is no other class.
        """
        logits = torch.where(logits == torch.inf, torch.nan, logits)  # an overflow is no certainty
        lowest = torch.finfo(logits.dtype).min  # of nothing but -inf the derivative is NaN
        rest = torch.logsumexp(torch.where(self.is_label, lowest, logits), -1)
        target = self.expected(logits)
        return torch.where(rest == lowest, target.detach() + torch.inf, target - rest)

    def log_prob(self, logits: Tensor) -> Tensor:
        """Return the log-probability of the class of each row by these logits, all its digits."""
        return torch.nn.functional.logsigmoid(self.log_odds(logits))


def by_rows(function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """The values of a function of rows, some rows at a time; backward computes each part again.

    So the float64 tensors inside the function never exist for all rows at once.

    Args:
        function: from tensors (n, ...) to one value per row, (n,).
        tensors: the first of shape (N..., C), the others of this shape or (N...), or None.
    """
    logits = tensors[0]
    assert logits is not None
    rows, classes = logits.shape[:-1], logits.shape[-1]
    height = max(1, CHUNK // max(1, classes))
    if deferred() or rows.numel() <= height:
        return function(*tensors)
    count = -(-rows.numel() // height)
    parts: list[list[Any]] = [
        [None] * count if x is None else list(x.reshape(-1, *x.shape[len(rows) :]).split(height))  # pyright: ignore
        for x in tensors
    ]
    values = [computed_twice(function, *part) for part in zip(*parts, strict=True)]
    return torch.cat(values).view(rows)


def computed_twice(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """The result of a function that backward computes again, so that nothing inside is kept."""
    from torch.utils import checkpoint

    again: Callable[..., Tensor] = checkpoint.checkpoint  # pyright: ignore
    return again(function, *args, use_reentrant=False, preserve_rng_state=False)
