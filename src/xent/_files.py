"""Files that others must never find half written, and checkpoints that may be damaged."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file at once: a kill or a full disk leaves the one before.

    What is no file, as a device or a pipe, is written to as it is; so is what a link points to.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        with path.open("wb") as device:
            device.write(data)
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def checkpoint_bytes(state: dict[str, Any]) -> bytes:
    """Tensors and plain types as the content of a file."""
    data = io.BytesIO()  # torch.save into a file reports a full disk in many ways
    torch.save(state, data)
    return data.getvalue()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What :func:`checkpoint_bytes` was given, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or is no checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (PermissionError, IsADirectoryError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error.strerror}") from None
    except Exception:  # of many kinds, some with the bad advice to load it without `weights_only`
        raise ValueError(
            f"{path} is not a readable checkpoint: it is damaged, or another kind of file"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(state).__name__}")
    return state
