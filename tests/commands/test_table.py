"""Tables of features and classes: how they are read, what is guessed, and the notes on it."""

import codecs
import gzip
import sys
from datetime import date
from decimal import Decimal
from time import process_time

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

from pyarrow import parquet  # noqa: E402

from xent.commands.console import UserError  # noqa: E402
from xent.commands.delimited import Format  # noqa: E402
from xent.commands.features import Encoding, prepared  # noqa: E402
from xent.commands.table import Reading, read_table  # noqa: E402

CSV = """size,colour,round,kind
1,red,true,apple
2.5,green,false,pear
3,red,true,"NA"
"""


@pytest.fixture
def read(tmp_path):
    """Read a table given as text, bytes or columns; return its content and the notes."""

    def run(content, name="a.csv", kinds=None, **options):
        path = tmp_path / name
        if isinstance(content, dict):
            parquet.write_table(pa.table(content), path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        form = Format(**{key: options.pop(key) for key in Format._fields if key in options})
        table = read_table(path, Reading(form, **options), kinds)
        return {name: column.to_pylist() for name, column in table.columns.items()}, table.said

    return run


def lines(head, *rows, times=1):
    return "\n".join([head, *rows * times]) + "\n"


# ---- files ---------------------------------------------------------------------------------------


def test_csv_and_parquet_are_the_same_table(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    table = pa.table({
        "size": pa.array([1, 2.5, 3]),
        "colour": pa.array(["red", "green", "red"]).dictionary_encode(),
        "round": [True, False, True],
        "kind": ["apple", "pear", "NA"],
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "a.parquet")
    parquet.write_table(table, tmp_path / "without a suffix")
    for name in ("a.csv", "a.parquet", "without a suffix"):
        table = read_table(tmp_path / name)
        assert (table.target, table.said) == ("kind", [])
        assert table.columns["kind"].to_pylist() == ["apple", "pear", "NA"]
        encoding = Encoding.of(table)
        x = encoding.features(table).x
        assert x.tolist() == [[1, 0, 1, 0, 1], [2.5, 1, 0, 1, 0], [3, 0, 1, 0, 1]]
        assert encoding.names == [
            "size", "colour=green", "colour=red", "round=False", "round=True"
        ]  # fmt: skip


def test_types_of_parquet(read):
    columns = {
        "d": [Decimal("1.25"), Decimal("0.50")], "h": pa.array(np.float16([1, 2])),
        "v": pa.array(["a", "b"], pa.string_view()), "k": pa.array([2, 1], pa.int32()),
    }  # fmt: skip
    found, said = read(columns, "a.pq")
    assert found == {"d": [1.25, 0.5], "h": [1, 2], "v": ["a", "b"], "k": [2, 1]}
    assert not said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("a,b\n1,2\n3\n", "cannot be read"),
        ("a,b\n", "has no rows"),
        ("a,a,b\nx,2,3\n", "more than one column 'a'"),
        (b"PK\x03\x04\x14\0\0", "is a zip archive or an Excel file"),
        (b"a,b\n\x1b]0;title\x07,x\n", r"control character '\\x1b'"),
        (b"a,b\n\x81,x\n", "neither UTF-8 nor cp1252; name its --encoding"),
    ],
)
def test_files_that_are_no_tables(content, message, read):
    with pytest.raises(UserError, match=message):
        read(content)


def test_other_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv cannot be read: No such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "a.parquet").write_text(CSV)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read"):
        read_table(tmp_path / "a.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a folder without Parquet files"):
        read_table(tmp_path / "empty")


def test_without_pyarrow(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"crossentropy\[learn\]"):
        read_table(tmp_path / "a.csv")


def test_a_folder_of_parquet_files(tmp_path):
    for year, columns in ((2023, {"y": ["p"]}), (2024, {"y": ["q"], "extra": [1.5]})):
        path = tmp_path / f"d/year={year}"
        path.mkdir(parents=True)
        parquet.write_table(pa.table(columns), path / "0.parquet")
    table = read_table(tmp_path / "d", Reading(target="y"))
    found = {name: column.to_pylist() for name, column in table.columns.items()}
    assert found == {"year": [2023, 2024], "y": ["p", "q"], "extra": [None, 1.5]}
    folders, extra = table.said
    assert "from the names of folders: 'year'" in folders
    assert "column 'extra' is in 1 of 2 files" in extra
    parquet.write_table(pa.table({"y": [date(2020, 1, 1)]}), tmp_path / "d/year=2023/1.parquet")
    with pytest.raises(UserError, match=r"the files in .* differ"):
        read_table(tmp_path / "d")


# ---- how text is written -------------------------------------------------------------------------

PLAIN = lines("größe,wort,y", "0.5,rot,ja", "-1.25,grün,nein", '3,"a,b;c",ja', times=2)
COLUMNS = {
    "größe": [0.5, -1.25, 3] * 2, "wort": ["rot", "grün", "a,b;c"] * 2,
    "y": ["ja", "nein", "ja"] * 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_encodings(encoding, read):
    found, said = read(PLAIN.encode(encoding))
    assert found == COLUMNS
    name = {"utf-8-sig": "utf-8"}.get(encoding, encoding)
    assert said == ([] if name == "utf-8" else [
        f"the text is read as {name}; --encoding names another"
    ])  # fmt: skip
    found, said = read(PLAIN.encode(encoding), encoding=encoding)
    assert (found, said) == (COLUMNS, [])


def test_another_encoding_far_behind_the_first_lines(read):
    found, said = read(
        (PLAIN * 1000).replace("größe,wort,y\n", "")[:-1].encode() + b"\n1,gr\xfcn,ja"
    )
    assert found["column2"][-1] == "grün"
    assert "cp1252" in said[0]


def test_encodings_that_are_not_right(read):
    with pytest.raises(UserError, match="not --encoding utf-8"):
        read(PLAIN.encode("cp1252"), encoding="utf-8")
    with pytest.raises(UserError, match="--encoding: Python knows none called 'klingon'"):
        read(PLAIN, encoding="klingon")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_ends_of_lines_and_compression(newline, read):
    text = PLAIN.replace("\n", newline)
    assert read(text) == (COLUMNS, [])
    assert read(gzip.compress(text.encode()), "a.csv.gz") == (COLUMNS, [])


def test_line_breaks_in_cells(read):
    found, _ = read('"a\nb",y\n"1\n2",p\nx,q\n')
    assert found == {"a\nb": ["1\n2", "x"], "y": ["p", "q"]}


@pytest.mark.parametrize(
    ("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (" ", "blanks")]
)
def test_separators(separator, name, read):
    text = PLAIN.replace('"a,b;c"', "x").replace(",", separator)
    columns = COLUMNS | {"wort": ["rot", "grün", "x"] * 2}
    found, said = read(text, "a.tsv")
    assert found == columns
    assert said == [f"the table has {name} between the cells (--separator names another mark)"]
    assert read(text, separator=separator) == (columns, [])


def test_decimal_commas(read):
    text = lines("a;b;y", "0,5;1.234,5;p", "1,234;7,5;q", "2;1;p")
    found, said = read(text)
    assert found == {"a": [0.5, 1.234, 2], "b": [1234.5, 7.5, 1], "y": ["p", "q", "p"]}
    assert said[0] == (
        "the table has semicolons between the cells (--separator names another mark) and decimal "
        "commas in 'a', 'b' (--decimal . for points)"
    )
    found, _ = read(text, decimal=".", separator=";")  # other values decide what 1,234 is
    assert found["a"] == [0.5, 1.234, 2]
    assert read(lines("a;y", "1,234;p"), decimal=".")[0]["a"] == [1234]
    for separator in (";", ","):  # the unambiguous numbers decide what 3.750 is
        text = lines("a;b;y", '"39,1";3.750;p', '"40,25";4.500;q').replace(";", separator)
        assert read(text)[0] == {"a": [39.1, 40.25], "b": [3750, 4500], "y": ["p", "q"]}


def test_one_column_of_decimal_commas_between_commas(read):
    found, said = read(lines("a,b,y", '"1,25",1.234,p', '"2,5",2.5,q'))
    assert found == {"a": [1.25, 2.5], "b": [1.234, 2.5], "y": ["p", "q"]}
    assert said == [
        "column 'a' holds numbers; written in another way: '1,25' = 1.25 (row 1), '2,5' = 2.5 "
        "(row 2)"
    ]


def test_cells_with_other_separators_in_them(read):
    text = lines("id,name,y", "1,a;b,p", "2,c;d,q", "3,e;f,p")
    assert read(text) == (
        {"id": [1, 2, 3], "name": ["a;b", "c;d", "e;f"], "y": ["p", "q", "p"]},
        [],
    )


def test_blanks_around_names_and_cells(read):
    found, said = read(lines("a, b , y", "1, u , p", "2, v,q "))
    assert (found, said) == ({"a": [1, 2], "b": ["u", "v"], "y": ["p", "q"]}, [])


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8])
def test_a_table_without_names(bom, read):
    found, said = read(bom + b"0.5,u,p\n1.5,v,q\n2,u,q\n")
    assert found == {
        "column1": [0.5, 1.5, 2],
        "column2": ["u", "v", "u"],
        "column3": ["p", "q", "q"],
    }
    assert "the first line holds numbers, so it counts as a row" in said[0]
    assert "--header" in said[0]
    found, said = read(bom + b"0.5,u,p\n1.5,v,q\n2,u,q\n", header=True)
    assert (list(found), said) == (["0.5", "u", "p"], [])


def test_names_that_are_numbers(read):
    found, said = read(lines("1990,2000,2010", "1,2,0", "3,4,1"))
    assert list(found) == ["1990", "2000", "2010"]
    assert "the names in the first line are numbers; --no-header" in said[0]
    found, said = read(lines("1990,2000,2010", "1,2,0", "3,4,1"), header=False)
    assert (found["column1"], said) == ([1990, 1, 3], [])


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__"])
def test_an_index_without_a_name(name, read):
    text = lines(f"{name},a,y", "7,1,p", "8,1,q", "9,2,p")
    found, said = read(text)
    assert list(found) == ["a", "y"]
    assert len(said) == 1
    assert "index" in said[0]
    kept, said = read(text, keep=(name or "column1",))
    assert (kept[name or "column1"], said) == ([7, 8, 9], [])


def test_columns_without_names_that_are_no_index(read):
    found, said = read(lines("a,,y,", "1,5,p,", "2,5,q,"))
    assert found == {"a": [1, 2], "column2": [5, 5], "y": ["p", "q"]}
    assert "column 2 has no name; it is called 'column2'" in said[0]
    assert "column 4 has no name and holds nothing" in said[1]


def test_first_lines_of_another_length(read):
    assert read(lines('"a" "y"', '"r1" 1 p', '"r2" 2 q'))[0] == {"a": [1, 2], "y": ["p", "q"]}
    assert read(lines("a,y", "1,p,", "2,q,"))[0] == {"a": [1, 2], "y": ["p", "q"]}
    assert read(lines("a,b,y", "1\t5\tp", "2\t6\tq"))[0] == {
        "a": [1, 2],
        "b": [5, 6],
        "y": ["p", "q"],
    }


def test_a_line_that_names_the_separator(read):
    assert read('"sep=;"\r\na;y\r\n1;p\r\n2;q\r\n')[0] == {"a": [1, 2], "y": ["p", "q"]}
    assert read("sep=|\n1.5|p\n1|q\n")[0] == {"column1": [1.5, 1], "column2": ["p", "q"]}


@pytest.mark.parametrize(
    "text", [lines("a,y", "1,25,p", "1,75,q"), lines("My table", "a,y", "1,p")]
)
def test_first_lines_that_do_not_belong_to_the_others(text, read):
    with pytest.raises(UserError, match="is there a title above the names, or another --separator"):
        read(text)


def test_text_that_is_mostly_numbers(read):
    found, said = read(lines("a,y", "1,0", "2,1", "A,x", "3,0"))
    assert found == {"a": ["1", "2", "A", "3"], "y": ["0", "1", "x", "0"]}
    assert said == [
        "column 'a' stays text; no numbers are 'A' (row 3)",
        "column 'y' stays text; no numbers are 'x' (row 3)",
    ]


def test_question_marks_in_text_are_gaps(read):
    assert read(lines("a,y", "u,?", "?,q", "v,p"))[0] == {
        "a": ["u", None, "v"],
        "y": [None, "q", "p"],
    }


def test_a_column_that_counts_rows_is_named_and_kept(read):
    found, said = read(lines("id,y", *(f"{k},{'pq'[k % 2]}" for k in range(1, 31))))
    assert len(found) == 2
    assert said == [
        "column 'id' counts the rows; if that is all it does, leave it out by --drop id"
    ]


def test_the_time_grows_with_the_columns_and_not_with_their_square(read):
    names = [f"x{k}" for k in range(6000)]
    text = lines(",".join(names), *(",".join(f"{k}.{i}" for k in range(6000)) for i in range(3)))
    begin = process_time()
    assert len(read(text)[0]) == 6000
    assert process_time() - begin < 5  # seconds; it was 14


def test_values_that_are_named_as_missing(read):
    found, _ = read(lines("a,b,y", "-99,inf,p", "1,2.5,gone"), gaps=("-99", "inf", "gone"))
    assert found == {"a": [None, 1], "b": [None, 2.5], "y": ["p", None]}


def test_columns_that_are_dropped(read):
    text = lines('a,b,"c,d",e,y', "1,2,3,4,p", "5,6,7,8,q")
    for drop in (("a", "c,d", "b"), ("a,b", "c,d")):
        assert list(read(text, drop=drop)[0]) == ["e", "y"]
    assert list(read(text, drop=("y",), target="b")[0]) == ["a", "b", "c,d", "e"]
    with pytest.raises(UserError, match="--drop: there is no column 'x'; there are a, b"):
        read(text, drop=("a,x",))
    with pytest.raises(UserError, match="no column 'x'; there are"):
        read(text, target="x")


# ---- tables for a model --------------------------------------------------------------------------

KINDS = {"n": "numbers", "t": "text", "b": "booleans", "y": "text"}


def test_types_come_from_the_model(read):
    found, said = read("n,t,b,y,other\n1,01,true,1,9\n?,2,0,2,9\n", kinds=KINDS, target="y")
    assert found == {"n": [1, None], "t": ["01", "2"], "b": [True, False], "y": ["1", "2"]}
    assert said == ["column 'n' holds numbers; taken as missing: '?' (row 2)"]
    columns = {"n": [True, False], "t": [1, 2], "b": ["False", None], "unknown": [1, 2]}
    found, said = read(columns, "a.pq", kinds=KINDS, target="y")
    assert found == {"n": [1, 0], "t": ["1", "2"], "b": [False, None]}
    assert not said


def test_one_row_is_enough_for_a_model(read):
    assert read("n,t,b\n?,,\n", kinds=KINDS, target="y")[0] == {
        "n": [None],
        "t": [None],
        "b": [None],
    }
    assert read("n,t,b\n1,2,3\n1,2,1\n", kinds=KINDS, target="y")[0]["b"] == [None, True]
    with pytest.raises(UserError, match="'n' holds text; numbers are what was learnt from"):
        read("n,t,b\nabc,2,1\n", kinds=KINDS, target="y")
    with pytest.raises(UserError, match="no column 't'"):
        read("n,b\n1,1\n", kinds=KINDS, target="y")


# ---- what cannot be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n1,p\ninf,q\n", "column 'a': row 2 is infinite; --na-values inf"),
        ("a,y\n2020-01-01,p\n2020-01-02,q\n", "column 'a' holds date32.*--drop a"),
        ("a b,y\n,p\n,q\n", "column 'a b' holds nothing.*--drop 'a b'"),
        ("a,y\n1,\n2,\n", "column 'y' holds nothing.*name another --target"),
        ("y\n1\n", "'y' is the only column"),
    ],
)
def test_columns_that_are_no_features(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        prepared(read_table(tmp_path / "a.csv"), "fill", ())


def test_an_unnamed_column_takes_no_name_of_another(read):
    found, _ = read(lines(",column1,z,y", "3,0,0.3,a", "3,1,0.5,b", "4,0,0.1,a"))
    assert found == {
        "column1_": [3, 3, 4], "column1": [0, 1, 0], "z": [0.3, 0.5, 0.1], "y": ["a", "b", "a"],
    }  # fmt: skip


def test_words_above_the_same_words_are_no_names(read):
    found, said = read(lines("blue,small,a", "red,big,b", "blue,small,a", "red,small,b", times=3))
    assert found["column1"][:3] == ["blue", "red", "blue"]
    assert "the first line has words of the others, so it counts as a row" in said[0]
    named, said = read(lines("colour,small,a", "red,big,b", "blue,small,a", times=3))
    assert [*named] == ["colour", "small", "a"]
    assert said == []


def test_quotes_behind_a_blank_are_quotes(read):
    found, said = read(lines('"h", "x", "y"', '"0", "2.5", "a"', '"1", "3.5", "b"', times=3))
    assert found == {"h": [0, 1] * 3, "x": [2.5, 3.5] * 3, "y": ["a", "b"] * 3}
    assert not any('"' in line for line in said)


def test_the_decimal_mark_of_a_doubt_is_that_of_the_first_table(read):
    text = lines("p;q", "3.750;39", "4.125;40")
    assert read(text)[0]["p"] == [3.75, 4.125]
    assert read(text, doubt=",")[0]["p"] == [3750, 4125]
    assert read(lines("p;q", "3.75;39"), doubt=",")[0]["p"] == [3.75]
