"""The algebra of a row: coefficients against autograd, the same text in Triton, lists of names."""

import ast
import inspect
import math
import re
from pathlib import Path

import pytest
import torch

from tests.engines.rows.row_algebra import LOGITS, by_coefficients, partials_of
from xent.engines.rows import algebra, reference
from xent.engines.rows.problem import Problem, Settings, Tensors
from xent.row_statistics import FIELDS, REQUESTS

INF = math.inf
PROJECT = Path(__file__).parents[3]


# ---- coefficients are the derivatives of the fields ---------------------------------------------

OF = ("lse", "log_prob", "log_odds", "target")  # of every loss
CASES = [(soft, name) for soft in (False, True) for name in (*OF, "entropy", "mean")]
CASES += [(False, name) for name in ("rest_top_logit", "rest_squares", "rest_cubes")]


@pytest.mark.parametrize(("soft", "name"), CASES)
def test_coefficients_are_autograd_of_the_fields(soft, name):
    """Both come from the shared text: autograd differentiates the fields."""
    z, y = LOGITS
    target = torch.softmax(torch.randn_like(z) * 2, -1).masked_fill(z == -INF, 0) if soft else y
    requests = REQUESTS[:3] if soft else REQUESTS
    weight = torch.rand(z.shape[1], dtype=z.dtype) + 0.5
    problem = Problem(Tensors(z, target, mean_weight=weight), Settings(soft, requests=requests))
    table, _ = reference.row_statistics(problem)
    partials = partials_of(problem, {name: torch.randn(len(z), dtype=z.dtype)})
    with torch.no_grad():
        by_autograd = reference.row_gradient(problem, table, partials)
    ours = by_coefficients(problem, table, partials)
    assert bool(by_autograd.any())
    torch.testing.assert_close(ours, by_autograd, rtol=1e-12, atol=1e-14)


# ---- the same text in a kernel ------------------------------------------------------------------


FUNCTIONS = [
    "finite_or_nan", "product", "log1p", "one_minus_exp", "logit_of_exp", "odds_of", "soft_fields",
    "entropy_of", "unit_of", "fields_of_empty_rows", "coefficients_of_index",
    "coefficients_of_soft", "coefficients_of_entropy", "coefficients_of_powers",
    "coefficient_of_mean", "sigmoid",
]  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_triton_runs_the_text(name, on_triton):
    """Each function gives the numbers that PyTorch gives, also at the edges."""
    from tests.engines.triton.kernels_of_algebra import by_torch, by_triton, drawn

    given = drawn(name)
    expected = by_torch(name, given)
    ours = by_triton(name, given, len(expected))
    atol = 1e-15 if name == "soft_fields" else 1e-307  # log_odds passes 0 at probability 1/2
    torch.testing.assert_close(ours, expected, rtol=1e-14, atol=atol, equal_nan=True)


def test_a_kernel_gets_every_function():
    """Every function of the text compiles for Triton; functions in kernels are tested above."""
    pytest.importorskip("triton")
    from xent.engines.triton import algebra as compiled

    functions = {k for k, v in vars(algebra).items() if inspect.isfunction(v)} - {"NamedTuple"}
    assert {"odds_of", "gradient_at", "product", "constant"} <= functions
    for name in functions:
        assert not inspect.isfunction(getattr(compiled._algebra, name)), name
    bound = {k for k, v in vars(compiled).items() if v in vars(compiled._algebra).values()}
    assert bound & functions - {"gradient_at"} <= set(FUNCTIONS)


# ---- one list of names --------------------------------------------------------------------------


def header(name: str) -> str:
    return (PROJECT / "csrc" / name).read_text()


def test_the_fields_of_the_core_are_those_of_python():
    (body,) = re.findall(r"struct Statistics \{(.*?)\};", header("rows.h"), re.DOTALL)
    assert tuple(re.findall(r"double\* (\w+);", body)) == FIELDS


def test_the_partial_derivatives_of_the_core_are_those_of_the_kernels():
    pytest.importorskip("triton")
    from xent.engines.triton.gradient import Partials

    (of_core,) = re.findall(r"XENT_DIFFERENTIABLE\(each\)(.*?)\n#", header("rows.h"), re.DOTALL)
    assert tuple(re.findall(r"each\((\w+)\)", of_core)) == Partials._fields
    assert set(Partials._fields) < set(FIELDS)


def test_every_request_but_the_largest_class_has_a_term_of_the_core():
    terms = dict(re.findall(r"  k(\w+) = (\d+),", header("terms.h")))
    bits = [int(bit) for bit in terms.values()]
    assert terms.pop("Plain") == "0"
    assert sorted(bits) == [0, *(1 << k for k in range(len(terms)))]
    assert {name.capitalize() for name in REQUESTS} - {"Top"} == terms.keys() - {
        "Weights", "Soft", "Transform",
    }  # fmt: skip


def names_in(file: Path) -> dict[str, set[str]]:
    """Return the names that kernels of a file look up, by the list of the names."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(file.read_text())):
        called = getattr(getattr(node, "func", None), "id", "")
        if called not in ("get", "put", "has", "get_column"):
            continue
        arguments = [getattr(a, "id", getattr(a, "value", None)) for a in node.args]
        names = arguments[0] if called == "has" else arguments[-1]
        if isinstance(arguments[1], str) and arguments[1] != "name":  # which passes a name on
            found.setdefault(names, set()).add(arguments[1])
    return found


def test_kernels_look_up_names_that_are_there():
    """A name that is in no list would count as not wanted, and never be stored."""
    pytest.importorskip("triton")
    from xent.engines.triton import gradient, one_sweep, sweep

    lists = {
        "SUMS": set().union(one_sweep.SUMS.value.split(), *sweep.SUMMED.values()),
        "FIELDS": set(FIELDS),
        "NAMES": {*gradient.ALWAYS, *algebra.Coefficients._fields, "at_top"},
        "PLACES": set(gradient.PLACES.value.split()),
    }
    seen: dict[str, set[str]] = {}
    for file in (PROJECT / "src/xent/engines/triton").glob("*.py"):
        for names, looked_up in names_in(file).items():
            seen.setdefault(names, set()).update(looked_up)
    assert seen == lists
