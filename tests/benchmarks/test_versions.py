"""Two versions side by side: every line runs, and failures are named; never the speed."""

import sys
from pathlib import Path

import pytest

import xent
from benchmarks import versions
from benchmarks.harness.race import ContestantError, Plan

HERE = Path(xent.__file__).parents[1]
TINY = {2: (6, 9), 3: (3, 9, 9)}


@pytest.mark.parametrize("line", list(versions.LINES))
def test_every_line_runs(line):
    shape = TINY[len(versions.LINES[line][0][0])]
    found = versions.Cell(line, shape, "float32").steps()
    assert list(found) == ["call", "bare"]
    for step in found.values():
        step()


def test_the_cells_that_are_asked_for():
    found = [str(cell) for cell in versions.cells(["float32"], ["sparsemax_loss, flat"])]
    assert found == [
        "sparsemax_loss, flat rows, 512 x 32000 float32",
        "sparsemax_loss, flat rows, 4096 x 1024 float32",
    ]


@pytest.mark.slow
def test_this_version_beside_itself():
    plan = Plan(seconds=0.0, patience=0.0, repeats=3)
    cell = versions.Cell("cross_entropy", (6, 9), "float32")
    with versions.Version(HERE, 1) as before, versions.Version(HERE, 1) as now:
        found = versions.measure(cell, before, now, plan)
        assert {"before", "now", "bare"} <= set(found)
        assert "cross_entropy, 6 x 9 float32" in str(versions.table([found]))
        wrong = versions.measure(cell._replace(line="no such line"), before, now, plan)
        assert wrong["failed"] == dict.fromkeys(["before", "now"], "KeyError: 'no such line'")
        now.process.kill()
        now.process.wait()
        with pytest.raises(ContestantError, match="died"):
            now.ask(cell=cell)
    assert before.process.returncode == 0


def test_a_folder_without_the_package_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["versions", str(tmp_path)])
    with pytest.raises(SystemExit):
        versions.main()
    assert "must hold the earlier package" in capsys.readouterr().err
