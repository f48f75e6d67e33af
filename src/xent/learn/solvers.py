"""Minimisers of the objective of a linear classifier: SciPy's, and gradient descent.

All stop where no entry of the gradient exceeds ``tol``, in coordinates in which the features have
about unit size (:class:`~xent.learn.linear_objective.Whitening`), so that ``tol`` means the same in
metres and in miles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg, eigsh
from torch import Tensor

from .linear_objective import Design, Objective, Standardising, Whitening

EPS = float(np.finfo(np.float64).eps)
SMALL = 50_000  # scores
STAGE = 20  # iterations between looks at the curvature
STOPPED = 99  # what SciPy calls a run that its callback ended
NOISE = 1e-12  # of an objective, relative: what a step may miss its promise by

SMOOTH = {"lbfgs": "L-BFGS-B", "newton-cg": "Newton-CG", "trust-region": "trust-krylov"}
FIRST_ORDER = ("gradient-descent", "accelerated")
SOLVERS = ("auto", *SMOOTH, *FIRST_ORDER)


@dataclass(frozen=True)
class Solution:
    """Where a solver stopped.

    Attributes:
        w: coefficients, ``(K, columns)``.
        history: the objective after each iteration, the start first.
        converged: whether the gradient came down to ``tol``, or the objective to its last digit.
    """

    w: Tensor
    history: list[float]
    converged: bool

    @property
    def iterations(self) -> int:
        """How many there were."""
        return len(self.history) - 1


@dataclass(frozen=True)
class Task:
    """What is to be minimised, how exactly, and who wants to hear of it.

    Attributes:
        objective: the smooth part.
        l1: weight of the absolute value of each coefficient, ``(K, columns)``, or None.
        tol: largest entry of the gradient at the end.
        max_iter: most iterations.
        report: called with the objective after each iteration.
    """

    objective: Objective
    l1: Tensor | None
    tol: float
    max_iter: int
    report: Callable[[float], None]

    def solve(self, start: Tensor, solver: str) -> Solution:
        """Minimise from coefficients ``(K, columns)`` on, by one of ``SOLVERS``.

        ``"auto"`` takes accelerated proximal gradients where there is l1. Else Newton's method for
        what is small, which needs the fewest steps where rows are sure, with a trust region where
        nothing keeps the coefficients from growing; and L-BFGS for what is large, which needs the
        fewest sweeps over the rows where they are not.
        """
        if solver == "auto":
            solver = self._choice(len(start))
        if solver in SMOOTH:
            return by_scipy(self, start, SMOOTH[solver])
        return by_gradients(self, start, accelerate=solver == "accelerated")

    def _choice(self, columns: int) -> str:
        if self.l1 is not None:
            return "accelerated"
        if self.objective.design.rows * columns > SMALL:
            return "lbfgs"
        return "newton-cg" if bool(self.objective.penalty.any()) else "trust-region"


@np.errstate(divide="ignore", invalid="ignore", over="ignore")  # where nothing is left to gain
def by_scipy(task: Task, start: Tensor, method: str) -> Solution:
    """Minimise a smooth objective by one of SciPy's methods, in whitened coordinates.

    New coordinates are taken when most of the curvature is gone.
    """
    objective, w = task.objective, start
    history = [objective.value_and_gradient(start)[0]]
    while True:
        white = Whitening(objective, w)
        left = task.max_iter - (len(history) - 1)
        result = _by_scipy_in(white, task, w, method, left, history)
        w = white.to_coefficients(torch.from_numpy(result.x).view(w.shape))
        # A line search fails where there is nothing to gain but noise; that is the end, too.
        noise = objective.design.noise * max(abs(result.fun), 1e-3)
        converged = bool(result.success) or 0.5 * float(np.square(result.jac).sum()) <= noise
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
    step, _ = cg(linear_operator(product, gradient.size), -gradient, rtol=1e-6, maxiter=100)
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


def by_gradients(task: Task, start: Tensor, *, accelerate: bool) -> Solution:
    r"""Descend by the gradient with the step 1/L, and shrink by l1 after each step.

    L is an upper bound of the curvature: that of the loss in the scores times the largest
    eigenvalue of the covariance of the standardised features. For losses more curved than
    cross-entropy it is doubled where a step gains less than L promises. Accelerated by Nesterov's
    momentum, which starts anew whenever the objective rises.
    """
    objective = task.objective
    standard = Standardising(objective.design)
    l1 = torch.zeros_like(start) if task.l1 is None else task.l1 / standard.scale
    bound = objective.bound * largest_curvature(objective.design, standard)
    bound += (objective.penalty / standard.scale.square()).max().item()

    def slope(place: Tensor) -> tuple[float, Tensor]:
        value, gradient = objective.value_and_gradient(standard.to_coefficients(place))
        return value, standard.gradient(gradient)

    at = ahead = standard.from_coefficients(start)
    momentum = 1.0
    smooth, gradient = slope(at)
    history, converged = [smooth + (l1 * at.abs()).sum().item()], False
    while len(history) <= task.max_iter and not converged:
        landed = shrink(ahead - gradient / bound, l1 / bound)
        step = landed - ahead
        landed_smooth, landed_gradient = slope(landed)
        promised = smooth + ((gradient + bound / 2 * step) * step).sum().item()
        if landed_smooth > promised + NOISE * abs(promised):
            bound *= 2
            continue
        value = landed_smooth + (l1 * landed.abs()).sum().item()
        if momentum > 1 and value > history[-1]:
            ahead, momentum = at, 1.0
            smooth, gradient = slope(at)
            continue
        converged = bound * step.abs().max().item() <= task.tol
        history.append(value)
        task.report(value)
        if accelerate:
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead, momentum = landed + (momentum - 1) / following * (landed - at), following
            smooth, gradient = slope(ahead)
        else:
            ahead, smooth, gradient = landed, landed_smooth, landed_gradient
        at = landed
    return Solution(standard.to_coefficients(at), history, converged)


def shrink(w: Tensor, by: Tensor) -> Tensor:
    """Bring each entry nearer to 0, and those nearer than ``by`` to 0."""
    return w.sign() * (w.abs() - by).clamp_min(0)


def largest_curvature(design: Design, standard: Standardising) -> float:
    """The largest eigenvalue of the mean products of the standardised columns."""

    def product(v: np.ndarray) -> np.ndarray:
        direction = standard.to_coefficients(torch.from_numpy(v.reshape(1, -1).copy()))
        weighted = design.scores(direction) * design.weight.unsqueeze(1)
        return standard.gradient(design.pull_back(weighted)).flatten().numpy()

    size = design.columns
    if size < 3:  # too few for Lanczos
        return float(np.linalg.eigvalsh(np.stack([product(e) for e in np.eye(size)]))[-1])
    found: Any = eigsh(linear_operator(product, size), k=1, v0=np.ones(size), maxiter=100 * size)
    return float(found[0][0])


def linear_operator(product: Callable[[np.ndarray], np.ndarray], size: int) -> Any:
    """SciPy's operator of a symmetric matrix that is known by its products."""
    operator: Any = LinearOperator  # whose stubs know only its subclasses
    return operator((size, size), matvec=product, dtype=np.float64)
