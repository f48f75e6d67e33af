"""``xent play``, and losses of the user in commands: ``module:function``."""

import sys

import pytest

from xent.cli import main

MINE = '''
import xent

@xent.row_loss
def steep(s, power: float = 2.0):
    """Cross-entropy plus a power of the miss."""
    return s.miss**power - s.log_prob

@xent.element_loss
def squared(e):
    return e.residual**2

def of_logits(input, target):
    return input.square().sum()

number = 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Enter a folder with a module of losses, which is forgotten at the end."""
    (tmp_path / "my_own_losses.py").write_text(MINE)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_own_losses", None)


def test_the_page_is_one_file(folder, capsys):
    assert main(["play"]) == 0
    assert capsys.readouterr().out == "play.html\n"
    html = (folder / "play.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert 'START = ["cross_entropy", "focal_loss"]' in html


def test_it_begins_with_the_losses_named(folder):
    assert main(["play", "my_own_losses:steep:power=3", "focal:gamma=1", "--out", "a.html"]) == 0
    html = (folder / "a.html").read_text(encoding="utf-8")
    assert 'START = ["steep:power=3", "focal_loss:gamma=1"]' in html
    assert "from my_own_losses import steep" in html
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["my_own_losses:of_logits"], "of_logits is not for the playground: its body sees more"),
        (["my_own_losses:nothing"], "my_own_losses has no function 'nothing'"),
        (["my_own_losses:number"], "my_own_losses has no function 'number'"),
        (["broken_module:loss"], "broken_module cannot be imported: division by zero"),
        (["my_own_losses:steep:powr=1"], "no hyperparameter 'powr'; did you mean power?"),
        (["recall_loss"], "recall_loss is not for the playground: it compares the rows"),
        (["logit_adjusted:prior=[1,2]"], "leave `prior` out: the page has a field for each class"),
        (["focal:gamma=-1"], "`gamma` must be at least 0"),
        (["focal:gamma"], "'gamma' in 'focal:gamma' is no `name=value`"),
        (["focla"], "did you mean focal_loss?"),
        (["focal", "focal", "focal"], "one or two losses"),
        (["--out", "nowhere/a.html"], "--out nowhere/a.html: cannot be written"),
    ],
)
def test_what_cannot_be_shown_is_refused(folder, capsys, words, message):
    assert main(["play", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("xent play: ")
    assert message in error


def test_plot_draws_a_loss_of_the_user(folder, capsys):
    words = ["my_own_losses:steep", "my_own_losses:squared", "focal_loss"]
    assert main(["plot", *words, "--gamma", "0", "2", "--out", "a.svg"]) == 0
    assert (folder / "a.svg").read_text().count("</svg>") == 1
    assert main(["plot", "my_own_losses:steep:power=3", "my_own_losses:of_logits"]) == 0
    assert main(["plot", "my_own_losses:nothing"]) == 2
    assert "my_own_losses has no function 'nothing'" in capsys.readouterr().err
