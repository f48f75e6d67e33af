"""Minimisers for l1: gradient descent with shrinking, and Newton's method with shrinking."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from .coordinates import Standardising, symmetric_operator
from .design import Design
from .task import UNSAID, Solution, SolverTask

NOISE = 1e-12  # relative rounding of an objective, by which a step may miss its promise
HALVINGS = 30  # halvings of a Newton step before it is given up
JOINT, JOINT_ENTRIES = 1000, 20_000_000  # most entries, and entries times rows, in one Hessian
RANK = 1e-13  # share of the largest eigenvalue of the Hessian below which others are rounding
LEAST_TOL = 1e-14  # violation below which all is rounding
TINY = 1e-30  # least curvature
MODEL_ITERATIONS, MODEL_TOL = 1000, 0.01  # inner problem: iterations, share of the violation


class Shrunken:
    """An objective with l1, in the coordinates of :class:`Standardising`.

    Args:
        task: what is to be minimised.

    Attributes:
        l1: weight of the absolute value of each entry, ``(K, columns)``.
    """

    def __init__(self, task: SolverTask) -> None:
        self.objective, self.tol = task.objective, task.tol
        self.standard = Standardising(self.objective.design)
        l1 = torch.zeros_like(self.objective.penalty) if task.l1 is None else task.l1
        self.l1 = l1 / self.standard.scale
        self.ridge = self.objective.penalty / self.standard.scale.square()

    def slope(self, place: Tensor) -> tuple[float, Tensor]:
        """The smooth part of the objective and its gradient by these coordinates."""
        value, gradient = self.objective.value_and_gradient(self.standard.to_coefficients(place))
        return value, self.standard.gradient(gradient)

    def absolute(self, place: Tensor) -> float:
        """The l1 part of the objective."""
        return (self.l1 * place.abs()).sum().item()

    def violation(self, place: Tensor, gradient: Tensor) -> Tensor:
        """Distance of the gradient of the smooth part from a gradient at a minimum, by entry.

        At a minimum that gradient is minus l1 times the sign of each entry; at an entry of 0, it is
        anything from -l1 to l1.
        """
        return _violation(place, gradient, self.l1)

    def judged(self, place: Tensor, gradient: Tensor) -> tuple[float, float]:
        """Return the largest violation and the nats left, both by the curvature here.

        Each entry is judged alone, in units in which its curvature is 1.
        """
        diagonal = self.objective.hessian_diagonal(self.standard.to_coefficients(place))
        diagonal = diagonal / self.standard.scale.square() + self.ridge
        relative = self.violation(place, gradient) / diagonal.clamp_min(TINY).sqrt()
        return relative.max().item(), 0.5 * relative.square().sum().item()

    def left(self, place: Tensor, gradient: Tensor) -> float:
        """Nats left above the minimum, by the Hessian of all entries where that matrix is small."""
        _, alone = self.judged(place, gradient)
        rows = self.objective.design.rows
        if place.numel() > JOINT or rows * place.numel() > JOINT_ENTRIES:
            return alone
        violation = self.violation(place, gradient)
        chosen = (place != 0) | (violation > 0)
        if not bool(chosen.any()):
            return alone
        signed = (gradient + self.l1 * place.sign()).sign() * violation
        hessian = self.hessian(place, chosen)
        if not bool(hessian.isfinite().all()):
            return alone
        unit = hessian.diagonal().abs().clamp_min(TINY).sqrt()
        values, vectors = torch.linalg.eigh(hessian / unit.outer(unit))
        along = vectors.T @ (signed[chosen] / unit)
        real = values > RANK * values[-1]
        return max(alone, 0.5 * (along[real].square() / values[real]).sum().item())

    def converged(self, place: Tensor, gradient: Tensor) -> bool:
        """True if no violation is above ``tol``, and at most ``UNSAID`` nats are left.

        Violations are those of the standardised features, and relative to the curvature. All may be
        small although many nats are left along a direction of little curvature; then ``tol`` is
        divided by 10.
        """
        near = self.violation(place, gradient).max().item() <= self.tol  # needs no curvature
        if not near or self.judged(place, gradient)[0] > self.tol:
            return False
        if self.tol < LEAST_TOL or self.left(place, gradient) <= UNSAID:
            return True
        self.tol /= 10
        return False

    def bound(self) -> float:
        """Upper bound of the curvature in any direction."""
        design = self.objective.design
        curvature = self.objective.bound * largest_curvature(design, self.standard)
        return curvature + self.ridge.max().item()

    def hessian(self, place: Tensor, chosen: Tensor) -> Tensor:
        """Return the Hessian of the smooth part by the M chosen entries, ``(M, M)``."""
        design, standard = self.objective.design, self.standard
        rows = self.objective.score_hessian(standard.to_coefficients(place))  # (K, N, K)
        columns = [of_score.nonzero()[:, 0] for of_score in chosen]
        x = [(design.dense(j) - standard.means[j]) / standard.scale[j] for j in columns]
        blocks = [
            [a.T @ (h[:, k, None] * b) for k, b in enumerate(x)]
            for a, h in zip(x, rows, strict=True)
        ]
        return (
            torch.cat([torch.cat(of_score, 1) for of_score in blocks]) + self.ridge[chosen].diag()
        )


def by_gradients(task: SolverTask, start: Tensor, *, accelerate: bool) -> Solution:
    r"""Descend by the gradient with the step 1/L, and shrink by l1 after each step.

    L is an upper bound of the curvature: that of the loss in the scores times the largest
    eigenvalue of the covariance of the standardised features. For losses more curved than
    cross-entropy, L is doubled where a step gains less than L promises. ``accelerate`` adds
    Nesterov's momentum, which starts anew whenever the objective rises.
    """
    f = Shrunken(task)
    bound = f.bound()
    at = ahead = f.standard.from_coefficients(start)
    momentum = 1.0
    smooth, gradient = f.slope(at)
    history, converged = [smooth + f.absolute(at)], f.converged(at, gradient)
    while len(history) <= task.max_iter and not converged:
        landed = shrink(ahead - gradient / bound, f.l1 / bound)
        step = landed - ahead
        landed_smooth, landed_gradient = f.slope(landed)
        promised = smooth + ((gradient + bound / 2 * step) * step).sum().item()
        if landed_smooth > promised + NOISE * abs(promised):
            bound *= 2
            continue
        value = landed_smooth + f.absolute(landed)
        if momentum > 1 and value > history[-1]:
            ahead, momentum = at, 1.0
            smooth, gradient = f.slope(at)
            continue
        converged = f.converged(landed, landed_gradient)
        history.append(value)
        task.report(value)
        if accelerate:
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead, momentum = landed + (momentum - 1) / following * (landed - at), following
            smooth, gradient = f.slope(ahead)
        else:
            ahead, smooth, gradient = landed, landed_smooth, landed_gradient
        at = landed
    left = f.left(at, f.slope(at)[1])
    return Solution(f.standard.to_coefficients(at), history, left)


def by_proximal_newton(task: SolverTask, start: Tensor) -> Solution:
    """Minimise the quadratic model of the smooth part, plus l1, again and again.

    The model has only the coefficients that are not 0, or would not stay 0. So its Hessian is a
    small matrix, and finding its minimum takes no sweep over the rows.
    """
    f = Shrunken(task)
    at = f.standard.from_coefficients(start)
    smooth, gradient = f.slope(at)
    history = [smooth + f.absolute(at)]
    while len(history) <= task.max_iter and not f.converged(at, gradient):
        violation, _ = f.judged(at, gradient)
        chosen = (at != 0) | (gradient.abs() > f.l1)
        goal = torch.zeros_like(at).masked_scatter(
            chosen,
            minimise_model(
                f.hessian(at, chosen), gradient[chosen], at[chosen], f.l1[chosen],
                MODEL_TOL * violation,
            ),
        )  # fmt: skip
        step = goal - at
        promised = (gradient * step).sum().item() + f.absolute(goal) - f.absolute(at)
        for halving in range(HALVINGS):
            length = 0.5**halving
            there = goal if halving == 0 else at + length * step
            smooth, slope = f.slope(there)
            value = smooth + f.absolute(there)
            if value <= history[-1] + 1e-4 * length * promised + NOISE * abs(value):
                break
        else:
            break
        at, gradient, gain = there, slope, history[-1] - value
        history.append(value)
        task.report(value)
        if f.tol < task.tol and gain < 10 * UNSAID:
            break  # the inner problem needs more iterations; the caller warns of what is left
    return Solution(f.standard.to_coefficients(at), history, f.left(at, gradient))


def minimise_model(
    hessian: Tensor, gradient: Tensor, start: Tensor, l1: Tensor, tol: float
) -> Tensor:
    """Minimise a quadratic function of M entries plus l1, by accelerated gradients.

    The units are those in which each entry has curvature 1.

    Args:
        hessian: of the function, ``(M, M)``; if it is not positive, its diagonal is raised.
        gradient: at the start.
        start: where to begin.
        l1: weight of the absolute value of each entry.
        tol: the violation at the end, in those units.
    """
    unit = hessian.diagonal().abs().clamp_min(TINY).sqrt()
    hessian, gradient, l1 = hessian / unit.outer(unit), gradient / unit, l1 / unit
    start = start * unit
    curvatures = torch.linalg.eigvalsh(hessian)
    lift = max(0.0, -curvatures[0].item())
    hessian = hessian + lift * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    most = curvatures[-1].item() + lift + TINY
    at = ahead = start
    momentum = 1.0
    for _ in range(MODEL_ITERATIONS):
        slope = gradient + hessian @ (ahead - start)
        landed = shrink(ahead - slope / most, l1 / most)
        if _violation(landed, gradient + hessian @ (landed - start), l1).max() <= tol:
            break
        if ((ahead - landed) * (landed - at)).sum() > 0:  # the momentum leads uphill
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead, momentum = landed + (momentum - 1) / following * (landed - at), following
        at = landed
    return landed / unit


def shrink(w: Tensor, by: Tensor) -> Tensor:
    """Move each entry towards 0 by ``by``, and entries nearer than that to 0."""
    return w.sign() * (w.abs() - by).clamp_min(0)


def _violation(place: Tensor, gradient: Tensor, l1: Tensor) -> Tensor:
    """Distance of each entry from the conditions of a minimum."""
    slack = torch.where(place == 0, l1, 0.0)
    return shrink(gradient + l1 * place.sign(), slack).abs()


def largest_curvature(design: Design, standard: Standardising) -> float:
    """The largest eigenvalue of the mean products of the standardised columns."""

    def product(v: np.ndarray) -> np.ndarray:
        direction = standard.to_coefficients(torch.from_numpy(v.reshape(1, -1).copy()))
        weighted = design.scores(direction) * design.weight.unsqueeze(1)
        return standard.gradient(design.pull_back(weighted)).flatten().numpy()

    size = design.columns
    if size < 3:  # too small for the Lanczos method
        return float(np.linalg.eigvalsh(np.stack([product(e) for e in np.eye(size)]))[-1])
    found = eigsh(symmetric_operator(product, size), k=1, v0=np.ones(size), maxiter=100 * size)
    return float(found[0][0])
