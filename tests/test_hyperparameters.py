"""Rules of hyperparameters: two rules are never mixed up, however alike they are."""

import ast
import importlib
import inspect
from itertools import combinations
from pathlib import Path

import pytest

import xent
from xent.hyperparameters import Hyperparameters, PerClass, Range, Rule
from xent.losses import CATALOG

HOUSE = Path(xent.__file__).parent


def kinds(rule: type[Rule] = Rule) -> list[type[Rule]]:
    """Return every subclass of this class of rules."""
    return [kind for below in rule.__subclasses__() for kind in (below, *kinds(below))]


def written() -> list[tuple[str, str, str]]:
    """Return every ``Annotated[type, rule]`` of the sources: module, whole expression, rule."""
    found = []
    for file in sorted(HOUSE.rglob("*.py")):
        module = ".".join(("xent", *file.relative_to(HOUSE).with_suffix("").parts))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated":
                _, rule = node.slice.elts
                found.append((module, ast.unparse(node), ast.unparse(rule)))
    return found


def test_rules_differ_by_their_class():
    assert len(kinds()) >= 5
    rules = [kind() for kind in kinds()]  # without numbers, or with the same default numbers
    for one, other in combinations(rules, 2):
        assert one != other
        assert hash(one) != hash(other)


@pytest.mark.parametrize("kind", [Range, PerClass])
def test_a_rule_that_adds_nothing_is_another(kind):
    class Narrower(kind):
        pass

    assert Narrower(0) != kind(0)
    assert hash(Narrower(0)) != hash(kind(0))
    assert Narrower(0) == Narrower(0) != Narrower(1)
    assert len({kind(0), kind(0), kind(1), Narrower(0)}) == 3


@pytest.mark.parametrize(("module", "hint", "rule"), written())
def test_a_hint_has_the_rule_that_is_written(module, hint, rule):
    names = vars(importlib.import_module(module))
    made, expected = eval(hint, names).__metadata__[0], eval(rule, names)
    assert isinstance(expected, Rule)
    assert type(made) is type(expected)
    assert made == expected


def test_rules_of_the_catalog_are_those_of_its_modules():
    """A rule is found behind a name for a hint, as `NoiseRate`, and inside `... | None`, too."""
    bodies = {name: inspect.unwrap(member.function) for name, member in CATALOG.items()}
    rules = {name: dict(Hyperparameters(body).checks) for name, body in bodies.items()}
    assert sum(map(len, rules.values())) > 40
    assert type(rules["forward_corrected_symmetric_noise_loss"]["rate"]).__name__ == "_BelowChance"
    assert type(rules["forward_corrected_cross_entropy"]["matrix"]).__name__ == "_Stochastic"
    assert type(rules["structured_cross_entropy"]["table"]).__name__ == "_SoftTargets"
    assert rules["smoothed_cross_entropy"]["prior"] == PerClass(0)
    assert rules["focal_loss"]["gamma"] == Range(0)
