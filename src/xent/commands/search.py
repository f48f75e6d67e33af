"""``xent search``: look for a loss that suits a table of features and classes."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..learn.loss_formula import CROSS_ENTROPY, Formula
from ..learn.loss_search import RECORD, Found, HeldOutAccuracy, search_loss
from .console import UserError, as_options, say, say_json, table

FRESH = 1_000_000  # rounds from here on are for the test; no search gets that far
FEWEST = 40  # rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent search``."""
    parser.add_argument(
        "data", nargs="?", metavar="CSV",
        help="a table of numbers, the class in the last column; default: scikit-learn's digits",
    )  # fmt: skip
    parser.add_argument("--out", default="runs/search", help="folder for the record (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue the search in --out")
    whole = {"type": int, "metavar": "N"}
    parser.add_argument("--generations", default=12, help="how many (%(default)s)", **whole)
    parser.add_argument("--population", default=12, help="of each (%(default)s)", **whole)
    parser.add_argument("--steps", default=600, help="batches per network (%(default)s)", **whole)
    parser.add_argument("--hidden", default=128, help="hidden units (%(default)s)", **whole)
    parser.add_argument("--seed", default=0, help="of search and split (%(default)s)", **whole)
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Search on two thirds of the rows, and compare on the others."""
    for name in ("steps", "hidden"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    x, y = read_csv(Path(args.data)) if args.data else _digits()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(args.seed))
    third = len(y) // 3
    sizes = [third, third, len(y) - 2 * third]  # to learn from, to judge by, to test on
    (x, u, w), (y, v, t) = x[order].split(sizes), y[order].split(sizes)
    low = x.amin(0)
    span = torch.where(x.amax(0) > low, x.amax(0) - low, 1.0)
    x, u, w = ((part - low) / span for part in (x, u, w))  # from 0 to 1 where we learn
    judge = HeldOutAccuracy(x, y, u, v, hidden=args.hidden, steps=args.steps)
    try:
        found = search_loss(
            judge, generations=args.generations, population=args.population, seed=args.seed,
            folder=args.out, resume=args.resume, quiet=args.quiet,
        )  # fmt: skip
    except (ValueError, ImportError, OSError) as error:
        raise UserError(as_options(str(error), vars(args))) from None
    fresh = replace(judge, held_out_x=w, held_out_y=t, networks=12)
    test = fresh.of_each_network([Formula.at(CROSS_ENTROPY), found.formula], FRESH)
    _report(args, found, test, len(t))
    return 0


def _report(args: argparse.Namespace, found: Found, test: Tensor, rows: int) -> None:
    """Print what was found and what it is worth."""
    plain, best = test.mean(1).tolist()
    if args.json:
        result = {
            "formula": str(found.formula),
            "source": found.formula.source(),
            "judged": {"found": found.score, "cross-entropy": found.cross_entropy},
            "test": {"found": best, "cross-entropy": plain, "rows": rows},
        }
        say_json(result)
        return
    wins = int((test[1] > test[0]).sum())
    lines = [("accuracy in percent", "found", "cross-entropy")]
    for where, a, b in (
        ("where it was judged", found.score, found.cross_entropy),
        (f"on {rows} unseen rows", best, plain),
    ):
        lines.append((where, f"{100 * a:.2f}", f"{100 * b:.2f}"))
    say(
        f"{found.formula.source()}\n{table(lines)}\n\nbetter with {wins} of {test.shape[1]} fresh "
        f"networks\n\nrecord: {Path(args.out, RECORD)}"
    )


def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("name a CSV file, or install scikit-learn for its digits") from None
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def read_csv(path: Path) -> tuple[Tensor, Tensor]:
    """Features and classes of a table; a first line of names is passed over.

    Args:
        path: the file. Classes may be any words or numbers.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    cells = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    if cells and not all(map(_is_number, cells[0][:-1])):
        cells = cells[1:]
    if len(cells) < FEWEST:
        raise UserError(f"{path} has {len(cells)} rows; a search takes at least {FEWEST}")
    width = len(cells[0])
    for number, row in enumerate(cells, 1):
        if len(row) != width or width < 2 or not all(map(_is_number, row[:-1])):
            raise UserError(f"{path}, row {number}: wanted {width - 1} finite numbers and a class")
    names = sorted({row[-1] for row in cells})
    if not 2 <= len(names) <= len(cells) // 3:
        raise UserError(
            f"{path} has {len(names)} classes in {len(cells)} rows; the class must come last"
        )
    x = torch.tensor([[float(cell) for cell in row[:-1]] for row in cells])
    return x, torch.tensor([names.index(row[-1]) for row in cells])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
