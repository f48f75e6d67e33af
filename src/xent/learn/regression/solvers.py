"""Minimisers of the objective of a linear classifier: SciPy's, and those for l1.

All stop where no entry of the gradient exceeds ``tol``, in coordinates in which the features have
about unit size (``Whitening``, ``Standardising``), so that ``tol`` means the same in metres and in
miles.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse.linalg import cg
from threadpoolctl import ThreadpoolController
from torch import Tensor

from .linear_objective import Whitening, symmetric_operator
from .proximal import by_gradients, by_proximal_newton
from .task import Solution, Task

EPS = float(np.finfo(np.float64).eps)
SMALL = 50_000  # scores
FEW = 2000  # coefficients
ENTRIES = 20_000_000  # rows times coefficients
STAGE = 40  # iterations between looks at the curvature
STOPPED = 99  # what SciPy calls a run that its callback ended

SMOOTH = {"lbfgs": "L-BFGS-B", "newton-cg": "Newton-CG", "trust-region": "trust-krylov"}
FIRST_ORDER = ("gradient-descent", "accelerated")
SOLVERS = ("auto", *SMOOTH, *FIRST_ORDER, "proximal-newton")


def solve(task: Task, start: Tensor, solver: str) -> Solution:
    """Minimise from coefficients ``(K, columns)`` on, by one of ``SOLVERS``.

    Where there is l1, ``"auto"`` takes the proximal Newton method for few coefficients, whose
    Hessian is at hand, and accelerated gradients for many. Else it takes Newton's method for
    what is small, which needs the fewest steps where rows are sure, with a trust region where
    nothing keeps the coefficients from growing; and L-BFGS for what is large, which needs the
    fewest sweeps over the rows where they are not.
    """
    if solver == "auto":
        solver = _choice(task, start)
    with _thread_pools().limit(limits={"libscipy_openblas": 1}):
        if solver in SMOOTH:
            return by_scipy(task, start, SMOOTH[solver])
        if solver == "proximal-newton":
            return by_proximal_newton(task, start)
        return by_gradients(task, start, accelerate=solver == "accelerated")


def _choice(task: Task, start: Tensor) -> str:
    rows = task.objective.design.rows
    if task.l1 is not None:
        few = start.numel() <= min(FEW, ENTRIES // rows)
        return "proximal-newton" if few else "accelerated"
    if rows * len(start) > SMALL:
        return "lbfgs"
    return "newton-cg" if bool(task.objective.penalty.any()) else "trust-region"


@cache
def _thread_pools() -> ThreadpoolController:
    """The pools of NumPy and SciPy, whose threads wait for work by spinning.

    Between our products they would take the cores from PyTorch's: left alone, 2.7 times as long for
    20,000 x 784 on two cores.
    """
    return ThreadpoolController()


@np.errstate(divide="ignore", invalid="ignore", over="ignore")  # where nothing is left to gain
def by_scipy(task: Task, start: Tensor, method: str) -> Solution:
    """Minimise a smooth objective by one of SciPy's methods, in whitened coordinates.

    New coordinates are taken when most of the curvature is gone.
    """
    objective, w = task.objective, start
    history, converged = [objective.value_and_gradient(start)[0]], False
    while True:
        white = Whitening(objective, w)
        left = task.max_iter - (len(history) - 1)
        result = _by_scipy_in(white, task, w, method, left, history)
        w = white.to_coefficients(torch.from_numpy(result.x).view(w.shape))
        # A line search fails where there is nothing to gain but noise; that is the end, too.
        noise = objective.design.noise * max(abs(result.fun), 1e-3)
        exhausted = 0.5 * float(np.square(result.jac).sum()) <= noise
        converged = bool(result.success) or exhausted or (converged and result.nit == 0)
        spent = len(history) > task.max_iter
        if spent or result.nit == 0 or not (result.status == STOPPED or white.stale(w)):
            break
    if method != "L-BFGS-B":
        w = newton_step(white, w)
    return Solution(w, history, converged)


def newton_step(white: Whitening, w: Tensor) -> Tensor:
    """One full step, judged by the gradient.

    A line search ends where the objective shows no change, at half the digits of the coefficients.
    """
    objective = white.objective

    def product(v: np.ndarray) -> np.ndarray:
        direction = white.to_coefficients(torch.from_numpy(v).view(w.shape))
        return white.gradient(objective.hessian_product(w, direction)).flatten().numpy()

    def slope(w: Tensor) -> np.ndarray:
        return white.gradient(objective.value_and_gradient(w)[1]).flatten().numpy()

    gradient = slope(w)
    step, _ = cg(symmetric_operator(product, gradient.size), -gradient, rtol=1e-6, maxiter=100)
    there = w + white.to_coefficients(torch.from_numpy(step).view(w.shape))
    return there if np.abs(slope(there)).max() < np.abs(gradient).max() else w


def _by_scipy_in(
    white: Whitening, task: Task, start: Tensor, method: str, max_iter: int, history: list[float]
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
