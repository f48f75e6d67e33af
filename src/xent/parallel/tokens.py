"""Tokens over ranks: how many there are, and labels of sequences that are split."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._check import class_indices, vector_of_classes, whole_number
from ..agreement import same_on_all
from ..collectives import begin_sum, gathered
from ..frames.reduction import mass_of_labels, stable_sum
from ..targets import moved_labels
from .groups import group_of


def global_normalizer(
    *targets: Tensor,
    group: Any = None,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    row_weight: Tensor | None = None,
    shift: int = 0,
    averaged: bool = True,
) -> Tensor:
    """The divisor of a mean over the tokens of all ranks and micro-batches, for ``normalizer=``.

    One sum of one number over the ranks per step of the optimizer, however many micro-batches. The
    mean of each rank over its own tokens is no mean over all: ranks with few tokens would count as
    much as those with many.

    Args:
        targets: class indices of the micro-batches of this rank, of any shape.
        group: the ranks with different rows, and only these: a process group or a device mesh of
            one dimension; by default all ranks. Ranks that share the classes of the same rows are
            not counted twice if each calls with the group of its data-parallel ranks.
        ignore_index: class index that marks tokens to leave out.
        weight: class weights, ``(C,)``: each token counts with the weight of its class.
        row_weight: a factor for each token, in the shape of the only target.
        shift: how many places the labels will be moved, as by :func:`xent.shift_labels`.
        averaged: divide by the number of ranks, because DDP and FSDP average the gradients of the
            ranks. False where gradients are added up.

    Returns:
        A number, 0-d, float64, the same on all ranks.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for targets that are no integers.
        RuntimeError: if there is no process group.

    Example:
        >>> import torch, torch.distributed as dist, xent
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> xent.parallel.global_normalizer(torch.tensor([3, 1, -100]), torch.tensor([5]))
        tensor(3., dtype=torch.float64)
        >>> dist.destroy_process_group()
    """
    import torch.distributed as dist

    group = group_of(group)
    if not targets:
        raise ValueError("global_normalizer needs the targets of at least one micro-batch")
    if row_weight is not None and len(targets) > 1:
        raise ValueError("`row_weight` is for one target; call once per target and add the results")
    counts = [_count(target, ignore_index, weight, row_weight, shift) for target in targets]
    total = torch.stack(counts).sum()
    begin_sum(total, group)()
    return total / dist.get_world_size(group) if averaged else total


def _count(
    target: Tensor, ignore_index: int, weight: Tensor | None, row_weight: Tensor | None, shift: int
) -> Tensor:
    """The share of one target in the divisor."""
    labels = class_indices("targets", target)
    if shift:
        labels = moved_labels(("targets", labels), ("shift", shift), ignore_index)
    if weight is not None:
        vector_of_classes("weight", weight, weight.numel(), labels.device)
    _, mass = mass_of_labels(labels, ignore_index, weight)
    if row_weight is None:
        return stable_sum(mass)
    if row_weight.shape != labels.shape:
        raise ValueError(
            f"`row_weight` must have the shape of the target, {tuple(labels.shape)}; got "
            f"{tuple(row_weight.shape)}"
        )
    return stable_sum(mass * row_weight.to(mass.dtype))


def shift_labels(
    labels: Tensor,
    group: Any = None,
    k: int = 1,
    ignore_index: int = -100,
    *,
    documents: Tensor | None = None,
) -> Tensor:
    """Labels moved ``k`` places to the left, where each rank has a piece of every sequence.

    The first ``k`` labels of the next rank are the last ones here; on the last rank there is no
    label. The pieces must follow one another in the order of the ranks. Where sequences are split
    in another order (zig-zag), shift with :func:`xent.shift_labels` before they are split.

    Args:
        labels: class indices of any integer type, ``(..., T)``, the piece of this rank.
        group: the ranks that share the sequences: a process group or a device mesh of one
            dimension; by default all ranks.
        k: how many places, from 0 to ``T``.
        ignore_index: label of the last ``k`` places of a sequence, and of each document.
        documents: a number for each token, the same within a document on all ranks, in the shape of
            ``labels``.

    Returns:
        int64, ``(..., T)``.

    Raises:
        ValueError: for shapes that do not fit, or if ``k`` is out of range.
        TypeError: if ``labels`` or ``documents`` are no integers.
        RuntimeError: if there is no process group.

    Example:
        >>> import torch, torch.distributed as dist, xent
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> xent.parallel.shift_labels(torch.tensor([[5, 6, 7]]))
        tensor([[   6,    7, -100]])
        >>> dist.destroy_process_group()
    """
    import torch.distributed as dist

    group, k = group_of(group), whole_number("k", k)
    moved = moved_labels(("labels", labels), ("k", k), ignore_index)
    if not k:
        return moved
    pieces = [class_indices("labels", labels)]
    if documents is not None:
        pieces.append(class_indices("documents", documents))
        if documents.shape != labels.shape:
            raise ValueError(
                f"`documents` must have the shape of `labels`, {tuple(labels.shape)}; got "
                f"{tuple(documents.shape)}"
            )
    facts = {"k": k, "documents": len(pieces) - 1, "sequences": labels[..., :1].numel()}
    same_on_all("shift_labels", facts, group, labels.device)
    heads = gathered(
        torch.stack([piece[..., :k] for piece in pieces]), group
    )  # (P, 1 or 2, ..., k)
    following = dist.get_rank(group) + 1
    if following < len(heads):
        moved[..., -k:] = heads[following, 0]
    if documents is None:
        return moved
    ahead = pieces[1].roll(-k, -1)
    if following < len(heads):
        ahead[..., -k:] = heads[following, 1]
    return moved.masked_fill(ahead != pieces[1], ignore_index)
