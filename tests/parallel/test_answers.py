"""PyTorch's functions of a shard: ``logsumexp``, ``argmax``, ``topk``, factors and softcaps."""

import pytest
import torch

from . import answers_on_ranks
from .pool import values
from .test_shards import CLASSES, SPLITS

pytestmark = pytest.mark.slow


def logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 3


def compare(found, truth):
    for x, y in zip(found, truth, strict=True):
        torch.testing.assert_close(x, y.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("split", ["uneven", "empty"])
@pytest.mark.parametrize(("shape", "axis"), [((6, CLASSES, 2), 1), ((2, 3, CLASSES), 2)])
def test_the_functions_of_one_process(ranks, split, shape, axis):
    z, edges = logits(*shape), SPLITS[split]
    leaf = z.clone().requires_grad_()
    truth = answers_on_ranks.results_of(leaf, axis)
    (of_all,) = answers_on_ranks.slope(truth, leaf)
    found = values(ranks.run(answers_on_ranks.of_tensor, len(edges) - 1, z, edges, axis))
    for results, _ in found:
        compare(results, truth)
        for x, y in zip(results, found[0][0], strict=True):
            assert torch.equal(x, y)  # the same bits on all ranks
    torch.testing.assert_close(
        torch.cat([gradient for _, gradient in found], axis), of_all, rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("workspace", [1 << 20, 500])
def test_behind_a_head(ranks, workspace):
    hidden, weight, edges = logits(9, 4), logits(CLASSES, 4) / 3, SPLITS["empty"]
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    z = leaves[0] @ leaves[1].T
    truth = answers_on_ranks.results_of(z, -1)
    of_hidden, of_weight = answers_on_ranks.slope(truth, *leaves)
    (of_all,) = torch.autograd.grad((leaves[0] @ leaves[1].T).square().sum(), leaves[0])
    found = values(ranks.run(answers_on_ranks.of_head, 4, hidden, weight, edges, workspace))
    for k, (results, for_hidden, for_weight, for_all) in enumerate(found):
        compare(results, truth)
        compare(
            [for_hidden, for_weight, for_all],
            [of_hidden, of_weight[edges[k] : edges[k + 1]], of_all],
        )


@pytest.mark.parametrize("split", SPLITS)
def test_ties_masks_and_nan(ranks, split):
    z = torch.zeros(6, CLASSES, dtype=torch.float64)
    z[1, 4:] = 1.0
    z[2] = -torch.inf
    z[3, 3:] = -torch.inf
    z[4, 7] = torch.nan
    z[5, [2, 8]] = 5.0
    edges = SPLITS[split]
    for found in values(ranks.run(answers_on_ranks.edge_cases, len(edges) - 1, z, edges)):
        best, lse, ordered, classes, two, of_two, narrow = found
        assert best.equal(z.argmax(-1))  # of equal logits the lowest class
        assert narrow.equal(best)
        torch.testing.assert_close(lse, z.logsumexp(-1), equal_nan=True)
        torch.testing.assert_close(ordered, z.sort(-1, descending=True).values, equal_nan=True)
        assert classes.equal(z.sort(dim=-1, descending=True, stable=True).indices)
        torch.testing.assert_close(two, 2 * z.topk(2).values, equal_nan=True)
        assert of_two[5].tolist() == [2, 8]


def test_classes_in_another_order_than_ranks(ranks):
    z = torch.zeros(3, 8)
    z[1, 5], z[2, [1, 6]] = 2.0, 1.0
    for found in values(ranks.run(answers_on_ranks.out_of_order, 4, z)):
        assert found.tolist() == [0, 5, 1]


def test_what_a_shard_does_not_do_is_said(ranks):
    words = {
        "rows": "`dim` must be 1", "all": "`dim` must be 1", "two": "`dim` must be 1",
        "many": "`k` must be 0 to 6", "learned": "or with .detach()", "bias": "gather()",
        "per class": "gather()", "softmax": "gather()", "index": "gather()", "divisor": "gather()",
        "view": "gather()", "bool": "ambiguous", "in place": "gather()", "array": "gather()",
        "two shards": "gather()", "options": "rank 1: topk(k=2",
    }  # fmt: skip
    for found in values(ranks.run(answers_on_ranks.refusals, 2)):
        assert found.keys() == words.keys()
        for name, text in found.items():
            assert words[name] in text, (name, text)
            assert "AttributeError" not in text, (name, text)


def test_a_shard_has_the_outline_of_all_logits(ranks):
    for found in values(ranks.run(answers_on_ranks.outline, 2)):
        assert found == ((4, 6, 5), 3, 6, 120, True, False, True, True, 4, "cpu")
