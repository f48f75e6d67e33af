"""Gradients of rows from the coefficients of the shared algebra, in float64."""

import math

import torch
from torch import Tensor

from xent.engines.rows import algebra
from xent.engines.rows.problem import Problem

INF = math.inf
TINY = 5e-324  # the smallest number of float64

# Rows of float64 logits, and their classes: ordinary, confident, hopeless, ties for the largest
# logit of the rest and with the target, masked classes, an empty rest.
LOGITS = (
    torch.tensor(
        [
            [0.3, -1.2, 2.0, 0.1, -0.7],
            [40.0, -1.0, 0.5, 0.0, -3.0],
            [-60.0, 1.0, 2.0, -1.0, 0.0],
            [1.0, 2.0, 2.0, -1.0, 2.0],
            [2.0, 2.0, 2.0, -1.0, 0.5],
            [0.5, -INF, 1.0, -INF, 0.25],
            [1.5, -INF, -INF, -INF, -INF],
        ],
        dtype=torch.float64,
    ),
    torch.zeros(7, dtype=torch.int64),
)


def partials_of(problem: Problem, given: dict[str, Tensor]) -> list[Tensor | None]:
    """Return partials in the order of the table."""
    assert given.keys() <= set(problem.fields)
    return [given.get(name) for name in problem.fields]


def by_coefficients(problem: Problem, table: Tensor, partials: list[Tensor | None]) -> Tensor:
    """Return the gradient of (N, V) logits without a transform, from the coefficients."""
    p, s = problem, dict(zip(problem.fields, table, strict=True))
    zero = torch.zeros_like(s["lse"])
    of = {k: zero if g is None else g for k, g in zip(p.fields, partials, strict=True)}
    unit = torch.where(s["sum"] == 0, 0.0, 1 / torch.where(s["sum"] == 0, 1.0, s["sum"]))
    d, pivot, k = _of_target(p, s, of)
    everything = zip(k, _of_requests(d, unit, s, of), strict=True)
    k = algebra.Coefficients(*[a + b for a, b in everything])

    weight = torch.ones_like(p.logits) if p.tensors.mean_weight is None else p.tensors.mean_weight
    weight = torch.where(p.logits == -INF, 0.0, weight.expand_as(p.logits))  # (N, V)
    q = p.tensors.target if p.settings.soft else torch.zeros_like(p.logits)
    x = p.logits - torch.where(s["shift"] == -INF, 0.0, s["shift"])[:, None]  # (N, V)
    wide = algebra.Coefficients(*[c[:, None] for c in k])
    g = algebra.gradient_at(x.clamp(min=-1e4), unit[:, None], weight, wide) + wide.soft * q
    pivot = pivot[:, None]
    at_pivot = k.at_pivot[:, None] + wide.mean * weight.gather(1, pivot.clamp(min=0))
    g = torch.where(torch.arange(g.shape[1]) == pivot, at_pivot, g)
    if p.settings.soft or "rest_top" not in s:
        return g
    top, found = s["rest_top"].to(torch.int64)[:, None], s["rest_top_logit"] != -INF
    extra = torch.where(found, of["rest_top_logit"], 0.0)[:, None]
    return g.scatter_add(1, top, extra)


def _of_target(p: Problem, s: dict[str, Tensor], of: dict[str, Tensor]):
    """Return log-odds of the pivot, the pivot, and coefficients by the fields of every loss."""
    zero = torch.zeros_like(s["lse"])
    common = of["lse"], of["log_prob"], of["log_odds"], of["target"]
    if not p.settings.soft:
        d, pivot, soft = s["log_odds"], p.tensors.target, zero
        all_, at_pivot = algebra.coefficients_of_index(d, *common)
    else:
        d, pivot = s["pivot_log_odds"], s["top"].to(torch.int64)
        own = p.tensors.target.gather(1, pivot[:, None])[:, 0].double()
        found = algebra.coefficients_of_soft(d, own, s["mass"], s["log_prob"], *common)
        all_, at_pivot, soft = found
    return d, pivot, algebra.Coefficients(all_, at_pivot, zero, zero, zero, zero, soft)


def _of_requests(d: Tensor, unit: Tensor, s: dict[str, Tensor], of: dict[str, Tensor]):
    """Return the coefficients by the fields that a loss may request."""
    zero = torch.zeros_like(d)
    all_, at_pivot, spread, square, cube, mean = (zero,) * 6
    if "entropy" in s:
        all_, at_pivot, spread = algebra.coefficients_of_entropy(
            d, s["log_sum"], s["entropy"], of["entropy"]
        )
    if "rest_squares" in s or "rest_cubes" in s:
        more, more_at_pivot, square, cube = algebra.coefficients_of_powers(
            d, unit, s.get("rest_squares", zero), s.get("rest_cubes", zero),
            of.get("rest_squares", zero), of.get("rest_cubes", zero),
        )  # fmt: skip
        all_, at_pivot = all_ + more, at_pivot + more_at_pivot
    if "mean" in s:
        mean = algebra.coefficient_of_mean(s["support"], of["mean"])
    return algebra.Coefficients(all_, at_pivot, spread, square, cube, mean, zero)
