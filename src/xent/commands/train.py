"""``xent train``: a small language model with a large vocabulary, trained on your text."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .arguments import amount, whole
from .console import UserError, note, progress_bar, say_json
from .model import HEADS
from .ranks import PARALLEL, Ranks, command, joined
from .report import FOOTNOTE, report
from .run_folder import CHECKPOINT, CURVES, RECORD, RunFolder, load_checkpoint, load_record
from .session import Session
from .text import UNKNOWN, UNSPACED_TOKEN, Corpus, read_corpus
from .trainer import DEFAULT_MINUTES, Settings, Trainer, check_state, require_enough

UNSPACED_SHARE = 0.01  # a larger share is remarked
UNKNOWN_SHARE = 0.2  # with a larger share, the perplexity says little


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent train``."""
    parser.add_argument(
        "paths", nargs="*", metavar="PATH",
        help="text files, and folders to search; default: the sources of Python's standard library",
    )  # fmt: skip
    parser.add_argument("--out", default="runs/train", help="folder for the results (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--compare", action="store_true", help="train with each head in turn and compare"
    )
    several.add_argument(
        "--parallel", choices=PARALLEL,
        help="train on the processes that torchrun starts, which share the lanes of text (data) or "
        "the classes of the lean head (classes); the training is the same",
    )  # fmt: skip
    _add_settings(parser)
    parser.add_argument("--threads", type=whole, help="threads (default: torch's choice)")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Train, or with ``--compare`` train with each head."""
    with joined(args.parallel) as ranks:
        if args.compare:
            from .compare import compare

            return compare(args)
        return _train(args, ranks)


def _train(args: argparse.Namespace, ranks: Ranks) -> int:
    """Train on all ranks, of which the first reads and writes."""
    settings, saved = ranks.once(partial(_begin, args))
    if args.threads:
        torch.set_num_threads(args.threads)
    with ranks.once(partial(RunFolder, args.out)) as folder:
        text = ranks.once(partial(_prepare, args, settings, saved, folder, ranks))
        trainer = Trainer(settings, text.corpus, text.schedule, ranks)
        if saved:
            trainer.restore(saved)
            saved = None  # its tensors are copied by now
        record = Session(trainer, folder, text.paths, args.quiet).run()
        return ranks.once(partial(_conclude, record, folder, args, ranks))


def _begin(args: argparse.Namespace) -> tuple[Settings, dict[str, Any] | None]:
    """Return the settings, and the checkpoint to continue from."""
    saved = load_checkpoint(args.out) if args.resume else None
    if saved:
        check_state(saved, f"--resume: {Path(args.out, CHECKPOINT)}")
    return settle(args, saved), saved


def settle(args: argparse.Namespace, saved: dict[str, Any] | None) -> Settings:
    """Return the settings: from the options, else from the checkpoint, else the defaults.

    Raises:
        UserError: if the checkpoint has other settings than those given.
    """
    names = [field.name for field in fields(Settings)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if saved is None:
        settings = Settings(**given)
        budget = settings.minutes or settings.steps or settings.like
        return settings if budget else replace(settings, minutes=DEFAULT_MINUTES)
    before = saved["settings"]
    other = [f"--{n} {v} (was {before[n]})" for n, v in given.items() if v != before[n]]
    if other:
        raise UserError(
            f"--resume: the run in {args.out} has other settings: {', '.join(other)}; leave them "
            f"out, or start anew in another --out"
        )
    return Settings(**before)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare the options that decide the outcome; :class:`Settings` has their defaults."""
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--minutes", type=amount, help=f"time to train for (default {DEFAULT_MINUTES:g})"
    )
    budget.add_argument("--steps", type=whole, help="number of steps, instead of --minutes")
    # A run with the schedule of another one; this is how --compare makes both runs the same.
    budget.add_argument("--like", metavar="RUN", help=argparse.SUPPRESS)
    default = Settings()
    options: tuple[tuple[str, Callable[[str], Any], str], ...] = (
        ("seed", int, "decides initial weights and validation files"),
        ("dim", whole, "width of the embedding"),
        ("batch", whole, "lanes of text side by side"),
        ("length", whole, "tokens per lane and step"),
        ("vocab", partial(whole, least=3), "largest number of classes"),
        ("lr", amount, "largest learning rate"),
    )
    parser.add_argument(
        "--head", choices=tuple(HEADS),
        help="lean: never all logits at once; xent and torch: the cross-entropy of each on logits "
        f"in memory; the training is the same (default {default.head})",
    )  # fmt: skip
    for name, kind, text in options:
        text = f"{text} (default {getattr(default, name)})"
        parser.add_argument(f"--{name}", type=kind, help=text)


class Text(NamedTuple):
    """The text to train on, its source, and the schedule of another run to follow."""

    corpus: Corpus
    paths: list[str]
    schedule: list[float] | None


def _prepare(
    args: argparse.Namespace, settings: Settings, saved: dict[str, Any] | None,
    folder: RunFolder, ranks: Ranks,
) -> Text:  # fmt: skip
    """Read the text, or raise if a run cannot begin; make place for the files of a new run."""
    paths = [str(Path(path).absolute()) for path in args.paths]
    if saved and not paths:
        paths = saved["paths"]
    schedule = load_record(settings.like)["history"]["progress"] if settings.like else None
    bar = partial(progress_bar, args.quiet or not sys.stderr.isatty())
    corpus = read_corpus(paths, settings.seed, settings.vocab, bar)
    if not args.quiet:
        _introduce(corpus, settings, paths, ranks)
    unknown = (corpus.valid == UNKNOWN).double().mean().item()
    if unknown > UNKNOWN_SHARE:
        note(
            f"{unknown:.0%} of the validation tokens are unknown: words that the training text has "
            "less than twice, or more of them than --vocab. The perplexity says little; bits per "
            "byte pay for their spelling"
        )
    require_enough(settings, corpus)
    check_shares(settings, len(corpus.vocabulary), ranks)
    if not saved:
        if not args.quiet and (folder.path / CHECKPOINT).exists():
            note(f"this run takes the place of the one in {folder.path}")
        # Before the slow start of the trainer: a killed run must not leave the old run here.
        folder.begin(CHECKPOINT, RECORD, CURVES)
    return Text(corpus, paths, schedule)


def check_shares(settings: Settings, classes: int, ranks: Ranks) -> None:
    """Raise :class:`UserError` unless each rank gets a share, and the head can be split."""
    lanes, parts = ranks.lanes.parts, ranks.classes.parts
    if settings.batch < lanes:
        raise UserError(
            f"--parallel data: {lanes} ranks cannot share {settings.batch} lanes of text; take a "
            f"larger --batch or fewer ranks"
        )
    if parts > 1 and settings.head != "lean":
        raise UserError(
            f"--parallel classes splits the lean head; --head {settings.head} goes with --parallel "
            f"data, which takes all heads"
        )
    if classes < parts:
        raise UserError(f"--parallel classes: {parts} ranks cannot share {classes} classes")


def _introduce(corpus: Corpus, settings: Settings, paths: Sequence[str], ranks: Ranks) -> None:
    if corpus.skipped:
        names = _some([path.name for path in corpus.skipped])
        note(f"left out as not text: {names} ({len(corpus.skipped)} in all)")
    source = _some(paths) or f"the standard library of Python {platform.python_version()}"
    rows, classes = settings.batch * settings.length, len(corpus.vocabulary)
    what = "lanes of text" if ranks.lanes.parts > 1 else "classes"
    shared = f"; {ranks.count} ranks share the {what}" if ranks.count > 1 else ""
    held = "a chunk of rows at a time" if settings.head == "lean" else "all at once"
    note(
        f"{source}: {corpus.files} files, {len(corpus.train):,} training tokens of {classes:,} "
        f"classes; the logits of a step are {rows} x {classes:,}, {4e-6 * rows * classes:,.0f} MB, "
        f"{held}{shared}"
    )
    of_unspaced = [bool(UNSPACED_TOKEN.fullmatch(token)) for token in corpus.vocabulary]
    share = corpus.counts[torch.tensor(of_unspaced)].sum().item() / len(corpus.train)
    if share > UNSPACED_SHARE:
        note(
            f"{share:.0%} of the tokens are single characters, of scripts that have no spaces "
            "between words"
        )


def _some(names: Sequence[str]) -> str:
    """Join the first three names."""
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])


def _conclude(
    record: dict[str, Any], folder: RunFolder, args: argparse.Namespace, ranks: Ranks
) -> int:
    """Print the result, and return the exit code."""
    if not record["results"]:
        step = len(record["history"]["loss"])
        if CHECKPOINT not in folder.lost:
            again = command(args.parallel, ranks.count, f"--resume --out {folder.path}")
            note(f"stopped after step {step}; continue: {again}")
        return 130
    if args.json:
        say_json(record["results"])
    else:
        folder.say(report([record]) + f"\n\n{FOOTNOTE}")
    return 0
