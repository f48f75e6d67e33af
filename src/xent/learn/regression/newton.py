r"""Newton's method with the full Hessian, for few coefficients, and how far it is from the minimum.

The second derivatives of a loss by the scores of a row are sums of squares of differences between
scores, so the Hessian is a sum of squares of scaled rows. A Cholesky decomposition of it finds the
coordinates in which it is the identity. Sums of products of columns lose half of the digits; where
too few are left, a QR decomposition of the rows takes their place, with which two columns may agree
in 12 digits and still be told apart. In those coordinates the gradient g is the step, and gives the
distance from the minimum:

.. math:: f(W) - \min f \approx \tfrac12\, |g|^2

Where a loss is not convex, the eigenvalues of its Hessian in those coordinates count without their
signs, so that each step leads down.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .linear_objective import Objective
from .task import DIGITS, Solution, SolverTask, enough

EPS = float(np.finfo(np.float64).eps)
ROUNDED = 20 * EPS  # share of the largest singular value below which others are rounding
RANK = 1e3 * EPS  # share below which a singular value has too few digits for a coordinate
TRIALS = 12  # most trials of a step, each more damped than the one before
FIRST_DAMPING = 1e-2  # first damping of a step that was too long, in units of the curvature
FAIR, GOOD = 1e-4, 0.5  # gain of a fair and of a good step, as shares of what the model promised
CONSTANT = 8.0  # times the rounding of a column; a spread below that is only rounding
WELL = 1e-4  # share of the largest singular value from which on sums of products keep 8 digits
MOVING = 0.5  # nats; a score that a step changes by more may lose its curvature
NEAR = 1e-3  # nats left below which the estimate of the model is checked again
PATIENCE = 3  # steps without a gain after which the rest is taken to be rounding


class Model:
    """The quadratic model of an objective about some coefficients.

    Args:
        objective: the objective, of a dense design in double precision.
        w: the coefficients, ``(K, columns)``.
        without: True for the scores of rows that are left out, ``(N, K)``.

    Attributes:
        left: about how far the objective is above its minimum, in nats.
        hidden: further nats, along directions that exist only because the rows were rounded.
        well: True if sums of products of columns keep enough digits.
    """

    def __init__(self, objective: Objective, w: Tensor, without: Tensor | None = None) -> None:
        self.objective, self.design, self.w = objective, objective.design, w
        blocks, slopes = objective.score_hessian(w), objective.slopes(w)  # (K, N, K) and (N, K)
        if not bool(blocks.isfinite().all()):
            raise ValueError("the loss is not finite; scale the features, or take another loss")
        if without is not None:
            blocks, slopes = _left_out(blocks, slopes, without)
        self.parts = _parts(blocks)
        if not self.parts:  # all rows are sure: take the largest curvature of a row
            most = objective.bound * self.design.weight
            self.parts = [
                (most, unit) for unit in torch.eye(len(w), dtype=torch.float64, device="cpu")
            ]
        # Softmax does not change if all scores of a row move alike. So without a penalty, a step
        # has mean 0 over the classes.
        self.alike = all(direction.sum() == 0 for _, direction in self.parts)
        self.idle = (
            ~objective.penalty.any(0)
            if self.alike
            else torch.tensor(False, dtype=torch.bool, device="cpu")
        )
        self.curvature = torch.stack([weight.abs() for weight, _ in self.parts]).sum(0)
        self.means = self._means()
        self.map, grains = self._maps()
        self.slopes = self._pulled(slopes, w, self.map)
        self.values, self.vectors = torch.ones_like(self.slopes), None
        if any(bool((weight < 0).any()) for weight, _ in self.parts):
            values, self.vectors = torch.linalg.eigh(self._hessian())
            self.values = values.abs().clamp_min(RANK)
            self.slopes = self.vectors.T @ self.slopes
        self.left = 0.5 * (self.slopes.square() / self.values).sum().item()
        self.hidden = 0.5 * self._pulled(slopes, w, grains).square().sum().item()

    def step(self, damping: float) -> tuple[Tensor, float]:
        """Return the damped step to the minimum of the model, and the gain that it promises."""
        length = self.slopes / (self.values + damping)
        gain = (self.slopes - 0.5 * self.values * length) @ length
        v = length if self.vectors is None else self.vectors @ length
        step = -self._back(self.map) @ v
        return step - torch.where(self.idle, step.mean(0), 0.0), gain.item()

    def certified(self) -> float:
        """Estimate the nats left, where rows of large curvature may hide a gain of the others.

        Far from the minimum, rows that are nearly sure may hold the coefficients in place until a
        step moves their scores far. So the scores that a step would move by more than ``MOVING``
        are left out, and a second model estimates the gain of the others. The left-out scores can
        gain no more than their classes cost by cross-entropy, which is added.
        """
        if self.vectors is not None:
            return self.left
        weight, slopes = self.design.weight.unsqueeze(1), self.objective.slopes(self.w)
        steps = self.design.scores(self.step(0.0)[0])
        if bool(self.alike):  # compare with the target, which alone has a negative slope
            steps = steps - steps.gather(1, slopes.argmin(1, keepdim=True))
            slopes = slopes.clamp(min=0)
        moving = steps.abs() > MOVING
        if not bool(moving.any()):
            return self.left
        chance = torch.where(moving, slopes.abs() / weight, 0.0).clamp(max=1 - EPS)
        lost = -(weight * torch.log1p(-chance)).sum().item()
        return max(self.left, lost + Model(self.objective, self.w, moving).left)

    def size(self, w: Tensor) -> float:
        """The square of the gradient at other coefficients, in these coordinates."""
        return self._pulled(self.objective.slopes(w), w, self.map).square().sum().item()

    def _means(self) -> Tensor:
        """Means of the columns, ``(features,)``, with the curvature of each row as weight.

        Zeros unless an intercept without a penalty can make up for the means.
        """
        if not self.design.intercept or bool(self.objective.penalty[:, -1].any()):
            return torch.zeros(self.design.features, dtype=torch.float64, device="cpu")
        return self.curvature @ self.design.x / self.curvature.sum()

    def _rows(self, some: slice, means: Tensor, ones: float = 1.0) -> Tensor:
        """Rows less the means, with their column of ones."""
        x = self.design.x[some] - means
        return torch.nn.functional.pad(x, (0, 1), value=ones) if self.design.intercept else x

    def _back(self, coordinates: Tensor) -> Tensor:
        """Return coefficients of the columns from coefficients of the columns less their means."""
        if not self.design.intercept:
            return coordinates
        shift = torch.einsum("f,kfr->kr", self.means, coordinates[:, :-1])
        return torch.cat([coordinates[:, :-1], coordinates[:, -1:] - shift.unsqueeze(1)], 1)

    def _maps(self) -> tuple[Tensor, Tensor]:
        """Return maps to coefficients, ``(K, columns, r)``, from coordinates with Hessian identity.

        The second map has the directions that exist only because the rows were rounded, as when one
        feature is given in two units.
        """
        low, high = (edge - self.means for edge in torch.aminmax(self.design.x, dim=0))
        unit = torch.maximum(low.abs(), high.abs())
        if self.design.intercept:
            unit = torch.nn.functional.pad(unit, (0, 1), value=1.0)
        unit = torch.where(unit > 0, unit, 1.0).expand(self.w.shape)
        given = torch.zeros_like(unit)
        for some in self.design.blocks():
            before = (self._rows(some, -self.design.offsets, 0.0) / unit[0]).square()
            weights = torch.stack([weight[some].abs() for weight, _ in self.parts])
            squares = torch.stack([direction.square() for _, direction in self.parts])
            given = given + squares.T @ (weights @ before)
        given = given.flatten().sqrt()
        maps = self._map_by_cholesky(unit, given)
        self.well = maps is not None
        if maps is not None:
            return maps.view(*self.w.shape, -1), maps.new_zeros(*self.w.shape, 0)
        return self._maps_by_qr(unit, given)

    def _map_by_cholesky(self, unit: Tensor, given: Tensor) -> Tensor | None:
        """Return the map ``(K * columns, r)`` from sums of products; None if digits would be lost.

        The sums take a tenth of the time of the QR decomposition. They are exact enough if the
        least eigenvalue of the Hessian is above 1e-8, in columns of length 1, and above rounding.
        """
        hessian = (self.objective.penalty / unit.square()).flatten().diag()
        for some in self.design.blocks():
            rows = self._rows(some, self.means) / unit[0]
            for weight, direction in self.parts:
                products = rows.T @ (weight[some].abs().unsqueeze(1) * rows)
                hessian = hessian + torch.kron(direction.outer(direction), products)
        if bool(self.idle.any()):  # no curvature where all scores of a row move alike: take some
            alike = torch.where(self.idle, hessian.diagonal().view(unit.shape).mean(0), 0.0)
            hessian = hessian + torch.kron(alike.new_ones(len(unit), len(unit)), alike.diag())
        length = hessian.diagonal().sqrt()
        factor, failed = torch.linalg.cholesky_ex(hessian / length.outer(length))
        if failed or not bool((length > 0).all()):
            return None
        identity = torch.eye(len(factor), dtype=torch.float64, device="cpu")
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        rounding = self.design.grain * (given / length).square().sum().sqrt().item()
        if not inverse.square().sum().sqrt().item() * max(WELL, CONSTANT * rounding) < 1:
            return None
        return inverse.T / (length * unit.flatten()).unsqueeze(1)

    def _maps_by_qr(self, unit: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps by a QR decomposition, which keeps all digits of the rows."""
        triangle = (self.objective.penalty.sqrt() / unit).flatten().diag()  # K * columns, squared
        for some in self.design.blocks():
            rows = self._rows(some, self.means) / unit[0]
            for weight, direction in self.parts:
                root = weight[some].abs().sqrt().unsqueeze(1)
                block = torch.kron(direction.unsqueeze(0), root * rows)  # (n, K * columns)
                triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R
        length = triangle.norm(dim=0)
        constant = length <= CONSTANT * self.design.grain * given  # only rounding
        triangle = torch.where(constant, 0.0, triangle)
        length = torch.where(length > 0, length, 1.0)
        _, values, vectors = torch.linalg.svd(triangle / length)
        grain = (vectors.square() @ (given / length).square()).sqrt() * self.design.grain
        real, grain = values > ROUNDED * values[0], grain.clamp_min(RANK * values[0].item())
        maps = vectors.T / values.clamp_min(EPS) / (length * unit.flatten()).unsqueeze(1)
        kept, grains = maps[:, real & (values > grain)], maps[:, real & (values <= grain)]
        return kept.view(*self.w.shape, -1), grains.view(*self.w.shape, -1)

    def _pulled(self, slopes: Tensor, w: Tensor, coordinates: Tensor) -> Tensor:
        """Turn slopes of the scores at ``w`` into the gradient by coordinates, ``(r,)``."""
        if coordinates.shape[-1] == 0:
            return torch.zeros(0, dtype=torch.float64, device="cpu")
        pull = self.objective.penalty * (w - self.objective.anchor)
        pulled = torch.einsum("kf,kfr->r", pull, self._back(coordinates))
        for some in self.design.blocks():
            rows = self._rows(some, self.means)
            if self.well:
                pulled = pulled + torch.einsum("kf,kfr->r", slopes[some].T @ rows, coordinates)
                continue
            for of_score, to in zip(slopes[some].T, coordinates, strict=True):
                pulled = pulled + of_score @ (rows @ to)
        return pulled

    def _hessian(self) -> Tensor:
        """Return the Hessian by these coordinates, ``(r, r)``."""
        back = self._back(self.map).flatten(0, 1)
        hessian = back.T @ (self.objective.penalty.reshape(-1, 1) * back)
        for some in self.design.blocks():
            rows = self._rows(some, self.means)
            for weight, direction in self.parts:
                scores = rows @ torch.einsum("k,kfr->fr", direction, self.map)
                hessian = hessian + scores.T @ (weight[some].unsqueeze(1) * scores)
        return hessian


def _left_out(blocks: Tensor, slopes: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Return second and first derivatives by the scores, without the scores in ``which``.

    ``which``, ``(N, K)``, is True for the scores of rows that are left out. The other scores of the
    row take over what keeps the sums of the derivatives over the scores of a row at 0.
    """
    blocks, slopes = blocks.clone(), slopes.clone()
    taken = torch.where(which, slopes, 0.0)
    alike = slopes.sum(1).abs() <= 100 * EPS * slopes.abs().amax(1)
    slopes = slopes - taken
    lowest = slopes.argmin(1, keepdim=True)
    back = torch.where(alike, taken.sum(1), 0.0).unsqueeze(1)
    slopes = slopes.scatter_add(1, lowest, back)
    for k in range(len(blocks)):
        for j in range(k):
            gone = which[:, k] | which[:, j]
            shared = torch.where(gone, blocks[k, :, j], 0.0)
            for a, b in ((k, j), (j, k)):
                blocks[a, :, b] -= shared
                blocks[a, :, a] += shared
        if len(blocks) == 1 or not bool(alike.all()):
            blocks[k, :, k] = torch.where(which[:, k], 0.0, blocks[k, :, k])
    return blocks, slopes


def _parts(blocks: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Second derivatives by two scores of a row, ``(K, N, K)``, as sums of squares of differences.

    Each part has a weight for each row, ``(N,)``, and a direction among the scores, ``(K,)``. For a
    softmax the weight is the product of two probabilities, which has all its digits, and the
    direction is the difference of their scores.
    """
    unit = torch.eye(len(blocks), dtype=torch.float64, device="cpu")
    parts = []
    for k, block in enumerate(blocks):
        own = block[:, k] + (block.sum(1) - block[:, k])
        own = torch.where(own.abs() > 100 * EPS * block[:, k].abs(), own, 0.0)
        parts.append((own, unit[k]))
        parts += [(-block[:, j], unit[k] - unit[j]) for j in range(k)]
    return [(weight, direction) for weight, direction in parts if bool(weight.any())]


def by_newton(task: SolverTask, start: Tensor, history: list[float] | None = None) -> Solution:
    """Minimise by Newton's method; each step is damped until it gains what the model promised.

    The last step is judged by the gradient, because the objective shows no change there.

    Args:
        task: what is to be minimised, over a dense design in double precision.
        start: where to begin, ``(K, columns)``.
        history: the objective at each iteration of the method that ran before.
    """
    objective, w, damping = task.objective, start, 0.0
    value = objective.value(w)
    history = history or [value]
    before, idle = torch.inf, 0
    while True:
        model, limit = Model(objective, w), enough(task, w, value)
        left = model.left
        if left <= limit:
            left = model.certified()
        idle, before = idle + (model.left > 0.5 * before), model.left
        if left <= limit or len(history) > task.max_iter or idle == PATIENCE:
            break
        noise = DIGITS * max(abs(value), 1e-3)
        for trial in range(TRIALS):
            step, promised = model.step(damping)
            there = objective.value(w + step)
            if value - there >= FAIR * promised - noise:
                break
            damping = max(damping, FIRST_DAMPING) * 10.0**trial
        else:
            break
        if value - there >= GOOD * promised:
            damping = damping / 10 if damping > FIRST_DAMPING else 0.0
        idle = 0 if value - there > noise else idle
        w, value = w + step, there
        history.append(value)
        task.report(value)
    step, _ = model.step(0.0)
    if limit < left < NEAR:
        left = max(left, model.certified())
    elif left <= limit and model.size(w + step) < model.size(w):
        w = w + step
        history[-1] = objective.value(w)
    return Solution(w, history, left + model.hidden)
