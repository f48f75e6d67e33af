"""Writing of files in one step, and reading of checkpoints that may be damaged."""

from __future__ import annotations

import io
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

# Names that the tensors of a checkpoint import; dictionaries and numbers import none.
GLOBALS = re.compile(
    r"collections OrderedDict|torch [A-Z][A-Za-z]*Storage|torch\._utils _rebuild_tensor_v2"
)


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file in one step, so that a kill or a full disk leaves the old file.

    A device or a pipe is written to directly. A link stays, and the file it points to is replaced.
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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # a full disk names no file
        raise


def checkpoint_bytes(state: dict[str, Any]) -> bytes:
    """Content of a checkpoint file with tensors and plain types."""
    data = io.BytesIO()  # torch.save into a file raises many errors for a full disk
    torch.save(state, data)
    return data.getvalue()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`checkpoint_bytes` wrote, onto the CPU.

    The file may come from anybody: nothing in the file is executed, and reading takes at most a few
    times the size of the file in memory. ``torch.load(weights_only=True)`` executes nothing either,
    but allocates a tensor of any size that a few bytes ask for, and unpacks compressed data. So
    only the names that our own checkpoints need are accepted, and sizes are checked.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, or is no checkpoint.
    """
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(state, path.stat().st_size)
    except FileNotFoundError:
        raise
    except (PermissionError, IsADirectoryError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error.strerror}") from None
    except Exception:  # many kinds, some with the unsafe advice to turn `weights_only` off
        raise ValueError(
            f"{path} is not a readable checkpoint: it is damaged, or another kind of file"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(state).__name__}")
    return state


def _check_archive(path: Path) -> None:
    """Raise :class:`ValueError` unless a file is such as ``torch.save`` writes for plain types.

    PyTorch itself would make tensors of any size that a file asks for, and unpack compressed parts.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        [content] = [member for member in members if member.filename.endswith(".pkl")]
        for operation, name, _ in pickletools.genops(archive.read(content)):
            known = operation.name != "GLOBAL" or GLOBALS.fullmatch(str(name))
            if not known or operation.proto > 2:
                raise ValueError("it holds other things than tensors and plain types")


def _check_tensors(state: Any, most: int) -> None:
    """Raise :class:`ValueError` if the tensors of a checkpoint take more bytes than its file."""
    total, rest = 0, [state]
    while rest:
        value = rest.pop()
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, (list, tuple)):
            rest += value
    if total > most:
        raise ValueError("its tensors are larger than the file")


def fits(value: Any, form: Any) -> bool:
    """Return True if a value that was read from a file has the given form.

    Args:
        value: the value, of plain types and tensors.
        form: a type or a tuple of types; a dictionary of forms, for a dictionary with at least
            these keys; a list of one form, for a list of any length; a tensor, for a tensor of the
            same shape and dtype.
    """
    if isinstance(form, dict):
        there = isinstance(value, dict) and form.keys() <= value.keys()
        return there and all(fits(value[key], one) for key, one in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(one, form[0]) for one in value)
    if isinstance(form, torch.Tensor):
        same = isinstance(value, torch.Tensor) and value.shape == form.shape
        return same and value.dtype == form.dtype
    return isinstance(value, form) and not (isinstance(value, bool) and form is int)
