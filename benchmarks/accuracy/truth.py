"""The value of a loss in many digits on the rows of a cell, and from rounded logits."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import mpmath
import numpy as np
import torch
from mpmath import mpf
from torch import Tensor

from tests.helpers import spacing
from tests.registry.records import exact_element

from .exact import DIGITS, Array, Exact, array_of
from .losses import TABLES, Subject
from .rounding import rounded_exponentials
from .rows import SHORT, Rows

# Draws of rounding errors, for short rows and for long ones: four of logits, then of exponentials.
DRAWS, EXPONENTIALS, FEWER = 8, 4, 6
UNITS = 4.0  # that a result may be off by, beside what the rounding of logits makes of it


class Numbers(NamedTuple):
    """Numbers as sums of two in float64, with what arithmetic makes of each.

    Attributes:
        high: the numbers, rounded to float64.
        low: what that left over.
        floor: how far each moves if the logits are off as rounding makes them.
        units: how many ulps each may be off beside that. A sum over the classes is that of a tree,
            whose levels each add a rounding.
    """

    high: Tensor
    low: Tensor
    floor: Tensor
    units: float

    def ulps(self, actual: Tensor, group: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return errors in ulps of the type of ``actual``, and each divided by what is allowed.

        Numbers without a truth (a derivative that does not exist) have no error, NaN.
        """
        high, low, floor = (x if group is None else x[..., group] for x in self[:3])
        unit = spacing(high.nan_to_num(0, 0, 0), actual.dtype)
        error = ((actual.detach().double() - high) - low).abs() / unit
        rounded = high.to(actual.dtype)
        error = torch.where(rounded.isinf() & (actual == rounded), 0.0, error)
        error = torch.where(high.isnan(), torch.nan, error.nan_to_num(nan=math.inf))
        return error, error / (self.units + UNITS * floor / unit)


class Truth(NamedTuple):
    """Values and gradients of rows, by groups of classes; or of elements."""

    value: Numbers
    gradient: Numbers


class _Logits(NamedTuple):
    """Logits with many digits, by what they follow from, so that losses can share them."""

    numbers: bytes  # float64
    target: tuple[int, ...]
    times: tuple[int, ...] | None
    half: float  # unit of the arithmetic
    height: bool
    of_elements: bool

    def plain(self) -> Array:
        """Return the numbers as they are, (N, G); of elements (N,)."""
        z = np.frombuffer(self.numbers)
        return array_of(z if self.of_elements else z.reshape(len(self.target), -1))

    def signs(self, draw: int) -> Array:
        """Return signs of the errors of all classes.

        Most of what moves an entry of a gradient comes from its own class, from the target and from
        the largest of the others, and may cancel. So of four draws two have the sign of the target
        turned round, and two that of its rival: in one of them all three add up. Rivals with the
        same logit have signs in turns. In half of the draws of exponentials all signs are the same,
        as from an error in their sum.
        """
        z = self.plain()
        signs = np.random.default_rng(0).choice([-1.0, 1.0], z.shape)
        in_turns = (-1.0) ** np.arange(z.shape[1])
        of_target = np.arange(z.shape[1]) == np.array(self.target)[:, None]
        rival = np.where(of_target, -np.inf, z).max(-1, keepdims=True)
        rivals = (z == rival) & ~of_target
        signs = np.where(rivals & (rivals.sum(-1, keepdims=True) > 1), in_turns, signs)
        if draw >= EXPONENTIALS and draw % 2 == 0:
            signs = np.abs(signs)
        signs = np.where(of_target & (draw % 2 == 1), -signs, signs)
        signs = np.where(rivals & (draw % 4 > 1), -signs, signs).astype(float)
        if self.times is not None:
            others = np.array(self.times) > 1  # of the group of the class to their left
            signs[:, others] = -signs[:, np.flatnonzero(others) - 1]
        return signs

    def rounding(self, draw: int) -> Array:
        """Return errors of logits that stand for those of arithmetic, of half a unit.

        An exponential is off by half a unit, which is as if its logit were; and its argument, the
        distance to the largest, is rounded itself. Arithmetic is in float32 at least. A loss for
        which the logits' own height counts rounds numbers of that height, too.
        """
        z = self.plain()
        height = np.abs(z)
        if self.of_elements:
            return (1 + height) * mpf(self.half) * (-1) ** draw
        sizes = 1 + z.max(-1, keepdims=True) - z + height * self.height
        return sizes * array_of(self.half * self.signs(draw))


def truth_of(subject: Subject, rows: Rows) -> Truth:
    """Return value and gradient with many digits, and how much rounding moves them."""
    half = min(torch.finfo(rows.distinct.dtype).eps, torch.finfo(torch.float32).eps) / 2
    parts = _Parts.of(rows)
    z = parts.spread(subject.prepare(rows.distinct).double()).numpy()
    logits = _Logits(
        z.tobytes(), tuple(rows.target.tolist()), parts.times, half, subject.height,
        subject.of_elements,
    )  # fmt: skip
    short = z.ndim > 1 and z.shape[-1] <= SHORT
    draws = EXPONENTIALS if subject.of_elements else DRAWS if short else FEWER
    with mpmath.workdps(DIGITS):
        if subject.of_elements:
            found = [_of_elements(subject, logits, draw) for draw in (None, *range(draws))]
        else:
            found = [_of_rows(subject, logits, draw, rows, parts) for draw in (None, *range(draws))]
        units = UNITS + (0 if subject.of_elements else math.log2(len(rows.group)))
        value, gradient = (_numbers(units, *column) for column in zip(*found, strict=True))
        return Truth(value, parts.join(gradient))


class _Parts(NamedTuple):
    """Groups of classes, with one class of each apart.

    Classes with the same logit are rounded one by one. If all of a group moved together, what one
    class adds to a difference from the others would cancel.
    """

    group: Tensor | None  # the group of each part; None if each class has its own logit
    times: tuple[int, ...] | None  # how many classes each part has

    @classmethod
    def of(cls, rows: Rows) -> _Parts:
        """Return the parts of the groups of some rows."""
        if rows.times is None:
            return cls(None, None)
        parts = [(k, n) for k, n in enumerate(rows.times) for n in ([1, n - 1] if n > 1 else [n])]
        group, times = zip(*parts, strict=True)
        return cls(torch.tensor(group), times)

    def spread(self, of_groups: Tensor) -> Tensor:
        """Return numbers of parts from those of their groups."""
        return of_groups if self.group is None else of_groups[..., self.group]

    def join(self, numbers: Numbers) -> Numbers:
        """Return numbers of groups: those of the one class, with the larger floor of both parts."""
        if self.group is None:
            return numbers
        first = torch.unique_consecutive(self.group, return_counts=True)[1].cumsum(0)
        first = torch.cat([first.new_zeros(1), first[:-1]])
        floor = np.maximum.reduceat(numbers.floor.numpy(), first.numpy(), -1)
        high, low = numbers.high[:, first], numbers.low[:, first]
        return numbers._replace(high=high, low=low, floor=torch.from_numpy(floor))


@lru_cache(maxsize=16)
def _exact(logits: _Logits, draw: int | None) -> Exact:
    """Return logits, or a draw of them; what is computed of them stays with them."""
    z = logits.plain()
    if draw is not None and draw < EXPONENTIALS:
        z = z + logits.rounding(draw)
    times = None if logits.times is None else np.array(logits.times, dtype=object)
    return Exact(z, times, wanted=True)


def _of_rows(
    subject: Subject, logits: _Logits, draw: int | None, rows: Rows, parts: _Parts
) -> tuple[Array, Array]:
    z = _exact(logits, draw)
    arguments = {
        key: _constant(x, z, parts)
        for key, x in subject.arguments(rows).items()
        if key not in TABLES  # a million numbers, which the formula knows
    }
    if draw is not None and "teacher" in arguments:
        arguments["teacher"] = _rounded_teacher(arguments["teacher"], logits, draw)
    arguments.setdefault("prior", Exact(torch.ones(z.shape[-1]), z.times))
    if draw is None or draw < EXPONENTIALS:
        value = subject.formula(z, rows.target, arguments)
    else:
        with rounded_exponentials(array_of(logits.half * logits.signs(draw))):
            value = subject.formula(z, rows.target, arguments)
    return value.value, value.gradient(z)


def _rounded_teacher(teacher: Exact, logits: _Logits, draw: int) -> Exact:
    """Return logits of a teacher that are off the other way than those of the student."""
    gap = teacher.value.max(-1, keepdims=True) - teacher.value
    error = (1 + gap) * array_of(-logits.half * logits.signs(draw))
    return Exact(teacher.value + error, teacher.times)


def _constant(x: Any, z: Exact, parts: _Parts) -> Any:
    """Return an argument as a formula takes it."""
    of_classes = isinstance(x, Tensor) and x.is_floating_point()
    return Exact(parts.spread(x), z.times) if of_classes else x


def _of_elements(subject: Subject, logits: _Logits, draw: int | None) -> tuple[Array, Array]:
    z, t = _exact(logits, draw).value, array_of(np.array(logits.target))
    if draw is not None:  # 1 - t is rounded, and so is an exponent that depends on t
        t = np.where(t == 1, t, t * (1 + mpf(logits.half) * (-1) ** (draw // 2)))
    pairs = zip(z, t, strict=True)
    both = np.array([exact_element(subject.formula, *pair) for pair in pairs], dtype=object)
    return both[:, 0], both[:, 1]


def _numbers(units: float, plain: Array, *moved: Array) -> Numbers:
    high = plain.astype(float)
    finite = np.isfinite(high)
    low = np.where(finite, plain - array_of(np.where(finite, high, 0)), mpf(0)).astype(float)
    # A draw in which a probability exceeds 1 may have no logarithm; the others say how far.
    floor = np.fmax.reduce([np.abs(x - plain).astype(float) for x in moved])
    parts = (torch.from_numpy(np.asarray(x)) for x in (high, low, np.nan_to_num(floor)))
    return Numbers(*parts, units=units)
