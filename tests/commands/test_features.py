"""Features from columns: compared with scikit-learn, with gaps, and on unknown tables."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

pa = pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")

from pyarrow import csv, parquet  # noqa: E402

from xent import cli  # noqa: E402
from xent.commands.console import UserError  # noqa: E402
from xent.commands.features import Encoding, classes_of, prepared  # noqa: E402
from xent.commands.table import Table  # noqa: E402

rng = np.random.default_rng(0)


def table(target="y", **columns):
    return Table({name: pa.chunked_array([column]) for name, column in columns.items()}, target, [])


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Run ``xent fit`` quietly in a new folder; return the record and the messages."""
    monkeypatch.chdir(tmp_path)

    def run(*words, out="out"):
        code = cli.main(["fit", *map(str, words), "--quiet", "--out", out])
        said = capsys.readouterr().err
        assert code == 0, said
        return json.loads((tmp_path / out / "record.json").read_text()), said

    return run


# ---- gaps ----------------------------------------------------------------------------------------


def gapped(rows):
    """Return numbers and words with gaps, and a class that depends on both."""
    x, word = rng.normal(size=rows), rng.choice(["rot", "blau", "gruen"], rows).astype(object)
    y = np.where(x + (word == "rot") + rng.normal(size=rows) > 0, "ja", "nein")
    x[rng.random(rows) < 0.2] = np.nan
    word[rng.random(rows) < 0.1] = None
    return {"x": pa.array(x, from_pandas=True), "word": pa.array(word), "y": pa.array(y)}


def test_gaps_are_filled_and_marked_as_scikit_learn_does(fit, tmp_path):
    pytest.importorskip("pandas")
    columns, other = gapped(300), gapped(100)
    for name, some in (("a.parquet", columns), ("b.parquet", other)):
        parquet.write_table(pa.table(some), tmp_path / name)
    record, said = fit("a.parquet", "--test-data", "b.parquet")
    assert record["features"] == [
        "x", "x is missing", "word=blau", "word=gruen", "word=rot", "word is missing"
    ]  # fmt: skip
    first = columns["x"].to_pylist().index(None) + 1
    gaps = columns["x"].null_count
    line = (
        f"column 'x': {gaps} of 300 values are missing, the first in row {first}; the mean stands "
        "there, and the feature 'x is missing' marks it"
    )
    assert line in said.splitlines()
    assert line in record["notes"]
    assert any(note.startswith("b.parquet: column 'word': ") for note in record["notes"])
    frame, unseen = (pa.table(some).to_pandas() for some in (columns, other))
    for one in (frame, unseen):
        one["word"] = one["word"].fillna("a gap")
    theirs = make_pipeline(
        make_column_transformer(
            (SimpleImputer(add_indicator=True), ["x"]), (OneHotEncoder(), ["word"])
        ),
        StandardScaler(with_mean=False), LogisticRegression(tol=1e-10, max_iter=10_000),
    ).fit(frame[["x", "word"]], frame["y"])  # fmt: skip
    expected = theirs.predict_proba(unseen[["x", "word"]])
    fit("b.parquet", "--model", "out/model.json", out="used")
    found = csv.read_csv(tmp_path / "used/predictions.csv")
    assert np.abs(found["P(ja)"].to_numpy() - expected[:, 0]).max() < 1e-5


def test_the_mean_is_that_of_the_rows_learnt_from(fit, tmp_path):
    parquet.write_table(pa.table(gapped(300)), tmp_path / "a.parquet")
    fit("a.parquet", "--seed", 3)
    saved = json.loads((tmp_path / "out/model.json").read_text())["about"]["columns"]["x"]
    whole = parquet.read_table(tmp_path / "a.parquet")["x"].to_numpy()
    assert saved["gaps"]
    assert 1e-4 < abs(saved["means"][0] - np.nanmean(whole)) < 0.1


def test_what_else_is_done_about_gaps():
    def gaps():
        return table(
            a=pa.array([1.0, None, 3, 4]), b=pa.array(["u", "u", None, "v"]),
            y=pa.array(["p", "q", "p", None]),
        )  # fmt: skip

    kept = prepared(gaps(), "drop")
    assert (kept.rows.tolist(), len(kept.said)) == ([1], 2)
    assert "column 'y', the target: 1 of 4 values are missing, the first in row 4" in kept.said[0]
    assert "2 of 3 rows have gaps in columns 'a', 'b'; they are left out" in kept.said[1]
    kept = prepared(gaps(), "fill", ())
    assert (kept.rows.tolist(), len(kept.said)) == ([1, 2, 3], 3)
    assert classes_of(kept).tolist() == ["p", "q", "p"]
    with pytest.raises(UserError, match="'y', the target: 1 of 4 values are missing"):
        prepared(gaps(), "refuse")
    with pytest.raises(UserError, match=r"'a': 1 of 4 .* in row 2; --missing fill .*--drop a the"):
        prepared(table(a=gaps().columns["a"].chunk(0), y=pa.array([1, 2, 3, 4])), "refuse")
    with pytest.raises(UserError, match="no row is without a gap in columns 'a', 'b'; --drop"):
        prepared(
            table(a=pa.array([1, None]), b=pa.array([None, 1]), y=pa.array([1, 2])), "drop"
        )  # fmt: skip


def test_many_columns_with_gaps_are_reported_in_short(capsys):
    columns = {f"x{k}": pa.array([None, 1.0, 2.0]) for k in range(40)}
    said = prepared(table(**columns, y=pa.array([1, 2, 1])), "fill", ()).said
    told = capsys.readouterr().err.splitlines()
    assert (len(said), len(told)) == (40, 13)
    assert told[-1] == "and likewise 28 more columns, each in the record"


def test_columns_of_names_are_left_out():
    names = pa.array([f"n{k}" for k in range(100)])
    words = pa.array(["a", "b"] * 50)
    some = table(name=names, word=words, y=words)
    left = prepared(some, "fill", ())
    assert left.features == ["word"]
    assert left.said == [
        "column 'name' has 100 different texts in 100 rows, as names have; it is left out (--keep "
        "name keeps it)"
    ]
    assert prepared(some, "fill", ("name",)).features == ["name", "word"]
    many = table(name=pa.array([f"n{k % 300}" for k in range(900)]), y=pa.array([1, 2, 3] * 300))
    with pytest.raises(UserError, match="the only column that can be used"):
        prepared(many, "fill", ())


# ---- other tables --------------------------------------------------------------------------------


def test_unseen_categories_gaps_and_infinities_count_as_the_average():
    learnt = table(
        a=pa.array([1.0, 2, 6]), c=pa.array(["u", "v", "v"]), b=pa.array([True, False, True]),
        y=pa.array([1, 2, 1]),
    )  # fmt: skip
    encoding = Encoding.of(learnt)
    assert encoding.names == ["a", "c=u", "c=v", "b=False", "b=True"]
    new = table(
        a=pa.array([None, math.inf, 5.0]), c=pa.array(["w", None, "u"]),
        b=pa.array([None, True, False]), y=pa.array([1, 2, 1]),
    )  # fmt: skip
    x, missing, unseen = encoding.features(new)
    third = 1 / 3
    assert x == pytest.approx(np.array([
        [3, third, 2 * third, third, 2 * third], [3, third, 2 * third, 0, 1], [5, 1, 0, 1, 0],
    ]))  # fmt: skip
    assert [line.split(":")[0] for line in missing] == ["column 'a'", "column 'c'", "column 'b'"]
    assert "the average of what was learnt from stands there" in missing[0]
    assert "not there to learn from: inf (1), in 1 of 3 rows, the first row 2" in unseen[0]
    assert "not there to learn from: 'w' (1), in 1 of 3 rows, the first row 1" in unseen[1]


def test_one_odd_row_does_not_stop_the_others(fit, tmp_path):
    lines = [f"{k % 7},{'uvw'[k % 3]},{'pq'[k % 2]}" for k in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["n,c,y", *lines]))
    (tmp_path / "b.csv").write_text("n,c,y\n1,u,p\n?,v,q\n3,new,p\n4,,r\n5,w,\n")
    fit("a.csv")
    record, said = fit("b.csv", "--model", "out/model.json", out="used")
    predictions = csv.read_csv(tmp_path / "used/predictions.csv")
    assert predictions.num_rows == 5
    assert np.isfinite(predictions["P(p)"].to_numpy()).all()
    assert record["test"]["rows"] == 3
    assert record["notes"] == said.splitlines()
    for part in ("'?' (row 2)", "'new' (1)", "1 of 5 values are missing, the first in row 4",
                 "2 of 5 rows hold no class that the model knows, but 'r', None"):  # fmt: skip
        assert part in said
    whole = predictions.slice(0, 1)["P(p)"][0].as_py()
    (tmp_path / "c.csv").write_text("n,c\n1,u\n")
    fit("c.csv", "--model", "out/model.json", out="alone")
    assert csv.read_csv(tmp_path / "alone/predictions.csv")["P(p)"][0].as_py() == whole


def test_codes_that_look_like_numbers_stay_what_they_were(fit, tmp_path):
    lines = [f"{'12A'[k % 3]},{k % 5},{'pq'[k % 2]}" for k in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["code,n,y", *lines]))
    (tmp_path / "b.csv").write_text("code,n\n1,0\n2,1\n")
    fit("a.csv")
    assert not fit("b.csv", "--model", "out/model.json", out="used")[1]
    table = {"code": [1, 2], "n": ["0", "1"]}
    parquet.write_table(pa.table(table), tmp_path / "b.parquet")
    fit("b.parquet", "--model", "out/model.json", out="again")
    files = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("used", "again")]
    assert files[0] == files[1]


def test_names_of_features_do_not_collide():
    some = table(**{
        "c": pa.array(["a", "b"]), "c=a": pa.array([1, 2]), "c=a (2)": pa.array([1, 2]),
        "y": pa.array([1, 2]),
    })  # fmt: skip
    assert Encoding.of(some).names == ["c=a", "c=b", "c=a (3)", "c=a (2)"]


def test_an_encoding_comes_back():
    some = table(
        a=pa.array([1, None]), c=pa.array(["u", "v"]), b=pa.array([True, False]), y=pa.array([1, 2])
    )  # fmt: skip
    encoding = Encoding.of(some)
    plain = json.loads(json.dumps(encoding.plain()))
    assert Encoding.read(plain) == encoding
    assert encoding.part("c") == slice(2, 4)
    for name, change in (
        ("a", {"kind": "dates"}), ("a", {"means": [1.0]}), ("a", {"means": [1.0, "2"]}),
        ("a", {"gaps": 1}), ("c", {"values": []}), ("c", {"values": "uv"}),
        ("b", {"values": [0, 1]}), ("a", {"means": [math.nan, 0.0]}), ("a", {"other": 1}),
    ):  # fmt: skip
        with pytest.raises((ValueError, LookupError, TypeError)):
            Encoding.read(plain | {name: plain[name] | change})


# ---- the target ----------------------------------------------------------------------------------


def test_the_target_is_reported(fit, tmp_path, capsys):
    lines = [f"{k % 7},{'pq'[k % 2]}" for k in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["n,outcome", *lines]))
    line = (
        "the target is 'outcome', the last column (--target names another): 2 classes, 'p' (30 "
        "rows), 'q' (30 rows)"
    )
    record, said = fit("a.csv")
    assert (record["notes"], said) == ([line], "")
    assert cli.main(["fit", "a.csv", "--out", "loud"]) == 0
    assert line in capsys.readouterr().err
    assert (
        cli.main(["mi", "a.csv", "--out", "m", "--classifier", "linear", "--bootstrap", "9"]) == 0
    )
    assert line in capsys.readouterr().err
    assert json.loads((tmp_path / "m/record.json").read_text())["notes"] == [line]


def test_a_target_that_is_none_leads_to_the_others(fit, tmp_path, capsys):
    lines = [f"{k % 7},{'pq'[k % 2]},{k / 7}" for k in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["n,c,x", *lines]))
    assert cli.main(["fit", "a.csv"]) == 2
    assert "a quantity rather than a class" in (said := capsys.readouterr().err)
    assert "(columns with few values: 'n', 'c')" in said


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_shows_what_is_said(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs/tables.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, text in re.findall(r"```text (\S+)\n(.*?)```", page, re.DOTALL):
        encoding = "cp1252" if name == "penguins.csv" else "utf-8"
        (tmp_path / name).write_text(text, encoding=encoding)
    for words, shown in re.findall(r"```console\n\$ xent (.*?)\n(.*?)```", page, re.DOTALL):
        assert cli.main(words.split()) == 0
        told = capsys.readouterr()
        said = iter(re.split(r"[\r\n]+", told.err + told.out))
        for line in shown.splitlines():
            start = line.removesuffix("...")
            assert any(one == line or (start != line and one.startswith(start)) for one in said), (
                line
            )


@pytest.mark.parametrize("type", ["int64", "uint64"])
def test_whole_numbers_that_doubles_do_not_hold(type):
    large = [2**60 + 1, 2**60 + 3, 5]
    made = table(h=pa.array(large, type), y=pa.array(["a", "b", "a"]))
    encoding = Encoding.of(made)
    assert encoding.features(made).x[:, 0].tolist() == [float(h) for h in large]


def test_numbers_too_large_to_be_squared_are_named():
    made = table(h=pa.array([1e308, 1.0, 2.0]), y=pa.array(["a", "b", "a"]))
    with pytest.raises(UserError, match=r"'h': row 1 holds 1e\+308, too large to be squared"):
        prepared(made, "fill")
