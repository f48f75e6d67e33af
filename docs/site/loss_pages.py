"""The pages of the losses, and the gallery that leads to them, written before Sphinx reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import loss_pictures
import papers
import relatives
from saved import save
from sphinx.application import Sphinx
from sphinx.util.display import status_iterator

import xent
from xent.frames.docstrings import use
from xent.losses import CATALOG, Member
from xent.losses.lookup import members
from xent.nn.twins import class_name
from xent.playground.losses import of_catalog

# The modules of the losses, gathered under what a reader looks for.
GROUPS = {
    "One class per row": ("classification", "sets", "modulated"),
    "Rare classes": ("imbalance", "seesaw"),
    "Margins and cosines": ("margin",),
    "Wrong labels": ("robust", "asymmetric", "noise", "tempered"),
    "Doubt and outliers": ("uncertainty",),
    "Soft targets and teachers": ("soft_targets", "distillation", "decoupled", "log_probabilities"),
    "Sparse probabilities": ("sparse",),
    "Yes or no: the sigmoid family": ("binary", "binary_modulated", "multilabel"),
    "Features and pairs": ("metric", "siglip"),
    "Ordered classes and times": ("ordinal",),
    "Rankings": ("ranking",),
    "Trees and detectors": ("hierarchy", "detection"),
    "Found by evolution": ("evolved",),
}
# Losses of features, of heads and of log-probabilities, which the pages of the API explain.
BESIDE = {
    "Behind a head, contrastive": (
        "xent.losses.linear_cross_entropy", "xent.losses.sampled_cross_entropy",
        "xent.losses.info_nce_loss", "xent.losses.clip_loss", "xent.losses.nt_xent_loss",
    ),
    "Policies and preferences": (
        "xent.policy.reinforce_loss", "xent.policy.ppo_loss", "xent.policy.grpo_loss",
        "xent.policy.dpo_loss", "xent.policy.kto_loss", "xent.policy.orpo_loss",
    ),
}  # fmt: skip
TARGETS = {
    "classes": "a class per row", "soft": "a distribution per row",
    "binary": "a number in [0, 1] per logit", "other": "targets of its own kind",
}  # fmt: skip
FACTS = {
    "proper": "proper", "bounded": "bounded", "convex": "convex", "symmetric": "symmetric",
    "second_pass": "second pass",
}  # fmt: skip


def page(name: str, alt: str) -> str:
    """The page of a loss, as Markdown.

    Args:
        name: of the loss.
        alt: what its picture shows; empty if it has none.
    """
    member = CATALOG[name]
    blocks = [
        f"# {name}",
        f":::{{admonition}} When to take it\n:class: tip\n\n{as_markdown(member.use)}\n:::",
        _badges(member),
        _picture(name, alt),
        _links(member),
        f"```{{eval-rst}}\n.. autofunction:: xent.losses.{name}\n```",
        *_relations(name),
        *_bibtex(member.function),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _badges(member: Member) -> str:
    """The facts, each with a link to what the word means."""
    shown = [f"{{bdg-primary-line}}`{TARGETS[member.targets]}`"]
    for fact, word in FACTS.items():
        holds = getattr(member, fact)
        color = "warning" if fact == "second_pass" else "success"
        if holds or fact != "second_pass":
            text = word if holds else f"not {word}"
            kind = f"bdg-link-{color}" if holds else "bdg-link-muted-line"
            anchor = word.replace(" ", "-")
            shown.append(f"{{{kind}}}`{text} <../glossary.html#{anchor}>`")
    return " ".join(shown)


def _picture(name: str, alt: str) -> str:
    if not alt:
        return f"*No picture.* {loss_pictures.WITHOUT[name]}"
    return "\n".join(
        f"```{{image}} pictures/{name}-{mode}.svg\n:alt: {alt}\n:class: only-{mode}\n```"
        for mode in ("light", "dark")
    )


def _links(member: Member) -> str:
    """The playground, the module of the loss and its second names."""
    parts = []
    if member.name in of_catalog()[0]:
        entry = of_catalog()[0][member.name]
        other = "binary_cross_entropy_with_logits" if entry["elements"] else "cross_entropy"
        beside = "none" if other == member.name else other
        address = f"../playground.html#a={member.name}&b={beside}"
        parts.append(f"[Open in the playground]({address})")
    parts.append(f"Module: {{class}}`xent.nn.{class_name(member.name)}`")
    names = [n for n, one in members().items() if one is member and n != member.name]
    if names:
        parts.append(f"Also called {' and '.join(f'`{n}`' for n in names)}")
    return " · ".join(parts)


def _relations(name: str) -> Iterator[str]:
    """Equal expressions, and the other losses of the group."""
    lines = []
    for left, right, where in relatives.of(name):
        shown = f"{_linked_calls(left)} = {_linked_calls(right)}"
        lines.append(f"* {shown}" + (f" ({where})" if where else ""))
    others = [n for n in CATALOG if n != name and group_of(n) == group_of(name)]
    yield "## Relatives"
    if lines:
        yield "Equal, to the last digits (`z` logits, `y` classes; a test computes both sides):"
        yield "\n".join(lines)
    if others:
        links = ", ".join(f"[{n}]({n}.md)" for n in others)
        yield f"{group_of(name)}: {links}."


def _linked_calls(expression: str) -> str:
    """An expression as code whose losses are links."""
    parts = re.split(rf"\b({'|'.join(CATALOG)})(?=\()", expression)
    shown = [f"[`{part}`]({part}.md)" if part in CATALOG else f"`{part}`" for part in parts if part]
    return "".join(shown)


def _bibtex(function: Callable[..., Any]) -> Iterator[str]:
    keys = dict.fromkeys(papers.keys_of(function))
    if keys:
        yield "## Cite"
        yield "```bibtex\n" + "\n\n".join(papers.entries()[key] for key in keys) + "\n```"


def group_of(name: str) -> str:
    """The title of the group of a loss."""
    return next(title for title, rooms in GROUPS.items() if CATALOG[name].room in rooms)


def as_markdown(text: str) -> str:
    """A sentence of a docstring as Markdown; losses and experiments become links to their pages."""

    def link(found: re.Match[str]) -> str:
        path = found[1]
        name = path.rpartition(".")[2]
        return f"[{name}](/losses/{name}.md)" if name in CATALOG else f"{{func}}`~{path}`"

    text = re.sub(r"``(\w+)`` experiment\b", r"[\1](/gallery/\1.md) experiment", text)
    return re.sub(r":func:`~([\w.]+)`", link, text).replace("``", "`")


# ---- the gallery ---------------------------------------------------------------------------------

HEAD = """\
# Losses

Every loss has a page: when to take it, its formula, a picture of its value and its gradient, what
is known of it, its arguments, an example, its relatives, and its paper. Not sure which one?
[Which loss?](../which-loss.md) asks the questions that decide. A curve drawn through is that of the
loss, a dashed one that of cross-entropy or of another case.
"""


def gallery(drawn: Iterable[str]) -> str:
    """The page with a thumbnail of each loss."""
    drawn, parts = set(drawn), [HEAD]
    for title in GROUPS:
        parts.append(f"## {title}\n\n::::{{grid}} 1 2 3 3\n:gutter: 2\n")
        parts += [_card(name, name in drawn) for name in CATALOG if group_of(name) == title]
        parts.append("::::")
    for title, paths in BESIDE.items():
        rows = [f"| {{func}}`~{path}` | {as_markdown(use(function_at(path)))} |" for path in paths]
        parts.append(
            "\n".join([f"## {title}", "", "| loss | when to take it |", "|---|---|", *rows])
        )
    names = "\n".join(name for title in GROUPS for name in CATALOG if group_of(name) == title)
    parts.append(f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{names}\n```")
    return "\n".join(parts) + "\n"


def function_at(path: str) -> Any:
    """Return the function of this full name."""
    module, _, name = path.removeprefix("xent.").rpartition(".")
    return getattr(getattr(xent, module), name)


def _card(name: str, is_drawn: bool) -> str:
    """The card of a loss: its curve, its name, and when to take it."""
    images = [
        f"```{{image}} pictures/{name}-thumb-{mode}.svg\n:alt: \n:class: only-{mode}\n```"
        for mode in ("light", "dark")
    ]
    when = as_markdown(CATALOG[name].use).partition("; not ")[0]
    when = re.sub(r"\[(\w+)\]\([^)]*\)", r"\1", when)  # the card is one link
    body = "\n".join([*(images if is_drawn else []), "", f"{when}."])
    title = name.replace("_", "_\N{ZERO WIDTH SPACE}")  # so that a long name breaks there
    card = (
        f":::{{grid-item-card}} {title}\n:link: {name}\n:link-type: doc\n:class-card: loss-card\n"
    )
    return f"{card}\n{body}\n:::"


# ---- writing -------------------------------------------------------------------------------------


def write(app: Sphinx) -> None:
    """Write the pages and draw the pictures whose losses have changed."""
    folder = Path(app.srcdir) / "losses"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    newest = max(file.stat().st_mtime for file in _sources())
    told = {name: folder / "pictures" / f"{name}.txt" for name in CATALOG}
    told = {name: file for name, file in told.items() if name not in loss_pictures.WITHOUT}
    stale = [n for n, file in told.items() if not file.exists() or file.stat().st_mtime < newest]
    for name, (drawings, alt) in zip(stale, _drawn(stale), strict=True):
        for ending, svg in drawings.items():
            save(folder / "pictures" / f"{name}-{ending}.svg", svg)
        told[name].write_text(alt, encoding="utf-8")
    alts = {name: file.read_text(encoding="utf-8") for name, file in told.items()}
    for name in CATALOG:
        save(folder / f"{name}.md", page(name, alts.get(name, "")))
    save(folder / "index.md", gallery(alts))


def _drawn(names: list[str]) -> Iterator[loss_pictures.Picture]:
    """Yield the pictures of these losses, which two processes draw."""
    if not names:
        return
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        pictures = pool.map(loss_pictures.picture, names, chunksize=4)
        yield from status_iterator(
            pictures, "drawing losses... ", "green", len(names), stringify_func=lambda _: ""
        )


def _sources() -> Iterator[Path]:
    """The files that pictures depend on."""
    here, house = Path(__file__).parent, Path(xent.__file__).parent
    yield from here.glob("loss_*.py")
    for room in ("losses", "plot"):
        yield from (house / room).glob("*.*")


def without_use(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Leave the section on use out of the docstring of a loss, whose page begins with it."""
    if name.removeprefix("xent.losses.") in CATALOG and "Use:" in lines:
        first = lines.index("Use:")
        del lines[first : lines.index("", first) + 1]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the pages with Sphinx."""
    app.connect("builder-inited", write, priority=100)
    app.connect("autodoc-process-docstring", without_use, priority=100)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
