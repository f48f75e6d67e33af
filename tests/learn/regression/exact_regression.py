"""A slow exact solver of penalised softmax regression, and data sets that are hard to fit.

Everything is in `numpy.longdouble`, 64 bits of mantissa on x86, and nothing is shared with the
library: Newton's method on columns made orthonormal by Gram and Schmidt, with a matrix of normal
equations that is solved by Cholesky's method, loop by loop.
"""

from typing import Any, NamedTuple

import numpy as np

WIDE = np.longdouble
Array = Any


class Problem(NamedTuple):
    """Rows, indices of classes, weights of rows, and the settings of the estimator."""

    name: str
    x: Array
    y: Array
    weight: Array
    C: float
    intercept: bool


def objective(problem: Problem, coef: Array, intercept: Array) -> float:
    """Return the objective of the estimator at coefficients ``(classes, features)``."""
    x, weight = problem.x.astype(WIDE), problem.weight.astype(WIDE)
    scores = x @ coef.T.astype(WIDE) + intercept.astype(WIDE)
    if scores.shape[1] == 1:
        scores = np.hstack([np.zeros_like(scores), scores])
    total, penalty = weight.sum(), np.square(coef.astype(WIDE)).sum() / 2 / WIDE(problem.C)
    return (weight @ _losses(scores, problem.y) + penalty) / total


def least(problem: Problem, coef: Array, intercept: Array, steps: int = 60) -> float:
    """Return the least objective that Newton's method finds from 0 and from these coefficients."""
    starts = [np.zeros_like(coef, WIDE), coef.astype(WIDE)]
    shifts = [np.zeros_like(intercept, WIDE), intercept.astype(WIDE)]
    return min(_descend(problem, *start, steps) for start in zip(starts, shifts, strict=True))


def _losses(scores: Array, y: Array) -> Array:
    """Return cross-entropies, also accurate if they are small."""
    lead = scores - scores[np.arange(len(y)), y][:, None]
    lead[np.arange(len(y)), y] = -np.inf
    top = lead.max(1)
    rest = np.exp(lead - top[:, None]).sum(1)
    return np.where(top > 0, top, 0) + np.log1p(
        np.where(top > 0, np.exp(-np.abs(top)) + rest - 1, rest * np.exp(-np.abs(top)))
    )


def _descend(problem: Problem, coef: Array, intercept: Array, steps: int) -> float:
    x, weight, y = problem.x.astype(WIDE), problem.weight.astype(WIDE), problem.y
    total, classes = weight.sum(), len(coef)
    weight, ridge = weight / total, 1 / (WIDE(problem.C) * total)
    if problem.intercept:
        middle = np.median(x, 0)
        x, intercept = x - middle, intercept + coef @ middle
        x = np.hstack([np.ones((len(x), 1), WIDE), x])
        coef = np.hstack([intercept[:, None], coef])
    back, q = _orthonormal(x, weight)  # x @ back = q
    # Coefficients of columns that depend on others change nothing but the penalty.
    keep = np.eye(x.shape[1], dtype=WIDE)
    keep[:1] *= not problem.intercept
    if ridge:
        back, q = np.diag(1 / np.maximum(np.abs(x).max(0), WIDE(1e-300))), None
        q = x @ back
    penalty = ridge * back.T @ keep @ back
    v = _solved_for(back, coef) if ridge else (weight[:, None] * q).T @ (x @ coef.T)

    def value(v: Array) -> Any:
        z = q @ v
        z = np.hstack([np.zeros_like(z), z]) if classes == 1 else z
        return weight @ _losses(z, y) + (v * (penalty @ v)).sum() / 2

    now, damping = value(v), WIDE(0)
    for _ in range(steps):
        z = q @ v
        z = np.hstack([np.zeros_like(z), z]) if classes == 1 else z
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        slopes = p.copy()
        slopes[np.arange(len(y)), y] = 0
        slopes[np.arange(len(y)), y] = -slopes.sum(1)
        chosen = [1] if classes == 1 else range(classes)
        gradient = q.T @ (weight[:, None] * slopes[:, chosen]) + penalty @ v
        r = q.shape[1]
        hessian = np.zeros((classes * r, classes * r), WIDE)
        for a, k in enumerate(chosen):
            for b, j in enumerate(chosen):
                others = p[:, [c for c in range(p.shape[1]) if c != k]].sum(1)
                h = p[:, k] * (others if k == j else -p[:, j])
                block = (q * (weight * h)[:, None]).T @ q + (k == j) * penalty
                hessian[a * r : (a + 1) * r, b * r : (b + 1) * r] = block
        unit = np.sqrt(np.maximum(np.diag(hessian), WIDE(1e-4000)))
        for _ in range(12):
            matrix = hessian / np.outer(unit, unit) + np.diag(
                np.full(len(unit), damping + WIDE(1e-17))
            )
            step = -_cholesky_solve(matrix, gradient.T.ravel() / unit) / unit
            there = v + step.reshape(classes, r).T
            after = value(there)
            if after <= now:
                break
            damping = max(damping * 100, WIDE(1e-8))
        else:
            break
        damping = damping / 100 if damping > 1e-8 else WIDE(0)
        v, now = there, after
    return now


def _solved_for(back: Array, coef: Array) -> Array:
    return (coef / np.diag(back)).T


def _orthonormal(x: Array, weight: Array) -> tuple[Array, Array]:
    """Make columns orthonormal under the weights; return the matrix that does it, and them."""
    root = np.sqrt(weight)[:, None]
    back, made = [], []
    for j in range(x.shape[1]):
        size = np.abs(x[:, j]).max()
        if size == 0:
            continue
        column, mix = x[:, j] / size, np.zeros(x.shape[1], WIDE)
        mix[j] = 1 / size
        whole = np.sqrt(((root[:, 0] * column) ** 2).sum())
        for _ in range(2):
            for other, their in zip(made, back, strict=True):
                share = (weight * other) @ column
                column, mix = column - share * other, mix - share * their
        length = np.sqrt(((root[:, 0] * column) ** 2).sum())
        if length > 1e-15 * whole:
            made.append(column / length)
            back.append(mix / length)
    return np.array(back).T, np.array(made).T


def _cholesky_solve(matrix: Array, right: Array) -> Array:
    n = len(matrix)
    low = np.zeros_like(matrix)
    for j in range(n):
        pivot = matrix[j, j] - low[j, :j] @ low[j, :j]
        low[j, j] = np.sqrt(max(pivot, WIDE(1e-18)))
        low[j + 1 :, j] = (matrix[j + 1 :, j] - low[j + 1 :, :j] @ low[j, :j]) / low[j, j]
    half = np.zeros(n, WIDE)
    for j in range(n):
        half[j] = (right[j] - low[j, :j] @ half[:j]) / low[j, j]
    found = np.zeros(n, WIDE)
    for j in reversed(range(n)):
        found[j] = (half[j] - low[j + 1 :, j] @ found[j + 1 :]) / low[j, j]
    return found


# ---- data sets --------------------------------------------------------------------------------


def _columns(rng: np.random.Generator, rows: int) -> dict[str, Array]:
    """Return one column of each kind."""
    plain = rng.normal(size=rows)
    outlier = rng.normal(size=rows)
    outlier[rng.integers(rows)] = rng.choice([1e8, -1e8, 1e5, 99999999.0])
    lonely = np.zeros(rows)
    lonely[rng.integers(rows)] = 10.0 ** rng.uniform(-8, 8)
    missing = 1.7e9 + 1e4 * rng.random(rows)
    missing[rng.random(rows) < 0.1] = -1.0
    return {
        "plain": plain,
        "heavy": rng.standard_cauchy(rows) ** 3,
        "outlier": outlier,
        "lonely": lonely,
        "constant": np.full(rows, rng.choice([1.0, 7.0, 0.0, -0.1, 1e8, 1e-8, 1 / 3])),
        "nearly constant": rng.choice([1.0, 1e5, 1e8]) + 1e-6 * rng.normal(size=rows),
        "rare category": (np.arange(rows) < rng.integers(1, 4)) * 1.0,
        "category": (rng.random(rows) < 0.3) * 1.0,
        "unit": 10.0 ** rng.uniform(-12, 12) * rng.normal(size=rows),
        "timestamp": 1.7e9 + 1e4 * rng.random(rows),
        "missing as -1": missing,
        "counts": rng.poisson(0.3, rows) * 1.0,
        "lognormal": np.exp(4 * rng.normal(size=rows)),
    }


def hard_problem(seed: int) -> Problem:
    """Return a data set with a few columns of different kinds, and copies of them."""
    rng = np.random.default_rng(seed)
    rows, classes = int(rng.integers(12, 90)), int(rng.choice([2, 2, 3, 4]))
    made = _columns(rng, rows)
    names = list(rng.choice(list(made), size=rng.integers(1, 5), replace=False))
    x = np.stack([made[name] for name in names], 1)
    if rng.random() < 0.3:
        names.append("copy")
        x = np.c_[x, x[:, 0] * rng.choice([1.0, -1.0, 1e3, 0.1])]
    if rng.random() < 0.1:
        names.append("near copy")
        x = np.c_[x, x[:, 0] * (1 + 1e-8 * rng.normal(size=rows))]
    if rng.random() < 0.15:
        names.append("dummies")
        x = np.c_[x, np.eye(3)[rng.integers(3, size=rows)]]
    standard = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    scores = standard @ rng.normal(size=(x.shape[1], classes)) * rng.choice([0.0, 1.0, 3.0])
    y = (scores + rng.gumbel(size=scores.shape)).argmax(1)
    if rng.random() < 0.2:  # a rare class
        y = np.where(rng.random(rows) < 0.9, 0, y)
    y = np.unique(np.r_[y[:-2], 0, 1], return_inverse=True)[1]
    weight = np.ones(rows) if rng.random() < 0.7 else rng.integers(1, 4, rows) * 0.7
    C = float(rng.choice([np.inf, np.inf, 1.0, 1e-3, 1e3, 1e6]))
    intercept = bool(rng.random() < 0.85)
    settings = f"{classes} classes, C={C:g}{'' if intercept else ', no intercept'}"
    return Problem(f"{', '.join(names)}; {rows} rows, {settings}", x, y, weight, C, intercept)
