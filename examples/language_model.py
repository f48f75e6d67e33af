"""A language model behind three heads: the same curve; time and memory are what differs.

    python examples/language_model.py [--small] [--steps 100] [--seed 0] [--picture PATH]

Needs matplotlib for the picture. Takes about two minutes on two cores.

``xent train --compare`` trains a small model on the sources of Python's standard library three
times: behind a lean head, which never has all logits of a step in memory, with the fused loss on
logits, and with PyTorch's loss. Each runs in a process of its own, for the peak of its memory. With
``--small`` it reads two folders of the library for a few steps.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from _experiment import hold, options
from xent.commands.report import FOOTNOTE, report

HEADS = ("lean", "xent", "torch")
TOKENS = 1024  # of a step: the command's `--batch` times `--length`
SAME = 2e-3  # nats; rounding of float32 may add up to this over the steps


def train(steps: int, seed: int, paths: list[str], folder: Path) -> dict[str, Any]:
    """Run the command; return the record of each head."""
    command = [sys.executable, "-m", "xent", "train", "--compare", "--quiet"]
    command += ["--steps", str(steps), "--seed", str(seed), "--out", str(folder), *paths]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    records = {head: (folder / head / "record.json").read_text("utf-8") for head in HEADS}
    return {head: json.loads(text) for head, text in records.items()}


def claims(records: dict[str, Any], small: bool) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    classes = records["lean"]["text"]["classes"]
    nats = [records[head]["results"]["nats_per_token"] for head in HEADS]
    found = {
        f"the three end within {SAME:g} nats per token": max(nats) - min(nats) < SAME,
        f"and more than 1 nat below log {classes:,}, a uniform guess": (
            max(nats) < math.log(classes) - 1
        ),
    }
    peaks = [records[head]["results"]["peak_memory_bytes"] for head in HEADS]
    if small or None in peaks:
        return found
    logits = 4 * TOKENS * classes
    saved = f"the {logits / 1e6:.0f} MB of the logits or more are saved behind the lean head"
    return found | {saved: peaks[2] - peaks[0] > logits}


def main() -> None:
    """Train, print, check, and keep the curves."""
    chosen = options(__file__, __doc__, steps=(100, 4), seed=(0, 0))
    library = Path(sysconfig.get_paths()["stdlib"])
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(library / "json"), str(library / "email")] if chosen.small else []
        records = train(chosen.steps, chosen.seed, paths, Path(folder) / "run")
        print(f"{report(list(records.values()))}\n\n{FOOTNOTE}\n")
        text, python = records["lean"]["text"], platform.python_version()
        print(
            f"{'json and email' if chosen.small else 'the library'} of Python {python}: "
            f"{text['training_tokens']:,} training tokens, {text['classes']:,} classes\n"
        )
        hold(claims(records, chosen.small))
        chosen.picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder) / "run" / "curves.png", chosen.picture)
    print(f"\n{chosen.picture}")


if __name__ == "__main__":
    main()
