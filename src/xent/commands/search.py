"""``xent search``: look for a loss that suits a table of features and classes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..learn.loss_formula import CROSS_ENTROPY, Formula
from ..learn.loss_search import RECORD, Found, HeldOutAccuracy, search_loss
from .console import UserError, as_options, say_json
from .features import Encoding
from .page import table
from .run_folder import RECORD as RESULT
from .run_folder import RunFolder
from .table import Reading
from .table_options import (
    add_table_arguments,
    reading_of,
    refuse_table_options,
    table_to_learn_from,
)
from .workers import add_workers_argument, workers

FRESH = 1_000_000  # rounds from here on are for the test; no search gets that far
FEWEST = 40  # rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent search``."""
    parser.add_argument(
        "data", nargs="?", metavar="TABLE",
        help="CSV, or Parquet: a file or a folder; default: scikit-learn's digits",
    )  # fmt: skip
    parser.add_argument("--target", metavar="COLUMN", help="the class (default: the last column)")
    parser.add_argument("--out", default="runs/search", help="folder for the record (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue the search in --out")
    whole = {"type": int, "metavar": "N"}
    parser.add_argument("--generations", default=12, help="how many (%(default)s)", **whole)
    parser.add_argument("--population", default=12, help="of each (%(default)s)", **whole)
    parser.add_argument("--steps", default=600, help="batches per network (%(default)s)", **whole)
    parser.add_argument("--hidden", default=128, help="hidden units (%(default)s)", **whole)
    add_workers_argument(parser, "judge a loss at a time")
    parser.add_argument("--seed", default=0, help="of search and split (%(default)s)", **whole)
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_table_arguments(parser)


class LabelledRows(NamedTuple):
    """Features ``(N, F)`` in float32 and classes ``(N,)``, and where they come from."""

    x: Tensor
    y: Tensor
    target: str | None = None
    said: Sequence[str] = ()


def run(args: argparse.Namespace) -> int:
    """Search on two thirds of the rows, and compare with cross-entropy on the others."""
    for name in ("steps", "hidden"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if not args.data:
        refuse_table_options(args, "name one")
    rows = read_csv(args.data, reading_of(args), args.missing) if args.data else _digits()
    x, y = rows.x, rows.y
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(args.seed))
    third = len(y) // 3
    sizes = [third, third, len(y) - 2 * third]  # rows to learn from, to judge by and to test on
    (x, u, w), (y, v, t) = x[order].split(sizes), y[order].split(sizes)
    low = x.amin(0)
    span = torch.where(x.amax(0) > low, x.amax(0) - low, 1.0)
    x, u, w = ((part - low) / span for part in (x, u, w))  # from 0 to 1 in the rows to learn from
    if args.resume or not Path(args.out, RECORD).exists():  # otherwise search_loss refuses to begin
        RunFolder(args.out).begin(RESULT)
    judge = HeldOutAccuracy(x, y, u, v, hidden=args.hidden, steps=args.steps)
    try:
        with workers(args.workers) as map:
            found = search_loss(
                judge, generations=args.generations, population=args.population, seed=args.seed,
                map=map, folder=args.out, resume=args.resume, quiet=args.quiet,
            )  # fmt: skip
    except (ValueError, ImportError) as error:
        raise UserError(as_options(str(error), vars(args))) from None
    fresh = replace(judge, held_out_x=w, held_out_y=t, networks=12)
    test = fresh.of_each_network([Formula.at(CROSS_ENTROPY), found.formula], FRESH)
    _report(args, found, test, rows, len(t))
    return 0


def _report(
    args: argparse.Namespace, found: Found, test: Tensor, data: LabelledRows, rows: int
) -> None:
    """Save and print the loss that was found, and its scores."""
    plain, best = test.mean(1).tolist()
    result = {
        "settings": {"table": args.data, "target": data.target, "seed": args.seed},
        "notes": [*data.said],
        "formula": str(found.formula),
        "source": found.formula.source(),
        "judged": {"found": found.score, "cross-entropy": found.cross_entropy},
        "test": {"found": best, "cross-entropy": plain, "rows": rows},
    }
    wins = int((test[1] > test[0]).sum())
    lines = [("accuracy in percent", "found", "cross-entropy")]
    for where, a, b in (
        ("where it was judged", found.score, found.cross_entropy),
        (f"on {rows} unseen rows", best, plain),
    ):
        lines.append((where, f"{100 * a:.2f}", f"{100 * b:.2f}"))
    with RunFolder(args.out) as folder:
        folder.save_json(RESULT, result)
        if args.json:
            say_json(result)
            return
        folder.wrote(RECORD)
        folder.say(
            f"{found.formula.source()}\n"
            + table(lines)
            + f"\n\nbetter with {wins} of {test.shape[1]} fresh networks"
        )


def _digits() -> LabelledRows:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("name a CSV file, or install scikit-learn for its digits") from None
    x, y = load_digits(return_X_y=True)
    return LabelledRows(torch.tensor(x, dtype=torch.float32), torch.tensor(y))


def read_csv(
    path: str | Path, reading: Reading | None = None, missing: str | None = None
) -> LabelledRows:
    """Features and classes of a table, CSV or Parquet, as tensors.

    Args:
        path: the file.
        reading: how to read it.
        missing: what to do about gaps, as by ``--missing``.

    Raises:
        UserError: if the table cannot be read or used, or has too few rows.
    """
    table, y = table_to_learn_from(path, reading or Reading(), missing)
    if len(y) < FEWEST:
        raise UserError(f"{path} has {len(y)} rows; a search takes at least {FEWEST}")
    names, classes = np.unique(y, return_inverse=True)
    if 3 * len(names) > len(y):
        raise UserError(f"{path} has {len(names)} classes in {len(y)} rows, too many to learn")
    x = Encoding.of(table).features(table).x
    x = torch.tensor(x, dtype=torch.float32)
    return LabelledRows(x, torch.tensor(classes), table.target, table.said)
