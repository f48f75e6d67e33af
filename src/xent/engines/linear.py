"""Statistics behind a linear head: a chunk of logits at a time, recomputed for the gradient.

Two ways to a gradient, both of which hold one chunk of logits and nothing of their whole size:

* :func:`measure_fields`: the statistics now, the logits of each chunk once more in backward, for
  whatever is made of the statistics. Four products of matrices.
* :func:`sum_ahead`: where what is wanted is a sum over the rows, the gradient of each chunk is
  taken at once, over its logits. Three products, the least there can be.

Rows that are ignored are never multiplied. The gradient of the weight is added up in float32 or
float64, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..linear_logits import LinearLogits
from . import native, reference
from .problem import Problem
from .transforms import is_batched

MAX_ROWS = 384  # of a chunk: more leave the caches, fewer than half of it make thin products

Index = slice | Tensor


class Chunks:
    """The rows of a problem that are looked at, some at a time, and their logits.

    Args:
        problem: its ``logits`` are :class:`~xent.LinearLogits` of two axes.
    """

    def __init__(self, problem: Problem) -> None:
        source = problem.logits
        assert isinstance(source, LinearLogits)
        self.problem, self.source = problem, source
        self.rows, self.classes = source.shape
        self.dtype, self.height, self.block = _sizes(source)
        target = problem.target
        kept = target.values != target.ignore_index if target.labelled else None
        self.kept = None if kept is None or bool(kept.all()) else kept.nonzero()[:, 0]
        self.buffer: Tensor | None = None

    def __iter__(self) -> Iterator[Index]:
        """The rows of one chunk after the other."""
        if self.kept is not None:
            yield from self.kept.split(self.height)
            return
        for start in range(0, self.rows, self.height):
            yield slice(start, min(start + self.height, self.rows))

    def hidden(self, index: Index) -> Tensor:
        """Their features, in the type of the products."""
        return self.source.hidden.detach()[index].to(self.dtype)

    def logits(self, index: Index) -> Problem:
        """The problem of these rows alone, with logits in memory that the next chunk reuses."""
        hidden = self.hidden(index)
        if self.buffer is None:
            self.buffer = self.empty((self.height, self.classes))
        z = self.buffer[: hidden.shape[0]]
        for part, weight in self.weights():
            torch.mm(hidden, weight.T, out=z[:, part])
        if self.source.bias is not None:
            z += self.source.bias.detach().to(self.dtype)
        return self.problem.of_rows(index, z)

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Memory in the type of the products; page faults would be a tenth of the time."""
        if self.source.is_cpu:
            return native.empty(shape, self.dtype)
        return torch.empty(tuple(shape), dtype=self.dtype, device=self.source.device)

    def weights(self) -> Iterator[tuple[slice, Tensor]]:
        """The weights, in the type of the products; narrow ones a block of classes at a time."""
        weight = self.source.weight.detach()
        if weight.dtype == self.dtype:
            yield slice(None), weight
            return
        for start in range(0, self.classes, self.block):
            part = slice(start, start + self.block)
            yield part, weight[part].to(self.dtype)


def describe(problem: Problem) -> str:
    """How the gradient is found, in words."""
    source = problem.logits
    assert isinstance(source, LinearLogits)
    dtype, height, _ = _sizes(source)
    megabytes = height * source.shape[1] * dtype.itemsize / 2**20
    return (
        f"by chunks of {height} rows, {megabytes:.0f} MiB: in forward where the rows are "
        f"summed, from the logits of each chunk once more elsewhere"
    )


def _sizes(source: LinearLogits) -> tuple[torch.dtype, int, int]:
    """The type of the products, the rows of a chunk, and the classes that are widened together."""
    # On most CPUs products of 16-bit numbers take a hundred times as long.
    narrow = source.is_cpu and source.weight.dtype in (torch.bfloat16, torch.float16)
    dtype = torch.float32 if narrow else source.weight.dtype
    budget = source.max_workspace // (2 if narrow else 1)  # half of it for wider weights
    rows, block = (
        max(1, budget // max(1, width * dtype.itemsize)) for width in source.weight.shape
    )
    return dtype, min(MAX_ROWS, rows), block


class Gradients:
    """Those of features, weight and bias, added up chunk by chunk."""

    def __init__(self, chunks: Chunks, needed: Sequence[bool]) -> None:
        self.chunks, source = chunks, chunks.source
        self.parts: list[Tensor | None] = [None, None, None]
        tensors = (source.hidden, source.weight, source.bias)
        for k, (tensor, wanted) in enumerate(zip(tensors, needed, strict=True)):
            if wanted and tensor is not None:
                part = chunks.empty(tensor.shape)
                self.parts[k] = part if k == 0 and chunks.kept is None else part.zero_()

    def add(self, index: Index, dz: Tensor) -> None:
        """What the gradient of some rows' logits adds."""
        hidden, weight, bias = self.parts
        if hidden is not None:
            total = dz.new_zeros(dz.shape[0], hidden.shape[1])
            for part, w in self.chunks.weights():
                total.addmm_(dz[:, part], w)
            hidden[index] = total
        if weight is not None:
            weight.addmm_(dz.T, self.chunks.hidden(index))
        if bias is not None:
            bias += dz.sum(0)

    def times(self, factor: Tensor) -> list[Tensor | None]:
        """All of them times a number, in the dtypes of what they belong to."""
        source = self.chunks.source
        tensors = (source.hidden, source.weight, source.bias)
        if factor != 1:
            for part in self.parts:
                if part is not None:
                    part *= factor
        return [
            None if part is None or tensor is None else part.to(tensor.dtype)
            for part, tensor in zip(self.parts, tensors, strict=True)
        ]


class _Fields(torch.autograd.Function):
    """The statistics by chunks, and their gradient by the same chunks once more."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
        engine: ModuleType,
    ) -> tuple[Any, ...]:  # fmt: skip
        table, complete = _statistics(problem, engine)
        ctx.save_for_backward(hidden, weight, bias, table)
        ctx.problem, ctx.engine = problem, engine
        ctx.set_materialize_grads(False)
        return *table.unbind(0), complete

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        partials = grads[:-1]
        *tensors, table = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if all(partial is None for partial in partials):
            return (None,) * 5
        if torch.is_grad_enabled() or any(is_batched(g) for g in partials if g is not None):
            return *_whole_gradient(ctx.problem, tensors, table, partials, needed), None, None
        return *gradient(ctx.problem, table, partials, ctx.engine, needed), None, None


def measure_fields(problem: Problem, engine: ModuleType) -> tuple[Any, ...]:
    """The fields one by one, differentiable, and whether no row was ignored."""
    source = problem.logits
    assert isinstance(source, LinearLogits)
    return _Fields.apply(source.hidden, source.weight, source.bias, problem, engine)  # pyright: ignore


def _statistics(problem: Problem, engine: ModuleType) -> tuple[Tensor, bool]:
    chunks = Chunks(problem)
    table = torch.empty(problem.table_shape, dtype=torch.float64, device=chunks.source.device)
    if chunks.kept is not None:  # those of an ignored row, whatever its logits
        none = torch.zeros(1, chunks.classes, dtype=chunks.dtype, device=table.device)
        label = torch.full((1,), problem.target.ignore_index, device=table.device)
        one = problem.of_rows(slice(0, 1), none)
        one = one._replace(target=one.target._replace(values=label))
        table[:] = engine.row_statistics(one)[0]
    for index in chunks:
        table[:, index] = engine.row_statistics(chunks.logits(index))[0]
    return table, chunks.kept is None


def gradient(
    problem: Problem,
    table: Tensor,
    partials: Sequence[Tensor | None],
    engine: ModuleType,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Of features, weight and bias, the logits being computed once more."""
    chunks = Chunks(problem)
    gradients = Gradients(chunks, needed)
    for index in chunks:
        part = chunks.logits(index)
        some = [None if g is None else g[index] for g in partials]
        gradients.add(index, over_logits(part, table[:, index], some, engine))
    return gradients.times(torch.ones(()))


def over_logits(
    problem: Problem, table: Tensor, partials: Sequence[Tensor | None], engine: ModuleType
) -> Tensor:
    """The gradient of a chunk's logits, in their memory if the engine can."""
    if engine is reference:
        return engine.row_gradient(problem, table, partials)
    return engine.row_gradient(problem, table, partials, problem.logits)


def _whole_gradient(
    problem: Problem,
    tensors: Sequence[Tensor | None],
    table: Tensor,
    partials: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The same with all logits at once, differentiable itself."""
    hidden, weight, bias = tensors
    assert hidden is not None
    assert weight is not None
    with torch.enable_grad():
        z = torch.nn.functional.linear(hidden, weight, bias)
        dz = reference.row_gradient(problem._replace(logits=z), table, partials)
        return _grads(z, tensors, needed, dz, create_graph=True)


def _grads(
    output: Tensor,
    tensors: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad: Tensor,
    create_graph: bool,
) -> list[Tensor | None]:
    """The gradient of each tensor that needs one."""
    wanted = [t for t, n in zip(tensors, needed, strict=True) if n and t is not None]
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=create_graph))
    return [
        next(found) if n and t is not None else None for t, n in zip(tensors, needed, strict=True)
    ]


class _SumAhead(torch.autograd.Function):
    """A sum over the rows, and its gradient, taken while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem,
        engine: ModuleType, summand: Callable[..., Tensor],
    ) -> Tensor:  # fmt: skip
        ctx.call = (problem, engine, summand, ctx.needs_input_grad[:3])
        total, ctx.gradients = _sum_with_gradients(*ctx.call)
        ctx.save_for_backward(hidden, weight, bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        if torch.is_grad_enabled() or is_batched(grad):
            return *_differentiable_gradients(ctx, grad), None, None, None
        # They are handed over, for memory's sake; who asks once more pays for the products again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _ = ctx.saved_tensors  # raises if they were changed meanwhile
            _, gradients = _sum_with_gradients(*ctx.call)
        return *gradients.times(grad), None, None, None


def _sum_with_gradients(
    problem: Problem,
    engine: ModuleType,
    summand: Callable[..., Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor, Gradients]:
    chunks = Chunks(problem)
    gradients = Gradients(chunks, needed)
    total = torch.zeros((), dtype=torch.float64, device=chunks.source.device)
    for index in chunks:
        part = chunks.logits(index)
        table, complete = engine.row_statistics(part)
        fields = [field.requires_grad_() for field in table.unbind(0)]
        with torch.enable_grad():
            value = summand(part, fields, complete, index)
        partials = torch.autograd.grad(value, fields, allow_unused=True)
        gradients.add(index, over_logits(part, table.detach(), partials, engine))
        total += value.detach()
    return total, gradients


def _differentiable_gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """By way of the statistics of all rows."""
    problem, engine, summand, needed = ctx.call
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        *fields, complete = measure_fields(problem, engine)
        value = summand(problem, fields, complete, slice(None))
        return _grads(value, ctx.saved_tensors, needed, grad, record)


def sum_ahead(problem: Problem, engine: ModuleType, summand: Callable[..., Tensor]) -> Tensor:
    """The sum over the chunks of ``summand(part, fields, complete, index)``, differentiable."""
    source = problem.logits
    assert isinstance(source, LinearLogits)
    return _SumAhead.apply(  # pyright: ignore
        source.hidden, source.weight, source.bias, problem, engine, summand
    )
