"""Directives for pages: a table of losses with their use, and a table of what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from loss_pages import as_markdown, function_at
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from xent.frames.docstrings import use
from xent.losses import CATALOG

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


class _MarkdownTable(SphinxDirective):
    """A directive whose content becomes a table of Markdown."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[nodes.Node]:
        """The table."""
        node = nodes.container()
        self.state.nested_parse(StringList(list(self.lines())), self.content_offset, node)
        return node.children

    def lines(self) -> Iterator[str]:
        """The lines of the table."""
        raise NotImplementedError


class LossTable(_MarkdownTable):
    """The losses of these names, a line each, with when to take each and when not."""

    def lines(self) -> Iterator[str]:
        """The head, and a row for each loss."""
        yield from ("| loss | when to take it, and when not |", "|---|---|")
        for name in self.content:
            shown = f"[{name}](/losses/{name}.md)"
            if name not in CATALOG:
                shown = f"{{func}}`{name.rpartition('.')[2]} <xent.{name}>`"
            yield f"| {shown} | {as_markdown(use(function_of(name)))} |"


def function_of(name: str) -> Any:
    """The loss that a line of a table names: of the catalog, or with its module."""
    if name in CATALOG:
        return CATALOG[name].function
    return function_at(f"xent.{name}")


class MeasuredTable(_MarkdownTable):
    """Rows of the result of an experiment, ``label: how the page calls it`` in a line each."""

    required_arguments: ClassVar[int] = 1
    option_spec: ClassVar[Any] = {"columns": directives.unchanged_required}

    def lines(self) -> Iterator[str]:
        """The head, and a row for each label."""
        columns = [column.strip() for column in self.options["columns"].split(",")]
        yield f"| | {' | '.join(columns)} |"
        yield f"|---|{'---:|' * len(columns)}"
        for line in self.content:
            label, _, shown = line.partition(": ")
            cells = measured(self.arguments[0], label)[: len(columns)]
            yield f"| {shown} | {' | '.join(cells)} |"


def measured(experiment: str, label: str) -> list[str]:
    """The figures in the line of an experiment's result that begins with a label.

    Raises:
        ValueError: if there is no such line.
    """
    text = (EXPERIMENTS / f"{experiment}.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if re.match(rf"{re.escape(label)}  ", line):
            told = re.sub(r"\s+\(", " (", line[len(label) :].strip()).replace("+-", "±")
            cells = re.split(r"\s{2,}", told)
            return [cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in cells]
    raise ValueError(f"{experiment} has no line for {label!r}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the directives with Sphinx."""
    app.add_directive("losses", LossTable)
    app.add_directive("measured", MeasuredTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
