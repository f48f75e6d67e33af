"""Writes facts of the project into the files that repeat them: ``python package/facts.py``.

Name and version are in ``src/xent/_package.py``, the date is in ``CHANGELOG.md``, addresses are in
``project.toml``. A file repeats them between a line ``facts: BLOCK`` and a line ``end facts``.
``--check`` writes nothing and fails if a file is out of date.
"""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PROJECT = Path(__file__).parents[1]
FILES = (
    "pyproject.toml", "CITATION.cff", "SECURITY.md", "CODE_OF_CONDUCT.md", "package/recipe.yaml",
    ".github/ISSUE_TEMPLATE/config.yml", "docs/cite.md",
)  # fmt: skip
BLOCK = re.compile(
    r"^(?P<open>(?:#|<!--) facts: (?P<name>\w+).*\n)(?:.*\n)*?(?=(?:#|<!--) end facts)",
    re.MULTILINE,
)
RELEASE = re.compile(r"^## \[(?P<version>[^]]+)\] - (?P<date>\S+)$", re.MULTILINE)


class Facts(NamedTuple):
    """Facts that several files repeat; an address that is open is empty."""

    name: str
    version: str
    date: str
    repository: str
    site: str
    contact: str


def read(project: Path = PROJECT) -> Facts:
    """Return the facts from the files that have them."""
    package = runpy.run_path(str(project / "src" / "xent" / "_package.py"))
    release = RELEASE.search((project / "CHANGELOG.md").read_text(encoding="utf-8"))
    owner = tomllib.loads((project / "project.toml").read_text(encoding="utf-8"))["owner"]
    if release is None or release["version"] != package["VERSION"]:
        raise SystemExit(f"CHANGELOG.md must begin with version {package['VERSION']} and its date")
    return Facts(
        package["NAME"], package["VERSION"], release["date"],
        owner["repository"].rstrip("/"), owner["site"], owner["contact"],
    )  # fmt: skip


# ---- blocks: facts in, lines out ----------------------------------------------------------------


def urls(facts: Facts) -> list[str]:
    """Return the table of addresses for ``pyproject.toml``; a table of none has no head."""
    entries = [f'Documentation = "{facts.site}"'] * bool(facts.site)
    if facts.repository:
        entries += [
            f'Repository = "{facts.repository}"',
            f'Issues = "{facts.repository}/issues"',
            f'Changelog = "{facts.repository}/blob/main/CHANGELOG.md"',
        ]
    return ["[project.urls]", *entries] if entries else []


def citation(facts: Facts) -> list[str]:
    """Return version, date and addresses for ``CITATION.cff``."""
    return [
        f"version: {facts.version}",
        f"date-released: {facts.date}",
        *[f"repository-code: {facts.repository}"] * bool(facts.repository),
        *[f"url: {facts.site}"] * bool(facts.site),
    ]


def bibtex(facts: Facts) -> list[str]:
    """Return the entry for a bibliography."""
    url = facts.site or facts.repository
    return [
        "",
        "```bibtex",
        "@software{xent,",
        "  title   = {xent: cross-entropy and its family,",
        "             exact, fused and memory-lean},",
        "  author  = {{The xent maintainers}},",
        f"  version = {{{facts.version}}},",
        f"  date    = {{{facts.date}}},",
        *[f"  url     = {{{url}}},"] * bool(url),
        "}",
        "```",
        "",
    ]


def recipe(facts: Facts) -> list[str]:
    """Return name and version for the recipe of conda."""
    return ["context:", f"  name: {facts.name}", f'  version: "{facts.version}"']


def about(facts: Facts) -> list[str]:
    """Return the addresses for the recipe of conda."""
    return [
        *[f"  homepage: {facts.site or facts.repository}"] * bool(facts.site or facts.repository),
        *[f"  repository: {facts.repository}"] * bool(facts.repository),
    ]


def security(facts: Facts) -> list[str]:
    """Return the way to report a weakness in private."""
    ways = [
        *[f"- write to {facts.contact}"] * bool(facts.contact),
        *[f"- {facts.repository}/security/advisories/new"] * bool(facts.repository),
    ]
    return ways or _OPEN


def conduct(facts: Facts) -> list[str]:
    """Return the address for reports about conduct."""
    return [f"Write to {facts.contact}."] if facts.contact else _OPEN


def links(facts: Facts) -> list[str]:
    """Return the links beside the forms for issues."""
    beside = {
        "Documentation": (facts.site, "Lessons, every loss, and questions with answers"),
        "Security": (
            facts.repository and f"{facts.repository}/security/policy",
            "Report a weakness in private",
        ),
    }
    lines = [
        line
        for name, (url, text) in beside.items()
        if url
        for line in (f"  - name: {name}", f"    url: {url}", f"    about: {text}")
    ]
    return ["contact_links:", *lines] if lines else []


_OPEN = [
    "No address is published yet (`project.toml`). Until there is one, tell the person from whom",
    "you have this copy, and nobody else.",
]
BLOCKS: dict[str, Callable[[Facts], list[str]]] = {
    block.__name__: block
    for block in (urls, citation, bibtex, recipe, about, security, conduct, links)
}


def filled(text: str, facts: Facts) -> str:
    """Return the text of a file with each block written anew."""
    return BLOCK.sub(
        lambda found: found["open"] + "".join(f"{s}\n" for s in BLOCKS[found["name"]](facts)), text
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or return 1 if ``--check`` or ``--tag`` finds another text or version."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    parser.add_argument("--tag", help="fail if this tag is not that of the version")
    options = parser.parse_args(arguments)
    facts, status = read(), 0
    if options.tag and options.tag != f"v{facts.version}":
        print(f"the tag is {options.tag}, the version {facts.version}")
        status = 1
    for name in FILES:
        text = (PROJECT / name).read_text(encoding="utf-8")
        if filled(text, facts) == text:
            continue
        if options.check:
            print(f"{name} is out of date: run python package/facts.py")
            status = 1
        else:
            (PROJECT / name).write_text(filled(text, facts), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
