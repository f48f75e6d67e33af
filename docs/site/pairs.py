"""Pairs of calls on the pages of docs/coming-from: theirs, xent's, and the numbers that both give.

``python docs/site/pairs.py keras`` runs the calls of the other library and prints its numbers.
"""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

PAGES = Path(__file__).parents[1] / "coming-from"


class Library(NamedTuple):
    """A library that readers come from, and the version that gave the numbers of its page."""

    title: str
    version: str
    module: str | None  # what Python imports; None: this library is not of Python
    language: str = "python"


LIBRARIES = {
    "pytorch": Library("PyTorch", "2.13.0", "torch"),
    "torchvision": Library("torchvision", "0.28.0", "torchvision"),
    "keras": Library("Keras", "3.15.1", "keras"),
    "tensorflow": Library("TensorFlow", "2.21.0", "tensorflow"),
    "optax": Library("optax", "0.2.8", "optax"),
    "scikit-learn": Library("scikit-learn", "1.9.1", "sklearn"),
    "liger": Library("Liger", "0.8.5", "liger_kernel"),
    "cce": Library("CCE", "25.1.1", "cut_cross_entropy"),
    "flux": Library("Flux", "0.13", None, "julia"),
}


class Pair(NamedTuple):
    """Two pieces of code; ``told`` has the number of each, and is empty where they only prepare."""

    theirs: str
    ours: str
    told: list[str]
    formula: str | None = None


def pair(body: str, formula: str | None = None) -> Pair:
    """Return the pair of a block: theirs, xent's and the numbers, with ``===`` between them."""
    theirs, ours, *numbers = re.split(r"^===\n", body.strip() + "\n", flags=re.MULTILINE)
    told = numbers[0].splitlines() if numbers else []
    return Pair(theirs.strip(), ours.strip(), told * 2 if len(told) == 1 else told, formula)


def pairs(page: str) -> list[Pair]:
    """Return the pairs of a page in their order."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    block = r"^```\{pair\} \S+\n(?::formula: ([^\n]*)\n)?(.*?)^```$"
    found = re.findall(block, text, flags=re.MULTILINE | re.DOTALL)
    return [pair(body, formula or None) for formula, body in found]


def number(told: str) -> Any:
    """Return the number, or the lists of numbers, that a page tells."""
    return eval(told, {"inf": math.inf, "nan": math.nan})


def values(sources: Iterable[str], names: dict[str, Any]) -> list[Any]:
    """Run the sources one after the other, and return the value of the last line of each."""
    found = []
    for source in sources:
        *lines, last = ast.parse(source).body
        exec(compile(ast.Module(lines, []), "pair", "exec"), names)
        if isinstance(last, ast.Expr):
            found.append(plain(eval(compile(ast.Expression(last.value), "pair", "eval"), names)))
        else:
            exec(compile(ast.Module([last], []), "pair", "exec"), names)
            found.append(None)
    return found


def plain(value: Any) -> Any:
    """Return a tensor or an array of any library as a number or lists of numbers."""
    value = value.detach() if hasattr(value, "detach") else value
    value = value.numpy() if hasattr(value, "numpy") else value
    return value.tolist() if hasattr(value, "tolist") else value


def numbers_of(page: str) -> list[Any]:
    """Run the calls of the other library, and return the numbers that they give."""
    found = pairs(page)
    run = values([pair.theirs for pair in found], {})
    return [value for value, pair in zip(run, found, strict=True) if pair.told]


if __name__ == "__main__":
    print(json.dumps(numbers_of(sys.argv[1])))
