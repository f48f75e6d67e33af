"""Linear heads, a chunk of rows at a time: the logits of a chunk, and the gradients of a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..collectives import begin_sum
from ..engines import core
from ..engines.modes import are_there
from ..engines.rows.problem import Index
from . import products
from .logits import LinearLogits

MAX_ROWS = 384  # of a chunk: more leave the caches, fewer than 200 make slow, thin products
# Products of 16 bits are so fast that it counts how often the weight's gradient is added up: once
# for each chunk, and slowly where the sum is larger than a cache.
MAX_NARROW_ROWS = 2048
CACHED_BYTES = 8 << 20
STRIP = 64  # products are fastest with a multiple of so many rows
SUMMED_AT_ONCE = 1 << 19  # entries of the weight's gradient; their products stay in the cache
# The reference engine holds about eight times the memory of a chunk, most of it in float64.
REFERENCE_COPIES = 8


class RowsOverRanks(NamedTuple):
    """Rows of a gradient that ranks are adding up."""

    index: Index
    rows: Tensor
    end: Callable[[], None]  # waits for the sum


class Plan(NamedTuple):
    """The type of a head's products, and the size of its chunks."""

    dtype: torch.dtype
    rows: int  # of a chunk
    classes: int  # the weights of so many classes are widened together


def plan(source: LinearLogits, heads: int = 1) -> Plan:
    """Plan the chunks of one of several heads that share the workspace."""
    dtype = products.type_of(source)
    widened = dtype != source.weight.dtype
    budget = source.max_workspace // heads // (2 if widened else 1)  # half for wider weights
    if source.is_cpu and dtype not in core.fast:
        budget //= REFERENCE_COPIES
    rows, block = (
        max(1, budget // max(1, width * dtype.itemsize)) for width in source.weight.shape
    )
    rows = min(most_rows(source), rows)
    rows = rows if rows < STRIP else rows // STRIP * STRIP
    return Plan(dtype, rows if source.most_rows is None else min(rows, source.most_rows), block)


def height_of(source: LinearLogits) -> int:
    """The most rows of a chunk, whether its rows are summed or not."""
    return min(plan(source).rows, plan(products.for_sum(source)).rows)


def most_rows(source: LinearLogits) -> int:
    """The most rows that a chunk of a head has, whatever the workspace."""
    narrow = products.type_of(source) in products.NARROW and source.is_cpu
    if not narrow or source.weight.numel() * torch.float32.itemsize <= CACHED_BYTES:
        return MAX_ROWS
    return MAX_NARROW_ROWS


def describe(source: LinearLogits) -> str:
    """Describe in words how the gradient of a sum is computed."""
    dtype, rows, _ = plan(products.for_sum(source))
    megabytes = rows * source.shape[-1] * dtype.itemsize / 2**20
    return (
        f"by chunks of {rows} rows, {megabytes:.0f} MiB: in forward where the rows are "
        f"summed, from the logits of each chunk once more elsewhere"
    )


def _even(count: int, most: int) -> int:
    """The height of as few chunks as possible, all of about the same height: at most ``most``."""
    even = math.ceil(count / max(1, math.ceil(count / most)))
    return max(1, min(most, count, math.ceil(even / STRIP) * STRIP))


class Chunks:
    """The rows that are kept, a chunk at a time, and their logits under each of some heads.

    Args:
        sources: logits behind a head, ``(N, V)``, with the same ``N``.
        kept: which rows, by number; None for all.
    """

    def __init__(self, sources: Sequence[LinearLogits], kept: Tensor | None) -> None:
        for source in sources:
            source.in_memory()
        plans = [plan(source, len(sources)) for source in sources]
        self.rows, self.kept = sources[0].shape[0], kept
        count = self.rows if kept is None else kept.shape[0]
        self.height = _even(count, min(p.rows for p in plans))
        alone = count <= self.height
        self.heads = [Head(s, p, self.height, alone) for s, p in zip(sources, plans, strict=True)]

    def __iter__(self) -> Iterator[Index]:
        """The rows of one chunk after the other."""
        if self.kept is not None:
            yield from self.kept.split(self.height)
            return
        for start in range(0, max(self.rows, 1), self.height):
            yield slice(start, min(start + self.height, self.rows))


class Head:
    """A linear head: its tensors, memory for the logits of a chunk, and its gradients.

    Args:
        source: the logits behind the head.
        plan: the type of the products.
        height: the most rows of a chunk.
        alone: True if there is one chunk, whose products need not be added up.
    """

    def __init__(self, source: LinearLogits, plan: Plan, height: int, alone: bool) -> None:
        self.source, self.height, self.alone = source, height, alone
        self.dtype, _, self.block = plan
        self.buffer: Tensor | None = None
        self.gradients: list[Tensor | None] = [None, None, None]
        self.begun = False  # True once the gradients of a chunk are there
        self.sums: list[RowsOverRanks] = []  # under way

    def hidden(self, index: Index) -> Tensor:
        """The features of some rows, in the type of the products."""
        return self.source.hidden.detach()[index].to(self.dtype)

    def logits(self, index: Index) -> Tensor:
        """The logits of some rows."""
        hidden, bias = self.hidden(index), self.source.bias
        if self.buffer is None:
            self.buffer = self.empty((self.height, self.source.shape[1]), self.dtype)
        z = self.buffer[: hidden.shape[0]]
        if bias is not None and self.dtype in products.NARROW:  # rounded once, as by F.linear
            bias = bias.detach().to(self.dtype)
            return torch.addmm(bias, hidden, self.source.weight.detach().T, out=z).detach()
        for part, weight in self.weights():
            torch.mm(hidden, weight.T, out=z[:, part])
        if bias is not None:
            z += bias.detach().to(self.dtype)
        return z.detach()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory. On a CPU it is reused: page faults would take a tenth of the time."""
        if self.source.is_cpu:
            return core.empty(shape, dtype)
        return torch.empty(tuple(shape), dtype=dtype, device=self.source.device)

    def weights(self) -> Iterator[tuple[slice, Tensor]]:
        """The weights, in the type of the products; narrow ones a block of classes at a time."""
        weight = self.source.weight.detach()
        if weight.dtype == self.dtype:
            yield slice(None), weight
            return
        for start in range(0, max(weight.shape[0], 1), self.block):
            part = slice(start, start + self.block)
            yield part, weight[part].to(self.dtype)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features, weight and bias."""
        return self.source.hidden, self.source.weight, self.source.bias

    def want(self, needed: Sequence[bool], every_row: bool) -> None:
        """Prepare for the gradients of features, weight and bias that are needed."""
        # Added up over chunks, 16 bits would lose more with each of them.
        wide = torch.promote_types(self.dtype, torch.float32)
        # The features of a row are in one chunk.
        dtypes = self.dtype, self.dtype if self.alone else wide, wide
        for k, (tensor, dtype) in enumerate(zip(self.tensors, dtypes, strict=True)):
            if needed[k] and tensor is not None:
                part = self.empty(tensor.shape, dtype)
                self.gradients[k] = part.zero_() if k == 0 and not every_row else part

    def add(self, index: Index, dz: Tensor) -> None:
        """Add the gradient of the logits of some rows to the gradients of the head."""
        hidden, weight, bias = self.gradients
        if hidden is not None:
            rows = self._write_hidden(hidden, index, dz)
            if self.source.group is not None:
                self.sums.append(RowsOverRanks(index, rows, begin_sum(rows, self.source.group)))
        if weight is not None:
            self._add_to_weight(weight, self.hidden(index), dz)
        if bias is not None:
            self._put(bias, dz.sum(0, dtype=bias.dtype))
        self.begun = True

    def _write_hidden(self, gradient: Tensor, index: Index, dz: Tensor) -> Tensor:
        """Write the gradient of the features of some rows, and return these rows."""
        adjacent = isinstance(index, slice)
        total = gradient[index] if adjacent else gradient.new_empty(len(dz), gradient.shape[1])
        for part, weight in self.weights():
            if part.start:
                torch.addmm(total, dz[:, part], weight, out=total)
            else:
                torch.mm(dz[:, part], weight, out=total)
        if not adjacent and self.source.group is None:  # else the sum over ranks comes there
            gradient[index] = total
        return total

    def _add_to_weight(self, gradient: Tensor, hidden: Tensor, dz: Tensor) -> None:
        """Add what some rows give to the gradient of the weight."""
        if gradient.dtype == dz.dtype and not self.begun:
            torch.mm(dz.T, hidden, out=gradient)
        elif gradient.dtype == dz.dtype:  # FLOP counters do not see addmm_
            torch.addmm(gradient, dz.T, hidden, out=gradient)
        else:
            height = SUMMED_AT_ONCE // max(1, hidden.shape[1]) if dz.is_cpu else len(gradient)
            for some, part in zip(gradient.split(height), dz.T.split(height), strict=True):
                product = torch.empty_like(some, dtype=dz.dtype)  # autocast leaves `out` alone
                self._put(some, torch.mm(part, hidden, out=product))

    def _put(self, gradient: Tensor, part: Tensor) -> None:
        """Write what the first chunk gives, and add what the others give."""
        if self.begun:
            gradient += part
        else:
            gradient.copy_(part)

    def times(self, factor: Tensor | None = None) -> list[Tensor | None]:
        """The gradients of features, weight and bias times a number, in the dtypes of the head."""
        for index, rows, end in self.sums:
            end()
            if not isinstance(index, slice):  # else the rows are a view
                self.gradients[0][index] = rows  # pyright: ignore
        self.sums = []
        if factor is not None and not (are_there(factor) and factor == 1):
            for part in self.gradients:
                if part is not None:
                    part *= factor
        return [
            None if part is None or tensor is None else part.to(tensor.dtype)
            for part, tensor in zip(self.gradients, self.tensors, strict=True)
        ]
