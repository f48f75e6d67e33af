"""Interpretation of a mean loss, in words that do not depend on the number of classes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._check import class_indices, finite_number, is_tensor, whole_number
from ..arrays import takes_arrays
from ..class_dim import axis_of_classes
from .common import NATS_PER_BIT
from .counts import entropy_from_counts
from .distributions import entropy


@dataclass(frozen=True)
class Report:
    """A mean cross-entropy and what it means; prints as text.

    Attributes:
        nats: the mean loss.
        floor: the least possible mean loss, in nats: 0 for class labels, the mean entropy of soft
            ones.
        label_entropy: H(Y) in nats, the loss of always predicting the frequencies of the labels;
            None if they are not known.

    Example:
        >>> from xent.information import Report
        >>> result = Report(0.5, label_entropy=2.0)
        >>> round(result.perplexity, 4), round(result.probability, 4), result.excess
        (1.6487, 0.6065, 0.5)
    """

    nats: float
    floor: float = 0.0
    label_entropy: float | None = None

    @property
    def bits(self) -> float:
        """The mean loss in bits."""
        return self.nats / NATS_PER_BIT

    @property
    def perplexity(self) -> float:
        """Perplexity, the number of equally likely classes that are as hard to guess."""
        return math.exp(self.nats) if self.nats < 709 else math.inf

    @property
    def probability(self) -> float:
        """Geometric mean of the probabilities that the targets were given."""
        return math.exp(-self.nats)

    @property
    def excess(self) -> float:
        """The loss above its floor; for soft labels the mean KL divergence from them."""
        return self.nats - self.floor

    @property
    def skill(self) -> float | None:
        """``1 - loss / H(Y)``, McFadden's R^2: 0 if only the frequencies are known, 1 if all is.

        NaN where H(Y) is 0: nothing can be known about labels that are all the same.
        """
        if self.label_entropy is None:
            return None
        return 1 - self.nats / self.label_entropy if self.label_entropy else math.nan

    @property
    def information(self) -> float | None:
        """``H(Y) - loss``: a lower estimate of the mutual information of input and label, in nats.

        Holds for rows that the model was not trained on. The estimate cannot exceed H(Y), so near
        H(Y) it tells little.
        """
        return None if self.label_entropy is None else self.label_entropy - self.nats

    def __str__(self) -> str:
        lines = [
            f"loss             {self.nats:.4f} nats = {self.bits:.4f} bits",
            f"perplexity       {self.perplexity:.4f}",
            f"probability      {self.probability:.4f} of the target, geometric mean",
        ]
        if self.label_entropy is not None:
            skill = "none, as all labels are the same"
            if self.label_entropy:
                skill = f"{self.skill:.4f} = 1 - loss / label entropy (McFadden's R^2)"
            lines.append(f"label entropy    {self.label_entropy:.4f} nats")
            lines.append(f"skill            {skill}")
        lines.append(f"excess           {self.excess:.4f} nats over the floor of {self.floor:.4f}")
        if self.label_entropy is not None:
            lines.append(
                f"information      {self.information:.4f} nats about the label, at most "
                f"{self.label_entropy:.4f} = label entropy"
            )
        return "\n".join(lines)


@takes_arrays
def report(
    loss: float | Tensor,
    target: Tensor | None = None,
    *,
    counts: Tensor | Iterable[float] | None = None,
    floor: float | None = None,
    class_dim: int | None = None,
    ignore_index: int = -100,
) -> Report:
    """Say what a mean cross-entropy means: in bits, as a probability, against the labels.

    Args:
        loss: the mean loss in nats, a number or 0-d tensor.
        target: the labels of the rows of that mean: class indices of any shape; or probabilities,
            ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        counts: instead of ``target``: how often each label occurred.
        floor: the least the loss can be, in nats. By default 0, or for probabilities their mean
            entropy.
        class_dim: the axis of the classes of probabilities, as for :func:`xent.cross_entropy`.
        ignore_index: class index that marks rows of ``target`` to leave out.

    Returns:
        A :class:`Report`, which prints as text. ``skill`` and ``information`` need ``target`` or
        ``counts``.

    Raises:
        ValueError: if ``loss`` is not one number of at least 0, or both ``target`` and ``counts``
            are given.
        TypeError: if ``target`` is not a tensor.

    Example:
        >>> import torch
        >>> from xent.information import report
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> said = report(0.1, labels)
        >>> round(said.bits, 4), round(said.perplexity, 4), round(said.skill, 4)
        (0.1443, 1.1052, 0.8557)

    References:
        McFadden, *Conditional logit analysis of qualitative choice behavior*, 1974.
        Information: Qin et al., *Neural network classifiers as mutual information evaluators*,
        2021.
    """
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(
            f"`loss` must be one number, got shape {tuple(loss.shape)}; pass loss.mean()"
        )
    nats = float(loss)
    if not nats >= 0:
        raise ValueError(
            f"`loss` must be a mean cross-entropy, which is at least 0; got {nats}"
            + ("; xent.diagnose(input, target) tells why" if math.isnan(nats) else "")
        )
    if target is not None and counts is not None:
        raise ValueError("report takes `target` or the `counts` of its classes, not both")
    label_entropy, least = None, 0.0
    if target is not None:
        label_entropy, least = _about_labels(target, class_dim, ignore_index)
    elif counts is not None:
        counted = counts
        if not isinstance(counted, Tensor):
            counted = torch.tensor(list(counted), dtype=torch.float64, device="cpu")
        label_entropy = entropy_from_counts(counted.flatten().double()).item()
    return Report(nats, least if floor is None else finite_number("floor", floor), label_entropy)


def _about_labels(target: Tensor, class_dim: int | None, ignore_index: int) -> tuple[float, float]:
    """Entropy of the label distribution, and mean entropy of soft labels; in nats."""
    is_tensor("target", target)
    target = target.detach()
    if target.is_floating_point():
        axis = axis_of_classes(target, class_dim, "target")
        each = entropy(target, axis).double().mean().item()
        average = target.double().movedim(axis, -1).flatten(0, -2).mean(0)  # (C,)
        return entropy_from_counts(average).item(), each
    labels = class_indices("target", target)
    kept = labels != whole_number("ignore_index", ignore_index)
    counts = labels[kept].unique(return_counts=True)[1]
    return entropy_from_counts(counts).item(), 0.0


def bits_per_byte(nats: float | Tensor, tokens: int, bytes: int) -> float | Tensor:
    r"""The loss of a language model per byte of text, a unit that does not depend on the tokeniser.

    .. math:: \frac{\text{nats} \cdot \text{tokens}}{\text{bytes} \cdot \log 2}

    Args:
        nats: mean loss per token.
        tokens: the number of tokens in that mean.
        bytes: the length of the text of these tokens in bytes (UTF-8).

    Returns:
        Bits per byte.

    Raises:
        ValueError: if ``tokens`` or ``bytes`` is not positive.

    Example:
        >>> from xent.information import bits_per_byte
        >>> round(bits_per_byte(3.0, tokens=1000, bytes=4500), 4)
        0.9618
    """
    if not (tokens > 0 and bytes > 0):
        raise ValueError(f"`tokens` and `bytes` must be positive, got {tokens} and {bytes}")
    return nats * (tokens / bytes) / NATS_PER_BIT
