"""Sums over rows behind a linear head: each chunk of logits is replaced by its gradient at once.

A chunk takes three products of matrices and one call into the engine; no way needs fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engines.modes import only_differentiable
from ..engines.rows.autograd import Total
from ..engines.rows.problem import Tensors
from .chunks import Chunks, Head
from .gradients import as_views, gradients_of
from .kept import finite_slope, kept_rows
from .logits import LinearLogits, Products
from .problem import HeadProblem


def total(problem: HeadProblem, row_weight: Tensor | None, sum: Total) -> Tensor:
    """The sum over the rows, 0-d, differentiable with respect to features, weight and bias.

    With more than one chunk (:func:`is_one_chunk`) the divisor of ``sum`` must be a number, a 0-d
    tensor or None.
    """
    source = problem.source
    if torch.is_grad_enabled() and source.requires_grad:
        question = problem, row_weight, sum
        return _apply(question, source.hidden, source.weight, source.bias)
    return _sweep(problem, row_weight, sum, (False,) * 3)[0]


def is_one_chunk(problem: HeadProblem) -> bool:
    """True if all rows fit into one chunk."""
    return problem.rows.numel() <= Chunks((problem.source,), None).height


class _TotalAhead(torch.autograd.Function):
    """A sum over the rows, and its gradient, which is taken while the logits are in memory."""

    @staticmethod
    def forward(
        ctx: Any,
        question: tuple[HeadProblem, Tensor | None, Total],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        problem, row_weight, ctx.sum = question
        loss, ctx.head, ctx.nothing = _sweep(*question, ctx.needs_input_grad[1:])
        divisor = ctx.sum.divisor if isinstance(ctx.sum.divisor, Tensor) else None
        ctx.save_for_backward(hidden, weight, bias, *problem.others, row_weight, divisor)
        # A loss that is kept must not keep the tensors, but for those that autograd looks after.
        ctx.source, ctx.shape = problem.source.with_parts(None, None, None), problem.shape
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        # The gradients are handed over, to save memory; a second backward pass multiplies again.
        head, ctx.head = ctx.head, None
        needed, differentiable = ctx.needs_input_grad[1:], only_differentiable(grad)
        factor = grad if ctx.nothing is False else finite_slope(grad, ctx.nothing)
        if head is not None and not differentiable:
            return None, *head.times(factor)
        *parts, row_weight, _ = ctx.saved_tensors  # raises if one was changed since
        sum = ctx.sum._replace(direct=False)  # hooks may have given back tensors of another layout
        source = _source_of(ctx.source, parts[:3])
        tensors = Tensors(parts[0], *parts[3:])
        problem = HeadProblem(source, tensors, sum.settings, ctx.shape)
        if not differentiable:
            return None, *_sweep(problem, row_weight, sum, needed)[1].times(factor)
        with torch.enable_grad():
            parts = as_views(parts[:3])
            z = source.with_parts(*parts).product().to(source.dtype)
            loss = sum.by_operations(problem.with_logits(z), row_weight)
        record = torch.is_grad_enabled()
        return None, *gradients_of(loss, parts, needed, grad, create_graph=record)


def _source_of(source: LinearLogits | Options, parts: Sequence[Any]) -> LinearLogits:
    """A head with these tensors; of a plain head the options alone are known."""
    if isinstance(source, Options):
        return LinearLogits(*parts, max_workspace=source.max_workspace, products=source.products)
    return source.with_parts(*parts)


class Options(NamedTuple):
    """The options of a head."""

    max_workspace: int
    products: Products | None


class _Gradients(NamedTuple):
    """The gradients of features, weight and bias."""

    parts: tuple[Tensor | None, Tensor | None, Tensor | None]

    def times(self, factor: Tensor) -> Sequence[Tensor | None]:
        """The gradients times a number."""
        if factor.item() == 1:
            return self.parts
        return [None if part is None else part * factor for part in self.parts]


class _OneChunk(_TotalAhead):
    """The sum of a small plain call: one product forward, one for each gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        question: tuple[Tensors, Tensor | None, Total, Options],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        tensors, row_weight, ctx.sum, ctx.source = question
        z = _product(hidden, weight, bias)  # (N, V); the next line replaces it by its gradient
        loss = ctx.sum.engine.total(tensors._replace(logits=z), row_weight, ctx.sum, z)
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[1:]
        ctx.head = _Gradients((
            torch.mm(z, weight) if for_hidden else None,
            torch.mm(z.T, hidden) if for_weight else None,
            z.sum(0) if for_bias else None,
        ))  # fmt: skip
        ctx.nothing, ctx.shape = False, hidden.shape[:1]
        ctx.save_for_backward(hidden, weight, bias, *tensors[1:], row_weight, None)
        return loss


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.mm(hidden, weight.T)
    return torch.addmm(bias, hidden, weight.T)


_apply: Any = super(torch.autograd.Function, _TotalAhead).apply  # pyright: ignore
_apply_to_chunk: Any = super(torch.autograd.Function, _OneChunk).apply  # pyright: ignore


def total_of_chunk(
    source: LinearLogits, tensors: Tensors, row_weight: Tensor | None, sum: Total
) -> Tensor:
    """The sum over the rows of a plain head: one chunk, and no row is ignored."""
    if torch.is_grad_enabled() and source.requires_grad:
        question = tensors, row_weight, sum, Options(source.max_workspace, source.products)
        return _apply_to_chunk(question, source.hidden, source.weight, source.bias)
    z = _product(source.hidden, source.weight, source.bias)
    return sum.engine.total(tensors._replace(logits=z), row_weight, sum, None)


def _sweep(
    problem: HeadProblem, row_weight: Tensor | None, sum: Total, needed: Sequence[bool]
) -> tuple[Tensor, Head, bool | Tensor]:
    """The sum, the head with the gradients that are needed, and whether no row was kept."""
    kept = kept_rows(problem)
    chunks = Chunks((problem.source,), kept)
    (head,), ahead, loss = chunks.heads, any(needed), None
    head.want(needed, chunks.in_order)
    for index in chunks:
        z = head.logits(index)  # (n, V); `total` replaces them by their gradient
        weights = None if row_weight is None else row_weight[index]
        tensors = problem.of_rows(index, z).tensors
        value = sum.engine.total(tensors, weights, sum, z if ahead else None)
        if ahead:
            head.add(index, z)
        loss = value if loss is None else loss + value
    assert loss is not None
    return loss, head, False if kept is None else kept.none
