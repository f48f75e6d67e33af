"""DTensors whose classes are split over ranks, with and without rows that are split, too."""

import pytest
import torch

from . import on_ranks
from .pool import RANKS, values
from .test_shards import of_one_process, rows

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dims", [(4,), (2, 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cross_entropy", {"label_smoothing": 0.1, "weight": torch.linspace(0.5, 2, 10).double()}),
        ("focal_loss", {"gamma": 1.5}),
        ("logit_adjusted_loss", {"prior": torch.arange(1.0, 11.0)}),
    ],
)
def test_the_loss_of_one_process(ranks, dims, reduction, name, options):
    z, y = rows()
    z[3] = 0.0
    options = {**options, "reduction": reduction}
    whole, slope = of_one_process(name, z, y, options)
    for loss, gradient, placed in values(
        ranks.run(on_ranks.of_dtensor, RANKS, name, z, y, options, dims, False)
    ):
        torch.testing.assert_close(loss, whole, rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-11)
        assert "Replicate()" in placed  # over the ranks that share the classes
        if len(dims) == 2:
            assert ("Shard(dim=0)" if reduction == "none" else "Partial") in placed


def test_soft_targets(ranks):
    z, _ = rows()
    z[3] = 0.0
    q = torch.randn(12, 10, dtype=torch.float64).softmax(1)
    whole, slope = of_one_process("cross_entropy", z, q, {})
    for loss, gradient, _ in values(
        ranks.run(on_ranks.of_dtensor, RANKS, "cross_entropy", z, q, {}, (2, 2), True)
    ):
        torch.testing.assert_close(loss, whole, rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-11)


def test_all_ranks_hear_of_an_error_of_one(ranks):
    for text in ranks.run(on_ranks.of_dtensor_with_an_error, RANKS):
        assert "`return_stats` is for plain tensors" in text


def test_losses_that_need_all_classes_say_the_way_out(ranks):
    for text in ranks.run(on_ranks.refused_dtensor, RANKS, "sparsemax_loss"):
        assert text.startswith("ValueError")
        assert "call input.redistribute" in text
