"""``xent losses``: the family and what is known about each member."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from typing import Any

from ..losses import CATALOG, Member
from ..losses.lookup import bare_signature, find, members
from .console import UserError, say, say_json
from .formulas import readable
from .page import table

FACTS = ("proper", "bounded", "convex", "symmetric", "second_pass")
LEGEND = """\
targets    a class per row, a soft distribution, or binary: a number in [0, 1] per logit
proper     expected loss is least where the true distribution is predicted, and only there
bounded    there is a largest loss of a row
convex     in the logits
symmetric  the losses of all targets add up to a constant: robust to uniform label noise
2nd pass   sweeps the logits more than once, or keeps tensors of their size
needs      what is measured of a row on top of what every loss has

At default hyperparameters. xent losses NAME explains one, xent plot NAME draws it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent losses``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="explain this one")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the table, or one loss."""
    if args.name is None:
        chosen = list(CATALOG.values())
    else:
        try:
            chosen = [find(args.name)]
        except ValueError as error:
            raise UserError(f"{error} (xent losses lists all)") from None
    if args.json:
        facts = [facts_of(member) for member in chosen]
        say_json(facts if args.name is None else facts[0])
    elif args.name is None:
        say(overview(chosen) + f"\n\n{LEGEND}")
    else:
        say(explanation(chosen[0]))
    return 0


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


def overview(chosen: list[Member]) -> str:
    """Return a table of all losses by their modules, facts as marks."""
    rows: list[tuple[str, ...]] = [
        ("", "targets", "proper", "bounded", "convex", "symmetric", "2nd pass", "needs")
    ]
    room = ""
    for member in chosen:
        if member.room != room:
            room = member.room
            rows += [("",) * len(rows[0]), (room.replace("_", " "), *("",) * 7)]
        marks = ("yes" if getattr(member, fact) else "." for fact in FACTS)
        rows.append((f"  {member.name}", member.targets, *marks, ", ".join(needs(member))))
    return table(rows)


def explanation(member: Member) -> str:
    """Return the description of a loss: signature, facts, docstring with readable formulas."""
    names = f"\nalso known as {', '.join(aliases(member))}" if aliases(member) else ""
    facts = [(fact.replace("_", " "), "yes" if getattr(member, fact) else "no") for fact in FACTS]
    facts = [("targets", member.targets), *facts, ("needs", ", ".join(needs(member)) or "nothing")]
    call = textwrap.wrap(f"xent.losses.{member.name}{bare_signature(member.function)}", 96)
    head = "\n    ".join(call) + names
    told = readable(inspect.getdoc(member.function) or "")
    return f"{head}\n\n" + table(facts, head=False) + f"\n\n{told}"
