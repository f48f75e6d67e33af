"""Coordinates in which the objective of a linear classifier is easier to minimise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from .design import Design
from .linear_objective import Objective
from .shares import WORTH

WHITENED = 4096  # most features that are whitened; more are only scaled, one by one
ROUNDED = 1e-13  # share of the mean of a column below which its spread is only rounding
STALE = 0.1  # share of the first curvature below which coordinates are made anew


class Whitening:
    r"""Coordinates in which the Hessian at some coefficients is near the identity: :math:`V = W L`.

    :math:`L L^\top` is the matrix of products of the columns, summed over the rows with the
    curvature of the loss in each row as weight, plus the penalty. Where features vary together, a
    solver that does not use the Hessian needs hundreds of sweeps over the rows; in these
    coordinates it needs tens. The objective is above its minimum by about half the square of the
    gradient in these coordinates. Sparse rows and very many columns are only scaled.

    Args:
        objective: the objective.
        w: the coefficients, ``(K, columns)``.
        alone: whether each column is only scaled, which takes one sweep over the rows.
    """

    def __init__(self, objective: Objective, w: Tensor, *, alone: bool = False) -> None:
        self.objective, design = objective, objective.design
        rows, ridge = self._row_curvature(w), objective.penalty.mean(0)
        self.curvature = rows.sum().item()
        self.factor: Tensor | None = None
        possible = not design.sparse and design.columns <= WHITENED and self.curvature > 0
        self.postponed = alone and possible
        if possible and not alone:
            self.means = design.means()
            matrix = design.products(rows, self.means) + ridge.diag()
            diagonal = matrix.diagonal()
            # The ridge lets the factor exist: small for equal columns, 1 for constant columns.
            least = self.curvature * (ROUNDED * self.means).square()
            floor = torch.where(diagonal > least, 1e-10 * diagonal, 1.0)
            factor, failed = torch.linalg.cholesky_ex(matrix + floor.diag())
            if not failed:  # the inverse once, as solving takes ten times as long as a product
                identity = torch.eye(len(factor), dtype=torch.float64, device="cpu")
                self.inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
                self.factor = factor
        if self.factor is None:
            scale = (design.pull_back_squares(rows.unsqueeze(1))[0] + ridge).sqrt()
            self.scale = torch.where(scale > 0, scale, 1.0)

    def stale(self, w: Tensor) -> bool:
        """True if it is time for other coordinates.

        That is so if whitening was postponed, or if the loss is far less curved at ``w`` than at
        first: most rows are sure.
        """
        return self.postponed or self._row_curvature(w).sum().item() < STALE * self.curvature

    def _row_curvature(self, w: Tensor) -> Tensor:
        """Return the absolute value of the curvature of the loss in each row, ``(N,)``."""
        return self.objective.score_curvature(w).mean(1).abs()

    def to_coefficients(self, v: Tensor) -> Tensor:
        """The coefficients of a point in these coordinates, ``(K, columns)``."""
        if self.factor is None:
            return v / self.scale
        w = _product(v, self.inverse)
        w[:, -1] -= w @ self.means
        return w

    def from_coefficients(self, w: Tensor) -> Tensor:
        """The coefficients in these coordinates, ``(K, columns)``."""
        if self.factor is None:
            return w * self.scale
        centred = w.clone()
        centred[:, -1] += w @ self.means
        return centred @ self.factor

    def gradient(self, gradient: Tensor) -> Tensor:
        """The gradient by these coordinates, from the gradient by the coefficients."""
        if self.factor is None:
            return gradient / self.scale
        gradient = gradient - self.means * gradient[:, -1:]
        return _product(gradient, self.inverse.T)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices; for small ones, PyTorch would take longer to begin."""
    if a.numel() * b.shape[1] >= WORTH:
        return a @ b
    return torch.from_numpy(a.numpy() @ b.numpy())


class Standardising:
    """Coordinates in which features have mean 0, if there is an intercept, and mean square 1.

    Each coefficient is only scaled, since l1 judges coefficients one by one; the intercept makes up
    for the means.

    Args:
        design: the rows, which are not changed.
    """

    def __init__(self, design: Design) -> None:
        self.means = design.means()
        spread = design.mean_squares(self.means).sqrt()
        # A constant column minus its mean is only rounding.
        self.scale = torch.where(spread > ROUNDED * self.means.abs(), spread, 1.0)

    def to_coefficients(self, v: Tensor) -> Tensor:
        """The coefficients of a point in these coordinates, ``(K, columns)``."""
        w = v / self.scale
        w[:, -1] -= w @ self.means
        return w

    def from_coefficients(self, w: Tensor) -> Tensor:
        """The coefficients in these coordinates, ``(K, columns)``."""
        v = w.clone()
        v[:, -1] += w @ self.means
        return v * self.scale

    def gradient(self, gradient: Tensor) -> Tensor:
        """The gradient by these coordinates, from the gradient by the coefficients."""
        return (gradient - self.means * gradient[:, -1:]) / self.scale


def symmetric_operator(product: Callable[[np.ndarray], np.ndarray], size: int) -> Any:
    """Return SciPy's operator of a symmetric matrix, given a function for its products."""
    operator: Any = LinearOperator  # the type stubs know only its subclasses
    return operator((size, size), matvec=product, dtype=np.float64)
