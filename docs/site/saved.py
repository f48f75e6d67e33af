"""Files that are written only if they change, so that Sphinx reads only what is new."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def save(file: Path, text: str) -> None:
    """Write a file unless it has the text already."""
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def save_all(folder: Path, files: Mapping[str, str]) -> None:
    """Save texts into a folder, by the names of their files."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        save(folder / name, text)
