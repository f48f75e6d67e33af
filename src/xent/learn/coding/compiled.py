"""The loops of coder and decoder for models that count by contexts, compiled by numba.

They give the same bytes as the loops in Python, in less than a microsecond per symbol. Python has
whole numbers of any size, these loops have 64 bits. So they begin after the first symbol, where the
interval is narrower than 2^64 units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .symbol_models import OrderModel

_PART = 1 << 14  # symbols between two looks at the memory for new contexts
_FREE = -1  # a place of the hash table without a context
_MOST_BYTES = 5  # that a symbol shifts out: its frequency is at least 1 of 2^32
_CONTEXTS = 1 << 40
_U = np.uint64


def counts_by_contexts(model: Any) -> bool:
    """True for a model whose contexts, with a symbol more, have numbers of 64 bits."""
    return type(model) is OrderModel and model._symbols > 1 and model._contexts <= _CONTEXTS


def known(symbols: np.ndarray, model: OrderModel) -> bool:
    """True if the model knows all symbols."""
    return symbols.min() >= 0 and symbols.max() < model._symbols


def code(symbols: np.ndarray, model: OrderModel, interval: Any) -> float:
    """Narrow the interval for each symbol; return the information of the symbols, in bits."""
    tables, (out, window) = _Tables(model, len(symbols)), _opened(interval, len(symbols))
    information = 0.0
    for start in range(0, len(symbols), _PART):
        part = symbols[start : start + _PART]
        information += _code(part, out, window, *tables.with_room(len(part)))
    tables.give_back()
    _close(interval, out, window)
    return information


def decoded(
    data: bytes, count: int, model: OrderModel, interval: Any, offset: int, read: int
) -> list[int]:
    """Return the next symbols, and narrow the interval for each.

    Args:
        data: the code.
        count: the number of symbols.
        model: predicts them.
        interval: the interval after the symbols before.
        offset: how far the code is above the lower end of the interval, in units.
        read: how many bytes of the code have been seen.
    """
    tables, (out, window) = _Tables(model, count), _opened(interval, count, offset, read)
    symbols, seen = np.empty(count, np.int64), np.frombuffer(data, np.uint8)
    for start in range(0, count, _PART):
        part = symbols[start : start + _PART]
        _decode(part, seen, out, window, *tables.with_room(len(part)))
    tables.give_back()
    _close(interval, out, window)
    return symbols.tolist()


def _opened(interval: Any, count: int, *reading: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of an interval with room for more symbols, and its numbers.

    The numbers are: low, width, how many bytes are decided, and those of ``reading``.
    """
    decided = len(interval.out)
    out = np.zeros(decided + _MOST_BYTES * count, np.uint8)
    out[:decided] = interval.out
    return out, np.array([interval.low, interval.width, decided, *reading], np.uint64)


def _close(interval: Any, out: np.ndarray, window: np.ndarray) -> None:
    """Write bytes and numbers back to the interval."""
    interval.low, interval.width, decided = (int(number) for number in window[:3])
    interval.out[:] = out[:decided].tobytes()


class _Tables:
    """The counts of a model as arrays, and a hash table from contexts to rows.

    Args:
        model: an OrderModel.
        count: how many symbols will come.
    """

    def __init__(self, model: OrderModel, count: int) -> None:
        self.model, known = model, model._counts
        self.counts = np.ones((len(known), model._symbols), np.int64)
        most = min(len(known) + count, model._contexts)  # contexts that there can be
        places = 1 << (2 * (most + 1)).bit_length()
        self.keys, self.rows = np.full(places, _FREE), np.empty(places, np.int64)
        self.state = np.array([model._context, 0])  # the context, and how many were seen
        for context, counts in known.items():
            self.counts[_row(context, self.keys, self.rows, self.state)] = counts

    def with_room(self, count: int) -> tuple[Any, ...]:
        """Return the arrays and the constants of the model, with room for so many new contexts."""
        missing = int(self.state[1]) + count + 1 - len(self.counts)
        if missing > 0:
            more = np.ones((max(missing, len(self.counts)), self.counts.shape[1]), np.int64)
            self.counts = np.concatenate([self.counts, more])
        model = self.model
        limits = np.array([model._gain, model._most, model._contexts])
        return self.counts, self.keys, self.rows, self.state, limits

    def give_back(self) -> None:
        """Leave the model as if it had seen the symbols one by one."""
        seen = self.keys != _FREE
        contexts, rows = self.keys[seen].tolist(), self.rows[seen].tolist()
        self.model._counts = {c: self.counts[r] for c, r in zip(contexts, rows, strict=True)}
        self.model._context = int(self.state[0])


@njit(cache=True)
def _row(context: Any, keys: Any, rows: Any, state: Any) -> Any:
    """Return the row of a context; a new context gets the next row."""
    last = len(keys) - 1
    place = (context * 0x9E3779B1 >> 7) & last
    while keys[place] != context:
        if keys[place] == _FREE:
            keys[place], rows[place] = context, state[1]
            state[1] += 1
            break
        place = (place + 1) & last
    return rows[place]


@njit(cache=True)
def _update(symbol: Any, counts: Any, state: Any, limits: Any) -> None:
    """Count the symbol that came, and move on to its context."""
    gain, most, contexts = limits
    counts[symbol] += gain
    if counts[symbol] > most:
        counts += 1
        counts >>= 1
    state[0] = (state[0] * len(counts) + symbol) % contexts


@njit(cache=True)
def _share(width: Any, part: Any, total: Any) -> Any:
    """Return ``width * part // total`` without a product of more than 64 bits."""
    whole = width // total
    return whole * part + (width - whole * total) * part // total


@njit(cache=True)
def _narrow(start: Any, stop: Any, total: Any, out: Any, window: Any) -> Any:
    """Keep the part from ``start`` to ``stop`` of ``total``.

    Return how many units were skipped, and how many bytes were shifted out.
    """
    skipped = _share(window[1], start, total)
    window[0] += skipped
    window[1] = _share(window[1], stop, total) - skipped
    if window[0] < skipped:  # the bit that does not fit goes to the bytes before
        last = window[2] - _U(1)
        while out[last] == 0xFF:
            out[last] = 0
            last -= _U(1)
        out[last] += 1
    shifted = 0
    while window[1] >> _U(56) == 0:
        out[window[2]] = window[0] >> _U(56)
        window[2] += _U(1)
        window[0] <<= _U(8)
        window[1] <<= _U(8)
        shifted += 1
    return skipped, shifted


@njit(cache=True)
def _code(
    symbols: Any, out: Any, window: Any, table: Any, keys: Any, rows: Any, state: Any, limits: Any
) -> float:
    """Narrow the interval for some symbols; return their information."""
    information = 0.0
    for symbol in symbols:
        counts = table[_row(state[0], keys, rows, state)]
        start, stop = counts[:symbol].sum(), counts[: symbol + 1].sum()
        total = stop + counts[symbol + 1 :].sum()
        _narrow(_U(start), _U(stop), _U(total), out, window)
        information += np.log2(total) - np.log2(stop - start)
        _update(symbol, counts, state, limits)
    return information


@njit(cache=True)
def _decode(
    symbols: Any, data: Any, out: Any, window: Any,
    table: Any, keys: Any, rows: Any, state: Any, limits: Any,
) -> None:  # fmt: skip
    """Find some symbols, and narrow the interval for each."""
    for n in range(len(symbols)):
        counts = table[_row(state[0], keys, rows, state)]
        total = _U(counts.sum())
        # The last symbol whose share of the interval starts at or before the code: first nearly,
        # by a product with few digits, then exactly.
        near = np.float64(window[3]) / np.float64(window[1]) * np.float64(total)
        symbol, start = 0, 0
        while symbol + 1 < len(counts) and start + counts[symbol] <= near:
            start += counts[symbol]
            symbol += 1
        while _share(window[1], _U(start), total) > window[3]:
            symbol -= 1
            start -= counts[symbol]
        while symbol + 1 < len(counts) and (
            _share(window[1], _U(start + counts[symbol]), total) <= window[3]
        ):
            start += counts[symbol]
            symbol += 1
        skipped, shifted = _narrow(_U(start), _U(start + counts[symbol]), total, out, window)
        window[3] -= skipped
        for _ in range(shifted):
            byte = data[window[4]] if window[4] < len(data) else 0
            window[3] = window[3] << _U(8) | _U(byte)
            window[4] += _U(1)
        symbols[n] = symbol
        _update(symbol, counts, state, limits)
