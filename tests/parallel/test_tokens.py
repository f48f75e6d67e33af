"""Tokens over ranks: the divisor of the whole batch, and labels from the next piece."""

import pytest
import torch

import xent

from . import on_ranks
from .pool import values


@pytest.mark.slow
@pytest.mark.parametrize("averaged", [True, False])
def test_the_divisor_counts_the_tokens_of_all_ranks(ranks, averaged):
    targets = [
        [torch.tensor([1, 2, -100]), torch.tensor([-100])],
        [torch.tensor([[0, 3], [-100, -100]])],
        [torch.tensor([2] * 7)],
    ]
    found = values(ranks.run(on_ranks.normalizer, 3, targets, {"averaged": averaged}))
    assert [x.item() for x in found] == [11 / 3 if averaged else 11.0] * 3


@pytest.mark.slow
def test_the_divisor_takes_weights_and_moved_labels(ranks):
    targets = [[torch.tensor([[0, 1, 2]])], [torch.tensor([[2, 2, -100]])]]
    weight = torch.tensor([1.0, 2.0, 4.0])
    found = values(
        ranks.run(on_ranks.normalizer, 2, targets, {"weight": weight, "averaged": False})
    )
    assert [x.item() for x in found] == [1 + 2 + 4 + 4 + 4] * 2
    found = values(ranks.run(on_ranks.normalizer, 2, targets, {"shift": 1, "averaged": False}))
    assert [x.item() for x in found] == [2 + 1] * 2


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_pieces_of_a_sequence_shift_like_the_whole(ranks, count, k, packed):
    labels = torch.arange(24).reshape(2, 12)
    documents = (torch.arange(24).reshape(2, 12) // 5) if packed else None
    found = values(ranks.run(on_ranks.shifted, count, labels, documents, k))
    whole = xent.shift_labels(labels, k, documents=documents)
    assert torch.equal(torch.cat(found, -1), whole)


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        xent.parallel.global_normalizer(torch.tensor([1]))
    with pytest.raises(RuntimeError, match="torchrun"):
        xent.parallel.shard(torch.zeros(2, 3))
