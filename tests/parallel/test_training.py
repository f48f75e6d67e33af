"""`xent train` on many ranks: the training of one process, however many share it, and what."""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from xent.commands import trainer
from xent.commands.console import progress_bar
from xent.commands.ranks import PARALLEL
from xent.commands.run_folder import load_checkpoint
from xent.commands.text import Corpus, read_corpus
from xent.commands.trainer import Settings, Trainer

from . import training_on_ranks as on
from .pool import values

pytestmark = pytest.mark.slow
# 5 lanes and 27 classes, which neither 2 nor 4 ranks share evenly.
SETTINGS = Settings(steps=50, dim=8, batch=5, length=8)
HALF = 25


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Return thirty files of made-up sentences."""
    path, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    words = ["the", "a", "cat", "dog", "house", "tree", "sees", "likes", "and", "or", "not", "so"]
    for i in range(30):
        lines = (" ".join(draw.choices(words, k=8)) + ".\n" for _ in range(20))
        (path / f"{i}.txt").write_text("".join(lines))
    return read_corpus([str(path)], 0, 27, partial(progress_bar, True))


@pytest.fixture(scope="module")
def alone(corpus):
    """Return the losses of one process, its state half-way and at the end, and a check."""
    run = Trainer(SETTINGS, corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CLIP", on.CLIP)
        losses = [run.advance() for _ in range(HALF)]
        half = on.copied(run.state())
        losses += [run.advance() for _ in range(HALF)]
    return losses, half, run.state(), run.evaluate(2)


def equal_on_all(results):
    """Return the result of the first rank; the numbers must be the same on all ranks."""
    first, *others = values(results)
    for losses, found, state in others:
        assert (losses, found, state) == (first[0], first[1], None)
    return first


@pytest.mark.parametrize("what", PARALLEL)
def test_ranks_train_as_one_process_does(ranks, corpus, alone, what):
    """From the beginning, and on from a state that other ranks, or one process, saved."""
    expected, half, end, checked = alone
    assert len(corpus.vocabulary) == 27
    train = partial(ranks.run, on.trained)
    for count in (1, 2):
        losses, found, _ = equal_on_all(train(count, what, SETTINGS, corpus, 2 * HALF))
        assert losses == pytest.approx(expected, abs=1e-4)
        assert found == pytest.approx(checked, rel=1e-4)
    losses, _, state = equal_on_all(train(4, what, SETTINGS, corpus, HALF))
    assert losses == pytest.approx(expected[:HALF], abs=1e-4)
    losses, _, state = equal_on_all(train(2, what, SETTINGS, corpus, HALF, state))
    assert losses == pytest.approx(expected[HALF:], abs=1e-4)
    same_state(state, end)
    losses, _, state = equal_on_all(train(4, what, SETTINGS, corpus, HALF, half))
    assert losses == pytest.approx(expected[HALF:], abs=1e-4)
    again = Trainer(SETTINGS, corpus)
    again.restore(state)
    assert again.evaluate(2) == pytest.approx(checked, rel=1e-4)


def same_state(state, expected):
    """Check that a checkpoint holds the whole tensors of one process, moments and memory too."""
    close = partial(torch.testing.assert_close, rtol=1e-2, atol=1e-4)
    close(state["model"], expected["model"])
    close(state["optimizer"]["state"], expected["optimizer"]["state"])
    close(state["memory"], expected["memory"])
    assert state["history"]["loss"] == pytest.approx(expected["history"]["loss"], abs=1e-4)


@pytest.mark.parametrize("head", ["xent", "torch"])
def test_ranks_that_share_lanes_take_all_heads(ranks, corpus, alone, head):
    settings = replace(SETTINGS, head=head)
    losses, _, _ = equal_on_all(ranks.run(on.trained, 2, "data", settings, corpus, 10))
    assert losses == pytest.approx(alone[0][:10], abs=1e-4)


@pytest.mark.parametrize("what", PARALLEL)
def test_the_first_rank_decides_when_time_is_up(ranks, corpus, what):
    settings = replace(SETTINGS, steps=None, minutes=0.01)
    first, second = values(ranks.run(on.by_the_clock, 2, what, settings, corpus))
    assert first == second
    assert len(first[1]) > 0


@pytest.mark.parametrize(("what", "who"), [("data", 0), ("classes", 2)])
def test_one_rank_that_is_told_to_stop_stops_all(ranks, corpus, tmp_path, what, who):
    found = values(ranks.run(on.told_to_stop, 3, what, SETTINGS, corpus, tmp_path, who))
    assert [steps for steps, _, _ in found] == [3, 3, 3]
    assert [writes for _, _, writes in found] == [True, False, False]
    assert found[0][1]["ranks"] == 3
    assert not found[0][1]["results"]
    run = Trainer(SETTINGS, corpus)
    run.restore(load_checkpoint(tmp_path))
    assert run.step == 3


@pytest.mark.parametrize("what", PARALLEL)
def test_a_checkpoint_of_other_sizes_is_refused(ranks, corpus, alone, what):
    settings, half = SETTINGS, alone[1]
    moments = half["optimizer"]["state"]
    long = {k: {m: torch.cat([x, x]) if x.ndim else x for m, x in kept.items()}
            for k, kept in moments.items()}  # fmt: skip
    bad = {**half, "optimizer": {**half["optimizer"], "state": long}}
    for message in values(ranks.run(on.refused, 2, what, settings, corpus, bad)):
        assert message == "UserError: --resume: the checkpoint is damaged; begin anew"


def test_the_first_rank_acts_for_all_and_tells_its_errors(ranks):
    first, second = values(ranks.run(on.answered_once, 2, "data"))
    assert first[0] == second[0]
    assert first[1] == "ValueError: told once"
    assert second[1] == "SystemExit: 2"
