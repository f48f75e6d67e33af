"""Columns of text that hold numbers."""

import math

import pytest

pa = pytest.importorskip("pyarrow")

from xent.commands.written_numbers import numbers_of  # noqa: E402


def column(*words):
    return pa.chunked_array([pa.array(words, pa.string())])


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["1", "2.5", "-3", ".5", "1e3", "+7", "\u22122"], [1, 2.5, -3, 0.5, 1000, 7, -2]),
        (["0.5", "1,234", "12,345,678.5"], [0.5, 1234, 12345678.5]),
        (["0,5", "1.234", "12.345.678,5"], [0.5, 1234, 12345678.5]),
        (["3,25", "1,234"], [3.25, 1.234]),
        (["1,234", "5,678"], [1234, 5678]),
        (["7", "1.234,5", "1,234.5"], [7, 1234.5, 1234.5]),
        (["5%", "12.5 %", "-1%"], [0.05, 0.125, -0.01]),
        (["$5", "$1,234.50", "-€3", "7 €"], [5, 1234.5, -3, 7]),
        (["1 234", "1'234'567.5", "1\u00a0234", "12"], [1234, 1234567.5, 1234, 12]),
        (["1", " 2 ", "?", "-", "NA", "n/a", "", None], [1, 2, *[None] * 6]),
        (["1,23,4", *"123456789"], [None, *range(1, 10)]),
    ],
)
def test_what_is_written(words, numbers):
    assert numbers_of(column(*words)).column.to_pylist() == numbers


def test_a_doubt_is_resolved_by_the_column_and_then_by_the_file():
    assert numbers_of(column("1,234"), decimal=",").column.to_pylist() == [1.234]
    assert numbers_of(column("1,234"), decimal=".").column.to_pylist() == [1234]
    for decimal in ".,":
        assert numbers_of(column("1,234", "0.5"), decimal=decimal).column[0].as_py() == 1234
        assert numbers_of(column("1,234", "0,5"), decimal=decimal).column[0].as_py() == 1.234


@pytest.mark.parametrize("gaps", [0, 50])
def test_at_most_one_in_ten_may_be_something_else(gaps):
    some = [str(k) for k in range(90)] + ["?"] * gaps
    found = numbers_of(column(*some, *["x"] * 10))
    assert found.column.to_pylist() == [*range(90), *[None] * (gaps + 10)]
    text = numbers_of(column(*some, *["x"] * 11))
    assert text.column is None
    assert text.missing == (11, 1, [("x", pytest.approx(math.nan, nan_ok=True), 11, 91 + gaps)])
    assert numbers_of(column(*some, *["x"] * 11), most=1.0) is not None
    assert numbers_of(column(*some, "x"), most=0.0).column is None
    assert numbers_of(column("1", "x", "y"), most=1.0).column.to_pylist() == [1, None, None]


def test_words_are_no_numbers():
    assert numbers_of(column("a", "b", "?")) is None
    assert numbers_of(column("x"), most=1.0) is None
    assert numbers_of(column("?", "-")).column.to_pylist() == [None, None]


def test_values_that_are_named_as_gaps():
    words = ["1", "2", *["gone"] * 5]
    assert numbers_of(column(*words)) is None
    assert numbers_of(column(*words), gaps=["gone"]).column.to_pylist() == [1, 2, *[None] * 5]
    assert numbers_of(column("1", "-99"), gaps=["-99"]).column.to_pylist() == [1, None]


def test_values_that_are_no_numbers_are_counted_and_located():
    words = ["1", "?", "5%", "-", "?", "", "2"]
    found = numbers_of(pa.chunked_array([column(*words).chunk(0), column("?", "1,000").chunk(0)]))
    assert found.missing.rows == 4
    assert [(one.text, one.rows, one.first) for one in found.missing.examples] == [
        ("?", 3, 2), ("-", 1, 4),
    ]  # fmt: skip
    assert all(math.isnan(one.number) for one in found.missing.examples)
    assert [one[:] for one in found.written.examples] == [("5%", 0.05, 1, 3), ("1,000", 1000, 1, 9)]
    thousands = numbers_of(column("3.750", "1.250"), decimal=",")
    assert [one[:2] for one in thousands.written.examples] == [("3.750", 3750), ("1.250", 1250)]
    many = numbers_of(column(*map(str, range(200)), *(f"x{k}" for k in range(20))))
    assert (many.missing.rows, many.missing.values, len(many.missing.examples)) == (20, 20, 5)
