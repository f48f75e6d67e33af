"""``xent bench``: the structure of its output and the size of the errors; never the speed."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks.harness import contestants, logits, memory
from benchmarks.harness.contestants import CONTESTANTS, Cell, Contestant
from benchmarks.harness.race import ContestantError, Plan
from benchmarks.harness.report import cell_text, in_one_line, markdown, memory_text, verdict
from benchmarks.harness.worker import Workbench, Worker
from xent import cli
from xent.commands import bench


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """One run on tiny shapes, with the contestants that are always there and need no compiler."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    words = ["--shapes", "5,7", "300,40", "--dtypes", "float32", "bfloat16", "--repeats", "3"]
    words += ["--contestants", "torch", "copy", "--threads", "1", "--no-memory"]
    words += ["--patience", "0"]
    assert cli.main(["bench", *words, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_the_json_says_where_it_was_measured(result):
    machine = result["machine"]
    assert machine["threads"] == 1
    assert machine["cpu"]
    assert {"python", "torch"} <= set(machine["versions"])
    assert result["absent"] == {}


def test_the_json_has_every_cell_and_contestant(result):
    cells = [(c["rows"], c["classes"], c["dtype"]) for c in result["cells"]]
    shapes = [(5, 7), (300, 40)]
    assert cells == [(*shape, dtype) for shape in shapes for dtype in ("float32", "bfloat16")]
    for cell in result["cells"]:
        assert list(cell["contestants"]) == ["xent", "torch", "copy"]
        assert not any("failed" in entry for entry in cell["contestants"].values())


def test_times_are_medians_of_the_rounds(result):
    for cell in result["cells"]:
        for name, entry in cell["contestants"].items():
            for mode in ("both",) if name == "copy" else ("both", "forward"):
                time = entry[mode]
                low, high = time["ms_quartiles"]
                assert len(time["ms_all"]) == 3
                assert 0 < low <= time["ms"] == sorted(time["ms_all"])[1] <= high
                assert time["copies"] > 0
                elements = cell["rows"] * cell["classes"]
                assert time["ns"] == pytest.approx(1e6 * time["ms"] / elements)
        ours, theirs = (cell["contestants"][name]["both"] for name in ("xent", "torch"))
        assert ours["ratio"] == 1
        assert theirs["ratio"] == pytest.approx(theirs["ms"] / ours["ms"])


@pytest.mark.parametrize("batch", ["random", "confident"])
def test_errors_of_xent_are_within_its_contract(result, batch):
    for cell in result["cells"]:
        found = cell["contestants"]["xent"]["errors"][batch]
        eps = torch.finfo(getattr(torch, cell["dtype"])).eps
        assert found["loss_ulps"] < 4
        # 4 ulp, and half of one per nat below the largest logit, which is at most 8 of them here.
        assert found["gradient"] < 8 * eps
        assert found["target_entry"] < 8 * eps


def test_the_confident_batch_shows_what_torch_loses(result):
    for cell in result["cells"]:
        found = cell["contestants"]["torch"]["errors"]
        assert found["random"]["loss_ulps"] < 8
        assert found["confident"]["target_entry"] == 1  # the true entry is not 0, the one found is
        assert "errors" not in cell["contestants"]["copy"]


def test_tables(result):
    for cell in result["cells"]:
        text = cell_text(cell)
        assert all(word in text for word in ("xent", "torch", "copy", "loss/ulp", "at target"))
    table = markdown(result)
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 2 + 4
    assert "of 8 comparisons" in verdict(result["cells"])
    assert "too small" in memory_text(result["cells"])


def test_a_loss_is_called_a_loss(result):
    cell = json.loads(json.dumps(result["cells"][0]))
    cell["contestants"]["torch"]["forward"]["ratio"] = 0.5
    assert "0.50x LOSS" in cell_text(cell)
    assert "5 x 7 float32, forward: torch 0.50x" in verdict([cell])
    assert "**0.50**" in markdown({**result, "cells": [cell]})


def test_a_busy_machine_is_reported(result):
    cell = {**result["cells"][0], "others_busy": 1.5}
    assert "DISTURBED" in cell_text(cell)
    assert "busy" in verdict([cell])
    assert "busy" in markdown({**result, "cells": [cell]})


# -- the truth -------------------------------------------------------------------------------------


@pytest.mark.parametrize("confident", [False, True])
def test_the_truth_is_what_autograd_finds_in_float64(confident):
    logits, target = contestants.make_inputs(Cell(6, 9, "float32"), confident=confident)
    leaf = logits.double().requires_grad_()
    odds = torch.exp(leaf - leaf.gather(1, target[:, None])).scatter(1, target[:, None], 0.0)
    expected = odds.sum(1).log1p().mean()
    (gradient,) = torch.autograd.grad(expected, leaf)
    loss, found = contestants.truth(logits, target)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=0)
    if confident:
        assert loss.item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-5)


# -- failures --------------------------------------------------------------------------------------


def _broken(logits, target):
    raise RuntimeError("no such luck\nand more")


def test_a_contestant_that_fails_is_reported_and_the_others_go_on(monkeypatch):
    class Here(Worker):
        """A worker that answers in this process, for contestants unknown to other processes."""

        def send(self, method, *arguments):
            if not hasattr(self, "bench"):
                self.bench = Workbench(CONTESTANTS[self.name])
            self.request = method, arguments

        def receive(self):
            method, arguments = self.request
            try:
                return getattr(self.bench, method)(*arguments)
            except RuntimeError as error:
                raise ContestantError(in_one_line(error)) from None

    monkeypatch.setitem(CONTESTANTS, "broken", Contestant(_broken, (), "fails"))
    workers = {name: Here(name, 1) for name in ("xent", "broken")}
    plan = Plan(seconds=1.0, patience=0.0, repeats=2)
    found = logits.measure_cell(Cell(3, 4, "float32"), workers, ("both",), plan)
    assert found["contestants"]["broken"] == {"failed": "RuntimeError: no such luck"}
    assert len(found["contestants"]["xent"]["both"]["ms_all"]) == 2
    assert "broken failed: RuntimeError: no such luck" in cell_text(found)


def test_a_worker_that_dies_is_reported_and_starts_again():
    worker = Worker("copy", 1)
    try:
        worker.ask("prepare", Cell(2, 3, "float32"), ("both",))
        worker._process.kill()
        with pytest.raises(ContestantError, match="exit code -9"):
            worker.ask("seconds", "both", 1)
        assert worker.ask("prepare", Cell(2, 3, "float32"), ("both",)) == ("both",)
    finally:
        worker.close()


def test_a_contestant_that_is_not_installed_is_left_out(monkeypatch):
    build = CONTESTANTS["torch"].build
    monkeypatch.setitem(CONTESTANTS, "absent", Contestant(build, ("no_such_package",), ""))
    names, absent = logits.who_takes_part(["absent", "copy"])
    assert names == ["xent", "copy"]
    assert absent == {"absent": "not installed: no_such_package"}


@pytest.mark.parametrize("words", [["--shapes", "5"], ["--shapes", "0,3"], ["--repeats", "x"]])
def test_arguments_that_make_no_sense(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", *words])
    assert " is not " in capsys.readouterr().err


def test_a_json_path_without_folder_is_refused_before_the_work(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--json", str(tmp_path / "no" / "result.json")])
    assert stopped.value.code == 2
    assert "no folder" in capsys.readouterr().err


# -- the checkout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["linear"]])
def test_without_a_checkout_one_line_says_where_the_benchmarks_are(
    words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xent bench: the benchmarks come with the repository")
    assert "pip download" in line


def test_the_installed_command_finds_the_checkout_it_is_run_in(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--help"])
    assert stopped.value.code == 0
    assert "--patience" in capsys.readouterr().out


def test_only_one_module_reads_what_is_private():
    """The benchmarks use public names, as users do; only `internals` reads private ones."""
    root = Path(logits.__file__).parents[1]
    private = re.compile(
        r"^\s*(?:from|import) xent\.(?!losses |policy |learn |nn |information |integrations\b)",
        re.M,
    )
    files = {file.relative_to(root).as_posix() for file in root.rglob("*.py")}
    found = {name for name in files if private.search((root / name).read_text())}
    assert found == {"harness/internals.py"}


# -- memory ----------------------------------------------------------------------------------------


def test_the_peak_is_found_even_if_it_is_gone():
    size = 64 << 20

    def peak() -> None:
        block = torch.ones(size // 4)
        del block

    found = memory.peak_beyond_now(peak)
    assert size * 0.9 < found < size * 1.5


def test_a_worker_measures_its_memory():
    worker = Worker("xent", 1)
    try:
        worker.ask("prepare", Cell(4096, 1000, "float32"), contestants.MODES)
        found = worker.ask("memory")
    finally:
        worker.close()
    logits = 4096 * 1000 * 4
    assert found["forward"] < logits / 2  # one number per row or so
    assert logits * 0.9 < found["both"] < logits * 1.5  # the gradient
