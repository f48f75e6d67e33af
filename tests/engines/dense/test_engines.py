"""Kernels of dense losses against the reference, on every layout, type and instruction set."""

import math

import pytest
import torch

import xent
from tests.helpers import opcheck
from xent.engines import core, dense
from xent.engines.dense import autograd
from xent.engines.dense.problem import DenseProblem, Form
from xent.losses.divergence import diverge

needs_core = pytest.mark.skipif(not core.available(), reason="the compiled core is not there")
KINDS = [("forward", 0.5), ("reverse", 0.5), ("jensen_shannon", 0.5), ("jensen_shannon", 0.1)]
EACH_KIND = pytest.mark.parametrize(("kind", "beta"), KINDS)
INFINITY = math.inf


def problem_of(z, v, kind, beta, temperature=1.5, row_weight=None):
    def body(student, teacher, _):
        return diverge(student, teacher, temperature, kind, beta)

    form = Form(kind, (1 / temperature, beta))
    return DenseProblem(z, v, None, row_weight, body, form, 1.0, -100, torch.float64)


def answers(z, v, kind, beta, engine, **options):
    """Return values and both gradients for slopes that differ between the rows."""
    z, v = (x.detach().requires_grad_() for x in (z, v))
    values = dense.values(problem_of(z, v, kind, beta, **options), engine)
    slopes = torch.linspace(0.5, 2, values.numel(), dtype=torch.float64).view(values.shape)
    return values.detach(), *torch.autograd.grad((values * slopes).sum(), (z, v))


def masked(x, *places):
    x = x.clone()
    for row, column, value in places:
        x[row, column] = value
    return x


Z, V = torch.randn(2, 6, 2100, generator=torch.Generator().manual_seed(1)).unbind(0)
Z = 3 * Z
EVERY = slice(None)
PAIRS = {
    "plain": (Z, V),
    "half": (Z[:, :50].half(), V[:, :50].half()),
    "bfloat16 and float32": (Z[:, :50].bfloat16(), V[:, :50]),
    "near": (V + 1e-4 * Z, V),
    "the same": (V, V),
    "far from 0": (Z + 1000, V - 500),
    "rising by blocks": (torch.linspace(-4000, 4000, 4200).view(2, 2100), V[:2]),
    "one class": (Z[:, :1], V[:, :1]),
    "one row": (Z[0, :20], V[0, :20]),
    "middle axis": (Z[:, :60].reshape(6, 15, 4), V[:, :60].reshape(6, 15, 4)),
    "other strides": (Z[:, :60:2], V[:, :180].t()[:180:6].t()),
    "two axes of rows": (Z[:, :120].view(6, 5, 4, 6).transpose(2, 3), V[:, :120].view(6, 5, 6, 4)),
    "both masked": (masked(Z, (EVERY, 3, -INFINITY)), masked(V, (EVERY, 3, -INFINITY))),
    "student masked": (masked(Z, (1, 2050, -INFINITY)), V),
    "teacher masked": (Z, masked(V, (1, 2050, -INFINITY))),
    "blocks masked": (masked(Z, (1, slice(2048), -INFINITY)), V),
    "no class left": (masked(Z, (1, EVERY, -INFINITY)), V),
    "not finite": (masked(Z, (1, 5, INFINITY), (2, 2060, math.nan)), masked(V, (3, 5, INFINITY))),
}


@needs_core
@EACH_KIND
@pytest.mark.parametrize("pair", PAIRS)
def test_the_kernel_is_the_reference(kind, beta, pair):
    z, v = PAIRS[pair]
    found, expected = (answers(z, v, kind, beta, e) for e in ("native", "reference"))
    scale = 1 + expected[0].nan_to_num(posinf=0).abs().max()
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=0, equal_nan=True)
    for a, b in zip(found[1:], expected[1:], strict=True):
        rounding = 1e-13 * scale if b.dtype == torch.float64 else torch.finfo(b.dtype).eps
        largest = b.nan_to_num(posinf=0, neginf=0).abs().max()
        torch.testing.assert_close(
            a, b, rtol=0, atol=float(rounding * largest + 1e-45), equal_nan=True
        )


@needs_core
@EACH_KIND
def test_bits_are_those_of_every_instruction_set_and_number_of_threads(kind, beta):
    isa, threads = core.isa, torch.get_num_threads()
    pairs = (Z, V), (V + 1e-5 * Z, V), (masked(Z, (EVERY, 3, -INFINITY)), V)
    first = [answers(*pair, kind, beta, "native") for pair in pairs]
    try:
        for name in core.isas():
            core.set_isa(name)
            torch.set_num_threads(2 if name == core.isas()[-1] else 1)
            for pair, expected in zip(pairs, first, strict=True):
                found = answers(*pair, kind, beta, "native")
                for a, b in zip(found, expected, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    finally:
        core.set_isa(isa)
        torch.set_num_threads(threads)


@needs_core
@EACH_KIND
def test_rows_of_weight_0_are_not_read(kind, beta):
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    garbage = masked(Z, (1, EVERY, math.nan), (3, 7, INFINITY))
    found, clean = (answers(x, V, kind, beta, "native", row_weight=weight) for x in (garbage, Z))
    for a, b in zip(found, clean, strict=True):
        assert torch.equal(a, b)
        assert not a[weight == 0].any()


@needs_core
@EACH_KIND
def test_a_sum_takes_its_gradient_along(kind, beta):
    z, v = Z.clone().requires_grad_(), V.clone().requires_grad_()
    problem = problem_of(z, v, kind, beta)._replace(dtype=torch.float32)
    engine = dense.MODULES["native"]
    order = autograd.DenseTotal(engine, "weight", False, lambda values: values.sum() / 6)
    for slope in (1.0, 0.5, -3.0):
        total = autograd.total(problem, order)
        found = torch.autograd.grad(total * slope, (z, v))
        plain = order.reduce(dense.values(problem._replace(dtype=torch.float64), "reference"))
        expected = torch.autograd.grad(plain * slope, (z, v))
        torch.testing.assert_close(total.double(), plain, rtol=1e-7, atol=0)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=float(1.2e-7 * b.abs().max()))


@pytest.mark.sample(2)
@needs_core
@EACH_KIND
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compilers_see_an_operator(kind, beta, reduction):
    torch._dynamo.reset()

    def loss(z, v):
        return xent.losses.distillation_loss(
            z, v, divergence=kind, beta=beta, temperature=2.0, reduction=reduction
        )

    def run(function):
        z, v = Z[:, :9].clone().requires_grad_(), V[:, :9].clone().requires_grad_()
        value = function(z, v)
        return value.detach(), *torch.autograd.grad(value.sum(), (z, v))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(compiled), run(loss), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@needs_core
def test_the_operators_are_registered_rightly():
    from xent.engines.dense import operators

    z, v = (x[:3, :5].clone().requires_grad_() for x in (Z, V))
    question = operators._question(problem_of(z, v, "reverse", 0.5), "native")
    opcheck(operators.dense_total, question)
    opcheck(operators.dense_values, question)


def test_an_engine_says_why_it_cannot():
    problem = problem_of(Z, V, "forward", 0.5)
    with pytest.raises(ValueError, match="have no kernels in triton"):
        dense.choose(problem, "triton")
    assert dense.choose(problem, "reference").engine == "reference"
    if core.available():
        assert dense.choose(problem, "native").engine == "native"
        with pytest.raises(ValueError, match="no kernel for these targets"):
            dense.choose(problem._replace(form=None), "native")


@needs_core
@pytest.mark.parametrize("kind", ["forward", "fenchel_young", "bi_tempered"])
def test_too_little_memory_is_an_error(kind):
    """The kernel has numbers for each class of a row; here more than there are addresses."""
    z = torch.zeros(1).expand(1, 2**44)
    numbers = (0.8, 1.2) if kind == "bi_tempered" else (0.5, 0.5)
    teacher, label = (z, None) if kind == "forward" else (None, torch.zeros(1, dtype=torch.int64))
    problem = DenseProblem(
        z, teacher, label, None, diverge, Form(kind, numbers), 1.0, -100, torch.float64
    )
    with pytest.raises(MemoryError):
        dense.values(problem, "native")
