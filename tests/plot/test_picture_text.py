"""The user's names in pictures, and curves of different sizes in one picture."""

import warnings
from dataclasses import replace

import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib import font_manager

from xent.learn import mutual_information_from_logits
from xent.plot import confusion_matrix, curves, information, information_bars, learning_curves
from xent.plot.canvas import new_axes, rendered, shown
from xent.plot.family import loss_curves

ODD = [
    "$",
    "$$",
    "a$b$",
    r"\$",
    "_hidden",
    "a\nb",
    "\x1b[31m",
    "猫",
    "🐕",
    "%d",
    "x" * 300,
    "{}^_",
    "",
]


def drawn(text: str) -> str:
    """Return the characters that Matplotlib draws of a text; assert that none is a formula."""
    from matplotlib.text import Text

    ax = new_axes(2, 2)[0]
    found, formula = Text(text=text, figure=ax.figure)._preprocess_math(text)
    assert formula is False
    return found


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_drawn_letter_for_letter(name):
    text = drawn(shown(name)).removeprefix(" ")
    if name in ("$", "$$", "a$b$", r"\$", "_hidden", "%d", "{}^_", ""):
        assert text == name
    assert not shown(name).startswith("_")
    assert len(shown(name)) < 60
    assert text.isprintable()


def test_names_in_the_middle_are_cut():
    assert shown("a" * 30 + "b" * 30, 10) == "aaaaa…bbbbb"


def test_no_picture_reads_a_formula_or_warns():
    y = torch.arange(len(ODD)).repeat(3)
    found = mutual_information_from_logits(torch.eye(len(ODD))[y], y)
    found = replace(found, classes=ODD)
    record = {
        "settings": {"head": "xent"},
        "history": {"loss": [1.0], "seconds": [1.0], "validation": []},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = [
            confusion_matrix(torch.eye(len(ODD)), ODD),
            information(found),
            information_bars(dict.fromkeys(ODD, found)),
            learning_curves({name: [1.0, 2.0] for name in ODD}),
            curves([record] * len(ODD), labels=ODD),
        ]
        for ax in pictures:
            assert rendered(ax.figure).startswith(b"\x89PNG")
    bars = pictures[2]
    assert len({round(y) for y in bars.lines[0].get_ydata()}) == len(ODD)  # of equal names as well


def test_letters_that_no_font_has_can_be_told_apart():
    assert shown("a\U0002ebef") == "a\\U0002ebef"
    assert shown("größe é") == "größe é"


def test_letters_of_another_font_are_drawn_in_it():
    """An installed font has letters that Matplotlib's own font lacks."""
    own = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    entries = (e for e in font_manager.fontManager.ttflist if not e.name.startswith("Last"))
    fonts = [font_manager.get_font(entry.fname) for entry in entries]
    others = set().union(*(font.get_charmap() for font in fonts if font.scalable))
    lacking = sorted(others - set(own.get_charmap()))
    character = next((chr(c) for c in lacking if c > 127 and chr(c).isalpha()), None)
    if character is None:
        pytest.skip("no other font has more letters")
    assert shown(character) == character
    ax = new_axes(2, 2)[0]
    ax.set_xticks([0], [shown(character)])
    rendered(ax.figure)
    assert len(ax.get_xticklabels()[0].get_family()) > 1


def test_curves_of_unlike_sizes_can_all_be_read():
    """Each curve beside a much larger one takes at least a tenth of its height."""
    for over in ("prob", "log-odds"):
        names = "cross_entropy", "cosface_loss", "normalized_cross_entropy"
        for ax in loss_curves(*names, over=over):
            assert ax.get_yscale() == "asinh"
            assert "logarithmic" in ax.get_ylabel()
            low, high = ax.transData.transform([(0, end) for end in ax.get_ylim()])[:, 1]
            for line in ax.lines[: len(names)]:
                heights = ax.transData.transform(line.get_xydata())[:, 1].clip(low, high)
                assert heights.max() - heights.min() > 0.1 * (high - low)
            labels = [label.get_text() for label in ax.get_yticklabels()]
            assert "0" in labels
            assert len(labels) < 15
    assert all(ax.get_yscale() == "linear" for ax in loss_curves("cross_entropy", "focal_loss"))
