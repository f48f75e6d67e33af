"""The folder of a run, with files that are complete or not there, even after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._files import checkpoint_bytes, read_checkpoint, write_whole
from .console import UserError, say

CHECKPOINT, RECORD, CURVES = "checkpoint.pt", "record.json", "curves.png"


class RunFolder:
    """The folder where a run keeps its files: ``with RunFolder(path) as folder:``.

    A file that cannot be saved does not stop the work. At the end of the ``with`` block an error
    names such files.

    Args:
        path: the folder; made if it is not there.

    Raises:
        UserError: if nothing can be written in the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.written: list[str] = []  # files of this run
        self.lost: dict[str, str] = {}  # files that could not be saved, and why
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / ".writable", b"")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise UserError(f"--out {path}: cannot be written to: {error.strerror}") from None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None and self.lost:
            raise UserError("; ".join(self.lost.values()))

    def begin(self, *names: str) -> None:
        """Remove files of an earlier run whose names this run will write.

        Then an interrupted run leaves no old file that could be taken for a new one.

        Raises:
            UserError: if a file cannot be removed.
        """
        for name in names:
            try:
                (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                reason = f"{self.path / name} cannot be replaced: {error.strerror}"
                raise UserError(f"--out {self.path}: {reason}") from None

    def save(self, name: str, data: bytes) -> str | None:
        """Write a file; an earlier file stays if that fails.

        Returns:
            None, or a message about the failure. A full disk must not end a training.
        """
        try:
            write_whole(self.path / name, data)
        except OSError as error:
            kept = "; the one before is kept" if name in self.written else ""
            reason = error.strerror or str(error)
            self.lost[name] = f"cannot save {self.path / name}: {reason}{kept}"
            return self.lost[name]
        self.wrote(name)
        return None

    def wrote(self, name: str) -> None:
        """Add a file that is there to the files of this run."""
        self.lost.pop(name, None)
        if name not in self.written:
            self.written.append(name)

    def say(self, text: str) -> None:
        """Print a result, and each file of this run with its description."""
        paths = [self.path / name for name in self.written]
        files = [f"\n{'picture' if p.suffix == '.png' else p.stem}: {p}" for p in paths]
        say(text + "\n" * bool(files) + "".join(files))

    def save_json(self, name: str, value: Any) -> str | None:
        """Write plain types, as :meth:`save`."""
        return self.save(name, json.dumps(value, indent=1).encode())

    def save_checkpoint(self, state: dict[str, Any]) -> str | None:
        """Write the state of a run, as :meth:`save`."""
        return self.save(CHECKPOINT, checkpoint_bytes(state))


def write_output(path: Path, data: bytes, option: str) -> None:
    """Write a file that an option names.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror}") from None


def load_checkpoint(folder: str | Path, option: str = "--resume") -> dict[str, Any]:
    """The state of a run.

    Args:
        folder: the folder of the run.
        option: the option that names the run, for the message.

    Raises:
        UserError: if there is no checkpoint, or if it cannot be read.
    """
    path = Path(folder) / CHECKPOINT
    try:
        return read_checkpoint(path)
    except FileNotFoundError:
        raise UserError(f"{option}: there is no {path}") from None
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


def load_record(folder: str | Path) -> dict[str, Any]:
    """Return the content of ``record.json`` of a run.

    Raises:
        UserError: if the file cannot be read.
    """
    path = Path(folder) / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
