"""The options of commands that read a table."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .console import UserError
from .delimited import SEPARATORS, Format
from .features import MISSING, classes_of, prepared
from .held_out import say_target
from .table import Reading, Table, read_table

LEARNING = ("missing", "keep")  # options about a table to learn from
OPTIONS = ("separator", "decimal", "encoding", "header", "na_values", "drop", *LEARNING)
ESCAPES = {"\\t": "\t", "tab": "\t"} | {
    word: mark for mark, name in SEPARATORS.items() for word in (name, name.removesuffix("s"))
}


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say how a table is read; what they leave open is guessed."""
    group = parser.add_argument_group(
        "reading the table", "what is not given is guessed from the file, and said"
    )
    add = group.add_argument
    add("--separator", metavar="MARK", help="between two cells: , ; | tab blank")
    add("--decimal", choices=(".", ","), metavar="MARK", help="in numbers: . or ,")
    add("--encoding", metavar="NAME", help="of the text: utf-8, cp1252, utf-16, ...")
    add(
        "--header", action=argparse.BooleanOptionalAction,
        help="the first line has the names of the columns, or it is a row",
    )  # fmt: skip
    add(
        "--na-values", nargs="+", action="extend", metavar="VALUE",
        help="values that stand for a missing one, besides the usual: nothing, NA, null, ...",
    )  # fmt: skip
    add(
        "--missing", choices=MISSING,
        help="about gaps in features: the mean and a feature that marks them, in text a category "
        "of its own (fill, the default); leave out the rows; or refuse the table",
    )  # fmt: skip
    add("--drop", nargs="+", action="extend", metavar="COLUMN", help="leave these columns out")
    add(
        "--keep", nargs="+", action="extend", metavar="COLUMN",
        help="keep these, which would be left out as an index or as names",
    )  # fmt: skip


def refuse_table_options(args: argparse.Namespace, where: str) -> None:
    """Raise :class:`UserError` if an option about a table is given although there is no table."""
    for name in OPTIONS:
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is about a table; {where}")


def reading_of(args: argparse.Namespace) -> Reading:
    """The :class:`Reading` that the options and --target ask for.

    Raises:
        UserError: if a separator has more than one character.
    """
    separator = ESCAPES.get(args.separator, args.separator)
    if separator is not None and len(separator) != 1:
        raise UserError(f"--separator must be one character, or tab, got {separator!r}")
    form = Format(separator, args.decimal, args.encoding, args.header)
    return Reading(
        form, tuple(args.na_values or ()), tuple(args.drop or ()), tuple(args.keep or ()),
        args.target, args.quiet,
    )  # fmt: skip


def table_to_learn_from(
    path: str | Path, reading: Reading, missing: str | None = None
) -> tuple[Table, np.ndarray]:
    """A table, ready to learn from, and its classes ``(N,)``.

    Args:
        path: the file.
        reading: how to read it.
        missing: what to do about gaps in features, one of :data:`~.features.MISSING`.

    Raises:
        UserError: if the table cannot be read or used.
    """
    table = prepared(read_table(path, reading), missing or MISSING[0], {*reading.keep})
    y = classes_of(table)
    say_target(table, y, reading.target, reading.quiet)
    return table, y
