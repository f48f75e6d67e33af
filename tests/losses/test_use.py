"""The sentence of every loss that says when to take the loss, and when not."""

import re
from pathlib import Path

import pytest

import xent
from xent.commands.formulas import readable
from xent.frames.docstrings import use
from xent.losses import CATALOG

PROJECT = Path(__file__).parents[2]

# Losses that are no members of the catalog, since they see features or log-probabilities.
BESIDE = [
    *(f"losses.{name}_loss" for name in ("clip", "info_nce", "nt_xent")),
    *(f"losses.{name}_cross_entropy" for name in ("linear", "sampled")),
    *(f"policy.{name}_loss" for name in ("dpo", "grpo", "kto", "orpo", "ppo", "reinforce")),
]


@pytest.mark.parametrize("name", [*(f"losses.{name}" for name in CATALOG), *BESIDE])
def test_a_loss_says_when_to_take_it_and_when_not(name):
    module, _, function = name.partition(".")
    sentence = readable(use(getattr(getattr(xent, module), function)))
    assert re.fullmatch(r"(For|When|To|As) [^.;]+; not .+\.", sentence), sentence or "no `Use:`"
    assert not re.search(r"[.;] [A-Z]", sentence), "more than one sentence"


@pytest.mark.parametrize("name", CATALOG)
def test_the_sentence_names_losses_that_there_are(name):
    sentence = CATALOG[name].use
    for module, other in re.findall(r":func:`~xent\.(?:(\w+)\.)?(\w+)`", sentence):
        assert other != name
        assert hasattr(getattr(xent, module) if module else xent, other)
    assert ":func:" not in readable(sentence)


def test_a_sentence_that_leans_on_an_experiment_names_it():
    """By the name of its page, which the pages of the losses link."""
    told = [member.use for member in CATALOG.values() if "experiment" in member.use]
    assert told
    for sentence in told:
        names = re.findall(r"``(\w+)`` experiment\b", sentence)
        assert len(names) == sentence.count("experiment"), sentence
        assert all((PROJECT / "docs" / "gallery" / f"{name}.md").exists() for name in names)


def test_no_two_losses_have_the_same_sentence():
    sentences = [member.use for member in CATALOG.values()]
    assert len(set(sentences)) == len(sentences)


def test_every_loss_of_the_policies_is_asked():
    assert {f"policy.{name}" for name in xent.policy.__all__ if name.endswith("_loss")} <= {*BESIDE}
