"""Compiles the program of a loss for kernels: its value, and its partial derivatives.

A program (:mod:`xent.engines.rows.programs`) is a list of operations on the fields of a row. It
becomes the source of two functions, which Triton compiles: :func:`value_of` runs the list forwards,
:func:`partials_of` forwards and then backwards. A kernel calls the two by these names, and
:func:`bind` gives a kernel the functions of a program in their place. The functions compute in
float64, for which bodies are written: ``1 - exp(x)`` has few digits in anything less.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

import functools
import itertools
import linecache
import math
import re
import struct
import types
from collections import defaultdict
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...row_statistics import FIELDS
from ..rows.programs import OPERANDS, Instruction, Program
from . import elementary
from .algebra import sigmoid


class Partials(NamedTuple):
    """Partial derivatives of the loss by the fields, one per row."""

    log_odds: Any
    log_prob: Any
    target: Any
    lse: Any
    entropy: Any
    mean: Any
    rest_top_logit: Any
    rest_squares: Any
    rest_cubes: Any


# The value y of an operation on a, b and c, and for g, the derivative of the loss by y, those by
# the operands. They are those of csrc/operations.h, which has them from PyTorch's autograd.
_UNARY = {
    "neg": ("a * -1.0", "-g"),  # Triton's -a is 0 - a, which loses the sign of 0
    "exp": ("tl.exp(a)", "g * y"),
    "expm1": ("expm1(a)", "g * (y + 1.0)"),
    "log": ("tl.log(a)", "g / a"),
    "log1p": ("log1p_of(a)", "g / (a + 1.0)"),
    "sigmoid": ("sigmoid(a)", "g * (1.0 - y) * y"),
    "logsigmoid": ("log_sigmoid(a)", "g * sigmoid(-a)"),
    "tanh": ("tanh_of(a)", "g * (1.0 - y * y)"),
    "sqrt": ("tl.sqrt(a)", "g / (2.0 * y)"),
    "abs": ("tl.abs(a)", "g * (tl.where(a > 0, 1.0, 0.0) - tl.where(a < 0, 1.0, 0.0))"),
    "relu": ("tl.where(a <= 0, 0.0, a)", "tl.where(y <= 0, 0.0, g)"),
}
_FLAT = {
    "detach": "a",
    "logical_not": "tl.where(a == 0, 1.0, 0.0)",
    "isfinite": "tl.where(a - a == 0, 1.0, 0.0)",
    "isnan": "tl.where(a != a, 1.0, 0.0)",
    "gt": "tl.where(a > b, 1.0, 0.0)",
    "ge": "tl.where(a >= b, 1.0, 0.0)",
    "lt": "tl.where(a < b, 1.0, 0.0)",
    "le": "tl.where(a <= b, 1.0, 0.0)",
    "eq": "tl.where(a == b, 1.0, 0.0)",
    "ne": "tl.where(a != b, 1.0, 0.0)",
    "logical_and": "tl.where((a != 0) & (b != 0), 1.0, 0.0)",
    "logical_or": "tl.where((a != 0) | (b != 0), 1.0, 0.0)",
}
_SHARED = "tl.where(a == b, g / 2, {})"
_OF_LARGER = _SHARED.format("tl.where(a < b, 0.0, g)"), _SHARED.format("tl.where(a > b, 0.0, g)")
_MORE = {
    "add": ("a + b", "g", "g"),
    "sub": ("a - b", "g", "-g"),
    "mul": ("a * b", "g * b", "g * a"),
    "div": ("a / b", "g / b", "-g * (a / b / b)"),
    "pow": (
        "pow_of(a, b)", "tl.where(b == 0, 0.0, g * (b * pow_of(a, b - 1.0)))",
        "g * tl.where((a == 0) & (b >= 0), 0.0, y * tl.log(a))",
    ),
    "maximum": ("tl.where((a != a) | (a > b), a, b)", *_OF_LARGER),
    "minimum": ("tl.where((a != a) | (a < b), a, b)", *_OF_LARGER[::-1]),
    "where": (
        "tl.where(a != 0, b, c)", "", "tl.where(a != 0, g, 0.0)", "tl.where(a != 0, 0.0, g)",
    ),
}  # fmt: skip
OPERATIONS: dict[str, tuple[str, ...]] = {
    **_UNARY, **_MORE, **{name: (value,) for name, value in _FLAT.items()}
}  # fmt: skip
MOST_FACTORS = 8  # of a power with a whole exponent


@triton.jit
def value_of(fields, constants):
    """Return the values of rows: stands for the function of a program."""
    return fields.log_prob


@triton.jit
def partials_of(fields, constants, g):
    """Return the partial derivatives times ``g``: stands for the function of a program."""
    return fields.log_prob, g


@triton.jit
def number_of(bits, fields):
    """Return a float64 number for each row, from its 64 bits as an integer."""
    return tl.zeros(fields.log_prob.shape, tl.float64) + bits.to(tl.float64, bitcast=True)


class Functions(NamedTuple):
    """The functions of programs that differ in their constants alone."""

    value_of: Any
    partials_of: Any
    by: frozenset[str]  # the fields by which the loss has a derivative
    serial: int  # a number of their own


class Compiled(NamedTuple):
    """A program as kernels take it."""

    functions: Functions
    constants: tuple[int, ...]  # bits of float64 numbers, at least one


@functools.lru_cache(256)
def bind(kernel: Any, functions: Functions) -> Any:
    """Return a kernel that calls the functions of a program."""
    inner = kernel.fn
    named = {"value_of": functions.value_of, "partials_of": functions.partials_of}
    copy = types.FunctionType(inner.__code__, {**inner.__globals__, **named}, inner.__name__)
    copy.__module__, copy.__annotations__ = inner.__module__, inner.__annotations__
    return triton.jit(copy)


@functools.lru_cache(256)
def compiled(program: Program) -> Compiled:
    """Return a program with its constants as arguments, so that other constants compile nothing.

    A loss may have another hyperparameter at every step. Constants stay in the source if they are
    small whole numbers, such as most exponents and factors, or not finite.
    """
    constants: list[int] = []
    shape: list[Instruction] = []
    for line in program:
        if line[0] == "constant" and (bits := _bits_of(line[4])) is not None:
            line = "argument", len(constants), 0, 0, ""
            constants.append(bits)
        shape.append(line)
    return Compiled(_functions(tuple(shape)), tuple(constants) or (_ANY,))


_ANY = 1 << 62  # 2.0


def _bits_of(constant: str) -> int | None:
    """Return the bits of a constant that becomes an argument; None for one of the source.

    An integer of less than 32 bits would be an argument of another type.
    """
    x = float.fromhex(constant)
    (bits,) = struct.unpack("<q", struct.pack("<d", x))
    stays = not math.isfinite(x) or (x.is_integer() and abs(x) <= MOST_FACTORS)
    return None if stays or -(2**31) <= bits < 2**31 else bits


@functools.lru_cache(256)
def _functions(program: Program) -> Functions:
    """Return the functions of a program without its arguments."""
    source = _source(program)
    place = f"<program of a loss {hash(program):x}>"
    linecache.cache[place] = len(source), None, source.splitlines(keepends=True), place
    names = {
        **vars(elementary), "sigmoid": sigmoid, "number_of": number_of, "Partials": Partials,
        "__name__": __name__,
    }  # fmt: skip
    exec(compile(source, place, "exec"), names)
    by = frozenset(
        FIELDS[line[1]] for line, varies in zip(program, _varying(program), strict=True)
        if varies and line[0] == "field"
    )  # fmt: skip
    value, partials = (triton.jit(names[name]) for name in ("value_of", "partials_of"))
    return Functions(value, partials, by, next(_SERIALS))


_SERIALS = itertools.count()


# ---- source -------------------------------------------------------------------------------------


def _source(program: Program) -> str:
    """Return the source of the two functions of a program."""
    forward = [f"    v{k} = {_value(program, k)}" for k in range(len(program))]
    last = len(program) - 1
    return "\n".join([
        "def value_of(fields, constants):", *forward, f"    return v{last}", "",
        "def partials_of(fields, constants, g):", *forward, *_backward(program), "",
    ])  # fmt: skip


def _value(program: Program, k: int) -> str:
    """Return the expression of a line."""
    name, a, _, _, constant = program[k]
    if name == "field":
        return f"fields.{FIELDS[a]}"
    if name == "argument":
        return f"number_of(constants[{a}], fields)"
    if name == "constant":
        x = float.fromhex(constant)
        if x == 0 and math.copysign(1, x) < 0:  # which Triton before 3.8 reads as 0.0
            return f"{_full('-1.0')} * 0.0"
        return _full(repr(x) if math.isfinite(x) else f'float("{x}")')
    exponent = _whole_exponent(program, k)
    if exponent is not None:
        return _power(f"v{a}", exponent)
    return _filled(OPERATIONS[name][0], program, k)


def _backward(program: Program) -> list[str]:
    """Return the lines that find the partial derivatives, the last operation first."""
    varies, last = _varying(program), len(program) - 1
    slopes: dict[int, list[str]] = defaultdict(list)
    lines, found = [], {}
    if varies[last]:
        slopes[last].append("g")
    for k in range(last, -1, -1):
        if not (varies[k] and slopes[k]):
            continue
        lines.append(f"    g{k} = {' + '.join(slopes[k])}")
        name, *operands = program[k][:4]
        if name == "field":
            found[FIELDS[operands[0]]] = f"g{k}"
            continue
        for place, operand in enumerate(operands[: _operands(name)]):
            if varies[operand] and (slope := _slope(program, k, place)):
                slopes[operand].append(f"({slope})")
    given = ", ".join(found.get(name, "none") for name in Partials._fields)
    return [*lines, "    none = tl.zeros_like(fields.log_prob)", f"    return Partials({given})"]


def _slope(program: Program, k: int, place: int) -> str:
    """Return the derivative of the loss by an operand of a line; nothing if it is 0."""
    name, a = program[k][:2]
    exponent = _whole_exponent(program, k)
    if exponent is not None:
        return f"g{k} * {exponent} * ({_power(f'v{a}', exponent - 1)})"
    formulas = OPERATIONS[name][1:]
    return _filled(formulas[place], program, k) if formulas else ""


def _filled(formula: str, program: Program, k: int) -> str:
    """Return a formula of a line, with the variables of its operands."""
    _, a, b, c, _ = program[k]
    variables = {"a": f"v{a}", "b": f"v{b}", "c": f"v{c}", "y": f"v{k}", "g": f"g{k}"}
    return re.sub(r"\b[abcyg]\b", lambda found: variables[found[0]], formula)


def _whole_exponent(program: Program, k: int) -> int | None:
    """Return the exponent of a power that is a product of few factors; None for other lines."""
    name, _, b, _, _ = program[k]
    if name != "pow" or program[b][0] != "constant":
        return None
    exponent = float.fromhex(program[b][4])
    return int(exponent) if exponent in range(1, MOST_FACTORS + 1) else None


def _power(x: str, exponent: int) -> str:
    return " * ".join([x] * exponent or ["1.0"])


def _full(number: str) -> str:
    """Return the expression of a number for each row."""
    return f"tl.full(fields.log_prob.shape, {number}, tl.float64)"


def _operands(name: str) -> int:
    return 0 if name == "argument" else OPERANDS.get(name, 2)


def _varying(program: Program) -> list[bool]:
    """Return for each line whether it has a derivative by the logits."""
    varies: list[bool] = []
    for k, (name, *operands, _) in enumerate(program):
        if name == "field":
            varies.append(FIELDS[operands[0]] in Partials._fields)
        else:
            given = enumerate(operands[: _operands(name)])
            varies.append(any(varies[x] and bool(_slope(program, k, n)) for n, x in given))
    return varies
