"""What travels in calls on ranks, in a module of its own: it goes to other processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

import xent
from xent.parallel import shard

# Which share of its tensor, over P - 1, a rank receives by each collective around a ring.
SHARES = {"_allgather_base_": 1, "allreduce_": 2, "alltoall_base_": 1, "_reduce_scatter_base_": 1}


class Collective(NamedTuple):
    """A collective of a call: its name, its dtype, and the bytes of its largest tensor."""

    kind: str
    dtype: torch.dtype
    size: int

    def received(self, ranks: int) -> float:
        """The bytes that a rank receives."""
        return SHARES[self.kind] * self.size * (ranks - 1) / ranks


class Traffic(TorchDispatchMode):
    """Writes down the collectives of what is called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            flat = torch.utils._pytree.tree_leaves(args)
            tensors = [x for x in flat if isinstance(x, torch.Tensor)]
            size = max(x.numel() * x.element_size() for x in tensors)
            self.found.append(Collective(func._opname, tensors[0].dtype, size))
        return func(*args, **(kwargs or {}))


def of_logits(
    group: Any, rows: int, width: int, soft: bool, options: dict[str, Any]
) -> tuple[list[Collective], list[Collective]]:
    """The collectives of a loss of logits: forward and backward."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    own = torch.randn(rows, width, requires_grad=True)
    logits = shard(own, group, start=width * rank, classes=width * ranks)
    target = torch.full((rows, width), 1 / width / ranks) if soft else torch.arange(rows) % width
    with Traffic() as forward:
        loss = xent.cross_entropy(logits, target, **options)
    with Traffic() as backward:
        loss.backward()
    return forward.found, backward.found


def of_head(
    group: Any, rows: int, features: int, width: int, workspace: int
) -> tuple[list[Collective], list[Collective]]:
    """The collectives of a loss behind a head: forward and backward."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    hidden = torch.randn(rows, features, requires_grad=True)
    weight = torch.randn(width, features, requires_grad=True)
    lean = xent.LinearLogits(hidden, weight, max_workspace=workspace)
    logits = shard(lean, group, start=width * rank, classes=width * ranks)
    with Traffic() as forward:
        loss = xent.cross_entropy(logits, torch.arange(rows) % width)
    with Traffic() as backward:
        loss.backward()
    return forward.found, backward.found
