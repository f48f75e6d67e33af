"""Process groups as callers give them."""

from __future__ import annotations

from typing import Any


def group_of(group: Any) -> Any:
    """The process group that a caller means: of a device mesh, the given one, or that of all ranks.

    Raises:
        RuntimeError: if there is no process group.
        ValueError: for a mesh of several dimensions.
        TypeError: for anything else.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "there is no process group: call torch.distributed.init_process_group() first, in a "
            "program that torchrun starts"
        )
    if group is None:
        return dist.group.WORLD
    if isinstance(group, dist.ProcessGroup):
        return group
    if hasattr(group, "get_group"):  # a device mesh
        if group.ndim != 1:
            raise ValueError(
                f'`group` must be a device mesh of one dimension, got {group.ndim}: pass mesh["tp"]'
            )
        return group.get_group()
    raise TypeError(
        f"`group` must be a process group or a device mesh of one dimension, got "
        f"{type(group).__name__}"
    )
