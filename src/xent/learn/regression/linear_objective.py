r"""The objective of a linear classifier: a mean loss of scores, and a penalty on coefficients.

.. math:: f(W) = \ell(\tilde X W^\top) + \tfrac12 \sum_{kj} \lambda_{kj} (W_{kj} - A_{kj})^2

:math:`\tilde X` are the rows with a column of ones for the intercept, W has a row for each score.
The scores are linear in W, so gradient and Hessian of any loss are pulled back by two products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import hstack
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

WHITENED = 4096  # features; more than these are only scaled, one by one
ROWS_PER_FEATURE = 8  # are enough to know how features vary together
PROBES = 2  # random directions that tell the curvature of a row
ALL = slice(None)
BLOCK = 1 << 16  # rows whose curvature is taken at once, as each takes 600 bytes meanwhile
STALE = 0.1  # of the curvature that coordinates were made for: time for new ones


class Design:
    """The rows of a data set; the column of ones is never stored.

    Args:
        x: features, ``(N, F)``: a NumPy array, or a sparse array of SciPy in CSR format.
        weight: of each row, ``(N,)``, with sum 1.
        intercept: whether there is a column of ones, as the last one.
    """

    def __init__(self, x: Any, weight: Tensor, *, intercept: bool) -> None:
        self.sparse = not isinstance(x, np.ndarray)
        self.x = x if self.sparse else torch.from_numpy(np.require(x, requirements=["C", "W"]))
        self.weight, self.intercept = weight, intercept
        self.rows, self.features = x.shape
        self.columns = self.features + intercept
        # Relative, of a mean loss of the scores: in single precision, that of the scores.
        self.noise = max(100 * np.finfo(np.float64).eps, float(np.finfo(x.dtype).eps))

    def with_ones(self) -> Any:
        """The rows with their column of ones, ``(N, columns)``, as arrays of NumPy or SciPy."""
        x = self.x if self.sparse else self.x.numpy()
        if not self.intercept:
            return x
        ones = np.ones((self.rows, 1))
        return hstack([x, ones]).tocsr() if self.sparse else np.hstack([x, ones])

    def joined(self, coef: np.ndarray, intercept: np.ndarray) -> Tensor:
        """Coefficients ``(K, columns)`` from those of the features and ``(K,)`` of the ones."""
        w = torch.from_numpy(coef).double()
        if not self.intercept:
            return w
        return torch.cat([w, torch.from_numpy(intercept).double().unsqueeze(1)], 1)

    def dense(self, columns: Tensor) -> Tensor:
        """Some columns of all rows, ``(N, M)``, float64."""
        features = columns[columns < self.features]
        rows: Any = self.x
        if self.sparse:
            x = torch.from_numpy(rows[:, features.numpy()].toarray())
        else:
            x = rows[:, features]
        ones = torch.ones(
            self.rows, len(columns) - len(features), dtype=torch.float64, device="cpu"
        )
        return torch.cat([x.double(), ones], 1)

    def scores(self, w: Tensor, rows: slice = ALL) -> Tensor:
        """The products of rows with coefficients ``(K, columns)``, ``(N, K)``, float64."""
        slopes = w[:, : self.features].T.contiguous()  # a third of the time of strides
        x: Any = self.x if rows == ALL else self.x[rows]
        if self.sparse:
            scores = torch.from_numpy(x @ slopes.numpy())
        else:
            scores = (x @ slopes.to(x.dtype)).double()
        return scores + w[:, -1] if self.intercept else scores

    def pull_back(self, slopes: Tensor) -> Tensor:
        """From slopes of the scores, ``(N, K)``, to those of the coefficients, ``(K, columns)``."""
        if self.sparse:
            gradient = torch.from_numpy((self.x.T @ slopes.numpy()).T)
        else:
            gradient = (slopes.to(self.x.dtype).T @ self.x).double()
        if not self.intercept:
            return gradient
        return torch.cat([gradient, slopes.sum(0).unsqueeze(1)], 1)

    def pull_back_squares(self, weights: Tensor) -> Tensor:
        """From weights of the scores, ``(N, K)``, sums of squared columns, ``(K, columns)``."""
        if self.sparse:
            sums = torch.from_numpy((self.x.multiply(self.x).T @ weights.numpy()).T)
        else:
            sums = (weights.to(self.x.dtype).T @ self.x.square()).double()
        return torch.cat([sums, weights.sum(0).unsqueeze(1)], 1) if self.intercept else sums

    def mean_squares(self) -> Tensor:
        """The weighted mean of the square of each column, ``(columns,)``."""
        return self.pull_back_squares(self.weight.unsqueeze(1))[0]

    def means(self) -> Tensor:
        """What an intercept can take off each column: its weighted mean; else 0, ``(columns,)``."""
        means = torch.zeros(self.columns, dtype=torch.float64, device="cpu")
        if self.intercept:
            means[:-1] = self.pull_back(self.weight.unsqueeze(1))[0, :-1]
        return means

    def products(self, weight: Tensor, means: Tensor) -> Tensor:
        """Sums of the products of columns over the rows, weighted ``(N,)``, ``(columns, columns)``.

        Of columns less their means, ``(columns,)``. Some rows of many stand for all.
        """
        step = max(1, self.rows // (ROWS_PER_FEATURE * self.columns))
        x, some = self.x[::step].double() - means[: self.features], weight[::step]
        if self.intercept:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        return (x * (some * (weight.sum() / some.sum())).unsqueeze(1)).T @ x


@dataclass
class Objective:
    """A mean loss of scores, and a quadratic penalty.

    Args:
        design: the rows.
        loss: the mean loss of scores ``(N, K)``, of all rows or of those of a slice that comes
            second.
        bound: the largest curvature of cross-entropy in the scores of a row.
        penalty: weight of the square of each coefficient, ``(K, columns)``.
        anchor: where the penalty is 0, likewise.
    """

    design: Design
    loss: Callable[..., Tensor]
    bound: float
    penalty: Tensor
    anchor: Tensor
    _at: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False)

    def value_and_gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """The objective and its gradient at coefficients ``(K, columns)``."""
        scores = self.design.scores(w).requires_grad_()
        loss = self.loss(scores)
        (slopes,) = torch.autograd.grad(loss, scores)
        pull = self.penalty * (w - self.anchor)
        value = loss.item() + 0.5 * (pull * (w - self.anchor)).sum().item()
        return value, self.design.pull_back(slopes) + pull

    def hessian_product(self, w: Tensor, direction: Tensor) -> Tensor:
        """The Hessian at ``w`` times a direction, both ``(K, columns)``."""
        turns = self.turns(w, self.design.scores(direction))
        return self.design.pull_back(turns) + self.penalty * direction

    def hessian_diagonal(self, w: Tensor) -> Tensor:
        """The diagonal of the Hessian of the loss at ``w``, ``(K, columns)``, without penalty.

        Estimated as :meth:`score_curvature`; at least 0.
        """
        return self.design.pull_back_squares(self.score_curvature(w)).clamp_min(0)

    def score_curvature(self, w: Tensor) -> Tensor:
        """The second derivative of the loss at ``w`` by each score, ``(N, K)``.

        Exact for K = 1; else estimated from random directions, right in the mean.
        """
        generator = torch.Generator().manual_seed(0)
        curvature = []
        for first in range(0, self.design.rows, BLOCK):
            rows = slice(first, first + BLOCK)
            scores, slopes = self._slopes(w, rows)
            shape = (PROBES if len(w) > 1 else 1, *scores.shape)
            signs = torch.randint(
                2, shape, generator=generator, dtype=torch.float64, device="cpu"
            ).mul_(2).sub_(1)  # fmt: skip
            turns = [torch.autograd.grad(slopes, scores, v, retain_graph=True)[0] for v in signs]
            curvature.append((signs * torch.stack(turns)).mean(0))
        return torch.cat(curvature)

    def score_hessian(self, w: Tensor) -> Tensor:
        """The second derivatives of the loss at ``w`` by two scores of a row, ``(K, N, K)``."""
        columns = torch.eye(len(w), dtype=torch.float64, device="cpu").unsqueeze(1)
        return torch.stack([self.turns(w, v.expand(self.design.rows, -1)) for v in columns])

    def turns(self, w: Tensor, direction: Tensor) -> Tensor:
        """How the slopes of the scores at ``w`` change along a direction, both ``(N, K)``."""
        if self._at is None or not torch.equal(self._at[0], w):  # a solver asks many times
            self._at = None  # one graph at a time
            self._at = w.clone(), *self._slopes(w, ALL)
        _, scores, slopes = self._at
        return torch.autograd.grad(slopes, scores, direction, retain_graph=True)[0]

    def _slopes(self, w: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Scores of some rows at ``w``, and the slopes of the loss in them with their graph."""
        scores = self.design.scores(w, rows).requires_grad_()
        (slopes,) = torch.autograd.grad(self.loss(scores, rows), scores, create_graph=True)
        return scores, slopes


class Whitening:
    r"""Coordinates in which the Hessian at some coefficients is near the identity: :math:`V = W L`.

    :math:`L L^\top` are the products of the columns, summed over the rows with the curvature of the
    loss in each, plus the penalty. A solver that knows nothing of the Hessian needs hundreds of
    sweeps over features that vary together; in these coordinates, tens. The objective is
    about half the square of the gradient in them above its minimum. Sparse rows and very many
    columns are only scaled.

    Args:
        objective: the objective.
        w: the coefficients, ``(K, columns)``.
    """

    def __init__(self, objective: Objective, w: Tensor) -> None:
        self.objective, design = objective, objective.design
        rows, ridge = self._row_curvature(w), objective.penalty.mean(0)
        self.curvature = rows.sum().item()
        self.factor: Tensor | None = None
        if not design.sparse and design.columns <= WHITENED and self.curvature > 0:
            self.means = design.means()
            matrix = design.products(rows, self.means) + ridge.diag()
            diagonal = matrix.diagonal()
            # For columns that repeat: a little of each, in whatever units; for zeros, anything.
            floor = torch.where(diagonal > 0, 1e-10 * diagonal, 1.0)
            factor, failed = torch.linalg.cholesky_ex(matrix + floor.diag())
            self.factor = factor if not failed else None
        if self.factor is None:
            scale = (design.pull_back_squares(rows.unsqueeze(1))[0] + ridge).sqrt()
            self.scale = torch.where(scale > 0, scale, 1.0)

    def stale(self, w: Tensor) -> bool:
        """Whether the loss is far less curved at ``w``, as it is once most rows are sure."""
        return self._row_curvature(w).sum().item() < STALE * self.curvature

    def _row_curvature(self, w: Tensor) -> Tensor:
        """Of the loss in each row, ``(N,)``; without its sign where the loss is not convex."""
        return self.objective.score_curvature(w).mean(1).abs()

    def to_coefficients(self, v: Tensor) -> Tensor:
        """The coefficients at a place in these coordinates, ``(K, columns)``."""
        if self.factor is None:
            return v / self.scale
        w = torch.linalg.solve_triangular(self.factor, v, upper=False, left=False)
        w[:, -1] -= w @ self.means
        return w

    def from_coefficients(self, w: Tensor) -> Tensor:
        """The place of coefficients."""
        if self.factor is None:
            return w * self.scale
        centred = w.clone()
        centred[:, -1] += w @ self.means
        return centred @ self.factor

    def gradient(self, gradient: Tensor) -> Tensor:
        """The gradient by these coordinates, from that by coefficients."""
        if self.factor is None:
            return gradient / self.scale
        gradient = gradient - self.means * gradient[:, -1:]
        return torch.linalg.solve_triangular(self.factor.T, gradient, upper=True, left=False)


class Standardising:
    """Coordinates in which features have mean 0, if there is an intercept, and mean square 1.

    Each coefficient stays by itself, as l1 wants it; only the intercept takes what the means add.

    Args:
        design: the rows, which are not changed.
    """

    def __init__(self, design: Design) -> None:
        self.means, squares = design.means(), design.mean_squares()
        spread = (squares - self.means.square()).clamp_min(0)
        # A column that hardly varies is left as it is.
        self.scale = torch.where(spread > 1e-12 * squares, spread, squares).sqrt()
        self.scale = torch.where(self.scale > 0, self.scale, 1.0)

    def to_coefficients(self, v: Tensor) -> Tensor:
        """The coefficients at a place in these coordinates, ``(K, columns)``."""
        w = v / self.scale
        w[:, -1] -= w @ self.means
        return w

    def from_coefficients(self, w: Tensor) -> Tensor:
        """The place of coefficients."""
        v = w.clone()
        v[:, -1] += w @ self.means
        return v * self.scale

    def gradient(self, gradient: Tensor) -> Tensor:
        """The gradient by these coordinates, from that by coefficients."""
        return (gradient - self.means * gradient[:, -1:]) / self.scale


def symmetric_operator(product: Callable[[np.ndarray], np.ndarray], size: int) -> Any:
    """SciPy's operator of a symmetric matrix that is known by its products."""
    operator: Any = LinearOperator  # whose stubs know only its subclasses
    return operator((size, size), matvec=product, dtype=np.float64)
