"""Logits of linear heads, a chunk of rows at a time, recomputed for the gradient.

Two ways to a gradient, both of which hold one chunk of logits and nothing of their whole size:

* :func:`sum_ahead`, for a sum over the rows: the gradient of a chunk is taken together with its
  sum, and written over the logits of the chunk. Three products of matrices; no way needs fewer.
* :func:`measure_fields`, for statistics, and :func:`row_values`, for any function of rows: the
  forward pass computes the numbers, and the backward pass computes the logits of each chunk again,
  because only then the slopes are known. Four products.

Ignored rows are never multiplied. The gradient of the weight is added up over chunks in float32 or
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..engines.contract import RowEngine
from ..engines.modes import deferred, only_differentiable
from ..engines.rows import reference
from ..engines.rows.problem import Index, Tensors
from . import products
from .chunks import Chunks, Head
from .kept import Kept, finite_slope, kept_rows
from .logits import LinearLogits
from .problem import HeadProblem


class _Fields(torch.autograd.Function):
    """The statistics by chunks; the backward pass computes the logits of each chunk again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, problem: HeadProblem,
        engine: RowEngine,
    ) -> tuple[Any, ...]:  # fmt: skip
        table, complete = find_statistics(problem, engine)
        ctx.save_for_backward(hidden, weight, bias, *problem.others, table)
        ctx.source, ctx.settings = _emptied(problem.source), problem.settings
        ctx.engine = engine
        ctx.set_materialize_grads(False)
        return *table.unbind(0), complete

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        partials = grads[:-1]
        if all(partial is None for partial in partials):
            return (None,) * 5
        *tensors, table = ctx.saved_tensors  # raises if one was changed since
        source = ctx.source.with_parts(*tensors[:3])
        problem = HeadProblem(
            source, Tensors(tensors[0], *tensors[3:]), ctx.settings, source.shape[:-1]
        )
        needed = ctx.needs_input_grad[:3]
        if only_differentiable(*partials):
            return *_whole_gradient(problem, tensors[:3], table, partials, needed), None, None
        return *find_gradient(problem, table, partials, ctx.engine, needed), None, None


def measure_fields(problem: HeadProblem, engine: RowEngine) -> tuple[Any, ...]:
    """The fields one by one, differentiable, and whether no row was ignored."""
    source = problem.source
    return _Fields.apply(source.hidden, source.weight, source.bias, problem, engine)


def _emptied(source: Any) -> LinearLogits:
    """Return a head without its tensors, so that a loss that is kept does not keep them alive."""
    return source.with_parts(None, None, None)


def _chunks(problem: HeadProblem) -> tuple[Chunks, Head]:
    chunks = Chunks((problem.source,), kept_rows(problem))
    return chunks, chunks.heads[0]


def find_statistics(problem: HeadProblem, engine: RowEngine) -> tuple[Tensor, bool]:
    """Return the table of statistics, (fields, N), and whether no row is known to be ignored."""
    chunks, head = _chunks(problem)
    table = torch.empty(problem.table_shape, dtype=torch.float64, device=head.source.device)
    if chunks.kept is not None:  # the statistics of an ignored row do not depend on its logits
        none = torch.zeros(1, problem.classes, dtype=head.dtype, device=table.device)
        label = torch.full(
            (1,), problem.settings.ignore_index, dtype=torch.int64, device=table.device
        )
        one = problem.of_rows(slice(0, 1), none).replace(target=label)
        table[:] = engine.row_statistics(one)[0]
    for index in chunks:
        table[:, index] = engine.row_statistics(problem.of_rows(index, head.logits(index)))[0]
    return table, chunks.kept is None


def find_gradient(
    problem: HeadProblem,
    table: Tensor,
    partials: Sequence[Tensor | None],
    engine: RowEngine,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return gradients of hidden, weight and bias; recomputes the logits of each chunk."""
    chunks, head = _chunks(problem)
    head.want(needed, chunks.in_order)
    for index in chunks:
        z = head.logits(index)
        some = [None if g is None else g[index] for g in partials]
        head.add(
            index, engine.row_gradient(problem.of_rows(index, z), table[:, index], some, out=z)
        )
    return head.times()


def _whole_gradient(
    problem: HeadProblem,
    tensors: Sequence[Tensor | None],
    table: Tensor,
    partials: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return gradients with all logits at once; they can be differentiated again."""
    with torch.enable_grad():
        parts = as_views(tensors)
        z = problem.source.with_parts(*parts).product()
        dz = reference.row_gradient(problem.with_logits(z), table, partials)
        return gradients_of(z, parts, needed, dz, create_graph=True)


def as_views(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Views of tensors: features that are their own weight have a gradient in each place."""
    return [None if t is None else t.view_as(t) for t in tensors]


def gradients_of(
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


class RowFunction(NamedTuple):
    """A function of rows of logits behind one or several heads.

    ``function(index, *logits)`` gives values of each row, or their sum.
    """

    sources: tuple[LinearLogits, ...]
    kept: Kept | None  # the rows that count; an accelerator looks at others, too. None for all
    function: Callable[..., Tensor]
    others: tuple[Tensor, ...] = ()  # that the function reads; backward must find them unchanged

    @property
    def tensors(self) -> list[Tensor | None]:
        """Features, weight and bias of each head."""
        return [t for s in self.sources for t in (s.hidden, s.weight, s.bias)]

    @property
    def none(self) -> bool | Tensor:
        """True if there is no row to read; on an accelerator 0-d."""
        return self.sources[0].hidden.shape[0] == 0 if self.kept is None else self.kept.none

    def save(self, ctx: Any) -> None:
        """Save the tensors for the backward pass."""
        ctx.save_for_backward(*self.tensors, *self.others)
        ctx.rows = self._replace(sources=tuple(map(_emptied, self.sources)), others=())

    @staticmethod
    def saved(ctx: Any) -> RowFunction:
        """Return the saved tensors as chunks of rows; raise if a tensor was changed since."""
        tensors, sources = ctx.saved_tensors, ctx.rows.sources
        return ctx.rows._replace(
            sources=tuple(s.with_parts(*tensors[3 * k : 3 * k + 3]) for k, s in enumerate(sources))
        )

    def values(self) -> Iterator[tuple[Index, Tensor]]:
        """Yield the index and the values of each chunk."""
        chunks = Chunks(self.sources, self.kept)
        for index in chunks:
            yield index, self.function(index, *(head.logits(index) for head in chunks.heads))

    def differentiate(
        self, needed: Sequence[bool], slope: Tensor | None = None
    ) -> tuple[Tensor | None, list[Head]]:
        """The sum of the values, and the heads with the gradients of the sum.

        ``slope``, if given, is a factor on each row; then no sum is returned.
        """
        chunks, total = Chunks(self.sources, self.kept), None
        wanting = []
        for k, head in enumerate(chunks.heads):
            head.want(needed[3 * k : 3 * k + 3], chunks.in_order)
            if any(part is not None for part in head.gradients):
                wanting.append(head)
        for index in chunks:
            z = {head: head.logits(index).requires_grad_(head in wanting) for head in chunks.heads}
            # The hooks of a checkpoint around this loss would compute all again for each chunk.
            with torch.enable_grad(), saved_tensors_hooks(lambda x: x, lambda x: x):
                value = self.function(index, *z.values())
            _refuse_other_leaves(value, z.values())
            grads = torch.autograd.grad(
                value, [z[head] for head in wanting], None if slope is None else slope[index]
            )
            for head, dz in zip(wanting, grads, strict=True):
                head.add(index, dz if self.kept is None else self.kept.without_ignored(dz, index))
            if slope is None:
                total = value.detach() if total is None else total + value.detach()
        return total, chunks.heads

    def with_all_logits(self, needed: Sequence[bool], grad: Tensor) -> list[Tensor | None]:
        """The gradients from all logits at once; they can be differentiated again if grad is on."""
        record = torch.is_grad_enabled()
        with torch.enable_grad():
            parts = as_views(self.tensors)
            heads = [s.with_parts(*parts[3 * k : 3 * k + 3]) for k, s in enumerate(self.sources)]
            value = self.function(..., *(head.product().to(head.dtype) for head in heads))
            return gradients_of(value, parts, needed, grad, record)


class _SumAhead(torch.autograd.Function):
    """A sum over the rows, and its gradient, which is taken while the logits are in memory."""

    @staticmethod
    def forward(ctx: Any, rows: RowFunction, *tensors: Tensor | None) -> Tensor:
        rows.save(ctx)
        ctx.none, ctx.needed = rows.none, ctx.needs_input_grad[1:]
        total, ctx.heads = rows.differentiate(ctx.needed)
        return rows.sources[0].hidden.new_zeros((), dtype=torch.float64) if total is None else total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        if only_differentiable(grad):
            return None, *RowFunction.saved(ctx).with_all_logits(ctx.needed, grad)
        # The gradients are handed over, to save memory; a second backward pass multiplies again.
        heads, ctx.heads = ctx.heads, None
        if heads is None:
            _, heads = RowFunction.saved(ctx).differentiate(ctx.needed)
        factor = finite_slope(grad, ctx.none)
        return None, *(part for head in heads for part in head.times(factor))


class _RowValues(torch.autograd.Function):
    """Values of each row; the backward pass computes the logits of each chunk again."""

    @staticmethod
    def forward(ctx: Any, rows: RowFunction, *tensors: Tensor | None) -> Tensor:
        rows.save(ctx)
        ctx.needed = ctx.needs_input_grad[1:]
        hidden, result = rows.sources[0].hidden, None
        for index, values in rows.values():
            if result is None:
                shape = (hidden.shape[0], *values.shape[1:])
                result = hidden.new_zeros(shape, dtype=torch.float64)
            result[index] = values
        assert result is not None
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        rows = RowFunction.saved(ctx)
        if only_differentiable(grad):
            return None, *rows.with_all_logits(ctx.needed, grad)
        _, heads = rows.differentiate(ctx.needed, grad)
        return None, *(part for head in heads for part in head.times())


def sum_ahead(rows: RowFunction) -> Tensor:
    """The sum of ``function(index, *logits)`` over chunks of rows, differentiable."""
    if needs_all(rows.others):
        return _of_all(rows)
    rows = rows._replace(sources=tuple(map(products.for_sum, rows.sources)))
    if torch.is_grad_enabled() and any(s.requires_grad for s in rows.sources):
        return _SumAhead.apply(rows, *rows.tensors)
    zero = rows.sources[0].hidden.new_zeros((), dtype=torch.float64)
    return sum((value for _, value in rows.values()), zero)


def row_values(rows: RowFunction) -> Tensor:
    """``function(index, *logits)`` of every row, 0 for those not kept; differentiable."""
    return _of_all(rows) if needs_all(rows.others) else _RowValues.apply(rows, *rows.tensors)


def needs_all(others: Iterable[Tensor | None]) -> bool:
    """True if all logits must be in memory at once, given the other tensors that are read.

    They must if one of these tensors wants a gradient, or if plain operations are needed, under
    torch.func, forward-mode AD or compilation.
    """
    if deferred():
        return True
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in others)


def all_logits(source: LinearLogits) -> Tensor:
    """The logits as a tensor; warns where a warning is possible."""
    if deferred():
        return source.materialize()
    return source.materialize_for("a gradient of targets, scales, weights or options")


def _of_all(rows: RowFunction) -> Tensor:
    """The function of all logits at once."""
    return rows.function(..., *map(all_logits, rows.sources)).double()


def _refuse_other_leaves(value: Tensor, logits: Iterable[Tensor]) -> None:
    """Raise if a loss reads tensors that its caller has not named: their gradient would be lost."""
    known, seen, ahead = {id(z) for z in logits}, set(), [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise ValueError(
                f"the loss reads a tensor of shape {tuple(leaf.shape)} that requires a gradient, "
                f"which behind a linear head would be lost. Make it a hyperparameter of the loss, "
                f'detach it, or use reduction="none"'
            )
        ahead += [parent for parent, _ in node.next_functions]


class _RowsOfWeight(torch.autograd.Function):
    """Rows of a weight by number; gradients are added up in float32 or wider, and rounded once."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        return torch.nn.functional.embedding(index, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        wide = torch.promote_types(ctx.dtype, torch.float32)
        flat = grads[0].to(wide).reshape(-1, ctx.shape[1])
        return flat.new_zeros(ctx.shape).index_add(0, index.reshape(-1), flat).to(ctx.dtype), None


def rows_of_weight(weight: Tensor, index: Tensor) -> Tensor:
    """``weight[index]``, which can be differentiated any number of times."""
    if deferred():
        return weight[index]
    return _RowsOfWeight.apply(weight, index)
