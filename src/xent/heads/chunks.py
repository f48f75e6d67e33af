"""Linear heads, a chunk of rows at a time: the logits of a chunk, and the gradients of a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..collectives import begin_sum
from ..engines import core, triton
from ..engines.modes import are_there, on_accelerator
from ..engines.rows.problem import Index
from . import products
from .kept import TILE, Kept, even, slices
from .logits import LinearLogits

# Of a chunk on a CPU: more leave the caches, fewer than 200 make slow, thin products. Accelerators
# have chunks that fill the workspace.
MAX_ROWS = 384
# Products of 16 bits are so fast that it counts how often the weight's gradient is added up: once
# for each chunk, and slowly where the sum is larger than a cache.
MAX_NARROW_ROWS = 2048
CACHED_BYTES = 8 << 20
STRIP = 64  # products on a CPU are fastest with a multiple of so many rows
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
    if not _has_kernels(source, dtype):
        budget //= REFERENCE_COPIES
    rows, block = (
        max(1, budget // max(1, width * dtype.itemsize)) for width in source.weight.shape
    )
    strip = strip_of(source)
    rows = rows if on_accelerator(source) else min(most_rows(source), rows)
    rows = rows if rows < strip else rows // strip * strip
    return Plan(dtype, rows if source.most_rows is None else min(rows, source.most_rows), block)


def _has_kernels(source: LinearLogits, dtype: torch.dtype) -> bool:
    """True if an engine has kernels for logits of a type on the device of a head."""
    if not on_accelerator(source):
        return dtype in core.fast
    return dtype in triton.TYPES and triton.obstacle_of((source.hidden,)) is None


def strip_of(source: LinearLogits) -> int:
    """The number of rows of which chunks have a multiple."""
    return TILE if on_accelerator(source) else STRIP


def height_of(source: LinearLogits) -> int:
    """The most rows of a chunk, whether its rows are summed or not."""
    return min(plan(source).rows, plan(products.for_sum(source)).rows)


def most_rows(source: LinearLogits) -> int:
    """The most rows that a chunk of a head on a CPU has, whatever the workspace."""
    narrow = products.type_of(source) in products.NARROW
    if not narrow or source.weight.numel() * torch.float32.itemsize <= CACHED_BYTES:
        return MAX_ROWS
    return MAX_NARROW_ROWS


def describe(source: LinearLogits) -> str:
    """Describe in words how the gradient of a sum is computed."""
    dtype, rows, _ = plan(products.for_sum(source))
    count = source.shape[0]
    if on_accelerator(source):
        rows = even(count, rows, strip_of(source))
    megabytes = rows * source.shape[-1] * dtype.itemsize / 2**20
    text = (
        f"by chunks of {rows} rows, {megabytes:.0f} MiB: in forward where the rows are "
        f"summed, from the logits of each chunk once more elsewhere"
    )
    if not (on_accelerator(source) and dtype in products.NARROW and count > rows):
        return text
    beside = source.weight.numel() * torch.float32.itemsize / 2**20
    return f"{text}; the gradient of the weight is added up in {beside:.0f} MiB of float32"


class Chunks:
    """The rows that are kept, a chunk at a time, and their logits under each of some heads.

    Args:
        sources: logits behind a head, ``(N, V)``, with the same ``N``.
        kept: which rows; None for all.
    """

    def __init__(self, sources: Sequence[LinearLogits], kept: Kept | None) -> None:
        for source in sources:
            source.in_memory()
        plans = [plan(source, len(sources)) for source in sources]
        self.rows, self.kept = sources[0].shape[0], kept
        count = self.rows if kept is None else kept.most
        self.height = even(count, min(p.rows for p in plans), strip_of(sources[0]))
        alone = count <= self.height
        self.in_order = kept is None or kept.in_order(self.height)
        self.heads = [
            Head(s, p, self.height, alone, kept) for s, p in zip(sources, plans, strict=True)
        ]

    def __iter__(self) -> Iterator[Index]:
        """The rows of one chunk after the other."""
        if self.kept is None:
            yield from slices(self.rows, self.height)
        else:
            yield from self.kept.chunks(self.height)
        for head in self.heads:  # a loss that is kept must not keep a chunk of logits
            head.buffer = None


class Head:
    """A linear head: its tensors, memory for the logits of a chunk, and its gradients.

    Args:
        source: the logits behind the head.
        plan: the type of the products.
        height: the most rows of a chunk.
        alone: True if there is one chunk, whose products need not be added up.
        kept: which rows; None for all.
    """

    def __init__(
        self, source: LinearLogits, plan: Plan, height: int, alone: bool,
        kept: Kept | None,
    ) -> None:  # fmt: skip
        self.source, self.height, self.alone, self.kept = source, height, alone, kept
        self.dtype, _, self.block = plan
        self.buffer: Tensor | None = None
        self.gradients: list[Tensor | None] = [None, None, None]
        self.begun = False  # True once the gradients of a chunk are there
        self.sums: list[RowsOverRanks] = []  # under way

    def hidden(self, index: Index) -> Tensor:
        """The features of some rows, in the type of the products."""
        hidden = self.source.hidden.detach()[index].to(self.dtype)
        return hidden if self.kept is None else self.kept.without_ignored(hidden, index)

    def logits(self, index: Index) -> Tensor:
        """The logits of some rows."""
        hidden, bias = self.hidden(index), self.source.bias
        if self.buffer is None:
            self.buffer = self.empty((self.height, self.source.shape[1]), self.dtype)
        z = self.buffer[: hidden.shape[0]]
        in_one = self.dtype in products.NARROW or on_accelerator(self.source)
        if bias is not None and in_one and self.source.weight.dtype == self.dtype:
            bias = bias.detach().to(self.dtype)  # the sum is rounded once, as by F.linear
            return torch.addmm(bias, hidden, self.source.weight.detach().T, out=z).detach()
        for part, weight in self.weights():
            torch.mm(hidden, weight.T, out=z[:, part])
        if bias is not None:
            z += bias.detach().to(self.dtype)
        return z.detach()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory. On a CPU it is reused: page faults would take a tenth of the time."""
        if on_accelerator(self.source):
            return torch.empty(tuple(shape), dtype=dtype, device=self.source.device)
        return core.empty(shape, dtype)

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
        """Prepare for the gradients of features, weight and bias that are needed.

        ``every_row`` says that the chunks have all rows.
        """
        # Added up over chunks, 16 bits would lose more with each of them.
        wide = products.type_of_sums(self.dtype)
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
            # A column of ones beside the features would save this look at the chunk, 1 % of the
            # time of the products with 4096 features, by arithmetic; but the gradient of the weight
            # would have a column more, and be copied to have none.
            self._put(bias, dz.sum(0, dtype=bias.dtype))
        self.begun = True

    def _write_hidden(self, gradient: Tensor, index: Index, dz: Tensor) -> Tensor:
        """Write the gradient of the features of some rows, and return these rows."""
        adjacent = isinstance(index, slice)
        rows = gradient[index] if adjacent else gradient.new_empty(len(dz), gradient.shape[1])
        # Products in 16 bits may be split over the classes, and add up their parts in 16 bits.
        wide = products.type_of_sums(rows.dtype) if on_accelerator(self.source) else rows.dtype
        total = rows if rows.dtype == wide else torch.empty_like(rows, dtype=wide)
        for part, weight in self.weights():
            products.add(total, dz[:, part], weight, begun=bool(part.start))
        if total is not rows:
            rows.copy_(total)
        if not adjacent and self.source.group is None:  # else the sum over ranks comes there
            gradient[index] = rows
        return rows

    def _add_to_weight(self, gradient: Tensor, hidden: Tensor, dz: Tensor) -> None:
        """Add what some rows give to the gradient of the weight."""
        if gradient.dtype == dz.dtype or on_accelerator(self.source):
            products.add(gradient, dz.T, hidden, self.begun)
            return
        height = SUMMED_AT_ONCE // max(1, hidden.shape[1])
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
        pairs = zip(self.gradients, self.tensors, strict=True)
        if factor is not None and on_accelerator(self.source):
            return [
                None if part is None or tensor is None else scaled(part, factor, tensor.dtype)
                for part, tensor in pairs
            ]
        if factor is not None and not (are_there(factor) and factor == 1):
            for part in self.gradients:
                if part is not None:
                    part *= factor
        return [
            None if part is None or tensor is None else part.to(tensor.dtype)
            for part, tensor in pairs
        ]


def scaled(part: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor times a number, rounded once, without a look at the number.

    The tensor itself is overwritten if it has the dtype.
    """
    # With an axis the factor keeps its type; a 0-d one would be rounded to that of the tensor.
    factor = factor.to(products.type_of_sums(part.dtype)).view(1)
    if part.dtype != dtype:
        return torch.mul(part, factor, out=torch.empty_like(part, dtype=dtype))
    if dtype not in triton.TYPES or triton.obstacle_of((part, factor)) is not None:
        return torch.mul(part, factor, out=part)
    from ..engines.triton.scale import scale_in_place

    scale_in_place(part, factor)  # for the number 1, the rule, it reads and writes nothing
    return part
