"""The rows of a head that are computed: those that are not ignored.

On a CPU the mask of these rows is read before the first chunk. On an accelerator whoever reads it
waits until the device has done all that it was asked before, and then the device waits for the
next order. So the device sorts the numbers of the rows, with kept rows first, and the first chunk
is launched before the host asks how many rows are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..engines.modes import are_there, on_accelerator
from ..engines.rows.problem import Index, Problem

TILE = 128  # rows of the tiles of products on accelerators


class KeptRows(NamedTuple):
    """Rows by number.

    Attributes:
        numbers: the numbers, int64.
    """

    numbers: Tensor

    @property
    def most(self) -> int:
        """The number of rows, or the most that it can be where nobody waits for it."""
        return self.numbers.shape[0]

    @property
    def none(self) -> bool:
        """True if no row is kept."""
        return self.most == 0

    def in_order(self, height: int) -> bool:
        """True if the chunks are all rows in their order."""
        return False

    def chunks(self, height: int) -> Iterator[Index]:
        """The rows of one chunk after the other."""
        return iter(self.numbers.split(height))

    def without_ignored(self, numbers: Tensor, index: Index) -> Tensor:
        """The numbers of some rows, ``(n, ...)``, 0 for ignored rows among them."""
        return numbers


class SortedRows(NamedTuple):
    """Rows on an accelerator. One chunk and captured graphs have the ignored rows among them.

    Attributes:
        kept: True for the rows that are kept, ``(N,)``.
    """

    kept: Tensor

    @property
    def most(self) -> int:
        """The number of rows, or the most that it can be where nobody waits for it."""
        return self.kept.shape[0]

    @property
    def none(self) -> Tensor:
        """True if no row is kept, 0-d."""
        return ~self.kept.any()

    def in_order(self, height: int) -> bool:
        """True if the chunks are all rows in their order."""
        captured = self.kept.is_cuda and torch.cuda.is_current_stream_capturing()
        return captured or self.most <= height

    def chunks(self, height: int) -> Iterator[Index]:
        """The rows of one chunk after the other; those of the first may be ignored."""
        if self.in_order(height):
            yield from slices(self.most, height)
            return
        count = Arriving(self.kept.sum())
        ignored = (~self.kept).to(torch.uint8)  # CUDA has not always sorted booleans
        numbers = torch.sort(ignored, stable=True).indices
        yield numbers[:height]
        others = numbers[height : count.value()]
        if others.shape[0]:
            yield from others.split(even(others.shape[0], height, TILE))

    def without_ignored(self, numbers: Tensor, index: Index) -> Tensor:
        """The numbers of some rows, ``(n, ...)``, 0 for ignored rows among them.

        A gradient of 0 times features that are NaN would be NaN, and so would a gradient that is
        NaN. One more pass over the features of a chunk is below 1 % of the time of the products.
        """
        return numbers.masked_fill(~self.kept[index].unsqueeze(-1), 0)


class Arriving:
    """A number on its way from a device to the host."""

    def __init__(self, number: Tensor) -> None:
        self.number, self.event = number, None
        if number.is_cuda:  # for other devices the host waits
            self.number = torch.empty_like(number, device="cpu", pin_memory=True)
            self.number.copy_(number, non_blocking=True)
            self.event = torch.cuda.current_stream(number.device).record_event()

    def value(self) -> int:
        """The number, as soon as it has arrived."""
        if self.event is not None:
            self.event.synchronize()
        return int(self.number)


Kept = KeptRows | SortedRows


def kept_rows(problem: Problem) -> Kept | None:
    """The rows that are not ignored; None for all."""
    return rows_of(problem.kept())


def rows_of(kept: Tensor | None) -> Kept | None:
    """The rows of a mask; None if all are kept, or values cannot be looked at."""
    if kept is None or not are_there(kept):
        return None
    if on_accelerator(kept):
        return SortedRows(kept)
    if bool(kept.all()):
        return None
    return KeptRows(kept.nonzero()[:, 0])


def finite_slope(slope: Tensor, none: bool | Tensor) -> Tensor | None:
    """The slope of a sum; where no row is kept 1, or None, as that of a mean is infinite."""
    if isinstance(none, Tensor):
        return slope.masked_fill(none, 1)
    return None if none else slope


def even(count: int, most: int, strip: int) -> int:
    """The height of as few chunks as possible, all of about the same height: at most ``most``."""
    height = math.ceil(count / max(1, math.ceil(count / most)))
    return max(1, min(most, count, math.ceil(height / strip) * strip))


def slices(rows: int, height: int) -> Iterator[slice]:
    """All rows in their order, a chunk after the other; an empty one if there are no rows."""
    for start in range(0, max(rows, 1), height):
        yield slice(start, min(start + height, rows))
