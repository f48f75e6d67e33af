"""The collectives of ``torch.distributed`` that ranks use, which is imported when the first runs.

A collective fails where another rank has ended. All raise one error then, which says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def _reaching_all(group: Any) -> Iterator[None]:
    """Name the likely cause of a collective that fails."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {dist.get_rank(group)} has not got the numbers of the other ranks, most likely "
            f"because one of them has ended or hangs; look at the output of each rank: {error}"
        ) from error


def gathered(part: Tensor, group: Any) -> Tensor:
    """The tensors of all ranks, ``(P, ...)``; they must have the same shape.

    Raises:
        RuntimeError: if a rank cannot be reached.
    """
    import torch.distributed as dist

    # PyTorch 2.13 has the operation by a new name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    parts = part.new_empty(dist.get_world_size(group), *part.shape)
    with _reaching_all(group):
        gather(parts.view(-1), part.contiguous().view(-1), group=group)
    return parts


def exchanged(parts: Tensor, group: Any) -> Tensor:
    """Parts that the ranks have for this one, ``(P, ...)``; each gives one part to each rank.

    Raises:
        RuntimeError: if a rank cannot be reached.
    """
    import torch.distributed as dist

    received = torch.empty_like(parts, memory_format=torch.contiguous_format)
    with _reaching_all(group):
        dist.all_to_all_single(received.view(-1), parts.contiguous().view(-1), group=group)
    return received


def begin_sum(x: Tensor, group: Any) -> Callable[[], None]:
    """Begin to add up a contiguous tensor over the ranks, in place; the result ends the sum.

    Raises:
        RuntimeError: if a rank cannot be reached.
    """
    import torch.distributed as dist

    with _reaching_all(group):
        work: Any = dist.all_reduce(x, group=group, async_op=True)

    def end() -> None:
        with _reaching_all(group):
            work.wait()

    return end
