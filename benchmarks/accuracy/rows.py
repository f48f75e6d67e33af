"""The logits of the atlas: rows whose target is a given margin above all other classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MARGINS = (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100)  # nats
FEW = 1000  # most classes that all have logits of their own
MANY, SHORT = 4, 10  # rows of each margin where a row is as short as that; else one
SPREAD = 3.0  # standard deviation of the other logits


class Cell(NamedTuple):
    """The subject of a line in the file of cells: all of its key but who computes it."""

    loss: str
    dtype: str
    classes: int
    offset: float

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the type of the logits."""
        return getattr(torch, self.dtype)


class Rows(NamedTuple):
    """Rows in which many classes may share a logit.

    Attributes:
        distinct: logits of the groups of classes, (N, G), in the type that is measured.
        target: the group of the target, (N,); it has one class.
        second: another group of one class, (N,).
        group: the group of each class, (V,).
        times: how many classes each group has, (G,), or None if each has one.
        margin: the position of the margin of each row in ``MARGINS``, (N,).
    """

    distinct: Tensor
    target: Tensor
    second: Tensor
    group: Tensor
    times: np.ndarray | None
    margin: Tensor

    def spread(self, of_groups: Tensor) -> Tensor:
        """Return numbers of all classes from those of their groups."""
        return of_groups[..., self.group]

    def only(self, margin: int) -> Rows:
        """Return the rows of the margin at this position."""
        kept = self.margin == margin
        parts = {name: getattr(self, name)[kept] for name in ("distinct", "target", "second")}
        return self._replace(**parts, margin=self.margin[kept])


def make_rows(cell: Cell, unit: float = 1.0) -> Rows:
    """Return the rows of a cell; ``unit`` is how much of a logit a nat of margin is.

    The largest of the other classes is one class, so that the maximum has a derivative.
    """
    generator = torch.Generator().manual_seed(cell.classes)
    group, times = _groups(cell.classes)
    groups = int(group.max()) + 1
    margin = torch.arange(len(MARGINS)).repeat_interleave(MANY if cell.classes <= SHORT else 1)
    n = len(margin)
    z = SPREAD * torch.randn(n, groups, generator=generator, dtype=torch.float64)
    if times is None:
        target = torch.randint(groups, (n,), generator=generator)
    else:
        target = torch.zeros(n, dtype=torch.long)
        z[:, 2:] = z[:, 2:].minimum(z[:, 1:2] - 0.5)
    second = (target + 1) % groups
    rest = z.scatter(1, target[:, None], -torch.inf).amax(1)
    above = torch.tensor(MARGINS, dtype=torch.float64)[margin]
    z = z.scatter(1, target[:, None], (rest + above)[:, None])
    z = z * unit + cell.offset
    return Rows(z.to(cell.torch_dtype), target, second, group, times, margin)


def _groups(classes: int) -> tuple[Tensor, np.ndarray | None]:
    """Return the group of each class, and the sizes of the groups: 1, 1, 10, 100, and so on."""
    if classes <= FEW:
        return torch.arange(classes), None
    sizes = [1, 1]
    while sum(sizes) + 10 * sizes[-1] < classes:
        sizes.append(10 * sizes[-1])
    sizes.append(classes - sum(sizes))
    count = torch.tensor(sizes)
    return torch.arange(len(sizes)).repeat_interleave(count), count.numpy().astype(object)


def make_elements(cell: Cell) -> Rows:
    """Return single logits, in each of which the likelier label is a margin ahead of the other."""
    targets = torch.tensor([1.0, 0.0, 0.25, 0.75], dtype=torch.float64)
    margin = torch.arange(len(MARGINS)).repeat_interleave(2 * len(targets))
    t = targets.repeat(len(margin) // len(targets))
    generator = torch.Generator().manual_seed(0)
    near = torch.rand(len(margin), generator=generator, dtype=torch.float64)
    z = torch.tensor(MARGINS, dtype=torch.float64)[margin] * (1 - 0.01 * near) + 0.1 * near
    z = torch.where(t >= 0.5, z, -z).to(cell.torch_dtype)
    return Rows(z, t.to(z.dtype), margin, margin, None, margin)
