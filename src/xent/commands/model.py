"""A small language model: embedding, GRU, and a head over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import LinearLogits, cross_entropy


def _fused(logits: LinearLogits, target: Tensor, **options: Any) -> Any:
    # The gradient may take the place of the logits, because nothing reads the logits again.
    return cross_entropy(logits.materialize(), target, inplace_backward=True, **options)


def _plain(logits: LinearLogits, target: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(logits.materialize(), target, **options)


# From LinearLogits to the loss: in chunks of rows, or with all logits in memory.
HEADS: dict[str, Callable[..., Any]] = {
    "lean": cross_entropy,
    "xent": _fused,
    "torch": _plain,
}


class LanguageModel(nn.Module):
    """Predicts the next token of each lane of text.

    Args:
        counts: how often each class occurs in training. The bias of the head starts at the log of
            these frequencies, so that training need not spend its first minutes on them.
        dim: width of the embedding, which is also the weight of the head; the GRU has twice that.
    """

    def __init__(self, counts: Tensor, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(counts), dim)
        self.gru = nn.GRU(dim, 2 * dim)
        self.projection = nn.Linear(2 * dim, dim)
        self.bias = nn.Parameter((counts + 1).double().div(counts.sum()).log().float())
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the next tokens, ``(length, batch, dim)``, and the new state.

        Args:
            tokens: classes, ``(length, batch)``.
            state: the state of each lane, of :meth:`blank` or of the call before.
        """
        states, state = self.gru(self.embedding(tokens), state)
        return self.projection(states), state.detach()

    def logits(self, features: Tensor) -> LinearLogits:
        """The logits that belong to features, ``(..., classes)``."""
        return LinearLogits(features, self.embedding.weight, self.bias)

    def blank(self, batch: int) -> Tensor:
        """The state before any text."""
        return torch.zeros(1, batch, self.gru.hidden_size)


def make_lanes(stream: Tensor, batch: int) -> Tensor:
    """Cut a stream into ``batch`` pieces of equal length that are read side by side.

    Returns:
        ``(length, batch)``: a column is a stretch of text.
    """
    length = len(stream) // batch
    return stream[: length * batch].view(batch, length).t().contiguous()
