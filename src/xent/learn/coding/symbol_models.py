"""Models of symbols that learn while they code; each machine computes the same frequencies."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from .arithmetic import MOST, SymbolModel

__all__ = ["FixedModel", "MixtureModel", "OrderModel"]

_HALF = MOST // 2  # sum of the frequencies of a mixture, before each gets 1 more


class FixedModel:
    """A model that expects the same frequencies at every step.

    Args:
        frequencies: how often each symbol is expected, whole numbers.

    Example:
        >>> from xent.learn import FixedModel, decode, encode
        >>> code = encode([2, 0, 2], FixedModel([1, 1, 2]))
        >>> code.information, decode(code.data, FixedModel([1, 1, 2]), 3)
        (4.0, [2, 0, 2])
    """

    def __init__(self, frequencies: Sequence[int] | np.ndarray) -> None:
        self._frequencies = np.asarray(frequencies)

    def frequencies(self) -> np.ndarray:
        """Return the frequencies that the model was made with."""
        return self._frequencies

    def update(self, symbol: int) -> None:
        """Do nothing: the frequencies are fixed."""


class OrderModel:
    """A model that counts which symbols follow each context, the last few symbols.

    Args:
        order: how many symbols make a context.
        symbols: how many different symbols there are.
        gain: what one occurrence adds to a count; each count starts at 1. A gain of 1 is Laplace's
            rule of succession; by default it is ``4 ** (order + 1)``, at most 4096: the longer the
            context, the more one occurrence says.

    Raises:
        ValueError: if ``order`` is negative, ``symbols`` less than 1, or ``gain`` less than 1 or
            too large for so many symbols.

    Example:
        >>> from xent.learn import OrderModel
        >>> model = OrderModel(1, symbols=2, gain=1)
        >>> for symbol in (0, 1, 0, 1, 0):
        ...     model.update(symbol)
        >>> model.frequencies().tolist()  # what follows a 0; the model starts after a 0
        [2, 3]
    """

    def __init__(self, order: int, symbols: int = 256, gain: int | None = None) -> None:
        if order < 0 or symbols < 1:
            raise ValueError(
                f"`order` must be at least 0 and `symbols` at least 1, got {order} and {symbols}"
            )
        self._most = _HALF // symbols  # largest count: the sum of all must not be too large
        order = operator.index(order)
        self._gain = min(4 ** (order + 1), 4096) if gain is None else operator.index(gain)
        if not 1 <= self._gain <= self._most:
            raise ValueError(f"`gain` must be at least 1 and at most {self._most}, got {gain}")
        self._symbols, self._contexts = symbols, symbols**order
        self._context = 0
        self._counts: dict[int, np.ndarray] = {}

    def frequencies(self) -> np.ndarray:
        """Return the counts of the present context."""
        counts = self._counts.get(self._context)
        if counts is None:
            counts = self._counts[self._context] = np.ones(self._symbols, np.int64)
        return counts

    def update(self, symbol: int) -> None:
        """Count the symbol that came."""
        counts = self.frequencies()
        counts[symbol] += self._gain
        if counts[symbol] > self._most:
            counts += 1
            counts >>= 1
        self._context = (self._context * self._symbols + symbol) % self._contexts


class MixtureModel:
    r"""A mixture of models; the better a model predicts, the more weight it gets.

    .. math:: q = \sum_k w_k q_k, \qquad w_k \leftarrow (1 - \eta) w_k + \eta\, w_k q_k(s) / q(s)

    Each symbol makes one step of expectation maximisation, for the cross-entropy that
    :func:`xent.learn.fit_mixture_weights` minimises. In a context that it has never seen, a member
    knows nothing: its frequencies are all equal. The mixture has one set of weights for each number
    of such members. These sets, and a gain that grows with the order, reduce a text from 2.21 bits
    per byte to 1.65.

    Args:
        models: the members, of equally many symbols.
        rate: the least step :math:`\eta`; until it is reached, the step is one over the number of
            symbols that a set of weights has seen.

    Raises:
        ValueError: if there is no model, or ``rate`` is not between 0 and 1.

    Example:
        >>> from xent.learn import MixtureModel, OrderModel, encode
        >>> text = b"to be or not to be, that is the question " * 20
        >>> mixture = MixtureModel([OrderModel(order) for order in (0, 1, 2)])
        >>> encode(text, mixture).bits < min(encode(text, OrderModel(k)).bits for k in (0, 1, 2))
        True
    """

    def __init__(self, models: Sequence[SymbolModel], rate: float = 0.02) -> None:
        if not models:
            raise ValueError("`models` must hold at least one model")
        if not 0 <= rate <= 1:
            raise ValueError(f"`rate` must be at least 0 and at most 1, got {rate}")
        self._models, self._rate = list(models), rate
        self._sets = [_Weights([1 / len(models)] * len(models)) for _ in range(len(models) + 1)]
        self._now, self._parts = self._sets[0], None

    def frequencies(self) -> np.ndarray:
        """Return the frequencies of the members, added up with the weight of each member."""
        counts = np.stack([model.frequencies() for model in self._models])
        totals = counts.sum(1)
        if totals.min() <= 0:
            raise ValueError("each model must give some symbol a frequency above 0")
        self._now = self._sets[np.count_nonzero(totals == counts[:, 0] * counts.shape[1])]
        shares = [w * _HALF / n for w, n in zip(self._now.of, totals.tolist(), strict=True)]
        self._parts = counts * np.array(shares)[:, None]
        # Added one after the other: other machines may sum along an axis in another order.
        total = self._parts[0].copy()
        for part in self._parts[1:]:
            total += part
        return total.astype(np.int64) + 1

    def update(self, symbol: int) -> None:
        """Move weight to the members that expected the symbol, and pass the symbol on to all."""
        if self._parts is None:
            self.frequencies()
        assert self._parts is not None
        self._now.move(self._parts[:, symbol].tolist(), self._rate)
        self._parts = None
        for model in self._models:
            model.update(symbol)


class _Weights:
    """Weights of the members, and how often they have been moved."""

    def __init__(self, of: list[float]) -> None:
        self.of, self.seen = of, 0

    def move(self, parts: list[float], rate: float) -> None:
        """Take a step towards the share that each part has in the sum; no weight falls to 0."""
        self.seen += 1
        step, total = max(rate, 1 / (self.seen + 1)), sum(parts)
        some = 1e-3 / len(parts)  # keeps the weight of each member above 0
        self.of = [
            (1 - step) * w + step * (0.999 * part / total + some)
            for w, part in zip(self.of, parts, strict=True)
        ]
