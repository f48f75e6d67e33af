"""Pictures: the drawn numbers are those of the losses; other requests are refused."""

import doctest
import inspect
import math
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import xent
import xent.plot
from tests.registry import REGISTRY
from xent.cli import main
from xent.losses import CATALOG
from xent.plot.loss_names import hyperparameters, make_curve, read_curve

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.figure import Figure

from xent.plot import binary_terms, jacobian, loss_curves, reliability
from xent.plot.canvas import COLORS, STYLE

DRAWN = [name for name, member in CATALOG.items() if member.targets != "other"]


def lines(ax):
    """Return the curves that have a name."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("name", xent.plot.__all__)
def test_every_picture_is_explained(name):
    function = getattr(xent.plot, name)
    doc = inspect.getdoc(function)
    assert all(f"{p.name}:" in doc for p in inspect.signature(function).parameters.values())
    assert doctest.DocTestParser().get_examples(doc)


# ---- loss curves ----------------------------------------------------------------------------


def test_cross_entropy_over_the_probability():
    value, slope = loss_curves("cross_entropy")
    p, loss = map(torch.tensor, lines(value)["cross_entropy"].get_data())
    torch.testing.assert_close(loss, -p.log(), rtol=1e-9, atol=1e-9)
    p, gradient = map(torch.tensor, lines(slope)["cross_entropy"].get_data())
    torch.testing.assert_close(gradient, p - 1, rtol=1e-9, atol=1e-9)
    assert value.get_xlabel() == "probability of the target"
    assert value.get_ylabel() == "loss (nats)"
    assert value.get_title() == "loss of a row"


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["energy_loss"], "loss"),  # a square
        (["baikal_loss"], "loss"),  # with the inverse of a probability
        (["sparsemax_loss"], "loss"),  # squares of logits
        (["brier_loss"], "loss"),
        (["entropy_loss"], "loss (nats)"),  # bounded, but a logarithm
        (["logit_norm_loss"], "loss (nats)"),
        (["sigmoid_focal_loss"], "loss (nats)"),
        (["cross_entropy", "mae_loss"], "loss"),  # no unit is that of both
    ],
    ids=lambda x: "+".join(x) if isinstance(x, list) else None,
)
def test_the_axis_has_a_unit_only_where_all_losses_are_in_nats(names, label):
    value, _ = loss_curves(*names)
    assert value.get_ylabel().removesuffix(", logarithmic far from 0") == label


def test_several_settings_of_one_loss_over_the_log_odds():
    value, slope = loss_curves("focal:gamma=0", "focal_loss:gamma=2", over="log-odds")
    assert texts(value) == ["focal_loss, gamma=0", "focal_loss, gamma=2"]
    d, loss = map(torch.tensor, lines(value)["focal_loss, gamma=2"].get_data())
    expected = torch.sigmoid(-d) ** 2 * torch.nn.functional.softplus(-d, threshold=50)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    styles = {(line.get_color(), line.get_linestyle()) for line in lines(slope).values()}
    assert len(styles) == 2


def test_what_depends_on_the_other_classes_says_how_they_are_filled():
    value, _ = loss_curves("cross_entropy:label_smoothing=0.2", classes=5)
    assert value.get_title() == "loss of a row, 5 classes, the others equally likely"
    p, loss = map(torch.tensor, lines(value)["cross_entropy, label_smoothing=0.2"].get_data())
    smooth = -(p.log() + 4 * ((1 - p) / 4).log()) / 5
    torch.testing.assert_close(loss, -0.8 * p.log() + 0.2 * smooth, rtol=1e-9, atol=1e-9)


def test_vectors_set_the_number_of_classes():
    value, _ = loss_curves("logit_adjusted:prior=[8,1,1]")
    title = "loss of a row of class 0, 3 classes, the others equally likely"
    assert value.get_title() == title
    assert texts(value) == ["logit_adjusted_loss, prior=[8, 1, 1]"]
    with pytest.raises(ValueError, match="different numbers of classes"):
        loss_curves("logit_adjusted:prior=[1,1]", "logit_adjusted:prior=[1,1,1]")


def test_class_weights_count():
    value, _ = loss_curves("cross_entropy:weight=[3,1]")
    p, loss = map(torch.tensor, next(iter(lines(value).values())).get_data())
    torch.testing.assert_close(loss, -3 * p.log(), rtol=1e-9, atol=1e-9)


def test_functions_partials_modules_and_axes():
    from matplotlib.figure import Figure

    axes = Figure().subplots(1, 2)

    def doubled(input, target):
        return 2 * xent.cross_entropy(input, target)

    losses = (doubled, partial(xent.losses.focal_loss, gamma=0.5), xent.nn.FocalLoss(gamma=3.0))
    drawn = loss_curves(*losses, axes=axes)
    assert drawn[0] is axes[0]
    assert drawn[1] is axes[1]
    assert texts(axes[0]) == ["doubled", "focal_loss, gamma=0.5", "FocalLoss(gamma=3.0)"]


@pytest.mark.parametrize("name", DRAWN)
def test_every_loss_of_single_rows_has_a_curve(name, monkeypatch):
    monkeypatch.setattr("xent.plot.family.POINTS", 17)
    function, classes = CATALOG[name].function, 4
    arguments = REGISTRY[name].arguments(classes)
    if arguments:
        function = partial(function, **arguments)
    value, slope = loss_curves(function, classes=classes)
    for ax in (value, slope):
        (line,) = lines(ax).values()
        assert all(map(math.isfinite, line.get_ydata()))


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], {}, "at least one loss"),
        (["focl"], {}, "no loss 'focl'; did you mean focal_loss"),
        (["focal:gama=2"], {}, "no hyperparameter 'gama'; did you mean gamma"),
        (["focal:2"], {}, "'2' in 'focal:2' is no `name=value`"),
        (["focal:gamma=-1"], {}, "`gamma` must be at least 0, got -1"),
        (["hardest_loss"], {}, "hardest_loss has no curve"),
        (["focal"], {"over": "logit"}, "`over` must be"),
        (["focal"], {"target": 0.5}, "`target` is for sigmoid losses"),
        (["focal"], {"classes": 1}, "`classes` must be at least 2"),
        (["focal:weight=[1,2]"], {"classes": 3}, "one number for each of the 3 classes"),
    ],
)
def test_what_cannot_be_drawn(words, options, message):
    with pytest.raises(ValueError, match=message):
        loss_curves(*words, **options)


def test_names_and_values():
    assert read_curve("focal-loss: gamma = 2").label == "focal_loss, gamma=2"
    assert (
        read_curve("focal:gamma=2,weight=[1,2.5]").label == "focal_loss, gamma=2, weight=[1, 2.5]"
    )
    assert make_curve(xent.cross_entropy).label == "cross_entropy"
    assert "gamma" in hyperparameters(xent.losses.focal_loss)
    assert not {"input", "target", "engine"} & set(hyperparameters(xent.losses.focal_loss))


# ---- diagrams -------------------------------------------------------------------------------


def test_binary_terms():
    ax = binary_terms(0.25)
    first, second, total, least = ax.lines
    p = torch.tensor(total.get_xdata())
    torch.testing.assert_close(torch.tensor(first.get_ydata()), -0.25 * p.log())
    torch.testing.assert_close(torch.tensor(second.get_ydata()), -0.75 * torch.log1p(-p))
    bce = torch.nn.functional.binary_cross_entropy(p, torch.full_like(p, 0.25), reduction="none")
    torch.testing.assert_close(torch.tensor(total.get_ydata()), bce)
    assert list(least.get_xdata()) == [0.25]
    assert least.get_ydata()[0] <= min(total.get_ydata())
    with pytest.raises(ValueError, match="between 0 and 1"):
        binary_terms(2)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_binary_terms_of_a_label(target):
    _, _, total, least = binary_terms(target).lines
    assert all(map(math.isfinite, total.get_ydata()))
    assert list(least.get_ydata()) == [0.0]


def test_reliability():
    table = SimpleNamespace(
        edges=torch.tensor([0.0, 0.5, 0.75, 1.0]),
        confidence=torch.tensor([0.4, math.nan, 0.9]),
        accuracy=torch.tensor([0.5, math.nan, 0.7]),
        count=torch.tensor([20, 0, 80]),
        ece=0.18,
    )
    ax = reliability(table)
    bars = [container.patches for container in ax.containers]
    assert [bar.get_height() for bar in bars[0]] == pytest.approx([0.5, 0.7])
    assert [bar.get_x() for bar in bars[0]] == pytest.approx([0.0, 0.75])
    assert [bar.get_height() for bar in bars[1]] == pytest.approx([-0.1, 0.2])
    assert "0.180" in ax.get_title()
    assert any("100 predictions" in text for text in texts(ax))


def test_reliability_of_what_calibration_measures():
    from xent.learn import calibration

    logits, target = torch.randn(200, 5), torch.randint(5, (200,))
    table = calibration.reliability(logits, target, bins=10)
    ax = reliability(table)
    assert len(ax.containers[0].patches) == int((table.count > 0).sum())


def test_jacobian():
    z = torch.tensor([2.0, 1.0, 0.0])
    ax = jacobian(z)
    drawn = torch.tensor(ax.images[0].get_array().tolist())
    torch.testing.assert_close(drawn, xent.softmax_jacobian(z))
    assert len(ax.texts) == 9
    assert not jacobian(torch.randn(30)).texts
    with pytest.raises(ValueError, match="one row of logits"):
        jacobian(torch.randn(2, 3))


# ---- the command ----------------------------------------------------------------------------


def test_the_command_draws_each_combination(tmp_path, capsys):
    out = tmp_path / "focal.svg"
    words = ["focal", "cross_entropy", "--gamma", "0.5", "2", "--out", str(out)]
    assert main(["plot", *words]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "<svg" in out.read_text()


@pytest.mark.parametrize("words", [["--terms", "0.3"], ["--jacobian=1,0,-1"], ["brier"]])
def test_the_command_writes_png(words, tmp_path):
    out = tmp_path / "picture.png"
    assert main(["plot", *words, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one or more losses"),
        (["focal", "--terms", "0.3"], "one of the three"),
        (["focl"], "did you mean focal_loss"),
        (["focal", "--gamma", "-1"], "`gamma` must be at least 0"),
        (["focal", "--scale", "3"], "none of the losses has the hyperparameter 'scale'"),
        (["--jacobian", "1,x"], "expected numbers between commas"),
        (["focal", "--out", "/nowhere/x.png"], "No such file or directory"),
        (["focal", "--out", "x.bmpx"], "not supported"),
    ],
)
def test_the_command_refuses(words, message, capsys):
    assert main(["plot", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("xent plot: ")
    assert message in error


def test_importing_the_pictures_does_not_import_matplotlib():
    code = "import sys, xent.plot, xent.commands.plot; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the style ----------------------------------------------------------------------------------


def test_the_colours_are_those_of_the_style():
    style = matplotlib.rc_params_from_file(STYLE, use_default_template=False)
    assert tuple(style["axes.prop_cycle"].by_key()["color"]) == COLORS


def test_a_picture_has_the_style_unless_the_caller_gives_axes():
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever style another test has set
        before = dict(matplotlib.rcParams)
        own = jacobian(torch.tensor([2.0, 1.0]))
        given = jacobian(torch.tensor([2.0, 1.0]), Figure().subplots())
        assert dict(matplotlib.rcParams) == before
    assert own.spines["left"].get_edgecolor() == (0.6, 0.6, 0.6, 1.0)
    assert given.spines["left"].get_edgecolor() == (0.0, 0.0, 0.0, 1.0)
