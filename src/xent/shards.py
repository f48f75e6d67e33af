"""Logits whose classes are split over ranks: what a shard is, and the merge across ranks.

Each rank measures its own classes. One gather brings the packed numbers of all ranks together, a
few per row, and every rank merges them in the order of the ranks, so that all ranks hold the same
bits. The numbers of the other ranks are constants: each rank has the gradient of its own logits,
and no collective runs in the backward pass of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from .agreement import Agreement
from .collectives import begin_sum, exchanged, gathered
from .row_merge import joined, packed, read, refuse_second_derivative, with_gradient_of
from .row_statistics import RowStatistics
from .targets import class_axis

if TYPE_CHECKING:
    from .heads.logits import LinearLogits


F = TypeVar("F", bound=Callable[..., Any])

# Rows times other ranks up to which one gather is faster. With two numbers a row and few ranks, a
# further collective takes as long as 16 bytes for each of them: 15 us at 300 GB/s within a machine
# are 280,000, 40 us at 50 GB/s between machines 125,000.
ONE_GATHER = 1 << 17


@dataclass(frozen=True)
class Shard:
    """The classes of one rank among those of its group.

    Attributes:
        group: the process group.
        start: number of the first class of this rank.
        width: number of classes of this rank.
        classes: number of classes of all ranks.
        weight: class weights of a call, whole.
        agreement: what the ranks agree on before a call; None outside of one.
    """

    group: Any
    start: int
    width: int
    classes: int
    weight: Tensor | None = None
    agreement: Agreement | None = None

    @property
    def stop(self) -> int:
        """Number that follows the last class of this rank."""
        return self.start + self.width

    def own(self, vector: Tensor | None) -> Tensor | None:
        """The numbers of this rank's classes in a vector, or in the lines of a table.

        A rank without a class gets one number, for the masked class that stands for none.
        """
        if vector is None:
            return None
        return vector[..., self.start : self.stop] if self.width else vector[..., :1]

    def agree(self, problem: Any, height: int) -> int:
        """Ask the ranks whether all are about to compute this problem, if nobody has asked yet.

        Returns the rows of a chunk behind a head: the fewest of any rank, since ranks gather after
        each chunk. ``height`` is what this rank would take.
        """
        if self.agreement is None:
            raise RuntimeError("a shard of classes is read outside of a call on all ranks")
        if not self.agreement.reached:
            labels = problem.tensors.target if problem.labelled else None
            places, rows = (self.start, self.stop, self.classes), problem.rows.numel()
            self.agreement.reach(
                problem.dtype, rows, places, problem.mask, labels, problem.of_all_ranks, height
            )
        return self.agreement.height

    def merged(self, stats: RowStatistics) -> RowStatistics:
        """Statistics of all classes; differentiable with respect to those of this rank."""
        label, mass = stats.label, stats.mass
        if label is not None and not stats.soft:
            kept = (label >= 0).to(mass.dtype)
            mass = kept if self.weight is None else stats.of_label(self.weight)
        like, own = replace(stats, mass=mass, classes=self.classes), packed(stats)
        with torch.no_grad():
            union = joined_over_ranks(own, like, self.group)
        return read(with_gradient_of(own, union, like), like)


def shard_of(x: Any, dim: int, axis: int) -> Shard:
    """The classes of this rank in a DTensor, whose classes one dimension of its mesh splits.

    Args:
        x: the DTensor.
        dim: the dimension of the mesh.
        axis: the axis of the classes.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh = x.device_mesh
    own, first = compute_local_shape_and_global_offset(x.shape, mesh, x.placements)
    return Shard(mesh.get_group(dim), first[axis], own[axis], x.shape[axis])


def axis_of(place: Any) -> int | None:
    """The axis that a placement of a DTensor splits into a piece for each rank; else None."""
    from torch.distributed.tensor import Shard as Split

    return place.dim if isinstance(place, Split) else None  # pyright: ignore


class ShardedLogits:
    """Stands for logits ``(N, C, ...)``, of which each rank has some classes.

    :func:`xent.parallel.shard` makes one.

    Attributes:
        own: the logits of this rank: a tensor, or :class:`xent.LinearLogits`.
        shard: the place of these classes among those of all ranks.
        class_dim: the axis of the classes, if it is not the usual one.
    """

    def __init__(
        self, own: Tensor | LinearLogits, shard: Shard, class_dim: int | None = None
    ) -> None:
        self.own, self.shard, self.class_dim = own, shard, class_dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return self.own.dtype

    @property
    def device(self) -> torch.device:
        """The device of this rank's logits."""
        return self.own.device

    def with_own(self, own: Tensor | LinearLogits) -> ShardedLogits:
        """This shard with its logits in another layout, with the classes on the usual axis."""
        return ShardedLogits(own, self.shard)

    def gather(self) -> Tensor:
        """The logits of all ranks, with as much memory as they need; differentiable."""
        own = self.own if isinstance(self.own, Tensor) else self.own.materialize()
        axis = class_axis(self.own) if self.class_dim is None else self.class_dim
        group = self.shard.group
        columns = own.movedim(axis, 0)  # (C_own, N, ...)
        widths = gathered(own.new_full((1,), len(columns), dtype=torch.int64), group)[:, 0].tolist()
        room = columns.new_zeros(max(widths) - len(columns), *columns.shape[1:])
        parts = all_parts(torch.cat([columns, room]), group)
        kept = [part[:width] for part, width in zip(parts, widths, strict=True)]
        return torch.cat(kept).movedim(0, axis)

    def __repr__(self) -> str:
        shard = self.shard
        return (
            f"ShardedLogits(classes {shard.start} to {shard.stop} of {shard.classes}, the end not "
            f"included: {tuple(self.own.shape)}, {self.dtype})"
        )


def takes_shards(function: F) -> F:
    """Mark a function of logits that reads its call by ``make_problem``. A decorator."""
    function.takes_shards = True  # pyright: ignore
    return function


def across_ranks(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Call a function whose ``input`` is split over ranks, so that all ranks raise, or none.

    Raises:
        TypeError: if the function needs all classes of a row.
    """
    input, name = given["input"], function.__name__
    if not hasattr(function, "takes_shards"):
        raise TypeError(
            f"{name} takes no logits whose classes are split over ranks: it reads more of a row "
            f"than the statistics that ranks can merge. Pass the logits of all ranks, if they fit "
            f"into memory: input.gather(), or input.materialize() of LinearLogits of DTensors"
        )
    agreement = Agreement(name, given, input.shard.group, input.device)
    shard = replace(input.shard, agreement=agreement)
    try:
        result = function(**{**given, "input": ShardedLogits(input.own, shard, input.class_dim)})
    except Exception as error:
        agreement.refuse(error)
        raise
    assert agreement.reached, f"{name} did not ask the other ranks"
    return result


def own_logits(input: Any) -> Any:
    """The logits of this rank's classes; logits of all classes as they are."""
    return input.own if isinstance(input, ShardedLogits) else input


# ---- numbers of all ranks ------------------------------------------------------------------------


def joined_over_ranks(own: Tensor, like: RowStatistics, group: Any) -> Tensor:
    """The numbers of all ranks joined, ``(K, N...)``, with the same bits on all.

    One gather brings ``8 K N (P - 1)`` bytes to each of ``P`` ranks. Where these are many, each
    rank joins the numbers of a share of the rows, and a gather brings the results: less than
    ``16 K N`` bytes however many ranks there are.
    """
    import torch.distributed as dist

    ranks = dist.get_world_size(group)
    if ranks == 2 or own[0].numel() * (ranks - 1) <= ONE_GATHER:
        return joined(gathered(own, group), like)
    return _in_two_steps(own, like, group)


def _in_two_steps(own: Tensor, like: RowStatistics, group: Any) -> Tensor:
    """The numbers of all ranks joined, a share of the rows on each rank."""
    import torch.distributed as dist

    ranks, count = dist.get_world_size(group), own[0].numel()
    height = -(-count // ranks)  # rows of a share
    room = ranks * height - count
    shares = pad(own.flatten(1), (0, room)).unflatten(1, (ranks, height))  # (K, P, height)
    table = exchanged(shares.transpose(0, 1), group)  # (P, K, height): all ranks, for one share
    label = like.label
    if label is not None:
        label = pad(label.flatten(), (0, room)).unflatten(0, (ranks, height))[dist.get_rank(group)]
    results = gathered(joined(table, replace(like, label=label)), group)
    return results.transpose(0, 1).flatten(1)[:, :count].reshape(own.shape)


def all_parts(own: Tensor, group: Any) -> Tensor:
    """The numbers of all ranks; those of this rank stay attached to its graph."""
    return cast(Tensor, _AllParts.apply(own, group))


class _AllParts(torch.autograd.Function):
    """Gathers; backward returns the gradient of this rank's part, without a collective."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Any) -> Tensor:
        import torch.distributed as dist

        ctx.rank = dist.get_rank(group)
        return gathered(own, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        return grads[0][ctx.rank], None


def summed_gradient(x: Tensor | None, group: Any) -> Any:
    """A tensor that all ranks have, whose gradient is the sum of what each rank finds."""
    return x if x is None or not x.requires_grad else _SummedGradient.apply(x, group)


class _SummedGradient(torch.autograd.Function):
    """Returns its input; backward adds up the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total = grads[0].contiguous().clone()
        begin_sum(total, ctx.group)()
        return total, None
