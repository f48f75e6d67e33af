"""The model of docs/gpu.md: its arithmetic, and what the page shows of it."""

from pathlib import Path

import pytest

from benchmarks.gpu import model
from benchmarks.gpu.model import CARD, Card, Head
from benchmarks.readme import with_tables

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"


def test_the_page_shows_what_the_model_gives():
    text = PAGE.read_text()
    assert with_tables(text) == text
    for make in (model.table, model.assumptions, model.table_of_heads):
        assert make() in text


def test_a_kernel_takes_the_longer_of_two_times():
    slow = Card("slow memory", copy=1e12, issue=1e15, products=1.0)
    assert model.seconds(25, 2, 4096, slow) == pytest.approx(model.NUMBERS * 4 / 1e12)
    busy = Card("slow lanes", copy=1e15, issue=1e12, products=1.0)
    assert model.seconds(25, 2, 4096, busy) == pytest.approx(model.NUMBERS * 25 / 1e12)
    # 28 of 128 threads have no class of 100
    assert model.seconds(25, 2, 100, busy) == pytest.approx(model.NUMBERS * 32 / 1e12)


def test_chunks_share_the_rows_of_a_head():
    assert [Head(n, 4096, 128256).chunks for n in (1, 4096, 4097, 5000, 8192)] == [1, 1, 2, 2, 2]
    assert Head(1024, 16, 1 << 30).chunks == 8  # at least 128 rows each
    one, two = Head(4096, 4096, 128256), Head(8192, 4096, 128256)
    sums = two.between(CARD) - 2 * one.between(CARD)
    assert sums == pytest.approx((8 + 4 + 2) * 4096 * 128256 / CARD.copy)
