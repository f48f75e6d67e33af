"""The processes that train together, of ``xent train --parallel``: what each has, and their talk.

All ranks run the same program on the same settings and text. They differ in what they have of a
step: lanes of the batch, or classes of the head. Only the first rank reads and writes files,
prints, and looks at the clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from .console import ERROR, UserError, note

PARALLEL = ("data", "classes")  # what the ranks share: the lanes of the batch, or the classes
T = TypeVar("T")


class Split:
    """Lanes or classes, of which each rank of a group has a stretch, in the order of the ranks.

    Args:
        group: the process group; without one this process has all.
    """

    def __init__(self, group: Any = None) -> None:
        self.group, self.parts, self.place = group, 1, 0
        if group is not None:
            import torch.distributed as dist

            self.parts, self.place = dist.get_world_size(group), dist.get_rank(group)

    def ends(self, count: int, place: int | None = None) -> tuple[int, int]:
        """First of ``count`` things that a rank has, this one or another, and one past the last."""
        place = self.place if place is None else place
        return count * place // self.parts, count * (place + 1) // self.parts

    def own(self, whole: Tensor, count: int, dim: int = 0) -> Tensor:
        """The stretch of this rank in a tensor with all ``count`` things along ``dim``.

        Raises:
            ValueError: if the tensor has another size.
        """
        if whole.shape[dim] != count:
            raise ValueError(f"expected {count} along axis {dim}, got {tuple(whole.shape)}")
        start, stop = self.ends(count)
        return whole.narrow(dim, start, stop - start)

    def whole(self, own: Tensor, count: int, dim: int = 0) -> Tensor:
        """All ``count`` things on the first rank; the other ranks get back what they give."""
        if self.group is None:
            return own
        import torch.distributed as dist

        ends = [self.ends(count, place) for place in range(self.parts)]
        widths = [stop - start for start, stop in ends]
        mine = own.movedim(dim, 0)
        sent = mine.new_zeros(max(widths), *mine.shape[1:])  # gathered parts are equally large
        sent[: len(mine)] = mine
        parts = [torch.empty_like(sent) for _ in widths] if self.place == 0 else None
        dist.gather(sent, parts, group=self.group, group_dst=0)
        if parts is None:
            return own
        kept = [part[:width] for part, width in zip(parts, widths, strict=True)]
        return torch.cat(kept).movedim(0, dim).contiguous()

    def add_up(self, *parts: Tensor) -> None:
        """Put the sums over the ranks in the places of their parts."""
        if self.group is not None:
            import torch.distributed as dist

            sums: list[Any] = [
                dist.all_reduce(part, group=self.group, async_op=True) for part in parts
            ]
            for one in sums:  # all are on the way by now
                one.wait()


@dataclass(frozen=True)
class Ranks:
    """The processes that train together; by default this one alone, which has all.

    Attributes:
        group: the process group; None for one process alone.
        lanes: what each rank has of the batch.
        classes: what each rank has of the head and of its optimizer.
    """

    group: Any = None
    lanes: Split = field(default_factory=Split)
    classes: Split = field(default_factory=Split)

    @staticmethod
    def that_share(what: str, group: Any) -> Ranks:
        """Return the ranks of a group that share one of :data:`PARALLEL`."""
        return Ranks(group, **{"lanes" if what == "data" else what: Split(group)})

    @property
    def count(self) -> int:
        """Number of ranks."""
        return max(self.lanes.parts, self.classes.parts)

    @property
    def first(self) -> bool:
        """True on the rank that reads, writes, prints and looks at the clock."""
        return self.lanes.place == self.classes.place == 0

    def once(self, action: Callable[[], T]) -> T:
        """Run an action on the first rank alone; all ranks get the result, plain types and tensors.

        An error is raised there, and ends the other ranks, which need not tell it again.
        """
        if self.group is None:
            return action()
        import torch.distributed as dist

        outcome: list[Any] = [None, False]
        if not self.first:
            dist.broadcast_object_list(outcome, group=self.group, group_src=0)
            if not outcome[1]:
                raise SystemExit(2)
            return outcome[0]
        try:
            outcome = [action(), True]
        finally:
            dist.broadcast_object_list(outcome, group=self.group, group_src=0)
        return outcome[0]

    def of_first(self, number: float) -> float:
        """The number that the first rank has."""
        if self.group is None:
            return number
        import torch.distributed as dist

        box = torch.tensor(number, dtype=torch.float64, device="cpu")
        dist.broadcast(box, group=self.group, group_src=0)
        return box.item()

    def most(self, number: float) -> float:
        """The largest number of any rank."""
        if self.group is None:
            return number
        import torch.distributed as dist

        box = torch.tensor(number, dtype=torch.float64, device="cpu")
        dist.all_reduce(box, dist.ReduceOp.MAX, group=self.group)
        return box.item()


def command(parallel: str | None, count: int, rest: str) -> str:
    """The command that runs ``xent train`` on some ranks; on one process without ``parallel``."""
    if parallel is None:
        return f"xent train {rest}"
    return f"torchrun --nproc-per-node {count} -m xent train --parallel {parallel} {rest}"


@contextmanager
def joined(parallel: str | None) -> Iterator[Ranks]:
    """The ranks that torchrun started, or this process alone; one of them tells errors of use.

    A rank that does not hear from another one any more says so and ends.

    Args:
        parallel: what the ranks share, one of :data:`PARALLEL`; None for one process.

    Raises:
        UserError: if the option and the way this process was started do not fit.
    """
    try:
        _check_start(parallel)
        if parallel is None:
            yield Ranks()
            return
        import torch.distributed as dist

        dist.init_process_group("gloo")
        try:
            yield Ranks.that_share(parallel, dist.group.WORLD)
        except RuntimeError as error:
            if _is_of_connection(error):
                _end(error)
            raise
        finally:
            dist.destroy_process_group()
    except (UserError, KeyboardInterrupt) as error:
        if _place() == 0:
            raise
        raise SystemExit(2 if isinstance(error, UserError) else 130) from None


def _check_start(parallel: str | None) -> None:
    """Raise :class:`UserError` if the option does not fit the way this process was started."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if parallel is None:
        if started == 1:
            return
        raise UserError(
            f"torchrun started {started} processes; say what they share: --parallel data or "
            "--parallel classes"
        )
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        raise UserError(f"--parallel {parallel}: this PyTorch is built without gloo")
    if "RANK" not in os.environ:
        way_out = command(parallel, 2, "...")
        raise UserError(f"--parallel {parallel} needs processes that torchrun starts: {way_out}")


def _place() -> int:
    """Return the number of this process among those that torchrun started."""
    return int(os.environ.get("RANK", "0"))


def _end(error: RuntimeError) -> NoReturn:
    """Say that another rank is lost, and end at once, so that all ranks soon hear of it.

    The usual end would wait for what this rank has sent, and so for ranks that wait for this one.
    """
    note(
        f"xent train: rank {_place()} does not hear from another rank any more: that rank has "
        f"ended, most likely, and torchrun names it. --resume continues from the last checkpoint. "
        f"The connection says: {str(error).partition('. ')[0]}",
        ERROR,
    )
    os._exit(2)


def _is_of_connection(error: RuntimeError) -> bool:
    """True if an error comes from the connection to another rank."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)
