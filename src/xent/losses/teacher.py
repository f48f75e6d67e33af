"""Students and teachers: what a call is about, and its reduction, by chunks behind heads."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from .._check import class_indices, is_tensor
from ..engines.modes import autocasts
from ..engines.rows.problem import Index
from ..frames.reduction import Reduce, Reduction, divisor_of, read_reduction, weigh
from ..heads import products
from ..heads.gradients import RowFunction, row_values, sum_ahead
from ..heads.kept import rows_of
from ..heads.logits import LinearLogits, are_logits
from ..heads.problem import HeadProblem, flat_rows, problem_of
from ..targets import class_axis


class Order(Protocol):
    """The options of a distillation, which know how to compute the loss."""

    @property
    def ignore_index(self) -> int:
        """The class that marks rows to leave out."""
        ...

    def reduce(
        self,
        student: Tensor,
        teacher: Tensor,
        kept: Tensor | None,
        target: Tensor | None,
        reduce: Reduce,
        dtype: torch.dtype,
    ) -> Tensor:
        """The loss of logits that are there. ``kept`` marks rows, ``target`` may have labels."""
        ...


def distill(
    order: Order,
    input: Tensor | LinearLogits,
    teacher: Tensor | LinearLogits,
    target: Tensor | None,
    row_mask: Tensor | None,
    reduction: Reduction,
    normalizer: float | Tensor | str | None,
    row_weight: Tensor | None,
    empty: str,
) -> Tensor:
    """The loss of a call whose teacher was checked."""
    axis = axis_of_both(input, teacher)
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    reduce = read_reduction(reduction, normalizer, row_weight, empty, rows, input.device)
    if target is not None:
        is_tensor("target", target)
    if target is not None and not target.is_floating_point():
        target = class_indices("target", target)
    kept = _rows_kept(input, target, row_mask, order.ignore_index, rows)
    if kept is None and row_weight is not None:
        kept = torch.ones(rows, dtype=torch.bool, device=input.device)
    if kept is not None:
        unweighted = kept
        kept, reduce = reduce.counting(unweighted)
        if kept is not unweighted and target is not None and target.shape == rows:
            target = torch.where(kept, target, order.ignore_index)
    dtype = torch.promote_types(input.dtype, teacher.dtype)
    dtype = torch.float32 if autocasts(input) and dtype.itemsize < 4 else dtype
    if isinstance(input, Tensor) and isinstance(teacher, Tensor):
        return order.reduce(input, teacher, kept, target, reduce, dtype)
    return _reduce_by_chunks(input, teacher, order, kept, target, reduce).to(dtype)


def _reduce_by_chunks(
    student: Tensor | LinearLogits,
    teacher: Tensor | LinearLogits,
    order: Order,
    kept: Tensor | None,
    target: Tensor | None,
    reduce: Reduce,
) -> Tensor:
    """Reduce the loss chunk by chunk, if student or teacher has its logits behind a head."""
    shape = student.shape[:-1]
    kept, target, weight = flat_rows(shape, kept, target, reduce.row_weight)
    sides = [_side(student), _side(teacher)]
    heads = [side for side in sides if isinstance(side, HeadProblem)]
    tensors = [side for side in sides if isinstance(side, Tensor)]
    read = (*tensors, target, weight, *(x for side in heads for x in side.others))
    questions = [side if isinstance(side, Tensor) else side.with_source(None) for side in sides]
    each = reduce.reduction == "none"

    def some_rows(index: Index, *z: Tensor) -> Tensor:
        chunks = iter(z)
        pair = [
            side[index]
            if isinstance(side, Tensor)
            else side.of_rows(index, next(chunks)).transformed()
            for side in questions
        ]
        here, labels, w = (None if x is None else x[index] for x in (kept, target, weight))
        part = Reduce("none" if each else "sum", None, None if each else w, "nan")
        return order.reduce(pair[0], pair[1], here, labels, part, torch.float64)

    rows = RowFunction(
        tuple(side.source for side in heads), rows_of(kept), some_rows,
        tuple(x for x in read if isinstance(x, Tensor)),
    )  # fmt: skip
    if each:
        return weigh(row_values(rows), kept, weight).reshape(shape)
    total = sum_ahead(rows)
    if reduce.reduction == "sum":
        return total
    mass = torch.ones(math.prod(shape), dtype=total.dtype, device=total.device)
    mass = mass if kept is None else kept.to(total.dtype)
    divisor = divisor_of(kept, mass, reduce.normalizer, weight)
    return reduce.by(total, divisor)


def _side(logits: Tensor | LinearLogits) -> HeadProblem | Tensor:
    """The logits of student or teacher, all rows on one axis: ``(N, C)``."""
    if isinstance(logits, Tensor):
        return logits.reshape(-1, logits.shape[-1])
    return problem_of(products.for_comparison(logits))


def axis_of_both(input: Tensor | LinearLogits, teacher: Tensor | LinearLogits) -> int:
    """The axis of the classes, which is the last one if a head is among them."""
    plain = isinstance(input, Tensor) and isinstance(teacher, Tensor)
    return class_axis(input) if plain else input.ndim - 1


def check_teacher(input: Tensor | LinearLogits, teacher: Tensor | LinearLogits) -> None:
    """Raise unless student and teacher hold logits of the same rows and classes."""
    for name, value in (("input", input), ("teacher", teacher)):
        are_logits(name, value)
        if not value.is_floating_point():
            raise TypeError(f"`{name}` must hold floating-point logits, got {value.dtype}")
    if input.ndim == 0 or input.shape != teacher.shape:
        raise ValueError(
            f"`input` and `teacher` must hold logits of the same rows and classes; got shapes "
            f"{tuple(input.shape)} and {tuple(teacher.shape)}"
        )
    if input.device != teacher.device:
        raise ValueError(f"`input` is on {input.device} but `teacher` on {teacher.device}")


def _rows_kept(
    input: Tensor | LinearLogits, target: Tensor | None, row_mask: Tensor | None, ignore_index: int,
    rows: torch.Size,
) -> Tensor | None:  # fmt: skip
    """A mask of the rows that count; None for all."""
    kept = None
    if row_mask is not None:
        is_tensor("row_mask", row_mask)
        if row_mask.shape != rows or row_mask.dtype != torch.bool:
            raise ValueError(
                f"`row_mask` must be bool, one per row, shape {tuple(rows)}; got {row_mask.dtype} "
                f"of shape {tuple(row_mask.shape)}"
            )
        kept = row_mask
    if target is not None and target.shape == rows:
        labelled = target != ignore_index
        kept = labelled if kept is None else kept & labelled
    return kept
