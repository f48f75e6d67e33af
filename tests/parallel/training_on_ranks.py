"""Functions that train the language model of `xent train` on the ranks of a test."""

from __future__ import annotations

import io
import os
import signal
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from xent._files import checkpoint_bytes
from xent.commands import trainer
from xent.commands.ranks import Ranks
from xent.commands.run_folder import RunFolder
from xent.commands.session import Session
from xent.commands.text import Corpus
from xent.commands.trainer import Settings, Trainer

CLIP = 0.25  # smaller than most gradients of the tests, so that all are clipped


def trained(
    group: Any, what: str, settings: Settings, corpus: Corpus, steps: int, state: Any = None
) -> tuple[list[float], tuple[float, ...], Any]:
    """The losses of some steps from the beginning or from a state, a check, and the new state.

    States travel as copies: a tensor that is sent to several processes is one memory for all.
    """
    trainer.CLIP = CLIP
    run = Trainer(settings, corpus, None, Ranks.that_share(what, group))
    if state:
        run.restore(copied(state))
    losses = [run.advance() for _ in range(steps)]
    found, state = run.evaluate(2), run.state()
    return losses, found, copied(state) if run.ranks.first else None


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """The state as a checkpoint file would give it."""
    return torch.load(io.BytesIO(checkpoint_bytes(state)), weights_only=True)


def by_the_clock(
    group: Any, what: str, settings: Settings, corpus: Corpus
) -> tuple[list[float], list[dict[str, Any]]]:
    """The history of a run in minutes, where the clock of the second rank runs fast."""
    run = Trainer(settings, corpus, None, Ranks.that_share(what, group))
    if not run.ranks.first:
        trainer.perf_counter = lambda: 20 * perf_counter()
    try:
        while run.progress() < 1:
            run.advance()
    finally:
        trainer.perf_counter = perf_counter
    return run.history["progress"], run.history["validation"]


def told_to_stop(
    group: Any, what: str, settings: Settings, corpus: Corpus, out: Path, who: int
) -> tuple[int, dict[str, Any], bool]:
    """The steps and the record of a session, of which one rank gets a SIGTERM in the third step."""
    ranks = Ranks.that_share(what, group)
    run = Trainer(settings, corpus, None, ranks)
    place = max(ranks.lanes.place, ranks.classes.place)
    advance = run.advance

    def stopping() -> float:
        if run.step == 2 and place == who:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance()

    run.advance = stopping
    with ranks.once(partial(RunFolder, out)) as folder:
        record = Session(run, folder, [], quiet=True).run()
    return run.step, record, bool(folder.written)


def refused(group: Any, what: str, settings: Settings, corpus: Corpus, state: Any) -> str:
    """The error of a damaged checkpoint."""
    try:
        Trainer(settings, corpus, None, Ranks.that_share(what, group)).restore(state)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def answered_once(group: Any, what: str) -> Any:
    """Results of an action of the first rank on all ranks, and the end after an error of it."""
    ranks = Ranks.that_share(what, group)
    found = ranks.once(lambda: ("done", os.getpid()))

    def failing() -> None:
        raise ValueError("told once")

    try:
        ranks.once(failing)
    except (ValueError, SystemExit) as error:
        return found, f"{type(error).__name__}: {error}"
