"""Evaluation of causal language models: perplexity, accuracy and calibration over a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._check import is_tensor, is_whole
from .information.reliability import Reliability, bin_confidences
from .measurement import statistics


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`xent.evaluate`; prints as a table.

    Attributes:
        tokens: how many tokens were scored.
        nats: negative log-probability, summed over the scored tokens.
        correct: how many of the scored tokens the model found the most likely.
        reliability: confidence against accuracy of the most likely tokens, bin by bin;
            ``xent.plot.reliability`` draws it.
        total_bytes: bytes of text that the scored tokens stand for, or None.

    Example:
        >>> import torch, xent
        >>> found = xent.evaluate(lambda ids: torch.zeros(*ids.shape, 8), torch.arange(8))
        >>> found.tokens, round(found.bits_per_token, 6), round(found.to_dict()["perplexity"], 6)
        (7, 3.0, 8.0)
    """

    tokens: int
    nats: float
    correct: int
    reliability: Reliability
    total_bytes: int | None = None

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy in nats."""
        return self.nats / self.tokens

    @property
    def bits_per_token(self) -> float:
        """Mean cross-entropy in bits."""
        return self.nats_per_token / math.log(2)

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean cross-entropy: number of equally likely tokens as hard to guess."""
        return math.inf if self.bits_per_token >= 1024 else 2**self.bits_per_token

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte, to compare models with different tokens; None without ``total_bytes``."""
        return self.nats / math.log(2) / self.total_bytes if self.total_bytes else None

    @property
    def accuracy(self) -> float:
        """Share of the tokens that the model found the most likely."""
        return self.correct / self.tokens

    @property
    def confidence(self) -> float:
        """Mean probability of the most likely token; above the accuracy of a model too sure."""
        table = self.reliability
        there = table.count > 0
        return ((table.count * table.confidence)[there].sum() / self.tokens).item()

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (ECE) of the most likely tokens."""
        return self.reliability.ece

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain types, for JSON."""
        table = self.reliability
        bins = {"edges": table.edges.tolist(), "count": table.count.tolist()}
        for name in ("confidence", "accuracy"):  # None for an empty bin, because JSON has no NaN
            means = getattr(table, name).tolist()
            bins[name] = [m if n else None for m, n in zip(means, bins["count"], strict=True)]
        names = ("tokens", "nats_per_token", "bits_per_token", "perplexity", "bits_per_byte")
        names += ("accuracy", "confidence", "calibration_error")
        return {**{name: getattr(self, name) for name in names}, "reliability": bins}

    def __str__(self) -> str:
        lines = [
            f"tokens scored             {self.tokens:,}",
            f"nats per token            {self.nats_per_token:.4f}",
            f"  bits per token          {self.bits_per_token:.4f}",
            f"  perplexity              {self.perplexity:.2f}",
        ]
        if self.bits_per_byte is not None:
            lines.append(f"  bits per byte           {self.bits_per_byte:.4f}")
        return "\n".join(
            [
                *lines,
                f"accuracy                  {self.accuracy:.4f}",
                f"  mean confidence         {self.confidence:.4f}",
                f"  calibration error, ECE  {self.calibration_error:.4f}",
            ]
        )


def evaluate(
    model: Callable[[Tensor], Any],
    tokens: Tensor,
    *,
    labels: Tensor | None = None,
    length: int = 1024,
    stride: int | None = None,
    batch: int = 8,
    ignore_index: int = -100,
    total_bytes: int | None = None,
    bins: int = 15,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Evaluation:
    r"""Perplexity, accuracy and calibration of a causal language model over a text.

    .. math:: \mathrm{perplexity} = \exp\Bigl(
        -\frac{1}{T - 1} \sum_{t=2}^{T} \log p(x_t \mid x_{<t})\Bigr)

    The text is cut into windows of ``length`` tokens, ``stride`` apart; the last one ends with the
    text. Each token but the first is scored exactly once, in the first window that holds it. So
    more than ``length - stride`` tokens of the window precede it, except at the start of the text.
    Sums are float64.

    If the model returns :class:`xent.LinearLogits`, the logits are never all in memory, and no
    logits are computed for tokens that an earlier window has scored.

    Args:
        model: any callable that maps token ids, int64 ``(B, T)``, to logits of the tokens that
            follow, ``(B, T, V)``: a tensor, :class:`xent.LinearLogits`, or an object that has them
            as ``logits``. A ``torch.nn.Module`` is in evaluation mode during the call.
        tokens: ids of the text, ``(T,)``, or of several texts, ``(N, T)``, each scored alone.
        labels: what to score, in the shape of ``tokens``, with ``ignore_index`` where a token is
            context only. By default all of ``tokens``.
        length: tokens that the model sees at once, at least 2.
        stride: tokens that each further window adds, 1 to ``length``. By default half of
            ``length``; more is quicker, and gives the tokens less context.
        batch: windows that the model sees side by side.
        ignore_index: label that marks tokens to leave out.
        total_bytes: bytes of text that the scored tokens stand for, for bits per byte.
        bins: bins of confidence, of equal width, for the calibration.
        device: where to put the tokens; by default to the parameters of the model.
        progress: show a bar; needs tqdm.

    Returns:
        An :class:`Evaluation`.

    Raises:
        ValueError: for lengths out of range, a text of fewer than two tokens, labels of another
            shape or all left out, or logits that do not fit the tokens.
        TypeError: for tokens that are no integers.

    Example:
        >>> import torch, xent
        >>> text = torch.tensor([0, 1, 2] * 40)
        >>> table = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
        >>> model = lambda ids: table[ids]                    # a token, and what may follow it
        >>> print(xent.evaluate(model, text, length=16, total_bytes=119))
        tokens scored             119
        nats per token            0.5211
          bits per token          0.7518
          perplexity              1.68
          bits per byte           0.7518
        accuracy                  1.0000
          mean confidence         0.6383
          calibration error, ECE  0.3617

    References:
        Jelinek et al., *Perplexity, a measure of the difficulty of speech recognition tasks*, 1977.
        Calibration: Guo et al., *On calibration of modern neural networks*, ICML 2017.
    """
    labels = _check(tokens, labels, length, stride, batch, total_bytes)
    texts, labels = (x.reshape(-1, x.shape[-1]).long() for x in (tokens, labels))
    positions = texts.shape[1] - 1
    width, step = min(length, positions), stride or length // 2
    windows = [
        Window(row, start, done)
        for row in range(len(texts))
        for start, done in _windows(positions, width, step)
    ]
    batches = [windows[k : k + batch] for k in range(0, len(windows), batch)]
    device = device or _device_of(model) or tokens.device
    table, nats, correct = None, 0.0, 0
    with torch.no_grad(), _evaluation_mode(model):
        for some in _with_bar(batches) if progress else batches:
            ids = torch.stack([texts[w.row, w.start : w.start + width] for w in some])  # (B, T)
            goal = torch.stack([_goal(labels[w.row], w, width, ignore_index) for w in some])
            kept = (goal != ignore_index).flatten()
            if not bool(kept.any()):
                continue
            logits = _logits_of(model(ids.to(device)), ids.shape)  # (B * T, V)
            goal = goal.flatten().to(device)
            s = statistics(logits, goal, ignore_index=ignore_index, top=True)
            log_prob, confidence, right = (
                x.cpu()[kept] for x in (s.log_prob, (s.top_logit - s.lse).exp(), s.top == goal)
            )
            nats -= log_prob.sum().item()
            correct += int(right.sum())
            found = bin_confidences(confidence, right, bins)
            table = found if table is None else table.merge(found)
    if table is None:
        raise ValueError("there is no token to score: all labels but the first are `ignore_index`")
    return Evaluation(int(table.count.sum()), nats, correct, table, total_bytes)


class Window(NamedTuple):
    """A part of a text, and the position up to which earlier windows have scored."""

    row: int
    start: int
    done: int


def _windows(positions: int, width: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the start of each window, and the position up to which earlier windows have scored."""
    done = 0
    for start in (*range(0, positions - width, stride), positions - width):
        yield start, done
        done = start + width


def _goal(labels: Tensor, window: Window, width: int, ignore_index: int) -> Tensor:
    """Return the token after each token of a window; ``ignore_index`` for scored ones."""
    _, start, done = window
    goal = labels[start + 1 : start + 1 + width].clone()
    goal[: done - start] = ignore_index
    return goal


def _check(
    tokens: Tensor, labels: Tensor | None, length: int, stride: int | None, batch: int,
    total_bytes: int | None,
) -> Tensor:  # fmt: skip
    """Check the arguments, and return the labels."""
    labels = tokens if labels is None else labels
    for name, x in (("tokens", tokens), ("labels", labels)):
        is_tensor(name, x)
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"`{name}` must hold integers, got {x.dtype}; call .long()")
    if tokens.ndim not in (1, 2) or tokens.shape[-1] < 2 or not tokens.numel():
        raise ValueError(
            f"`tokens` must hold a text of two tokens or more, shape (T,), or several, (N, T); got "
            f"shape {tuple(tokens.shape)}"
        )
    if labels.shape != tokens.shape:
        raise ValueError(
            f"`labels` must have the shape of `tokens`, {tuple(tokens.shape)}, unshifted; got "
            f"{tuple(labels.shape)}"
        )
    least = {"length": (length, 2), "stride": (stride, 1), "batch": (batch, 1)}
    least["total_bytes"] = (total_bytes, 1)
    for name, (value, bound) in least.items():
        if value is None and name in ("stride", "total_bytes"):
            continue
        if not is_whole(value) or value < bound:
            raise ValueError(f"`{name}` must be a whole number from {bound}, got {value!r}")
    if stride is not None and stride > length:
        raise ValueError(
            f"`stride` must be at most `length`, {length}, or tokens would be left out; got "
            f"{stride}"
        )
    return labels


def _logits_of(output: Any, shape: torch.Size) -> Any:
    """Take the logits out of the output of a model, as ``(B * T, V)``."""
    while hasattr(output, "logits"):
        output = output.logits
    found = getattr(output, "shape", None)
    if found is None or len(found) != 3 or found[:2] != shape:
        told = type(output).__name__ if found is None else f"shape {tuple(found)}"
        raise ValueError(
            f"`model` must return logits of shape {(*shape, 'V')} for tokens of shape "
            f"{tuple(shape)}, or an object with `logits`; got {told}"
        )
    return output.reshape(-1, found[-1])


def _device_of(model: Any) -> torch.device | None:
    """Return the device of the parameters of a model, or None if the model has none."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    return next((p.device for p in parameters), None)


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Keep the model in evaluation mode, and put every module back afterwards."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    before = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def _with_bar(batches: list[list[Window]]) -> Any:
    from tqdm import tqdm

    return tqdm(batches, desc="evaluating", unit="batch")
