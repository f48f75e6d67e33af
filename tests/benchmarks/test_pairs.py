"""The benchmark of losses of labelled features: its contestants compute the same."""

import pytest
import torch

from benchmarks import pairs


@pytest.fixture(autouse=True)
def _threads():
    """Give back the threads that a measurement takes."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_contestants_agree():
    case = pairs.Case(64, 4)
    found = {name: pairs.measure(name, case) for name in ("xent", "torch")}
    assert found["xent"]["loss"] == pytest.approx(found["torch"]["loss"], rel=2e-6)
    for result in found.values():
        assert result["seconds"] > 0
        assert result["memory"] >= 0


def test_a_table_names_who_is_missing(monkeypatch):
    def in_a_process(name, case, patience):
        return pairs.measure(name, case) if name == "xent" else "is not installed"

    monkeypatch.setattr(pairs, "in_a_process", in_a_process)
    head, lines, missing, _ = pairs.table(pairs.Case(16, 2), ["xent", "other"], 2, 60.0)
    assert head == "16 x 128, 2 rows of each label"
    assert lines.splitlines()[1].split()[0] == "xent"
    assert missing == "other: is not installed"
