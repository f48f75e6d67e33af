"""The problem of single elements: logits, targets, weights and the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Form(NamedTuple):
    """A loss that the kernel can compute: a modulator times the two log terms of cross-entropy.

    The modulator is ``(positive t + negative (1 - t)) |t (1 - p) + side (1 - t) p|^gamma``, and the
    log terms are ``-(pos_weight t log p + (1 - t) log(1 - p))``. For targets above ``plain_above``
    the modulator is ``t``. A margin below 0 stands for none. With a margin, ``max(p - margin, 0)``
    takes the place of ``p`` for targets 0, and their power is ``gamma_negative``. If ``detached``
    is 1, the gradient takes the modulator for a constant. If ``excess`` is 1, the loss is
    cross-entropy less the entropy of the target, and the other numbers do not count.
    """

    positive: float = 1.0
    negative: float = 1.0
    gamma: float = 0.0
    side: float = 1.0
    plain_above: float = 1.0
    gamma_negative: float = 0.0
    margin: float = -1.0
    detached: float = 0.0
    excess: float = 0.0


class ElementProblem(NamedTuple):
    """The input of an engine: tensors that have been checked against each other, and the loss."""

    input: Tensor
    target: Tensor  # floating point, in the shape of `input`
    weight: Tensor | None  # broadcasts to that shape
    pos_weight: Tensor | None  # likewise
    body: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    form: Form | None
    ignore_value: float | None  # a target that marks elements to leave out
    bounded: bool  # True if targets outside [0, 1] are errors
    dtype: torch.dtype  # of the result
    smoothing: float = 0.0  # the part of its distance to 1/2 that each target moves

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors, which are the first fields."""
        return self[:TENSORS]

    def kept(self) -> Tensor | None:
        """Return a mask of the elements that count; None if all do."""
        return None if self.ignore_value is None else self.target != self.ignore_value

    def mark(self) -> float | None:
        """Return ``ignore_value``, rounded to the dtype of the targets; None if there is none."""
        if self.ignore_value is None:
            return None
        return torch.tensor(self.ignore_value, dtype=self.target.dtype, device="cpu").item()

    def differentiable_beyond_input(self) -> bool:
        """True if a tensor other than the input wants a gradient."""
        others = self.tensors[1:]
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in others)

    def out_of_range(self, value: float) -> ValueError:
        """Return the error for a target outside [0, 1]."""
        hint = "check the targets"
        if value == -1:
            hint = "for labels 1 and -1 pass (target + 1) / 2"
        elif 1 < value <= 255:
            hint = "for pixels of 0 to 255 divide by 255; class indices are for xent.cross_entropy"
        if value % 1 > 0 and bool(((self.input >= 0) & (self.input <= 1)).all()):
            hint = "are `input` and `target` swapped? The logits come first, then the targets"
        message = f"`target` holds {value:g}, but must lie between 0 and 1; {hint}"
        message += ". To leave elements out, mark them with ignore_value"
        if self.form == Form():
            message += "; unnormalized=True allows any target"
        return ValueError(message)


TENSORS = 4  # number of the fields that are tensors, which come first
