"""The problem of dense losses: logits, what they are compared with, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...targets import class_axis

# The kinds of losses that kernels know, in the order of csrc/dense.h.
KINDS = ("forward", "reverse", "jensen_shannon", "fenchel_young", "bi_tempered")


class Form(NamedTuple):
    """A loss that a kernel can compute: a kind and its numbers.

    The numbers of a divergence are the inverse of the temperature and the share of the teacher in
    the mixture.
    """

    kind: str
    numbers: tuple[float, ...] = ()


def form_for(form: Form | None, *dtypes: torch.dtype) -> Form | None:
    """The form for logits of these types; None for float64, of which kernels lose digits.

    The kernels compute in float64. So the results of narrower types are right to the last digit.
    """
    return None if torch.float64 in dtypes else form


class DenseProblem(NamedTuple):
    """The input of an engine: tensors that have been checked against each other, and the loss.

    The value of a row is ``scale`` times its weight times what the body gives. Rows whose class is
    ``ignore_index``, and rows of weight 0, are left out: their logits are not read.
    """

    logits: Tensor  # (C,), (N, C) or (N, C, d1, ...)
    teacher: Tensor | None  # logits in the same shape
    target: Tensor | None  # (N...), int64: the class of each row
    row_weight: Tensor | None  # (N...), float64
    body: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]  # classes last, in plain torch
    form: Form | None
    scale: float
    ignore_index: int
    dtype: torch.dtype  # of the result

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors, which are the first fields."""
        return self[:TENSORS]

    @property
    def sides(self) -> tuple[Tensor | None, ...]:
        """The tensors by which the loss has a gradient in kernels: student and teacher."""
        return self[:SIDES]

    @property
    def axis(self) -> int:
        """The axis of the classes."""
        return class_axis(self.logits)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.logits.shape[self.axis]

    @property
    def rows(self) -> torch.Size:
        """The shape of the rows."""
        shape, axis = self.logits.shape, self.axis
        return shape[:axis] + shape[axis + 1 :]

    def kept(self) -> Tensor | None:
        """Return a mask of the rows that are not left out; None if none is known to be."""
        kept = None if self.target is None else self.target != self.ignore_index
        if self.row_weight is None:
            return kept
        weighs = self.row_weight != 0
        return weighs if kept is None else kept & weighs

    def differentiable_beyond_logits(self) -> bool:
        """True if the row weights want a gradient."""
        return self.row_weight is not None and (
            torch.is_grad_enabled() and self.row_weight.requires_grad
        )


SIDES = 2  # number of the fields that are logits, which come first
TENSORS = 4  # number of the fields that are tensors
