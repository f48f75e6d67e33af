"""Texts cut into windows, for a model that sees so many tokens at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ._check import class_indices, is_tensor, is_whole


class Text(NamedTuple):
    """A text and its labels, each ``(T,)``, int64; the prefix, if there is one, comes first."""

    tokens: Tensor
    labels: Tensor
    prefix: Tensor  # (1,), or (0,) for none
    ignore_index: int


class Window(NamedTuple):
    """The tokens ``start`` to ``end - 1`` of a text, which predict those one place further.

    Earlier windows have scored the tokens up to the one at ``done``.
    """

    text: Text
    start: int
    end: int
    done: int

    def scored(self) -> int:
        """Return how many tokens this window scores."""
        labels = self.text.labels[max(self.start, self.done) + 1 : self.end + 1]
        return int((labels != self.text.ignore_index).sum())

    def ids(self) -> Tensor:
        """Return what the model sees; a window within the text has the prefix again."""
        tokens = self.text.tokens[self.start : self.end]
        return torch.cat([self.text.prefix, tokens]) if self.start else tokens

    def goal(self) -> Tensor:
        """Return the token after each of the ids, and ``ignore_index`` for those not to score."""
        goal = self.text.labels[self.start + 1 : self.end + 1].clone()
        goal[: max(self.done - self.start, 0)] = self.text.ignore_index
        nothing = torch.full_like(self.text.prefix, self.text.ignore_index)
        return torch.cat([nothing, goal]) if self.start else goal


def windows_of(text: Text, length: int, stride: int) -> Iterator[Window]:
    """Yield the windows of a text, each but the first one as long as the model can see."""
    positions = len(text.tokens) - 1
    inner = length - len(text.prefix)  # tokens of a window within the text
    done = 0
    while done < positions:
        end = min(done + min(stride, inner) if done else length, positions)
        yield Window(text, end - inner if done else 0, end, done)
        done = end


def padded(windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Stack ids and goals of windows, ``(B, T)``, padded at their ends with any token."""
    ids, goal = [w.ids() for w in windows], [w.goal() for w in windows]
    token, ignored = int(ids[0][0]), windows[0].text.ignore_index
    return (
        pad_sequence(ids, batch_first=True, padding_value=token),
        pad_sequence(goal, batch_first=True, padding_value=ignored),
    )


def read_texts(
    tokens: Any, labels: Any, attention_mask: Tensor | None, prefix: int | None, ignore_index: int
) -> list[Text]:
    """Check the texts, and return those that hold something to predict."""
    rows = _rows("tokens", tokens)
    goals = rows if labels is None else _rows("labels", labels)
    _same_shapes(rows, goals)
    if attention_mask is not None:
        kept = _kept(attention_mask, tokens)
        rows, goals = (
            [x[m.to(x.device)] for x, m in zip(some, kept, strict=True)] for some in (rows, goals)
        )
    texts = []
    for x, y in zip(rows, goals, strict=True):
        start = x.new_tensor([] if prefix is None else [prefix])
        ignored = torch.full_like(start, ignore_index)
        texts.append(Text(torch.cat([start, x]), torch.cat([ignored, y]), start, ignore_index))
    texts = [text for text in texts if len(text.tokens) > 1]
    if not texts:
        told = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else "shorter texts"
        raise ValueError(
            f"`tokens` must hold a text of two tokens or more, of one after a prefix: (T,), or "
            f"several, (N, T) or a list; got {told}"
        )
    return texts


def _rows(name: str, texts: Any) -> list[Tensor]:
    """Return each text as int64, ``(T,)``."""
    if isinstance(texts, (list, tuple)):
        found = [_ids(name, x) for x in ([texts] if texts and is_whole(texts[0]) else texts)]
    else:
        whole = class_indices(name, texts)
        found = list(whole[None] if whole.ndim == 1 else whole) if whole.ndim else [whole]
    for x in found:
        if x.ndim != 1:
            raise ValueError(
                f"`{name}` must hold texts of shape (T,), or be (N, T); one text has shape "
                f"{tuple(x.shape)}"
            )
    return found


def _ids(name: str, text: Any) -> Tensor:
    if not isinstance(text, Tensor):
        try:
            text = torch.tensor(text, dtype=None if len(text) else torch.int64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"`{name}` must hold integers, each text as a tensor or a list; got "
                f"{type(text).__name__}"
            ) from None
    return class_indices(name, text)


def _same_shapes(rows: list[Tensor], labels: list[Tensor]) -> None:
    """Raise unless there is a label for each token."""
    if len(rows) != len(labels):
        raise ValueError(
            f"`labels` must have the shape of `tokens`, {len(rows)} texts; got {len(labels)}"
        )
    for k, (x, y) in enumerate(zip(rows, labels, strict=True)):
        if len(x) != len(y):
            raise ValueError(
                f"`labels` must have the shape of `tokens`, unshifted; text {k} has {len(x)} "
                f"tokens and {len(y)} labels"
            )


def _kept(mask: Tensor, tokens: Any) -> Tensor:
    """Return which tokens are no padding, ``(N, T)``; raise unless those of a text adjoin."""
    is_tensor("attention_mask", mask)
    if not isinstance(tokens, Tensor) or mask.shape != tokens.shape:
        told = tuple(tokens.shape) if isinstance(tokens, Tensor) else "a list, which has no padding"
        raise ValueError(
            f"`attention_mask` must have the shape of `tokens`, {told}; got {tuple(mask.shape)}"
        )
    kept = mask.reshape(-1, mask.shape[-1]) == 1
    if not bool((kept | (mask.reshape(kept.shape) == 0)).all()):
        raise ValueError("`attention_mask` must be 1 for tokens and 0 for padding")
    starts = kept.long().diff(prepend=torch.zeros_like(kept[:, :1]).long()) == 1
    if bool((starts.sum(1) > 1).any()):
        raise ValueError("`attention_mask` must not be 0 between two tokens of a text")
    return kept
