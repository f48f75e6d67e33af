"""Lean models of Transformers on several ranks: loss and gradients of one process."""

import re
from pathlib import Path

import pytest
import torch

from .pool import RANKS, values

pytest.importorskip("transformers")
hf = pytest.importorskip("tests.parallel.hf_on_ranks")
pytestmark = pytest.mark.slow


def _plans_of_transformers():
    try:
        from transformers.distributed import DistributedConfig
    except ImportError:
        return False
    return hasattr(DistributedConfig, "fsdp_size")


by_configuration = pytest.mark.skipif(
    not _plans_of_transformers(), reason="this version of Transformers shards no models"
)


def agrees(steps, late="LinearLogits", loss=1e-6, gradient=1e-5):
    for step in values(steps):
        assert step.loss < loss
        assert step.gradient < gradient
        assert step.logits == late


# ---- data parallel -------------------------------------------------------------------------------


UNITS = [None, (), ("layers",), ("layers", "embedding, head")]  # None: DDP


@pytest.mark.parametrize("lean_before", [True, False])
@pytest.mark.parametrize(
    ("units", "tied"),
    [(("layers", "head"), False), *((units, tied) for units in UNITS for tied in (False, True))],
)
def test_data_parallel(ranks, units, tied, lean_before):
    agrees(ranks.run(hf.data_parallel, 2, units, lean_before, tied))
    agrees(ranks.run(hf.data_parallel, 2, units, lean_before, tied, 2))


@pytest.mark.parametrize("units", [None, ("layers",), ("norm, head",)])
def test_a_loss_outside_of_the_model(ranks, units):
    agrees(ranks.run(hf.data_parallel, 2, units, False, False, 2, True))


@pytest.mark.parametrize("units", [("layers",), ("layers", "head")])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_mixed_precision_is_as_good_as_without_lean(ranks, units, micro_batches):
    given = False, micro_batches, False, True
    (plain, _) = values(ranks.run(hf.data_parallel, 2, units, None, *given))
    found = ranks.run(hf.data_parallel, 2, units, True, *given)
    agrees(found, loss=max(plain.loss, 1e-6), gradient=plain.gradient)


@pytest.mark.parametrize("when", ["before", "after", "inside"])
def test_a_wrapper_of_adapters_is_the_unit_of_the_head(ranks, when):
    pytest.importorskip("peft")
    agrees(ranks.run(hf.with_adapters, 2, when))


@pytest.mark.parametrize("sizes", [False, True])
def test_a_unit_frees_its_weight_as_before_lean(ranks, sizes):
    for found in values(ranks.run(hf.kept_weights, RANKS, sizes)):
        assert found == [2 if sizes else 4, None, 2 if sizes else 4]


def test_a_weight_that_is_not_there_or_another_one_is_refused(ranks):
    for freed, changed in values(ranks.run(hf.misused, 2)):
        assert freed.startswith("RuntimeError: the weight behind LinearLogits((8, 12, 97)")
        assert "no longer in memory" in freed
        assert changed.startswith("RuntimeError: the tensor behind LinearLogits((8, 12, 97)")
        assert "was changed after these logits were made" in changed


# ---- classes over ranks --------------------------------------------------------------------------

PLANS = ["DTensor", "all logits", "own logits", "tied", "sequence"]


@pytest.mark.parametrize("lean_before", [True, False])
@pytest.mark.parametrize("plan", PLANS)
def test_plans_of_pytorch(ranks, plan, lean_before):
    late = "DistributedLogits"
    agrees(ranks.run(hf.class_parallel, 2, plan, lean_before), late)
    agrees(ranks.run(hf.class_parallel, 2, plan, lean_before, 2, True), late)


def test_three_ranks_share_the_classes(ranks):
    agrees(ranks.run(hf.class_parallel, 3, "all logits"), "DistributedLogits")


@pytest.mark.parametrize("lean_before", [True, False])
@pytest.mark.parametrize("units", [("layers",), ("layers", "head")])
def test_rows_and_classes(ranks, units, lean_before):
    agrees(ranks.run(hf.both_parallel, RANKS, units, lean_before), "DistributedLogits")


@by_configuration
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [{"fsdp_size": RANKS}, {"tp_plan": "auto"}, {"fsdp_size": 2, "tp_plan": "auto"}],
    ids=["FSDP2", "classes", "both"],
)
def test_models_that_transformers_shards(ranks, tmp_path, tied, sizes):
    hf.llama(tied).save_pretrained(tmp_path)
    late = "DistributedLogits" if "tp_plan" in sizes else "LinearLogits"
    agrees(ranks.run(hf.by_transformers, RANKS, str(tmp_path), tied, sizes), late)


@pytest.mark.parametrize("plan", ["DTensor", "all logits"])
def test_one_gather_of_statistics_and_one_sum_of_features(ranks, plan):
    for counts in values(ranks.run(hf.counted, 2, plan)):
        gathers = counts.pop("c10d._allgather_base_")
        assert gathers == 2  # the record by which ranks agree, and the statistics
        assert counts == {"c10d.allreduce_": 1}  # begun in forward


@pytest.mark.parametrize(
    ("plan", "count"),
    [
        ("DTensor", 2),
        ("all logits", 2),
        pytest.param("Transformers", RANKS, marks=by_configuration),
    ],
)
def test_evaluation_and_generation(ranks, tmp_path, plan, count):
    hf.llama().save_pretrained(tmp_path)
    for truths, found in values(ranks.run(hf.evaluated, count, plan, str(tmp_path))):
        for x, truth in zip(found, truths, strict=True):
            torch.testing.assert_close(x, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lean_before", [True, False])
def test_a_tie_that_a_plan_has_torn_is_told_once(ranks, lean_before):
    for said in values(ranks.run(hf.torn, 2, lean_before)):
        assert len(said) == 1
        assert "model.embed_tokens.weight and lm_head.weight are one weight in" in said[0]
        assert "Call model.tie_weights() after the plan" in said[0]


# ---- the README ----------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(
    r"^```python\n((?!>>>).*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)


def test_there_are_three_examples():
    words = "tp_plan", "fully_shard", "Trainer"
    assert [word in code for word, code in zip(words, EXAMPLES, strict=True)] == [True] * 3


@by_configuration
@pytest.mark.parametrize("code", EXAMPLES, ids=["tensor parallel", "FSDP2", "Trainer"])
def test_examples(ranks, tmp_path, code):
    pytest.importorskip("accelerate")
    hf.llama().save_pretrained(tmp_path)
    for error in values(ranks.run(hf.example, RANKS, code, str(tmp_path))):
        assert error < 1e-5
