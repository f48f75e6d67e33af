"""Reads a call, whether its logits are a tensor or lie behind a linear head.

Behind a head a problem has no logits, only a source of them. Code that takes a chunk of rows from
the source asks for the problem ``of_rows``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._check import is_tensor, vector_of_classes, whole_number
from ..engines.modes import settled
from ..engines.rows.labels import check_labels
from ..engines.rows.problem import Problem, Settings, Shaped, Tensors
from ..logits import make_transform
from ..row_statistics import INDEX_ONLY, field_mask
from ..shards import Shard, ShardedLogits, summed_gradient
from ..targets import Target, any_class, are_alike, class_axis, read_target
from . import chunks, products
from .logits import LinearLogits

_NOTHING = torch.empty(0, dtype=torch.float32, device="cpu")  # in the place of the logits


class HeadProblem(Problem):
    """The problem of logits behind a head, ``(N, V)``.

    Attributes:
        source: the head, with one axis of rows and nothing recorded.
        shape: shape of the caller's rows, which are on one axis here.
    """

    __slots__ = ("_dtype", "shape", "source")

    def __init__(
        self, source: LinearLogits, tensors: Tensors, settings: Settings, shape: torch.Size
    ) -> None:
        self.source, self.shape, self._dtype = source, shape, source.dtype
        self.logits, self.settings = _NOTHING, settings
        self.tensors = tensors._replace(logits=_NOTHING)
        self.mask = field_mask(settings.soft, settings.requests)
        self.axis, self.rows, self.classes = 1, source.shape[:1], source.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the logits would have."""
        return self._dtype

    def wants_gradient(self) -> bool:
        """True if a part of the head wants a gradient."""
        return self.source.requires_grad and torch.is_grad_enabled()

    def flat(self, x: Any) -> Any:
        """A tensor whose first axes are those of the caller's rows, with one axis in their place.

        Anything else stays as it is.
        """
        (x,) = flat_rows(self.shape, x)
        return x

    def unflat(self, x: Shaped) -> Shaped:
        """Reshape one number per row to the shape of the caller's rows."""
        return x.reshape(self.shape)

    def replace(self, **tensors: Tensor | None) -> HeadProblem:
        """Return the same problem with other tensors, given by name."""
        return HeadProblem(self.source, self.tensors._replace(**tensors), self.settings, self.shape)

    def with_source(self, source: Any) -> HeadProblem:
        """Return the same problem with another head of this shape, or None to release the head."""
        other = object.__new__(HeadProblem)
        for name in ("_dtype", "axis", "classes", "logits", "mask", "rows", "settings", "shape"):
            setattr(other, name, getattr(self, name))
        other.tensors, other.source = self.tensors, source
        return other

    @property
    def of_all_ranks(self) -> tuple[Tensor | None, ...]:
        """Tensors that all ranks have: features, and what changes the logits of their classes.

        The order is that of ``agreement.LEARNED``.
        """
        return self.source.hidden, *super().of_all_ranks[1:]

    def with_logits(self, logits: Tensor) -> Problem:
        """The problem with all logits as a tensor, ``(N, V)``."""
        return Problem(self.tensors._replace(logits=logits), self.settings)


def make_problem(
    input: Tensor | LinearLogits | ShardedLogits,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    requests: tuple[str, ...] = (),
    *,
    first_class: int | None = None,
    class_scale: Tensor | None = None,
    mean_weight: Tensor | None = None,
    target_table: Tensor | None = None,
    target_name: str = "target",
) -> Problem:
    """Check the arguments of a call against each other, and bring them into the form for engines.

    The rows of a head come on one axis, and its recorded scale and softcap join the options.
    """
    shard = None
    if isinstance(input, ShardedLogits):
        input, target, shard = _own_part(input, target, weight)
        # The masked class of a rank without classes is no class that a row can have.
        first_class = shard.start if shard.width else shard.classes
    z: Any = input  # only shape, dtype and device are read
    if isinstance(input, LinearLogits):
        z, target, logit_scale, softcap = flatten(input, target, logit_scale, softcap)
    else:
        is_tensor("input", input)
    first_class = None if first_class is None else whole_number("first_class", first_class)
    checked = read_target(z, target, ignore_index, first_class, target_name)
    axis = class_axis(z)
    rows, width = z.shape[:axis] + z.shape[axis + 1 :], z.shape[axis]
    classes = width if shard is None else shard.classes
    scale, cap, bias, class_scale = make_transform(
        logit_scale, softcap, class_bias, rows, classes, z.device, class_scale
    )
    soft = checked.soft or target_table is not None
    if target_table is not None:
        _check_table(target_table, classes, z.device, None if shard else first_class)
    if soft and set(requests) & set(INDEX_ONLY):
        raise ValueError("squares and cubes are known for class indices only, not for soft targets")
    if mean_weight is not None and mean_weight is not weight:
        vector_of_classes("mean_weight", mean_weight, classes, z.device)
    if weight is not None:
        vector_of_classes("weight", weight, classes, z.device)
    vectors = (bias, weight, class_scale, mean_weight, target_table)
    if shard is not None:
        _check_shard(shard, checked, (weight, mean_weight, target_table))
        scale, *vectors = (summed_gradient(x, shard.group) for x in (scale, *vectors))
        bias, *vectors = map(shard.own, vectors)
        vectors = (bias if shard.width else _masking(bias, z), *vectors)
    others = [t if t is None else settled(t) for t in (checked.values, scale, *vectors)]
    settings = Settings(
        soft, checked.ignore_index, checked.first_class, checked.sharded, cap, requests, shard
    )
    if not isinstance(z, LinearLogits):
        problem = Problem(Tensors(settled(z), *others), settings)  # pyright: ignore
    else:
        source, tensors = _absorb(z, Tensors(_NOTHING, *others), cap)  # pyright: ignore
        problem = HeadProblem(source, tensors, settings, input.shape[:-1])
    return problem if shard is None else _agreed(problem, shard)


def _agreed(problem: Problem, shard: Shard) -> Problem:
    """The problem, once all ranks are about to compute it, with chunks of one height on all."""
    if not isinstance(problem, HeadProblem):
        shard.agree(problem)
        return problem
    source = problem.source
    types = [products.type_of(x) for x in (source, products.for_sum(source))]
    height = shard.agree(problem, chunks.height_of(source), types)
    return problem.with_source(source.by_chunks_of(height))


def _own_part(
    input: ShardedLogits, target: Tensor, weight: Tensor | None
) -> tuple[Tensor | LinearLogits, Tensor, Shard]:
    """The logits of this rank, their targets, and their shard with the weights of the call."""
    own, shard = input.own, replace(input.shard, weight=weight)
    width = own.shape[class_axis(own)]
    if width != shard.width:
        raise ValueError(
            f"`input` has {width} classes on the axis where they are looked for, but this shard "
            f"has {shard.width}: pass `class_dim` to shard()"
        )
    if not width:
        soft = isinstance(target, Tensor) and are_alike(target, cast(Tensor, own))
        target = _with_a_class(target, class_axis(own)) if soft else target
        if isinstance(own, Tensor):
            own = _with_a_class(own, class_axis(own))
        else:
            bias = None if own.bias is None else _with_a_class(own.bias, 0)
            own = own.with_parts(own.hidden, _with_a_class(own.weight, 0), bias)
    return own, target, shard


def _with_a_class(x: Tensor, axis: int) -> Tensor:
    """Numbers of no class, with a 0 for one class, which :func:`_masking` masks."""
    return torch.nn.functional.pad(x.movedim(axis, -1), (0, 1)).movedim(-1, axis)


def _masking(bias: Tensor | None, z: Tensor | LinearLogits) -> Tensor:
    """The class bias of a rank without classes: it masks the one class, whatever the scale."""
    if bias is None:
        return torch.full((1,), -torch.inf, dtype=z.dtype, device=z.device)
    return bias.masked_fill(torch.ones_like(bias, dtype=torch.bool), -torch.inf)


def _check_shard(shard: Shard, target: Target, others: tuple[Tensor | None, ...]) -> None:
    """Raise for a label that no rank owns, and for a weight or table that is learned."""
    if not target.soft:
        check_labels(target.values, shard.classes, target.ignore_index)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in others):
        raise NotImplementedError(
            "a class weight or a table of targets that requires a gradient cannot be learned "
            "where the classes are split over ranks: pass it with .detach()"
        )


def _check_table(
    table: Tensor, classes: int, device: torch.device, first_class: int | None
) -> None:
    if first_class is not None:
        raise ValueError("a table of targets needs all classes; with `first_class` leave it out")
    if table.shape != (classes, classes) or table.device != device:
        raise ValueError(
            f"`target_table` must have a row for each class, shape ({classes}, {classes}), on "
            f"{device}; got shape {tuple(table.shape)} on {table.device}"
        )


class Flat(NamedTuple):
    """A call on logits behind a head, with the rows on one axis and the recorded options."""

    source: LinearLogits
    target: Tensor
    logit_scale: float | Tensor | None
    softcap: float | None


def flatten(
    input: LinearLogits, target: Any, logit_scale: float | Tensor | None, softcap: float | None
) -> Flat:
    """Put the rows of a call on one axis, and add scale and softcap of the head to the options."""
    rows = input.shape[:-1]
    scale, cap = input.recorded()
    if cap is not None and (softcap is not None or logit_scale is not None):
        raise ValueError(
            "these LinearLogits have a softcap already; leave out `softcap` and `logit_scale`"
        )
    if logit_scale is not None:
        scale = logit_scale if scale is None else scale * logit_scale
    if isinstance(target, Tensor):
        soft = target.is_floating_point() and are_alike(target, cast(Tensor, input))
        if not soft and target.shape != rows:
            squeeze = ". Pass target.squeeze(-1)" * (target.shape == (*rows, 1))
            raise ValueError(
                f"`target` must have shape {tuple(rows)} to hold one class index for each row of "
                f"logits behind a linear head, or the shape of the logits; got "
                f"{tuple(target.shape)}{squeeze}"
            )
    target, scale = flat_rows(rows, target, scale)
    return Flat(input.without_recorded(), target, scale, cap if softcap is None else softcap)


def flat_rows(rows: torch.Size, *values: Any) -> tuple[Any, ...]:
    """Tensors whose first axes are those of the rows, with one axis in their place."""
    return tuple(
        x.reshape(math.prod(rows), *x.shape[len(rows) :])  # Size.numel() would fix a traced size
        if isinstance(x, Tensor) and x.shape[: len(rows)] == rows
        else x
        for x in values
    )


def problem_of(logits: LinearLogits) -> HeadProblem:
    """The problem of logits behind a head for a function that reads no target: it is class 0."""
    return cast(HeadProblem, make_problem(logits, any_class(logits)))


def _absorb(source: LinearLogits, tensors: Tensors, softcap: float) -> tuple[LinearLogits, Tensors]:
    """Move a scale or bias that wants a gradient into the head, which has gradients by chunks."""
    scale, bias = tensors.scale, tensors.class_bias
    wanted = [t is not None and t.requires_grad for t in (scale, bias)]
    capped = softcap or tensors.class_scale is not None
    if source.group is not None and wanted[0]:  # its gradient would be a part by way of the bias
        return source, tensors
    per_row = scale is not None and scale.ndim and source.bias is not None
    if not torch.is_grad_enabled() or not any(wanted) or per_row or (capped and wanted[1]):
        return source, tensors
    if capped:
        return source.absorb(scale, None), tensors._replace(scale=None)
    return source.absorb(scale, bias), tensors._replace(scale=None, class_bias=None)
