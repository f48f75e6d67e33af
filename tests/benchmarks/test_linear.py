"""``xent bench linear``: its output, its truth, and what it refuses; never the speed."""

import json
import math

import pytest
import torch

from benchmarks.harness import linear, linear_contestants
from benchmarks.harness.linear_contestants import LINEAR_CONTESTANTS, LinearCell, LinearContestant
from xent import cli

pytestmark = pytest.mark.slow
HERE = ["xent", "xent, 60 % ignored", "xent, focal", "xent, smoothing", "torch", "torch, chunked"]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "linear.json"
    words = ["--shapes", "6,8,40", "--dtypes", "float32", "bfloat16", "--repeats", "3"]
    words += ["--threads", "1", "--no-memory", "--markdown", "--json", str(path)]
    assert cli.main(["bench", "linear", *words]) == 0
    return json.loads(path.read_text())


def test_every_contestant_takes_part_or_says_why_not(result):
    assert list(result["cells"][0]["contestants"]) + list(result["absent"]) == list(
        LINEAR_CONTESTANTS
    )
    assert set(HERE) <= set(result["cells"][0]["contestants"])
    assert all(result["absent"].values())


def test_the_figures_are_there_and_finite(result):
    for cell, dtype in zip(result["cells"], ("float32", "bfloat16"), strict=True):
        assert (cell["rows"], cell["features"], cell["classes"], cell["dtype"]) == (6, 8, 40, dtype)
        bare = cell["products"]
        assert list(bare) == list(dict.fromkeys([f"products, {dtype}", "products, float32"]))
        least = min(one["ms"] for one in bare.values())
        for name in HERE:
            entry = cell["contestants"][name]
            assert len(entry["ms_all"]) == 3
            assert sorted(entry["ms_all"])[1] == entry["ms"] > 0
            assert entry["ratio"] == pytest.approx(entry["ms"] / least)
            assert ("errors" in entry) == LINEAR_CONTESTANTS[name].plain
            found = entry.get("errors", {}).values()
            assert all(math.isfinite(error) for one in found for error in one.values())


def test_errors_of_xent_are_those_of_one_rounding(result):
    for cell in result["cells"]:
        eps = torch.finfo(getattr(torch, cell["dtype"])).eps
        found = cell["contestants"]["xent"]["errors"]["random"]
        assert found["loss"] < eps
        # A product of 40 terms in float32, and the rounding of the result.
        assert found["gradient"] < eps + 40 * torch.finfo(torch.float32).eps


def test_the_table(result):
    text = linear.cell_text(result["cells"][0])
    assert text.startswith("6, 8, 40 float32")
    assert all(name in text for name in HERE)
    rows = [r for r in linear.markdown(result).splitlines() if r.startswith("| 6, 8, 40")]
    assert len(rows) == sum(len(cell["contestants"]) for cell in result["cells"])
    busy = {**result["cells"][0], "others_busy": 1.5}
    assert "DISTURBED" in linear.cell_text(busy)


@pytest.mark.parametrize("sure", [False, True])
def test_the_truth_is_what_autograd_finds_in_float64(sure, monkeypatch):
    """Also on confident rows: a loss computed from odds has hardly any error."""

    def exact(h, w, y):
        z = h.double() @ w.double().T
        own = z.gather(1, y[:, None])
        return torch.exp(z - own).scatter(1, y[:, None], 0.0).sum(1).log1p().mean()

    make = linear_contestants.make_inputs
    monkeypatch.setattr(linear_contestants, "make_inputs", lambda cell, sure: make(cell, sure=sure))
    cell = LinearCell(6, 64, 30, "float64", "cpu")
    found = linear_contestants.errors(exact, cell)["sure" if sure else "random"]
    assert found["loss"] < 1e-14
    assert found["gradient"] < 1e-13
    h, w, y = make(cell, sure=sure)
    assert (exact(h, w, y).item() < 1e-6) == sure


def test_memory_is_measured_in_a_process_of_its_own(core):
    found = {"xent": {}, "torch": {}, "broken": {}}
    linear.measure_memory(LinearCell(4096, 16, 2000, "float32", "cpu"), found, 1)
    logits = 4096 * 2000 * 4
    assert found["torch"]["memory"] > logits  # the logits, and their gradient
    assert found["xent"]["memory"] < logits / 2  # 384 rows of them, and page faults of libraries
    assert found["broken"]["memory_failed"].startswith("KeyError")


def _broken(h, w, y):
    raise RuntimeError("no such luck\nand more")


def test_a_failing_contestant_is_reported_and_the_others_go_on(monkeypatch):
    broken = LinearContestant(lambda: _broken)
    monkeypatch.setitem(LINEAR_CONTESTANTS, "broken", broken)
    assert broken.unavailable("cpu") == "RuntimeError: no such luck"
    cell = LinearCell(3, 4, 5, "float32", "cpu")
    found = linear.measure_cell(cell, ["xent", "broken"], repeats=1)
    assert found["contestants"]["broken"] == {"failed": "RuntimeError: no such luck"}
    assert len(found["contestants"]["xent"]["ms_all"]) == 1
    assert "broken failed: RuntimeError: no such luck" in linear.cell_text(found)


def test_who_is_not_installed_says_so(monkeypatch):
    def load():
        import no_such_package  # noqa: F401

    reason = LinearContestant(load).unavailable("cpu")
    assert reason == "ModuleNotFoundError: No module named 'no_such_package'"


@pytest.mark.parametrize("words", [["--shapes", "5,6"], ["--shapes", "0,3,4"], ["--repeats", "x"]])
def test_arguments_that_make_no_sense(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "linear", *words])
    assert " is not " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["--json", "/no/such/folder/result.json"],
            "argument --json: '/no/such/folder/result.json'",
        ),
        (["--device", "nonsense"], "argument --device: PyTorch has no device 'nonsense' here"),
    ],
)
def test_what_is_refused_before_the_work(words, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "linear", *words])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


def test_the_default_grid_has_both_types():
    parser = __import__("argparse").ArgumentParser()
    linear.add_arguments(parser)
    cells = linear.cells_for(parser.parse_args([]))
    assert [c.dtype for c in cells] == ["float32"] * 4 + ["bfloat16"] * 4
    quick = linear.cells_for(parser.parse_args(["--quick"]))
    assert [c.dtype for c in quick] == ["float32", "bfloat16"]
    asked = linear.cells_for(parser.parse_args(["--shapes", "1,2,3", "--dtypes", "float16"]))
    assert asked == [LinearCell(1, 2, 3, "float16", "cpu")]
