"""The page as one file: text, styles, scripts and losses together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

SCRIPTS = ("numbers.js", "statistics.js", "state.js", "explain.js", "page.js")
# The parts of an entry that are JavaScript already.
CODE = ("index", "soft", "logit_scale", "class_scale", "class_bias")


def assembled(
    losses: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, str], start: Sequence[str]
) -> str:
    """The page with these losses; it asks no other host for anything.

    Args:
        losses: the entries by name.
        left_out: names of losses that are not there, with the reason.
        start: the two losses to begin with, as words such as ``focal_loss:gamma=2``.
    """
    style, page = asset("page.css"), asset("page.html")
    scripts = [asset(name) for name in SCRIPTS]
    scripts.insert(2, data(losses, left_out, start))
    return page.replace("/*style*/", style).replace("/*script*/", "\n".join(scripts))


def data(
    losses: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, str], start: Sequence[str]
) -> str:
    """The losses as JavaScript."""
    entries = ",\n".join(f"{as_json(name)}: {_entry(entry)}" for name, entry in losses.items())
    return (
        f"const LOSSES = {{\n{entries}\n}};\n"
        f"const LEFT_OUT = {as_json(left_out)};\nconst START = {as_json(start)};\n"
    )


def _entry(entry: Mapping[str, Any]) -> str:
    parts = (f"{key}: {x if key in CODE else as_json(x)}" for key, x in entry.items())
    return f"{{{', '.join(parts)}}}"


def as_json(value: Any) -> str:
    """The value as JSON that ends no script."""
    return json.dumps(value).replace("<", "\\u003c")


def asset(name: str) -> str:
    """The text of a file of the page."""
    return (files("xent.playground") / "assets" / name).read_text(encoding="utf-8")
