"""The benchmark of cross-entropy in fresh processes and in training steps."""

import json

import pytest
import torch

from benchmarks import in_a_step


@pytest.mark.parametrize("name", in_a_step.LOSSES)
def test_steps_with_and_without_a_loss_train_the_layer(name):
    torch.manual_seed(0)
    bench = in_a_step.Bench(name, 16, 5)
    assert len(bench.fresh()) == in_a_step.FRESH
    bench.prepare()
    (weight, bias) = bench.optimizer.param_groups[0]["params"]
    for with_loss in (True, False):
        before = weight.detach().clone(), bias.detach().clone()
        whole, inside = bench.step(with_loss)
        assert whole > inside > 0
        assert (weight != before[0]).any()
        if not with_loss:  # each logit has the gradient 1 / 80, and the rate is 1e-3
            torch.testing.assert_close(before[1] - bias, torch.full((5,), 16 * 1e-3 / 80))
    assert weight.grad is None


def test_a_turn_is_the_median_of_its_steps(monkeypatch):
    bench = in_a_step.Bench("xent", 4, 3)
    times = iter([(5.0, 2.0), (1.0, 0.0), (90.0, 3.0), (2.0, 0.0), (7.0, 1.0), (60.0, 0.0)])
    monkeypatch.setattr(bench, "step", lambda with_loss: next(times))
    bench.steps = 3
    assert bench.turn() == (7.0, 2.0, 4.0)


KINDS = ("fresh", "step", "loss", "difference")


def test_results_are_added_to_those_of_other_shapes(monkeypatch, capsys, tmp_path):
    def measured(cell, *_):
        time = {"ms": 2.0, "ms_quartiles": [1.0, 3.0], "ms_all": [2.0]}
        slow = {**time, "ms": 2.5 * runs}
        parts = {kind: {"xent": time, "torch": slow} for kind in KINDS}
        return {"rows": cell[0], "classes": cell[1], **parts}

    path, runs = tmp_path / "result.json", 1
    monkeypatch.setattr(in_a_step, "measure", measured)
    for shapes in (["65536,100", "7,3"], ["32,10", "7,3"]):
        monkeypatch.setattr("sys.argv", ["x", "--json", str(path), "--shapes", *shapes])
        assert in_a_step.main() == 0
        runs += 1
    cells = json.loads(path.read_text())["cells"]
    assert [(c["rows"], c["classes"]) for c in cells] == [(32, 10), (65536, 100), (7, 3)]
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " float32 " in line]
    assert [line[8] for line in lines[-3:]] == ["2.50", "1.25", "2.50"]
