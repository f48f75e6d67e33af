"""The cost model of docs/parallel.md beside what really travels between ranks."""

import pytest
import torch

from benchmarks.cost_model import FEATURES, ONE_GATHER, SMOOTHED, SOFT, TWO_STEPS, Case
from xent.agreement import Record

from .costs_on_ranks import traffic
from .on_ranks import collectives, head_collectives, in_two_steps
from .pool import values

ROWS, FEATURE_COUNT = 8, 3  # of the functions that run on the ranks
RECORD = Record().packed(torch.device("cpu")).nbytes


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(
    ("design", "soft", "options"),
    [(ONE_GATHER, False, {}), (SMOOTHED, False, {"label_smoothing": 0.1}), (SOFT, True, {})],
    ids=["classes", "smoothing", "probabilities"],
)
def test_the_bytes_of_one_gather(ranks, count, design, soft, options):
    case = Case(N=ROWS, P=count)
    call = (collectives, "cross_entropy", options, soft)
    for record, *gathers in values(ranks.run(traffic, count, *call)):
        assert (record.dtype, record.received(count)) == (torch.int64, RECORD * (count - 1))
        assert len(gathers) == design.collectives(case)
        assert sum(gather.received(count) for gather in gathers) == design.received(case)
        assert sum(gather.size for gather in gathers) == design.kept(case)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 4])
def test_the_bytes_of_two_steps(ranks, count):
    case = Case(N=-(-ROWS // count) * count, P=count)  # shares of rows are equally tall
    call = (in_two_steps, collectives, "cross_entropy", {}, False)
    for _, *steps in values(ranks.run(traffic, count, *call)):
        assert len(steps) == TWO_STEPS.collectives(case)
        assert sum(step.received(count) for step in steps) == pytest.approx(
            TWO_STEPS.received(case), rel=1e-12
        )
        assert sum(step.size for step in steps) == TWO_STEPS.kept(case)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_bytes_of_a_head(ranks, count):
    case = Case(N=ROWS, D=FEATURE_COUNT, P=count, K=2, b=4)
    for _, *found in values(ranks.run(traffic, count, head_collectives, ROWS // case.K)):
        gathers = [one for one in found if one.dtype == torch.float64]
        sums = [one for one in found if one.dtype == torch.float32]
        assert len(gathers) == len(sums) == ONE_GATHER.collectives(case) == len(found) / 2
        assert sum(one.received(count) for one in gathers) == ONE_GATHER.received(case)
        assert sum(one.received(count) for one in sums) == pytest.approx(FEATURES(case), rel=1e-12)
