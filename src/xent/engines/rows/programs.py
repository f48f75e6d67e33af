"""Records what a loss does with the statistics of a row, so that kernels can do it.

The body of a loss is called with symbols in place of statistics. Each operation on a symbol is
written down, and the result is a program: a list of operations on the numbers of one row. The
kernels run it, and its derivative, between their two sweeps over the logits of a row.

A body that does anything but arithmetic on numbers of its own row (a sum over rows, an ``if`` on a
value, a tensor of another shape) cannot be recorded. Its loss is found from tensors of statistics.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ...row_statistics import INDEX, RowStatistics, field_mask, fields_of

Instruction = tuple[str, int, int, int, float]  # an operation, its operands, a constant
Program = tuple[Instruction, ...]  # whose last line is the value of the row


class Unrecordable(Exception):
    """A body does what no program can hold."""


class Tape:
    """The operations recorded so far; each is written once."""

    def __init__(self) -> None:
        self.lines: dict[Instruction, int] = {}

    def write(self, operation: str, *operands: int, constant: float = 0.0) -> Symbol:
        """The symbol of an operation's result."""
        a, b, c = (*operands, 0, 0, 0)[:3]
        line = self.lines.setdefault((operation, a, b, c, constant), len(self.lines))
        return Symbol(self, line)

    def read(self, value: Any) -> int:
        """The line that holds an operand: a symbol, or a number."""
        if isinstance(value, Symbol) and value.tape is self:
            return value.line
        if not isinstance(value, (bool, int, float)):
            raise Unrecordable(f"an operand of type {type(value).__name__}")
        return self.write("constant", constant=float(value)).line

    def program(self, result: Symbol) -> Program:
        """The lines that the result needs; it is the last."""
        lines = list(self.lines)[: result.line + 1]
        needed = {result.line}
        for k in range(result.line, -1, -1):
            if k in needed:
                operation, a, b, c, _ = lines[k]
                needed |= set((a, b, c)[: OPERANDS.get(operation, 2)])
        place = {line: k for k, line in enumerate(sorted(needed))}
        return tuple(_moved(lines[line], place) for line in place)


# How many operands are lines; two unless told here.
OPERANDS = {
    **dict.fromkeys(("field", "constant"), 0),
    **dict.fromkeys(
        ("neg", "exp", "expm1", "log", "log1p", "sigmoid", "logsigmoid", "tanh", "sqrt", "abs",
         "relu", "detach", "logical_not", "isfinite", "isnan"), 1,
    ),
    "where": 3,
}  # fmt: skip


def _moved(line: Instruction, place: Mapping[int, int]) -> Instruction:
    """An instruction whose operands have other places."""
    operation, a, b, c, constant = line
    count = OPERANDS.get(operation, 2)
    moved = [place[x] if k < count else x for k, x in enumerate((a, b, c))]
    return (operation, *moved, constant)  # pyright: ignore


class Symbol:
    """A number per row that is still to come; operations on a symbol are recorded."""

    def __init__(self, tape: Tape, line: int) -> None:
        self.tape, self.line = tape, line

    def _apply(self, operation: str, *operands: Any) -> Symbol:
        return self.tape.write(operation, *map(self.tape.read, operands))

    def to(self, dtype: torch.dtype) -> Symbol:
        """The symbol itself: whole numbers are floating-point numbers here."""
        if dtype not in (torch.float64, torch.int64):
            raise Unrecordable(f"numbers of {dtype}")
        return self

    def double(self) -> Symbol:
        """The symbol itself."""
        return self

    def clamp(self, min: Any = None, max: Any = None) -> Symbol:
        """The number, moved into a range."""
        result: Any = self
        if min is not None:  # the slope at an edge is that of the inside, unlike that of a maximum
            result = torch.where(result < min, min, result)
        if max is not None:
            result = torch.where(result > max, max, result)
        return result

    def __bool__(self) -> NoReturn:
        raise Unrecordable("an `if` on a value")

    __hash__ = None  # pyright: ignore

    def __getattr__(self, name: str) -> Any:
        function = getattr(Tensor, name, None)
        if function not in OPERATIONS:
            raise Unrecordable(f"Tensor.{name}")
        return lambda *operands: OPERATIONS[function](self, *operands)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Record a function of PyTorch."""
        if kwargs or func not in OPERATIONS:
            raise Unrecordable(getattr(func, "__name__", str(func)))
        return OPERATIONS[func](*args)


def _tape_of(operands: Sequence[Any]) -> Tape:
    return next(x.tape for x in operands if isinstance(x, Symbol))


def _recorded(operation: str) -> Callable[..., Symbol]:
    """The function that writes an operation down."""

    def record(*operands: Any) -> Symbol:
        tape = _tape_of(operands)
        return tape.write(operation, *map(tape.read, operands))

    return record


def _square(x: Any) -> Symbol:
    return x * x


def _constant_like(value: float) -> Callable[[Any], Symbol]:
    return lambda x: x.tape.write("constant", constant=value)


# The functions of PyTorch that can be recorded; each also stands for the method and the operator.
_NAMES = {
    "neg": ("neg", "negative"),
    "exp": ("exp",), "expm1": ("expm1",), "log": ("log",), "log1p": ("log1p",),
    "sigmoid": ("sigmoid",), "logsigmoid": ("logsigmoid",),
    "tanh": ("tanh",), "sqrt": ("sqrt",), "abs": ("abs", "absolute"), "relu": ("relu",),
    "detach": ("detach",), "logical_not": ("logical_not", "bitwise_not"),
    "isfinite": ("isfinite",), "isnan": ("isnan",),
    "add": ("add",), "sub": ("sub", "subtract"), "mul": ("mul", "multiply"),
    "div": ("div", "divide", "true_divide"), "pow": ("pow",),
    "maximum": ("maximum",), "minimum": ("minimum",),
    "gt": ("gt", "greater"), "ge": ("ge",), "lt": ("lt", "less"), "le": ("le",),
    "eq": ("eq",), "ne": ("ne",),
    "logical_and": ("logical_and", "bitwise_and"), "logical_or": ("logical_or", "bitwise_or"),
    "where": ("where",),
}  # fmt: skip
OPERATIONS: dict[Any, Callable[..., Any]] = {}
for _operation, _names in _NAMES.items():
    for _name in _names:
        for _home in (torch, torch.nn.functional, Tensor):
            if hasattr(_home, _name):
                OPERATIONS[getattr(_home, _name)] = _recorded(_operation)
for _home in (torch, Tensor):
    OPERATIONS[_home.square] = _square
    OPERATIONS[_home.clamp] = Symbol.clamp
OPERATIONS[torch.zeros_like] = _constant_like(0.0)
OPERATIONS[torch.ones_like] = _constant_like(1.0)


def _operator(operation: str, reflected: bool = False) -> Callable[..., Symbol]:
    def operate(self: Symbol, *other: Any) -> Symbol:
        operands = (*other, self) if reflected else (self, *other)
        return self._apply(operation, *operands)

    return operate


for _name, _operation in {
    "neg": "neg", "abs": "abs", "invert": "logical_not", "add": "add", "sub": "sub", "mul": "mul",
    "truediv": "div", "pow": "pow", "gt": "gt", "ge": "ge", "lt": "lt", "le": "le", "eq": "eq",
    "ne": "ne", "and": "logical_and", "or": "logical_or",
}.items():  # fmt: skip
    setattr(Symbol, f"__{_name}__", _operator(_operation))
    if _name in ("add", "sub", "mul", "truediv", "pow", "and", "or"):
        setattr(Symbol, f"__r{_name}__", _operator(_operation, reflected=True))


class _NotThere:
    """A stand-in for attributes that only tensors have; any use of it ends the recording."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise Unrecordable("the labels of rows, or the number of classes")

    __getattr__ = __ge__ = __gt__ = __lt__ = __le__ = __eq__ = __ne__ = _refuse  # pyright: ignore
    __getitem__ = __add__ = __sub__ = __mul__ = __bool__ = __index__ = _refuse
    __hash__ = None  # pyright: ignore


def record(
    body: Callable[[RowStatistics], Any], soft: bool, requests: tuple[str, ...]
) -> Program | None:
    """The program of a body, or None if it cannot be recorded."""
    tape = Tape()
    fields = fields_of(field_mask(soft, requests))
    symbols: Any = [tape.write("field", INDEX[name]) for name in fields]
    try:
        label, classes = None if soft else _NotThere(), _NotThere()
        stats = RowStatistics.from_fields(symbols, fields, soft, label=label, classes=classes)  # pyright: ignore
        result = body(stats)
    except Exception:
        return None
    return tape.program(result) if isinstance(result, Symbol) else None


# ---- what a body reads beside its arguments ---------------------------------------------------

_CONSTANTS = (type(None), bool, int, float, str)
_PURE = ("torch", "math", "xent")  # modules whose functions give the same for the same arguments
_FUNCTIONS = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
# Names that say that a call is to do something beside its result, or reads what may change.
_EFFECTS = {
    "print", "breakpoint", "input", "open", "exec", "eval", "globals", "locals", "vars", "next",
    "setattr", "getattr", "warn",
}  # fmt: skip
_RANDOM = ("rand", "normal", "bernoulli", "multinomial", "poisson", "seed")


class Outside:
    """Constants that a function reads beside its arguments; they may differ at the next call.

    A program is kept for as long as these are the same. Functions whose result may hang on
    anything else (an object's attributes, the time, chance) have none kept.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.reads: list[Callable[[], Any]] = []
        self.known = True
        self._look_into(function, set())

    def __call__(self) -> tuple[Any, ...] | None:
        """The constants; None if something else is read."""
        if not self.known:
            return None
        found = tuple([read() for read in self.reads])
        return found if all(isinstance(x, _CONSTANTS) for x in found) else None

    def _look_into(self, function: Any, seen: set[Any]) -> None:
        if not isinstance(function, types.FunctionType):
            self.known = False
            return
        if function in seen:
            return
        seen.add(function)
        names, space = _names_in(function.__code__), function.__globals__
        if names & _EFFECTS or any(word in name for name in names for word in _RANDOM):
            self.known = False
        for cell in function.__closure__ or ():
            self._look_at(lambda cell=cell: cell.cell_contents, seen)
        for name in names & space.keys():
            self._look_at(lambda name=name: space.get(name, _GONE), seen)

    def _look_at(self, read: Callable[[], Any], seen: set[Any]) -> None:
        try:
            value = read()
        except ValueError:  # a cell that is empty yet
            self.known = False
            return
        module = isinstance(value, types.ModuleType)
        home = str(getattr(value, "__name__" if module else "__module__", None))
        if isinstance(value, _CONSTANTS):
            self.reads.append(read)
        elif not (isinstance(value, _FUNCTIONS) and home.partition(".")[0] in _PURE):
            self.reads.append(lambda: None if read() is value else _GONE)
            self._look_into(value, seen)


_GONE = object()


def _names_in(code: types.CodeType) -> set[str]:
    """The names of globals and attributes in a function and in those inside it."""
    inner = (x for x in code.co_consts if isinstance(x, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))


class Recorded(NamedTuple):
    """A body as a program, and the statistics that it asks for."""

    program: Program
    requests: tuple[str, ...]


class Recorder:
    """The programs of one body, each recorded once for its settings and for what it reads."""

    def __init__(self, body: Callable[..., Any], needs: Callable[..., tuple[str, ...]]) -> None:
        self.body, self.needs = body, needs
        self.programs: dict[Any, Recorded | None] = {}

    @functools.cached_property
    def outside(self) -> Outside:
        """The constants that the body reads beside its arguments; found at the first call."""
        return Outside(self.body)

    def find(self, settings: Mapping[str, Any], soft: bool, by_mass: bool) -> Recorded | None:
        """The program with these settings, its value times the mass of a row if so wanted."""
        outside = self.outside() if self.outside.reads else ()
        key = (soft, by_mass, outside, *settings.values())
        try:
            return self.programs[key]
        except (KeyError, TypeError):
            return self._find_or_record(settings, soft, by_mass)

    def _find_or_record(
        self, settings: Mapping[str, Any], soft: bool, by_mass: bool
    ) -> Recorded | None:
        # A tensor among the settings may shape the logits, but no body that is a program reads it.
        known = {k: _NotThere() if isinstance(x, Tensor) else x for k, x in settings.items()}
        outside = self.outside()
        if outside is None or not all(
            isinstance(x, (_NotThere, *_CONSTANTS)) for x in known.values()
        ):
            return None
        values = (Tensor if isinstance(x, _NotThere) else x for x in known.values())
        key = (soft, by_mass, outside, *values)
        if key not in self.programs:
            if len(self.programs) >= _PROGRAMS:  # settings that change at every step
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


_PROGRAMS = 64  # kept of one body

NLL = record(lambda s: s.nll, False, ())
LOG_LOSS = record(lambda s: -s.log_prob, False, ())
