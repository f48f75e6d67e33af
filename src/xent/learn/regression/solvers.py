"""Minimisers of the objective of a linear classifier: ours by Newton and for l1, and SciPy's.

Every solver stops where no entry of the gradient exceeds ``tol``. This gradient is taken in
coordinates in which the objective has a curvature of about 1, so that ``tol`` means the same in
metres and in miles. In these coordinates, the gradient in double precision also tells how many nats
are left above the minimum.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse.linalg import cg
from threadpoolctl import ThreadpoolController
from torch import Tensor

from .coordinates import Whitening, symmetric_operator
from .newton import by_newton
from .proximal import by_gradients, by_proximal_newton
from .task import Solution, SolverTask, enough

EPS = float(np.finfo(np.float64).eps)
SMALL = 50_000  # scores (rows times classes) up to which a Newton method is chosen
FEW, FULL = 2000, 1000  # coefficients up to which the full Hessian is chosen, with l1 and without
WORK = 4e9  # products that a full Hessian may take
ENTRIES = 20_000_000  # rows times coefficients that a full Hessian may take
STAGE = 40  # iterations between checks of the curvature

SMOOTH = {"lbfgs": "L-BFGS-B", "newton-cg": "Newton-CG", "trust-region": "trust-krylov"}
FIRST_ORDER = ("gradient-descent", "accelerated")
SOLVERS = ("auto", "newton", *SMOOTH, *FIRST_ORDER, "proximal-newton")


def solve(task: SolverTask, start: Tensor, solver: str) -> Solution:
    """Minimise from coefficients ``(K, columns)`` on, by one of ``SOLVERS``.

    Where there is l1, ``"auto"`` takes the proximal Newton method for few coefficients, whose
    Hessian is small, and accelerated gradients for many. Without l1 it takes Newton's method, with
    the full Hessian for few coefficients and with products of the Hessian for few rows: Newton's
    method needs the fewest steps where rows are sure. Large problems get L-BFGS, which needs the
    fewest sweeps over the rows where they are not.

    Features far from 0 are moved to 0 first, if an intercept without a penalty can make up for the
    move; at the end the intercept is moved back.
    """
    objective = task.objective
    design = objective.design.prepared(objective.design.offsets)
    free = design.intercept and not bool(objective.penalty[:, -1].any())
    offsets = design.far_offsets() if free else design.offsets
    near = replace(objective, design=design.prepared(offsets))
    with _thread_pools().limit(limits={"libscipy_openblas": 1}):
        solution = _minimise(replace(task, objective=near), _moved(start, offsets), solver)
    w = _moved(solution.w, -offsets)
    lost = objective.rounding(w)
    if bool(offsets.any()):
        lost = max(lost, objective.value(w) - near.value(solution.w))
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
    rows = task.objective.design.rows
    if task.l1 is not None:
        few = start.numel() <= min(FEW, ENTRIES // rows)
        return "proximal-newton" if few else "accelerated"
    if _full(task, start):
        return "newton"
    if rows * len(start) > SMALL:
        return "lbfgs"
    return "newton-cg" if bool(task.objective.penalty.any()) else "trust-region"


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


@cache
def _thread_pools() -> ThreadpoolController:
    """Return the thread pools of NumPy and SciPy, whose threads wait for work by spinning.

    Between products, the spinning threads would take the cores from PyTorch: 20,000 rows of 784
    features take 2.7 times as long on two cores.
    """
    return ThreadpoolController()


@np.errstate(divide="ignore", invalid="ignore", over="ignore")  # SciPy divides by a gain of 0
def by_scipy(task: SolverTask, start: Tensor, method: str) -> Solution:
    """Minimise a smooth objective by one of SciPy's methods, in whitened coordinates.

    A round ends when the method stops or most of the curvature is gone; the next round has new
    coordinates. The last round is the first that leaves little or gains no more than rounding.
    """
    objective, w = task.objective, start
    history = [objective.value(start)]
    while True:
        before = history[-1]
        white = Whitening(objective, w)
        result = _by_scipy_in(white, task, w, method, task.max_iter - len(history) + 1, history)
        w = white.to_coefficients(torch.from_numpy(result.x).view(w.shape))
        w, left = newton_step(Whitening(objective, w), w)
        value = history[-1] = objective.value(w)
        spent, gained = len(history) > task.max_iter, before - value
        noise = objective.design.noise * max(abs(value), 1e-3)
        if left <= enough(task, w, value) or spent or not gained > noise:
            return Solution(w, history, min(left, abs(value)))  # no loss here falls below 0


def newton_step(white: Whitening, w: Tensor) -> tuple[Tensor, float]:
    """Take one full Newton step; return the coefficients and the nats left above the minimum.

    The gradient judges the step, not the objective. A line search ends where the objective shows no
    change, and there the coefficients have only half of their digits.
    """
    objective = white.objective

    def product(v: np.ndarray) -> np.ndarray:
        direction = white.to_coefficients(torch.from_numpy(v).view(w.shape))
        return white.gradient(objective.hessian_product(w, direction)).flatten().numpy()

    def slope(w: Tensor) -> np.ndarray:
        return white.gradient(objective.gradient(w)).flatten().numpy()

    def solved(gradient: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the step, and an upper bound of its gain, as the curvature is about 1 here."""
        operator = symmetric_operator(product, gradient.size)
        step, _ = cg(operator, -gradient, rtol=1e-6, maxiter=100)
        rest = gradient + operator @ step
        return step, 0.5 * (abs(float(gradient @ step)) + float(rest @ rest))

    gradient = slope(w)
    step, left = solved(gradient)
    there = w + white.to_coefficients(torch.from_numpy(step).view(w.shape))
    after = slope(there)
    if np.abs(after).max() < np.abs(gradient).max():
        return there, solved(after)[1]
    return w, left


def _by_scipy_in(
    white: Whitening,
    task: SolverTask,
    start: Tensor,
    method: str,
    max_iter: int,
    history: list[float],
) -> Any:
    """Minimise in these coordinates until the end, or until they are stale."""
    objective = task.objective

    def coefficients(v: np.ndarray) -> Tensor:
        return white.to_coefficients(torch.from_numpy(v).view(start.shape))

    def function(v: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective.value_and_gradient(coefficients(v))
        return value, white.gradient(gradient).flatten().numpy()

    def hessian_product(v: np.ndarray, direction: np.ndarray) -> np.ndarray:
        product = objective.hessian_product(coefficients(v), coefficients(direction))
        return white.gradient(product).flatten().numpy()

    def callback(intermediate_result: Any) -> None:
        history.append(float(intermediate_result.fun))
        task.report(history[-1])
        if len(history) % STAGE == 0 and white.stale(coefficients(intermediate_result.x)):
            raise StopIteration

    options = {
        "L-BFGS-B": {"gtol": task.tol, "ftol": 4 * EPS, "maxfun": 20 * max_iter},
        "Newton-CG": {"xtol": 0.01 * task.tol},
        "trust-krylov": {"gtol": task.tol},
    }[method]
    return minimize(
        function, white.from_coefficients(start).flatten().numpy(), jac=True, method=method,
        hessp=hessian_product if method != "L-BFGS-B" else None, callback=callback,
        options={"maxiter": max_iter, **options},
    )  # fmt: skip
