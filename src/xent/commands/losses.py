"""``xent losses``: the family and what is known about each member."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from ..losses import CATALOG, Member
from ..losses.lookup import about, bare_signature, find, members
from .console import UserError, say, say_json
from .formulas import readable
from .page import Page, table

FACTS = ("proper", "bounded", "convex", "symmetric", "second_pass")
HELP = """\
xent losses NAME explains one, with when not to take it;
xent losses WORD ... finds those that a word is about, such as hinge, survival or wrong labels;
xent losses --facts shows what is known of each, xent plot NAME draws it."""
LEGEND = """\
targets    a class per row, a soft distribution, or binary: a number in [0, 1] per logit
proper     expected loss is least where the true distribution is predicted, and only there
bounded    there is a largest loss of a row
convex     in the logits
symmetric  the losses of all targets add up to a constant: robust to uniform label noise
2nd pass   sweeps the logits more than once, or keeps tensors of their size
needs      what is measured of a row on top of what every loss has

At default hyperparameters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent losses``."""
    parser.add_argument(
        "name", nargs="*", metavar="NAME", help="explain this one, or find what words are about"
    )
    parser.add_argument("--facts", action="store_true", help="a table of what is known of each")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list, the table of facts, or one loss."""
    chosen = _chosen(" ".join(args.name)) if args.name else list(CATALOG.values())
    one = chosen[0] if args.name and len(chosen) == 1 else None
    if args.json:
        facts = [facts_of(member) for member in chosen]
        say_json(facts[0] if one else facts)
    elif args.facts:
        say(facts_table(chosen) + f"\n\n{LEGEND}")
    elif one:
        say(explanation(one))
    elif args.name:  # several that the words are about
        say("\n\n".join(map(_in_short, chosen)))
    else:
        say(overview(chosen) + f"\n\n{HELP}")
    return 0


def _chosen(words: str) -> list[Member]:
    """The loss of this name, or those that the words are about."""
    try:
        return [find(words)]
    except ValueError as error:
        found = about(words)
        if not found:
            raise UserError(f"{error} (xent losses lists all)") from None
        return found


def facts_of(member: Member) -> dict[str, Any]:
    """The facts about a loss as plain types."""
    return {
        "name": member.name,
        "aliases": aliases(member),
        "room": member.room,
        "targets": member.targets,
        **{fact: getattr(member, fact) for fact in FACTS},
        "needs": list(needs(member)),
        "signature": str(bare_signature(member.function)),
        "summary": member.summary,
        "use": _readable_use(member),
    }


def aliases(member: Member) -> list[str]:
    """The other names of a loss."""
    return [name for name, m in members().items() if m is member and name != member.name]


def needs(member: Member) -> tuple[str, ...]:
    """The statistics that a loss requests at its default hyperparameters."""
    return member.needs(**defaults(member))


def defaults(member: Member) -> dict[str, Any]:
    """The hyperparameters that :meth:`xent.losses.Member.needs` takes."""
    body = inspect.signature(inspect.unwrap(member.function)).parameters
    return {p.name: p.default for p in list(body.values())[1:] if p.default is not p.empty}


def overview(chosen: list[Member]) -> Page:
    """Return a table that says when to take each loss."""
    rows = [("", "when to take it")]
    for member, room in _by_room(chosen):
        rows += [("", ""), (room, "")] if room else []
        rows.append((f"  {member.name}", _readable_use(member).partition(";")[0]))
    return table(rows)


def facts_table(chosen: list[Member]) -> Page:
    """Return a table of losses by their modules, facts as marks."""
    rows: list[tuple[str, ...]] = [
        ("", "targets", "proper", "bounded", "convex", "symmetric", "2nd pass", "needs")
    ]
    for member, room in _by_room(chosen):
        rows += [("",) * len(rows[0]), (room, *("",) * 7)] if room else []
        marks = ("yes" if getattr(member, fact) else "." for fact in FACTS)
        rows.append((f"  {member.name}", member.targets, *marks, ", ".join(needs(member))))
    return table(rows)


def _by_room(chosen: list[Member]) -> Iterator[tuple[Member, str]]:
    """Yield losses, the first of each module with the title of the module."""
    before = ""
    for member in chosen:
        yield member, member.room.replace("_", " ") if member.room != before else ""
        before = member.room


def _in_short(member: Member) -> str:
    """Return the name of a loss, with when to take it and when not."""
    told = textwrap.wrap(_readable_use(member), 92)
    return "\n    ".join([f"{member.name}: {member.summary}", *told])


def _readable_use(member: Member) -> str:
    return readable(member.use).replace("`", "")


def explanation(member: Member) -> str:
    """Return the description of a loss: signature, facts, docstring with readable formulas."""
    names = f"\nalso known as {', '.join(aliases(member))}" if aliases(member) else ""
    facts = [(fact.replace("_", " "), "yes" if getattr(member, fact) else "no") for fact in FACTS]
    facts = [("targets", member.targets), *facts, ("needs", ", ".join(needs(member)) or "nothing")]
    call = textwrap.wrap(f"xent.losses.{member.name}{bare_signature(member.function)}", 96)
    head = "\n    ".join(call) + names
    told = readable(inspect.getdoc(member.function) or "")
    return f"{head}\n\n" + table(facts, head=False) + f"\n\n{told}"
