"""``xent fit`` and the files that it saves classifiers in."""

import json
import math
import sys
import warnings
from datetime import date
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris, load_wine
from sklearn.linear_model import LogisticRegression as Theirs
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    log_loss,
    precision_score,
    roc_auc_score,
)
from sklearn.metrics import confusion_matrix as confusion
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import xent
from xent import cli
from xent._package import pip_install
from xent.commands.fit_report import largest
from xent.learn import LogisticRegression, SoftmaxRegression, load_model, save_model
from xent.learn.regression.saved_models import read_model

pa = pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")

from pyarrow import csv, parquet  # noqa: E402

from xent.plot import confusion_matrix  # noqa: E402

IRIS = load_iris(return_X_y=True)
FITTED = SoftmaxRegression(tol=1e-3).fit(*IRIS)
rng = np.random.default_rng(0)


# ---- models in files ----------------------------------------------------------------------------


def again(model, path):
    save_model(model, path / "model.json")
    return load_model(path / "model.json")


@pytest.mark.parametrize(
    "classes",
    [
        np.array([-1, 5]), np.array([1, 2, 3], np.int8), np.array([0.5, 1.5, 1e300]),
        np.array(["a", "with space", "ö"]), np.array(["no", "yes"], object),
        np.array([False, True]), np.array([0, 2**63], np.uint64),
    ],
    ids=lambda classes: str(classes.dtype),
)  # fmt: skip
def test_a_model_comes_back_bit_by_bit(classes, tmp_path):
    x = rng.normal(size=(60, 3)) * [1, 1e-9, 1e7]
    model = SoftmaxRegression(C=3)
    model.classes_ = classes  # as after a fit; scikit-learn refuses some of these classes
    model.n_features_in_, model.n_iter_, model.history_ = 3, 4, [1.1, 0.1 + 0.2]
    scores = 1 if len(classes) == 2 else len(classes)
    model.coef_, model.intercept_ = rng.normal(size=(scores, 3)), rng.normal(size=scores)
    back = again(model, tmp_path)
    assert back.get_params() == model.get_params()
    assert back.classes_.dtype == classes.dtype
    assert [type(one) for one in back.classes_.tolist()] == [type(one) for one in classes.tolist()]
    for name in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        assert (getattr(back, name)(x) == getattr(model, name)(x)).all()
    assert (back.n_iter_, back.history_) == (4, [1.1, 0.1 + 0.2])


def test_a_model_that_came_back_learns_on(tmp_path):
    x, y = IRIS
    model = SoftmaxRegression(C=2.5, tol=1e-9).fit(x[::2], y[::2])
    back = again(model, tmp_path)
    assert np.array_equal(back.precision_, model.precision_)
    assert np.array_equal(
        back.partial_fit(x[1::2], y[1::2]).coef_, model.partial_fit(x[1::2], y[1::2]).coef_
    )
    with pytest.raises(ValueError, match="4 features"):
        back.predict(x[:, :2])


@pytest.mark.parametrize(
    "parameters",
    [
        {"C": math.inf, "loss": xent.losses.brier_loss, "fit_intercept": False, "max_iter": 5},
        {"C": np.float64(0.1), "max_iter": np.int64(500), "solver": "lbfgs"},
        {
            "class_weight": {0: 1.0, 1: 2.0, 2: 0.5},
            "loss": partial(xent.losses.focal_loss, gamma=1.5),
        },
        {"loss": partial(xent.losses.logit_adjusted_loss, prior=torch.tensor([1.0, 2.0, 3.0]))},
    ],
)
def test_parameters_come_back(parameters, tmp_path):
    model = SoftmaxRegression(**parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # C=inf: the classes can be separated
        back = again(model.fit(*IRIS), tmp_path)
        loss, mine = back.loss, model.loss
        if isinstance(mine, partial):
            assert loss.func is mine.func
            assert str(loss.keywords) == str(mine.keywords)
        else:
            assert loss is mine or loss == mine
        coef = model.fit(*IRIS).coef_
        assert np.array_equal(back.fit(*IRIS).coef_, coef)  # fits the same again
    without = {key: v for key, v in model.get_params().items() if key != "loss"}
    assert {key: v for key, v in back.get_params().items() if key != "loss"} == without


def test_labels_that_do_not_exclude_each_other_come_back(tmp_path):
    x = rng.normal(size=(80, 4))
    y = (x[:, :2] + rng.normal(size=(80, 2)) > 0).astype(int)
    model = LogisticRegression().fit(x, y)
    back = again(model, tmp_path)
    assert np.array_equal(back.predict_proba(x), model.predict_proba(x))
    assert back.predict(x).shape == (80, 2)


def test_names_of_features_and_what_belongs_to_a_model_come_back(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(IRIS[0], columns=list("abcd"))
    model = SoftmaxRegression().fit(frame, IRIS[1])
    save_model(model, str(tmp_path / "m.json"), {"made of": ["a", 1, None]})
    back, about = read_model(tmp_path / "m.json")
    assert about == {"made of": ["a", 1, None]}
    assert np.array_equal(back.predict_proba(frame), model.predict_proba(frame))
    with pytest.raises(ValueError, match="feature names"):
        back.predict(frame.rename(columns={"a": "z"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "its format is 'other'"),
        ({"version": 2}, "its version is 2; this xent reads 1"),
        ({"class": "Pipeline"}, "no class 'Pipeline'"),
        ({"coef": None}, r"`coef` has the shape \(\), wanted \(3, 4\)"),
        ({"coef": [[1.0] * 4] * 2}, r"shape \(2, 4\), wanted \(3, 4\)"),
        ({"coef": [[1.0] * 4, [1.0] * 4, [1.0] * 3]}, r"shape \(3,\), wanted \(3, 4\)"),
        ({"coef": [["1.0"] * 4] * 3}, "`coef` holds other things than finite numbers"),
        ({"intercept": [0.0]}, r"`intercept` has the shape \(1,\), wanted \(3,\)"),
        ({"intercept": [0.0, True, 0.0]}, "`intercept` holds other things"),
        ({"precision": [[1.0]]}, r"`precision` has the shape \(1, 1\), wanted \(3, 5\)"),
        ({"features": 5}, r"wanted \(3, 5\)"),
        ({"feature_names": ["a"]}, "`feature_names` are not 4"),
        ({"classes": {"dtype": "<i8", "values": [2, 1, 0]}}, "ascending"),
        ({"classes": {"dtype": "<i8", "values": ["a", "b", "c"]}}, "`classes` are not int64"),
        ({"classes": {"dtype": "<M8[D]", "values": [1, 2, 3]}}, "no classes of datetime64"),
        ({"classes": {"dtype": "what", "values": [1, 2, 3]}}, "not understood"),
        ({"parameters": {"C": -1}}, "`C` must be a positive number"),
        ({"parameters": {"colour": 1}}, "colour"),
        ({"parameters": []}, ""),
        ({"parameters": {"loss": {"name": "eval", "options": {}}}}, "there is no loss 'eval'"),
        ({"about": 3}, ""),
    ],
)  # fmt: skip
def test_a_file_that_was_changed_is_refused(change, message, tmp_path):
    path = tmp_path / "model.json"
    save_model(FITTED, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"model.json is not a readable model: .*{message}"):
        load_model(path)


def test_a_file_that_lacks_something_is_refused(tmp_path):
    path = tmp_path / "model.json"
    save_model(FITTED, path)
    whole = path.read_text()
    for key in json.loads(whole):
        part = {name: value for name, value in json.loads(whole).items() if name != key}
        path.write_text(json.dumps(part))
        with pytest.raises(ValueError, match=f"lacks '{key}'|its {key} is None"):
            load_model(path)
    number = json.loads(whole)["coef"][0][0]
    for damaged in (
        whole[: len(whole) // 2], "", "\x80PNG", "[" * 100_000, "[1]", "3",
        whole.replace(str(number), "NaN"), whole.replace(str(number), "1e999"),
    ):  # fmt: skip
        path.write_text(damaged, encoding="latin-1")
        with pytest.raises(ValueError, match="is not a readable model"):
            load_model(path)
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "none.json")


def test_what_cannot_be_saved_says_so(tmp_path):
    @xent.row_loss
    def mine(s):
        return -s.log_prob

    def save(model):
        save_model(model, tmp_path / "model.json")

    x, y = IRIS
    with pytest.raises(
        TypeError, match="one of SoftmaxRegression, LogisticRegression, got StandardScaler"
    ):
        save(StandardScaler().fit(x))
    with pytest.raises(ValueError, match="not fitted"):
        save(SoftmaxRegression())
    model = SoftmaxRegression(loss=mine).fit(x, y)
    with pytest.raises(TypeError, match=r"none of xent's.*set_params\(loss=\.\.\.\)"):
        save(model)
    save(model.set_params(loss="cross_entropy"))
    with pytest.raises(TypeError, match="`loss: gamma` cannot be saved"):
        save(model.set_params(loss=partial(xent.losses.focal_loss, gamma=object())))
    with pytest.raises(TypeError, match="`tol` cannot be saved"):
        save(model.set_params(loss="cross_entropy", tol=object()))
    model.set_params(tol=1e-6).classes_ = np.array(["2020-01-01", "2020-01-02", "2021"], "M8[D]")
    with pytest.raises(TypeError, match=r"classes of datetime64\[D\] cannot be saved"):
        save(model)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]
    assert load_model(tmp_path / "model.json").loss == "cross_entropy"


# ---- the command --------------------------------------------------------------------------------


def write(path, columns):
    table = pa.table(columns)
    (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(table, path)
    return str(path)


def table_of(data, rows=slice(None)):
    names = data.target_names[data.target[rows]].tolist()
    return {f"x{k}": column[rows] for k, column in enumerate(data.data.T)} | {"kind": names}


@pytest.fixture
def fit(tmp_path, capsys):
    """Run ``xent fit`` quietly; return the record and the output."""

    def run(*words, out="out"):
        code = cli.main(["fit", *map(str, words), "--quiet", "--out", str(tmp_path / out)])
        told = capsys.readouterr()
        assert code == 0, told.err
        return json.loads((tmp_path / out / "record.json").read_text()), told

    return run


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("load", [load_iris, load_wine])
def test_the_figures_are_those_of_scikit_learn(load, kind, fit, tmp_path):
    data = load()
    record, told = fit(write(tmp_path / f"a.{kind}", table_of(data)), "--seed", 3)
    names = data.target_names[data.target]
    x, u, y, v = train_test_split(data.data, names, test_size=0.25, random_state=3, stratify=names)
    scaler = StandardScaler().fit(x)
    theirs = Theirs(tol=1e-10, max_iter=10_000).fit(scaler.transform(x), y)
    p, figures = theirs.predict_proba(scaler.transform(u)), record["test"]
    assert figures["log_loss_nats"] == pytest.approx(log_loss(v, p), rel=1e-4)
    assert figures["log_loss_bits"] == figures["log_loss_nats"] / math.log(2)
    losses = -np.log(p[np.arange(len(v)), np.searchsorted(theirs.classes_, v)])
    error = losses.std() / math.sqrt(len(v))
    assert figures["log_loss_standard_error_nats"] == pytest.approx(error, rel=1e-3)
    assert figures["accuracy"] == accuracy_score(v, theirs.predict(scaler.transform(u)))
    assert figures["confusion"] == confusion(v, theirs.predict(scaler.transform(u))).tolist()
    shares = np.unique(v, return_counts=True)[1] / len(v)
    assert figures["label_entropy_nats"] == pytest.approx(-(shares * np.log(shares)).sum())
    assert figures["most_frequent_share"] == shares.max()
    hot, scores = v[:, None] == theirs.classes_, figures["scores"]
    labels = theirs.predict(scaler.transform(u))
    assert scores["precision"]["mean"] == precision_score(v, labels, average="macro")
    assert scores["f1"]["mean"] == f1_score(v, labels, average="macro")
    assert scores["average_precision"]["mean"] == pytest.approx(average_precision_score(hot, p))
    assert scores["roc_auc"]["mean"] == pytest.approx(roc_auc_score(hot, p))
    right = p.argmax(1) == np.searchsorted(theirs.classes_, v)
    edges = np.linspace(0, 1, 16)
    which = np.digitize(p.max(1), edges[1:-1], right=True)
    gaps = [abs((p.max(1) - right)[which == b].sum()) for b in range(15)]
    assert figures["calibration_error"] == pytest.approx(sum(gaps) / len(v), rel=1e-3)
    best = np.abs(theirs.coef_[0]).argmax()
    first = next(iter(record["largest_coefficients"][theirs.classes_[0]].items()))
    assert first == (f"x{best}", pytest.approx(theirs.coef_[0][best], rel=1e-3))
    assert record["rows"] == {"fitted": len(y), "tested": len(v)}
    assert f"{figures['log_loss_nats']:.4f} +- " in told.out
    assert not told.err
    assert (tmp_path / "out/report.png").read_bytes()[:4] == b"\x89PNG"
    mine = load_model(tmp_path / "out/model.json")  # takes the columns as they are
    assert mine.predict_proba(u) == pytest.approx(p, abs=1e-4)


MIXED = {
    "size": rng.normal(1e6, 10, 200),
    "colour": rng.choice(["red", "green", "blue"], 200),
    "round": rng.choice([True, False], 200),
}
MIXED["ripe"] = (MIXED["size"] - 1e6) / 10 + (MIXED["colour"] == "red") > MIXED["round"]


@pytest.mark.parametrize("ripe", [bool, float, str])
def test_a_model_is_used_on_another_table(ripe, fit, tmp_path):
    columns = MIXED | {"ripe": [ripe(value) for value in MIXED["ripe"]]}
    path = write(tmp_path / "a.parquet", columns)
    record, _ = fit(path)
    names = ["size", "colour=blue", "colour=green", "colour=red", "round=False", "round=True"]
    assert record["features"] == names
    assert record["test"]["accuracy"] > 0.75
    model = tmp_path / "out/model.json"
    few = {name: values[:50] for name, values in columns.items()}
    order = ["ripe", "round", "size", "colour"]
    other = write(tmp_path / "b.parquet", {name: few[name] for name in order} | {"id": range(50)})
    record, told = fit(other, "--model", model, out="used")
    assert record["rows"] == {"predicted": 50}
    assert "not used: id" in told.out
    predictions = csv.read_csv(tmp_path / "used/predictions.csv")
    classes = sorted(set(columns["ripe"]))
    assert predictions.column_names == ["class", *(f"P({name})" for name in classes)]
    hot = np.array([few["colour"] == name for name in ("blue", "green", "red")])
    size, round_ = few["size"], few["round"]
    x = np.column_stack([size, *hot, ~round_, round_]).astype(float)
    expected = load_model(model).predict_proba(x)
    found = np.column_stack([predictions[f"P({name})"] for name in classes])
    assert np.array_equal(found, expected)
    right = np.mean([str(a) == str(b) for a, b in zip(
        load_model(model).predict(x).tolist(), few["ripe"], strict=True
    )])  # fmt: skip
    assert record["test"]["accuracy"] == pytest.approx(right)
    del few["ripe"]  # the true classes are missing
    record, told = fit(write(tmp_path / "c.csv", few), "--model", model, out="blind")
    assert "test" not in record
    assert "50 predictions" in told.out
    assert not (tmp_path / "blind/report.png").exists()
    renamed = few | {"truth": columns["ripe"][:50]}
    renamed = write(tmp_path / "d.parquet", renamed)
    record, told = fit(renamed, "--model", model, "--target", "truth", "--json", out="renamed")
    assert record == json.loads(told.out)
    assert record["test"]["rows"] == 50


def test_other_losses_penalties_and_weights(fit, tmp_path):
    path = write(tmp_path / "a.csv", table_of(load_iris()))
    plain, _ = fit(path)
    focal, _ = fit(path, "--loss", "focal:gamma=2")
    assert focal["test"]["log_loss_nats"] > plain["test"]["log_loss_nats"]  # less sure
    assert load_model(tmp_path / "out/model.json").loss.keywords == {"gamma": 2}
    fit(path, "--C", 0.05, "--l1-ratio", 1)
    assert (load_model(tmp_path / "out/model.json").coef_ == 0).any()
    fit(path, "--class-weight", "balanced", "--C", "2")
    model = load_model(tmp_path / "out/model.json")
    assert (model.class_weight, model.C, model.verbose) == ("balanced", 2, 0)
    path = write(tmp_path / "b.csv", table_of(load_iris(), slice(0, 100)))
    fit(path, "--loss", "sigmoid_focal_loss")
    assert isinstance(load_model(tmp_path / "out/model.json"), LogisticRegression)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("logit_adjusted_loss", "prior"), ("vs_loss", "counts"), ("ldam_loss", "counts"),
        ("seesaw_loss", "counts"),
    ],
)  # fmt: skip
def test_class_counts_that_are_not_given_are_counted(loss, name, fit, tmp_path):
    columns = table_of(load_iris(), slice(0, 120))  # 50, 50 and 20 rows
    path = write(tmp_path / "a.csv", columns)
    record, told = fit(path, "--loss", loss, "--test", 0.2)
    counts = record["counted"][name]
    assert counts == [40, 40, 16]
    said = f"the loss takes the rows of each class as its {name}: setosa 40, versicolor 40, "
    assert f"{said}virginica 16\n" in told.out
    coef = load_model(tmp_path / "out/model.json").coef_
    given, told = fit(path, "--loss", f"{loss}:{name}=[40,40,16]", "--test", 0.2)
    assert not given["counted"]
    assert "the loss takes" not in told.out
    assert np.array_equal(load_model(tmp_path / "out/model.json").coef_, coef)


def test_warnings_of_a_fit_are_reported(fit, tmp_path):
    path = write(tmp_path / "a.csv", table_of(load_iris()))
    record, told = fit(path, "--max-iter", 1)
    assert "not converged after 1 iterations: the objective is about 0.09" in told.err
    assert told.err.endswith("nats above its minimum; raise --max-iter\n")
    assert record["warnings"] == [told.err.strip()]
    path = write(tmp_path / "b.csv", table_of(load_iris(), slice(0, 100)))
    record, told = fit(path, "--C", "inf")
    assert "--C=inf penalises nothing" in told.err
    assert record["settings"]["C"] == "inf"


def test_another_table_to_test_on_and_many_classes(fit, tmp_path):
    centres = rng.normal(size=(30, 6))
    y = np.arange(600) % 30
    x = centres[y] + rng.normal(size=(600, 6))

    def columns(rows):
        return {f"x{k}": column[rows] for k, column in enumerate(x.T)} | {"k": y[rows]}

    train = write(tmp_path / "a.csv", columns(slice(0, 300)))
    record, told = fit(train, "--test-data", write(tmp_path / "b.pq", columns(slice(300, 600))))
    assert record["rows"] == {"fitted": 300, "tested": 300}
    assert "the most frequent confusions of 30 classes" in told.out
    assert "18 more classes in the record" in told.out
    assert np.sum(record["test"]["confusion"]) == 300
    one = write(tmp_path / "c.pq", columns(slice(0, 1)))  # of one row little can be said
    record, told = fit(train, "--test-data", one)
    assert record["test"]["skill"] is None


def test_progress(tmp_path, capsys):
    path = write(tmp_path / "a.csv", table_of(load_iris()))
    assert cli.main(["fit", path, "--out", str(tmp_path / "out")]) == 0
    assert "objective" in capsys.readouterr().err


LINES = [f"{k % 7},{k % 5},{'abc'[k % 3]}" for k in range(60)]


def rows(*lines, header="u,v,y"):
    return "\n".join([header, *lines])


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (rows(*LINES), ["--target", "none"], "no column 'none'; there are u, v, y"),
        (rows("1,2,a", "2,3,a", "3,3,a"), [], "column 'y' has one class only, 'a'; it takes two"),
        (rows("1,2,a", "2,,b", "3,3,a", "1,1,b"), ["--missing", "refuse"],
         "column 'v': 1 of 4 values are missing, the first in row 2; --missing fill"),
        (rows("1,2,a", "2,3,", "3,3,a"), ["--missing", "refuse"], "column 'y', the target: 1 of 3"),
        (rows("1,2,a", "2,inf,b", "3,3,a", "1,1,b"), [], "column 'v': row 2 is infinite"),
        (rows("1,2,a", "2,3,b", "3,3,c"), [], "3 different values in 3 rows: an identifier or a"),
        (rows("1,2,1", "2,3,2", "3,3,3"), [], "3 different values in 3 rows: an identifier or a"),
        (rows(*(f"{k},1,{k % 3 / 2}" for k in range(9))), [], "holds numbers such as 0.5: a quant"),
        (rows(*(f"{k},1,2020-01-0{k % 3 + 1}" for k in range(9))), [], "column 'y' holds date32"),
        (rows("1,2,a", "1,3,a", "1,2,a", "3,3,b"), [], "class 'b' of column 'y' has a single row"),
        (rows(*LINES), ["--test", "0"], "--test must be above 0 and below 1, got 0.0"),
        (rows(*LINES), ["--test", "1.5"], "--test must be above 0 and below 1"),
        (rows(*LINES), ["--test", "0.02"], "--test 0.02 of 60 rows are 2: too few"),
        (rows(*LINES), ["--test", "0.99"], "--test 0.99 of 60 rows are 60: too few"),
        (rows(*["1,2,a"] * 50, *["2,1,b"] * 2), ["--test", "0.9"], "no row of class 'b' to fit on"),
        (rows(*LINES), ["--C", "-1"], "--C must be a positive number"),
        (rows(*LINES), ["--seed", "-1"], "--seed must be at least 0"),
        (rows(*LINES), ["--C", "nan"], "--C must be a positive number"),
        (rows(*LINES), ["--l1-ratio", "2"], "--l1-ratio must be from 0 to 1"),
        (rows(*LINES), ["--max-iter", "0"], "--max-iter must be a whole number from 1 on"),
        (rows(*LINES), ["--loss", "focl"], "did you mean focal_loss?\na classifier can be fitted"),
        (rows(*LINES), ["--loss", "zlpr_loss"], "zlpr_loss is no loss of a class per row\na class"),
        (rows(*LINES), ["--loss", "focal:gama=1"], "no hyperparameter 'gama'; did you mean gamma?"),
        (rows(*LINES), ["--loss", "focal:gamma=-1"], "`gamma` must be at least 0"),
        (rows(*LINES), ["--loss", "vs_loss:counts=[1,2]"], "counts"),
        (rows(*LINES), ["--loss", "sigmoid_focal_loss"], "for two classes, and there are 3"),
        (rows(*LINES), ["--model", "none.json"], "none.json: cannot be read: No such file"),
        (rows(*LINES), ["--model", "a.csv", "--l1-ratio", "1"], "leave --l1-ratio out"),
        (rows(*LINES), ["--model", "a.csv"], "a.csv is not a readable model"),
        (rows(*LINES), ["--test-data", "none.csv"], "none.csv cannot be read"),
    ],
)  # fmt: skip
def test_the_command_refuses(text, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(text)
    assert cli.main(["fit", "a.csv", *words, "--quiet"]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert not told.out
    assert not (tmp_path / "runs/fit/model.json").exists()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Return a table, and the model that was fitted to it."""
    folder = tmp_path_factory.mktemp("mixed")
    path = write(folder / "a.parquet", MIXED)
    assert cli.main(["fit", path, "--quiet", "--out", str(folder)]) == 0
    return path, str(folder / "model.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": None}, "there is no column 'colour'; there are size, round, ripe"),
        ({"size": ["a", "b"]}, "column 'size' holds text; numbers are what was learnt from"),
        ({"round": ["a", "b"]}, "column 'round' holds text; booleans are what was learnt from"),
        ({"size": [date(2020, 1, 1)] * 2}, "column 'size' holds date32[day]; numbers are what was"),
        ({"ripe": ["yes", "no"]}, "column 'ripe' holds text; booleans are what was learnt from"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_the_model_are_refused(change, message, mixed, tmp_path, capsys):
    path, model = mixed
    columns = {name: values[:2].tolist() for name, values in MIXED.items()} | change
    other = {name: values for name, values in columns.items() if values is not None}
    other = write(tmp_path / "b.parquet", other)
    out = ["--quiet", "--out", str(tmp_path / "other")]
    for words in (
        [path, "--test-data", other],
        [other, "--model", model],
    ):
        assert cli.main(["fit", *words, *out]) == 2
        assert message in capsys.readouterr().err


def test_models_of_others_and_places_that_cannot_be_written_to(tmp_path, capsys):
    path = write(tmp_path / "a.csv", table_of(load_iris()))
    model = tmp_path / "model.json"
    for about in (None, {"target": "kind", "columns": {"x0": None}}, {"target": 1, "columns": 2}):
        save_model(FITTED, model, about)
        assert cli.main(["fit", path, "--model", str(model)]) == 2
        assert "does not say how its columns are made" in capsys.readouterr().err
    assert cli.main(["fit", path, "--out", path, "--quiet"]) == 2
    assert "cannot be written to" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["fit", path, "--test", "0.5", "--test-data", path])
    assert "not allowed with" in capsys.readouterr().err


def test_without_scikit_learn(monkeypatch, tmp_path, capsys):
    path = write(tmp_path / "a.csv", table_of(load_iris()))
    monkeypatch.delattr("xent.learn.regression.saved_models")
    monkeypatch.delitem(sys.modules, "xent.learn.regression.saved_models")
    monkeypatch.setitem(sys.modules, "sklearn.utils.validation", None)
    assert cli.main(["fit", path]) == 2
    assert pip_install("learn") in capsys.readouterr().err


# ---- the picture --------------------------------------------------------------------------------


def test_a_confusion_matrix_is_drawn():
    ax = confusion_matrix([[1, 3], [0, 0]], ["a", "b"])
    assert [text.get_text() for text in ax.texts] == ["1", "3", "0", "0"]
    assert np.array_equal(ax.images[0].get_array(), [[0.25, 0.75], [0, 0]])
    assert ax.get_title() == "25.0% of 4 rows are right"
    many = confusion_matrix(np.eye(100, dtype=int), range(100))
    assert not many.texts
    assert len(many.get_xticks()) == 34
    with pytest.raises(ValueError, match=r"each of the 3 labels, got shape \(2, 2\)"):
        confusion_matrix([[1, 0], [0, 1]], "abc")


def test_coefficients_that_differ_by_rounding_stay_in_their_order():
    """Equal coefficients may differ in the last bit; the columns keep their order all the same."""
    for last_bit in (-1, 0, 1):
        row = np.array([[1.0, 0.1, -0.1 * (1 + last_bit * 2**-52), 2.0]])
        assert [*largest(row, list("abcd"), ["no", "yes"])["yes"]] == ["d", "a", "b", "c"]
