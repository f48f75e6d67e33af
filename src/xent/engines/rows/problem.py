"""The problem of rows of logits: a record of tensors and a record of settings."""

from __future__ import annotations

from types import EllipsisType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ...logits import LogitTransform
from ...row_statistics import RowStatistics, field_mask, fields_of
from ...shards import Shard
from ...targets import class_axis
from ..modes import autocasts

Index = slice | Tensor | EllipsisType  # some rows, or all
Shaped = TypeVar("Shaped", Tensor, RowStatistics)


class Tensors(NamedTuple):
    """The tensors of a problem.

    Operators for compilers take the tensors in this order, and autograd saves them in it.
    """

    logits: Tensor  # (C,), (N, C) or (N, C, d1, ...)
    target: Tensor  # classes of the rows, int64, or probabilities in the shape of the logits
    scale: Tensor | None = None  # float64, 0-d or one number per row
    class_bias: Tensor | None = None  # (C,)
    class_weight: Tensor | None = None  # (C,)
    class_scale: Tensor | None = None  # (C,)
    mean_weight: Tensor | None = None  # (C,): how `mean` weighs the classes
    target_table: Tensor | None = None  # (C, C): the probabilities that stand for each class


class Settings(NamedTuple):
    """The numbers and names of a problem; operators for compilers take them after the tensors."""

    soft: bool  # whether the targets are probabilities
    ignore_index: int = -100
    first_class: int = 0  # number of the first class of these logits; for shards
    sharded: bool = False  # whether targets may be classes of other shards
    softcap: float = 0.0  # 0: none
    requests: tuple[str, ...] = ()
    shard: Shard | None = None  # where the classes are split over ranks


class Problem:
    """The problem of one call. The tensors have been checked against each other.

    Attributes:
        tensors: logits, targets and weights.
        settings: numbers and names, among them the statistics that are asked for.
        logits: the first of the tensors.
        axis: axis of the classes.
        classes: number of classes.
        rows: shape of the rows, that of the logits without the class axis.
        mask: the fields to compute, as bits.
    """

    __slots__ = ("axis", "classes", "logits", "mask", "rows", "settings", "tensors")

    def __init__(self, tensors: Tensors, settings: Settings) -> None:
        self.tensors, self.settings, self.logits = tensors, settings, tensors.logits
        self.mask = field_mask(settings.soft, settings.requests)
        shape, axis = tensors.logits.shape, class_axis(tensors.logits)
        self.axis, self.classes, self.rows = axis, shape[axis], shape[:axis] + shape[axis + 1 :]

    # ---- the rows as the caller sees them; behind a head they have another shape ----------------

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return self.logits.dtype

    @property
    def device(self) -> torch.device:
        """The device of the logits."""
        return self.tensors.target.device

    def result_dtype(self) -> torch.dtype:
        """The dtype of a loss: PyTorch's promotion of the dtypes of logits, targets and weights.

        Under autocast PyTorch copies the logits to float32; here only the result is float32.
        """
        dtype, t = self.dtype, self.tensors
        if self.settings.soft and t.target_table is None:
            dtype = torch.promote_types(dtype, t.target.dtype)
            if t.class_weight is not None:
                dtype = torch.promote_types(dtype, t.class_weight.dtype)
        return torch.float32 if autocasts(t.target) and dtype.itemsize < 4 else dtype

    def flat(self, x: Any) -> Any:
        """An argument of the call whose first axes are those of the rows, as engines take it."""
        return x

    def unflat(self, x: Shaped) -> Shaped:
        """Reshape one number per row to the shape of the caller's rows."""
        return x

    # ---- what an engine reads -------------------------------------------------------------------

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields to compute, in the order of their table."""
        return fields_of(self.mask)

    @property
    def table_shape(self) -> tuple[int, ...]:
        """The shape of the table of statistics."""
        return (len(self.fields), *self.rows)

    @property
    def labelled(self) -> bool:
        """True if ``target`` holds class indices; then rows may be ignored."""
        return not self.settings.soft or self.tensors.target_table is not None

    @property
    def probabilities(self) -> Tensor | None:
        """The probabilities of a soft target: one line for each row, or for each class."""
        if not self.settings.soft:
            return None
        table = self.tensors.target_table
        return self.tensors.target if table is None else table

    @property
    def transform(self) -> LogitTransform:
        """The scale, softcap and bias of the logits."""
        t = self.tensors
        return LogitTransform(t.scale, self.settings.softcap, t.class_bias, t.class_scale)

    def transformed(self) -> Tensor:
        """The logits, classes last, after scale, cap and bias."""
        return self.transform(self.logits)

    def soft_target(self) -> Tensor:
        """The soft target in the shape of the logits, looked up if it comes as a table."""
        target, table = self.tensors.target, self.tensors.target_table
        if table is None:
            return target
        known = (target >= 0) & (target < table.shape[0])
        return table[torch.where(known, target, 0)].movedim(-1, self.axis)

    def labels(self) -> Tensor | None:
        """The class of each row, negative where the row is ignored; None without classes."""
        if not self.labelled:
            return None
        target, ignore_index = self.tensors.target, self.settings.ignore_index
        return target if ignore_index < 0 else torch.where(target == ignore_index, -1, target)

    def kept(self) -> Tensor | None:
        """Return a mask of the rows that are not ignored; None where no row can be."""
        return self.tensors.target != self.settings.ignore_index if self.labelled else None

    def replace(self, **tensors: Tensor | None) -> Problem:
        """Return the same problem with other tensors, given by name."""
        return Problem(self.tensors._replace(**tensors), self.settings)

    @property
    def of_all_ranks(self) -> tuple[Tensor | None, ...]:
        """Tensors that all ranks have: features, and what changes the logits of their classes.

        The order is that of ``agreement.LEARNED``.
        """
        t = self.tensors
        return None, t.scale, t.class_bias, t.class_scale

    @property
    def others(self) -> tuple[Tensor | None, ...]:
        """Every tensor but the logits."""
        return self.tensors[1:]

    def without_transform(self, logits: Tensor) -> Problem:
        """The problem of logits that have been transformed already."""
        plain = self.tensors._replace(logits=logits, scale=None, class_bias=None, class_scale=None)
        return Problem(plain, self.settings._replace(softcap=0.0))

    def wants_gradient(self) -> bool:
        """True if the logits want a gradient."""
        return self.logits.requires_grad and torch.is_grad_enabled()

    def differentiable_beyond_logits(self) -> bool:
        """True if a tensor other than the logits wants a gradient."""
        wanted = (t is not None and t.requires_grad for t in self.others)
        return torch.is_grad_enabled() and any(wanted)

    def of_rows(self, index: Index, logits: Tensor) -> Problem:
        """The problem of some of the rows, whose ``(N, C)`` logits are given."""
        scale = self.tensors.scale
        if scale is not None and scale.ndim:
            scale = scale[index]
        target = self.tensors.target[index]
        return Problem(
            self.tensors._replace(logits=logits, target=target, scale=scale), self.settings
        )
