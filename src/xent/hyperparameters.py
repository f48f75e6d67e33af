"""Hyperparameters of losses: annotations say which values are allowed.

::

    @row_loss
    def focal_loss(s, gamma: NonNegative = 2.0): ...

refuses a negative or infinite ``gamma`` by name.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from torch import Tensor

from ._check import INTEGERS, broadcasts_to, finite_number, vector_of_classes
from .engines.modes import can_look_at
from .heads.stand_in import Lean
from .targets import class_axis

__all__ = [
    "ClassVector",
    "Counts",
    "Fraction",
    "NonNegative",
    "Number",
    "PerClass",
    "PerElement",
    "Positive",
    "Range",
    "Rule",
]


Logits = Tensor | Lean  # as a rule reads them: shape, dtype and device


class Rule(ABC):
    """A condition on a hyperparameter: the base class of all rules.

    Rules of two classes are never equal. Python before 3.11.4 keeps ``Annotated[float, rule]`` in a
    cache, which would give one rule for an annotation with another rule that is equal.
    """

    @abstractmethod
    def check(self, name: str, value: Any, input: Logits | None) -> Any:
        """The checked value, a number as a float; raise unless the value satisfies the rule.

        ``input`` holds the logits, or is None where there are none.
        """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))


@dataclass(frozen=True, eq=False)
class Range(Rule):
    """A finite number between ``low`` and ``high``; ``open`` excludes ``low`` itself."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def check(self, name: str, value: Any, input: Logits | None) -> Any:
        """The number; raise unless it lies in the range."""
        if value is None:
            return None
        number = finite_number(name, value)
        if not self.low <= number <= self.high or (self.open and number == self.low):
            raise ValueError(f"`{name}` must be {self}, got {value}")
        return number

    def __str__(self) -> str:
        above = f"greater than {self.low:g}" if self.open else f"at least {self.low:g}"
        if self.high == math.inf:
            return "a finite number" if self.low == -math.inf else above
        if self.low == -math.inf:
            return f"at most {self.high:g}"
        return f"{above} and at most {self.high:g}"


@dataclass(frozen=True, eq=False)
class PerElement(Range):
    """A number of this range, or a tensor that broadcasts to the logits and may be learned."""

    def check(self, name: str, value: Any, input: Logits | None) -> Any:
        """The number or tensor; raise unless it fits the range and the logits."""
        if not isinstance(value, Tensor) or (value.ndim == 0 and not value.requires_grad):
            return super().check(name, value, input)
        if not value.is_floating_point():
            raise TypeError(
                f"`{name}` must be floating point, got {value.dtype}; call {name}.float()"
            )
        if can_look_at(value) and not bool(((value >= self.low) & (value <= self.high)).all()):
            raise ValueError(f"`{name}` must be {self}, in every entry")
        if input is not None:
            broadcasts_to(name, value, input)
        return value


@dataclass(frozen=True, eq=False)
class PerClass(Rule):
    """A rule for a vector: a number per class, none below ``low``; integers become float64."""

    low: float = -math.inf

    def check(self, name: str, value: Any, input: Logits | None) -> Any:
        """The vector; raise unless it has a number for each class, none below ``low``."""
        if isinstance(value, Tensor) and value.dtype in INTEGERS:
            value = value.double()
        if value is None or input is None:
            return value
        vector_of_classes(name, value, input.shape[class_axis(input)], input.device)
        if self.low > -math.inf and can_look_at(value) and bool((value < self.low).any()):
            raise ValueError(f"`{name}` must hold no number below {self.low:g}")
        return value


Number = Annotated[float, Range()]
"""A finite number."""
NonNegative = Annotated[float, Range(0)]
"""A finite number that is at least 0."""
Positive = Annotated[float, Range(0, open=True)]
"""A finite number above 0."""
Fraction = Annotated[float, Range(0, 1)]
"""A number from 0 to 1."""
ClassVector = Annotated[Tensor, PerClass()]
"""A vector with a number for each class."""
Counts = Annotated[Tensor, PerClass(0)]
"""A vector with a count for each class; or probabilities, as only the ratios matter."""


class Hyperparameters:
    """The hyperparameters of a body: everything after its first parameter."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self.name = getattr(body, "__name__", "loss")
        own = list(inspect.signature(body).parameters.values())[1:]
        self.parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
        self.names = frozenset(p.name for p in own)
        self.defaults = {p.name: p.default for p in own if p.default is not p.empty}
        self.required = [p.name for p in own if p.default is p.empty]
        self.hints = _hints(body)
        self.checks = [
            (name, rule)
            for name, hint in self.hints.items()
            for rule in _rules(hint)
            if isinstance(rule, Rule)
        ]
        self.per_class = frozenset(n for n, rule in self.checks if isinstance(rule, PerClass))
        self.optional = frozenset(  # found here, as compilers cannot look at annotations
            name
            for name, hint in self.hints.items()
            if self.defaults.get(name, ...) is None or type(None) in getattr(hint, "__args__", ())
        )

    def settings(self, given: Mapping[str, Any], input: Logits | None = None) -> dict[str, Any]:
        """All hyperparameters by name: the given ones, checked, and defaults for the others."""
        for name in given:
            if name not in self.names:
                raise TypeError(f"{self.name}() got an unexpected keyword argument {name!r}")
        for name in self.required:
            if name not in given:
                raise TypeError(f"{self.name}() needs the keyword argument `{name}`")
        if not isinstance(input, (Tensor, Lean)) or input.ndim == 0:
            input = None  # a wrong `input` is refused where logits are read
        settings = {**self.defaults, **given}
        for name, rule in self.checks:
            if name in given:
                if given[name] is None and name not in self.optional:
                    raise TypeError(f"{self.name}() needs a value for `{name}`, got None")
                settings[name] = rule.check(name, given[name], input)
        return settings

    def fit_chunks(self, settings: Mapping[str, Any]) -> bool:
        """True if some rows can be computed without the others.

        False if a tensor may hold a number per row, or requires a gradient itself.
        """
        learned = any(isinstance(x, Tensor) and x.requires_grad for x in settings.values())
        return not learned and not self.may_be_of_rows(settings)

    def may_be_of_rows(self, settings: Mapping[str, Any]) -> bool:
        """True if a tensor may hold a number per row: no annotation says that it does not."""
        return any(
            isinstance(x, Tensor) and x.ndim > 0 and name not in self.per_class
            for name, x in settings.items()
        )


def _hints(body: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(body, include_extras=True)
    except NameError:  # a name that only the user's code knows, so none of ours
        return {}


def _rules(hint: Any) -> list[Any]:
    """Return the rules of an annotation, also inside ``... | None``."""
    nested = [rule for part in getattr(hint, "__args__", ()) for rule in _rules(part)]
    return [*getattr(hint, "__metadata__", ()), *nested]
