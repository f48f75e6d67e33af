"""Bodies of losses as JavaScript: ``torch.fx`` records the operations, and each becomes a line.

A body that asks ``if gamma == 0`` of a number that the reader of the page chooses is recorded once
for each answer, and JavaScript asks the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import TraceError

NUMBERS = (files("xent.playground") / "assets" / "numbers.js").read_text(encoding="utf-8")
# The operations that `numbers.js` has, by the names of PyTorch's functions and methods.
OPERATIONS = frozenset(re.findall(r"^  (\w+):", NUMBERS, re.MULTILINE))
MOST_FORKS = 12  # questions on one way through a body

Given = Callable[[str], "Number"]  # from an expression of JavaScript to the number it stands for


class Untraceable(ValueError):
    """Raised if a loss has no form in JavaScript; says why."""


class Number(fx.Proxy):
    """A number that is not known yet; operations on it are recorded."""

    dtype = torch.float64
    device = torch.device("meta")  # so that nobody looks at the value


class _Fork(Exception):
    """Raised where a body asks which way to go, and no answer is left."""

    def __init__(self, condition: fx.Node) -> None:
        self.condition = condition


class _Tracer(fx.Tracer):
    """Records the way through a body on which the questions have these answers."""

    def __init__(self, answers: tuple[bool, ...]) -> None:
        super().__init__(autowrap_modules=(math,))
        self.answers = iter(answers)
        self.answered: dict[fx.Node, bool] = {}

    def given(self, expression: str) -> Number:
        """The number that an expression of JavaScript stands for."""
        return self.create_proxy("placeholder", expression, (), {})  # pyright: ignore

    def proxy(self, node: fx.Node) -> Number:
        """The number that an operation gives."""
        return Number(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The next answer, or that to the same question before."""
        if obj.node not in self.answered:
            answer = next(self.answers, None)
            if answer is None:
                raise _Fork(obj.node)
            self.answered[obj.node] = answer
        return self.answered[obj.node]


def javascript(function: Callable[[Given], Any]) -> str:
    """The lines of JavaScript that compute what a function returns.

    Args:
        function: gets ``given``, which makes numbers from expressions of JavaScript.

    Raises:
        Untraceable: if the function does anything but arithmetic with the numbers.
    """
    return _lines(function, (), frozenset())


def _lines(
    function: Callable[[Given], Any], answers: tuple[bool, ...], known: frozenset[str]
) -> str:
    """The lines after the last answer; the names in ``known`` have their lines already."""
    tracer = _Tracer(answers)
    try:
        graph = tracer.trace(lambda: function(tracer.given))
    except _Fork as fork:
        if len(answers) == MOST_FORKS:
            raise Untraceable("it asks too many questions about its numbers") from None
        new = [node for node in tracer.graph.nodes if node.name not in known]
        known = known.union(node.name for node in new)
        yes, no = (_lines(function, (*answers, way), known) for way in (True, False))
        asked = _text(fork.condition)
        return f"{''.join(map(_line, new))}if (o.truth({asked})) {{ {yes}}} else {{ {no}}} "
    except (TypeError, AttributeError, NotImplementedError, TraceError) as error:
        raise Untraceable(
            f"it does more than arithmetic with the numbers of a row: {error}"
        ) from None
    graph.eliminate_dead_code()
    return "".join(_line(node) for node in graph.nodes if node.name not in known)


def _line(node: fx.Node) -> str:
    """The line of an operation; what is given needs no line."""
    if node.op == "placeholder":
        return ""
    if node.op == "output":
        return f"return {_text(node.args[0])}; "
    name = node.target if isinstance(node.target, str) else node.target.__name__
    if name not in OPERATIONS:
        raise Untraceable(f"`{name}` has no form in JavaScript")
    operands = list(node.args)
    if name == "clamp":
        operands += [node.kwargs.get(limit) for limit in ("min", "max")][len(operands) - 1 :]
    elif node.kwargs:
        raise Untraceable(f"`{name}` with {', '.join(node.kwargs)} has no form in JavaScript")
    shown = [_text(x) for x in operands if not isinstance(x, torch.dtype)]
    return f"const {node.name} = o.{name}({', '.join(shown)}); "


def _text(value: Any) -> str:
    """A number, or the name of one, as an expression."""
    if isinstance(value, fx.Node):
        return str(value.target) if value.op == "placeholder" else value.name
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise Untraceable(f"an operand is a {type(value).__name__}")
