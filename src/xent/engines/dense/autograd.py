"""Values and sums of dense losses as differentiable functions of student and teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contract import DenseEngine
from ..core import still_fitting
from ..modes import only_differentiable
from . import reference
from .problem import SIDES, TENSORS, DenseProblem


class DenseTotal(NamedTuple):
    """The order for a sum over rows."""

    engine: DenseEngine
    divisor: float | str | None  # "weight" or "count" for that of the rows kept; None: 1
    never_zero: bool  # True: a divisor of 0 becomes 1
    reduce: Callable[[Tensor], Tensor]  # from the values of rows to the result, in plain operations

    def by_operations(self, problem: DenseProblem) -> Tensor:
        """The result in plain operations, which can be differentiated again."""
        return self.reduce(reference.plain_values(problem)).to(problem.dtype)


class _TotalAhead(torch.autograd.Function):
    """A sum over rows, and its gradients, in one call. They are those for slope 1."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher: Tensor | None, question: tuple[DenseProblem, DenseTotal]
    ) -> Tensor:
        """The loss, 0-d. The question is one argument, because each argument costs time."""
        problem, ctx.order = question
        order = ctx.order
        ctx.needed = ctx.needs_input_grad[:SIDES]
        loss, ctx.gradients = order.engine.total(
            problem, order.divisor, ctx.needed, order.never_zero
        )
        _save(ctx, problem)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients by student and teacher."""
        (grad,), order = grads, ctx.order
        # Handed over and not kept, so that a leaf takes the memory without a copy.
        made, ctx.gradients = ctx.gradients, None
        differentiable = only_differentiable(grad)
        if made is not None and not differentiable and order.engine.fits(grad, made):
            return *made, None
        problem = _saved(ctx)
        if differentiable:
            return *_plain_gradients(ctx, problem, order.by_operations, grad), None
        if made is not None and not _all_fit(made, problem):
            made = None
        found = order.engine.gradients(
            problem, grad, order.divisor, ctx.needed, order.never_zero, made
        )
        return *found, None


class _Values(torch.autograd.Function):
    """Values of rows; the gradients are computed when the slopes are known."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher: Tensor | None, order: tuple[DenseProblem, DenseEngine]
    ) -> Tensor:
        """The values."""
        problem, ctx.engine = order
        ctx.needed = ctx.needs_input_grad[:SIDES]
        _save(ctx, problem)
        return ctx.engine.values(problem)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients by student and teacher."""
        (grad,), problem = grads, _saved(ctx)
        if only_differentiable(grad):
            plain = lambda p: reference.plain_values(p).to(p.dtype)  # noqa: E731
            return *_plain_gradients(ctx, problem, plain, grad), None
        return *ctx.engine.gradients(problem, grad, None, ctx.needed), None


# torch.autograd.Function.apply without its check for torch.func, which has been done: 2.5 us.
_apply_total: Callable[..., Tensor]
_apply_total = super(torch.autograd.Function, _TotalAhead).apply  # pyright: ignore
_apply_values: Callable[..., Tensor]
_apply_values = super(torch.autograd.Function, _Values).apply  # pyright: ignore


def total(problem: DenseProblem, order: DenseTotal) -> Tensor:
    """A sum over rows, 0-d, differentiable by student and teacher."""
    if _tracked(problem):
        return _apply_total(problem.logits, problem.teacher, (problem, order))
    return order.engine.total(problem, order.divisor, (False, False), order.never_zero)[0]


def values(problem: DenseProblem, engine: DenseEngine) -> Tensor:
    """The weighted value of each row, differentiable by student and teacher."""
    if _tracked(problem):
        return _apply_values(problem.logits, problem.teacher, (problem, engine))
    return engine.values(problem)


def _tracked(problem: DenseProblem) -> bool:
    teacher = problem.teacher
    return torch.is_grad_enabled() and (
        problem.logits.requires_grad or (teacher is not None and teacher.requires_grad)
    )


def _all_fit(made: list[Tensor | None], problem: DenseProblem) -> bool:
    """True if every gradient ahead still has the layout of its side."""
    pairs = zip(made, problem.sides, strict=True)
    return all(x is None or (y is not None and still_fitting(x, y) is x) for x, y in pairs)


def _save(ctx: Any, problem: DenseProblem) -> None:
    ctx.save_for_backward(*problem.tensors)
    ctx.settings = problem[TENSORS:]  # a loss that is kept must not keep the logits alive


def _saved(ctx: Any) -> DenseProblem:
    return DenseProblem(*ctx.saved_tensors, *ctx.settings)


def _plain_gradients(
    ctx: Any, problem: DenseProblem, function: Callable[[DenseProblem], Tensor], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of plain operations; they can be differentiated again."""
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        result = function(problem)
    wanted = [x for x, n in zip(problem.sides, ctx.needed, strict=True) if n]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=record))  # pyright: ignore
    return [next(found) if n else None for n in ctx.needed]
