"""The cost model of docs/parallel.md beside what really travels between ranks."""

import pytest
import torch

from benchmarks.cost_model import FEATURES, ONE_GATHER, SMOOTHED, SOFT, Case
from xent.agreement import Record

from . import costs_on_ranks
from .pool import values

ROWS, WIDTH, FEATURE_COUNT = 24, 6, 10
RECORD = Record().packed(torch.device("cpu")).nbytes


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(
    ("design", "soft", "options"),
    [(ONE_GATHER, False, {}), (SMOOTHED, False, {"label_smoothing": 0.1}), (SOFT, True, {})],
    ids=["classes", "smoothing", "probabilities"],
)
def test_the_bytes_of_a_loss_are_those_of_the_model(ranks, count, design, soft, options):
    case = Case(N=ROWS, V=WIDTH * count, P=count, b=4)
    for forward, backward in values(
        ranks.run(costs_on_ranks.of_logits, count, ROWS, WIDTH, soft, options)
    ):
        record, *gathers = forward
        assert (record.dtype, record.received(count)) == (torch.int64, RECORD * (count - 1))
        assert len(gathers) == design.collectives(case)
        assert sum(gather.received(count) for gather in gathers) == design.received(case)
        assert sum(gather.size for gather in gathers) == design.kept(case)
        assert backward == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_bytes_of_a_head_are_those_of_the_model(ranks, count):
    case = Case(N=ROWS, V=WIDTH * count, D=FEATURE_COUNT, P=count, b=4)
    for forward, backward in values(
        ranks.run(costs_on_ranks.of_head, count, ROWS, FEATURE_COUNT, WIDTH, 4 * WIDTH * 8)
    ):
        record, *later = forward
        assert record.dtype == torch.int64
        gathers = [one for one in later if one.dtype == torch.float64]
        case = case._replace(K=len(gathers))
        assert case.K > 1
        assert len(gathers) == ONE_GATHER.collectives(case)
        assert sum(gather.received(count) for gather in gathers) == ONE_GATHER.received(case)
        sums = [one for one in (*later, *backward) if one not in gathers]
        assert {one.dtype for one in sums} == {torch.float32}
        assert sum(one.received(count) for one in sums) == FEATURES(case)
