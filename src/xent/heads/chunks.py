"""Linear heads, a chunk of rows at a time: the logits of a chunk, and the gradients of a head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..engines import core
from ..engines.modes import are_there
from ..engines.rows.problem import Index
from .logits import LinearLogits

MAX_ROWS = 384  # of a chunk: more leave the caches, fewer than 200 make slow, thin products
# The reference engine holds about eight times the memory of a chunk, most of it in float64.
REFERENCE_COPIES = 8


class Plan(NamedTuple):
    """The type of a head's products, and the size of its chunks."""

    dtype: torch.dtype
    rows: int  # of a chunk
    classes: int  # the weights of so many classes are widened together


def plan(source: LinearLogits, heads: int = 1) -> Plan:
    """Plan the chunks of one of several heads that share the workspace."""
    # On most CPUs a product of 16-bit matrices takes a hundred times as long as one of float32.
    narrow = source.is_cpu and source.weight.dtype in (torch.bfloat16, torch.float16)
    dtype = torch.float32 if narrow else source.weight.dtype
    budget = source.max_workspace // heads // (2 if narrow else 1)  # half for wider weights
    if source.is_cpu and not core.fast:
        budget //= REFERENCE_COPIES
    rows, block = (
        max(1, budget // max(1, width * dtype.itemsize)) for width in source.weight.shape
    )
    return Plan(dtype, min(MAX_ROWS, rows), block)


def describe(source: LinearLogits) -> str:
    """Describe in words how the gradient is computed."""
    dtype, rows, _ = plan(source)
    megabytes = rows * source.shape[-1] * dtype.itemsize / 2**20
    return (
        f"by chunks of {rows} rows, {megabytes:.0f} MiB: in forward where the rows are "
        f"summed, from the logits of each chunk once more elsewhere"
    )


class Chunks:
    """The rows that are kept, a chunk at a time, and their logits under each of some heads.

    Args:
        sources: logits behind a head, ``(N, V)``, with the same ``N``.
        kept: which rows, by number; None for all.
    """

    def __init__(self, sources: Sequence[LinearLogits], kept: Tensor | None) -> None:
        plans = [plan(source, len(sources)) for source in sources]
        self.rows, self.kept = sources[0].shape[0], kept
        count = self.rows if kept is None else kept.shape[0]
        self.height = max(1, min(count, *(p.rows for p in plans)))
        self.heads = [Head(s, p, self.height) for s, p in zip(sources, plans, strict=True)]

    def __iter__(self) -> Iterator[Index]:
        """The rows of one chunk after the other."""
        if self.kept is not None:
            yield from self.kept.split(self.height)
            return
        for start in range(0, max(self.rows, 1), self.height):
            yield slice(start, min(start + self.height, self.rows))


class Head:
    """A linear head: its tensors, memory for the logits of a chunk, and its gradients."""

    def __init__(self, source: LinearLogits, plan: Plan, height: int) -> None:
        self.source, self.height = source, height
        self.dtype, _, self.block = plan
        self.buffer: Tensor | None = None
        self.gradients: list[Tensor | None] = [None, None, None]

    def hidden(self, index: Index) -> Tensor:
        """The features of some rows, in the type of the products."""
        return self.source.hidden.detach()[index].to(self.dtype)

    def logits(self, index: Index) -> Tensor:
        """The logits of some rows."""
        hidden = self.hidden(index)
        if self.buffer is None:
            self.buffer = self.empty((self.height, self.source.shape[1]), self.dtype)
        z = self.buffer[: hidden.shape[0]]
        for part, weight in self.weights():
            torch.mm(hidden, weight.T, out=z[:, part])
        if self.source.bias is not None:
            z += self.source.bias.detach().to(self.dtype)
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
        for start in range(0, weight.shape[0], self.block):
            part = slice(start, start + self.block)
            yield part, weight[part].to(self.dtype)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features, weight and bias."""
        return self.source.hidden, self.source.weight, self.source.bias

    def want(self, needed: Sequence[bool], every_row: bool) -> None:
        """Prepare for the gradients of features, weight and bias that are needed."""
        for k, (tensor, wanted) in enumerate(zip(self.tensors, needed, strict=True)):
            if wanted and tensor is not None:
                # Added up over chunks, 16 bits would lose more with each of them.
                part = self.empty(tensor.shape, torch.promote_types(self.dtype, torch.float32))
                self.gradients[k] = part if k == 0 and every_row else part.zero_()

    def add(self, index: Index, dz: Tensor) -> None:
        """Add the gradient of the logits of some rows to the gradients of the head."""
        hidden, weight, bias = self.gradients
        if hidden is not None:
            total = dz.new_zeros(dz.shape[0], hidden.shape[1])
            for part, w in self.weights():
                torch.addmm(total, dz[:, part], w, out=total)  # FLOP counters do not see addmm_
            hidden[index] = total.to(hidden.dtype)
        if weight is not None and weight.dtype == dz.dtype:
            torch.addmm(weight, dz.T, self.hidden(index), out=weight)
        elif weight is not None:
            weight += dz.T @ self.hidden(index)
        if bias is not None:
            bias += dz.sum(0)

    def times(self, factor: Tensor | None = None) -> list[Tensor | None]:
        """The gradients of features, weight and bias times a number, in the dtypes of the head."""
        if factor is not None and not (are_there(factor) and factor == 1):
            for part in self.gradients:
                if part is not None:
                    part *= factor
        return [
            None if part is None or tensor is None else part.to(tensor.dtype)
            for part, tensor in zip(self.gradients, self.tensors, strict=True)
        ]
