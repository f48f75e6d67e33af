"""The bytes that travel on ranks, in a module of its own: it goes to other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# How often the bytes of the largest tensor of a collective go around a ring.
ROUNDS = {"_allgather_base_": 1, "allreduce_": 2, "alltoall_base_": 1}


class Collective(NamedTuple):
    """A collective of a call: its name, its dtype, and the bytes of its largest tensor."""

    kind: str
    dtype: torch.dtype
    size: int

    def received(self, ranks: int) -> float:
        """The bytes that a rank receives."""
        return ROUNDS[self.kind] * self.size * (ranks - 1) / ranks


class Traffic(TorchDispatchMode):
    """Writes down the collectives of what is called within it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
            size = max(x.nbytes for x in tensors)
            self.found.append(Collective(func._opname, tensors[0].dtype, size))
        return func(*args, **(kwargs or {}))


def traffic(group: Any, function: Callable[..., Any], *args: Any) -> list[Collective]:
    """The collectives of a function on the ranks."""
    with Traffic() as found:
        function(group, *args)
    return found.found
