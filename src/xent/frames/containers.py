"""Losses of tensors that hold other tensors: DTensors and nested tensors.

The rows of a DTensor may lie on several ranks; those of a nested tensor come in sequences of
different lengths. The loss of a row depends on no other row, so each rank computes the losses of
its own rows from the tensors inside, and the results become such a container again. Only the
divisor of a mean is counted over all ranks; no logits are gathered. Where one dimension of the mesh
splits the classes, the ranks along it merge the statistics of their classes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..agreement import Agreement
from ..class_dim import NO_CONTAINERS
from ..engines.modes import can_look_at, is_dtensor
from ..heads.distributed import DistributedLogits
from ..shards import ShardedLogits, across_ranks, axis_of, own_logits, shard_of
from ..targets import class_axis

F = TypeVar("F", bound=Callable[..., Any])
_OF_CLASSES = ("weight", "class_bias")  # vectors over classes, of which there may be N as well
Divisor = Callable[[dict[str, Any]], Tensor]


class Container(Protocol):
    """Takes the plain tensors out of a container, and puts results into one."""

    split: bool  # whether some of the rows are elsewhere

    def inner(self, name: str, value: Any) -> Any:
        """The tensor inside an argument; whatever is no such container stays as it is."""
        ...

    def tell(self, name: str, error: Exception) -> None:
        """Tell ranks that wait for a function that it raised an error here."""
        ...

    def rows(self, values: Tensor) -> Tensor:
        """One value per row, or per element, as such a container."""
        ...

    def total(self, value: Tensor) -> Tensor:
        """A sum over the rows that are here, as a sum over all."""
        ...

    def over_all(self, value: Tensor) -> Tensor:
        """A number added up over the rows that are here, added up over all."""
        ...


def through_containers(loss: F, divisor: Divisor, *, of_rows: bool, rowwise: bool = True) -> F:
    """Make a loss take DTensors and nested tensors.

    Args:
        loss: takes ``input`` and ``target``, plain tensors, and options.
        divisor: gives the divisor of a mean of ``loss``, from the arguments by name.
        of_rows: whether ``input`` has an axis of classes.
        rowwise: whether a row's loss depends on no other row.
    """
    signature, takes_shards = inspect.signature(loss), hasattr(loss, "takes_shards")

    @functools.wraps(loss)
    def entry(*args: Any, **kwargs: Any) -> Any:
        input = args[0] if args else kwargs.get("input")
        if type(input) in NO_CONTAINERS or not isinstance(input, (Tensor, DistributedLogits)):
            return loss(*args, **kwargs)
        container = container_of(input, class_axis(input) if of_rows else None, takes_shards)
        if container is None:
            return loss(*args, **kwargs)
        if not rowwise and container.split:
            raise ValueError(
                f"{loss.__name__} looks at all rows of a batch together, but those of `input` are "
                f"split over ranks: call input.redistribute(placements=[Replicate()])"
            )
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        with errors_told(container, loss.__name__.lstrip("_")):
            _take_out(given, container, divisor)
        shared = isinstance(given["input"], ShardedLogits)
        result = across_ranks(loss, given) if shared else loss(*bound.args, **bound.kwargs)
        return container.rows(result) if given["reduction"] == "none" else container.total(result)

    return entry  # pyright: ignore


@contextmanager
def errors_told(container: Container, name: str) -> Generator[None]:
    """Tell the ranks that wait for a function if this one finds an error in its arguments."""
    try:
        yield
    except Exception as error:
        container.tell(name, error)
        raise


def _take_out(given: dict[str, Any], container: Container, divisor: Divisor) -> None:
    """Put the tensors inside containers in the place of these, and the divisor of a mean."""
    for option in ("return_stats", "inplace_backward"):
        if given.get(option):
            kind = _kind(given["input"])
            raise ValueError(f"`{option}` is for plain tensors, not for {kind}")
    given |= {name: container.inner(name, value) for name, value in given.items()}
    normalizer = given["normalizer"]
    if given["reduction"] == "mean" and (normalizer is None or isinstance(normalizer, str)):
        own = {**given, "input": own_logits(given["input"])}
        given["normalizer"] = container.over_all(divisor(own))


def container_of(input: Any, axis: int | None, takes_shards: bool) -> Container | None:
    """The container of logits whose classes are on an axis; None for tensors that are none.

    ``takes_shards`` tells whether the loss takes some classes of each row.
    """
    if _is_distributed(input):
        return OnRanks(input, axis, takes_shards)
    if input.is_nested:
        return Ragged(input, axis)
    return None


def _kind(input: Any) -> str:
    return "DTensors" if _is_distributed(input) else "nested tensors"


def _is_distributed(input: Any) -> bool:
    """True for a DTensor, and for logits behind a head of DTensors."""
    return is_dtensor(input) or isinstance(input, DistributedLogits)


class OnRanks:
    """DTensors whose rows are on every rank, or split over ranks; likewise the classes."""

    def __init__(self, input: Any, axis: int | None, takes_shards: bool) -> None:
        from torch.distributed.tensor import Partial, Replicate, Shard

        self.mesh, self.placements, self.shape = input.device_mesh, input.placements, input.shape
        self.axis = axis
        by_classes = [axis_of(p) == axis is not None for p in self.placements]
        if sum(by_classes) > takes_shards:
            raise ValueError(
                f"`input` is a DTensor whose classes are split over ranks, on {sum(by_classes)} "
                f"dimensions of its mesh. Losses of rows take one such dimension, other losses "
                f"none: call input.redistribute(placements=...), with Shard(0) or Replicate() "
                f"there; of LinearLogits, input.materialize().redistribute(placements=...)"
            )
        self.of_classes = by_classes.index(True) if any(by_classes) else None
        for place in self.placements:
            if not isinstance(place, (Shard, Replicate)):
                raise ValueError(
                    f"`input` is a DTensor placed as {place}, whose numbers are still to be added "
                    f"up: call input.redistribute(placements=[Replicate()])"
                )
        # The placements of a number per row, and of a sum over the rows of a rank.
        self.of_rows = tuple(self._without_classes(p) for p in self.placements)
        self.of_sums = tuple(Partial() if isinstance(p, Shard) else p for p in self.of_rows)
        self.split = any(isinstance(p, Shard) for p in self.of_rows)

    def _without_classes(self, place: Any) -> Any:
        from torch.distributed.tensor import Replicate, Shard

        axis = axis_of(place)
        if axis == self.axis is not None:
            return Replicate()  # all ranks that share the classes of a row have its result
        behind = axis is not None and self.axis is not None and axis > self.axis
        return Shard(axis - 1) if axis is not None and behind else place

    def inner(self, name: str, value: Any) -> Any:
        """The part of a DTensor that belongs to the rows of this rank."""
        if isinstance(value, DistributedLogits):
            if name != "input":
                return value  # whoever reads them refuses them by name
            return value.own() if self.of_classes is None else value.sharded()
        if not is_dtensor(value):
            self._refuse_plain(name, value)
            return value  # a vector over the classes, the same on all ranks
        if value.device_mesh != self.mesh:
            raise ValueError(f"`{name}` is on another device mesh than `input`")
        of_classes = self.axis is not None and name in _OF_CLASSES
        if value.shape == self.shape and not of_classes:
            own = value.redistribute(placements=self.placements).to_local()
            if name != "input" or self.of_classes is None:
                return own
            assert self.axis is not None
            return ShardedLogits(own, shard_of(value, self.of_classes, self.axis), self.axis)
        if value.shape == self.row_shape and not of_classes:
            return value.redistribute(placements=self.of_rows).to_local()
        from torch.distributed.tensor import Replicate

        self._refuse_broadcast(name, value)
        everywhere = [Replicate()] * len(self.placements)
        # The gradient that each rank finds is that of its own rows.
        return value.redistribute(placements=everywhere).to_local(grad_placements=self.of_sums)

    def tell(self, name: str, error: Exception) -> None:
        """Tell the ranks that share the classes."""
        if self.of_classes is not None:
            group = self.mesh.get_group(self.of_classes)
            Agreement(name, {}, group, torch.device(self.mesh.device_type)).refuse(error)

    def _refuse_plain(self, name: str, value: Any) -> None:
        """Raise for a plain tensor that may be another on each rank, or whose gradient would be."""
        if not isinstance(value, Tensor):
            return
        # Ranks that share all classes, and nothing else, compare what they are given.
        compared = self.of_classes is not None and len(self.placements) == 1
        learned = self.split and value.requires_grad and torch.is_grad_enabled()
        of_rows = value.ndim > 0 and name in ("target", "row_weight") and not compared
        if of_rows or learned:
            raise TypeError(
                f"`input` is a DTensor, so `{name}` must be one, too: "
                f"distribute_tensor({name}, input.device_mesh, ...)"
            )

    @property
    def row_shape(self) -> torch.Size:
        """The shape of one value per row, or per element, over all ranks."""
        if self.axis is None:
            return self.shape
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    def _refuse_broadcast(self, name: str, value: Tensor) -> None:
        """Raise where a value has an axis of its own along which the rows are split."""
        if self.axis is not None:
            return
        missing = len(self.shape) - value.ndim
        axes = (axis_of(place) for place in self.placements)
        split = [axis - missing for axis in axes if axis is not None]
        if any(axis >= 0 and value.shape[axis] != 1 for axis in split):
            raise ValueError(
                f"`{name}` of shape {tuple(value.shape)} has an axis along which `input` is split "
                f"over ranks; expand it to the shape of `input`"
            )

    def rows(self, values: Tensor) -> Tensor:
        """A DTensor with the values of this rank's rows."""
        from torch.distributed.tensor import DTensor

        shape = self.row_shape
        steps = torch.empty(shape, dtype=values.dtype, device="meta").stride()
        return DTensor.from_local(
            values.contiguous(), self.mesh, self.of_rows, run_check=False, shape=shape, stride=steps
        )

    def total(self, value: Tensor) -> Tensor:
        """A DTensor of partial sums, which the ranks still have to add up."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(value, self.mesh, self.of_sums, run_check=False)

    def over_all(self, value: Tensor) -> Tensor:
        """The number, added up over ranks with rows of their own."""
        total: Any = self.total(value)
        return total.full_tensor()


class Ragged:
    """Nested tensors in the jagged layout, whose rows stand one after the other in memory."""

    split = False

    def __init__(self, input: Any, axis: int | None) -> None:
        if input._lengths is not None:
            raise ValueError("`input` is a nested tensor with holes; call input.contiguous()")
        ragged = input._ragged_idx
        if axis is not None and axis == ragged:
            raise ValueError(
                f"the classes of `input` are on axis 1, which here is the one of different "
                f"lengths, shape {tuple(input.shape)}; for classes on the last axis pass "
                f"class_dim=-1"
            )
        self.ragged, self.axis, self.offsets = ragged, axis, input.offsets()
        # The axes after the rows, which a plain tensor may have: one for rows of classes.
        self.trailing = 1 if axis is not None else (input.ndim - 2) * (ragged == 1)

    def inner(self, name: str, value: Any) -> Any:
        """The rows of a nested tensor, one after the other: the axis of lengths comes first."""
        if not isinstance(value, Tensor) or not value.is_nested:
            several = isinstance(value, Tensor) and value.ndim > self.trailing
            if several or (name in ("target", "row_weight") and isinstance(value, Tensor)):
                raise TypeError(
                    f"`input` is a nested tensor, so `{name}` must be one, too: "
                    f"torch.nested.nested_tensor_from_jagged({name}, offsets=input.offsets())"
                )
            return value
        nested: Any = value
        same = nested.offsets() is self.offsets or nested.offsets().shape == self.offsets.shape
        if not same or (can_look_at(self.offsets) and not nested.offsets().equal(self.offsets)):
            raise ValueError(f"`{name}` must have sequences of the same lengths as `input`")
        # In memory the batch and its ragged axis are one axis, that of the rows.
        return nested.values().movedim(nested._ragged_idx - 1, 0)

    def tell(self, name: str, error: Exception) -> None:
        """Tell nobody: all rows are here."""

    def rows(self, values: Tensor) -> Tensor:
        """A nested tensor of sequences of the same lengths."""
        gone = self.axis is not None and self.ragged > self.axis
        place = self.ragged - 1 - gone
        return torch.nested.nested_tensor_from_jagged(
            values.movedim(0, place), offsets=self.offsets, jagged_dim=place + 1
        )

    def total(self, value: Tensor) -> Tensor:
        """The sum itself: all rows are here."""
        return value

    over_all = total
