"""The cost model of docs/parallel.md: its formulas, and what the page shows of it."""

from pathlib import Path

import pytest

from benchmarks import cost_model
from benchmarks.cost_model import (
    BETWEEN,
    DESIGNS,
    ENGINE,
    FEATURES,
    FSDP_HEAD,
    FUSED,
    GATHERED,
    INSIDE,
    LIGER,
    LOSS_PARALLEL,
    MEGATRON,
    ONE_GATHER,
    TITAN,
    TWO_STEPS,
    Case,
    Formula,
    first_faster,
)  # fmt: skip
from benchmarks.readme import with_tables
from xent import shards

PAGE = Path(__file__).parents[2] / "docs" / "parallel.md"


def test_the_page_shows_what_the_model_gives():
    text = PAGE.read_text()
    assert with_tables(text) == text
    for make in ("table", "table_of_heads", "in_bytes", "crossings", "in_words"):
        assert getattr(cost_model, make)() in text


def test_a_formula_is_one_text_for_number_and_words():
    formula = Formula("2 * b * N * (P - 1) / P")
    assert formula(Case(N=10, P=4, b=2)) == 30
    assert formula.words() == "2 *b* *N* (*P* - 1) / *P*"


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_bytes_are_those_of_rings(ranks):
    """Bytes of each design, by hand: gathers of (P - 1) parts, all-reduces of twice (P - 1) / P."""
    case = Case(N=100, V=1000, D=16, P=ranks)
    numbers, several = 100 * (ranks - 1), 2 * 100 * (ranks - 1) / ranks
    assert ONE_GATHER.received(case) == 2 * 8 * numbers
    assert ENGINE.received(case) == 3 * 4 * numbers
    for design in (MEGATRON, FUSED, LIGER, TITAN):
        assert design.received(case) == pytest.approx(3 * 4 * several)
    assert LOSS_PARALLEL.received(case) == pytest.approx(3 * 2 * several)
    assert GATHERED.received(case) == pytest.approx(2 * 100 * 1000 * (ranks - 1) / ranks)
    assert FEATURES(case) == pytest.approx(16 * 2 * several)
    assert FSDP_HEAD(case) == pytest.approx(1000 * 16 * (2 + 4) * (ranks - 1) / ranks)
    packed = 16 * 100  # bytes of the rows of a rank
    assert TWO_STEPS.received(case) <= 2 * packed
    assert all(design.received(case) > 0 < design.kept(case) for design in DESIGNS)


@pytest.mark.parametrize("link", [INSIDE, BETWEEN], ids=lambda link: link.name)
@pytest.mark.parametrize("rows", [1024, 8192, 65536])
def test_designs_cross_where_the_model_says(link, rows):
    for new in (TWO_STEPS, FUSED, MEGATRON):
        ranks = first_faster(new, ONE_GATHER, Case(N=rows), link)
        before, at = (Case(N=rows, P=count) for count in (ranks - 1, ranks))
        assert new.seconds(at, link) < ONE_GATHER.seconds(at, link)
        assert new.seconds(before, link) >= ONE_GATHER.seconds(before, link)
    assert first_faster(GATHERED, ONE_GATHER, Case(N=rows), link) is None


def test_the_rule_for_two_steps_is_near_where_they_cross():
    for link in (INSIDE, BETWEEN):
        for rows in (1024, 8192):
            ranks = first_faster(TWO_STEPS, ONE_GATHER, Case(N=rows), link)
            rule = cost_model.rows_of_two_steps(link)
            assert rule <= rows * (ranks - 1) <= 1.2 * rule
    fewest, most = sorted(map(cost_model.rows_of_two_steps, (INSIDE, BETWEEN)))
    assert fewest < shards.ONE_GATHER < most


def test_classes_hide_the_reduction_where_products_take_as_long():
    case = Case(N=4096, D=1000, P=1000)
    for link in (INSIDE, BETWEEN):
        wide = cost_model.classes_that_hide(case, link)
        products = 6 * case.N * case.D * wide / cost_model.FLOPS
        assert products == pytest.approx(FEATURES(case) / link.bandwidth, rel=2e-3)
    rows = cost_model.rows_of_equal_bytes(case)
    assert FEATURES(case._replace(N=rows)) == pytest.approx(FSDP_HEAD(case))
