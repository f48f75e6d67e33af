"""Records the body of a loss as a program, which kernels can run.

The body is called with symbols in place of statistics. Each operation on a symbol is written down,
and the result is a program: a list of operations on the numbers of one row. The kernels run the
program, and its derivative, between their two sweeps over the logits of a row.

A body that does anything but arithmetic on the numbers of one row (a sum over rows, an ``if`` on a
value, a tensor of another shape) cannot be recorded. Its loss is computed from tensors of
statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...row_statistics import INDEX, RowStatistics, field_mask, fields_of

# An operation, three operands, and a constant as `float.hex` writes it: there 0.0 and -0.0 differ.
Instruction = tuple[str, int, int, int, str]
Program = tuple[Instruction, ...]  # the last line is the value of the row


class Unrecordable(Exception):
    """Raised if a body does something that no program can hold."""


class Tape:
    """The operations recorded so far; an operation that is repeated is written once."""

    def __init__(self) -> None:
        self.lines: dict[Instruction, int] = {}

    def write(
        self, operation: str, *operands: int, constant: float = 0.0, kind: str = "number"
    ) -> Symbol:
        """Record an operation; return the symbol of its result."""
        a, b, c = (*operands, 0, 0, 0)[:3]
        line = self.lines.setdefault((operation, a, b, c, constant.hex()), len(self.lines))
        return Symbol(self, line, kind)

    def read(self, value: Any) -> int:
        """Return the line that holds an operand, which is a symbol or a number."""
        if isinstance(value, Symbol) and value.tape is self:
            return value.line
        if not isinstance(value, (bool, int, float)):
            raise Unrecordable(f"an operand of type {type(value).__name__}")
        return self.write("constant", constant=float(value)).line

    def program(self, result: Symbol) -> Program:
        """Return the lines that the result needs; the last line is the result."""
        lines = list(self.lines)[: result.line + 1]
        needed = {result.line}
        for k in range(result.line, -1, -1):
            if k in needed:
                operation, a, b, c, _ = lines[k]
                needed |= set((a, b, c)[: OPERANDS.get(operation, 2)])
        place = {line: k for k, line in enumerate(sorted(needed))}
        return tuple(_moved(lines[line], place) for line in place)


# The number of operands that are lines; two for all other operations.
OPERANDS = {
    **dict.fromkeys(("field", "constant"), 0),
    **dict.fromkeys(
        ("neg", "exp", "expm1", "log", "log1p", "sigmoid", "logsigmoid", "tanh", "sqrt", "abs",
         "relu", "detach", "logical_not", "isfinite", "isnan"), 1,
    ),
    "where": 3,
}  # fmt: skip


def _moved(line: Instruction, place: Mapping[int, int]) -> Instruction:
    """Return an instruction with the new places of its operands."""
    operation, a, b, c, constant = line
    count = OPERANDS.get(operation, 2)
    moved = [place[x] if k < count else x for k, x in enumerate((a, b, c))]
    return (operation, *moved, constant)  # pyright: ignore


class Symbol:
    """A number per row that is not known yet; operations on a symbol are recorded."""

    def __init__(self, tape: Tape, line: int, kind: str) -> None:
        self.tape, self.line = tape, line
        self.kind = kind  # "number", "bool", or "class": the number of a class

    def to(self, dtype: torch.dtype) -> Symbol:
        """Return the symbol itself if it has this dtype; programs hold classes as float64."""
        if (dtype, self.kind) not in ((torch.float64, "number"), (torch.int64, "class")):
            raise Unrecordable(f"numbers of {dtype}")
        return self

    def after(self, first_class: Any) -> Symbol:
        """Return the symbol itself if the first class is 0: programs know only whole rows."""
        if isinstance(first_class, Symbol) or first_class != 0:
            raise Unrecordable("arithmetic with classes")
        return self

    def double(self) -> Symbol:
        """Return the symbol itself; refuse one that is not a number."""
        return self.to(torch.float64)

    def clamp(self, min: Any = None, max: Any = None) -> Symbol:
        """Record the number, moved into a range."""
        result: Any = self
        if min is not None:  # at a limit the derivative is 1, which `maximum` would halve
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


def _recorded(operation: str) -> Callable[..., Symbol]:
    """Return the function that records an operation."""

    def record(*operands: Any) -> Symbol:
        first = operands[0]
        if operation == "add" and isinstance(first, Symbol) and first.kind == "class":
            return first.after(operands[1])
        tape = next(x.tape for x in operands if isinstance(x, Symbol))
        kinds = [x.kind if isinstance(x, Symbol) else _kind_of(x) for x in operands]
        kind = _kind_of_result(operation, kinds)
        return tape.write(operation, *map(tape.read, operands), kind=kind)

    return record


def _kind_of(x: Any) -> str:
    return "bool" if isinstance(x, bool) else "number"


_COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
_LOGIC = ("logical_and", "logical_or", "logical_not")


def _kind_of_result(operation: str, kinds: list[str]) -> str:
    """Return the kind of a result; raise where PyTorch's result depends on the operands' dtypes."""
    if operation in _COMPARISONS and "bool" not in kinds:
        return "bool"
    if operation in _LOGIC and set(kinds) == {"bool"}:
        return "bool"
    if operation == "where" and kinds[0] == "bool" and set(kinds[1:]) == {"number"}:
        return "number"
    if operation == "detach":
        return kinds[0]
    if operation == "mul" and sorted(kinds) == ["bool", "number"]:
        return "number"
    if operation in (*_COMPARISONS, *_LOGIC, "where") or set(kinds) != {"number"}:
        raise Unrecordable(f"{operation} of {kinds}")
    return "bool" if operation in ("isfinite", "isnan") else "number"


def _square(x: Any) -> Symbol:
    return x * x


def _constant_like(value: float) -> Callable[[Any], Symbol]:
    return lambda x: x.tape.write("constant", constant=value)


# The functions of PyTorch that can be recorded; each also stands for the method and the operator.
NAMES = {
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
for _operation, _names in NAMES.items():
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
    function = _recorded(operation)

    def operate(self: Symbol, *other: Any) -> Symbol:
        return function(*other, self) if reflected else function(self, *other)

    return operate


for _name, _operation in {
    "neg": "neg", "abs": "abs", "invert": "logical_not", "add": "add", "sub": "sub", "mul": "mul",
    "truediv": "div", "pow": "pow", "gt": "gt", "ge": "ge", "lt": "lt", "le": "le", "eq": "eq",
    "ne": "ne", "and": "logical_and", "or": "logical_or",
}.items():  # fmt: skip
    setattr(Symbol, f"__{_name}__", _operator(_operation))
    if _name in ("add", "sub", "mul", "truediv", "pow", "and", "or"):
        setattr(Symbol, f"__r{_name}__", _operator(_operation, reflected=True))


class NotThere:
    """A stand-in for attributes that only tensors have; every use of a stand-in is refused."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise Unrecordable("the labels of rows, or the number of classes")

    __getattr__ = __ge__ = __gt__ = __lt__ = __le__ = __eq__ = __ne__ = _refuse
    __getitem__ = __add__ = __sub__ = __mul__ = __bool__ = __index__ = _refuse
    __hash__ = None  # pyright: ignore


def record(
    body: Callable[[RowStatistics], Any], soft: bool, requests: tuple[str, ...]
) -> Program | None:
    """Return the program of a body, or None if the body cannot be recorded."""
    tape = Tape()
    fields = fields_of(field_mask(soft, requests))
    symbols: Any = [
        tape.write("field", INDEX[name], kind="class" if name in ("top", "rest_top") else "number")
        for name in fields
    ]
    absent: Any = NotThere()
    try:
        stats = RowStatistics.from_fields(
            symbols, fields, soft, label=None if soft else absent, classes=absent, complete=absent
        )
        result = body(stats)
    except Exception:
        return None
    return tape.program(result) if isinstance(result, Symbol) else None


NLL = record(lambda s: s.nll, False, ())
LOG_LOSS = record(lambda s: -s.log_prob, False, ())
