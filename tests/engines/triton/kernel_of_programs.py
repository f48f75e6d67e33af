"""A kernel that runs a program on numbers in place of the fields of a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xent.engines.rows.programs import Instruction, Program
from xent.engines.triton.fields import Fields
from xent.engines.triton.programs import bind, compiled, partials_of, value_of
from xent.row_statistics import INDEX

FIELDS = ("log_odds", "log_prob", "target")  # that hold the operands


@triton.jit
def run(given, constants, out, COUNT: tl.constexpr):
    """Store values and the partial derivatives by three fields, (4, COUNT)."""
    n = tl.arange(0, COUNT)
    a, b, c = tl.load(given + n), tl.load(given + COUNT + n), tl.load(given + 2 * COUNT + n)
    z = tl.zeros_like(a)
    fields = Fields(z, z, a, b, c, z, z, z, z, z, z, z, z, z, z, z, z, z, z)
    partials = partials_of(fields, constants, z + 1.0)
    tl.store(out + n, value_of(fields, constants))
    tl.store(out + COUNT + n, partials.log_odds)
    tl.store(out + 2 * COUNT + n, partials.log_prob)
    tl.store(out + 3 * COUNT + n, partials.target)


def constant(value: float) -> Instruction:
    """Return the instruction of a constant."""
    return "constant", 0, 0, 0, value.hex()


def program_of(operation: str, operands: int, *before: Instruction) -> Program:
    """Return the program of one operation on fields, or on the instructions ``before``."""
    fields = [("field", INDEX[name], 0, 0, "0x0.0p+0") for name in FIELDS[:operands]]
    given = [*fields, *before]
    places = [*range(len(given)), 0, 0, 0][:3]
    return (*given, (operation, *places, "0x0.0p+0"))  # pyright: ignore


def by_triton(program: Program, operands: list[Tensor]) -> Tensor:
    """Return values and slopes of a program, (4, N)."""
    n = len(operands[0])
    count = triton.next_power_of_2(n)
    given = torch.ones(3, count, dtype=torch.float64, device=operands[0].device)
    for line, numbers in zip(given, operands, strict=False):
        line[:n] = numbers
    out = torch.empty(4, count, dtype=torch.float64, device=given.device)
    functions, constants = compiled(program)
    bind(run, functions)[(1,)](given, constants, out, COUNT=count)
    return out[:, :n]
