"""A kernel that calls the functions of the shared algebra, with arguments at the edges."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from xent.engines.rows import algebra as text
from xent.engines.triton.algebra import (
    coefficient_of_mean,
    coefficients_of_entropy,
    coefficients_of_index,
    coefficients_of_powers,
    coefficients_of_soft,
    entropy_of,
    fields_of_empty_rows,
    finite_or_nan,
    odds_of,
    sigmoid,
    soft_fields,
    unit_of,
)
from xent.engines.triton.arithmetic import log1p, logit_of_exp, one_minus_exp, product
from xent.extremes import logit_of_exp as torch_logit_of_exp
from xent.extremes import product as torch_product

COUNT = 1024
INF = math.inf
LOGIT = (-INF, -800.0, -40.0, -1.0, -1e-300, 0.0, 1e-9, 0.5, 40.0, 800.0, 1e300, INF, math.nan)
SUM = (0.0, 5e-324, 1e-300, 1e-9, 0.5, 1.0, 30.0, math.nan)
WHOLE = (0.0, 1.0, 2.0, 50000.0)
SLOPE = (0.0, -1.5, 0.25, 3.0, 1e-30)
PROB = (0.0, 1e-300, 0.3, 1.0)

# Function: where its arguments are drawn from.
DRAWN = {
    "finite_or_nan": (LOGIT,),
    "product": (LOGIT, LOGIT),
    "log1p": (SUM,),
    "one_minus_exp": ((0.0, 1e-300, 1e-9, 0.01, 0.7, 5.0, 40.0, 800.0, INF),),
    "logit_of_exp": ((0.0, 0.5, -1e-300, -1e-9, -0.7, -5.0, -40.0, -800.0, -INF, math.nan),),
    "odds_of": (LOGIT, LOGIT[:-2], SUM, WHOLE),
    "soft_fields": (LOGIT, LOGIT[:-2], SUM, WHOLE, PROB, PROB, SUM),
    "entropy_of": (LOGIT, LOGIT[:-2], SUM, WHOLE, SUM),
    "unit_of": (LOGIT, LOGIT[:-2], SUM, WHOLE),
    "fields_of_empty_rows": (WHOLE, WHOLE, PROB),
    "coefficients_of_index": (LOGIT, SLOPE, SLOPE, SLOPE, SLOPE),
    "coefficients_of_soft": (LOGIT, PROB, PROB, (0.0, 0.5, -1e-9, -3.0, -700.0), *[SLOPE] * 4),
    "coefficients_of_entropy": (LOGIT, (-1e-9, 0.5, 7.0), (0.0, 1e-9, 2.0), SLOPE),
    "coefficients_of_powers": (LOGIT, PROB, PROB, PROB, SLOPE, SLOPE),
    "coefficient_of_mean": (WHOLE, SLOPE),
    "sigmoid": (LOGIT,),
}


def drawn(name: str) -> Tensor:
    """Return arguments of a function, (arguments, COUNT)."""
    choices = [torch.tensor(values, dtype=torch.float64) for values in DRAWN[name]]
    given = torch.stack([c[torch.randint(len(c), (COUNT,))] for c in choices])
    if takes_odds(name):  # beside a tiny sum there is always a class at the shift
        given[3] = torch.where((given[2] > 0) & (given[2] < 0.5), 1.0, given[3])
    return given


def takes_odds(name: str) -> bool:
    """Return True if the first arguments of a function are those of the odds."""
    return DRAWN[name][:4] == DRAWN["odds_of"]


@triton.jit
def store(out, n, values, COUNT: tl.constexpr):
    """Store a tuple of results, one line for each."""
    for k in tl.static_range(len(values)):
        tl.store(out + k * COUNT + n, values[k])


@triton.jit
def call(given, out, NAME: tl.constexpr, ARGUMENTS: tl.constexpr, COUNT: tl.constexpr):
    """Call one function in each place, on numbers of that place."""
    n = tl.arange(0, COUNT)
    a = tl.load(given + n)
    b = tl.load(given + (1 if ARGUMENTS > 1 else 0) * COUNT + n)
    c = tl.load(given + (2 if ARGUMENTS > 2 else 0) * COUNT + n)
    d = tl.load(given + (3 if ARGUMENTS > 3 else 0) * COUNT + n)
    e = tl.load(given + (4 if ARGUMENTS > 4 else 0) * COUNT + n)
    f = tl.load(given + (5 if ARGUMENTS > 5 else 0) * COUNT + n)
    g = tl.load(given + (6 if ARGUMENTS > 6 else 0) * COUNT + n)
    h = tl.load(given + (7 if ARGUMENTS > 7 else 0) * COUNT + n)
    if NAME == "finite_or_nan":
        tl.store(out + n, finite_or_nan(a))
    elif NAME == "product":
        tl.store(out + n, product(a, b))
    elif NAME == "log1p":
        tl.store(out + n, log1p(a))
    elif NAME == "one_minus_exp":
        tl.store(out + n, one_minus_exp(a))
    elif NAME == "logit_of_exp":
        tl.store(out + n, logit_of_exp(a))
    elif NAME == "odds_of":
        store(out, n, odds_of(a, b, c, d), COUNT)
    elif NAME == "soft_fields":
        store(out, n, soft_fields(odds_of(a, b, c, d), a, b, e, f, g), COUNT)
    elif NAME == "entropy_of":
        tl.store(out + n, entropy_of(odds_of(a, b, c, d), e))
    elif NAME == "unit_of":
        tl.store(out + n, unit_of(odds_of(a, b, c, d)))
    elif NAME == "fields_of_empty_rows":
        store(out, n, fields_of_empty_rows(a == 0, b == 0, c), COUNT)
    elif NAME == "coefficients_of_index":
        store(out, n, coefficients_of_index(a, b, c, d, e), COUNT)
    elif NAME == "coefficients_of_soft":
        store(out, n, coefficients_of_soft(a, b, c, d, e, f, g, h), COUNT)
    elif NAME == "coefficients_of_entropy":
        store(out, n, coefficients_of_entropy(a, b, c, d), COUNT)
    elif NAME == "coefficients_of_powers":
        store(out, n, coefficients_of_powers(a, b, c, d, e, f), COUNT)
    elif NAME == "coefficient_of_mean":
        tl.store(out + n, coefficient_of_mean(a, b))
    elif NAME == "sigmoid":
        tl.store(out + n, sigmoid(a))


def by_torch(name: str, given: Tensor) -> Tensor:
    """Return the results of a function of the text by PyTorch, (results, COUNT)."""
    first, rest = given[:4], given[4:]
    odds = text.odds_of(*first) if takes_odds(name) else None
    results = {
        "product": lambda: torch_product(*given),
        "log1p": lambda: torch.log1p(*given),
        "logit_of_exp": lambda: torch_logit_of_exp(*given),
        "soft_fields": lambda: text.soft_fields(odds, *first[:2], *rest),
        "entropy_of": lambda: text.entropy_of(odds, *rest),
        "unit_of": lambda: text.unit_of(odds),
        "fields_of_empty_rows": lambda: text.fields_of_empty_rows(
            given[0] == 0, given[1] == 0, given[2]
        ),
    }.get(name, lambda: getattr(text, name)(*given))()
    results = results if isinstance(results, tuple) else (results,)
    return torch.stack([torch.as_tensor(x).double().expand(COUNT) for x in results])


def by_triton(name: str, given: Tensor, results: int) -> Tensor:
    """Return the results of the compiled function."""
    out = torch.full((results, COUNT), 77.0, dtype=torch.float64, device=given.device)
    call[(1,)](given, out, NAME=name, ARGUMENTS=len(given), COUNT=COUNT)
    return out
