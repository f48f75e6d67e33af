"""The native engine for losses of rows: hands addresses to the kernels of ``csrc/``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._check import label_out_of_range
from .. import core
from .problem import Problem

BEYOND = 32  # zeros after a vector of the classes that is read by whole cache lines
_NO_MATRIX = (0, 0, 0, 1, 0, 1)


def row_statistics(problem: Problem) -> tuple[Tensor, bool]:
    """The table of statistics, (fields, N...) in float64, and whether no row was ignored."""
    table = torch.empty(problem.table_shape, dtype=torch.float64, device=problem.logits.device)
    arguments, keep = _arguments(problem)
    arguments += [table.data_ptr(), problem.mask]
    kept, has_bad_label, bad_label = core._core.row_statistics(*arguments)
    del keep
    if has_bad_label:
        raise label_out_of_range(bad_label, problem.classes, problem.settings.ignore_index)
    return table, kept == problem.rows.numel()


def row_gradient(
    problem: Problem,
    table: Tensor,
    partials: Sequence[Tensor | None],
    out: Tensor | None = None,
) -> Tensor:
    """The gradient with respect to the logits of the sum of every field times its partial.

    ``out``, which may be the logits themselves, receives it.
    """
    if out is None:
        out = core.empty_like(problem.logits)
    table = table.contiguous()
    arguments, keep = _arguments(problem)
    matrix, whole = _matrix(out, problem.axis, may_copy=False)
    slopes = [_slopes(partial, keep) for partial in partials]
    arguments += [table.data_ptr(), problem.mask, slopes, matrix]
    core._core.row_gradient(*arguments)
    del keep
    if whole is not None:
        out.copy_(whole)
    return out


def _slopes(partial: Tensor | None, keep: list[Tensor]) -> tuple[int, int]:
    """The address of one number per row, and the step between them; (0, 0) for zeros."""
    if partial is None:
        return (0, 0)
    if not any(partial.stride()):  # one number for all rows, expanded
        return (partial.data_ptr(), 0)
    keep.append(partial.contiguous())
    return (keep[-1].data_ptr(), 1)


def _arguments(problem: Problem) -> tuple[list[Any], list[Tensor]]:
    """The problem as numbers, and the tensors that must live as long as the addresses are used."""
    p, keep = problem, []

    sweep = torch.float64 if p.logits.dtype == torch.float64 else torch.float32

    def address(tensor: Tensor | None, dtype: torch.dtype = sweep, beyond: int = 0) -> int:
        if tensor is None:
            return 0
        tensor = tensor.detach().to(dtype).contiguous()
        keep.append(torch.nn.functional.pad(tensor, (0, beyond)) if beyond else tensor)
        return keep[-1].data_ptr()

    t, s = p.tensors, p.settings
    logits, copy = _matrix(t.logits, p.axis)
    soft, soft_copy = _NO_MATRIX, None
    if t.target_table is not None:
        table = t.target_table
        table = table.to(sweep) if table.dtype == torch.float64 else table
        keep.append(table)
        soft, soft_copy = _matrix(table, 1)
    elif s.soft:
        soft, soft_copy = _matrix(t.target, p.axis)
    keep += [x for x in (copy, soft_copy) if x is not None]
    labels = address(t.target, torch.int64) if p.labelled else 0
    transform = (
        address(t.scale, torch.float64),
        t.scale is not None and t.scale.ndim > 0,
        s.softcap,
        address(t.class_scale, beyond=BEYOND),
        address(t.class_bias),
    )
    weights = (address(t.class_weight), address(t.mean_weight, beyond=BEYOND))
    target = (labels, s.ignore_index, s.first_class, s.sharded)
    return [logits, p.rows.numel(), p.classes, target, soft, transform, weights], keep


def _matrix(x: Tensor, axis: int, may_copy: bool = True) -> tuple[tuple, Tensor | None]:
    """A tensor as rows: (address, type, outer step, inner count, inner step, class step).

    Rows of (N, C, d1, ...) are addressed in place if d1, ... step evenly, which holds for
    contiguous and channels-last tensors and slices of a batch. Others are copied; the copy is the
    second value. With ``may_copy=False`` it is left uninitialised, to be copied back from.
    """
    copy = None
    if x.ndim > 3:
        try:
            flat = x.view(*x.shape[:2], -1)
        except RuntimeError:
            copy = (
                x.contiguous()
                if may_copy
                else torch.empty_like(x, memory_format=torch.contiguous_format)
            )
            flat = copy.view(*x.shape[:2], -1)
    else:
        flat = x
    step = flat.stride()
    kind = core.TYPES[x.dtype]
    if x.ndim == 1:
        return (flat.data_ptr(), kind, 0, 1, 0, step[0]), copy
    if flat.ndim == 2:
        return (flat.data_ptr(), kind, step[0], 1, 0, step[1]), copy
    return (flat.data_ptr(), kind, step[0], flat.shape[2], step[2], step[1]), copy


def plain_loss(logits: Tensor, labels: Tensor, ignore_index: int, mean: bool) -> tuple[Tensor, Any]:
    """Mean or sum of ``-log p`` over contiguous (N, V) rows, and what its gradient needs."""
    rows, classes = logits.shape
    loss = logits.new_empty(())
    table = core._core.plain_loss(
        logits.data_ptr(), core.TYPES[logits.dtype], rows, classes,
        labels.data_ptr(), ignore_index, mean, loss.data_ptr(),
    )  # fmt: skip
    if isinstance(table, int):
        raise label_out_of_range(table, classes, ignore_index)
    return loss, table


def plain_gradient(table: Any, logits: Tensor, labels: Tensor, slope: Tensor) -> Tensor:
    """The gradient of :func:`plain_loss` times ``slope``, a number as a 0-d tensor."""
    gradient = core.empty_like(logits)
    core._core.plain_gradient(
        table, logits.data_ptr(), labels.data_ptr(), slope.data_ptr(), gradient.data_ptr()
    )
    return gradient
