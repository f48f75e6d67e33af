"""Text that stands for numbers: ``1,234``, ``5%``, ``1.234,5``, and marks of missing values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

MOST_STRANGERS = 0.1  # largest share of other values in a column of numbers
MOST_EXAMPLES = 5  # named in a remark
GAPS = frozenset([
    "", "?", "-", "--", "---", ".", "..", "...", "\u2013", "\u2014", "*", "na", "n/a", "n.a.",
    "nan", "null", "none", "nil", "missing", "unknown", "#n/a", "#na", "#value!", "#div/0!",
    "#ref!", "#null!",
])  # fmt: skip
# A number with a decimal point, and one with a decimal comma; the other mark groups three digits.
POINT = r"^-?((\d+|[1-9]\d{0,2}(,\d{3})+)(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"
COMMA = r"^-?((\d+|[1-9]\d{0,2}(\.\d{3})+)(,\d*)?|,\d+)([eE][+-]?\d+)?$"
GROUPED = r"^-?\d{1,3}([ '\x{2019}\x{a0}\x{2009}\x{202f}]\d{3})+([.,]\d+)?$"
PLAIN = r"^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class Stranger(NamedTuple):
    """A value that is not written as a plain number.

    Attributes:
        text: how it is written.
        number: the number that the text stands for, NaN for a missing value or no number.
        rows: how often it occurs.
        first: the first row, from 1.
    """

    text: str
    number: float
    rows: int
    first: int


class Strangers(NamedTuple):
    """Values of one kind that are not plain numbers.

    Attributes:
        rows: how many rows have one.
        values: how many different values there are.
        examples: the most frequent values.
    """

    rows: int
    values: int
    examples: list[Stranger]


class Numbers(NamedTuple):
    """A column of text as numbers.

    Attributes:
        column: an Arrow array of float64, null where there is no number; None if too many values
            are no numbers.
        missing: values that stand for no number; without a column, only those that are no gaps.
        written: values that are numbers, but are not written plainly.
    """

    column: Any
    missing: Strangers
    written: Strangers


def compute() -> Any:
    """Arrow's functions of columns; they are made by the import, where type checkers miss them."""
    import pyarrow.compute

    return pyarrow.compute


def numbers_of(
    column: Any, gaps: Sequence[str] = (), decimal: str = ".", most: float = MOST_STRANGERS
) -> Numbers | None:
    """Read the numbers of a column of text.

    Values such as ``1.234,5`` and ``0,5`` show the meaning of comma and point without a doubt. A
    value that leaves a doubt, such as ``1,234``, is read as most of the others.

    Args:
        column: text, a column of Arrow.
        gaps: values that count as missing besides :data:`GAPS`.
        decimal: the decimal mark where the column leaves a doubt.
        most: the largest share of values that may be neither a number nor a gap.

    Returns:
        The :class:`Numbers`; None if the column holds more other values than numbers.
    """
    import pyarrow

    pc = compute()

    coded = column.dictionary_encode().unify_dictionaries()
    words = coded.chunk(0).dictionary
    codes = np.concatenate([
        chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in coded.chunks
    ])  # fmt: skip
    counts = np.bincount(codes[codes >= 0], minlength=len(words))
    trimmed = pc.utf8_trim_whitespace(words)
    known = pyarrow.array([*GAPS, *(word.lower() for word in gaps)])
    gap = pc.is_in(pc.utf8_lower(trimmed), known).to_numpy(zero_copy_only=False)
    values = _values(trimmed, counts, decimal)
    values[gap] = np.nan
    number = ~np.isnan(values)
    strange = counts[~number & ~gap].sum()
    numbers = counts[number].sum()
    if strange and (not numbers or strange > max(most, 0.5) * (numbers + strange)):
        return None
    usable = strange <= most * (numbers + strange)
    at_sight = pc.if_else(pc.match_substring_regex(trimmed, PLAIN), trimmed, None)
    plain = pc.cast(at_sight, "float64").to_numpy(zero_copy_only=False) == values
    there, rows = np.unique(codes, return_index=True)
    firsts = np.zeros(len(words), int)
    firsts[there[there >= 0]] = rows[there >= 0] + 1

    def strangers(which: np.ndarray) -> Strangers:
        found = np.flatnonzero(which)
        most = found[np.argsort(-counts[found], kind="stable")[:MOST_EXAMPLES]]
        examples = [
            Stranger(words[int(k)].as_py(), float(values[k]), int(counts[k]), int(firsts[k]))
            for k in most
        ]
        return Strangers(int(counts[found].sum()), len(found), examples)

    if not usable:
        return Numbers(None, strangers(~number & ~gap), strangers(number & ~plain))
    whole = np.append(values, np.nan)[codes]  # -1, the null, is the last
    column = pyarrow.chunked_array([pyarrow.array(whole, from_pandas=True)])
    empty = pc.equal(trimmed, "").to_numpy(zero_copy_only=False)
    return Numbers(column, strangers(~number & ~empty), strangers(number & ~plain))


def _values(words: Any, counts: np.ndarray, decimal: str) -> np.ndarray:
    """Return the numbers that words stand for; NaN for a word that is no number."""
    pc = compute()

    def matches(pattern: str) -> np.ndarray:
        return pc.match_substring_regex(words, pattern).to_numpy(zero_copy_only=False)

    percent = pc.ends_with(words, "%").to_numpy(zero_copy_only=False)
    for old, new in (
        (r"^\+", ""),
        ("^[\u2212\u2013]", "-"),
        (r"\s*%$", ""),
        (r"^(-?)\p{Sc}\s*|\s*\p{Sc}$", r"\1"),
    ):
        words = pc.replace_substring_regex(words, old, new)
    together = pc.replace_substring_regex(words, r"[^-\d.,]", "")
    words = pc.if_else(matches(GROUPED), together, words)
    point, comma = matches(POINT), matches(COMMA)
    sure_point, sure_comma = counts[point & ~comma].sum(), counts[comma & ~point].sum()
    if sure_point != sure_comma:
        decimal = "." if sure_point > sure_comma else ","
    by_comma = comma & (~point | (decimal == ","))
    plain = pc.if_else(
        by_comma,
        pc.replace_substring(pc.replace_substring(words, ".", ""), ",", "."),
        pc.replace_substring(words, ",", ""),
    )
    readable = point | comma
    plain = pc.if_else(readable, plain, None)
    values = pc.cast(plain, "float64").to_numpy(zero_copy_only=False)
    return np.where(percent, values / 100, values)
