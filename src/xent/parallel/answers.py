"""PyTorch's functions of logits whose classes are split over ranks.

``logsumexp``, ``argmax`` and ``topk`` along the classes take one gather each. Functions of single
logits that treat all classes alike (a factor, a softcap, another type) each rank applies to its
own. Registered for :class:`ShardedLogits`, as functions of torch and methods of tensors.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._check import whole_number
from ..engines.modes import wide_dtype
from ..heads.stand_in import Lean
from ..measurement import statistics
from ..row_merge import NO_CLASS
from ..shards import ShardedLogits, across_ranks, all_parts, refuse_learned, takes_shards
from ..targets import any_class

Answer = Callable[..., Any]


def _register(answer: Answer, *names: str) -> None:
    for name in names:
        for home in (torch, Tensor):
            if hasattr(home, name):
                ShardedLogits.lean[getattr(home, name)] = answer


# ---- functions of whole rows ---------------------------------------------------------------------


def _along_classes(function: Answer) -> Answer:
    """Register a function of the logits of all ranks along ``dim``. A decorator."""
    signature = inspect.signature(function)
    takes_shards(function)

    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return across_ranks(function, bound.arguments)

    _register(answer, function.__name__)
    return function


def _axis(input: ShardedLogits, dim: Any) -> int:
    """The axis of the classes; raise unless ``dim`` names it."""
    axes = dim if isinstance(dim, (tuple, list)) else (dim,)
    if len(axes) != 1 or axes[0] is None or int(axes[0]) % input.ndim != input.class_axis:
        raise ValueError(
            f"`dim` must be {input.class_axis}, the axis of the classes, which are split over "
            f"ranks; got {dim!r}. Along other axes call the function on the logits of this rank"
        )
    return input.class_axis


@_along_classes
def logsumexp(input: ShardedLogits, dim: Any, keepdim: bool = False) -> Tensor:
    """The log-sum-exp of all classes of each row, from the statistics of the row."""
    axis = _axis(input, dim)
    lse = statistics(input, any_class(input)).lse.to(input.dtype)  # pyright: ignore
    return lse.unsqueeze(axis) if keepdim else lse


@_along_classes
def argmax(input: ShardedLogits, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The class of the largest logit of each row; of equal logits the lowest class."""
    axis = _axis(input, dim)
    own: Any = input.own.detach()
    if input.shard.width:
        places = own.argmax(axis, keepdim=True)
        largest = own.gather(axis, places)
    else:  # no class, and no logit
        largest = own if isinstance(own, Tensor) else own.materialize()
        places = largest.long()
    _, classes = _best(input, largest, places, 1, largest=True)
    return classes if keepdim else classes.squeeze(axis)


@_along_classes
def topk(
    input: ShardedLogits, k: int, dim: Any = -1, largest: bool = True, sorted: bool = True
) -> Any:
    """The ``k`` largest or smallest logits of each row and their classes, in order.

    Differentiable: each rank has the gradient of its own logits.
    """
    axis, k = _axis(input, dim), whole_number("k", k)
    own: Any = input.attached
    values, places = own.topk(min(k, input.shard.width), axis, largest)
    return torch.return_types.topk(_best(input, values, places, k, largest=largest))


def _best(
    input: ShardedLogits, values: Tensor, places: Tensor, k: int, *, largest: bool
) -> tuple[Tensor, Tensor]:
    """The best ``k`` of what each rank has found among its own classes, with one gather.

    Args:
        input: the logits.
        values: at most ``k`` logits of each row, along the axis of the classes.
        places: the classes of this rank that have these logits, counted from 0.
        k: how many to find.
        largest: whether large logits are good, or small ones.
    """
    shard, axis = input.shard, input.class_axis
    if not 0 <= k <= shard.classes:
        raise ValueError(f"`k` must be 0 to {shard.classes}, the number of classes; got {k}")
    found = values.movedim(axis, 0).to(wide_dtype(values))  # (at most k, N...)
    features = None if isinstance(input.own, Tensor) else input.own.hidden
    shard.ask(input.dtype, input.rows.numel(), [features])
    classes = places.movedim(axis, 0).to(found.dtype) + shard.start
    room = (0, 0) * (found.ndim - 1) + (0, k - len(found))
    found = pad(found, room, value=-torch.inf if largest else torch.inf)
    table = all_parts(torch.stack([found, pad(classes, room, value=NO_CLASS)]), shard.group)
    found, classes = table.transpose(0, 1).flatten(1, 2)  # (P k, N...) each
    classes, order = classes.detach().sort(0)  # so that of equal logits the lowest class is first
    found, order = found.gather(0, order).sort(dim=0, descending=largest, stable=True)
    found, classes = found[:k], classes.gather(0, order)[:k]
    return found.to(input.dtype).movedim(0, axis), classes.long().movedim(0, axis)


# ---- functions of single logits ------------------------------------------------------------------

_PRODUCTS = ("mul", "multiply", "__mul__", "__rmul__")


def _of_single_logits(name: str) -> Answer:
    """The answer that each rank gives for its own logits: factors are numbers."""

    def answer(input: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(input, ShardedLogits):
            if name not in _PRODUCTS:
                return NotImplemented
            input, args = args[0], (input, *args[1:])
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, (Tensor, Lean))]
        if any(x.ndim for x in tensors):
            return NotImplemented
        refuse_learned(tensors)
        return input.mapped(lambda own: getattr(own, name)(*args, **kwargs))

    return answer


for _name in (
    *_PRODUCTS, "div", "divide", "true_divide", "__truediv__", "neg", "negative", "__neg__",
    "tanh", "to", "float", "double", "half", "bfloat16", "detach", "clone", "contiguous",
):  # fmt: skip
    _register(_of_single_logits(_name), _name)
