"""The native engine for losses of rows: hands addresses to the kernels of ``csrc/``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._check import label_out_of_range
from .. import core
from .autograd import Total
from .problem import Problem, Tensors
from .programs import Program

READS_TENSORS = False  # a divisor is a number of the host
BEYOND = 32  # zeros after a vector of the classes that is read by whole cache lines
_NO_TRANSFORM = (0, False, 0.0, 0, 0)


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
    matrix, whole = core.matrix(out, problem.axis, may_copy=False)
    addresses = [_partial(partial, keep) for partial in partials]
    arguments += [table.data_ptr(), problem.mask, addresses, matrix]
    core._core.row_gradient(*arguments)
    del keep
    if whole is not None:
        out.copy_(whole)
    return out


def takes(problem: Problem, row_weight: Tensor | None) -> bool:
    """True: the kernels sum every program."""
    return True


def total(
    tensors: Tensors, row_weight: Tensor | None, sum: Total, gradient: Tensor | None,
    slope: float = 1.0,
) -> Tensor:  # fmt: skip
    """The sum over all rows by its divisor; writes ``slope`` times its gradient by the logits."""
    if sum.direct:
        arguments = _direct_arguments(tensors, row_weight, sum)
        return _call(tensors.logits, arguments, sum, gradient, slope)
    problem, whole, matrix = Problem(tensors, sum.settings), None, None
    arguments, keep = _arguments(problem)
    if row_weight is not None:
        keep.append(row_weight.contiguous())
    weights = 0 if row_weight is None else keep[-1].data_ptr()
    if gradient is not None and not problem.logits.is_contiguous():
        matrix, whole = core.matrix(gradient, problem.axis, may_copy=False)
    arguments = *arguments, problem.mask, [], weights
    result = _call(problem.logits, arguments, sum, gradient, slope, matrix)
    del keep
    if gradient is not None and whole is not None:
        gradient.copy_(whole)
    return result


def total_ahead(
    tensors: Tensors, row_weight: Tensor | None, sum: Total, gradient: Tensor
) -> tuple[Tensor, Total]:
    """The sum, and the order as it was: the gradient is the one for slope 1."""
    return total(tensors, row_weight, sum, gradient), sum


def fits(slope: Tensor, gradient: Tensor) -> bool:
    """True if a gradient for slope 1 is the one for this slope, or became it by a factor."""
    factor = slope.item()
    if factor == 1:
        return True
    at, kind = gradient.data_ptr(), core.TYPES[gradient.dtype]
    dense = gradient.is_contiguous()
    return dense and core._core.scale_exactly(at, kind, gradient.numel(), factor)


def follow(
    tensors: Tensors, row_weight: Tensor | None, sum: Total, slope: Tensor,
    gradient: Tensor | None,
) -> Tensor:  # fmt: skip
    """The gradient for any slope, written over the one for slope 1 if that is there."""
    if gradient is None:
        gradient = core.empty_like(tensors.logits)
    total(tensors, row_weight, sum, gradient, slope.item())
    return gradient


Arguments = tuple[Any, ...]  # of the core's `loss`, from the logits to the row weights
_DIVISORS = {"weight": 2, "count": 3}


def _call(
    logits: Tensor, arguments: Arguments, sum: Total, gradient: Tensor | None, slope: float,
    matrix: Any = None,
) -> Tensor:  # fmt: skip
    """One call into the core. Without ``matrix`` a gradient lies in memory as the logits do."""
    result, by = logits.new_empty((), dtype=sum.dtype), sum.divisor
    if matrix is None:
        matrix = core.NO_MATRIX if gradient is None else (gradient.data_ptr(), *arguments[0][1:])
    if isinstance(by, str):
        divisor = (_DIVISORS[by], 0.0, sum.empty == "zero")
    else:
        divisor = (0, 1.0, False) if by is None else (1, float(by), sum.empty == "zero")
    loss: Any = core._core.loss
    _, bad, label, _ = loss(
        compiled(sum.program), *arguments, divisor, slope, result.data_ptr(),
        core.TYPES[sum.dtype], matrix,
    )  # fmt: skip
    if bad:
        raise label_out_of_range(label, arguments[2], sum.settings.ignore_index)
    return result


def _direct_arguments(tensors: Tensors, row_weight: Tensor | None, sum: Total) -> Arguments:
    """The arguments of contiguous (N, C) logits and (N,) classes, with weights or without."""
    logits, weight = tensors.logits, tensors.class_weight
    count, classes = logits.shape
    return (
        (logits.data_ptr(), core.TYPES[logits.dtype], classes, 1, 0, 1), count, classes,
        (tensors.target.data_ptr(), sum.settings.ignore_index, 0, False),
        core.NO_MATRIX, _NO_TRANSFORM, (0 if weight is None else weight.data_ptr(), 0),
        sum.mask, [], 0 if row_weight is None else row_weight.data_ptr(),
    )  # fmt: skip


_compiled: dict[Program, Any] = {}


def compiled(program: Program) -> Any:
    """A program as the core takes it."""
    found = _compiled.get(program)
    if found is None:
        if len(_compiled) >= 256:  # of settings that change at every step
            _compiled.clear()
        codes = {name: code for code, name in enumerate(core._core.OPERATIONS)}
        lines = [(codes[name], a, b, c, float.fromhex(x)) for name, a, b, c, x in program]
        found = _compiled[program] = core._core.Program(lines)
    return found


def _partial(partial: Tensor | None, keep: list[Tensor]) -> tuple[int, int]:
    """The address of one number per row, and the step between them; (0, 0) for zeros."""
    if partial is None:
        return (0, 0)
    if not any(partial.stride()):  # one number for all rows, expanded
        return (partial.data_ptr(), 0)
    keep.append(partial.contiguous())
    return (keep[-1].data_ptr(), 1)


def _arguments(problem: Problem) -> tuple[list[Any], list[Tensor]]:
    """The problem as numbers, and the tensors that must live as long as the addresses are used."""
    t, s, keep = problem.tensors, problem.settings, []
    logits, copy = core.matrix(t.logits, problem.axis)
    if copy is not None:
        keep.append(copy)
    sweep = torch.float64 if t.logits.dtype == torch.float64 else torch.float32

    def address(tensor: Tensor | None, dtype: torch.dtype = sweep, beyond: int = 0) -> int:
        if tensor is None:
            return 0
        if tensor.dtype is not dtype or beyond or not tensor.is_contiguous():
            tensor = tensor.detach().to(dtype).contiguous()
            tensor = torch.nn.functional.pad(tensor, (0, beyond)) if beyond else tensor
            keep.append(tensor)
        return tensor.data_ptr()

    soft = _soft_matrix(problem, sweep, keep) if s.soft else core.NO_MATRIX
    labels = address(t.target, torch.int64) if problem.labelled else 0
    transform = _NO_TRANSFORM
    if s.softcap or t.scale is not None or t.class_scale is not None or t.class_bias is not None:
        transform = (
            address(t.scale, torch.float64),
            t.scale is not None and t.scale.ndim > 0,
            s.softcap,
            address(t.class_scale, beyond=BEYOND),
            address(t.class_bias),
        )
    weights = (0, 0)
    if t.class_weight is not None or t.mean_weight is not None:
        weights = (address(t.class_weight), address(t.mean_weight, beyond=BEYOND))
    target = (labels, s.ignore_index, s.first_class, s.sharded)
    rows = problem.rows.numel()
    return [logits, rows, problem.classes, target, soft, transform, weights], keep


def _soft_matrix(problem: Problem, sweep: torch.dtype, keep: list[Tensor]) -> tuple[int, ...]:
    """The soft targets of rows, or of a table's classes, as a matrix."""
    table, copy = problem.tensors.target_table, None
    if table is None:
        soft, copy = core.matrix(problem.tensors.target, problem.axis)
    else:
        table = table.to(sweep) if table.dtype == torch.float64 else table
        keep.append(table)
        soft, copy = core.matrix(table, 1)
    if copy is not None:
        keep.append(copy)
    return soft
