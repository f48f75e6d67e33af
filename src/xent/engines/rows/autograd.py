"""The statistics as a differentiable function that keeps nothing of the size of the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..modes import only_differentiable
from . import native, reference
from .problem import Problem, Settings, Tensors


class DifferentiableFields(torch.autograd.Function):
    """``row_statistics`` forward and ``row_gradient`` backward, of one engine.

    Forward saves the logits it was given and O(N) numbers; backward sweeps the logits again. The
    fields come one by one, so that those nobody uses need no gradient of zeros.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, problem: Problem, engine: ModuleType, inplace_backward: bool
    ) -> tuple[Any, ...]:
        """The fields of the table of statistics, and whether it is complete."""
        table, complete = engine.row_statistics(problem)
        ctx.save_for_backward(*problem.tensors, table)
        ctx.settings = problem.settings  # a loss that is kept must not keep the logits
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
    engine: ModuleType,
    inplace: bool,
) -> Tensor:
    """The gradient by ``engine``, or by the reference where it must be differentiable itself."""
    if only_differentiable(*partials):
        return reference.row_gradient(problem, table, partials)
    if not inplace:
        return engine.row_gradient(problem, table, partials)
    logits = problem.logits
    result = engine.row_gradient(problem, table, partials, out=logits.detach())
    increment_version(logits)  # a second backward must fail, not differentiate the gradient
    return result


class CrossEntropyAhead(torch.autograd.Function):
    """The sum of ``-log_prob * mass * row_weight`` by a divisor, and its gradient, in one sweep.

    The gradient is that for slope 1, which a loss nearly always has. For any other it is computed
    again, over the first; whether, is for the device to decide, as looking would mean to wait.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        problem: Problem,
        row_weight: Tensor | None,
        divisor: Tensor | None,
        engine: ModuleType,
    ) -> Tensor:
        """The loss, 0-d, in float64."""
        (log_prob, mass), ctx.gradient = engine.cross_entropy(problem, row_weight, divisor)
        ctx.save_for_backward(*problem.tensors, row_weight, divisor)
        ctx.settings = problem.settings
        ctx.engine = engine
        return _sum_of_nll(log_prob, mass, row_weight, divisor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        (grad,) = grads
        *tensors, row_weight, divisor = ctx.saved_tensors
        problem = Problem(Tensors(*tensors), ctx.settings)
        if only_differentiable(grad):
            record = torch.is_grad_enabled()
            with torch.enable_grad():
                table, _ = reference.row_statistics(problem)
                fields = dict(zip(problem.fields, table.unbind(0), strict=True))
                loss = _sum_of_nll(fields["log_prob"], fields["mass"], row_weight, divisor)
            (result,) = torch.autograd.grad(loss, problem.logits, grad, create_graph=record)
            return result, None, None, None, None
        # Handed over, not kept: the leaf may take the memory as its own.
        gradient, ctx.gradient = ctx.gradient, None
        result = ctx.engine.follow(problem, row_weight, divisor, grad, gradient)
        return result, None, None, None, None


def _sum_of_nll(
    log_prob: Tensor, mass: Tensor, row_weight: Tensor | None, divisor: Tensor | None
) -> Tensor:
    values = -log_prob * mass
    total = (values if row_weight is None else values * row_weight).sum()
    return total if divisor is None else total / divisor


class PlainCrossEntropy(torch.autograd.Function):
    """Mean or sum of ``-log p`` over rows of index targets, one call into the core each way.

    The general path is a dozen small tensor operations, which on a small batch cost more than all
    of PyTorch's cross_entropy (40 us at 32 x 10, forward and backward). Same kernels.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, mean: bool) -> Tensor:
        """The loss, 0-d."""
        loss, ctx.table = native.plain_loss(logits, labels, ignore_index, mean)
        ctx.save_for_backward(logits, labels)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        (grad,) = grads
        logits, labels = ctx.saved_tensors
        if not only_differentiable(grad):
            return native.plain_gradient(ctx.table, logits, labels, grad), None, None, None
        record = torch.is_grad_enabled()
        with torch.enable_grad():
            problem = Problem(Tensors(logits, labels), Settings(False, ctx.table.ignore_index))
            table, _ = reference.row_statistics(problem)
            log_prob = table[problem.fields.index("log_prob")]
            loss = (-log_prob.sum() / ctx.table.divisor).to(logits.dtype)
        (result,) = torch.autograd.grad(loss, logits, grad, create_graph=record)
        return result, None, None, None


# torch.autograd.Function.apply without its look for torch.func, which is done by then: 2.5 us.
apply_plain = super(torch.autograd.Function, PlainCrossEntropy).apply  # pyright: ignore
cross_entropy_ahead = super(torch.autograd.Function, CrossEntropyAhead).apply  # pyright: ignore
differentiable_fields: Callable[..., tuple[Any, ...]]
differentiable_fields = super(torch.autograd.Function, DifferentiableFields).apply  # pyright: ignore
