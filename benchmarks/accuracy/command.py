"""The errors of every loss, by type, engine, number of classes and margin, against many digits.

    python -m benchmarks.accuracy                                   # all; goes on if interrupted
    python -m benchmarks.accuracy sparsemax_loss --engines native --dtypes float32
    python -m benchmarks.accuracy --docs                            # and write docs/accuracy

A cell is a loss, a type, a number of classes and a number that is added to all logits. In each, the
logit of the target is -100 to 100 nats above the largest of the others.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .losses import SIZES, SUBJECTS
from .others import others
from .report import summarised, table, write_docs
from .run import DTYPES, cell_of, cells, read, run


def main() -> None:
    """Measure what is asked for and not measured yet, and print the table."""
    args = _arguments()
    names = [n for n in SUBJECTS if not args.losses or n.partition(",")[0] in args.losses]
    if not names:
        raise SystemExit(f"no such loss; there are {', '.join(SUBJECTS)}")
    todo = list(cells(names, args.dtypes, args.classes))
    args.file.parent.mkdir(parents=True, exist_ok=True)
    run(todo, args.file, args.engines, args.processes)
    asked = set(todo)
    records = [record for record in read(args.file) if cell_of(record) in asked]
    _, missing = others()
    atlas = summarised(records, missing)
    print(table(atlas))
    if args.docs:
        write_docs(atlas)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("losses", nargs="*", help="names of losses; by default all")
    parser.add_argument("--engines", nargs="+", help="engines and libraries; by default all")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--classes", nargs="+", type=int, default=list(SIZES), choices=SIZES)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--file", type=Path, default=Path("benchmarks/results/accuracy.jsonl"),
        help="cells that are measured; remove lines, or the file, to measure again",
    )  # fmt: skip
    parser.add_argument("--docs", action="store_true", help="write docs/accuracy")
    return parser.parse_args()
