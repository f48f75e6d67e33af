"""Programs of losses in kernels: each operation and its slopes, beside PyTorch and its autograd."""

import math

import pytest
import torch

from tests.engines.rows.programs import FLAT_ONE, FLAT_TWO, IN_TORCH, ONE, TWO
from tests.helpers import ulps
from xent.engines.rows.programs import NAMES, OPERANDS, record

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("on_triton")

from tests.engines.triton.kernel_of_programs import (  # noqa: E402 - imports Triton
    by_triton,
    constant,
    program_of,
)
from xent.engines.triton import elementary, programs  # noqa: E402

EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0, 1e-9, -1e-9, 40.0, -40.0, 800.0, -800.0]
EDGES += [math.inf, -math.inf, math.nan]
RECORDED = {*NAMES} - {"where"}


def numbers() -> torch.Tensor:
    return torch.cat([torch.tensor(EDGES).double(), torch.linspace(-3, 3, 40).double()])


def check(name, operands, program=None, bound=12.0):
    """Compare values and slopes with those of PyTorch."""
    program = program_of(name, len(operands)) if program is None else program
    value, *slopes = by_triton(program, operands)
    there = [x.clone().requires_grad_() for x in operands]
    truth = IN_TORCH[name](*there)
    wanted = [torch.zeros_like(x) for x in there]
    if truth.requires_grad:
        found = torch.autograd.grad(truth.sum(), there, allow_unused=True)
        wanted = [w if f is None else f for w, f in zip(wanted, found, strict=True)]
    # PyTorch has 1 - y with the rounding of y, too.
    rest = 6 * torch.finfo(torch.float64).eps if name in ("sigmoid", "tanh") else 0.0
    for actual, expected, slack in (
        (value, truth.detach(), 0.0), *((s, w, rest) for s, w in zip(slopes, wanted, strict=False))
    ):  # fmt: skip
        off = torch.where((actual - expected).abs() <= slack, 0.0, ulps(actual, expected))
        worst = int(off.argmax())
        given = [x[worst].item() for x in operands]
        assert off[worst] <= bound, (name, given, actual[worst].item(), expected[worst].item())


@pytest.mark.parametrize("name", sorted((ONE.keys() | FLAT_ONE.keys()) & RECORDED))
def test_one_operand(name):
    check(name, [numbers()])


@pytest.mark.parametrize("name", sorted((TWO.keys() | FLAT_TWO.keys()) & RECORDED))
def test_two_operands(name):
    few = torch.cat([numbers()[: len(EDGES)], numbers()[len(EDGES) :: 9]])
    a, b = torch.cartesian_prod(few, few).unbind(1)
    # A power by way of logarithms errs by half a unit per nat of its exponent.
    check(name, [a.contiguous(), b.contiguous()], bound=2000.0 if name == "pow" else 12.0)


def test_the_sign_of_zero():
    x = torch.tensor([0.0, -0.0, 2.0]).double()
    assert torch.equal(by_triton(program_of("neg", 1), [x])[0].signbit(), (-x).signbit())


def test_a_choice():
    few = torch.tensor([0.0, -0.0, 2.0, math.inf, math.nan], dtype=torch.float64)
    check("where", [x.contiguous() for x in torch.cartesian_prod(few, few, few).unbind(1)])


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, 8.0, 9.0, -1.0, 0.5])
def test_constant_exponents(exponent):
    x = numbers()
    value, slope, *_ = by_triton(program_of("pow", 1, constant(exponent)), [x])
    leaf = x.clone().requires_grad_()
    truth = leaf ** torch.full_like(x, exponent)  # a number 0.5 would be a square root
    (wanted,) = torch.autograd.grad(truth.sum(), leaf)
    whole = exponent in range(programs.MOST_FACTORS + 1)
    for actual, expected in ((value, truth.detach()), (slope, wanted)):
        assert ulps(actual, expected).max() <= (8 if whole else 2000)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 3.0, 0.1, -2.7, 5e-324, -1e-310, 1e300, math.inf, -math.inf, math.nan]
)
def test_constants(value):
    x = torch.tensor([2.0, -3.0]).double()
    found = by_triton(program_of("mul", 1, constant(value)), [x])[0]
    assert torch.equal(found.nan_to_num(7), (x * value).nan_to_num(7))
    assert torch.equal(found.signbit(), (x * value).signbit())


def test_another_hyperparameter_compiles_nothing():
    def functions(gamma):
        program = record(lambda s: s.miss**gamma * -s.log_prob, False, ())
        return programs.compiled(program).functions

    assert functions(1.7) is functions(1.6)
    assert functions(1.7) is not functions(2)  # a square


def test_every_operation_that_can_be_recorded():
    assert programs.OPERATIONS.keys() == NAMES.keys()
    for name, (_, *slopes) in programs.OPERATIONS.items():
        assert len(slopes) in (0, OPERANDS.get(name, 2)), name
    text = " ".join(f for formulas in programs.OPERATIONS.values() for f in formulas)
    functions = [
        name for name, f in vars(elementary).items()
        if getattr(getattr(f, "fn", None), "__module__", "") == elementary.__name__
    ]  # fmt: skip
    assert len(functions) == 5
    assert all(f"{name}(" in text for name in functions)
