"""The names that the site explains are those that are public."""

import importlib
import inspect
import re
import sys
import zlib
from pathlib import Path

import pytest

import xent

from . import DOCS, SITE, needs_site

HOUSE = Path(xent.__file__).parent
# Modules whose `__all__` is for other rooms of the house, not for users.
INTERNAL = {"xent.heads.late", "xent.heads.late_product", "xent.measurement"}


def public_modules():
    """Return the modules that have an `__all__`, from their sources."""
    files = [f for f in HOUSE.rglob("*.py") if re.search(r"^__all__", f.read_text("utf-8"), re.M)]
    paths = {".".join(("xent", *f.relative_to(HOUSE).with_suffix("").parts)) for f in files}
    return {path.removesuffix(".__init__") for path in paths} - INTERNAL


def public_names():
    return {
        f"{path}.{name}"
        for path in public_modules()
        for name in importlib.import_module(path).__all__
    }


@pytest.fixture(scope="module")
def walk():
    sys.path.insert(0, str(DOCS / "site"))
    yield importlib.import_module("public_names")
    sys.path.remove(str(DOCS / "site"))


def test_the_walk_finds_every_public_name(walk):
    assert set(walk.modules()) == public_modules()
    assert {*walk.names(), *walk.modules()} >= public_names()


def test_a_thing_is_explained_once_under_a_name_of_its_own(walk):
    explained = [name for name in walk.names().values() if name.is_explained_here]
    things = [id(n.thing) for n in explained if inspect.isroutine(n.thing) or n.kind == "class"]
    assert len(things) == len(set(things))
    assert all(walk.names()[name.explained_as].is_explained_here for name in walk.names().values())
    names = walk.names()
    assert names["xent.cross_entropy"].explained_as == "xent.losses.cross_entropy"
    assert names["xent.learn.mixtures.fit_logit_weights"].explained_as == (
        "xent.learn.fit_logit_weights"
    )
    assert names["xent.nn.PCSoftmaxLoss"].explained_as == "xent.nn.BalancedSoftmaxLoss" or (
        names["xent.nn.PCSoftmaxLoss"].explained_as == "xent.nn.LogitAdjustedLoss"
    )
    assert names["xent.plot.information"].is_explained_here


def inventory():
    """Return the kind and the page of each name in objects.inv."""
    head, _, packed = (SITE / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert b"Sphinx inventory version 2" in head
    lines = zlib.decompress(packed).decode().splitlines()
    found = [re.fullmatch(r"(.+?) (py:\w+) (-?\d+) (\S+) .*", line) for line in lines]
    return {match[1]: (match[2], match[4]) for match in found if match}


@needs_site
def test_every_public_name_is_in_the_inventory_of_the_site():
    entries = inventory()
    wanted = public_names() | public_modules()
    assert len(wanted) > 400
    assert not wanted - set(entries)
    modules = {name for name, (kind, _) in entries.items() if kind == "py:module"}
    assert modules == public_modules()


@needs_site
def test_no_private_name_is_in_the_inventory():
    entries = inventory()
    assert not [name for name in entries if any(p.startswith("_") for p in name.split("."))]


@needs_site
def test_each_loss_leads_to_its_own_page():
    entries = inventory()
    for name, member in xent.losses.CATALOG.items():
        assert entries[f"xent.losses.{name}"][1].startswith(f"losses/{name}.html"), member.name
