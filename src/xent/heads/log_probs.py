"""Log-probabilities behind a linear head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .logits import LinearLogits
from .stand_in import Lean, Shown


class OfLogits(Lean):
    """Stands for numbers that come from logits behind a head.

    Args:
        logits: the logits, or what comes from them.
    """

    def __init__(self, logits: Any) -> None:
        self.logits = logits
        self.silent, self.readers = logits.silent, logits.readers

    @property
    def shape(self) -> torch.Size:
        """The shape, ``(..., V)``."""
        return self.logits.shape

    @property
    def hidden(self) -> Tensor:
        """The features."""
        return self.logits.hidden

    @property
    def requires_grad(self) -> bool:
        """True if the logits require a gradient."""
        return self.logits.requires_grad

    @property
    def shown(self) -> Shown:
        """Record that the stand-ins for the same rows share."""
        return self.logits.shown

    @shown.setter
    def shown(self, shown: Shown) -> None:
        self.logits.shown = shown


class LinearLogProbs(OfLogits):
    """Result of :func:`torch.log_softmax` of :class:`xent.LinearLogits` along the classes.

    Rows may be sliced and reshaped. The sign, ``gather``, ``sum`` and ``mean`` along the classes
    and :func:`torch.nn.functional.nll_loss` are lean.

    Args:
        logits: the logits.
        sign: 1, or -1 for the negative log-probabilities.
        dtype: of the log-probabilities; that of the logits unless given.
    """

    lean: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}
    normalised = True

    def __init__(
        self, logits: LinearLogits, sign: int = 1, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(logits)
        self.sign, self.dtype = sign, dtype or logits.dtype

    @property
    def row_tensors(self) -> list[Tensor]:
        """The tensors with a number or more for each row."""
        return self.logits.row_tensors

    def with_rows(self, tensors: Sequence[Tensor]) -> LinearLogProbs:
        """Return log-probabilities whose rows are others, given the tensors of these rows."""
        return self.with_logits(self.logits.with_rows(tensors))

    def with_logits(self, logits: LinearLogits) -> LinearLogProbs:
        """Return the log-probabilities of other logits."""
        return LinearLogProbs(logits, self.sign, self.dtype)

    def with_scale_per_row(self) -> LinearLogProbs:
        """Return the same log-probabilities, of logits with a scale for each row."""
        return self.with_logits(self.logits.with_scale_per_row())

    def without_divisor(self) -> LinearLogProbs:
        """Return the same log-probabilities."""
        return self.with_logits(self.logits.without_divisor())

    def has_head_of(self, other: Any) -> bool:
        """True if other log-probabilities differ from these in their rows only."""
        same = type(other) is type(self) and (other.sign, other.dtype) == (self.sign, self.dtype)
        return same and self.logits.has_head_of(other.logits)

    def is_zero_without_features(self) -> bool:
        """False: all classes are equally likely then."""
        return False

    def cast(self, dtype: torch.dtype) -> LinearLogProbs:
        """Return log-probabilities of another dtype."""
        other = self.copy()
        other.dtype = dtype
        return other

    def view_of_all(self) -> LinearLogProbs:
        """Return log-probabilities that show the same rows."""
        return self.with_logits(self.logits.view_of_all())

    def compact(self) -> LinearLogProbs:
        """Return these log-probabilities, or a copy where contiguous() would copy a tensor."""
        logits = self.logits.compact()
        return self if logits is self.logits else self.with_logits(logits)

    def copy(self) -> LinearLogProbs:
        """Return the same log-probabilities."""
        return self.with_logits(self.logits.copy())

    def constant(self) -> LinearLogProbs:
        """Return the same log-probabilities without a gradient."""
        return self.with_logits(self.logits.constant())

    def picked(self, index: Any) -> LinearLogProbs:
        """Return the rows that an index picks; no index into the classes is lean."""
        if self.logits.spelled_out(index) is not None:
            return NotImplemented
        return self.with_logits(self.logits.rows(index))

    def computed(self) -> Tensor:
        """The log-probabilities as a tensor, with their gradient."""
        return (self.sign * torch.log_softmax(self.logits.materialize(), -1)).to(self.dtype)


class LinearProbs(LinearLogProbs):
    """Result of :func:`torch.softmax` of :class:`xent.LinearLogits` along the classes.

    As :class:`LinearLogProbs`; ``gather`` and ``argmax`` are lean.
    """

    lean: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}

    def with_logits(self, logits: LinearLogits) -> LinearProbs:
        """Return the probabilities of other logits."""
        return LinearProbs(logits, dtype=self.dtype)

    def computed(self) -> Tensor:
        """The probabilities as a tensor, with their gradient."""
        return torch.softmax(self.logits.materialize(), -1).to(self.dtype)


class LinearEntropyTerms(LinearProbs):
    """Probabilities times their logarithms.

    The sum along the classes is lean: minus the entropy.
    """

    lean: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}

    def with_logits(self, logits: LinearLogits) -> LinearEntropyTerms:
        """Return the terms of other logits."""
        return LinearEntropyTerms(logits, dtype=self.dtype)

    def computed(self) -> Tensor:
        """The terms as a tensor, with their gradient."""
        log_p = torch.log_softmax(self.logits.materialize(), -1)
        return (log_p.exp() * log_p).to(self.dtype)
