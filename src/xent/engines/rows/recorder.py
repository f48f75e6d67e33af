"""Keeps the programs of a body, as long as the constants that the body reads stay the same."""

from __future__ import annotations

import dis
import functools
import math
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ...row_statistics import RowStatistics
from .programs import NAMES, OPERATIONS, NotThere, Program, record

_CONSTANTS = (type(None), bool, int, float, str)
# Attributes that a body may read if its program is kept: those of statistics, names of functions
# that can be recorded, and a few more. Any other attribute could belong to any object.
_ATTRIBUTES = {
    *(name for name in vars(RowStatistics) if not name.startswith("_")),
    *RowStatistics.__dataclass_fields__,
    *(name for names in NAMES.values() for name in names),
    *("square", "clamp", "zeros_like", "ones_like", "double", "to", "float64", "nn", "functional"),
    *(name for name in dir(math) if not name.startswith("_")),
} - {"complete", "classes", "label", "of_label", "on_request", "merge", "identity", "reshape"}
_BUILTINS = {"abs", "float", "int", "max", "min", "pow", "range", "round", "sum", "ValueError"}
_MODULES = ("torch", "math", "torch.nn.functional", "torch.nn")
_LOADS_OF_NAMES = ("LOAD_GLOBAL", "LOAD_NAME")
# Instructions of Python that change something, catch an error, or enter a context such as
# `torch.no_grad()`.
_EFFECTS = (
    "IMPORT_", "STORE_GLOBAL", "STORE_NAME", "STORE_ATTR", "STORE_SUBSCR", "DELETE_", "INPLACE_",
    "BEFORE_WITH", "SETUP_WITH", "LOAD_SPECIAL", "SETUP_FINALLY", "PUSH_EXC_INFO", "YIELD_",
    "LOAD_BUILD_CLASS", "GET_AWAITABLE",
)  # fmt: skip


class Outside:
    """Constants that a body reads besides its arguments; they may differ at the next call.

    A program is kept as long as these constants are the same. It is only kept if the whole body is
    known to be arithmetic on statistics, settings and these constants. The body may call functions
    of which the same is true, but nothing that reads or changes anything else.
    """

    def __init__(self, body: Callable[..., Any]) -> None:
        self.reads: list[Callable[[], Any]] = []
        self.known = True
        self._look_into(body, set())

    def __call__(self) -> tuple[Any, ...] | None:
        """Return the constants; None if the body reads or changes anything else."""
        if not self.known:
            return None
        found = [read() for read in self.reads]
        constant = all(isinstance(x, _CONSTANTS) for x in found)
        return tuple(as_key(found)) if constant else None

    def _look_into(self, function: Any, seen: set[Any]) -> None:
        if not isinstance(function, types.FunctionType) or vars(function).keys() - {"__wrapped__"}:
            self.known = False
            return
        if function in seen:
            return
        seen.add(function)
        if len(seen) > 1:  # not for the body itself, whose defaults are among its settings
            self.reads += [
                lambda k=k: (function.__defaults__ or ())[k]
                for k in range(len(function.__defaults__ or ()))
            ]
            self.known &= not function.__kwdefaults__
        self._look_at_code(function, function.__code__, seen)

    def _look_at_code(self, function: Any, code: types.CodeType, seen: set[Any]) -> None:
        for step in dis.get_instructions(code):
            name, text = step.opname, step.argrepr
            if name.startswith(_EFFECTS) or (name == "BINARY_OP" and text.endswith("=")):
                self.known = False
            elif name in ("LOAD_ATTR", "LOAD_METHOD"):
                self.known &= step.argval in _ATTRIBUTES
            elif name in _LOADS_OF_NAMES:
                self._look_at_name(function, step.argval, seen)
            elif name == "STORE_DEREF":
                self.known &= step.argval in code.co_cellvars
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):  # noqa: B905
            if name in code.co_freevars:
                self._look_at(lambda cell=cell: cell.cell_contents, seen)
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._look_at_code(function, inner, seen)

    def _look_at_name(self, function: Any, name: str, seen: set[Any]) -> None:
        space = function.__globals__
        if name in space:
            self._look_at(lambda: space.get(name, _GONE), seen)
        else:
            self.known &= name in _BUILTINS

    def _look_at(self, read: Callable[[], Any], seen: set[Any]) -> None:
        try:
            value = read()
        except ValueError:  # a cell that is still empty
            self.known = False
            return
        if isinstance(value, _CONSTANTS):
            self.reads.append(read)
        elif isinstance(value, types.ModuleType):
            self.known &= value.__name__ in _MODULES
        elif not (isinstance(value, types.BuiltinFunctionType) and value in OPERATIONS):
            self.reads.append(lambda: None if read() is value else _GONE)
            self._look_into(value, seen)


_GONE = object()


def as_key(values: Iterable[Any]) -> list[Any]:
    """Return values as parts of a key, in which 0.0, -0.0, 0, 1 and True are different."""
    return [
        repr(x) if x.__class__ is bool or (x.__class__ is float and not x) else x for x in values
    ]


class Recorded(NamedTuple):
    """A body as a program, and the statistics that it asks for."""

    program: Program
    requests: tuple[str, ...]


class Recorder:
    """The programs of one body: one for each set of settings, and of constants that it reads."""

    def __init__(self, body: Callable[..., Any], needs: Callable[..., tuple[str, ...]]) -> None:
        self.body, self.needs = body, needs
        self.programs: dict[Any, Recorded | None] = {}

    @functools.cached_property
    def outside(self) -> Outside:
        """The constants that the body reads besides its arguments; found at the first call."""
        return Outside(self.body)

    def find(self, settings: Mapping[str, Any], soft: bool, by_mass: bool) -> Recorded | None:
        """Return the program for these settings, or None; ``by_mass`` multiplies by the mass."""
        outside = self.outside() if self.outside.reads else ()
        key = (soft, by_mass, outside, *as_key(settings.values()))
        try:
            return self.programs[key]
        except (KeyError, TypeError):
            return self._find_or_record(settings, soft, by_mass)

    def _find_or_record(
        self, settings: Mapping[str, Any], soft: bool, by_mass: bool
    ) -> Recorded | None:
        # A tensor among the settings may change the logits, but no body that is a program reads it.
        known = {k: NotThere() if isinstance(x, Tensor) else x for k, x in settings.items()}
        outside = self.outside()
        if outside is None or not all(
            isinstance(x, (NotThere, *_CONSTANTS)) for x in known.values()
        ):
            return None
        values = (Tensor if isinstance(x, NotThere) else x for x in known.values())
        key = (soft, by_mass, outside, *as_key(values))
        if key not in self.programs:
            if len(self.programs) >= _PROGRAMS:  # the settings change at every step
                self.programs.clear()
            self.programs[key] = self._record(known, tuple(self.needs(**settings)), soft, by_mass)
        return self.programs[key]

    def _record(
        self, settings: Mapping[str, Any], requests: tuple[str, ...], soft: bool, by_mass: bool
    ) -> Recorded | None:
        def value(stats: RowStatistics) -> Any:
            found = self.body(stats, **settings)
            return found * stats.mass if by_mass else found

        program = record(value, soft, requests)
        return None if program is None else Recorded(program, requests)


_PROGRAMS = 64  # the most that are kept for one body
