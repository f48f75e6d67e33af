"""Statistics and sums of rows as differentiable functions: forward and backward by an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..contract import RowEngine, TotalEngine
from ..core import empty_like, still_fitting
from ..modes import only_differentiable
from . import reference
from .problem import Problem, Settings, Tensors
from .programs import Program


class DifferentiableFields(torch.autograd.Function):
    """``row_statistics`` forward and ``row_gradient`` backward, of one engine.

    The forward pass saves the logits and O(N) numbers; the backward pass sweeps the logits again.
    Each field is an output of its own, so that autograd makes no gradient of zeros for unused ones.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, problem: Problem, engine: RowEngine, inplace_backward: bool
    ) -> tuple[Any, ...]:
        """The fields of the table of statistics, and whether it is complete."""
        table, complete = engine.row_statistics(problem)
        ctx.save_for_backward(*problem.tensors, table)
        ctx.settings = problem.settings  # a loss that is kept must not keep the logits alive
        ctx.engine, ctx.inplace_backward = engine, inplace_backward
        ctx.set_materialize_grads(False)
        return *table.unbind(0), complete

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        partials = grads[:-1]
        if all(partial is None for partial in partials):
            return None, None, None, None
        *tensors, table = ctx.saved_tensors
        problem = Problem(Tensors(*tensors), ctx.settings)
        return (
            gradient(problem, table, partials, ctx.engine, ctx.inplace_backward),
            None,
            None,
            None,
        )


def gradient(
    problem: Problem,
    table: Tensor,
    partials: Sequence[Tensor | None],
    engine: RowEngine,
    inplace: bool,
) -> Tensor:
    """The gradient by ``engine``, or by the reference where it must be differentiable itself."""
    if only_differentiable(*partials):
        return reference.row_gradient(problem, table, partials)
    if not inplace:
        return engine.row_gradient(problem, table, partials)
    logits = problem.logits
    result = engine.row_gradient(problem, table, partials, out=logits.detach())
    increment_version(logits)  # so that a second backward pass raises: the logits are gone
    return result


class _AllAndSome(torch.autograd.Function):
    """The logits, and again those of some classes.

    By PyTorch's ``gather`` the gradient of a few logits would be a second tensor as large as all of
    them, full of zeros. Here it is added in place to the gradient of all logits, which comes from a
    kernel and belongs to nobody else.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(classes)
        ctx.axis, ctx.shape = axis, logits.shape
        ctx.set_materialize_grads(False)
        return logits.view_as(logits), logits.gather(axis, classes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (classes,), (of_all, of_some) = ctx.saved_tensors, grads
        if of_some is None:
            return of_all, None, None
        if of_all is None:
            of_all = of_some.new_zeros(ctx.shape)
        if only_differentiable(of_all, of_some):
            return of_all.scatter_add(ctx.axis, classes, of_some), None, None
        return of_all.scatter_add_(ctx.axis, classes, of_some), None, None


def all_and_some(logits: Tensor, classes: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The logits, to be measured by kernels and used nowhere else, and those of some classes.

    Args:
        logits: logits that require a gradient.
        classes: indices, with K in the place of the classes.
        axis: the axis of the classes.
    """
    return _AllAndSome.apply(logits, classes, axis)  # pyright: ignore


class Total(NamedTuple):
    """The order for a sum over rows: all that an engine needs but for the tensors."""

    engine: TotalEngine
    program: Program  # the value of a row, from its statistics
    settings: Settings
    mask: int  # the fields to compute, as bits
    divisor: float | str | Tensor | None  # "weight" or "count" for that of the rows kept; None: 1
    empty: str  # "zero": a divisor of 0 becomes 1
    dtype: torch.dtype  # of the result
    by_operations: Callable[..., Tensor]  # of a problem and row weights, in plain operations
    direct: bool = False  # True: contiguous (N, C) logits and (N,) classes, with weights or without
    notes: Any = None  # of the engine, from the forward pass for the backward pass


Question = tuple[Tensors, Tensor | None, Total]  # row weights stand between the two


class TotalAhead(torch.autograd.Function):
    """A sum over rows, and its gradient, in one sweep over the logits.

    The gradient is the one for the slope that the engine expects: 1, which is nearly always the
    slope of a loss, or the slope of the last backward pass. For any other slope it is computed
    again, over the first, unless a factor on the first gives the same bits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, question: Question) -> Tensor:
        """The loss, 0-d. The question is one argument, because each argument costs time."""
        tensors, row_weight, total = question
        ctx.gradient = empty_like(logits)
        loss, ctx.total = total.engine.total_ahead(*question, ctx.gradient)
        # Only autograd may keep large tensors: it raises if one of them was changed since.
        divisor = total.divisor
        ctx.save_for_backward(
            *tensors, row_weight, divisor if isinstance(divisor, Tensor) else None
        )
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        (grad,), total = grads, ctx.total
        # Handed over and not kept, so that the leaf takes the memory without a copy.
        gradient, ctx.gradient = ctx.gradient, None
        differentiable = only_differentiable(grad)
        if gradient is not None and not differentiable and total.engine.fits(grad, gradient):
            return gradient, None  # and the logits are not read again
        *saved, row_weight, _ = ctx.saved_tensors  # raises if one was changed since
        tensors = Tensors(*saved)
        gradient = still_fitting(gradient, tensors.logits)
        ctx.total = total._replace(notes=None)  # a loss that is kept must not keep them
        if total.direct:  # hooks may have given back tensors of another layout
            total = total._replace(direct=False)
        if not differentiable:
            return total.engine.follow(tensors, row_weight, total, grad, gradient), None
        record, problem = torch.is_grad_enabled(), Problem(tensors, total.settings)
        with torch.enable_grad():
            loss = total.by_operations(problem, row_weight)
        (result,) = torch.autograd.grad(loss, problem.logits, grad, create_graph=record)
        return result, None


# torch.autograd.Function.apply without its check for torch.func, which modes.py has done: 2.5 us.
_total_ahead: Callable[..., Tensor]
_total_ahead = super(torch.autograd.Function, TotalAhead).apply  # pyright: ignore
differentiable_fields: Callable[..., tuple[Any, ...]]
differentiable_fields = super(torch.autograd.Function, DifferentiableFields).apply  # pyright: ignore


def total(tensors: Tensors, row_weight: Tensor | None, sum: Total) -> Tensor:
    """A sum over rows, 0-d, differentiable with respect to the logits, in one sweep."""
    if tensors.logits.requires_grad and torch.is_grad_enabled():
        return _total_ahead(tensors.logits, (tensors, row_weight, sum))
    return sum.engine.total(tensors, row_weight, sum, None)
