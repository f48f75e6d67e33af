"""Arrays of numbers of many digits, with derivatives, in the place of tensors.

The formulas in ``tests/registry`` are written in PyTorch's functions. Given :class:`Exact` they
compute in the precision of mpmath, so a formula that is right in float64 is right to all digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import mpmath
import numpy as np
import torch
from mpmath import mpf
from torch import Tensor

from .rounding import error_of_exponentials

Array = np.ndarray  # of mpf
Pullback = Callable[[Array], Array]

DIGITS = 110  # 1 - p at a hundred nats needs 44 of them, its square 88
LOST = mpf("nan")  # the derivative where there is none


def _vectorised(function: Callable[..., Any], inputs: int = 1) -> Callable[..., Array]:
    ufunc = np.frompyfunc(function, inputs, 1)
    return lambda *arrays: np.asarray(ufunc(*arrays), dtype=object)


_exp, _log, _log1p = map(_vectorised, (mpmath.exp, mpmath.log, mpmath.log1p))
_cos, _sin, _acos, _tanh = map(_vectorised, (mpmath.cos, mpmath.sin, mpmath.acos, mpmath.tanh))
_sqrt, _floor = map(_vectorised, (mpmath.sqrt, mpmath.floor))
_read = _vectorised(mpf)


def array_of(x: Any) -> Array:
    """Return the numbers of a tensor, an array or a number as they stand."""
    if isinstance(x, Tensor):
        x = x.detach().double().numpy()
    return _read(np.asarray(x, dtype=object))


class Largest(NamedTuple):
    """The result of a maximum, as PyTorch has it."""

    values: Exact


class Exact:
    """An array of mpf that PyTorch's functions take, and that knows where it came from.

    Attributes:
        value: the numbers.
        times: how often each number of the last axis stands in a row, or None if once: sums and
            means over that axis count it as often.
    """

    __array_ufunc__ = None  # numpy leaves operators to this class

    def __init__(
        self,
        value: Any,
        times: Array | None = None,
        parents: Iterable[tuple[Exact, Pullback]] = (),
        wanted: bool = False,
    ) -> None:
        self.value = value if isinstance(value, np.ndarray) else array_of(value)
        self.times = times
        self.parents = tuple((x, pull) for x, pull in parents if x.wanted)
        self.wanted = wanted or bool(self.parents)
        self.memory: dict[str, Exact] = {}

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Answer PyTorch's functions of the same names; the operators, too."""
        name = func.__name__.strip("_")
        args = [Exact(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
        if name in _OPERATORS:
            return _OPERATORS[name](*args)
        if name == "where":
            return where(*args)
        return getattr(args[0], name)(*args[1:], **(kwargs or {}))

    def like(self, value: Array, pull: Pullback) -> Exact:
        """Return an array that was computed of this one."""
        return Exact(value, self.times, [(self, pull)])

    def gradient(self, of: Exact) -> Array:
        """Return the derivatives of the sum of this by another array, by one class of a group."""
        order: list[Exact] = []
        seen: set[int] = set()
        stack: list[tuple[Exact, bool]] = [(self, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack.extend((parent, False) for parent, _ in node.parents)
        slopes = {id(self): _read(np.ones(self.value.shape, dtype=object))}
        for node in reversed(order):
            for parent, pull in node.parents:
                slope = _fitted(pull(slopes[id(node)]), parent.value.shape)
                known = slopes.get(id(parent))
                slopes[id(parent)] = slope if known is None else known + slope
        total = slopes.get(id(of), 0 * of.value)
        return total if of.times is None else total / of.times

    # ---- shape ----------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        """Return the shape; the last axis has each distinct class once."""
        return torch.Size(self.value.shape)

    def double(self) -> Exact:
        """Return itself: no digit may be lost."""
        return self

    def detach(self) -> Exact:
        """Return the numbers as constants."""
        return Exact(self.value, self.times)

    def __getitem__(self, index: Any) -> Exact:
        """Return a part; no element may be taken twice where derivatives are wanted."""
        if isinstance(index, Tensor):
            index = index.numpy()

        def pull(slope: Array) -> Array:
            whole = 0 * self.value
            whole[index] = slope
            return whole

        return self.like(np.asarray(self.value[index], dtype=object), pull)

    def gather(self, dim: int, index: Tensor) -> Exact:
        """Return one element of each row, ``(N, 1)``."""
        assert dim in (-1, 1), dim
        rows = np.arange(len(self.value))[:, None]
        return self[rows, index.numpy()]

    def scatter(self, dim: int, index: Tensor, new: Exact) -> Exact:
        """Return these rows with one element of each replaced."""
        assert dim in (-1, 1), dim
        at = (np.arange(len(self.value))[:, None], index.numpy())
        value = self.value.copy()
        value[at] = new.value

        def pull(slope: Array) -> Array:
            kept = slope.copy()
            kept[at] = mpf(0)
            return kept

        return Exact(value, self.times, [(self, pull), (new, lambda slope: slope[at])])

    def masked_fill(self, mask: Tensor, number: float) -> Exact:
        """Return these numbers with another where the mask is true."""
        return where(Exact(mask), Exact(number), self)

    # ---- functions of single numbers ------------------------------------------------------------

    def exp(self) -> Exact:
        """Return e to these powers."""
        if "exp" not in self.memory:
            self.memory["exp"] = self._exponential(_exp(self.value))
        return self.memory["exp"]

    def _exponential(self, value: Array) -> Exact:
        return self.like(value, lambda slope: slope * value)

    def log(self) -> Exact:
        """Return the natural logarithm."""
        return self.like(_log(self.value), lambda slope: slope / self.value)

    def softplus(self) -> Exact:
        """Return log(1 + e^x); with many digits no case is needed."""
        small = _exp(-np.abs(self.value))
        value = np.maximum(self.value, 0) + _log1p(small)
        p = np.where(self.value > 0, 1, small) / (1 + small)
        return self.like(value, lambda slope: slope * p)

    def cos(self) -> Exact:
        """Return the cosine."""
        return self.like(_cos(self.value), lambda slope: -slope * _sin(self.value))

    def sin(self) -> Exact:
        """Return the sine."""
        return self.like(_sin(self.value), lambda slope: slope * _cos(self.value))

    def acos(self) -> Exact:
        """Return the angle of a cosine."""
        value = self.value
        return self.like(_acos(value), lambda slope: -slope / _sqrt(1 - value * value))

    def tanh(self) -> Exact:
        """Return the hyperbolic tangent."""
        value = _tanh(self.value)
        return self.like(value, lambda slope: slope * (1 - value * value))

    def square(self) -> Exact:
        """Return the square."""
        return self**2

    def abs(self) -> Exact:
        """Return the magnitude."""
        return self.like(np.abs(self.value), lambda slope: slope * np.sign(self.value))

    def floor(self) -> Exact:
        """Return the largest whole number that is not larger; its derivative is 0."""
        return Exact(_floor(self.value), self.times)

    def clamp(self, min: float | None = None, max: float | None = None) -> Exact:
        """Return the nearest number of an interval."""
        value, inside = self.value, np.ones(self.value.shape, dtype=object)
        for limit, beyond in ((min, np.less), (max, np.greater)):
            if limit is not None:
                out = np.asarray(beyond(value, limit), dtype=bool)
                inside = np.where(out, 0, np.where(value == limit, LOST, inside))
                value = np.where(out, mpf(limit), value)
        return self.like(value, lambda slope: slope * inside)

    # ---- over the classes -----------------------------------------------------------------------

    def sum(self, dim: int = -1, keepdim: bool = False) -> Exact:
        """Return the sum of each row."""
        times = 1 if self.times is None else self.times
        value = np.asarray((self.value * times).sum(-1, keepdims=keepdim), dtype=object)

        def pull(slope: Array) -> Array:
            return (slope if keepdim else np.expand_dims(slope, -1)) * times + 0 * self.value

        return self.like(value, pull)

    @property
    def count(self) -> int:
        """Return the number of classes."""
        return self.value.shape[-1] if self.times is None else int(self.times.sum())

    def mean(self, dim: int = -1) -> Exact:
        """Return the mean of each row."""
        return self.sum(dim) / self.count

    def max(self, dim: int = -1) -> Any:
        """Return the largest of each row; without a dimension, of all, as a constant."""
        if not self.wanted and self.value.ndim == 1:
            return Exact(self.value.max())
        top = self.value.max(-1, keepdims=True)
        best = np.asarray(self.value == top, dtype=bool)
        often = (best * (1 if self.times is None else self.times)).sum(-1, keepdims=True)
        share = np.where(best, np.where(often > 1, LOST, mpf(1)), mpf(0))
        return Largest(self.like(top[..., 0], lambda slope: slope[..., None] * share))

    def min(self) -> Exact:
        """Return the smallest of a vector of constants."""
        return Exact(self.value.min())

    def logsumexp(self, dim: int = -1) -> Exact:
        """Return the logarithm of the sum of exponentials of each row."""
        if "logsumexp" not in self.memory:
            times = 1 if self.times is None else self.times
            top = self.value.max(-1, keepdims=True)
            e = _exp(self.value - top) * error_of_exponentials(self.value - top) * times
            total = e.sum(-1, keepdims=True)
            self.memory["logsumexp"] = self.like(
                (top + _log(total))[..., 0], lambda slope: slope[..., None] * (e / total)
            )
        return self.memory["logsumexp"]

    def log_softmax(self, dim: int = -1) -> Exact:
        """Return the logarithms of the probabilities of the classes."""
        if "log_softmax" not in self.memory:
            log_p = self.memory["log_softmax"] = self - self.logsumexp()[..., None]
            p = _exp(log_p.value) * error_of_exponentials(log_p.value)
            log_p.memory["exp"] = log_p._exponential(p)
        return self.memory["log_softmax"]

    def softmax(self, dim: int = -1) -> Exact:
        """Return the probabilities of the classes."""
        return self.log_softmax().exp()

    # ---- operators ------------------------------------------------------------------------------

    def __ge__(self, other: Exact) -> Tensor:
        """Return which numbers are at least as large as others."""
        return torch.from_numpy((self.value >= other.value).astype(bool))

    def __add__(self, other: Any) -> Exact:
        """Return the sum."""
        other = lifted(other)
        pulls = ((self, lambda slope: slope), (other, lambda slope: slope))
        return Exact(self.value + other.value, _times(self, other), pulls)

    def __mul__(self, other: Any) -> Exact:
        """Return the product."""
        a, b = self, lifted(other)
        pulls = ((a, lambda slope: slope * b.value), (b, lambda slope: slope * a.value))
        return Exact(a.value * b.value, _times(a, b), pulls)

    def __truediv__(self, other: Any) -> Exact:
        """Return the quotient."""
        return self * lifted(other) ** -1

    def __pow__(self, exponent: float) -> Exact:
        """Return a power with a constant exponent."""
        exponent = mpf(exponent)

        def pull(slope: Array) -> Array:
            # At 0, of which a power may be infinite, the derivative is 1 or 0.
            base = np.where(self.value == 0, mpf(exponent == 1), self.value)
            return slope * exponent * np.where(base == 0, 0, power(base, exponent - 1))

        return self.like(power(self.value, exponent), pull)

    def __rpow__(self, base: float) -> Exact:
        """Return a number to constant powers."""
        assert not self.wanted
        return Exact(_vectorised(lambda power: mpf(base) ** power)(self.value), self.times)

    def __neg__(self) -> Exact:
        """Return the negative."""
        return self * -1

    def __sub__(self, other: Any) -> Exact:
        """Return the difference."""
        return self + -lifted(other)

    def __rsub__(self, other: Any) -> Exact:
        """Return the difference from a number."""
        return lifted(other) - self

    def __rtruediv__(self, other: Any) -> Exact:
        """Return the quotient of a number and this."""
        return lifted(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def __gt__(self, other: Any) -> Exact:
        """Return 1 where this is larger."""
        return Exact(_read(self.value > lifted(other).value), self.times)

    def __le__(self, other: Any) -> Exact:
        """Return 1 where this is not larger."""
        return Exact(_read(self.value <= lifted(other).value), self.times)


def lifted(x: Any) -> Exact:
    """Return an array of constants of a tensor or a number, or what is an array already."""
    return x if isinstance(x, Exact) else Exact(x)


def where(condition: Any, yes: Any, no: Any) -> Exact:
    """Return the numbers of one array where a condition holds, of the other elsewhere."""
    holds = np.asarray(lifted(condition).value != 0, dtype=bool)
    yes, no = lifted(yes), lifted(no)
    pulls = (
        (yes, lambda slope: np.where(holds, slope, mpf(0))),
        (no, lambda slope: np.where(holds, mpf(0), slope)),
    )
    value = np.asarray(np.where(holds, yes.value, no.value), dtype=object)
    return Exact(value, _times(no, yes), pulls)


_OPERATORS: dict[str, Callable[..., Exact]] = {
    "add": lambda a, b: lifted(a) + b,
    "sub": lambda a, b: lifted(a) - b,
    "mul": lambda a, b: lifted(a) * b,
    "div": lambda a, b: lifted(a) / b,
    "truediv": lambda a, b: lifted(a) / b,
    "rsub": lambda a, b: lifted(b) - a,
    "rdiv": lambda a, b: lifted(b) / a,
}  # what a tensor on the left asks for


def power(base: Array, exponent: Any) -> Array:
    """Return powers; a whole exponent costs no logarithm."""
    whole = int(exponent) if exponent == int(exponent) else exponent
    return _vectorised(lambda x: x**whole)(base)


def _times(*arrays: Exact) -> Array | None:
    return next((x.times for x in arrays if x.times is not None), None)


def _fitted(slope: Array, shape: Sequence[int]) -> Array:
    """Return a slope summed over the axes along which its array was repeated."""
    slope = np.asarray(slope, dtype=object)
    while slope.ndim > len(shape):
        slope = slope.sum(0)
    for axis, length in enumerate(shape):
        if length == 1 and slope.shape[axis] != 1:
            slope = slope.sum(axis, keepdims=True)
    return np.asarray(slope, dtype=object)
