"""The per-row functions of the compiled core, one by one, against the shared text in float64.

Forward, the input are logits at the edges; backward, tables of statistics that no logits
would give, so that each function sees any log-odds with any probability, sum and slope.
"""

import math

import pytest
import torch

from tests.engines.rows.row_algebra import INF, LOGITS, TINY, by_coefficients, partials_of
from xent.engines.rows import native, reference
from xent.engines.rows.problem import Problem, Settings, Tensors

NAN = math.nan
pytestmark = pytest.mark.usefixtures("core")

# The first class is the pivot of an index target.
EDGES = torch.tensor(
    [
        [700.0, 0.0, -745.0, -300.0, 1.0],  # a rest whose small terms are subnormal beside 1
        [-700.0, 0.0, -745.0, 0.0, 0.0],  # ties, and a hopeless target
        [2.0, 0.0, -740.0, -741.0, -742.0],
        [1e300, 0.0, 1.0, 2.0, 3.0],
        [-1e300, 0.0, 1.0, 2.0, 3.0],
        [1e5, 1e5, 1e5, 1e5, 1e5],
        [-1e5, -1e5, -1e5 - 1, -1e5, -1e5],
        [1e-300, -1e-300, 0.0, TINY, 0.0],
        [-INF, 0.0, 1.0, -INF, 2.0],  # a masked target
        [INF, 0.0, 1.0, 2.0, 3.0],
        [0.0, INF, 1.0, 2.0, 3.0],
        [NAN, 0.0, 1.0, 2.0, 3.0],
        [0.0, 1.0, NAN, 2.0, 3.0],
        [-INF, -INF, -INF, -INF, -INF],
        [25.0, -10.0, -11.0, -12.0, -13.0],
        [1.0, 1.0 - 1e-16, 1.0, 0.5, 1.0],
    ],
    dtype=torch.float64,
)
ROWS = torch.cat([LOGITS[0], EDGES])
N, V = ROWS.shape

# Function of csrc/fields.h: the fields that it fills in, what a loss asks for, soft targets?
FORWARD = {
    "Odds, finish_all": (("log_odds", "log_prob", "target", "lse", "log_total"), (), False),
    "finish_index": (("mass", "top", "rest_top", "rest_top_logit"), ("top",), False),
    "finish_soft": (
        ("log_odds", "log_prob", "target", "mass", "lse", "pivot_log_odds"), (), True,
    ),
    "finish_soft, top": (("top", "top_logit"), ("top",), True),
    "finish_entropy": (("entropy",), ("entropy",), False),
    "finish_entropy, soft": (("entropy",), ("entropy",), True),
    "finish_powers": (("rest_squares", "rest_cubes"), ("squares", "cubes"), False),
    "finish_mean": (("mean", "support", "mean_mass"), ("mean",), False),
    "finish_mean, soft": (("mean", "support", "mean_mass"), ("mean",), True),
}  # fmt: skip


def problem_of(z, soft, requests, **settings):
    """Return a problem in which every fifth row is ignored."""
    weights = {"class_weight": torch.linspace(0.5, 2, V).double()}
    if "mean" in requests:
        weights["mean_weight"] = torch.linspace(2, 0.5, V).double()
    if soft:
        target = torch.softmax(torch.randn(z.shape).double() * 3, -1)
        target[1::3, 1:] = 0  # all of it on the class that is often the pivot
        target[2::3] = 0
    else:
        target = torch.where(torch.arange(len(z)) % 5 == 4, -100, 0)
    return Problem(Tensors(z, target, **weights), Settings(soft, requests=requests, **settings))


def fields_of(table, problem):
    """Return fields by name, and the log of the sum of the rest, which no shift changes."""
    fields = dict(zip(problem.fields, table, strict=True))
    return fields | {"log_total": fields["shift"] + fields["sum"].log()}


@pytest.mark.parametrize("function", FORWARD)
def test_fields(function):
    names, requests, soft = FORWARD[function]
    problem = problem_of(ROWS, soft, requests)
    ours, text = (
        fields_of(engine.row_statistics(problem)[0], problem) for engine in (native, reference)
    )
    finite = ~(ROWS.isnan() | (ROWS == INF)).any(-1)
    for name in names:
        keep = finite if "top" in name else slice(None)  # comparisons with NaN may end anywhere
        torch.testing.assert_close(
            ours[name][keep], text[name][keep], rtol=2e-15, atol=1e-307, equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )  # fmt: skip


@pytest.mark.parametrize("soft", [False, True])
def test_rows_without_classes(soft):
    """finish_ignored and finish_masked_shard write every field of the table."""
    z = torch.full((4, V), -INF, dtype=torch.float64)
    z[3] = 1.0
    requests = (
        ("entropy", "mean", "top") if soft else ("entropy", "mean", "top", "squares", "cubes")
    )
    problem = problem_of(z, soft, requests, sharded=True)
    problem.tensors.target[1] = 0 if soft else -100
    ours, text = (engine.row_statistics(problem)[0] for engine in (native, reference))
    # The kernel adds up the numbers of a soft target in another order.
    rtol = V * torch.finfo(torch.float64).eps if soft else 0
    torch.testing.assert_close(ours[:, :3], text[:, :3], rtol=rtol, atol=0, equal_nan=True)


# ---- backward -----------------------------------------------------------------------------------

LOG_ODDS = (-INF, -800.0, -300.0, -1.0, -1e-300, 0.0, TINY, 1e-9, 0.7, 40.0, 300.0, 800.0, INF, NAN)

# Method of csrc/gradient.h: the partial derivatives that it reads, what a loss asks for, soft?
BACKWARD = {
    **{f"add_index, {k}": ((k,), (), False) for k in ("lse", "log_prob", "log_odds", "target")},
    **{f"add_soft, {k}": ((k,), (), True) for k in ("lse", "log_prob", "log_odds", "target")},
    "add_entropy": (("entropy",), ("entropy",), False),
    "add_entropy, soft": (("entropy",), ("entropy",), True),
    "add_powers, squares": (("rest_squares",), ("squares",), False),
    "add_powers, cubes": (("rest_cubes",), ("cubes",), False),
    "add_mean": (("mean",), ("mean",), False),
    "add_mean, soft": (("mean",), ("mean",), True),
    "find_top": (("rest_top_logit", "lse"), ("top",), False),
}


def any_statistics(problem):
    """Return a table of arbitrary log-odds, and statistics that are consistent with them."""
    table, _ = reference.row_statistics(problem)
    fields = dict(zip(problem.fields, table, strict=True))
    d = fields["pivot_log_odds" if problem.settings.soft else "log_odds"]
    d.copy_(torch.tensor(LOG_ODDS, dtype=torch.float64)[torch.arange(len(d)) % len(LOG_ODDS)])
    if not problem.settings.soft:  # the core reads the probability of the rest from it
        fields["log_prob"].copy_(torch.nn.functional.logsigmoid(d))
    for name in ("entropy", "log_sum", "rest_squares", "rest_cubes"):
        if name in fields:
            fields[name].copy_(torch.rand(len(d)).double())
    return table


@pytest.mark.parametrize("function", BACKWARD)
def test_coefficients(function):
    names, requests, soft = BACKWARD[function]
    z = torch.randn(56, V).double() * 3
    z[::3, 3] = -INF
    z[::7, 1:] = z[::7, 1:2]
    z[5, 1:] = -INF  # an empty rest
    problem = problem_of(z, soft, requests)
    weight = problem.tensors.class_weight
    table = any_statistics(problem)
    slopes = torch.tensor([1.0, -2.5, 0.0, 1e-300], dtype=torch.float64).repeat(len(z) // 4)
    partials = partials_of(problem, dict.fromkeys(names, slopes))
    ours = native.row_gradient(problem, table, partials)
    if soft:  # the text has no class weights in its target
        problem = problem.replace(target=problem.tensors.target * weight)
    text = by_coefficients(problem, table, partials)
    if not soft:
        text = torch.where(problem.tensors.target[:, None] < 0, 0.0, text)
    atol = 1e-17 if "powers" in function else 1e-307  # p_j - sum_k p_k^2 may be nearly 0
    torch.testing.assert_close(ours, text, rtol=4e-15, atol=atol, equal_nan=True)
