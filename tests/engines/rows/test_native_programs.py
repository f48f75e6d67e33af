"""A loss of rows in one call of the core: a program gives the value of a row between two sweeps."""

import math

import pytest
import torch
from torch import Tensor

from tests.engines.rows.programs import (
    FLAT_ONE,
    FLAT_TWO,
    IN_TORCH,
    ONE,
    TWO,
    Call,
    Tape,
    cross_entropy,
    focal,
)
from tests.helpers import same_bits, spacing, ulps

pytestmark = pytest.mark.usefixtures("core")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SUM, NUMBER, WEIGHT, COUNT = range(4)

# ---- one operation ------------------------------------------------------------------------------

EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0, 1e-9, -1e-9, 40.0, -40.0, 800.0, -800.0, 1e-310]
EDGES += [math.inf, -math.inf, math.nan]
SOME = torch.cat([torch.tensor(EDGES, dtype=torch.float64), torch.linspace(-3, 3, 40).double()])


def of_inputs(operation: str, slope_by: int, operands: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the value of an operation on numbers, row by row, and its slope by one of them.

    That one is the logit of the target, which is -0.0, plus an input.
    """
    tape = Tape()
    register = [tape.input(k) for k in range(len(operands))]
    register[slope_by] = tape("add", tape.field("target"), register[slope_by])
    tape(operation, *register)
    n = len(operands[0])
    zeros, label = torch.full((n, 2), -0.0, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)
    *_, grad = Call(zeros, label, inputs=tuple(operands)).in_one(tape)
    rows = [
        Call(zeros[:1], label[:1], inputs=tuple(x[k : k + 1] for x in operands)).in_one(tape)[1]
        for k in range(n)
    ]
    return torch.stack(rows), grad[:, 0]


def check(operation: str, slope_by: int, operands: list[Tensor]) -> None:
    value, slope = of_inputs(operation, slope_by, operands)
    there = [x.clone() for x in operands]
    there[slope_by].requires_grad_()
    truth = IN_TORCH[operation](*there)
    if truth.requires_grad:
        (wanted,) = torch.autograd.grad(truth.sum(), there[slope_by])
    else:
        wanted = torch.zeros_like(slope)
    # Either may be off by 3 units, and a slope is a product of three such numbers, or of 1 - value.
    rest = 6 * torch.finfo(torch.float64).eps if operation in ("sigmoid", "tanh") else 0.0
    for name, actual, expected, bound, slack in (
        ("value", value, truth.detach(), 6, 0.0), ("slope", slope, wanted, 12, rest),
    ):  # fmt: skip
        off = torch.where((actual - expected).abs() <= slack, 0.0, ulps(actual, expected))
        worst = int(off.argmax())
        given = [x[worst].item() for x in operands]
        assert off[worst] <= bound, (name, given, actual[worst].item(), expected[worst].item())


@pytest.mark.parametrize("operation", [*ONE, *FLAT_ONE])
def test_one_operand(operation):
    check(operation, 0, [SOME])


@pytest.mark.parametrize("operation", [*TWO, *FLAT_TWO])
@pytest.mark.parametrize("slope_by", [0, 1])
def test_two_operands(operation, slope_by):
    few = torch.cat([SOME[: len(EDGES)], SOME[len(EDGES) :: 9]])
    a, b = torch.cartesian_prod(few, few).unbind(1)
    check(operation, slope_by, [a.contiguous(), b.contiguous()])


@pytest.mark.parametrize("slope_by", [1, 2])
def test_a_choice(slope_by):
    # The branch that is not taken has slope 0, and its infinite values have no effect.
    few = torch.tensor([0.0, -0.0, 2.0, math.inf, math.nan], dtype=torch.float64)
    operands = [x.contiguous() for x in torch.cartesian_prod(few, few, few).unbind(1)]
    check("where", slope_by, operands)


def test_exact_powers():
    # Operations that PyTorch computes by multiplication.
    x = torch.randn(200, dtype=torch.float64) * 10
    for exponent in (0.0, 1.0, 2.0, 3.0):
        y = torch.full_like(x, exponent)
        value, slope = of_inputs("pow", 0, [x, y])
        leaf = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad((leaf**exponent).sum(), leaf)
        assert same_bits(value, x**exponent)
        assert same_bits(slope, wanted)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "1 to 128 instructions, got 0"),
        ([("constant", 0, 0, 0)] * 129, "1 to 128 instructions, got 129"),
        ([("constant", 0, 0, 0), ("add", 0, 1, 0)], "instruction 1: not a register before it: 1"),
        ([("neg", -1, 0, 0)], "instruction 0: not a register before it: -1"),
        ([("field", 19, 0, 0)], "instruction 0: no field has the number 19"),
        ([("input", -1, 0, 0)], "instruction 0: no input has the number -1"),
    ],
)
def test_programs_that_make_no_sense(core, steps, message):
    code = {name: k for k, name in enumerate(core._core.OPERATIONS)}
    with pytest.raises(ValueError, match=message):
        core._core.Program([(code[name], *operands, 0.0) for name, *operands in steps])


def test_an_operation_that_is_none(core):
    with pytest.raises(ValueError, match="no operation has the code 99"):
        core._core.Program([(99, 0, 0, 0, 0.0)])


def test_what_a_program_reads_must_be_there():
    z, y = problem()
    tape = Tape()
    tape.field("mean")
    with pytest.raises(ValueError, match="fields that are not computed"):
        Call(z, y).in_one(tape)
    tape = Tape()
    tape.input(1)
    with pytest.raises(ValueError, match="reads 2 inputs, got 0"):
        Call(z, y).in_one(tape)


# ---- a loss against two sweeps ------------------------------------------------------------------


def problem(dtype: torch.dtype = torch.float32, n: int = 70, v: int = 33) -> tuple[Tensor, Tensor]:
    """Return logits, some of them masked, and labels, some of them ignored."""
    z = (torch.randn(n, v) * 3).to(dtype)
    y = torch.randint(v, (n,))
    z[2, 1 : v // 2], y[2], y[4] = -torch.inf, 0, -100
    return z, y


def eighths(*shape: int, low: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return numbers whose sums are exact in any order."""
    return torch.randint(low, 17, shape).to(dtype) / 8


def same(call: Call, tape: Tape, divisor: float, given=None, slope: float = 1.0) -> None:
    """Assert that one call gives the gradient of two sweeps to the bit; sums differ in order."""
    loss, grad = call.in_two(tape, divisor, slope)
    answer, one, gradient = call.in_one(tape, given or (NUMBER, divisor, False), slope)
    assert answer[3] == divisor
    assert same_bits(gradient, grad)
    magnitude = loss.abs() * call.rows
    unit = spacing(loss, one.dtype) if one.dtype != torch.float64 else 0.0
    assert abs(one.double() - loss) <= unit / 2 + 1e-15 * magnitude, (one, loss)


@every_dtype
@pytest.mark.parametrize("v", [3, 33, 5000, 70000])  # panels, blocks of rows, blocks, strips of one
@pytest.mark.parametrize("options", [{}, {"smoothing": 0.1}, {"smoothing": 0.1, "z_loss": 0.01}])
def test_cross_entropy(dtype, v, options):
    z, y = problem(dtype, 70 if v < 1000 else 7, v)
    requests = ("mean",) if "smoothing" in options else ()
    tape = cross_entropy(**options)
    same(Call(z, y, requests=requests), tape, 6.0, slope=2.5)
    weighted = Call(z, y, requests=requests, weight=eighths(v), row_weight=eighths(len(y)))
    kept = y != -100
    mass = weighted.weight[torch.where(kept, y, 0)] * weighted.row_weight
    same(weighted, tape, mass[kept].sum().item(), (WEIGHT, 0.0, False))


@every_dtype
@pytest.mark.parametrize("v", [3, 33, 250, 5000, 40000])
def test_rows_that_are_hard_in_other_ways(dtype, v):
    # The exponentials that the first sweep keeps may be useful for some rows of a block only.
    n = 40 if v < 1000 else 9
    z, y = problem(dtype, n, v)
    z[0] *= 60
    z[1, -1], z[3, 0], z[5] = math.nan, math.inf, -math.inf
    z[6, ::2] -= 95  # exponentials among the subnormal numbers
    z[7, y[7]] += 250  # a sure row
    z[8] += 3e4
    z[:, 1] = torch.where(torch.arange(n) > 20, -60000.0, z[:, 1])
    for row_weight in (eighths(n), torch.tensor([1e-30, 1e30, 1.0]).double().repeat(n)[:n]):
        call = Call(z, y, row_weight=row_weight)
        for tape in (cross_entropy(), cross_entropy(0.0, 0.01)):
            _, grad = call.in_two(tape, 3.0)
            _, _, gradient = call.in_one(tape, (NUMBER, 3.0, False))
            assert same_bits(gradient, grad)


@every_dtype
def test_a_loss_with_elementary_functions(dtype):
    # Their last bits are not PyTorch's, so that the gradient may round to the neighbour.
    z, y = problem(dtype)
    call, tape = Call(z, y, weight=eighths(33)), focal()
    loss, grad = call.in_two(tape, 69.0)
    _, one, gradient = call.in_one(tape, (COUNT, 0.0, False))
    bound = 1 if dtype != torch.float64 else 200  # of the slope, which is a difference
    assert (ulps(gradient, grad.double()) <= bound).all()
    assert ulps(one, loss) <= (1 if dtype != torch.float64 else 30)


@every_dtype
def test_what_is_done_to_the_logits(dtype):
    z, y = problem(dtype)
    n, v = z.shape
    tape = cross_entropy(0.1, 0.01)
    own = {"requests": ("mean",), "class_bias": torch.randn(v), "class_scale": torch.rand(v) + 0.5}
    same(Call(z, y, scale=torch.rand(n).double() + 0.5, softcap=5.0, **own), tape, 69.0)
    same(Call(z, y, scale=torch.tensor(1.5).double(), **own), tape, 69.0)


@every_dtype
@pytest.mark.parametrize("d", [1, 7, 40])
def test_classes_on_a_middle_axis(dtype, d):
    z = (torch.randn(3, 20, d) * 3).to(dtype)
    y = torch.randint(20, (3, d))
    for logits in (z, z.transpose(0, 2).contiguous().transpose(0, 2)):
        same(Call(logits, y, row_weight=eighths(3 * d)), cross_entropy(0.0, 0.01), 17.0)


@every_dtype
def test_soft_targets(dtype):
    z = problem(dtype)[0].clamp(min=-50)
    q = torch.rand(*z.shape).softmax(-1).to(dtype)
    tape = Tape()
    tape("neg", tape.field("log_prob"))
    call = Call(z, soft=q, weight=eighths(33), row_weight=eighths(70), requests=("mean",))
    same(call, tape, call.row_weight.sum().item(), (WEIGHT, 0.0, False))
    same(call, tape, 70.0, (COUNT, 0.0, False))


def test_a_table_of_soft_targets():
    z, y = problem()
    z, tape = z.clamp(min=-50), Tape()
    tape("neg", tape.field("log_prob"))
    same(Call(z, y, soft=torch.rand(33, 33).softmax(-1)), tape, 69.0, (WEIGHT, 0.0, False))


def test_every_field_with_a_slope():
    z, y = problem()
    tape = Tape()
    # With factors, so that a slope that goes to the wrong field changes the result.
    names = ["log_odds", "log_prob", "target", "lse", "entropy", "mean", "rest_top_logit"]
    names += ["rest_squares", "rest_cubes", "mass", "top", "support"]
    total = tape.constant(0.0)
    for k, name in enumerate(names):
        field = tape.field(name)
        finite = tape("where", tape("isfinite", field), field, tape.constant(0.0))
        total = tape("add", total, tape("mul", tape.constant(k + 1.5), finite))
    call = Call(z, y, requests=("entropy", "mean", "top", "squares", "cubes"))
    same(call, tape, 3.0)


def test_a_field_that_is_read_twice_and_one_without_slope():
    z, y = problem()
    tape = Tape()
    a, b = tape.field("log_prob"), tape.field("log_prob")
    still = tape("detach", tape("exp", tape.field("lse")))
    tape("mul", tape("mul", a, b), tape("gt", still, tape.constant(30.0)))
    same(Call(z, y), tape, 69.0)


def test_inputs():
    # One per row, or one for all of them.
    z, y = problem()
    tape = Tape()
    each = tape("mul", tape.input(1), tape.field("log_prob"))
    tape("add", each, tape("mul", tape.input(0), tape.field("lse")))
    inputs = (torch.tensor(0.3).double(), torch.randn(70).double())
    same(Call(z, y, inputs=inputs), tape, 69.0)


def test_a_program_without_slope():
    z, y = problem()
    tape = Tape()
    tape("gt", tape.field("log_prob"), tape.constant(-1.0))
    answer, loss, gradient = Call(z, y).in_one(tape, (COUNT, 0.0, False))
    assert answer[0] == 69
    assert loss == (z.log_softmax(1)[range(70), y.clamp(min=0)] > -1)[y >= 0].sum() / 69
    assert not gradient.any()
    assert Call(z, y).in_one(tape, gradient=False)[2].eq(7).all()


# ---- rows that do not count ---------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("v", [3, 33])
@pytest.mark.parametrize("soft", [False, True])
def test_rows_of_weight_0_leave_no_trace(dtype, v, soft):
    z, y = problem(dtype, v=v)
    z = z.clamp(min=-50)
    target = {"soft": torch.rand(70, v).softmax(1).to(dtype)} if soft else {"labels": y}
    tape = cross_entropy(0.1, 0.01)
    weight = eighths(70)
    weight[[1, 8, 20, 40]] = 0
    clean = Call(z, **target, row_weight=weight, requests=("mean",), scale=torch.ones(70).double())
    _, loss, grad = clean.in_one(tape, (WEIGHT, 0.0, False))
    assert not grad[weight == 0].any()
    assert loss.isfinite()
    hostile, scale = z.clone(), torch.ones(70).double()
    hostile[1], hostile[8, 0], hostile[20], scale[40] = math.nan, math.inf, -math.inf, math.nan
    if soft:
        target["soft"][8] = math.nan
    else:
        target["labels"] = y.index_fill(0, torch.tensor([8]), v + 5)  # not looked at either
    call = clean._replace(logits=hostile, scale=scale, **target)
    answer, again, gradient = call.in_one(tape, (WEIGHT, 0.0, False))
    assert not answer[1]
    assert same_bits(again, loss)
    assert same_bits(gradient, grad)


def test_divisors():
    z, y = problem()
    weight, row_weight = eighths(33), eighths(70, low=0)
    row_weight[:6] = torch.tensor([0, 1, 1, 0, 1, 1])
    call = Call(z, y, weight=weight, row_weight=row_weight)
    kept = y != -100

    def divisor(*given):
        answer, _, _ = call.in_one(cross_entropy(), given)
        assert answer[0] == (kept & (row_weight != 0)).sum()
        return answer[3]

    assert divisor(SUM, 0.0, False) == 1
    assert divisor(NUMBER, 12.5, False) == 12.5
    assert divisor(COUNT, 0.0, False) == 69  # rows of weight 0 among them
    assert divisor(WEIGHT, 0.0, False) == weight[y.clamp(min=0)].mul(row_weight)[kept].sum()
    assert divisor(NUMBER, 0.0, True) == 1


@pytest.mark.parametrize("never_zero", [False, True])
def test_the_mean_of_nothing(never_zero):
    z, y = problem()
    call = Call(z, torch.full_like(y, -100))
    for kind in (WEIGHT, COUNT):
        answer, loss, gradient = call.in_one(cross_entropy(), (kind, 0.0, never_zero))
        assert answer[0] == 0
        assert loss.isnan() if not never_zero else loss == 0
        assert not gradient.any()
    empty = Call(z[:0], y[:0]).in_one(cross_entropy(), (WEIGHT, 0.0, never_zero))
    assert empty[1].isnan() if not never_zero else empty[1] == 0


def test_a_label_out_of_range():
    z, y = problem()
    y[9], y[60] = 33, -1
    answer, loss, gradient = Call(z, y).in_one(cross_entropy(), (WEIGHT, 0.0, False))
    assert answer[1:3] == (True, 33)  # the first
    assert loss == 7  # nothing is computed
    assert gradient.eq(7).all()


def test_sums_over_many_blocks():
    y = torch.randint(7, (20000,))
    y[::3] = -100
    weight = torch.rand(20000).double()
    call = Call(torch.randn(20000, 7), y, row_weight=weight)
    answer, _, _ = call.in_one(cross_entropy(), (WEIGHT, 0.0, False))
    assert answer[0] == (y != -100).sum()
    assert answer[3] == pytest.approx(weight[y != -100].sum().item(), rel=1e-14)
    y[15000] = 9
    assert call.in_one(cross_entropy())[0][1:3] == (True, 9)


# ---- the same bits ------------------------------------------------------------------------------


def everything(dtype: torch.dtype, *sizes: tuple[int, int]) -> list[Tensor]:
    """Return losses and gradients of problems of several sizes, by several programs."""
    torch.manual_seed(1)
    found = []
    power = Tape()
    odds = power("tanh", power.field("log_odds"))
    power("pow", power("expm1", power("abs", odds)), power.constant(1.7))
    for n, v in sizes:
        z, y = problem(dtype, n, v)
        weight = torch.rand(n).double()
        for tape in (cross_entropy(0.1, 0.01), focal(), power):
            call = Call(z, y, requests=("mean",), row_weight=weight)
            found += call.in_one(tape, (WEIGHT, 0.0, False), slope=0.3)[1:]
    return found


@every_dtype
def test_any_number_of_threads(dtype):
    sizes = ((3000, 33), (5, 70000), (9000, 5))
    both = everything(dtype, *sizes)
    torch.set_num_threads(1)
    assert all(map(same_bits, both, everything(dtype, *sizes)))


@every_dtype
def test_any_instruction_set(dtype, core):
    sizes = ((70, 33), (5, 9000), (40, 5))  # float64 is slow without fused multiply-add
    best = everything(dtype, *sizes)
    try:
        for isa in core.isas()[:-1]:
            core.set_isa(isa)
            assert all(map(same_bits, best, everything(dtype, *sizes))), isa
    finally:
        core.set_isa(core.isas()[-1])


# ---- another slope ------------------------------------------------------------------------------


def scaled(core, x: Tensor, slope: float) -> Tensor | None:
    """Return the result of ``scale_exactly``; None if it changes nothing, which is checked."""
    before = x.clone()
    if core._core.scale_exactly(x.data_ptr(), core.TYPES[x.dtype], x.numel(), slope):
        return x
    assert same_bits(x, before)
    return None


@every_dtype
@pytest.mark.parametrize("slope", [1.0, 2.0, 0.5, 8.0, 0.125])
def test_powers_of_two(core, dtype, slope):
    x = torch.randn(50001).to(dtype)
    x = torch.where(x.abs() < 0.01, 0.01, x)  # far from the subnormal numbers of float16
    assert same_bits(scaled(core, x.clone(), slope), x * slope)


@every_dtype
def test_slopes_that_round_or_are_none(core, dtype):
    for slope in (3.0, 0.1, 0.0, -2.0, math.inf, math.nan):
        assert scaled(core, torch.ones(100, dtype=dtype), slope) is None


@every_dtype
@pytest.mark.parametrize("place", [0, 30000, 49999])
def test_numbers_that_would_round(core, dtype, place):
    info = torch.finfo(dtype)
    cases = [(info.tiny, 0.5), (info.tiny / 2, 2.0), (info.tiny / 2, 0.5), (info.max, 2.0)]
    cases += [(math.inf, 0.5), (math.nan, 0.5), (0.0, 2.0)]  # a zero may be a smaller number
    for number, slope in cases:
        x = torch.ones(50000, dtype=dtype)
        x[place] = number
        assert scaled(core, x, slope) is None, (number, slope)
    x[place] = 0.0
    assert same_bits(scaled(core, x.clone(), 0.5), x * 0.5)
    x[place] = info.tiny * 4
    assert same_bits(scaled(core, x.clone(), 0.25), x * 0.25)


@every_dtype
def test_a_scaled_gradient_is_the_one_of_that_slope(core, dtype):
    # Of ordinary logits, in types with the exponents of float32.
    z = torch.randn(300, 40).to(dtype)
    call = Call(z, torch.randint(40, (300,)))
    one, half = (call.in_one(cross_entropy(), (COUNT, 0.0, False), k)[2] for k in (1.0, 0.25))
    found = scaled(core, one, 0.25)
    assert found is None if dtype == torch.float16 else same_bits(found, half)
