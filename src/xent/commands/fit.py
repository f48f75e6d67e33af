"""``xent fit``: a linear classifier of a table, its report, and its use on other tables."""

from __future__ import annotations

import argparse
import inspect
import io
import math
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._package import not_installed
from ..losses import CATALOG, Member
from ..losses.lookup import find
from ..plot.canvas import shown
from ..plot.loss_names import read_loss
from .columns import BOOLEANS, NUMBERS, TEXT, kind_of, listed
from .console import UserError, as_options, note, say_json
from .features import MISSING, Encoding, classes_of, distinct, prepared
from .fit_report import Judged, describe, describe_largest, largest, picture
from .held_out import Samples, indices, split
from .plot import require_matplotlib
from .run_folder import RECORD, RunFolder
from .table import Table, column_of, read_table, release
from .table_options import LEARNING, add_table_arguments, reading_of, table_to_learn_from

USAGE = """\
xent fit TABLE [--target COLUMN] [options]
       xent fit TABLE --model FILE [--target COLUMN] [--out FOLDER]"""
EPILOG = """\
Features are standardised for the fit, so the penalty is of coefficients per standard deviation; in
the file the standardisation is part of the coefficients, and the model takes the columns as they
are. With --model nothing is fitted: the file's predictions go to predictions.csv, and the report is
made where the table has the target."""
MODEL, PICTURE, PREDICTIONS = "model.json", "report.png", "predictions.csv"
# Options of fitting, and their defaults; None while parsing, so that --model can refuse them.
FITTING = {
    "loss": "cross_entropy", "C": 1.0, "l1_ratio": 0.0, "class_weight": None, "max_iter": 1000,
    "test": 0.25, "test_data": None, "seed": 0,
}  # fmt: skip
KINDS = {"classes": "SoftmaxRegression", "binary": "LogisticRegression"}  # by targets of the loss


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent fit``."""
    parser.usage, parser.epilog = USAGE, EPILOG
    add, number = parser.add_argument, {"type": float, "metavar": "X"}
    add("table", metavar="TABLE", help="CSV, or Parquet: a file or a folder")
    add("--target", metavar="COLUMN", help="the class (default: the last column)")
    add(
        "--loss", metavar="LOSS",
        help="name, with hyperparameters if you like: focal_loss:gamma=1 (default cross_entropy); "
        "class counts that a loss needs are those of the rows to fit, unless you give others",
    )  # fmt: skip
    add("--C", help="inverse strength of the penalty, inf for none (default 1)", **number)
    add("--l1-ratio", help="how much of the penalty is l1, 0 to 1 (default 0)", **number)
    add("--class-weight", choices=("balanced",), help="each class counts the same")
    add("--max-iter", type=int, metavar="N", help="most iterations (default 1000)")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--test", help="share of the rows to test on (default 0.25)", **number)
    held_out.add_argument("--test-data", metavar="TABLE", help="test on this table instead")
    add("--seed", type=int, metavar="N", help="of the choice of rows to test on (default 0)")
    add("--model", metavar="FILE", help="use the model.json of an earlier fit")
    add("--out", help="folder (default runs/fit, with --model runs/predict)")
    add("--quiet", action="store_true", help="no progress, only the result")
    add("--json", action="store_true", help="print the record")
    add_table_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Fit and judge a model, or use one."""
    require_matplotlib()
    try:
        from ..learn.regression import saved_models  # noqa: F401
    except ImportError as error:
        raise UserError(not_installed(error.name, "learn")) from None
    given = [name for name in (*FITTING, *LEARNING) if getattr(args, name) is not None]
    if args.model and given:
        option = given[0].replace("_", "-")
        raise UserError(f"--model is fitted already; leave --{option} out")
    for name in FITTING.keys() - given:
        setattr(args, name, FITTING[name])
    args.missing = args.missing or MISSING[0]
    return _use(args) if args.model else _fit(args)


# ---- fitting ------------------------------------------------------------------------------------


def _fit(args: argparse.Namespace) -> int:
    train, test, encoding, args.target, decimal, notes = _rows(args)
    release()
    classes, counts, _ = distinct(train.y)
    target = indices(args.target, test.y, classes)
    model, counted = _model(args, counts)
    from ..learn.regression.saved_models import model_bytes

    folder = RunFolder(args.out or "runs/fit")
    folder.begin(MODEL, RECORD, PICTURE)
    scaled, warned = _fit_standardised(model, train)
    about = {"target": args.target, "decimal": decimal, "columns": encoding.plain()}
    folder.save(MODEL, model_bytes(model.set_params(verbose=0), about))
    judged = Judged.of(model, test.x, target)
    names = encoding.names
    record = {
        "settings": {key: getattr(args, key) for key in ("table", "target", "missing", *FITTING)},
        "rows": {"fitted": len(train.y), "tested": len(test.y)},
        "notes": notes,
        "features": names,
        "counted": counted,
        "iterations": model.n_iter_,
        "warnings": warned,
        "test": judged.figures(),
        "largest_coefficients": largest(scaled, names, judged.classes),
    }
    if math.isinf(args.C):
        record["settings"]["C"] = "inf"  # JSON has no such number
    text = (
        f"{type(model).__name__} by {args.loss} predicts {args.target!r}: {len(names)} features, "
        f"{len(judged.classes)} classes, fitted on {len(train.y):,} rows\n"
        + _describe_counted(counted, judged.classes)
        + "\n"
        + describe(record["test"])
        + "\n\n"
        + describe_largest(record["largest_coefficients"])
    )
    _conclude(args, folder, record, text, judged)
    return 0


def _rows(
    args: argparse.Namespace,
) -> tuple[Samples, Samples, Encoding, str, str, list[str]]:
    """Return rows to fit and to test on, encoding, name of the target, decimal mark, remarks."""
    reading = reading_of(args)
    table, y = table_to_learn_from(args.table, reading, args.missing)
    if args.test_data:
        form = reading.form._replace(doubt=table.decimal)
        other = reading._replace(form=form, target=table.target, about=f"{args.test_data}: ")
        kinds = {name: kind_of(column) for name, column in table.columns.items()}
        train, test = table, prepared(read_table(args.test_data, other, kinds), args.missing)
        table.said += test.said
        test.said = table.said
    else:
        train, test = map(table.take, split(y, args.test, args.seed, table.target))
        test.about = "rows to test on: "
    encoding = Encoding.of(train, table.with_gaps)
    learnt, held_out = encoding.features(train), encoding.features(test)
    if args.test_data:  # there are remarks about the gaps of the first table already
        test.say_each(held_out.missing)
    test.say_each(held_out.unseen)
    fitted = Samples(learnt.x, classes_of(train))
    tested = Samples(held_out.x, classes_of(test))
    return fitted, tested, encoding, table.target, table.decimal, table.said


def _model(args: argparse.Namespace, counts: np.ndarray) -> tuple[Any, dict[str, list[int]]]:
    """Return the classifier that the options ask for, and the class counts that its loss takes."""
    from .. import learn

    member, options = _loss(args.loss)
    if member.targets == "binary" and len(counts) > 2:
        raise UserError(f"--loss {member.name} is for two classes, and there are {len(counts)}")
    parameters = inspect.signature(member.function).parameters.values()
    asked = [p.name for p in parameters if p.annotation == "Counts" and p.default is p.empty]
    counted = {name: counts.tolist() for name in asked if name not in options}
    options |= {name: torch.tensor(rows, dtype=torch.float64) for name, rows in counted.items()}
    model = getattr(learn, KINDS[member.targets])(
        args.C, l1_ratio=args.l1_ratio, class_weight=args.class_weight, max_iter=args.max_iter,
        loss=partial(member.function, **options) if options else member.name,
        verbose=int(not args.quiet),
    )  # fmt: skip
    return model, counted


def _describe_counted(counted: dict[str, list[int]], classes: list[Any]) -> str:
    """Say which hyperparameters are the rows of the classes, a line each."""
    lines = []
    for name, counts in counted.items():
        rows = listed(f"{c} {n:,}" for c, n in zip(classes, counts, strict=True))
        lines.append(f"the loss takes the rows of each class as its {name}: {rows}\n")
    return "".join(lines)


def _loss(word: str) -> tuple[Member, dict[str, Any]]:
    """Return the loss that an option names, and its hyperparameters."""
    try:
        member = find(word.partition(":")[0])
        if member.targets not in KINDS:
            raise ValueError(f"{member.name} is no loss of a class per row")
    except ValueError as error:
        names = ", ".join(name for name, one in CATALOG.items() if one.targets in KINDS)
        raise UserError(f"--loss: {error}\na classifier can be fitted with {names}") from None
    try:
        return read_loss(word)
    except ValueError as error:
        raise UserError(f"--loss: {error}") from None


def _fit_standardised(model: Any, rows: Samples) -> tuple[np.ndarray, list[str]]:
    """Fit on standardised features, then make the standardisation part of the coefficients.

    The rows are standardised in place.

    Returns:
        The coefficients per standard deviation, ``(K, F)``, and what the fit warned of.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(copy=False).fit(rows.x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(scaler.transform(rows.x), rows.y)
        except (ValueError, TypeError) as error:
            raise UserError(_as_options(str(error))) from None
    warned = [_as_options(str(warning.message)) for warning in caught]
    for text in warned:
        note(text)
    scaled = model.coef_.copy()
    model.coef_ /= scaler.scale_
    model.intercept_ -= model.coef_ @ scaler.mean_
    del model.precision_  # belongs to the standardised coordinates
    return scaled, warned


def _as_options(message: str) -> str:
    """Return a message of the library in the words of the command, without options it lacks."""
    return as_options(re.sub(r" or tol, bring the .*", "", message), FITTING)


# ---- using a model ------------------------------------------------------------------------------


def _use(args: argparse.Namespace) -> int:
    model, target, encoding, decimal = _load(args.model)
    named = args.target or target
    kinds = encoding.kinds | {named: _kind_of_classes(model)}
    reading = reading_of(args)
    reading = reading._replace(target=named, form=reading.form._replace(doubt=decimal))
    table = read_table(args.table, reading, kinds)
    features = encoding.features(table)
    table.say_each(features.missing)
    table.say_each(features.unseen)
    folder = RunFolder(args.out or "runs/predict")
    folder.begin(PREDICTIONS, RECORD, PICTURE)
    failure = folder.save(PREDICTIONS, _predictions(model, features.x))
    record: dict[str, Any] = {
        "settings": {"table": args.table, "model": args.model, "target": named},
        "rows": {"predicted": len(table)},
        "not_used": table.unused,
    }
    text, judged = failure or f"{len(table):,} predictions", None
    if args.target or named in table.columns:
        judged = _judged(model, features.x, table)
    if judged:
        record["test"] = judged.figures()
        text = describe(record["test"]) + f"\n\n{text}"
    record["notes"] = table.said
    if record["not_used"]:
        text += f"\nnot used: {listed(record['not_used'])}"
    _conclude(args, folder, record, text, judged)
    return 0


def _kind_of_classes(model: Any) -> str:
    kind = model.classes_.dtype.kind
    return NUMBERS if kind in "iuf" else BOOLEANS if kind == "b" else TEXT


def _judged(model: Any, x: np.ndarray, table: Table) -> Judged | None:
    """Judge a model on the rows of classes that it knows; None if there is no such row."""
    y = column_of(table, table.target).to_pylist()
    index = {name: k for k, name in enumerate(model.classes_.tolist())}
    known = np.array([name in index for name in y])
    if not known.all():
        others = listed({repr(name): None for name in y if name not in index}, 5)
        table.say(
            f"column {table.target!r}: {(~known).sum():,} of {len(y):,} rows hold no class that "
            f"the model knows, but {others}; they are not judged"
        )
    if not known.any():
        return None
    return Judged.of(model, x[known], [index[name] for name in y if name in index])


def _load(path: str) -> tuple[Any, str, Encoding, str | None]:
    """Load a model, the name of its target, its encoding, and the decimal mark or None."""
    from ..learn.regression.saved_models import read_model

    model: Any
    try:
        model, about = read_model(path)
    except OSError as error:
        raise UserError(f"--model {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--model: {error}") from None
    try:
        target, encoding = str(about["target"]), Encoding.read(about["columns"])
        fits = len(encoding.names) == model.n_features_in_
    except (LookupError, TypeError, ValueError):
        fits = False
    if not fits:
        raise UserError(
            f"--model {path} does not say how its columns are made; xent fit did not write it"
        )
    return model, target, encoding, "," if about.get("decimal") == "," else None


def _predictions(model: Any, x: np.ndarray) -> bytes:
    """Return the predicted class of each row and the probabilities of all classes, as CSV."""
    import pyarrow
    from pyarrow import csv

    chances = model.predict_proba(x)
    unclear = np.flatnonzero(~np.isfinite(chances).all(1))
    if len(unclear):
        raise UserError(f"row {unclear[0] + 1} has no probabilities: its values are too large")
    columns = {"class": model.predict(x).tolist()}
    for name, p in zip(model.classes_.tolist(), chances.T, strict=True):
        columns[f"P({name})"] = p
    data = io.BytesIO()
    csv.write_csv(pyarrow.table(columns), data)
    return data.getvalue()


# ---- what both end with -------------------------------------------------------------------------


def _conclude(
    args: argparse.Namespace, folder: RunFolder, record: dict[str, Any], text: str,
    judged: Judged | None,
) -> None:  # fmt: skip
    """Save record and picture, and print the report."""
    folder.save_json(RECORD, record)
    if judged:
        nats = record["test"]["log_loss_nats"]
        table, target = shown(Path(args.table).name), shown(record["settings"]["target"])
        folder.save(PICTURE, picture(judged, f"{table}: {target}, log loss {nats:.4f} nats"))
    with folder:  # raises at the end if a file was lost
        if args.json:
            say_json(record)
        else:
            folder.say(text)
