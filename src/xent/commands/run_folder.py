"""The folder of a run: files that are either complete or not there, whatever happens meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._files import checkpoint_bytes, read_checkpoint, write_whole
from .console import UserError

CHECKPOINT, RECORD, CURVES = "checkpoint.pt", "record.json", "curves.png"


class RunFolder:
    """Where a run keeps its checkpoint, record and picture.

    Args:
        path: the folder; made if it is not there.

    Raises:
        UserError: if it cannot be written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lost: dict[str, str] = {}  # files that could not be saved, and why
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / ".writable", b"")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise UserError(f"--out {path}: cannot be written to: {error.strerror}") from None

    def save(self, name: str, data: bytes) -> str | None:
        """Write a file; what came before stays if that fails.

        Returns:
            None, or what went wrong. A full disk is no reason to throw a training away.
        """
        try:
            write_whole(self.path / name, data)
        except OSError as error:
            self.lost[name] = error.strerror or str(error)
            kept = "; the one before is kept" if (self.path / name).exists() else ""
            return f"cannot save {self.path / name}: {self.lost[name]}{kept}"
        self.lost.pop(name, None)
        return None

    def listed(self) -> str:
        """The picture and the other files that are there, each with its path on a line."""
        names = {"picture": CURVES, "record": RECORD, "checkpoint": CHECKPOINT}
        paths = {kind: self.path / name for kind, name in names.items()}
        return "\n".join(f"{kind}: {path}" for kind, path in paths.items() if path.exists())

    def save_checkpoint(self, state: dict[str, Any]) -> str | None:
        """Write the state of a run, as :meth:`save`."""
        return self.save(CHECKPOINT, checkpoint_bytes(state))


def load_checkpoint(folder: str | Path, option: str = "--resume") -> dict[str, Any]:
    """The state of a run.

    Args:
        folder: the folder of the run.
        option: who asked for it, for the message.

    Raises:
        UserError: if there is none or it cannot be read.
    """
    path = Path(folder) / CHECKPOINT
    try:
        return read_checkpoint(path)
    except FileNotFoundError:
        raise UserError(f"{option}: there is no {path}") from None
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


def load_record(folder: str | Path) -> dict[str, Any]:
    """What ``record.json`` of a run holds.

    Raises:
        UserError: if it cannot be read.
    """
    path = Path(folder) / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
