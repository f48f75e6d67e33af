"""Files that others must never find half written, and checkpoints that may be damaged."""

from __future__ import annotations

import io
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

# What the tensors of a checkpoint are made of; dictionaries and numbers need no name.
GLOBALS = re.compile(
    r"collections OrderedDict|torch [A-Z][A-Za-z]*Storage|torch\._utils _rebuild_tensor_v2"
)


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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # a full disk names none
        raise


def checkpoint_bytes(state: dict[str, Any]) -> bytes:
    """Tensors and plain types as the content of a file."""
    data = io.BytesIO()  # torch.save into a file reports a full disk in many ways
    torch.save(state, data)
    return data.getvalue()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`checkpoint_bytes` wrote, onto the CPU.

    Whoever wrote the file, nothing of it is executed, and it is read into no more memory than a few
    times its size. ``torch.load(weights_only=True)`` executes nothing either, but a few bytes may
    ask it for a tensor of any size, and it unpacks compressed data. So only the names that our own
    checkpoints need are let through, and sizes are checked.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or is no checkpoint.
    """
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(state, path.stat().st_size)
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


def _check_archive(path: Path) -> None:
    """Raise :class:`ValueError` unless a file is of the form that ``torch.save`` gives plain types.

    PyTorch itself would make tensors of any size that a file asks for, and unpack what is
    compressed.
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
    """Raise :class:`ValueError` if the tensors, copied, are more than the file."""
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
    """Tell whether plain types from a file are of a form.

    Args:
        value: what was read.
        form: a type or a tuple of types; a dictionary, for one with these keys at least; a list of
            one form, for a list of any length; a tensor, for one of its shape and dtype.
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
