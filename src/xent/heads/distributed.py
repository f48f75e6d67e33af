"""Logits of a linear head whose weight is a DTensor, so that its classes may lie on several ranks.

They come where a DTensor of logits would come, after a head of a tensor-parallel plan for example,
and answer as it does. But the logits are not there, so none move: losses of rows merge statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from .._check import is_tensor
from ..engines.modes import is_dtensor
from ..shards import ShardedLogits, axis_of, shard_of
from .logits import LinearLogits, check_head


class DistributedLogits(LinearLogits):
    """Stands for a DTensor of logits; :class:`xent.LinearLogits` of DTensors are of this kind.

    One dimension of the mesh may split the classes, others the rows. Features that are split on the
    dimension of the classes, as in sequence parallelism, are gathered, and their gradient is
    reduced and split again.

    After :meth:`to_local` the features are a plain tensor, that of this rank's rows. The object
    then stands for a plain tensor of these rows and all classes, as :func:`xent.parallel.shard`
    does: targets and results are plain.
    """

    of_features: Sequence[Any] | None = None  # where the features were before to_local()
    scattered = False  # True if the features came split where the classes are

    def read(self, hidden: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """Return features, weight and bias, each where it belongs; raise unless they fit."""
        given = {"hidden": hidden, "weight": weight, "bias": bias}
        for name, x in given.items():
            if x is not None or name != "bias":
                _refuse_plain(name, x, hidden)
        check_head(hidden, weight, bias)
        for name, x in given.items():
            if x is not None and x.device_mesh != weight.device_mesh:
                raise ValueError(f"`{name}` is on another device mesh than `weight`")
        split = _split_classes(weight)
        rows = range(hidden.ndim - 1)
        places = [
            p if k != split and axis_of(p) in rows else _replicate()
            for k, p in enumerate(hidden.placements)
        ]
        self.scattered = split is not None and hidden.placements[split] != places[split]
        hidden = hidden.redistribute(placements=places)
        bias = None if bias is None else bias.redistribute(placements=weight.placements)
        return hidden, weight, bias

    # ---- what they share with a DTensor ----------------------------------------------------------

    @property
    def is_local(self) -> bool:
        """True after ``to_local()``."""
        return not is_dtensor(self.hidden)

    @property
    def split(self) -> int | None:
        """The dimension of the mesh that splits the classes; None where none does."""
        return _split_classes(self.weight)

    @property
    def device_mesh(self) -> Any:
        """The mesh of the weight."""
        weight: Any = self.weight
        return weight.device_mesh

    @property
    def placements(self) -> tuple[Any, ...]:
        """Placements of the logits: the rows lie with the features, the classes with the weight."""
        from torch.distributed.tensor import Shard

        hidden: Any = self.hidden
        return tuple(
            Shard(self.ndim - 1) if k == self.split else p for k, p in enumerate(hidden.placements)
        )

    def redistribute(
        self, device_mesh: Any = None, placements: Sequence[Any] = (), async_op: bool = False
    ) -> DistributedLogits:
        """The logits with their rows placed so. The classes stay where the weight has them.

        Code that asks for all classes on each rank gets the same logits: no gather is needed.

        Raises:
            ValueError: for rows that were to be split where the classes are, or classes elsewhere.
        """
        split, classes = self.split, self.ndim - 1
        for k, place in enumerate(placements):
            axis = axis_of(place)
            if axis is not None and (axis % self.ndim == classes) != (k == split):
                raise ValueError(
                    f"{self!r} cannot be placed as {tuple(placements)}: dimension {split} of the "
                    f"mesh splits the classes, as it does those of the weight, and others the "
                    f"rows; call materialize().redistribute(...) for other places"
                )
        places = [_replicate() if k == split else p for k, p in enumerate(placements)]
        hidden: Any = self.hidden
        return self.with_hidden(hidden.redistribute(device_mesh, places))  # pyright: ignore

    def to_local(self) -> LinearLogits:
        """Logits of this rank's rows and of all classes, for code with plain tensors."""
        if self.split is None:
            return self.own()
        hidden: Any = self.hidden
        return self._with(hidden=self._own_hidden(), of_features=hidden.placements)

    def full_tensor(self, **options: Any) -> Tensor:
        """All logits as a plain tensor, with as much memory as they need."""
        logits: Any = self.materialize_for("full_tensor")
        return logits.full_tensor(**options)

    # ---- what losses read ------------------------------------------------------------------------

    def own(self) -> LinearLogits:
        """The head of this rank's rows and classes, of plain tensors, on the same graph."""
        from torch.distributed.tensor import Partial

        parts: Any = self.hidden, self.weight, self.bias
        hidden, weight, bias = parts
        # Where the rows are split, each rank has the gradient of its own rows.
        rows = hidden.placements if self.of_features is None else self.of_features
        places = [
            w if axis_of(p) is None else Partial()
            for w, p in zip(weight.placements, rows, strict=True)
        ]
        weight, bias = (
            None if x is None else x.to_local(grad_placements=places) for x in (weight, bias)
        )
        # A gradient that is reduced and split waits for all chunks; others are added up early.
        early = self.split is not None and not self.scattered
        group = self.device_mesh.get_group(self.split) if early else None
        return self._with(hidden=self._own_hidden(), weight=weight, bias=bias, group=group)

    def _own_hidden(self) -> Tensor:
        """The features of this rank's rows."""
        from torch.distributed.tensor import Partial

        hidden: Any = self.hidden
        if self.is_local:
            return hidden
        places = [
            Partial() if self.scattered and k == self.split else p
            for k, p in enumerate(hidden.placements)
        ]
        return hidden.to_local(grad_placements=places)

    def sharded(self) -> ShardedLogits:
        """The classes of this rank, as losses take them; one dimension of the mesh splits them."""
        assert self.split is not None
        return ShardedLogits(self.own(), shard_of(self.weight, self.split, 0))

    def without_recorded(self) -> LinearLogits:
        """Refuse: a function that gets here takes neither DTensors nor a part of the classes."""
        raise TypeError(
            f"{self!r} are the logits of DTensors, which this function does not take. Pass "
            f".to_local(), the logits of this rank's rows, or all numbers: .materialize()"
        )

    def computed(self) -> Tensor:
        """All logits: a DTensor; after to_local() a tensor of this rank's rows and all classes."""
        from torch.distributed.tensor import DTensor

        if self.is_local:
            return self.sharded().gather()
        return DTensor.from_local(
            self.own().computed(), self.device_mesh, self.placements, run_check=False,
            shape=self.shape, stride=self.stride(),
        )  # fmt: skip

    def picked(self, index: Any) -> LinearLogits:
        """Return some of the rows; a pick of classes needs the logits."""
        return NotImplemented if self.spelled_out(index) is not None else self.rows(index)

    @classmethod
    def answer_to(
        cls, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        """The lean answer to a function that reads no class by itself, or None."""
        name = getattr(func, "__name__", "")
        numbers = not any(map(_is_more_than_a_number, tree_leaves((args, kwargs))))
        if name not in _BY_ROWS and not (name in _OF_NUMBERS and numbers):
            return None
        return super().answer_to(func, args, kwargs)


LinearLogits._of_dtensors = DistributedLogits

_BY_ROWS = frozenset((
    "split", "split_with_sizes", "chunk", "tensor_split", "unbind", "index_select", "narrow",
    "select", "flip", "roll", "unflatten", "squeeze", "unsqueeze", "expand", "repeat", "reshape",
    "view", "flatten", "view_as", "reshape_as", "expand_as", "pad", "__getitem__", "to", "type",
    "cpu", "float", "double", "half", "bfloat16", "contiguous", "clone", "detach", "transpose",
    "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "cross_entropy",
))  # fmt: skip
_OF_NUMBERS = frozenset((
    "mul", "multiply", "__mul__", "__rmul__", "div", "divide", "true_divide", "__truediv__", "neg",
    "negative", "__neg__", "tanh",
))  # fmt: skip


def _is_more_than_a_number(x: Any) -> bool:
    """True for a tensor with an axis, or one whose gradient each rank would have a part of."""
    return isinstance(x, Tensor) and (x.ndim > 0 or x.requires_grad)


def _refuse_plain(name: str, x: Any, hidden: Any) -> None:
    """Raise unless a part of the head is a DTensor."""
    if is_dtensor(x):
        return
    if not isinstance(x, Tensor):
        is_tensor(name, x)
    if name != "hidden":
        raise TypeError(
            f"`hidden` is a DTensor, so `{name}` must be one, too: "
            f"distribute_tensor({name}, hidden.device_mesh, ...)"
        )
    raise TypeError(
        "`weight` is a DTensor but `hidden` a plain tensor, whose rows may be the same on all "
        "ranks or different ones. Make `hidden` a DTensor that says it: DTensor.from_local(hidden, "
        "weight.device_mesh, [Replicate()]), or [Shard(0)]. Or, for the same rows on all ranks, "
        "pass xent.parallel.shard(LinearLogits(hidden, weight.to_local())) to the loss; for other "
        'rows on each rank, the weight as weight.full_tensor(grad_placements=[Partial("avg")])'
    )


def _split_classes(weight: Any) -> int | None:
    """The dimension of the mesh that splits the classes of a weight; None where none does."""
    from torch.distributed.tensor import Replicate

    split = [k for k, place in enumerate(weight.placements) if axis_of(place) == 0]
    others = [p for k, p in enumerate(weight.placements) if k not in split]
    if len(split) > 1 or not all(isinstance(p, Replicate) for p in others):
        raise ValueError(
            f"`weight` is a DTensor placed as {tuple(weight.placements)}. One dimension of its "
            f"mesh may split the classes, Shard(0); on the others it must be on every rank: call "
            f"weight.redistribute(placements=...)"
        )
    return split[0] if split else None


def _replicate() -> Any:
    from torch.distributed.tensor import Replicate

    return Replicate()
