"""Arithmetic coding: a message as short as the cross-entropy of the model that predicts it.

A model gives each possible next symbol a frequency, a whole number. Coder and decoder narrow an
interval by the same integers, so the decoder returns the exact message, whatever the model. The
length is the sum of ``-log2 q`` over the message plus less than 2 bits: a loss in bits is a size in
bits.

    code = encode(data, OrderModel(1))
    assert bytes(decode(code.data, OrderModel(1), len(data))) == data
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..._check import is_whole
from ..._probabilities import rounding

__all__ = ["Code", "SymbolModel", "decode", "encode", "quantize"]

_WORD, _BYTE = 64, 8  # bits of the window in which the interval is narrowed
_TOP = _WORD - _BYTE
LONG = 50_000  # symbols from which on compiled loops take less time than compiling them
MOST = 1 << 32  # largest sum of the frequencies, 24 bits below the narrowest interval


class SymbolModel(Protocol):
    """A model that predicts the symbols 0, 1, ..., one after the other."""

    def frequencies(self) -> Any:
        """Return the expected frequency of each symbol: whole numbers that sum to at most 2^32.

        A symbol of frequency 0 cannot be coded. Two models that have seen the same symbols must say
        the same, to the last digit.
        """
        ...

    def update(self, symbol: int) -> None:
        """Learn from the symbol that came."""
        ...


class Code(NamedTuple):
    """A message in bits.

    Attributes:
        data: the bits, filled up with zeros to whole bytes.
        bits: the number of bits.
        information: the sum of ``-log2 q`` over the message, its information under the model.
    """

    data: bytes
    bits: int
    information: float


def encode(symbols: Iterable[int], model: SymbolModel) -> Code:
    r"""Code a message with the predictions of a model.

    .. math:: \mathrm{bits} < 2 + \sum_t -\log_2 q(s_t \mid s_1, \dots, s_{t-1})

    up to the rounding of the interval, less than 2^-23 bits per symbol.

    Args:
        symbols: the message, such as ``bytes``; with ``n`` frequencies, from 0 to ``n - 1``.
        model: predicts the message; its ``frequencies()`` is called before each symbol,
            ``update()`` after it. With numba, an :class:`OrderModel` codes ``bytes`` and arrays of
            more than 50,000 symbols many times as fast, into the same bytes.

    Returns:
        A :class:`Code`. A code does not say where the message ends: keep the number of symbols,
        or give the model a symbol for the end.

    Raises:
        ValueError: if the model gives a symbol that comes the frequency 0, or frequencies that are
            negative, too large or all 0.
        TypeError: for symbols or frequencies that are not whole numbers.

    Example:
        >>> from xent.learn import FixedModel, encode
        >>> code = encode([0] * 99 + [1], FixedModel([99, 1]))
        >>> code.bits, round(code.information, 4)
        (9, 8.0793)

    References:
        Witten, Neal & Cleary, *Arithmetic coding for data compression*, CACM 1987.
        Carries in the output: Martin, *Range encoding: an algorithm for removing redundancy from a
        digitised message*, 1979.
    """
    interval = _Interval()
    numbers = _numbers(symbols)
    loops = None if numbers is None else _compiled_loops(model, len(numbers))
    if numbers is None or loops is None or not loops.known(numbers, model):
        information = _code(symbols, model, interval)
    else:
        information = _code(numbers[:1], model, interval)
        information += loops.code(numbers[1:].astype(np.int64), model, interval)
    data, bits = interval.close()
    return Code(data, bits, information)


def _code(symbols: Iterable[int], model: SymbolModel, interval: _Interval) -> float:
    """Narrow the interval for each symbol; return the information of the symbols, in bits."""
    information = 0.0
    for symbol in map(_symbol, symbols):
        below = _cumulative(model)
        if not 0 <= symbol < len(below) - 1:
            raise ValueError(f"the model knows symbols 0 to {len(below) - 2}, not {symbol}")
        start, stop, total = below[[symbol, symbol + 1, -1]].tolist()
        if start == stop:
            raise ValueError(f"the model holds the symbol {symbol} for impossible: frequency 0")
        interval.narrow(start, stop, total)
        information += math.log2(total) - math.log2(stop - start)
        model.update(symbol)
    return information


def decode(data: bytes, model: SymbolModel, count: int) -> list[int]:
    """The message that :func:`encode` turned into ``data``.

    The decoded message is encoded again, and must give the same bytes. That check finds nearly
    every damage: a code that was cut off or extended, a wrong number of symbols, changed bytes. The
    check cannot find damage that makes the code of another message of the same length and nearly
    the same information; where that matters, add a checksum.

    Args:
        data: the code.
        model: a model in the state that the model of :func:`encode` had at the start.
        count: the number of symbols.

    Returns:
        The symbols.

    Raises:
        ValueError: if ``data`` is not the code of a message of this length with this model.
        TypeError: if ``data`` is not bytes, or the frequencies are not whole.

    Example:
        >>> from xent.learn import OrderModel, decode, encode
        >>> code = encode(b"abracadabra", OrderModel(1))
        >>> bytes(decode(code.data, OrderModel(1), 11))
        b'abracadabra'
    """
    if not is_whole(count) or count < 0:
        raise ValueError(f"`count` must be a whole number of at least 0, got {count!r}")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"`data` must be bytes, as the `data` of a Code, got {type(data).__name__}")
    data = bytes(data)
    interval, loops = _Interval(), _compiled_loops(model, count)
    window = int.from_bytes(data[: _WORD // _BYTE].ljust(_WORD // _BYTE, b"\0"), "big")
    first = count if loops is None else 1
    symbols, offset, read = _decoded(data, first, model, interval, window)
    if loops is not None:
        symbols += loops.decoded(data, count - first, model, interval, offset, read)
    if interval.close()[0] != data:
        raise ValueError(
            f"`data` is not the code of {count} symbols with this model: it is damaged or cut "
            f"off, or `count` or `model` are not those it was made with"
        )
    return symbols


def _decoded(
    data: bytes, count: int, model: SymbolModel, interval: _Interval, offset: int
) -> tuple[list[int], int, int]:
    """Return the first symbols, and where the reading stopped.

    ``offset`` says how far the code is above the lower end of the interval, in units. It is
    returned for the interval after the symbols, with the number of bytes that it has seen.
    """
    symbols, read = [], _WORD // _BYTE
    for _ in range(count):
        below = _cumulative(model)
        total = below.item(-1)
        # The last symbol whose share of the interval starts at or before the code.
        place = ((offset + 1) * total - 1) // interval.width
        symbol = int(below.searchsorted(place, "right")) - 1
        skipped, shifted = interval.narrow(below.item(symbol), below.item(symbol + 1), total)
        offset -= skipped
        for byte in data[read : read + shifted].ljust(shifted, b"\0"):
            offset = offset << _BYTE | byte
        read += shifted
        symbols.append(symbol)
        model.update(symbol)
    return symbols, offset, read


def _numbers(symbols: Any) -> np.ndarray | None:
    """Return a message of bytes, or an array of whole numbers, as an array; else None."""
    if isinstance(symbols, bytes | bytearray):
        return np.frombuffer(symbols, np.uint8)
    whole = isinstance(symbols, np.ndarray) and symbols.dtype.kind in "iu" and symbols.ndim == 1
    return symbols if whole else None


def _compiled_loops(model: SymbolModel, count: int) -> Any:
    """Return the module of compiled loops if they know the model, else None.

    Compiling takes seconds, once on a machine; so short messages do without.
    """
    if count < LONG:
        return None
    try:
        from . import compiled
    except (ImportError, RuntimeError):  # numba is optional, and wants a folder for its results
        return None
    return compiled if compiled.counts_by_contexts(model) else None


def _symbol(symbol: Any) -> int:
    try:
        return operator.index(symbol)
    except TypeError:
        hint = "; of a text encode its bytes, encode(text.encode(), model)"
        raise TypeError(
            f"symbols must be integers, got {symbol!r}{hint * isinstance(symbol, str)}"
        ) from None


class _Interval:
    """The part of [0, 1) that is left: from ``low`` on, ``width`` units long.

    The bytes in ``out`` are decided. A unit is the last bit of the window of 64 bits after them.
    """

    def __init__(self) -> None:
        self.out, self.low, self.width = bytearray(), 0, 1 << _WORD

    def narrow(self, start: int, stop: int, total: int) -> tuple[int, int]:
        """Keep the part from ``start`` to ``stop`` of ``total``.

        Return how many units were skipped, and how many bytes were shifted out.

        The parts lie side by side without a gap, so no bit is lost where the width does not divide.
        """
        skipped = self.width * start // total
        self.low += skipped
        self.width = self.width * stop // total - skipped
        shifted = 0
        while self.width >> _TOP == 0:
            self._shift()
            shifted += 1
        return skipped, shifted

    def _shift(self) -> None:
        """Move the first byte of the window to the output."""
        self._carry()
        self.out.append(self.low >> _TOP)
        self.low = (self.low & ((1 << _TOP) - 1)) << _BYTE
        self.width <<= _BYTE

    def _carry(self) -> None:
        """Add the bit that does not fit into the window to the bytes before the window."""
        if self.low >> _WORD:
            self.low -= 1 << _WORD
            last = len(self.out) - 1
            while self.out[last] == 0xFF:
                self.out[last] = 0
                last -= 1
            self.out[last] += 1

    def close(self) -> tuple[bytes, int]:
        """Return the bytes and the number of bits of the shortest fraction in the interval.

        The interval also holds the fraction with any further bits after it.
        """
        bits = 0
        while True:
            step = 1 << (_WORD - bits)
            first = -(-self.low // step) * step
            if first + step <= self.low + self.width:
                break
            bits += 1
        self.low = first
        self._carry()
        window = self.low.to_bytes(_WORD // _BYTE, "big")
        return bytes(self.out + window[: -(-bits // _BYTE)]), _BYTE * len(self.out) + bits


def _cumulative(model: SymbolModel) -> np.ndarray:
    """Check the frequencies; return the sum of those below each symbol, and of all at the end."""
    frequencies = np.asarray(model.frequencies())
    if frequencies.dtype.kind not in "iu":
        raise TypeError(f"frequencies must be whole numbers, got {frequencies.dtype}: quantize(p)")
    if frequencies.ndim != 1 or not len(frequencies):
        raise ValueError(f"frequencies must be one for each symbol; got shape {frequencies.shape}")
    below = np.zeros(len(frequencies) + 1, np.int64)
    np.cumsum(frequencies, out=below[1:])
    # The largest frequency is checked, too, as a sum of such numbers may wrap around.
    if frequencies.min() < 0 or frequencies.max() > MOST or not 0 < below[-1] <= MOST:
        raise ValueError(
            f"frequencies must be at least 0 and sum to 1 to 2^32, got a smallest of "
            f"{frequencies.min()} and a sum of {below[-1]}; quantize(p) makes them of probabilities"
        )
    return below


def quantize(probabilities: Any) -> np.ndarray:
    """Turn probabilities into frequencies for a coder: none is 0, and a code is hardly longer.

    Args:
        probabilities: one for each symbol, ``(n,)``, an array or tensor that sums to 1 up to
            rounding; at most 2^24 symbols.

    Returns:
        ``(n,)``, int64; no symbol costs more than ``n / 2^31`` nats above its ``-log p``.

    Raises:
        ValueError: if a number is negative, or the sum is not 1.

    Example:
        >>> from xent.learn import quantize
        >>> quantize([0.5, 0.5, 0.0]).tolist()
        [1073741825, 1073741825, 1]
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 1 or not 0 < len(p) <= 1 << 24:
        raise ValueError(f"`probabilities` must be one for each symbol; got shape {p.shape}")
    if not (p.min() >= 0 and abs(p.sum() - 1) <= rounding()):
        raise ValueError(
            f"`probabilities` must be at least 0 and sum to 1, got {p.min():g} and {p.sum():g}. "
            f"Logits: pass xent.softmax(logits)"
        )
    return (p * (MOST // 2)).astype(np.int64) + 1
