"""Writes docs/reference.md from the code: ``python docs/build.py``.

The page is made from ``__all__`` and the catalog of losses, so it has every public name. A test
compares the page on disk with what this script writes.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

import xent
from xent.commands.losses import FACTS, aliases, needs
from xent.losses import CATALOG, Member
from xent.losses.lookup import bare_signature, members
from xent.nn.twins import modules

PAGE = Path(__file__).with_name("reference.md")
# Public modules beside `xent` itself: those of MODULES, and every module in PACKAGES.
MODULES = (
    "xent.losses", "xent.losses.catalog", "xent.losses.lookup", "xent.policy", "xent.information",
    "xent.information.reliability", "xent.targets", "xent.hyperparameters", "xent.plot",
    "xent.playground",
)  # fmt: skip
PACKAGES = ("xent.learn", "xent.integrations")

_TITLES = re.compile(
    r"^(Args|Attributes|Returns|Raises|Examples?|References|Note|Shape|Call):$", re.MULTILINE
)

HEAD = """\
# Reference

Written by `docs/build.py` from the docstrings; do not edit.
`python -m pydoc xent.losses.focal_loss` shows the same with every argument explained,
`xent losses` the table in a terminal.
"""
FACTS_HEAD = """\
## Losses

All losses are in `xent.losses`; `linear_cross_entropy` and those that replace functions of
PyTorch (`cross_entropy`, `nll_loss`, `kl_div`, the two binary ones) are in `xent`, too. The facts
hold at default hyperparameters. `tests/losses/test_catalog.py` checks each of them with numbers.

- **targets**: *classes*, one class per row (most take distributions, too); *soft*, a distribution
  per row; *binary*, a number in [0, 1] per logit; *other*, explained at the loss.
- **proper**: the expected loss is least where the true distribution is predicted, and only there.
- **bounded**: there is a largest loss of a row.
- **convex**: in the logits.
- **symmetric**: the losses of all possible targets add up to a constant, which makes it robust to
  labels that are wrong uniformly at random.
- **second pass**: the loss sweeps the logits more than once, or keeps tensors of their size.
- **needs**: statistics of a row that the loss uses beside those that every loss has.

In formulas `z` are logits, `p` their softmax, `y` is the target, `C` the number of classes.
Options that losses share (`weight` to `engine`) are explained at
[`cross_entropy`](#cross_entropy).
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, FACTS_HEAD, _table(list(CATALOG.values()))]
    parts += [_entry(member.name, member.function, member) for member in CATALOG.values()]
    parts += ["## Modules\n", _markdown(inspect.cleandoc(xent.nn.__doc__ or "")), _modules()]
    for module, names in public():
        names = [name for name in names if not _is_loss(module, name)]
        if names:
            parts.append(f"## {module.__name__}\n\n{_introduction(module)}")
            parts += [_entry(heading(module, name), getattr(module, name)) for name in names]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def public() -> Iterator[tuple[ModuleType, list[str]]]:
    """Yield each module for users with its public names that no module before has."""
    rooms = [importlib.import_module(path) for path in PACKAGES]
    paths = sorted(m.name for r in rooms for m in walk_packages(r.__path__, f"{r.__name__}."))
    told: list[Any] = []
    for path in ("xent", *MODULES, *PACKAGES, *paths):
        module = importlib.import_module(path)
        new = {name: getattr(module, name) for name in names_of(module)}
        new = {n: x for n, x in new.items() if not inspect.ismodule(x) and not _is_in(told, x)}
        told += new.values()
        yield module, list(new)


def _is_in(things: list[Any], thing: Any) -> bool:
    return any(thing is one for one in things)


def _is_loss(module: ModuleType, name: str) -> bool:
    """Return True if a name is explained among the losses."""
    return module in (xent, xent.losses) and name in members()


def heading(module: ModuleType, name: str) -> str:
    """Return the heading of the entry of a name."""
    return name if module is xent or _is_loss(module, name) else f"{module.__name__}.{name}"


@cache
def _anchors() -> dict[str, str]:
    """Return the anchor of each name, by ``xent.name`` or ``xent.losses.name``."""
    losses = {f"xent.losses.{n}": member.name for n, member in members().items()}
    drop_ins = {f"xent.{n}": n for n in CATALOG if n in xent.__all__}
    others = {
        f"{module.__name__}.{name}": heading(module, name)
        for module, names in public()
        for name in names
        if not _is_loss(module, name)
    }
    every = {**losses, **drop_ins, **others}
    return {name: title.lower().replace(".", "") for name, title in every.items()}


def names_of(module: ModuleType) -> list[str]:
    """Return the public names of a module: ``__all__``, or its functions and classes."""
    defined = [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module.__name__
    ]
    return list(getattr(module, "__all__", defined))


def _introduction(package: ModuleType) -> str:
    doc = inspect.cleandoc(package.__doc__ or "")
    return _markdown(doc.partition("\n\n")[0])


def _table(chosen: list[Member]) -> str:
    titles = ["loss", "targets", *(fact.replace("_", " ") for fact in FACTS), "needs"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for member in chosen:
        other = "".join(f", `{name}`" for name in aliases(member))
        marks = ["yes" if getattr(member, fact) else "" for fact in FACTS]
        cells = [f"[`{member.name}`](#{member.name}){other}", member.targets, *marks]
        lines.append("| " + " | ".join([*cells, ", ".join(needs(member))]) + " |")
    return "\n".join(lines)


def _modules() -> str:
    lines = ["| module | of the function |", "|---|---|"]
    for name in xent.nn.__all__:
        function = modules()[name].__name__
        lines.append(f"| `xent.nn.{name}` | [`{function}`](#{function}) |")
    return "\n".join(lines)


def _entry(name: str, thing: Any, member: Member | None = None) -> str:
    """Return the entry of a name: heading, signature, description, arguments and example."""
    lines = [f"### {name}", ""]
    if isinstance(thing, dict):
        return "\n".join([*lines, f"A `dict` with {len(thing)} entries."])
    if not (inspect.isroutine(thing) or inspect.isclass(thing)):  # a number, or a type
        return "\n".join([*lines, f"`{repr(thing).replace('typing.', '')}`"])
    lines += ["```python", signature(name, thing), "```", ""]
    if member:
        others = "".join(f", also called `{other}`" for other in aliases(member))
        facts = [fact.replace("_", " ") for fact in FACTS if getattr(member, fact)]
        lines += [f"*{member.targets}; {', '.join(facts) or 'no special properties'}*{others}", ""]
    return "\n".join([*lines, _describe(inspect.unwrap(thing).__doc__ or "")])


def signature(name: str, thing: Callable[..., Any]) -> str:
    """Return the signature without annotations, broken into lines."""
    try:
        bare = bare_signature(thing)
    except ValueError:  # an exception class has no signature
        return f"class {name}"
    return "\n".join(
        textwrap.wrap(f"{name.rpartition('.')[2]}{bare}", 96, subsequent_indent="    ")
    )


def _describe(doc: str) -> str:
    first, *rest = _TITLES.split(inspect.cleandoc(doc))
    parts = dict(zip(rest[::2], map(textwrap.dedent, rest[1::2]), strict=True))
    lines = [_markdown(first.strip())]
    for title in ("Args", "Attributes", "Returns", "References"):
        if title in parts:
            listed = title in ("Args", "Attributes")
            item = re.compile(r"^([*\w]+):", re.MULTILINE)
            text = item.sub(r"- `\1`:", parts[title]) if listed else parts[title]
            lines += ["", f"**{title}**", "", _markdown(text.strip())]
    if "Example" in parts:
        lines += ["", _example(parts["Example"])]
    return "\n".join(lines)


def _example(text: str) -> str:
    """Put each session into a fence, and leave the text between sessions as it is."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        session = block.lstrip().startswith(">>>")
        blocks.append(f"```pycon\n{block}\n```" if session else _markdown(block))
    return "\n\n".join(blocks)


def _markdown(text: str) -> str:
    """Return Markdown for the reStructuredText that the docstrings use."""
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r":math:`([^`]*)`", r"$`\1`$", text)
    text = re.sub(r":\w+:`~?([^`]*)`", _link, text)
    # The directive, and every line below the directive that is indented further.
    formula = r"^( *)\.\. math::(.*(?:\n+\1 +\S.*)*)"
    return re.sub(formula, _fence, text, flags=re.MULTILINE)


def _fence(match: re.Match[str]) -> str:
    body = "\n".join(line.strip() for line in match[2].strip().splitlines())
    if "&" in body:
        body = "\\begin{aligned}\n" + body + "\n\\end{aligned}"
    return textwrap.indent(f"```math\n{body}\n```", match[1])


def _link(match: re.Match[str]) -> str:
    # A name without a module is a name of `xent` or a loss.
    places = ("", "xent.", "xent.losses.")
    found = [place + match[1] for place in places if place + match[1] in _anchors()]
    return f"[`{match[1]}`](#{_anchors()[found[0]]})" if found else f"`{match[1]}`"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
