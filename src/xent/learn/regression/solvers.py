"""Minimisers of the objective of a linear classifier: ours by Newton and for l1, and SciPy's.

Every solver stops where no entry of the gradient exceeds ``tol``. This gradient is taken in
coordinates in which the objective has a curvature of about 1, so that ``tol`` means the same in
metres and in miles. In these coordinates, the gradient in double precision also tells how many nats
are left above the minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .coordinates import Whitening, symmetric_operator
from .linear_objective import SINGLE
from .newton import by_newton
from .proximal import by_gradients, by_proximal_newton
from .shares import one_blas_thread
from .task import Solution, SolverTask, enough

EPS = float(np.finfo(np.float64).eps)
SMALL = 50_000  # scores (rows times classes) up to which a Newton method needs no penalty
FEW, FULL = 2000, 1000  # coefficients up to which the full Hessian is chosen, with l1 and without
WORK = 4e9  # products that a full Hessian may take
ENTRIES = 20_000_000  # rows times coefficients that a full Hessian may take
STAGE = 40  # iterations between checks of the curvature
DIGIT, SLOW = 0.1, 0.25  # what a Newton step leaves of the gradient; a share above which it is idle
PRODUCTS = 100  # products with the Hessian that a Newton step may take
LITTLE = 0.01  # share of the nats that are enough; a Newton step that leaves less is exact enough

SMOOTH = {"lbfgs": "L-BFGS-B", "newton-cg": "Newton-CG", "trust-region": "trust-krylov"}
FIRST_ORDER = ("gradient-descent", "accelerated")
SOLVERS = ("auto", "newton", *SMOOTH, *FIRST_ORDER, "proximal-newton")


def solve(task: SolverTask, start: Tensor, solver: str) -> Solution:
    """Minimise from coefficients ``(K, columns)`` on, by one of ``SOLVERS``.

    Where there is l1, ``"auto"`` takes the proximal Newton method for few coefficients, whose
    Hessian is small, and accelerated gradients for many. Without l1 it takes Newton's method with
    the full Hessian for few coefficients, else L-BFGS; without any penalty and for few rows, where
    the rows become sure, Newton's method with products of the Hessian.

    Features far from 0 are moved to 0 first, if an intercept without a penalty can make up for the
    move; at the end the intercept is moved back.
    """
    objective = task.objective
    design = objective.design.prepared(objective.design.offsets)
    free = design.intercept and not bool(objective.penalty[:, -1].any())
    offsets = design.far_offsets() if free else design.offsets
    near = replace(objective, design=design.prepared(offsets))
    with one_blas_thread():
        solution = _minimise(replace(task, objective=near), _moved(start, offsets), solver)
    w = _moved(solution.w, -offsets)
    lost = objective.rounding(w)
    if bool(offsets.any()):  # the intercept is rounded; scores of far rows would add their rounding
        lost = max(lost, near.value(_moved(w, offsets)) - near.value(solution.w))
    return replace(solution, w=w, left=solution.left + lost)


def _moved(w: Tensor, offsets: Tensor) -> Tensor:
    """Return coefficients for features less an offset that give the same scores."""
    if not bool(offsets.any()):
        return w
    slopes = w[:, :-1]
    return torch.cat([slopes, w[:, -1:] + (slopes @ offsets).unsqueeze(1)], 1)


def _minimise(task: SolverTask, start: Tensor, solver: str) -> Solution:
    if solver == "auto":
        solver = _choice(task, start)
    if solver == "newton":
        if not _wide(task):
            raise ValueError(
                "solver='newton' takes rows of more than 4 million entries only if they are dense "
                "and in double precision; use solver='auto'"
            )
        return by_newton(task, start)
    if solver in SMOOTH:
        solution = by_scipy(task, start, SMOOTH[solver])
        if _full(task, start):
            return by_newton(task, solution.w, solution.history)
        wide = _widened(task, start)
        return by_newton(wide, solution.w, solution.history) if wide is not None else solution
    if solver == "proximal-newton":
        return by_proximal_newton(task, start)
    return by_gradients(task, start, accelerate=solver == "accelerated")


def _choice(task: SolverTask, start: Tensor) -> str:
    if task.l1 is not None:
        few = start.numel() <= min(FEW, ENTRIES // task.objective.design.rows)
        return "proximal-newton" if few else "accelerated"
    if _full(task, start):
        return "newton"
    few = task.objective.design.rows * len(start) <= SMALL
    return "trust-region" if few and not bool(task.objective.penalty.any()) else "lbfgs"


def _full(task: SolverTask, start: Tensor) -> bool:
    """Return True if the full Hessian is small enough."""
    size = start.numel()
    products = task.objective.design.rows * len(start) ** 2 * size**2
    return _wide(task) and size <= FULL and products <= WORK


def _widened(task: SolverTask, start: Tensor) -> SolverTask | None:
    """The task in double precision and dense, where a copy of the rows is small enough."""
    design = task.objective.design
    if design.rows * design.features > ENTRIES:
        return None
    x = torch.from_numpy(design.x.toarray()) if design.sparse else design.x
    near = type(design)(x.double().numpy(), design.weight, intercept=design.intercept)
    near.grain, near.offsets = design.grain, design.offsets
    wide = replace(task, objective=replace(task.objective, design=near))
    return wide if _full(wide, start) else None


def _wide(task: SolverTask) -> bool:
    """True if the rows are dense and in double precision."""
    design = task.objective.design
    return not design.sparse and design.x.dtype == torch.float64


@np.errstate(divide="ignore", invalid="ignore", over="ignore")  # SciPy divides by a gain of 0
def by_scipy(task: SolverTask, start: Tensor, method: str) -> Solution:
    """Minimise a smooth objective by one of SciPy's methods, then by Newton steps, in rounds.

    A round ends when the method stops or when other coordinates would be better; the next round
    has new ones. L-BFGS begins with columns that are only scaled, as whitening takes as long as
    many sweeps, and few data need it. Its sweeps are over rows in single precision, which take half
    the time, until a round gains no more than their rounding. The last round is the first that
    leaves little or gains no more than rounding.
    """
    objective, w, value = task.objective, start, torch.inf
    rough = objective.rough if method == "L-BFGS-B" else objective
    white = Whitening(rough, w, alone=method == "L-BFGS-B")
    history: list[float] = []
    while True:
        result, halted = _by_scipy_in(white, task, w, method, history)
        w = white.to_coefficients(torch.from_numpy(result.x).view(w.shape))
        spent = len(history) > task.max_iter
        if spent or not halted:
            before, noise = value, rough.design.noise * max(abs(history[-1]), 1e-3)
            w, left = polished(white, task, w, result, history)
            value, spent = history[-1], len(history) > task.max_iter
            idle = not before - value > noise
            if left <= enough(task, w, value) or spent or (idle and rough is objective):
                return Solution(w, history, min(left, abs(value)))  # no loss here falls below 0
            rough = objective if idle else rough
        white = Whitening(rough, w)


def polished(
    white: Whitening, task: SolverTask, w: Tensor, result: Any, history: list[float]
) -> tuple[Tensor, float]:
    """Take Newton steps, the gradient in double precision, until little is left.

    The gradient judges a step, not the objective. A line search ends where the objective shows no
    change, and there the coefficients have only half of their digits. Of the Hessian, a few digits
    are enough: each step makes the gradient about ten times smaller, or as small as it needs be.

    Args:
        white: the coordinates.
        task: what is to be minimised.
        w: the coefficients, ``(K, columns)``.
        result: SciPy's, with the gradient and perhaps the inverse of the Hessian that L-BFGS found.
        history: the objective at each iteration; the first step belongs to the last iteration.

    Returns:
        The coefficients, and the nats left above the minimum.
    """
    identity = symmetric_operator(lambda v: v, w.numel())
    inverse, gradient, steps = result.get("hess_inv", identity), result.jac, 0

    def product(v: np.ndarray) -> np.ndarray:
        direction = white.to_coefficients(torch.from_numpy(v).view(w.shape))
        return white.gradient(white.objective.hessian_product(w, direction)).flatten().numpy()

    def look(w: Tensor) -> tuple[float, np.ndarray]:
        value, gradient = task.objective.exact_value_and_gradient(w)
        return value, white.gradient(gradient).flatten().numpy()

    while True:
        little = LITTLE * enough(task, w, history[-1])
        step, left = newton_step(product, gradient, inverse, little)
        there = w + white.to_coefficients(torch.from_numpy(step).view(w.shape))
        value, after = look(there)
        before = float(gradient @ (inverse @ gradient))
        share = float(after @ (inverse @ after)) / before if before > 0 else torch.inf
        if not share < 1:
            if steps == 0:
                history[-1] = look(w)[0]
            return w, left
        w, gradient, left, steps = there, after, share * left, steps + 1
        history[-1:] = [value] if steps == 1 else [history[-1], value]
        task.report(value)
        if left <= enough(task, w, value) or share > SLOW or len(history) > task.max_iter:
            return w, left


def newton_step(
    product: Callable[[np.ndarray], np.ndarray], gradient: np.ndarray, inverse: Any, little: float
) -> tuple[np.ndarray, float]:
    """Return a step towards the minimum of a quadratic model, and the nats that it gains.

    Conjugate gradients end where a tenth of the gradient is left, or where a quarter of what the
    step gains is left and that is little.

    Args:
        product: multiplies the Hessian by a direction.
        gradient: the gradient at the start.
        inverse: about the inverse of the Hessian, an operator of SciPy.
        little: nats that need not be gained.
    """
    step, residual, gained = np.zeros_like(gradient), -gradient, 0.0
    towards = inverse @ residual
    first = size = float(residual @ towards)
    direction, goal = towards, DIGIT * float(np.linalg.norm(gradient))
    for _ in range(PRODUCTS):
        turned = product(direction)
        curvature = float(direction @ turned)
        if curvature == 0:  # nothing is left to be gained
            break
        length = size / curvature
        step, residual = step + length * direction, residual - length * turned
        gained += 0.5 * abs(length * size)
        towards = inverse @ residual
        before, size = size, float(residual @ towards)
        share = size / first
        if np.linalg.norm(residual) <= goal or (share <= SLOW and share * gained <= little):
            break
        direction = towards + (size / before) * direction
    return step, gained


def _by_scipy_in(
    white: Whitening,
    task: SolverTask,
    start: Tensor,
    method: str,
    history: list[float],
) -> tuple[Any, bool]:
    """Minimise in these coordinates.

    Return SciPy's result, and whether the method was halted because others would be better.
    """
    objective, halted = white.objective, False
    max_iter = task.max_iter - max(len(history) - 1, 0)

    def coefficients(v: np.ndarray) -> Tensor:
        return white.to_coefficients(torch.from_numpy(v).view(start.shape))

    def function(v: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective.value_and_gradient(coefficients(v))
        if not history:
            history.append(value)
        return value, white.gradient(gradient).flatten().numpy()

    def hessian_product(v: np.ndarray, direction: np.ndarray) -> np.ndarray:
        product = objective.hessian_product(coefficients(v), coefficients(direction))
        return white.gradient(product).flatten().numpy()

    def callback(intermediate_result: Any) -> None:
        history.append(float(intermediate_result.fun))
        task.report(history[-1])
        nonlocal halted
        if len(history) % STAGE == 0 and white.stale(coefficients(intermediate_result.x)):
            halted = True
            raise StopIteration

    # Near the rounding of single precision, a line search tries many steps in vain.
    noise = objective.design.noise
    rounded = noise if noise >= SINGLE else noise / 25
    options = {
        "L-BFGS-B": {
            "gtol": task.tol,
            "ftol": rounded,
            "maxfun": 20 * max_iter,
        },
        "Newton-CG": {"xtol": 0.01 * task.tol},
        "trust-krylov": {"gtol": task.tol},
    }[method]
    result = minimize(
        function, white.from_coefficients(start).flatten().numpy(), jac=True, method=method,
        hessp=hessian_product if method != "L-BFGS-B" else None, callback=callback,
        options={"maxiter": max_iter, **options},
    )  # fmt: skip
    return result, halted
