"""``xent train --compare``: the same training with each head, each in a process of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from .console import UserError, note, say_json
from .model import HEADS
from .report import FOOTNOTE, draw, report
from .run_folder import CHECKPOINT, CURVES, RECORD, RunFolder, load_record
from .text import find_files
from .trainer import DEFAULT_MINUTES, Settings


def compare(args: argparse.Namespace) -> int:
    """Train with the first head, then with the others for the same steps, and show all.

    Args:
        args: the arguments of ``xent train``.

    Returns:
        The exit code.
    """
    if args.head or args.like:
        raise UserError("--compare runs every head; leave --head out")
    find_files(args.paths)  # fails here, before files are removed, if there is no text
    with RunFolder(args.out) as folder:
        folder.begin(RECORD, CURVES)
        first, *others = (folder.path / head for head in HEADS)
        minutes = (args.minutes or DEFAULT_MINUTES) / len(HEADS)
        budget, same = ["--minutes", str(minutes)], ["--like", str(first)]
        if args.steps:
            budget = same = ["--steps", str(args.steps)]
        for out in (first, *others):
            code = _train(args, out, budget if out == first else same)
            if code == 130:
                note("stopped; continue with the same command and --resume")
            if code:
                return code
        return _conclude(args, folder, [load_record(out) for out in (first, *others)])


def _train(args: argparse.Namespace, out: Path, budget: list[str]) -> int:
    """Train in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "xent", "train", *budget]
    command += ["--out", str(out), "--head", out.name]
    for name in ("seed", "dim", "batch", "length", "vocab", "lr", "threads"):
        if getattr(args, name) is not None:
            command += [f"--{name}", str(getattr(args, name))]
    command += ["--quiet"] * args.quiet
    command += ["--resume"] * (args.resume and (out / CHECKPOINT).exists())
    if not args.quiet:
        note(f"--head {out.name}")
    child = subprocess.Popen([*command, "--", *args.paths], stdout=subprocess.DEVNULL)
    return _wait(child)


def _wait(child: subprocess.Popen) -> int:
    """Wait for the child process, and tell it to stop when this process is told to."""
    while True:
        try:
            code = child.wait()
            return code if code >= 0 else 128 - code  # killed: the exit code that a shell reports
        except KeyboardInterrupt:  # Ctrl-C, which a terminal also sends to the child, or SIGTERM
            child.terminate()


def _conclude(args: argparse.Namespace, folder: RunFolder, records: list[dict[str, Any]]) -> int:
    for other in records[1:]:
        _check_same(records[0], other)
    results = {record["settings"]["head"]: record["results"] for record in records}
    folder.save_json(RECORD, results)
    picture = draw(records)
    if picture:
        folder.save(CURVES, picture)
    if args.json:
        say_json(results)
    else:
        folder.say(report(records) + f"\n\n{FOOTNOTE}")
    return 0


def _check_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Raise unless the two trainings differ in nothing but the head."""
    if one["history"]["progress"] != two["history"]["progress"]:
        raise UserError("the two runs had different schedules; compare anew, without --resume")
    for field in fields(Settings):
        name, budget = field.name, ("head", "minutes", "steps", "like")
        if name not in budget and one["settings"][name] != two["settings"][name]:
            raise UserError(f"the two runs differ in --{name}; compare anew, without --resume")
