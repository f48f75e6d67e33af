"""Lean models of Transformers on several ranks: loss and gradients of one process."""

import pytest

from .pool import RANKS, values

pytest.importorskip("transformers")
hf = pytest.importorskip("tests.parallel.hf_on_ranks")
pytestmark = pytest.mark.slow


def agrees(steps, late="LinearLogits", loss=1e-6, gradient=1e-5):
    for step in values(steps):
        assert step.loss < loss
        assert step.gradient < gradient
        assert step.logits == late


# ---- data parallel -------------------------------------------------------------------------------


@pytest.mark.parametrize("lean_before", [True, False])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "units", [None, (), ("layers",), ("layers", "head"), ("layers", "embedding, head")]
)
def test_data_parallel(ranks, units, tied, lean_before):
    if tied and units == ("layers", "head"):
        pytest.skip("PyTorch wants both modules of a tied weight in one unit")
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


@pytest.mark.parametrize("tied", [False, True])
def test_sharded_by_transformers(ranks, tmp_path, tied):
    hf.llama(tied).save_pretrained(tmp_path)
    agrees(ranks.run(hf.by_transformers, RANKS, str(tmp_path), tied, {"fsdp_size": RANKS}))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer(ranks, tmp_path, accumulation):
    pytest.importorskip("accelerate")
    agrees(ranks.run(hf.trained, RANKS, str(tmp_path), True, accumulation), late="")
