"""What an engine is asked: logits, what is done to them, the target, and which statistics."""

from __future__ import annotations

from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor

from ...logits import LogitTransform
from ...row_statistics import field_mask, fields_of
from ...targets import Target, class_axis
from ..modes import settled

_NOTHING = torch.empty(0, dtype=torch.float32, device="cpu")
Index = slice | Tensor | EllipsisType  # some rows, or all


class Problem(NamedTuple):
    """One call's question. The tensors have been checked against each other."""

    # (C,), (N, C) or (N, C, d1, ...); or (N, C) LinearLogits, which have what is asked of them here
    logits: Tensor
    target: Target
    transform: LogitTransform = LogitTransform()
    class_weight: Tensor | None = None  # (C,)
    requests: tuple[str, ...] = ()
    mean_weight: Tensor | None = None  # (C,): what `mean` weighs the classes by

    @property
    def axis(self) -> int:
        """The axis of the classes."""
        return class_axis(self.logits)

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.logits.shape[self.axis]

    @property
    def rows(self) -> torch.Size:
        """The shape of the rows: that of the logits without the class axis."""
        shape = self.logits.shape
        return shape[: self.axis] + shape[self.axis + 1 :]

    @property
    def mask(self) -> int:
        """The fields to compute, as bits."""
        return field_mask(self.target.soft, self.requests)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields to compute, in the order of their table."""
        return fields_of(self.mask)

    @property
    def table_shape(self) -> tuple[int, ...]:
        """The shape of the table of statistics."""
        return (len(self.fields), *self.rows)

    def soft_target(self) -> Tensor:
        """The soft target in the shape of the logits, looked up if it comes as a table."""
        target = self.target
        if target.table is None:
            return target.values
        known = (target.values >= 0) & (target.values < target.table.shape[0])
        return target.table[torch.where(known, target.values, 0)].movedim(-1, self.axis)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Every tensor, in a fixed order, for those who must save them."""
        return (self.logits, *self.beside())

    def transformed(self) -> Tensor:
        """The logits, classes last, after scale, cap and bias."""
        return self.transform(self.logits)

    def without_logits(self) -> Problem:
        """The question about logits that come by rows."""
        return self._replace(logits=_NOTHING)

    def without_tensors(self) -> Problem:
        """The question for whoever has the tensors elsewhere, and must not keep them alive."""
        return self.with_tensors((_NOTHING, _NOTHING, *[None] * 6))

    def beside(self) -> tuple[Tensor | None, ...]:
        """Every tensor but the logits."""
        return (
            self.target.values,
            self.transform.scale,
            self.transform.class_bias,
            self.class_weight,
            self.transform.class_scale,
            self.mean_weight,
            self.target.table,
        )

    def settled(self) -> Problem:
        """The same question of tensors whose pending negations are carried out."""
        tensors = tuple(None if t is None else settled(t) for t in self.beside())
        logits = self.logits
        if isinstance(logits, Tensor):  # a head has settled its own
            logits = settled(logits)
        return self.with_tensors((logits, *tensors))

    def with_tensors(self, tensors: tuple[Tensor | None, ...]) -> Problem:
        """The same question about other tensors, in the order of :meth:`tensors`."""
        logits, target, scale, bias, weight, class_scale, mean_weight, table = tensors
        assert logits is not None
        assert target is not None
        return self._replace(
            logits=logits,
            target=self.target._replace(values=target, table=table),
            transform=self.transform._replace(
                scale=scale, class_bias=bias, class_scale=class_scale
            ),
            class_weight=weight,
            mean_weight=mean_weight,
        )

    def differentiable_beyond_logits(self) -> bool:
        """Whether something other than the logits wants a gradient."""
        others = self.beside()
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in others)

    def of_rows(self, index: Index, logits: Tensor) -> Problem:
        """The question about some of the rows of ``(N, C)`` logits, which come along."""
        target, transform = self.target, self.transform
        scale = transform.scale
        if scale is not None and scale.ndim:
            transform = transform._replace(scale=scale[index])
        return self._replace(
            logits=logits,
            target=target._replace(values=target.values[index]),
            transform=transform,
        )
