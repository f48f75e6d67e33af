"""Logits whose classes are split over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._check import whole_number
from ..class_dim import axis_of_classes
from ..collectives import gathered
from ..heads.distributed import DistributedLogits
from ..heads.logits import LinearLogits, are_logits
from ..shards import Shard, ShardedLogits
from .groups import group_of


def shard(
    input: Tensor | LinearLogits,
    group: Any = None,
    *,
    start: int | None = None,
    classes: int | None = None,
    class_dim: int | None = None,
) -> Any:  # ShardedLogits, which losses take where their types say a tensor
    """Logits of all classes, of which this rank has some; for every loss of rows.

    Also for :func:`xent.statistics`, :func:`xent.token_log_probs` and :func:`xent.entropy`, and for
    :func:`torch.logsumexp`, :func:`torch.argmax` and :func:`torch.topk` along the classes, with one
    gather each. A factor (``logits / t``), a softcap (``cap * torch.tanh(logits / cap)``) and
    another floating-point type are kept. Any other function of PyTorch raises: no rank has all
    logits.

    All ranks of the group make the same calls on the same rows, and get the same bits. Targets are
    class indices, counted over all ranks, or probabilities of this rank's classes. Vectors over
    classes (weights, biases, counts) are given whole. The rank has the gradient of its own logits;
    behind a head, that of the features is added up over the ranks. What is made of the results must
    be the same on all ranks, as the results are.

    Args:
        input: the logits of this rank's classes, ``(C_own,)``, ``(N, C_own)`` or
            ``(N, C_own, d1, ...)``, with ``class_dim=-1`` ``(..., C_own)``; or
            :class:`xent.LinearLogits` of this rank's part of the weight, ``(..., C_own)``. A rank
            may have no class.
        group: the ranks that share the classes: a process group, or a device mesh of one
            dimension; by default all ranks.
        start: number of the first class here; by default the classes of the lower ranks come first.
        classes: number of classes of all ranks; by default their sum. With ``start`` and
            ``classes`` given no collective is needed.
        class_dim: the axis of the classes, as for every loss, which then need not be told again.

    Returns:
        What stands for the logits. Its ``gather()`` is all of them as a tensor.

    Raises:
        RuntimeError: if there is no process group.
        ValueError: for classes that do not fit. Where the ranks disagree, all raise at the first
            call of a loss.
        TypeError: if ``input`` holds no logits.

    Example:
        >>> import torch, torch.distributed as dist, xent
        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
        >>> loss = xent.cross_entropy(xent.parallel.shard(logits), torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.4076
        >>> dist.destroy_process_group()
    """
    group = group_of(group)
    if isinstance(input, ShardedLogits):
        raise TypeError("`input` is a shard already: pass it to the loss")
    are_logits("input", input)
    if isinstance(input, DistributedLogits):
        raise TypeError(
            "`input` is LinearLogits of DTensors, which know where their classes are: pass `input` "
            "to the loss, or input.to_local() for plain targets"
        )
    if not input.is_floating_point():
        raise TypeError(
            f"`input` must hold floating-point logits, got {input.dtype}; call input.float()"
        )
    axis = axis_of_classes(input, class_dim, lean=isinstance(input, LinearLogits))
    width = input.shape[axis]
    if start is None or classes is None:
        widths = gathered(torch.tensor([width], dtype=torch.int64, device=input.device), group)[
            :, 0
        ].tolist()
        before = sum(widths[: torch.distributed.get_rank(group)])
        start, classes = before if start is None else start, sum(widths)
    start, classes = whole_number("start", start), whole_number("classes", classes)
    if not 0 <= start <= start + width <= classes:
        raise ValueError(
            f"`input` has {width} classes, so `start` must be 0 to {classes - width}, of "
            f"{classes} classes of all ranks; got {start}"
        )
    if isinstance(input, LinearLogits):
        input = input.shared_by(group)
    return ShardedLogits(input, Shard(group, start, width, classes), axis)
