"""Files that are written only if they change, so that Sphinx reads only what is new."""

from __future__ import annotations

from pathlib import Path


def save(file: Path, text: str) -> None:
    """Write a file unless it has the text already."""
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")
