"""Targets: class indices, or dense probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._check import is_tensor
from .linear_logits import LinearLogits


class Target(NamedTuple):
    """A checked target.

    ``values`` holds class indices in the shape of the rows, int64, or probabilities in the shape
    of the logits. With a ``table`` the target of a row is the soft one in the line of its class.
    """

    values: Tensor
    soft: bool
    ignore_index: int
    first_class: int = 0  # the number of the first class of these logits; for shards
    sharded: bool = False
    table: Tensor | None = None  # (V, V)

    @property
    def labelled(self) -> bool:
        """Whether ``values`` are class indices, among which rows may be ignored."""
        return not self.soft or self.table is not None

    @property
    def probabilities(self) -> Tensor | None:
        """Those of a soft target: a row for each row of logits, or for each class."""
        return (self.values if self.table is None else self.table) if self.soft else None

    def labels(self) -> Tensor | None:
        """The class of each row, negative where it is ignored."""
        if not self.labelled:
            return None
        if self.ignore_index < 0:
            return self.values
        return torch.where(self.values == self.ignore_index, -1, self.values)


def shift_labels(labels: Tensor, k: int = 1, ignore_index: int = -100) -> Tensor:
    """Labels moved ``k`` places to the left, for models whose position ``t`` predicts ``t + k``.

    With them every loss is that of a causal model, and no logits are sliced, which would copy them.

    Args:
        labels: class indices, ``(..., T)``; those of ignored tokens move along.
        k: how many places, from 0 to ``T``.
        ignore_index: what the last ``k`` become.

    Returns:
        int64, ``(..., T)``.

    Raises:
        ValueError: if there is no axis to move along, or ``k`` is out of range.
        TypeError: if ``labels`` are no integers.

    Example:
        >>> import torch, xent
        >>> xent.shift_labels(torch.tensor([[5, 6, 7]]))
        tensor([[   6,    7, -100]])
    """
    is_tensor("labels", labels)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels to shift must be class indices, got {labels.dtype}")
    if labels.ndim == 0:
        raise ValueError("labels to shift must have an axis of positions, (..., T); got one label")
    if not isinstance(k, int) or not 0 <= k <= labels.shape[-1]:
        raise ValueError(
            f"labels can be shifted by 0 to {labels.shape[-1]} places, the length of their last "
            f"axis; got {k!r}"
        )
    return torch.nn.functional.pad(labels[..., k:].to(torch.int64), (0, k), value=ignore_index)


def densified(target: Tensor) -> Tensor:
    """The target with its zeros written out, where it came without them."""
    sparse = isinstance(target, Tensor) and target.layout in _SPARSE
    return target.to_dense() if sparse else target


_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def are_alike(target: Tensor, input: Tensor) -> bool:
    """Whether a target holds a number for each logit.

    The number of axes comes first: axes of which only one may grow are then never compared.
    """
    return target.ndim == input.ndim and target.shape == input.shape


def class_axis(input: Tensor) -> int:
    """Where the classes are: axis 0 of a single row, axis 1 of everything else."""
    return 0 if input.ndim == 1 else 1


def read_target(
    input: Tensor, target: Tensor, ignore_index: int, first_class: int | None = None
) -> Target:
    """Check a target against its logits; tell indices from probabilities as PyTorch does."""
    if not isinstance(input, LinearLogits):
        is_tensor("input", input)
    target = densified(target)
    is_tensor("target", target)
    if input.ndim == 0:
        raise ValueError("`input` must have a class axis: shape (C,), (N, C) or (N, C, d1, ...)")
    if not input.is_floating_point():
        raise TypeError(
            f"`input` must hold floating-point logits, got {input.dtype}; call .float()"
        )
    if not isinstance(ignore_index, int):
        raise TypeError(f"`ignore_index` must be an integer, got {ignore_index!r}")
    if input.device != target.device:
        raise ValueError(f"`input` is on {input.device} but `target` on {target.device}")
    if are_alike(target, input):
        if input.shape[class_axis(input)] == 0:
            raise ValueError(
                f"`input` must have a class for a soft target to speak of, got shape "
                f"{tuple(input.shape)}"
            )
        return _soft_target(target, ignore_index, first_class)
    return _index_target(input, target, ignore_index, first_class)


def _soft_target(target: Tensor, ignore_index: int, first_class: int | None) -> Target:
    if not target.is_floating_point():
        raise TypeError(
            f"`target` has the shape of `input`, so it must hold class probabilities as floating "
            f"point, but it is {target.dtype}. One-hot rows: pass target.float(), or "
            f"target.argmax(1) for class indices"
        )
    if ignore_index >= 0:
        raise ValueError(
            f"`ignore_index` is not supported for floating point target, got {ignore_index}; give "
            f"the rows to leave out a row_weight of 0"
        )
    return Target(target, True, ignore_index, first_class or 0, first_class is not None)


def _index_target(
    input: Tensor, target: Tensor, ignore_index: int, first_class: int | None
) -> Target:
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(
            f"expected target dtype to be Long or Byte class indices, but got {target.dtype}; call "
            f"target.long(), or give probabilities the shape of `input`, {tuple(input.shape)}"
        )
    if input.ndim == 1:
        if target.shape not in ((), (1,)):
            raise ValueError(
                f"a single row of logits, shape {tuple(input.shape)}, takes a 0-d `target`; got "
                f"shape {tuple(target.shape)}"
            )
    else:
        rows = input.shape[:1] + input.shape[2:]
        if target.ndim and target.shape[0] != rows[0]:
            raise ValueError(
                f"Expected input batch_size ({rows[0]}) to match target batch_size "
                f"({target.shape[0]})."
            )
        if target.shape != rows:
            raise ValueError(
                f"`target` must have shape {tuple(rows)} to hold one class index for each row of "
                f"`input`, shape {tuple(input.shape)}; got {tuple(target.shape)}"
            )
    labels = target.to(torch.int64)
    if input.ndim == 1:
        labels = labels.reshape(())
    return Target(labels, False, ignore_index, first_class or 0, first_class is not None)
