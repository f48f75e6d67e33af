"""Log-probabilities behind a linear head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .logits import LinearLogits
from .stand_in import Lean


class LinearLogProbs(Lean):
    """Result of :func:`torch.log_softmax` of :class:`xent.LinearLogits` along the classes.

    Rows may be sliced and reshaped. The sign, ``gather``, ``sum`` and ``mean`` along the classes
    and :func:`torch.nn.functional.nll_loss` are lean.

    Args:
        logits: the logits.
        sign: 1, or -1 for the negative log-probabilities.
    """

    lean: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}

    def __init__(self, logits: LinearLogits, sign: int = 1) -> None:
        self.logits, self.sign = logits, sign

    @property
    def shape(self) -> torch.Size:
        """The shape, ``(..., V)``."""
        return self.logits.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return self.logits.dtype

    @property
    def hidden(self) -> Tensor:
        """The features."""
        return self.logits.hidden

    @property
    def requires_grad(self) -> bool:
        """True if the logits require a gradient."""
        return self.logits.requires_grad

    def reshape(self, *shape: Any) -> LinearLogProbs:
        """Reshape the rows; the last axis, of the classes, stays."""
        return LinearLogProbs(self.logits.reshape(*shape), self.sign)

    view = reshape

    def to(self, *arguments: Any, **options: Any) -> LinearLogProbs:
        """Return log-probabilities of another floating-point dtype."""
        logits = self.logits.to(*arguments, **options)
        if isinstance(logits, Tensor):
            raise TypeError("log-probabilities are no integers; cast .materialize(), if you must")
        return LinearLogProbs(logits, self.sign)

    def detach(self) -> LinearLogProbs:
        """Return these log-probabilities as constants."""
        return LinearLogProbs(self.logits.detach(), self.sign)

    def __getitem__(self, index: Any) -> LinearLogProbs | Tensor:
        """Return the rows that an index picks. An index into the classes needs all numbers."""
        if self.logits.spelled_out(index) is not None:
            return self.materialize_for("indexing classes")[index]
        return LinearLogProbs(self.logits.rows(index), self.sign)

    def materialize(self) -> Tensor:
        """The log-probabilities as a tensor, with their gradient."""
        return self.sign * torch.log_softmax(self.logits.materialize(), -1)

    def __neg__(self) -> LinearLogProbs:
        """Record the other sign."""
        return LinearLogProbs(self.logits, -self.sign)
