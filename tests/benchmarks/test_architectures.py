"""The sweep of language models: what its table says of a model that is lean, and of others."""

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import architectures


@pytest.fixture(autouse=True)
def _random_state():
    """Leave the seeds as they were, which the sweep sets."""
    with torch.random.fork_rng():
        yield


def test_a_lean_model():
    row = architectures.compared("LlamaForCausalLM", "causal")
    assert row.result == "lean"
    assert float(row.loss_error) <= 1e-6
    assert 0 < float(row.gradient_error) <= 1e-5  # not compared with itself
    assert row.note == ""  # so the untouched model made all logits


@pytest.mark.slow
def test_a_model_that_needs_all_logits():
    row = architectures.compared("BltForCausalLM", "causal")
    assert row.result == "whole"
    assert "logits of its own" in row.note


@pytest.mark.slow
def test_a_model_without_a_linear_head():
    row = architectures.compared("FSMTForConditionalGeneration", "sequence to sequence")
    assert row.result == "refused"
    assert "Embedding" in row.note


def test_a_difference_is_seen(monkeypatch):
    def scaled(model, factor):
        with torch.no_grad():
            model.lm_head.weight *= factor

    monkeypatch.setattr(architectures, "lean", lambda model, **_: scaled(model, 2))
    monkeypatch.setattr(architectures, "unlean", lambda model: scaled(model, 0.5))
    assert architectures.compared("LlamaForCausalLM", "causal").result == "different"
    monkeypatch.setattr(architectures, "unlean", lambda model: scaled(model, 2))
    row = architectures.compared("LlamaForCausalLM", "causal")
    assert (row.result, row.note) == ("not run", "two steps of the untouched model differ")


def test_all_logits_are_seen(monkeypatch):
    monkeypatch.setattr(architectures, "lean", lambda model, **_: None)
    assert architectures.compared("LlamaForCausalLM", "causal").result == "whole"
