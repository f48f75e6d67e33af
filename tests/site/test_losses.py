"""The pages of the losses and the page that says which loss to take."""

import re

import pytest

pytest.importorskip("sphinx")
pytest.importorskip("matplotlib")

from tests.site.sources import DOCS
from xent.losses import CATALOG

import loss_pages  # isort: skip
import loss_pictures
import loss_tables

WHICH = (DOCS / "which-loss.md").read_text(encoding="utf-8")
TABLES = re.findall(r"```\{losses\}\n(.*?)```", WHICH, re.DOTALL)
MEASURED = [
    (experiment, len(columns.split(",")), row.partition(": ")[0])
    for experiment, columns, rows in re.findall(
        r"```\{measured\} (\w+)\n:columns: ([^\n]*)\n(.*?)```", WHICH, re.DOTALL
    )
    for row in rows.splitlines()
]


def test_the_decision_page_leads_to_every_loss():
    listed = {name for table in TABLES for name in table.split()}
    assert not set(CATALOG) - listed
    beside = {path.removeprefix("xent.") for paths in loss_pages.BESIDE.values() for path in paths}
    assert listed - set(CATALOG) == beside
    for name in listed:
        assert loss_tables.use(loss_tables.function_of(name))


@pytest.mark.parametrize(("experiment", "columns", "label"), MEASURED)
def test_a_measured_row_has_its_figures(experiment, columns, label):
    cells = loss_tables.measured(experiment, label)
    assert len(cells) >= columns
    assert all(re.match(r"\d", cell) for cell in cells[:columns])


def test_the_decision_page_measures():
    assert {experiment for experiment, _, _ in MEASURED} == {
        "evolved_losses", "imbalance", "label_noise", "multilabel",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no line"):
        loss_tables.measured("imbalance", "no such loss")


def test_figures_in_the_text_are_those_of_the_experiments():
    (before, after) = re.search(r"from ([\d.]+) to ([\d.]+)\.", WHICH).groups()
    assert f"error {before} -> {after}" in (DOCS / "experiments/calibration.txt").read_text()
    told = (DOCS / "experiments/multilabel.txt").read_text()
    assert "less than 35 %" in WHICH
    assert "holds: every softmax matches less than 0.35" in told
    assert "three quarters" in WHICH
    assert "holds: every sigmoid loss matches more than 0.75 of the digits" in told


@pytest.mark.parametrize("name", CATALOG)
def test_every_loss_has_a_page(name):
    page = loss_pages.page(name, "" if name in loss_pictures.WITHOUT else "a picture")
    assert page.startswith(f"# {name}\n")
    assert f".. autofunction:: xent.losses.{name}\n" in page
    assert "; not " in page
    assert (":alt: a picture" in page) != ("*No picture.*" in page)
    others = re.findall(r"\]\(/?(?:losses/)?(\w+)\.md\)", page)
    assert set(others) <= set(CATALOG)


def test_the_page_says_once_when_to_take_the_loss():
    lines = CATALOG["focal_loss"].function.__doc__.split("\n")
    assert "Use:" in lines
    loss_pages.without_use(None, "function", "xent.losses.focal_loss", None, None, lines)
    assert "Use:" not in lines
    assert lines[lines.index("Args:") - 1] == ""
    assert not any(line.startswith("    When easy") for line in lines)


def test_the_gallery_has_a_card_for_every_loss():
    page = loss_pages.gallery(set(CATALOG) - set(loss_pictures.WITHOUT))
    assert sorted(re.findall(r":link: (\w+)\n", page)) == sorted(CATALOG)
    listed = page.partition(":maxdepth: 1")[2].replace("`", "").split()
    assert listed == re.findall(r":link: (\w+)\n", page)
    rooms = [room for rooms in loss_pages.GROUPS.values() for room in rooms]
    assert sorted(rooms) == sorted({member.room for member in CATALOG.values()})


def test_losses_without_a_picture_are_few():
    assert len(loss_pictures.WITHOUT) <= 4
    assert set(loss_pictures.WITHOUT) <= set(CATALOG)


@pytest.mark.parametrize("name", ["focal_loss", "cox_loss"])
def test_a_picture_is_light_and_dark_and_told(name):
    drawings, alt = loss_pictures.picture(name)
    assert {*drawings} == {"light", "dark", "thumb-light", "thumb-dark"}
    assert all(svg.count("<svg") == 1 and len(svg) < 60_000 for svg in drawings.values())
    assert drawings["light"] != drawings["dark"]
    assert name in alt
    assert re.search(r"the loss is [\d.e-]+ at", alt)
