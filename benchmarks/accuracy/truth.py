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
from .rows import SHORT, Rows

DRAWS, FEWER = 4, 2  # of rounding errors, for short rows and for long ones
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
    rows: int
    times: tuple[int, ...] | None
    half: float  # unit of the arithmetic
    height: bool
    of_elements: bool

    def plain(self) -> Array:
        """Return the numbers as they are, (N, G); of elements (N,)."""
        z = np.frombuffer(self.numbers)
        return array_of(z if self.of_elements else z.reshape(self.rows, -1))

    def rounding(self, draw: int) -> Array:
        """Return errors of logits that stand for those of arithmetic, of half a unit.

        An exponential is off by half a unit, which is as if its logit were; and its argument, the
        distance to the largest, is rounded itself. Arithmetic is in float32 at least. A loss for
        which the logits' own height counts rounds numbers of that height, too. Of two draws, one
        has the sign of the largest turned round, so that it cannot cancel the same error in both.
        """
        z = self.plain()
        height = np.abs(z)
        signs = np.random.default_rng(draw // 2).choice([-1.0, 1.0], z.shape)
        if self.of_elements:
            return (1 + height) * array_of(self.half * signs)
        top = z.max(-1, keepdims=True)
        if draw % 2:
            signs = np.where(z == top, -signs, signs).astype(float)
        return (1 + top - z + height * self.height) * array_of(self.half * signs)


def truth_of(subject: Subject, rows: Rows) -> Truth:
    """Return value and gradient with many digits, and how much rounding moves them."""
    z = subject.prepare(rows.distinct).double().numpy()
    half = min(torch.finfo(rows.distinct.dtype).eps, torch.finfo(torch.float32).eps) / 2
    times = None if rows.times is None else tuple(rows.times)
    logits = _Logits(z.tobytes(), len(z), times, half, subject.height, subject.of_elements)
    of = _of_elements if subject.of_elements else _of_rows
    draws = DRAWS if subject.of_elements or z.shape[-1] <= SHORT else FEWER
    with mpmath.workdps(DIGITS):
        found = [of(subject, logits, draw, rows) for draw in (None, *range(draws))]
        units = UNITS + (0 if subject.of_elements else math.log2(len(rows.group)))
        return Truth(*(_numbers(units, *column) for column in zip(*found, strict=True)))


@lru_cache(maxsize=8)
def _exact(logits: _Logits, draw: int | None) -> Exact:
    """Return logits, or a draw of them; what is computed of them stays with them."""
    z = logits.plain() if draw is None else logits.plain() + logits.rounding(draw)
    times = None if logits.times is None else np.array(logits.times, dtype=object)
    return Exact(z, times, wanted=True)


def _of_rows(
    subject: Subject, logits: _Logits, draw: int | None, rows: Rows
) -> tuple[Array, Array]:
    z = _exact(logits, draw)
    arguments = {
        key: _constant(x, rows)
        for key, x in subject.arguments(rows).items()
        if key not in TABLES  # a million numbers, which the formula knows
    }
    arguments.setdefault("prior", Exact(torch.ones(z.shape[-1]), rows.times))
    value = subject.formula(z, rows.target, arguments)
    return value.value, value.gradient(z)


def _constant(x: Any, rows: Rows) -> Any:
    """Return an argument as a formula takes it."""
    return Exact(x, rows.times) if isinstance(x, Tensor) and x.is_floating_point() else x


def _of_elements(
    subject: Subject, logits: _Logits, draw: int | None, rows: Rows
) -> tuple[Array, Array]:
    z = _exact(logits, draw).value
    pairs = zip(z, rows.target.double().tolist(), strict=True)
    both = np.array([exact_element(subject.formula, *pair) for pair in pairs], dtype=object)
    return both[:, 0], both[:, 1]


def _numbers(units: float, plain: Array, *moved: Array) -> Numbers:
    high = plain.astype(float)
    finite = np.isfinite(high)
    low = np.where(finite, plain - array_of(np.where(finite, high, 0)), mpf(0)).astype(float)
    floor = np.max([np.abs(x - plain).astype(float) for x in moved], 0)
    parts = (torch.from_numpy(np.asarray(x)) for x in (high, low, np.nan_to_num(floor)))
    return Numbers(*parts, units=units)
