"""Descriptions of the project: the drawing of its rooms, and ``xent losses``."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest
import torch

import xent
from xent.cli import main
from xent.frames.docstrings import loss_docstring
from xent.losses import CATALOG, lookup
from xent.losses.lookup import members

DOCS = Path(__file__).parents[2] / "docs"


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_loss_has_a_formula():
    for name, member in CATALOG.items():
        assert ".. math::" in (member.function.__doc__ or ""), f"{name} has no formula"


def test_the_drawing_is_that_of_the_imports():
    drawn = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == script("architecture").picture(), "run python docs/architecture.py"


# ---- xent losses ----------------------------------------------------------------------------


def test_the_table_has_every_loss(capsys):
    assert main(["losses"]) == 0
    out = capsys.readouterr().out
    listed = {line.split()[0]: line for line in out.splitlines() if re.match(r"  \S", line)}
    assert set(CATALOG) == set(listed)
    assert listed["brier_loss"].endswith(
        "For probabilities, when no single row may cost without limit"
    )
    assert max(map(len, out.splitlines())) <= 120


def test_the_table_of_facts_has_every_loss(capsys):
    assert main(["losses", "--facts"]) == 0
    out = capsys.readouterr().out
    listed = {line.split()[0]: line for line in out.splitlines() if re.match(r"  \S", line)}
    assert set(CATALOG) == set(listed)
    assert "yes" in listed["brier_loss"]
    assert "squares" in listed["brier_loss"]
    assert max(map(len, out.splitlines())) <= 120


def test_the_facts_as_json(capsys):
    assert main(["losses", "--json"]) == 0
    facts = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(facts) == set(CATALOG)
    assert facts["cross_entropy"]["proper"] is True
    assert facts["mae_loss"]["symmetric"] is True
    assert "pc_softmax_loss" in facts["logit_adjusted_loss"]["aliases"]
    assert "which are for multilabel_cross_entropy." in facts["set_cross_entropy"]["use"]


@pytest.mark.parametrize("name", ["focal_loss", "focal", "Focal-Loss"])
def test_one_loss(name, capsys):
    assert main(["losses", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith("xent.losses.focal_loss(input, target")
    assert "\n    ℓ = -(1 - p)^γ log p\n" in out  # noqa: RUF001
    assert main(["losses", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "focal_loss"


def test_an_alias(capsys):
    assert main(["losses", "pc_softmax"]) == 0
    assert "also known as balanced_softmax_loss, pc_softmax_loss" in capsys.readouterr().out
    assert members()["pc_softmax_loss"].name == "logit_adjusted_loss"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("hinge", {"crammer_singer_loss", "weston_watkins_loss"}),
        ("Hinge-loss", {"crammer_singer_loss", "weston_watkins_loss"}),
        (
            "confusion matrix",
            {"forward_corrected_cross_entropy", "backward_corrected_cross_entropy"},
        ),
        ("survival", {"cox_loss", "continuation_loss"}),
        ("texts pairs", {"siglip_loss", "cosent_loss"}),
    ],
)
def test_words_of_the_field_find_losses(words, names, capsys):
    assert main(["losses", *words.split()]) == 0
    out = capsys.readouterr().out
    assert {
        line.partition(":")[0] for line in out.splitlines() if re.match(r"\w+: ", line)
    } == names
    assert main(["losses", words, "--json"]) == 0
    assert {facts["name"] for facts in json.loads(capsys.readouterr().out)} == names


@pytest.mark.parametrize("words", ["mse", "squared error", "MSE loss"])
def test_a_term_for_one_loss_explains_it(words, capsys):
    assert main(["losses", words]) == 0
    assert capsys.readouterr().out.startswith("xent.losses.brier_loss(")


def test_terms_name_losses():
    names = {name for chosen in lookup.TERMS.values() for name in chosen}
    assert names <= set(CATALOG)
    assert not lookup.TERMS.keys() & lookup.NOT_HERE.keys()


def test_a_loss_of_others_is_said_to_be_one(capsys):
    assert main(["losses", "exponential"]) == 2
    told = capsys.readouterr().err
    line = re.search(r"def exponential_loss.*\(\)", told)[0]
    names = {}
    exec(line, names)  # the two lines, as a user would write them
    loss = xent.row_loss(names["exponential_loss"])
    z = torch.tensor([[0.3, -1.1]], dtype=torch.float64)
    # With two classes and a margin F = (z0 - z1) / 2 the loss is exp(-F).
    assert loss(z, torch.tensor([0])).item() == pytest.approx(math.exp(-0.7), rel=1e-12)


def test_an_unknown_loss(capsys):
    assert main(["losses", "crossentropy"]) == 2
    assert "did you mean cross_entropy" in capsys.readouterr().err
    assert main(["losses", "bceww"]) == 2  # first letters, or a part
    assert "did you mean" not in capsys.readouterr().err
    assert main(["losses", "bcewl"]) == 2
    assert "binary_cross_entropy_with_logits" in capsys.readouterr().err


def test_a_loss_of_all_logits_says_that_it_takes_probabilities():
    for loss in (xent.losses.sparsemax_loss, xent.losses.bi_tempered_loss):
        assert "or class probabilities in the shape of ``input``" in (loss.__doc__ or "")


def test_a_loss_that_says_what_it_raises_keeps_its_words():
    doc = loss_docstring(_strict, ["input"], soft=True) or ""
    assert "KeyError: always." in doc
    assert doc.count("Raises:") == 1


def _strict(s):
    """A loss.

    Raises:
        KeyError: always.
    """
