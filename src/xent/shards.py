"""Logits whose classes are split over ranks: what a shard is, and the merge across ranks.

Each rank measures its own classes. One gather brings the packed numbers of all ranks together, a
few per row, and every rank merges them in the order of the ranks, so that all ranks hold the same
bits. The numbers of the other ranks are constants: each rank has the gradient of its own logits,
and no collective runs in the backward pass of logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from .agreement import Agreement, same_on_all
from .collectives import begin_sum, exchanged, gathered
from .engines.modes import deferred
from .heads.stand_in import Lean, Shown
from .row_merge import joined, packed, read, refuse_second_derivative, with_gradient_of
from .row_statistics import RowStatistics
from .targets import class_axis as usual_axis

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

    def agree(self, problem: Any, height: int = 0, products: Sequence[torch.dtype] = ()) -> int:
        """Ask the ranks whether all are about to compute this problem, if nobody has asked yet.

        Returns the rows of a chunk behind a head: the fewest of any rank, since ranks gather after
        each chunk. ``height`` is what this rank would take, ``products`` the types of its products.
        """
        labels = problem.tensors.target if problem.labelled else None
        return self.ask(
            problem.dtype, problem.rows.numel(), problem.of_all_ranks, problem.mask, labels, height,
            products,
        )  # fmt: skip

    def ask(
        self, dtype: torch.dtype, rows: int, learned: Sequence[Tensor | None] = (), fields: int = 0,
        labels: Tensor | None = None, height: int = 0, products: Sequence[torch.dtype] = (),
    ) -> int:  # fmt: skip
        """Ask the ranks about what :meth:`Agreement.reach` compares.

        Raises:
            NotImplementedError: where PyTorch transforms or records operations.
        """
        if deferred():
            raise NotImplementedError(
                "logits whose classes are split over ranks do not pass through torch.func, "
                "torch.compile or forward-mode AD: call the loss outside"
            )
        if self.agreement is None:
            raise RuntimeError("a shard of classes is read outside of a call on all ranks")
        if not self.agreement.reached:
            places = self.start, self.stop, self.classes
            self.agreement.reach(dtype, rows, places, fields, labels, learned, height, products)
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


class ShardedLogits(Lean):
    """Stands for logits ``(N, C, ...)``, of which each rank has some classes.

    :func:`xent.parallel.shard` makes one. The object has the shape, dtype and device of all logits.
    PyTorch's functions of it are answered where each rank can do so with its own logits and one
    gather; other functions raise, because no rank has all logits.

    Attributes:
        own: the logits of this rank: a tensor, or :class:`xent.LinearLogits`.
        shard: the place of these classes among those of all ranks.
        class_axis: the axis of the classes.
    """

    lean: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}
    whole = "gather"

    def __init__(
        self, own: Tensor | LinearLogits, shard: Shard, class_axis: int | None = None
    ) -> None:
        self.own, self.shard, self.shown = own, shard, Shown()
        self.class_axis = usual_axis(own) if class_axis is None else class_axis

    @property
    def shape(self) -> torch.Size:
        """The shape of the logits of all ranks."""
        sizes = list(self.own.shape)
        sizes[self.class_axis] = self.shard.classes
        return torch.Size(sizes)

    @property
    def rows(self) -> torch.Size:
        """The shape of the rows."""
        return self.shape[: self.class_axis] + self.shape[self.class_axis + 1 :]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return self.own.dtype

    @property
    def hidden(self) -> Tensor:
        """A tensor of this rank, on the device of the logits."""
        return self.own if isinstance(self.own, Tensor) else self.own.hidden

    @property
    def requires_grad(self) -> bool:
        """True if the logits of this rank require a gradient."""
        return self.own.requires_grad

    @property
    def attached(self) -> Tensor | LinearLogits:
        """The logits of this rank; behind a head the features have the gradient of all ranks."""
        own = self.own
        if isinstance(own, Tensor):
            return own
        refuse_learned([own.scale])
        return own.shared_by(None).with_hidden(summed_gradient(own.hidden, own.group))

    def with_own(self, own: Tensor | LinearLogits) -> ShardedLogits:
        """This shard with its logits in another layout, with the classes on the usual axis."""
        return ShardedLogits(own, self.shard)

    def mapped(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> ShardedLogits:
        """This shard after a function of single logits."""
        return ShardedLogits(function(self.own, *args, **kwargs), self.shard, self.class_axis)

    def constant(self) -> ShardedLogits:
        """Return the same logits without a gradient."""
        return self.mapped(lambda own: own.detach())

    def gather(self) -> Tensor:
        """The logits of all ranks, with as much memory as they need; differentiable."""
        own: Any = self.attached
        own = own if isinstance(own, Tensor) else own.materialize()
        columns = own.movedim(self.class_axis, 0)  # (C_own, N, ...)
        group, device = self.shard.group, columns.device
        same_on_all("gather", {"rows": self.rows.numel()}, group, device)
        place = torch.tensor([self.shard.start, len(columns)], dtype=torch.int64, device=device)
        places = gathered(place, group).tolist()
        widest = max(width for _, width in places)
        room = columns.new_zeros(widest - len(columns), *columns.shape[1:])
        parts = all_parts(torch.cat([columns, room]), group)
        # In the order of the classes, which need not be that of the ranks.
        order = sorted(range(len(places)), key=lambda rank: places[rank])
        return torch.cat([parts[k, : places[k][1]] for k in order]).movedim(0, self.class_axis)

    def materialize(self) -> Tensor:
        """The logits of all ranks, as :meth:`gather` gives them."""
        return self.gather()

    def materialize_for(self, operation: str) -> NoReturn:
        """Raise: an operation needs all logits, and no rank has them."""
        raise TypeError(
            f"{operation} takes no logits whose classes are split over ranks. Do it to the logits "
            f"of this rank, before shard(), if it looks at single logits; else take the logits of "
            f"all ranks, if they fit into memory: gather() of a shard, materialize() of "
            f"LinearLogits of DTensors"
        )

    def __repr__(self) -> str:
        """The classes of this rank; the numbers of the others are elsewhere."""
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
    input, name = given["input"], function.__name__.lstrip("_")
    agreement = Agreement(name, given, input.shard.group, input.device)
    shard = replace(input.shard, agreement=agreement)
    try:
        if not hasattr(function, "takes_shards"):
            input.materialize_for(name)
        result = function(**{**given, "input": ShardedLogits(input.own, shard, input.class_axis)})
    except Exception as error:
        agreement.refuse(error)
        raise
    assert agreement.reached, f"{name} did not ask the other ranks"
    return result


def refuse_learned(factors: Iterable[Any]) -> None:
    """Raise for a factor of the logits that wants a gradient, of which each rank has a part."""
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in factors):
        raise NotImplementedError(
            "a factor of logits whose classes are split over ranks cannot be learned here: pass it "
            "as `logit_scale` of a loss, or with .detach()"
        )


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
    """A tensor that the ranks of a group have, whose gradient is the sum of what each finds."""
    if x is None or group is None or not x.requires_grad:
        return x
    return _SummedGradient.apply(x, group)


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
