"""The benchmark of small calls: pairs of calls that compute the same, and its table."""

import pytest
import torch

from benchmarks import small_calls

# Calls of xent whose other call has not the same options.
OTHER_OPTIONS = {
    "row_weight",
    "z_loss",
    "normalizer",
    "logit_scale",
    "softcap",
    "class_bias",
}
BATCH = small_calls.Batch()


@pytest.mark.parametrize("pair", small_calls.pairs(BATCH), ids=lambda pair: pair.name)
def test_both_calls_compute_the_same(pair):
    ours, theirs = pair.ours(), small_calls.others(BATCH)[pair.theirs]()
    assert ours.requires_grad
    assert theirs.requires_grad
    if pair.name not in OTHER_OPTIONS:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["small_calls", "--rounds", "1", "--threads", "1"])
    threads = torch.get_num_threads()
    try:
        assert small_calls.main() == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for pair in small_calls.pairs(BATCH):
        assert f"  {pair.name} " in printed
