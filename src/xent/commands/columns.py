"""Columns of tables: their kinds, and casts to numbers, text or booleans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .console import UserError
from .written_numbers import Strangers, compute, numbers_of

QUOTED_AFTER_BLANK = r'^\s+"([^"]*)"\s*$'  # as in: a, "b", "c"
NUMBERS, TEXT, BOOLEANS, NOTHING = "numbers", "text", "booleans", "nothing"


def kind_of(column: Any) -> str:
    """Return the kind of a column: numbers, text, booleans, nothing, or Arrow's type."""
    from pyarrow import types

    type = column.type
    if types.is_integer(type) or types.is_floating(type):
        return NUMBERS
    if types.is_string(type):
        return TEXT
    return {"bool": BOOLEANS, "null": NOTHING}.get(str(type), str(type))


def plain(column: Any, gaps: Sequence[str], decimal: str, most: float | None) -> tuple[Any, str]:
    """Return a column as one of few types: missing values are null, text of numbers is numbers.

    Args:
        column: a column of Arrow.
        gaps: values that stand for a missing one.
        decimal: the decimal mark of the file.
        most: the largest share of other values in a column of numbers; None keeps text as text.

    Returns:
        The column, and a remark about it, or "".
    """
    import pyarrow
    from pyarrow import types

    pc = compute()
    type = column.type
    declared = types.is_dictionary(type)  # the file declares categories
    if declared:
        column = column.cast(type.value_type)
        type = column.type
    if types.is_decimal(type) or types.is_float16(type):
        column = column.cast(pyarrow.float32() if types.is_float16(type) else pyarrow.float64())
    elif types.is_large_string(type) or str(type) == "string_view":
        column = column.cast(pyarrow.string())
    kind = kind_of(column)
    if kind == NUMBERS:
        marks = [float(word) for word in gaps if _is_float(word)]
        if marks:
            marked = pc.is_in(column.cast(pyarrow.float64(), safe=False), pyarrow.array(marks))
            column = pc.if_else(marked, None, column)
        floating = types.is_floating(column.type)
        return (pc.if_else(pc.is_nan(column), None, column) if floating else column), ""
    if kind != TEXT:
        return column, ""
    column = pc.replace_substring_regex(column, QUOTED_AFTER_BLANK, r"\1")
    found = None if declared or most is None else numbers_of(column, gaps, decimal, most)
    if found is None or found.column is None:
        column = pc.utf8_trim_whitespace(column)
        said = f"stays text; no numbers are {_examples(found.missing)}" if found else ""
        return pc.if_else(pc.is_in(column, pyarrow.array(["", "?", *gaps])), None, column), said
    said = _strange(found.missing, found.written)
    return _whole(found.column), f"holds numbers; {said}" if said else ""


def _is_float(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _whole(column: Any) -> Any:
    """Return numbers as integers if all are whole."""
    import pyarrow

    pc = compute()
    whole = pc.all(pc.equal(pc.floor(column), column)).as_py()
    if not whole or pc.max(pc.abs(column)).as_py() >= 2**53:
        return column
    return column.cast(pyarrow.int64())


def _strange(missing: Strangers, written: Strangers) -> str:
    """Return a sentence about values that are no plain numbers, and the number each stands for."""
    parts = []
    if missing.rows:
        parts.append(f"taken as missing: {_examples(missing)}")
    if written.rows:
        parts.append(f"written in another way: {_examples(written)}")
    return "; ".join(parts)


def _examples(strangers: Strangers) -> str:
    words, rows = [], 0
    for text, number, count, first in strangers.examples:
        value = "" if np.isnan(number) else f" = {number:.15g}"
        where = f"row {first}" if count == 1 else f"{count:,} rows, the first row {first}"
        words.append(f"{text!r}{value} ({where})")
        rows += count
    more = strangers.values - len(words)
    tail = f" and {more:,} more in {strangers.rows - rows:,} rows" if more else ""
    return ", ".join(words) + tail


def cast(name: str, column: Any, kind: str) -> tuple[Any, str]:
    """Return a column as the kind that a model knows, and a remark about it, or "".

    Raises:
        UserError: if the column is of another kind.
    """
    import pyarrow

    pc = compute()
    types = {NUMBERS: pyarrow.float64(), TEXT: pyarrow.string(), BOOLEANS: pyarrow.bool_()}
    found = kind_of(column)
    if found == kind:
        return column, ""
    if found == NOTHING or (found in types and kind == TEXT):
        return pc.cast(column, types[kind]), ""
    if found == BOOLEANS:
        return pc.cast(column, pyarrow.int8()), ""
    if found in types and kind == BOOLEANS:
        words = pc.utf8_lower(pc.cast(column, pyarrow.string()))
        which = pc.index_in(words, pyarrow.array(["false", "true", "0", "1"]))
        others = column.filter(pc.and_(which.is_null(), column.is_valid()))
        if len(others) < len(column) - column.null_count or not len(others):
            words = listed(map(repr, others.unique().to_pylist()), 5)
            said = f"holds booleans; taken as missing: {words}" if words else ""
            return pc.equal(pc.bit_wise_and(which, 1), 1), said
    raise UserError(f"column {name!r} holds {found}; {kind} are what was learnt from")


def listed(things: Iterable[Any], most: int = 12) -> str:
    """Join things with commas; of many, name the first and count the others."""
    words = [str(thing) for thing in things]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
