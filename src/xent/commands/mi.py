"""``xent mi``: the mutual information of the columns of a table and a class."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from .._package import not_installed
from .arguments import finite
from .console import UserError, as_options, progress_bar, say_json
from .features import Encoding
from .page import table
from .plot import require_matplotlib
from .run_folder import RECORD, RunFolder
from .table_options import (
    add_table_arguments,
    reading_of,
    refuse_table_options,
    table_to_learn_from,
)

USAGE = "xent mi TABLE [--target COLUMN] [--each] [options]\n       xent mi --synthetic [options]"
EPILOG = """\
The estimate is the entropy of the class less the held-out cross-entropy of a classifier: on average
a lower bound, close to the truth if the classifier's probabilities are. The interval is about the
luck of the rows only. Below 0: nothing was found."""
PICTURE, EVERYTHING = "information.png", "all columns"


class Job(NamedTuple):
    """Features and classes to estimate from, and their mutual information if it is known."""

    x: Any
    y: Any
    truth: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent mi``."""
    parser.usage, parser.epilog = USAGE, EPILOG
    parser.add_argument(
        "table", nargs="?", metavar="TABLE", help="CSV, or Parquet: a file or a folder"
    )
    parser.add_argument("--target", metavar="COLUMN", help="the class (default: the last column)")
    parser.add_argument("--each", action="store_true", help="each column by itself, too")
    parser.add_argument(
        "--synthetic", action="store_true", help="Gaussian classes whose information is known"
    )
    whole = {"type": int, "metavar": "N"}
    parser.add_argument(
        "--dims", nargs="+", default=[1, 2, 5, 10],
        help="features of the synthetic sets (default 1 2 5 10)", **whole,
    )  # fmt: skip
    parser.add_argument("--rows", default=50_000, help="of a synthetic set (%(default)s)", **whole)
    parser.add_argument(
        "--classifier", choices=tuple(CLASSIFIERS), default="network", help="default: network"
    )
    parser.add_argument("--folds", default=5, help="of the cross-fitting (%(default)s)", **whole)
    parser.add_argument("--bootstrap", default=1000, help="resamples (%(default)s)", **whole)
    parser.add_argument(
        "--confidence", type=finite, default=0.95, metavar="P", help="of the interval (%(default)s)"
    )
    parser.add_argument("--seed", default=0, help="of everything random (%(default)s)", **whole)
    parser.add_argument("--out", default="runs/mi", help="folder of the record (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--json", action="store_true", help="print the record")
    add_table_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Estimate, print, and keep record and picture."""
    require_matplotlib()
    try:
        from ..learn import MutualInformation

        classifier = CLASSIFIERS[args.classifier](args.seed)
    except ImportError as error:
        raise UserError(not_installed(error.name, "learn")) from None
    estimator = MutualInformation(
        classifier, folds=args.folds, bootstrap=args.bootstrap, confidence=args.confidence,
        seed=args.seed,
    )  # fmt: skip
    args.notes = []
    jobs = _jobs(args)
    with RunFolder(args.out) as folder:
        folder.begin(RECORD, PICTURE)
        found = _estimate(args, estimator, jobs)
        truth = {name: job.truth for name, job in jobs.items() if job.truth is not None}
        record = _record(args, found, truth)
        folder.save_json(RECORD, record)
        folder.save(PICTURE, _picture(found, truth))
        if args.json:
            say_json(record)
        else:
            folder.say(_text(found, truth))
    return 0


def _estimate(args: argparse.Namespace, estimator: Any, jobs: dict[str, Job]) -> dict[str, Any]:
    """Estimate each job: all columns first, then single columns, the best first."""
    found = {}
    with progress_bar(args.quiet or len(jobs) == 1, total=len(jobs), unit="set") as bar:
        for name, job in jobs.items():
            try:
                quiet = args.quiet or len(jobs) > 1
                found[name] = estimator.estimate(job.x, job.y, quiet=quiet)
            except ValueError as error:
                raise UserError(f"{name}: {as_options(str(error), vars(args))}") from None
            bar.update()
    if args.synthetic:
        return found
    first, *others = found
    ranked = sorted(others, key=lambda name: -found[name].nats)
    return {name: found[name] for name in (first, *ranked)}


# ---- what is looked at --------------------------------------------------------------------------


def _jobs(args: argparse.Namespace) -> dict[str, Job]:
    if args.synthetic == bool(args.table):
        raise UserError("name a table, or give --synthetic: one of the two")
    if args.synthetic:
        refuse_table_options(args, "with --synthetic there is none")
        return _synthetic(args)
    columns, y = table_to_learn_from(args.table, reading_of(args), args.missing)
    args.target, args.notes = columns.target, columns.said  # for the record
    encoding = Encoding.of(columns)
    x = encoding.features(columns).x
    jobs = {EVERYTHING: Job(x, y)}
    if args.each and len(columns.features) > 1:
        jobs |= {name: Job(x[:, encoding.part(name)], y) for name in columns.features}
    return jobs


def _synthetic(args: argparse.Namespace) -> dict[str, Job]:
    """Make the synthetic sets of Qin et al., with ``--rows`` rows each."""
    from ..learn.evidence.gaussian_classes import BALANCED, IMBALANCED, GaussianClasses

    jobs = {}
    for kind, counts in (("balanced", BALANCED), ("imbalanced", IMBALANCED)):
        scaled = [round(args.rows * n / sum(counts)) for n in counts]
        for dims in args.dims:
            try:
                classes = GaussianClasses(dims, scaled)
            except ValueError:
                raise UserError(
                    "--dims must be at least 1, and --rows enough for 5 classes"
                ) from None
            x, y = classes.sample(args.seed)
            jobs[f"{kind}, d={dims}"] = Job(x.numpy(), y.numpy(), classes.mutual_information())
    return jobs


def _network(seed: int) -> Any:
    from ..learn import NetworkClassifier

    return NetworkClassifier(random_state=seed)


def _linear(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def _trees(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(random_state=seed).set_params(early_stopping=True)


CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "network": _network,
    "linear": _linear,
    "trees": _trees,
}


# ---- what is told -------------------------------------------------------------------------------


def _record(
    args: argparse.Namespace, found: dict[str, Any], truth: dict[str, float]
) -> dict[str, Any]:
    asked = ("table", "target", "synthetic", "classifier", "folds", "bootstrap", "seed")
    estimates = {name: one.to_dict() for name, one in found.items()}
    for name, nats in truth.items():
        estimates[name]["truth"] = nats
    settings = {key: getattr(args, key) for key in asked}
    return {"settings": settings, "notes": args.notes, "estimates": estimates}


def _text(found: dict[str, Any], truth: dict[str, float]) -> str:
    if len(found) == 1 and not truth:
        return str(next(iter(found.values())))
    lines = [["", "nats", "bits", "interval", "at most", "share", *(["truth"] if truth else [])]]
    for name, one in found.items():
        low, high = one.interval
        cells = [f"{one.nats:.4f}", f"{one.bits:.4f}", f"{low:.4f} to {high:.4f}"]
        cells += [f"{one.bound:.4f}", f"{one.share:.1%}"]
        lines.append([name, *cells, *([f"{truth[name]:.4f}"] if truth else [])])
    return table(lines)


def _picture(found: dict[str, Any], truth: dict[str, float]) -> bytes:
    """Draw a single estimate by its classes, or several estimates as bars."""
    from ..plot import information, information_bars
    from ..plot.canvas import rendered

    if len(found) == 1 and not truth:
        ax = information(*found.values())
    else:
        ax = information_bars(found, truth or None)
    return rendered(ax.figure)
