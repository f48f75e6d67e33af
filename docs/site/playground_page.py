"""The playground: one file beside the pages, to which their links lead."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from xent.playground import page

LINK = re.compile(r"(?:\.\./)*playground\.html(?:[?#].*)?")


def write(app: Sphinx, exception: Exception | None) -> None:
    """Write the page of the playground."""
    if exception is None and app.builder.format == "html":
        (Path(app.outdir) / "playground.html").write_text(page(), encoding="utf-8")


def link(app: Sphinx, doctree: nodes.document) -> None:
    """Keep links to the playground, which is no page of Sphinx, as they are written."""
    for node in list(doctree.findall(addnodes.pending_xref)):
        if node.get("reftype") == "myst" and LINK.fullmatch(node["reftarget"]):
            target = nodes.reference("", "", internal=True, refuri=node["reftarget"])
            target += node.children
            node.replace_self(target)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the playground with Sphinx."""
    app.connect("doctree-read", link)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
