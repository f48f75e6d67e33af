"""The pages of the API, written from the public names before Sphinx reads its sources.

A page for each public module: what the module says of itself, its functions, classes and values,
and the names that another page explains. Each of these names is in the inventory of the site, and
a full name in code, ``xent.losses.focal_loss``, is a link wherever it stands.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from public_names import Name, modules, names, of_module
from saved import save
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry, PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

from xent.losses import CATALOG
from xent.losses.lookup import bare_signature

KINDS = {"function": "Functions", "class": "Classes", "exception": "Errors", "data": "Values"}
DIRECTIVES = {"function": "autofunction", "class": "autoclass", "exception": "autoexception"}

HEAD = """\
# API

Every public name. {mod}`xent` has the functions that replace those of PyTorch and the tools for a
loss of your own, {mod}`xent.losses` [the family](../losses/index.md), {mod}`xent.nn` a module for
each loss. The other modules are imported at their first use: `xent.plot.loss_curves(...)` works
after `import xent`.

```{toctree}
:hidden:
"""


def index() -> str:
    """The page that lists the modules."""
    lines = [HEAD + "\n".join(modules()), "```", "", "| module | |", "|---|---|"]
    for path, module in modules().items():
        first = inspect.cleandoc(module.__doc__ or "").partition("\n")[0]
        lines += [f"| [`{path}`]({path}.md) | {_of_code(first)} |"]
    return "\n".join(lines) + "\n"


def page(path: str) -> str:
    """The page of a module."""
    lines = [f"# {path}", "", "```{eval-rst}", f".. automodule:: {path}", "", "```"]
    own = [name for name in of_module(path) if name.is_explained_here]
    losses = [name for name in own if is_loss(name)]
    others = [name for name in of_module(path) if not name.is_explained_here]
    for kind, title in KINDS.items():
        chosen = [name for name in own if name.kind == kind and name not in losses]
        if chosen:
            lines += ["", f"## {title}", "", "```{eval-rst}"]
            lines += [line for name in chosen for line in _directive(name)]
            lines += ["```"]
    if losses:
        lines += ["", "## Losses", "", "Each has [a page of its own](../losses/index.md).", ""]
        lines += _table((name, summary(name)) for name in losses)
    if others:
        lines += ["", "## Explained elsewhere", ""]
        lines += _table((name, summary(name)) for name in others)
    return "\n".join(lines) + "\n"


def is_loss(name: Name) -> bool:
    """Return True if a name has a page among the losses."""
    return name.module == "xent.losses" and name.name in CATALOG


def _directive(name: Name) -> list[str]:
    if name.kind == "data":
        text = textwrap.indent(words(name), "   ")
        return [f".. py:data:: {name.name}", f"   :module: {name.module}", "", text, ""]
    options = []
    if inspect.isclass(name.thing) and name.module != "xent.nn":  # modules of one kind
        fields = getattr(name.thing, "_fields", ())  # a named tuple tells them as attributes
        options = ["   :members:", *([f"   :exclude-members: {', '.join(fields)}"] * bool(fields))]
    return [f".. {DIRECTIVES[name.kind]}:: {name.full}", *options, ""]


def _table(rows: Iterator[tuple[Name, str]]) -> Iterator[str]:
    yield from ("| name | |", "|---|---|")
    for name, text in rows:
        role = {"class": "class", "exception": "exc", "data": "data"}.get(name.kind, "func")
        shown = f"{{py:{role}}}`{name.name} <{name.explained_as}>`"
        yield f"| {shown} | {_of_code(text)} |"


def summary(name: Name) -> str:
    """The first paragraph of what the library says of a name."""
    return " ".join(words(name).partition("\n\n")[0].split())


def words(name: Name) -> str:
    """The docstring of a name; of a value the text below its assignment."""
    if name.kind != "data":
        return inspect.cleandoc(name.thing.__doc__ or "")
    for path in sorted(path for path in sys.modules if path.startswith(name.module)):
        texts = ModuleAnalyzer.for_module(path).find_attr_docs()
        if ("", name.name) in texts:
            return "\n".join(texts["", name.name]).strip()
    raise LookupError(f"{name.full} has no text below its assignment")


def _of_code(text: str) -> str:
    """Return the words of a docstring as Markdown: roles and double backquotes become code."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text.replace("``", "`"))
    return text.replace("|", "\\|")


def write(app: Sphinx) -> None:
    """Write the pages whose text has changed."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    texts = {"index.md": index(), **{f"{path}.md": page(path) for path in modules()}}
    for file in folder.iterdir():
        if file.name not in texts:
            file.unlink()
    for name, text in texts.items():
        save(folder / name, text)


def add_second_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Let every public name lead to the entry of what it stands for."""
    domain = env.domains.python_domain
    assert isinstance(domain, PythonDomain)
    for name in names().values():
        entry = domain.objects.get(name.explained_as)
        if entry is not None and name.full not in domain.objects:
            place = ObjectEntry(entry.docname, entry.node_id, entry.objtype, aliased=True)
            domain.objects[name.full] = place
    # Sphinx adds the place where a class is defined, which may be private.
    for full in [full for full in domain.objects if "._" in full]:
        del domain.objects[full]


def find_short_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.Element
) -> nodes.reference | None:
    """Find what a docstring names without its module, if the name is that of one thing."""
    target = node["reftarget"]
    if node.get("refdomain") != "py":
        return None
    objects = env.domains.python_domain.objects
    places = {(e.docname, e.node_id) for n, e in objects.items() if n.endswith(f".{target}")}
    if len(places) != 1:
        return None
    page, anchor = places.pop()
    return make_refnode(app.builder, node["refdoc"], page, anchor, [text], target)


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Make a link of each public name that stands in code by its full name."""
    known = {*names(), *modules()} - {"xent"}  # which may be the command, the package, the module
    for node in list(doctree.findall(nodes.literal)):
        target = node.astext().removesuffix("()")
        around = (nodes.reference, nodes.title, addnodes.pending_xref, addnodes.desc_signature)
        if target not in known or any(isinstance(x, around) for x in _parents(node)):
            continue
        link = addnodes.pending_xref(
            "", refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=True
        )
        link["refdoc"] = app.env.docname
        node.replace_self(link)
        link += node


def _parents(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def skip_foreign(
    app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out methods that other libraries put into a class."""
    foreign = inspect.isroutine(thing) and not str(thing.__module__).startswith("xent")
    return True if foreign else None


def plain_signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, given: str, result: str
) -> tuple[str, None] | None:
    """Show defaults that are functions by name, without a place in memory."""
    if given and what in ("function", "class"):
        return str(bare_signature(thing)), None
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the pages with Sphinx."""
    app.connect("builder-inited", write, priority=100)
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("doctree-read", link_names)
    app.connect("missing-reference", find_short_name)
    app.connect("env-updated", add_second_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
