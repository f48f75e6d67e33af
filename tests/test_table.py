"""Tables of features and classes."""

import sys
from datetime import date
from decimal import Decimal

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

from pyarrow import parquet  # noqa: E402

from xent.commands.console import UserError  # noqa: E402
from xent.commands.table import features_and_target, read_table  # noqa: E402

CSV = """size,colour,round,kind
1,red,true,apple
2.5,green,false,pear
3,red,true,"NA"
"""


def test_csv_and_parquet_are_the_same_table(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    table = pa.table({
        "size": pa.array([1, 2.5, 3]),
        "colour": pa.array(["red", "green", "red"]).dictionary_encode(),
        "round": [True, False, True],
        "kind": ["apple", "pear", "NA"],
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        x, y, names = features_and_target(read_table(tmp_path / name), "kind")
        assert x.dtype == np.float64
        assert x.tolist() == [[1, 0, 1, 0, 1], [2.5, 1, 0, 1, 0], [3, 0, 1, 0, 1]]
        assert names == ["size", "colour=green", "colour=red", "round=False", "round=True"]
        assert y.tolist() == ["apple", "pear", "NA"]


def test_numbers_as_classes_and_decimals_as_features(tmp_path):
    table = pa.table({"k": pa.array([2, 1], pa.int32()), "d": [Decimal("1.25"), Decimal("0.50")]})
    parquet.write_table(table, tmp_path / "a.pq")
    x, y, names = features_and_target(read_table(str(tmp_path / "a.pq")), "k")
    assert (x.tolist(), y.tolist(), names) == ([[1.25], [0.5]], [2, 1], ["d"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("a,b\n1,2\n3\n", "cannot be read"),
        ("a,b\n", "has no rows"),
        ("a,a,b\n1,2,3\n", "more than one column 'a'"),
    ],
)
def test_files_that_are_no_tables(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "a.csv")


def test_other_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "a.parquet").write_text(CSV)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read"):
        read_table(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n1,p\n,q\n", "column 'a': 1 of 2 values are missing, the first in row 2"),
        ("a,y\n1,p\nNA,q\n", "column 'a': 1 of 2 values are missing"),
        ("a,y\nr,p\ns,\n", "column 'y': 1 of 2 values are missing"),
        ("a,y\n1,p\ninf,q\n", "column 'a': row 2 is infinite"),
        ("a,y\n2020-01-01,p\n2020-01-02,q\n", "column 'a' holds .*leave it out"),
        ("b,c\n1,p\n", "no column 'y'; there are b, c"),
        ("y\n1\n", "'y' is the only column"),
    ],
)
def test_columns_that_are_no_features(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        features_and_target(read_table(tmp_path / "a.csv"), "y")


def test_text_that_is_no_category_and_things_that_are_no_text(tmp_path):
    y = np.zeros(300)
    names = np.array([f"n{k}" for k in range(300)], dtype=object)
    with pytest.raises(UserError, match="column 'a' is text with 300 different values"):
        features_and_target({"a": names, "y": y}, "y")
    table = pa.table({"a": [[1, 2], [3]], "b": [date(2020, 1, 1)] * 2, "y": [0, 1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'a' holds ndarray"):
        features_and_target(read_table(tmp_path / "a.parquet"), "y")


def test_without_pyarrow(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"xent\[learn\]"):
        read_table(tmp_path / "a.csv")
