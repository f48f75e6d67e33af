"""All public names of xent, each with the one place where the site explains it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pkgutil import walk_packages
from types import ModuleType
from typing import Any, NamedTuple

from xent.losses import CATALOG

# In the order of the pages. Of the packages below every module counts that has an `__all__`.
MODULES = (
    "xent", "xent.losses", "xent.nn", "xent.policy", "xent.information", "xent.plot", "xent.learn",
    "xent.integrations", "xent.parallel", "xent.playground", "xent.losses.catalog",
    "xent.losses.lookup",
    "xent.information.reliability", "xent.targets", "xent.hyperparameters",
)  # fmt: skip
PACKAGES = ("xent.learn", "xent.integrations")


class Name(NamedTuple):
    """A public name, and the public name under which the site explains what it stands for."""

    module: str
    name: str
    thing: Any
    explained_as: str

    @property
    def full(self) -> str:
        """The name as users write it."""
        return f"{self.module}.{self.name}"

    @property
    def is_explained_here(self) -> bool:
        """True unless another name is the one that is explained."""
        return self.full == self.explained_as

    @property
    def kind(self) -> str:
        """The kind of object, in the words of Sphinx."""
        if inspect.isclass(self.thing):
            return "exception" if issubclass(self.thing, BaseException) else "class"
        return "function" if inspect.isroutine(self.thing) else "data"


@cache
def modules() -> dict[str, ModuleType]:
    """The public modules by name, each after the package that holds it."""
    found = {path: importlib.import_module(path) for path in MODULES}
    for package in PACKAGES:
        for module in walk_packages(found[package].__path__, f"{package}."):
            loaded = importlib.import_module(module.name)
            if hasattr(loaded, "__all__"):
                found[module.name] = loaded
    rooms = [path for path in MODULES if path.count(".") < 2]
    return {p: found[p] for p in sorted(found, key=lambda p: (rooms.index(_room(p)), p))}


def _room(path: str) -> str:
    return ".".join(path.split(".")[:2])


@cache
def names() -> dict[str, Name]:
    """All public names but those of modules, by the name as users write it."""
    places = {id(member.function): f"xent.losses.{name}" for name, member in CATALOG.items()}
    places[id(CATALOG)] = "xent.losses.catalog.CATALOG"
    found = {}
    for path, name, thing in _things():
        full = f"{path}.{name}"
        unique = inspect.isroutine(thing) or inspect.isclass(thing) or thing is CATALOG
        explained_as = places.setdefault(id(thing), full) if unique else full
        found[full] = Name(path, name, thing, explained_as)
    return found


def _things() -> Iterator[tuple[str, str, Any]]:
    for path, module in modules().items():
        things = {name: getattr(module, name) for name in module.__all__}
        own = [name for name, thing in things.items() if getattr(thing, "__name__", "") == name]
        for name in dict.fromkeys([*own, *things]):  # second names of a thing come last
            if not inspect.ismodule(things[name]):
                yield path, name, things[name]


def of_module(path: str) -> list[Name]:
    """The public names of a module."""
    return [name for name in names().values() if name.module == path]
