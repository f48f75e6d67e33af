"""Kinds of command-line arguments, shared by the benchmarks."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

DTYPES = ("float32", "bfloat16", "float16")


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def seconds(text: str) -> float:
    """Read a number that is not below 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return number


def shape(text: str) -> tuple[int, int]:
    """Read rows and classes."""
    rows, comma, classes = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,V as in 1024,1000")
    return positive(rows), positive(classes)


def head_shape(text: str) -> tuple[int, int, int]:
    """Read rows, features and classes."""
    numbers = text.split(",")
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,D,V as in 1024,512,32000")
    rows, features, classes = map(positive, numbers)
    return rows, features, classes


def device(text: str) -> str:
    """Read the name of a device that PyTorch finds on this machine."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise argparse.ArgumentTypeError(f"PyTorch has no device {text!r} here: {reason}") from None
    return text


def output_file(text: str) -> Path:
    """Read the path of a file to write; refuse it, before any work, if its folder is missing."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no folder {path.parent}")
    return path


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result; an earlier file stays until all of the result is on the disk."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(f"{json.dumps(result, indent=1)}\n", encoding="utf-8")
    part.replace(path)
