"""Arithmetic coding: the length is the cross-entropy, and what comes out is what went in."""

import argparse
import math
import random
import sys
import typing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import xent
from xent.learn import FixedModel, MixtureModel, OrderModel, decode, encode, quantize
from xent.learn.coding import arithmetic
from xent.learn.coding.arithmetic import MOST

SOURCES = b"".join(Path(str(m.__file__)).read_bytes() for m in (argparse, typing))


def information(symbols, model):
    """Return the sum of -log2 q, in exact shares."""
    bits = 0.0
    for symbol in symbols:
        f = [int(x) for x in model.frequencies()]
        bits -= math.log2(Fraction(f[symbol], sum(f)))
        model.update(symbol)
    return bits


def comes_back(symbols, make):
    """Return the code of the symbols after decoding it; `make` makes a model."""
    code = encode(symbols, make())
    assert decode(code.data, make(), len(symbols)) == list(symbols)
    assert len(code.data) == -(-code.bits // 8)
    assert code.information == pytest.approx(information(symbols, make()), abs=1e-6)
    assert -1e-6 <= code.bits - code.information < 2 + 1e-6 + len(symbols) * 2**-23
    return code


# ---- what comes out is what went in ----------------------------------------------------------


@given(
    st.lists(st.integers(1, 70_000), min_size=1, max_size=40).flatmap(
        lambda f: st.tuples(st.just(f), st.lists(st.integers(0, len(f) - 1), max_size=200))
    )
)
def test_fixed_frequencies(case):
    frequencies, symbols = case
    comes_back(symbols, lambda: FixedModel(frequencies))


@given(st.binary(max_size=300), st.sampled_from([0, 1, 2, 5]))
def test_bytes(data, order):
    comes_back(data, lambda: OrderModel(order))


@given(st.binary(max_size=120))
def test_mixtures(data):
    comes_back(data, lambda: MixtureModel([OrderModel(k) for k in range(4)]))


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    "frequencies",
    [
        [1, 2**16 - 1],
        [2**16 - 1, 1],
        [1, MOST - 2, 1],
        [1] * 256,
        [2**24] * 256,
        [0, 3, 0, 5, 0],
        [1],
        [2**31, 2**31],
        [3, MOST // 3, 5],
    ],
    ids=lambda f: f"{len(f)} of {max(f)}",
)
@pytest.mark.parametrize("kind", ["random", "run", "rarest", "drawn"])
def test_skewed_and_flat(frequencies, kind):
    there = [s for s, f in enumerate(frequencies) if f]
    draw = random.Random(1)
    symbols = {
        "random": draw.choices(there, k=3000),
        "run": [max(there, key=frequencies.__getitem__)] * 20_000,
        "rarest": [min(there, key=frequencies.__getitem__)] * 500,
        "drawn": draw.choices(range(len(frequencies)), frequencies, k=3000),
    }[kind]
    code = encode(symbols, FixedModel(frequencies))
    assert decode(code.data, FixedModel(frequencies), len(symbols)) == symbols
    total = sum(frequencies)
    truth = math.fsum(-math.log2(frequencies[s] / total) for s in symbols)
    assert code.information == pytest.approx(truth, rel=1e-9, abs=1e-6)
    # Symbols near the edges of the interval carry through long runs of 255.
    assert truth - 0.1 <= code.bits < truth + 2.1


def test_carries_run_through_many_bytes():
    # The last of 256 leaves bytes of 255 behind; a symbol in the middle then carries through them.
    for tail in ([0], [1], [0, 1, 0], [1, 1, 1, 1]):
        for run in range(1, 40):
            frequencies = [255, 1, 256]
            symbols = [0] * run + [1] * run + [2] + tail
            comes_back(symbols, lambda f=frequencies: FixedModel(f))


def test_the_empty_message():
    assert encode([], OrderModel(1)) == (b"", 0, 0.0)
    assert decode(b"", OrderModel(1), 0) == []
    assert encode([0] * 1000, FixedModel([7])).bits == 0


# ---- compiled loops ---------------------------------------------------------------------------


def both_ways(symbols, make, monkeypatch):
    """Return code, decoded symbols and models by the loops in Python, and by the compiled ones."""
    ways = []
    for least in (1 << 60, 1):
        monkeypatch.setattr(arithmetic, "LONG", least)
        coder, decoder = make(), make()
        code = encode(symbols, coder)
        ways.append((code, decode(code.data, decoder, len(symbols)), coder, decoder))
    return ways


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    ("order", "symbols", "gain"),
    [(0, 256, None), (1, 256, None), (2, 256, None), (5, 256, 7), (3, 2, None), (1, 3, 2**29),
     (0, 2, 2**30), (2, 300, 1)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["text", "run", "rarest"])
def test_compiled_loops_give_the_same_bytes(order, symbols, gain, kind, monkeypatch):
    pytest.importorskip("numba")
    text = np.frombuffer(SOURCES[:2500], np.uint8).astype(np.int64) % symbols
    runs = np.repeat([1, 0, symbols - 1], [1200, 1, 1200])
    message = {"text": text, "run": runs, "rarest": np.arange(2500)[::-1] % symbols}[kind]

    def make():
        model = OrderModel(order, symbols, gain)
        for symbol in (1, 0, 1):  # the loops go on with a model that has seen something
            model.update(symbol)
        return model

    (slow, back, *before), (fast, again, *after) = both_ways(message, make, monkeypatch)
    assert (fast.data, fast.bits, again) == (slow.data, slow.bits, back)
    assert again == message.tolist()
    assert fast.information == pytest.approx(slow.information, abs=1e-6)
    for one, other in zip(before, after, strict=True):
        one.update(0), other.update(0)
        for symbol in (1, 0, symbols - 1):
            assert one.frequencies().tolist() == other.frequencies().tolist()
            one.update(symbol), other.update(symbol)


@pytest.mark.parametrize(("order", "places"), [(0, 8), (1, 1024), (3, 1024)])
def test_compiled_loops_have_no_more_places_than_contexts(order, places):
    compiled = pytest.importorskip("xent.learn.coding.compiled")
    count = 10**7 if order < 3 else 300
    assert len(compiled._Tables(OrderModel(order), count).keys) <= places


def test_compiled_loops_refuse_what_the_others_refuse(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(arithmetic, "LONG", 1)
    with pytest.raises(ValueError, match="symbols 0 to 1, not 7"):
        encode(np.array([0, 1, 7]), OrderModel(1, symbols=2))
    data = encode(SOURCES[:2000], OrderModel(1)).data
    for bad in (data[:-9], data + b"x", b"", bytes([data[0] ^ 16]) + data[1:]):
        with pytest.raises(ValueError, match="damaged"):
            decode(bad, OrderModel(1), 2000)
    assert encode(np.zeros(99, int), OrderModel(0, symbols=1)).bits == 0


def test_without_numba_the_loops_are_those_of_python(monkeypatch):
    code = encode(SOURCES[:500], OrderModel(1))
    monkeypatch.setattr(arithmetic, "LONG", 1)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "xent.learn.coding.compiled", raising=False)
    monkeypatch.delattr("xent.learn.coding.compiled", raising=False)
    assert encode(SOURCES[:500], OrderModel(1)) == code


# ---- the length is the cross-entropy ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [lambda: OrderModel(1), lambda: MixtureModel([OrderModel(k) for k in range(3)])],
    ids=["order 1", "mixture"],
)
def test_two_hundred_kilobytes_of_real_text(make):
    code = encode(SOURCES, make())
    assert len(SOURCES) > 150_000  # the size depends on the version of Python
    assert bytes(decode(code.data, make(), len(SOURCES))) == SOURCES
    assert -0.1 < code.bits - code.information < 2


def test_real_text():
    code = comes_back(SOURCES[:3000], lambda: OrderModel(1))
    assert code.bits - code.information < 2


def test_a_loss_in_bits_is_a_size_in_bits():
    z = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)) * 3
    y = torch.multinomial(xent.softmax(z), 1, generator=torch.Generator().manual_seed(1))[:, 0]

    class Network:
        row = 0

        def frequencies(self):
            return quantize(xent.softmax(z[self.row].double()))

        def update(self, symbol):
            self.row += 1

    code = encode(y.tolist(), Network())
    assert decode(code.data, Network(), len(y)) == y.tolist()
    bits = xent.cross_entropy(z.double(), y, reduction="sum").item() / math.log(2)
    assert code.information == pytest.approx(bits, abs=1e-4)
    assert bits - 0.1 < code.bits < bits + 2.1


def test_quantize():
    p = torch.softmax(torch.randn(1000).double() * 9, 0)
    q = torch.tensor(quantize(p)).double()
    assert q.min() >= 1
    assert q.sum() <= MOST
    cost = (q / q.sum()).log() - p.log()
    assert cost.min() > -1000 / 2**31
    for bad in ([0.5, 0.6], [1.5, -0.5], [[0.5, 0.5]], [], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="probabilities"):
            quantize(bad)


# ---- models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symbols", "message"), [("abc", r"encode\(text\.encode"), ([0.0], "got 0.0"), ([None], "None")]
)
def test_symbols_that_are_none(symbols, message):
    with pytest.raises(TypeError, match=message):
        encode(symbols, OrderModel(0))


def test_data_and_counts_that_are_none():
    with pytest.raises(TypeError, match="must be bytes"):
        decode("abc", OrderModel(0), 3)
    with pytest.raises(ValueError, match="`count`"):
        decode(b"abc", OrderModel(0), 2.5)
    code = encode(b"abc", OrderModel(0))
    assert decode(memoryview(code.data), OrderModel(0), 3) == [*b"abc"]


def test_order_models_count():
    model = OrderModel(2, symbols=3, gain=5)
    text = [0, 1, 2, 0, 1, 1, 0, 1]
    for symbol in text:
        model.update(symbol)
    after = [text[n] for n in range(2, len(text)) if text[n - 2 : n] == [0, 1]]
    assert model.frequencies().tolist() == [1 + 5 * after.count(s) for s in range(3)]


def test_counts_never_outgrow_the_coder():
    model = OrderModel(0, symbols=256, gain=2**22)
    for symbol in [3] * 50 + [4] * 50:
        model.update(symbol)
    assert model.frequencies().sum() <= MOST
    assert model.frequencies().min() >= 1


def test_weights_follow_the_better_model():
    def expect(symbol):
        return FixedModel([9 if s == symbol else 1 for s in range(2)])

    mixture = MixtureModel([expect(0), expect(1)])
    for symbol, most in ((0, 0.8), (1, 0.8), (0, 0.8)):
        for _ in range(600):
            mixture.update(symbol)
        f = mixture.frequencies()
        assert f[symbol] / f.sum() > most


# ---- bad input --------------------------------------------------------------------------------


def test_damage_is_found():
    data = encode(SOURCES[:2000], OrderModel(1)).data

    def decoded(code, count=2000):
        return decode(code, OrderModel(1), count)

    for cut in (0, 1, 10, len(data) // 2, len(data) - 9, len(data) - 1):
        with pytest.raises(ValueError, match="cut off"):
            decoded(data[:cut])
    for more in (b"\0", b"\0" * 9, b"x"):
        with pytest.raises(ValueError, match="damaged"):
            decoded(data + more)
    for place in range(0, len(data) - 1, 50):
        with pytest.raises(ValueError, match="damaged"):
            decoded(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    for count in (0, 1999, 2001, 3000):
        with pytest.raises(ValueError, match="count"):
            decoded(data, count)
    with pytest.raises(ValueError, match="model"):
        decode(data, OrderModel(0), 2000)
    with pytest.raises(ValueError, match="count"):
        decoded(data, -1)


@pytest.mark.parametrize(
    ("symbols", "frequencies", "error", "words"),
    [
        ([2], [1, 1], ValueError, "symbols 0 to 1, not 2"),
        ([-1], [1, 1], ValueError, "not -1"),
        ([0], [0, 1], ValueError, "impossible"),
        ([0], [0, 0], ValueError, "sum to 1"),
        ([0], [3, -1], ValueError, "at least 0"),
        ([0], [MOST, 1], ValueError, "2\\^32"),
        ([0], [0.5, 0.5], TypeError, "quantize"),
        ([0.5], [1, 1], TypeError, "integer"),
    ],
)
def test_bad_messages_and_models(symbols, frequencies, error, words):
    with pytest.raises(error, match=words):
        encode(symbols, FixedModel(frequencies))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OrderModel(-1), "order"),
        (lambda: OrderModel(1, symbols=0), "symbols"),
        (lambda: OrderModel(1, gain=0), "gain"),
        (lambda: OrderModel(1, gain=2**25), "gain"),
        (lambda: MixtureModel([]), "models"),
        (lambda: MixtureModel([OrderModel(0)], rate=2), "rate"),
    ],
)
def test_models_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("frequencies", "match"),
    [
        ([2**63 - 1, 2**63 - 1, 4], "sum to 1 to"),  # which wraps around to 2
        (np.array([], int), "one for each symbol"),
        ([[1, 2], [3, 4]], "one for each symbol"),
        (3, "one for each symbol"),
    ],
)
def test_frequencies_of_other_shapes_and_sizes(frequencies, match):
    with pytest.raises(ValueError, match=match):
        encode([0], FixedModel(frequencies))


def test_models_that_expect_nothing_or_count_in_fractions():
    with pytest.raises(ValueError, match="above 0"):
        encode([0], MixtureModel([FixedModel([0, 0]), OrderModel(0, 2)]))
    with pytest.raises(TypeError):
        OrderModel(0, gain=1.5)
    with pytest.raises(TypeError):
        OrderModel(0.5)
