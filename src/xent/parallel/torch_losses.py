"""PyTorch's functions of losses, on DTensors whose classes are split over ranks.

Each answer has the arguments of the function of PyTorch that it stands for, and returns
NotImplemented for tensors that are none of its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn._reduction import legacy_get_string
from torch.overrides import TorchFunctionMode

from .. import losses
from .._check import one_of
from ..engines.modes import autocasts, is_dtensor, wide_dtype
from ..frames.containers import OnRanks, errors_told, through_containers
from ..frames.reduction import divisor_of_rows, stable_sum
from ..shards import across_ranks
from ..targets import class_axis
from . import log_probs


@contextmanager
def loss_parallel() -> Iterator[None]:
    """Context in which PyTorch's losses take DTensors whose classes are split over ranks.

    In the place of :func:`torch.distributed.tensor.parallel.loss_parallel`, for code that is
    written for that one. In the context :func:`torch.nn.functional.cross_entropy`,
    :func:`~torch.nn.functional.log_softmax` (also of torch and of tensors),
    :func:`~torch.nn.functional.nll_loss` and :func:`~torch.nn.functional.kl_div`, and the modules
    that call them, are computed by this library, with the right gradients for soft targets, for
    label smoothing and for whatever is made of log-probabilities. No logits are gathered. The
    backward pass may run outside of the context. Calls on other tensors go to PyTorch.

    The functions of this library (:func:`xent.cross_entropy`) take such DTensors without a context.

    The context is that of one thread. It nests, ends with an exception, and works as a decorator.
    Where the context of PyTorch is on, too, inside or outside, this one counts.

    Raises:
        ValueError: in the context, as the errors below: for classes that are split on two
            dimensions of a mesh, sums that are still to be added up, values that an option cannot
            take, what is no probability or log-probability in ``kl_div``, and where the ranks
            disagree.
        TypeError: for a target that is no DTensor beside rows that are split over ranks, and for
            ``out=``.
        NotImplementedError: under ``torch.func`` and ``torch.compile``, and for second derivatives.

    Example:
        >>> import torch, torch.distributed as dist, xent
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> from torch.distributed.tensor import Shard, distribute_tensor
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> mesh = init_device_mesh("cpu", (1,))
        >>> logits = distribute_tensor(torch.tensor([[2.0, 1.0, 0.0]]), mesh, [Shard(1)])
        >>> with xent.parallel.loss_parallel():
        ...     log_probs = torch.log_softmax(logits, -1)
        >>> log_probs.full_tensor()
        tensor([[-0.4076, -1.4076, -2.4076]])
        >>> dist.destroy_process_group()
    """
    with _Mode():
        yield


class _Mode(TorchFunctionMode):
    """Gives the answers of this module in the place of PyTorch's functions."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The answer of this module, or that of PyTorch."""
        kwargs, answer = kwargs or {}, _ANSWERS.get(func)
        result = NotImplemented if answer is None else answer(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result


# ---- the answers ---------------------------------------------------------------------------------


def cross_entropy(
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Any = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Answer :func:`torch.nn.functional.cross_entropy`."""
    if not _is_split(input, _usual_axis(input)):
        return NotImplemented
    return losses.cross_entropy(
        input, _beside(input, target), weight, size_average, ignore_index, reduce, reduction,
        label_smoothing,
    )  # fmt: skip


def nll_loss(
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Answer :func:`torch.nn.functional.nll_loss`, which reads the number of the target alone."""
    if not _is_split(input, _usual_axis(input)):
        return NotImplemented
    how = _reduction(size_average, reduce, reduction)
    return _nll_of_dtensors(
        input, _beside(input, target), weight, ignore_index=ignore_index, reduction=how
    )


_nll_of_dtensors = through_containers(log_probs.nll_loss, divisor_of_rows, of_rows=True)


def log_softmax(
    input: Any, dim: int | None = None, *options: Any, dtype: torch.dtype | None = None,
    _stacklevel: int = 3, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Answer :func:`torch.nn.functional.log_softmax`, torch's and that of tensors."""
    if not is_dtensor(input):
        return NotImplemented
    if dim is None:  # PyTorch's guess
        dim = 0 if input.ndim in (0, 1, 3) else 1
    axis = dim % max(input.ndim, 1)
    if not _is_split(input, axis):
        return NotImplemented
    if out is not None:
        raise TypeError("log_softmax of classes that are split over ranks takes no `out`")
    # The functions have a `_stacklevel` before the dtype, the methods have not.
    dtype = next((x for x in options if isinstance(x, torch.dtype)), dtype)
    if dtype is None and input.device.type == "cuda" and autocasts(input):
        dtype = torch.float32  # as PyTorch's
    shard = OnRanks(input, axis, takes_shards=True).inner("input", input)
    own = across_ranks(log_probs.log_softmax, {"input": shard, "dtype": dtype or input.dtype})
    return _of_elements(input).rows(own)


def kl_div(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """Answer :func:`torch.nn.functional.kl_div`; the classes are on the last axis that is split."""
    axis = _last_split_axis(input)
    if axis is None or (axis == 0 and input.ndim > 1):  # all classes of some rows
        return NotImplemented
    ranks, elements = OnRanks(input, axis, takes_shards=True), _of_elements(input)
    with errors_told(ranks, "kl_div"):
        how = _reduction(size_average, reduce, reduction)
        one_of("reduction", how, ("none", "batchmean", "sum", "mean"))
        given = {
            "input": ranks.inner("input", input), "target": elements.inner("target", target),
            "log_target": log_target,
        }  # fmt: skip
    own = across_ranks(log_probs.kl_div, given)
    if how == "none":
        return elements.rows(own)
    total = stable_sum(own.to(wide_dtype(own)))
    count = {"sum": 1, "mean": input.numel(), "batchmean": input.shape[0]}[how]
    return elements.total((total / count).to(own.dtype))


_ANSWERS: dict[Any, Callable[..., Any]] = {
    functional.cross_entropy: cross_entropy, functional.nll_loss: nll_loss,
    functional.kl_div: kl_div, functional.log_softmax: log_softmax,
    torch.log_softmax: log_softmax, torch.special.log_softmax: log_softmax,
    Tensor.log_softmax: log_softmax,
}  # fmt: skip


# ---- what they share -----------------------------------------------------------------------------


def _is_split(input: Any, axis: int) -> bool:
    """True for a DTensor that some dimension of its mesh splits along an axis."""
    return is_dtensor(input) and any(place.is_shard(axis) for place in input.placements)


def _last_split_axis(input: Any) -> int | None:
    """The last axis of a DTensor that is split; None if there is none."""
    places = input.placements if is_dtensor(input) else ()
    return max((place.dim for place in places if place.is_shard()), default=None)


def _usual_axis(input: Any) -> int:
    return class_axis(input) if isinstance(input, Tensor) else 0


def _of_elements(input: Any) -> OnRanks:
    """The places of results that have the shape of a DTensor."""
    return OnRanks(input, None, takes_shards=False)


def _beside(input: Any, target: Any) -> Any:
    """A target; one that is no DTensor and holds classes is the same on all ranks, as PyTorch's."""
    ranks = OnRanks(input, _usual_axis(input), takes_shards=True)
    plain = isinstance(target, Tensor) and not is_dtensor(target)
    return ranks.rows(target) if plain and not ranks.split and target.ndim < input.ndim else target


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction, which PyTorch's old pair of flags may mean."""
    if size_average is None and reduce is None:
        return reduction
    return legacy_get_string(size_average, reduce)
