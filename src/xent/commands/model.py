"""A small language model: embedding, GRU, and a head over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import LinearLogits, cross_entropy
from ..parallel import shard
from .ranks import Split

OF_CLASSES = ("embedding.weight", "bias")  # parameters with a row for each class


def _lean(logits: Any, target: Tensor, divisor: float) -> Any:
    return cross_entropy(logits, target, normalizer=divisor)


def _fused(logits: LinearLogits, target: Tensor, divisor: float) -> Any:
    # The gradient may take the place of the logits, because nothing reads the logits again.
    return cross_entropy(logits.materialize(), target, normalizer=divisor, inplace_backward=True)


def _plain(logits: LinearLogits, target: Tensor, divisor: float) -> Tensor:
    return F.cross_entropy(logits.materialize(), target, reduction="sum") / divisor


# From logits, targets and a divisor to the loss: in chunks of rows, or with all logits in memory.
# Only the first takes logits whose classes are split over ranks.
HEADS: dict[str, Callable[[Any, Tensor, float], Any]] = {
    "lean": _lean,
    "xent": _fused,
    "torch": _plain,
}


class LanguageModel(nn.Module):
    """Predicts the next token of each lane of text.

    Args:
        counts: how often each class occurs in training. The bias of the head starts at the log of
            these frequencies, so that training need not spend its first minutes on them.
        dim: width of the embedding, which is also the weight of the head; the GRU has twice that.
        split: which classes the embedding of this rank has; all by default.
    """

    def __init__(self, counts: Tensor, dim: int, split: Split | None = None) -> None:
        super().__init__()
        self.split, self.classes = split or Split(), len(counts)
        self.embedding = nn.Embedding(len(counts), dim)
        self.gru = nn.GRU(dim, 2 * dim)
        self.projection = nn.Linear(2 * dim, dim)
        self.bias = nn.Parameter((counts + 1).double().div(counts.sum()).log().float())
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        if self.split.parts > 1:  # cut after the draws, which are those of one process
            self.embedding.weight = self._cut(self.embedding.weight)
            self.bias = self._cut(self.bias)

    def _cut(self, whole: Tensor) -> nn.Parameter:
        return nn.Parameter(self.split.own(whole.detach(), self.classes).clone())

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the next tokens, ``(length, batch, dim)``, and the new state.

        Args:
            tokens: classes, ``(length, batch)``.
            state: the state of each lane, of :meth:`blank` or of the call before.
        """
        states, state = self.gru(self._embedded(tokens), state)
        return self.projection(states), state.detach()

    def logits(self, features: Tensor) -> Any:
        """The logits that belong to features, ``(..., classes)``; all ranks give them together."""
        own = LinearLogits(features, self.embedding.weight, self.bias)
        if self.split.parts == 1:
            return own
        start, _ = self.split.ends(self.classes)
        return shard(own, self.split.group, start=start, classes=self.classes)

    def blank(self, batch: int) -> Tensor:
        """The state before any text."""
        return torch.zeros(1, batch, self.gru.hidden_size)

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Return the vectors of tokens; each rank adds those of its classes."""
        if self.split.parts == 1:
            return self.embedding(tokens)
        start, stop = self.split.ends(self.classes)
        here = (tokens >= start) & (tokens < stop)
        own = self.embedding((tokens - start) * here) * here.unsqueeze(-1)
        all_of_them = own.detach().clone()
        self.split.add_up(all_of_them)
        return own + (all_of_them - own.detach())  # the vectors of other ranks are constants


def make_lanes(stream: Tensor, batch: int) -> Tensor:
    """Cut a stream into ``batch`` pieces of equal length that are read side by side.

    Returns:
        ``(length, batch)``: a column is a stretch of text.
    """
    length = len(stream) // batch
    return stream[: length * batch].view(batch, length).t().contiguous()
