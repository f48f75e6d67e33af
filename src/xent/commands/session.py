"""A run of a command: trains until the budget is used or a signal stops it, and saves.

Every rank of a training over ranks has a session. Only that of the first rank shows and saves.
"""

from __future__ import annotations

import math
import platform
import signal
from dataclasses import asdict
from typing import Any

import torch

from .. import __version__
from .console import UserError, note, progress_bar
from .report import draw
from .run_folder import CURVES, RECORD, RunFolder
from .trainer import Trainer

SAVE_EVERY = 60.0  # seconds; and after each evaluation


class Session:
    """Trains and saves.

    Args:
        trainer: the run.
        folder: where the first rank saves.
        paths: the text, for the checkpoint.
        quiet: whether to show no progress.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, paths: list[str], quiet: bool) -> None:
        self.trainer, self.ranks = trainer, trainer.ranks
        self.folder, self.paths = folder, paths
        self.quiet = quiet or not self.ranks.first
        self.stop, self.told = StopSignals(), set()

    def run(self) -> dict[str, Any]:
        """Train, evaluate and save.

        Returns:
            The record of the run; its ``results`` are empty if it was stopped.
        """
        with self.stop:
            self._train()
            if not self._stopped() and not self.trainer.results:
                self.trainer.finish()
            self._save_checkpoint()
            return self.ranks.once(self._save_record)

    def record(self) -> dict[str, Any]:
        """Return the content of ``record.json``."""
        corpus = self.trainer.corpus
        return {
            "settings": asdict(self.trainer.settings),
            "versions": {
                "xent": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "threads": torch.get_num_threads(),
            "ranks": self.ranks.count,
            "text": {
                "files": corpus.files,
                "fingerprint": corpus.fingerprint,
                "training_tokens": len(corpus.train),
                "validation_tokens": len(corpus.valid),
                "classes": len(corpus.vocabulary),
            },
            "history": self.trainer.history,
            "results": self.trainer.results,
        }

    def _train(self) -> None:
        trainer, saved = self.trainer, self.trainer.times["elapsed"]
        layout = "{percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        with progress_bar(self.quiet, total=100, bar_format=layout) as bar:
            while not self._stopped() and trainer.progress() < 1:
                loss = trainer.advance()
                if not math.isfinite(loss):
                    raise UserError(
                        f"the loss is {loss} at step {trainer.step}; try a smaller --lr than "
                        f"{trainer.settings.lr}"
                    )
                bar.set_postfix_str(self._status(loss), refresh=False)
                bar.update(100 * trainer.progress() - bar.n)
                if trainer.just_checked() or trainer.times["elapsed"] - saved > SAVE_EVERY:
                    self._tell(self._save_checkpoint())
                    saved = trainer.times["elapsed"]

    def _stopped(self) -> bool:
        """Return True if a signal asked this rank, or another, to stop."""
        return self.ranks.most(float(bool(self.stop))) > 0

    def _status(self, loss: float) -> str:
        trainer = self.trainer
        speed = trainer.tokens / trainer.times["steps"]
        checks = trainer.history["validation"]
        validation = f", validation {checks[-1]['nats']:.3f}" if checks else ""
        return f"step {trainer.step}, loss {loss:.3f}{validation}, {speed:,.0f} tokens/s"

    def _save_checkpoint(self) -> str | None:
        state = {**self.trainer.state(), "paths": self.paths}
        return self.ranks.once(lambda: self.folder.save_checkpoint(state))

    def _save_record(self) -> dict[str, Any]:
        record = self.record()
        self.folder.save_json(RECORD, record)
        picture = draw([record])
        if picture:
            self.folder.save(CURVES, picture)
        return record

    def _tell(self, failure: str | None) -> None:
        """Report a failure to save a checkpoint, each message once; the training goes on."""
        if failure and self.ranks.first and failure not in self.told:
            self.told.add(failure)
            note(f"\n{failure}; the training goes on")


class StopSignals:
    """A context in which Ctrl-C or SIGTERM stops after this step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked

    def __enter__(self) -> StopSignals:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
