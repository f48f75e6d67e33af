"""Functions for the ranks of a test: heads whose weight is a DTensor."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

import xent
from xent.heads.distributed import DistributedLogits

from .on_ranks import heard


@functools.cache
def mesh_of(dims: tuple[int, ...], group: Any) -> Any:
    """A mesh over the ranks of a group."""
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    if len(dims) > 1:
        return init_device_mesh("cpu", dims, mesh_dim_names=("rows", "classes"))
    return DeviceMesh.from_group(group, "cpu")


def placements(words: str) -> list[Any]:
    """Placements in short: ``0`` and ``1`` for that axis, ``-`` for every rank."""
    from torch.distributed.tensor import Replicate, Shard

    return [Replicate() if word == "-" else Shard(int(word)) for word in words.split()]


def head_of(mesh: Any, parts: list[torch.Tensor | None], places: list[str], **options: Any) -> Any:
    """Logits behind a head of DTensors, and these leaves."""
    from torch.distributed.tensor import distribute_tensor

    leaves = [
        None if x is None else distribute_tensor(x, mesh, placements(words)).requires_grad_()
        for x, words in zip(parts, (places[0], places[1], places[1]), strict=True)
    ]
    return xent.LinearLogits(*leaves, **options), [x for x in leaves if x is not None]


def losses(
    group: Any, dims: tuple[int, ...], parts: list[Any], target: torch.Tensor, places: list[str],
    calls: list[tuple[str, dict[str, Any]]], workspace: int,
) -> list[tuple[Any, ...]]:  # fmt: skip
    """The whole of each loss, where it was placed, and the gradients of features, weight, bias."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, found = mesh_of(dims, group), []
    for name, options in calls:
        logits, leaves = head_of(mesh, parts, places, max_workspace=workspace)
        soft = target.is_floating_point()
        rows = placements(places[2])
        y = distribute_tensor(target, mesh, logits.placements if soft else rows)
        loss = getattr(xent.losses, name)(logits, y, **options)
        assert isinstance(loss, DTensor)
        gradients = torch.autograd.grad(loss.sum(), leaves)
        assert all(isinstance(x, DTensor) for x in gradients)
        found.append(
            (loss.full_tensor().detach(), str(loss.placements), *(g.full_tensor() for g in gradients))
        )
    return found
