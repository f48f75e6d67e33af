"""Evaluation of causal language models: perplexity, accuracy and calibration over texts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._check import is_whole
from ._texts import padded, read_texts, windows_of
from .heads.late import in_evaluation
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
        seconds: time that the model and the scoring took, or None.

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
    seconds: float | None = None

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
    def seconds_per_token(self) -> float | None:
        """Time per scored token; tokens that are context only add to it. None without a time."""
        return None if self.seconds is None else self.seconds / self.tokens

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
        names += ("accuracy", "confidence", "calibration_error", "seconds_per_token")
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
        lines += [
            f"accuracy                  {self.accuracy:.4f}",
            f"  mean confidence         {self.confidence:.4f}",
            f"  calibration error, ECE  {self.calibration_error:.4f}",
        ]
        if self.seconds_per_token is not None:
            lines.append(f"time per token            {1e3 * self.seconds_per_token:.4g} ms")
        return "\n".join(lines)


def evaluate(
    model: Callable[[Tensor], Any],
    tokens: Tensor | Sequence[Any],
    *,
    labels: Tensor | Sequence[Any] | None = None,
    attention_mask: Tensor | None = None,
    prefix: int | None = None,
    length: int = 1024,
    stride: int | None = None,
    batch: int = 8,
    ignore_index: int = -100,
    total_bytes: int | None = None,
    bins: int = 15,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Evaluation:
    r"""Perplexity, accuracy and calibration of a causal language model over texts.

    .. math:: \mathrm{perplexity} = \exp\Bigl(
        -\frac{1}{T - 1} \sum_{t=2}^{T} \log p(x_t \mid x_{<t})\Bigr)

    A text is cut into windows of ``length`` tokens, ``stride`` apart; the last one ends with the
    text. Each token but the first is scored exactly once, in the first window that holds it. So
    more than ``length - stride`` tokens of the window precede it, except at the start of the text.
    With a ``prefix`` the first token is scored, too. Windows of different lengths are padded at
    their end, where no token of a causal model looks. Sums are float64.

    If the model returns :class:`xent.LinearLogits`, the logits are never all in memory, and no
    logits are computed for tokens that an earlier window has scored.

    Args:
        model: any callable that maps token ids, int64 ``(B, T)``, to logits of the tokens that
            follow, ``(B, T, V)``: a tensor, :class:`xent.LinearLogits`, or an object that has them
            as ``logits``. A ``torch.nn.Module`` is in evaluation mode during the call.
        tokens: ids of a text, ``(T,)``; or of several texts, each scored alone: ``(N, T)``, or a
            list of texts of any lengths, tensors or lists. A text with nothing to predict adds
            nothing.
        labels: what to score, in the shapes of ``tokens``, with ``ignore_index`` where a token is
            context only. By default all of ``tokens``.
        attention_mask: for texts ``(N, T)`` that are padded, at their start or end: 1 or True for
            each token of the text, in the shape of ``tokens``. Padding is neither shown nor scored.
        prefix: id of a token that starts every window, such as the start token of the tokenizer;
            ``tokens`` leave it out. It is not scored, and takes one of the ``length`` places.
        length: tokens that the model sees at once, at least 2.
        stride: tokens that each further window adds, 1 to ``length``, with a prefix at most
            ``length - 1``. By default half of ``length``; more is quicker, and gives the tokens
            less context.
        batch: windows that the model sees side by side.
        ignore_index: label that marks tokens to leave out.
        total_bytes: bytes of text that the scored tokens stand for, for bits per byte.
        bins: bins of confidence, of equal width, for the calibration.
        device: where to put the tokens; by default to the parameters of the model.
        progress: show a bar with the tokens per second; needs tqdm.

    Returns:
        An :class:`Evaluation`.

    Raises:
        ValueError: for lengths out of range, no token to score, labels or a mask of another shape,
            a mask with holes, or logits that do not fit the tokens.
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
        time per token            ... ms
        >>> found = xent.evaluate(model, [text[:7], text[:100]], prefix=2, length=16)
        >>> found.tokens, f"{found.accuracy:.4f}"
        (107, '1.0000')

    References:
        Jelinek et al., *Perplexity, a measure of the difficulty of speech recognition tasks*, 1977.
        Calibration: Guo et al., *On calibration of modern neural networks*, ICML 2017.
    """
    _check_sizes(length, stride, batch, total_bytes, prefix)
    texts = read_texts(tokens, labels, attention_mask, prefix, ignore_index)
    windows = [w for text in texts for w in windows_of(text, length, stride or length // 2)]
    windows = [w for w in windows if w.scored()]
    windows.sort(key=lambda w: w.start - w.end)  # those of one length side by side
    device = device or _device_of(model) or texts[0].tokens.device
    table, nats, correct = None, 0.0, 0
    total = sum(w.scored() for w in windows)
    started = time.perf_counter()
    with torch.no_grad(), _evaluation_mode(model), _bar(total, progress) as update:
        for k in range(0, len(windows), batch):
            ids, goal = padded(windows[k : k + batch])  # (B, T)
            kept = (goal != ignore_index).flatten().cpu()
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
            update(len(right))
    if table is None:
        raise ValueError("there is no token to score: `labels` are `ignore_index` after all tokens")
    seconds = time.perf_counter() - started
    return Evaluation(int(table.count.sum()), nats, correct, table, total_bytes, seconds)


def _check_sizes(
    length: int, stride: int | None, batch: int, total_bytes: int | None, prefix: int | None
) -> None:
    least = {"length": (length, 2), "stride": (stride, 1), "batch": (batch, 1)}
    least |= {"total_bytes": (total_bytes, 1), "prefix": (prefix, 0)}
    for name, (value, bound) in least.items():
        if value is None and name in ("stride", "total_bytes", "prefix"):
            continue
        if not is_whole(value) or value < bound:
            raise ValueError(f"`{name}` must be a whole number from {bound}, got {value!r}")
    if stride is not None and stride > length:
        raise ValueError(
            f"`stride` must be at most `length`, {length}, or tokens would be left out; got "
            f"{stride}"
        )


# ---- the model ----------------------------------------------------------------------------------


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
    """Keep the model in evaluation mode, its logits late; put every module back afterwards."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    before = [module.training for module in modules]
    for module in modules:
        module.training = False
    outer = in_evaluation.set(True)
    try:
        yield
    finally:
        in_evaluation.reset(outer)
        for module, training in zip(modules, before, strict=True):
            module.training = training


@contextmanager
def _bar(tokens: int, progress: bool) -> Iterator[Callable[[int], Any]]:
    """Return a function that moves a bar on by some tokens, or does nothing."""
    if not progress:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(desc="evaluating", total=tokens, unit=" tokens", unit_scale=True) as bar:
        yield bar.update
