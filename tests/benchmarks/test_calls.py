"""Tables of calls: their form, the pairs that are compared, README's tables; never the speed."""

import json
import sys

import pytest
import torch

from benchmarks import family, family_others, inputs, readme
from benchmarks.harness import calls, command
from benchmarks.harness.race import Plan
from xent.losses import distillation_loss

PROBLEMS = [
    (inputs.plain, inputs.middle(2, 5, 7, torch.float32)),
    (inputs.plain, inputs.transposed(9, 5, torch.float32)),
    (inputs.plain, inputs.padded(9, 5, torch.float32)),
    (inputs.kinds, inputs.rows(40, 11, torch.float32)),
]


def gradient_of(loss, z, y):
    leaf = z.detach().requires_grad_()
    value = loss(leaf, y)
    return value.detach(), *torch.autograd.grad(value, leaf)


@pytest.mark.parametrize(("pairs", "problem"), PROBLEMS)
def test_both_calls_of_a_pair_compute_the_same(pairs, problem):
    for pair in pairs(problem):
        ours, theirs = (
            gradient_of(loss, problem.logits, pair.target) for loss in (pair.ours, pair.theirs)
        )
        torch.testing.assert_close(ours, theirs, msg=lambda text, pair=pair: f"{pair.name}: {text}")


def test_layouts_are_what_their_names_say():
    assert inputs.transposed(9, 5, torch.float32).logits.stride() == (1, 9)
    assert inputs.padded(9, 5, torch.float32).logits.stride() == (69, 1)
    assert inputs.middle(2, 5, 7, torch.float32).logits.shape == (2, 5, 7)


@pytest.mark.parametrize("divergence", list(family_others.DIVERGENCES))
def test_the_textbook_divergences_are_those_of_xent(divergence):
    z, teacher = torch.randn(2, 30, 11)
    ours = distillation_loss(z, teacher, temperature=2.0, divergence=divergence)
    torch.testing.assert_close(family_others.DIVERGENCES[divergence](z, teacher), ours)


def test_losses_of_whole_rows_have_a_table_of_their_own():
    dense = family.members("classes", 11, dense=True)
    assert {"sparsemax_loss", "entmax_loss", "bi_tempered_loss"} <= set(dense)
    assert not set(dense) & set(family.members("classes", 11))


def _broken():
    raise RuntimeError("no such luck\nand more")


@pytest.fixture
def cell():
    """Two lines, one with a rival that fails."""
    z = torch.randn(30, 11)
    steps = {
        ("first", "xent"): lambda: z.exp(),
        ("first", "rival"): _broken,
        ("second", "xent"): lambda: z.log(),
        ("second", "other"): lambda: z.sum(),
    }
    plan = Plan(seconds=0.0, patience=0.0, repeats=3)
    return command.measure(command.Cell("30 x 11 float32", steps, z), plan)


def test_figures_of_a_table(cell):
    assert list(cell["rows"]) == ["first", "second"]
    ours, other = cell["rows"]["second"]["xent"], cell["rows"]["second"]["other"]
    low, high = ours["ms_quartiles"]
    assert 0 < low <= ours["ms"] <= high
    assert ours["rounds"] == 3
    assert ours["ns"] == pytest.approx(1e6 * ours["ms"] / 330)
    assert ours["copies"] == pytest.approx(ours["ms"] / cell["copy"]["ms"])
    assert other["ratio"] == pytest.approx(other["ms"] / ours["ms"])
    json.dumps(cell)


def test_the_text_of_a_table(cell):
    text = calls.text(cell)
    assert "first, rival failed: RuntimeError: no such luck" in text
    assert calls.rivals([cell]) == ["other"]
    cell["rows"]["second"]["other"]["ratio"] = 0.5
    assert calls.slower([cell]) == ["30 x 11 float32, second: other 0.50x"]
    assert "0.50x LOSS" in calls.text(cell)
    cell["why"] = {"second": "it does more"}
    assert calls.slower([cell]) == ["30 x 11 float32, second: other 0.50x, because it does more"]


def test_the_command_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    def cells(dtypes, spread):
        assert spread == 1
        for dtype in dtypes:
            z = torch.randn(3, 4).to(getattr(torch, dtype))
            yield command.Cell(f"3 x 4 {dtype}", {("line", "xent"): lambda z=z: z.exp()}, z)

    path = tmp_path / "found.json"
    words = ["--json", str(path), "--patience", "0", "--threads", "1", "--only", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["x", *words])
    threads = torch.get_num_threads()
    try:
        assert command.run("A purpose: more.", "x", cells, 0.0) == 0
    finally:
        torch.set_num_threads(threads)
    assert [c["name"] for c in json.loads(path.read_text())["cells"]] == ["3 x 4 bfloat16"]
    assert "nowhere slower" in capsys.readouterr().out


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_the_tables_of_the_pages_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert {block[2] for block in readme.BLOCK.finditer(text)} <= {*readme.TABLES, *readme.MODELS}
    assert readme.BLOCK.search(text)
    assert readme.with_tables(text) == text
