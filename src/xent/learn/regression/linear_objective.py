r"""The objective of a linear classifier: a mean loss of scores, and a penalty on coefficients.

.. math:: f(W) = \ell(\tilde X W^\top) + \tfrac12 \sum_{kj} \lambda_{kj} (W_{kj} - A_{kj})^2

:math:`\tilde X` are the rows with a column of ones for the intercept, W has a row for each score.
The scores are linear in W. So two matrix products turn the derivatives of any loss by the scores
into its gradient and Hessian by W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import hstack
from torch import Tensor

from .curvature import ALL, Curvature

ROWS_PER_FEATURE = 8  # rows per feature that suffice to see how features vary together
BLOCK = 1 << 16  # rows whose curvature is computed at once, in 600 bytes each
SMALL = 4_000_000  # entries up to which rows are made dense and double
OFFSET_ROWS = 200  # rows that suffice to find the offset of a feature
NEGLIGIBLE = 1e-18  # nats
CACHE = 1 << 18  # entries of a block of rows that stays in the second-level cache
HUGE = 1e15  # size of entries from which on single precision may overflow in sums of squares
FAR = 100.0  # an offset is far from 0 if it is so many times the gap between the quartiles


class Design:
    """The rows of a data set; the column of ones is never stored.

    Args:
        x: features, ``(N, F)``: a NumPy array, or a sparse array of SciPy in CSR format.
        weight: of each row, ``(N,)``, with sum 1.
        intercept: whether there is a column of ones, as the last one.

    Attributes:
        grain: the relative rounding of the rows as they were given.
        offsets: what has been subtracted from each feature since then, ``(F,)``.
    """

    def __init__(self, x: Any, weight: Tensor, *, intercept: bool) -> None:
        self.sparse = not isinstance(x, np.ndarray)
        self.x: Any = x if self.sparse else torch.from_numpy(np.require(x, requirements=["C", "W"]))
        self.weight, self.intercept = weight, intercept
        self.rows, self.features = x.shape
        self.columns = self.features + intercept
        self.cached = max(1, CACHE // max(1, self.features))  # rows that stay in a cache
        self.grain = float(np.finfo(x.dtype).eps)
        self.offsets = torch.zeros(self.features, dtype=torch.float64, device="cpu")
        # Relative rounding of the mean loss: in single precision, the rounding of the scores.
        self.noise = max(100 * np.finfo(np.float64).eps, float(np.finfo(x.dtype).eps))

    def with_ones(self) -> Any:
        """The rows with their column of ones, ``(N, columns)``, as arrays of NumPy or SciPy."""
        x = self.x if self.sparse else self.x.numpy()
        if not self.intercept:
            return x
        ones = np.ones((self.rows, 1))
        return hstack([x, ones]).tocsr() if self.sparse else np.hstack([x, ones])

    def joined(self, coef: np.ndarray, intercept: np.ndarray) -> Tensor:
        """Coefficients ``(K, columns)`` from those of the features and the intercepts, ``(K,)``."""
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
        slopes = w[:, : self.features].T
        x: Any = self.x if rows == ALL else self.x[rows]
        if self.sparse:
            scores = torch.from_numpy(x @ slopes.numpy().astype(x.dtype)).double()
        else:
            scores = (x @ slopes.to(x.dtype)).double()
        return scores + w[:, -1] if self.intercept else scores

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Turn slopes of scores, ``(N, K)``, into slopes of coefficients, ``(K, columns)``."""
        if self.sparse:
            gradient = torch.from_numpy((self.x.T @ slopes.numpy().astype(self.x.dtype)).T).double()
        else:
            gradient = (slopes.to(self.x.dtype).T @ self.x).double()
        if not self.intercept:
            return gradient
        return torch.cat([gradient, slopes.sum(0).unsqueeze(1)], 1)

    @cached_property
    def size(self) -> float:
        """The largest absolute value of an entry."""
        entries = torch.from_numpy(self.x.data) if self.sparse else self.x
        if entries.numel() == 0:
            return 0.0
        low, high = torch.aminmax(entries)
        return max(-low.item(), high.item())

    def single(self) -> Design:
        """The rows in single precision."""
        x = self.x.astype(np.float32) if self.sparse else self.x.float().numpy()
        near = type(self)(x, self.weight, intercept=self.intercept)
        near.grain, near.offsets = self.grain, self.offsets
        return near

    def absolute(self) -> Design:
        """The rows without their signs."""
        x = abs(self.x) if self.sparse else self.x.abs().numpy()
        return Design(x, self.weight, intercept=self.intercept)

    def doubled(self) -> Iterator[tuple[slice, Design]]:
        """Yield the rows by parts, in double precision."""
        for some in self.blocks():
            part = self.x[some]
            rows = part.astype(np.float64) if self.sparse else part.double().numpy()
            yield some, Design(rows, self.weight[some], intercept=self.intercept)

    def pull_back_squares(self, weights: Tensor) -> Tensor:
        """Return sums of squared columns, ``(K, columns)``, weighted by ``(N, K)``."""
        if self.sparse:
            sums = torch.from_numpy((self.x.multiply(self.x).T @ weights.numpy()).T)
        else:
            parts = [weights[s].T @ self.x[s].double().square() for s in self.blocks(self.cached)]
            sums = torch.stack(parts).sum(0)
        return torch.cat([sums, weights.sum(0).unsqueeze(1)], 1) if self.intercept else sums

    def mean_squares(self, means: Tensor) -> Tensor:
        """The weighted mean of the square of each column less its mean, ``(columns,)``."""
        weight = self.weight.unsqueeze(1)
        if self.sparse:  # an entry that is not stored is 0
            features = means[: self.features].numpy()
            moved = self.x.copy()
            moved.data = np.square(moved.data - features[moved.indices])
            stored = self.x.copy()
            stored.data = np.ones_like(stored.data)
            rest = 1 - stored.T @ weight.numpy()
            squares = moved.T @ weight.numpy() + rest.clip(0) * np.square(features)[:, None]
            found = torch.from_numpy(squares[:, 0])
        else:
            parts = [
                self.weight[some] @ (self.x[some].double() - means[: self.features]).square()
                for some in self.blocks()
            ]
            found = torch.stack(parts).sum(0)
        return torch.cat([found, self.weight.sum().unsqueeze(0)]) if self.intercept else found

    def blocks(self, rows: int | None = None) -> Iterator[slice]:
        """Yield slices of rows that are small enough to be copied, or of so many rows."""
        rows = rows or BLOCK
        return (slice(k, k + rows) for k in range(0, self.rows, rows))

    def far_offsets(self) -> Tensor:
        """Return an offset for each feature that is far from 0 compared with its spread, else 0.

        The offset is a median, so that a column of one value becomes exact zeros, and a few codes
        for missing values change nothing. Some of the rows are enough to find it.
        """
        if self.sparse or not self.intercept:
            return torch.zeros(self.features, dtype=torch.float64, device="cpu")
        some = self.x[:: max(1, self.rows // OFFSET_ROWS)].double().numpy()
        ordered = np.sort(some.T)  # a fifth of the time of np.quantile
        low, middle, high = torch.from_numpy(
            ordered[:, [(len(some) - 1) * k // 4 for k in (1, 2, 3)]]
        ).T
        return torch.where(middle.abs() > FAR * (high - low), middle, 0.0)

    def prepared(self, offsets: Tensor) -> Design:
        """Return the rows less an offset of each feature, dense and double if they are few."""
        x: Any = self.x
        if self.rows * self.features <= SMALL:
            x = torch.from_numpy(x.toarray()) if self.sparse else x
            x = x.double()
        if bool(offsets.any()):
            x = x - offsets.to(x.dtype)
        if x is self.x:
            return self
        near = type(self)(x.numpy(), self.weight, intercept=self.intercept)
        near.grain, near.offsets = self.grain, offsets
        return near

    def means(self) -> Tensor:
        """The weighted mean of each column, ``(columns,)``; 0 where there is no intercept."""
        means = torch.zeros(self.columns, dtype=torch.float64, device="cpu")
        if self.intercept:
            means[:-1] = self.pull_back(self.weight.unsqueeze(1))[0, :-1]
        return means

    def products(self, weight: Tensor, means: Tensor) -> Tensor:
        """Weighted sums over the rows of the products of columns, ``(columns, columns)``.

        The columns are taken less their means. Of many rows, some stand for all.

        Args:
            weight: of each row, ``(N,)``.
            means: of the columns, ``(columns,)``.
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
        loss: maps scores ``(N, K)`` to the mean loss, or with a slice of the rows to the part of
            the mean that these rows add.
        bound: the largest curvature of cross-entropy in the scores of a row.
        penalty: weight of the square of each coefficient, ``(K, columns)``.
        anchor: coefficients at which the penalty is 0, ``(K, columns)``.
        curvature: the second derivatives of the loss by the scores.
    """

    design: Design
    loss: Callable[..., Tensor]
    bound: float
    penalty: Tensor
    anchor: Tensor
    curvature: Curvature
    _at: tuple[Tensor, Callable[[Tensor], Tensor]] | None = field(default=None, init=False)

    def value(self, w: Tensor) -> float:
        """The objective at coefficients ``(K, columns)``, in double precision."""
        with torch.no_grad():
            parts = [self.loss(rows.scores(w), some) for some, rows in self.design.doubled()]
        loss = torch.stack(parts).sum().item()
        apart = w - self.anchor  # a square may be infinite where nothing is penalised
        return loss + 0.5 * (self.penalty * apart * apart).sum().item()

    def slopes(self, w: Tensor) -> Tensor:
        """Derivative of the loss at ``w`` by each score, ``(N, K)``, in double precision."""
        slopes = []
        for some, rows in self.design.doubled():
            scores = rows.scores(w).requires_grad_()
            slopes.append(torch.autograd.grad(self.loss(scores, some), scores)[0])
        return torch.cat(slopes)

    def rounding(self, w: Tensor) -> float:
        """Estimate how much the rounding of ``w`` adds to the objective.

        Where scores are small differences of large products, no float64 coefficients give them
        exactly.
        """
        unit = 0.5 * float(np.finfo(np.float64).eps)
        # No score is a sum of larger products than this; for most data that is enough to know.
        largest = w.abs().sum(1) * max(self.design.size, 1.0)
        most = 0.5 * self.bound * (unit * largest).square().sum().item()
        if most <= NEGLIGIBLE:
            return most
        sizes = torch.cat([rows.absolute().scores(w.abs()) for _, rows in self.design.doubled()])
        return 0.5 * (self.score_curvature(w).abs() * (unit * sizes).square()).sum().item()

    def value_and_gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """The objective and its gradient at coefficients ``(K, columns)``."""
        return self._value_and_gradient(w, [(ALL, self.design)])

    def exact_value_and_gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """The objective and its gradient, in double precision."""
        return self._value_and_gradient(w, self.design.doubled())

    def _value_and_gradient(
        self, w: Tensor, parts: Iterable[tuple[slice, Design]]
    ) -> tuple[float, Tensor]:
        """Look once at each part of the rows: its scores give its loss and its slopes."""
        apart = w - self.anchor  # a square may be infinite where nothing is penalised
        gradient = self.penalty * apart
        value = 0.5 * (self.penalty * apart * apart).sum().item()
        for some, rows in parts:
            scores = rows.scores(w).requires_grad_()
            loss = self.loss(scores, some)
            (slopes,) = torch.autograd.grad(loss, scores)
            gradient = gradient + rows.pull_back(slopes)
            value += loss.item()
        return value, gradient

    def hessian_product(self, w: Tensor, direction: Tensor) -> Tensor:
        """The Hessian at ``w`` times a direction, both ``(K, columns)``."""
        if self._at is None or not torch.equal(self._at[0], w):  # a solver asks often at one w
            self._at = None  # frees the memory of the former first
            self._at = w.clone(), self.curvature.turning(self.design.scores(w))
        turns = self._at[1](self.design.scores(direction))
        return self.design.pull_back(turns) + self.penalty * direction

    def hessian_diagonal(self, w: Tensor) -> Tensor:
        """The diagonal of the Hessian of the loss at ``w``, ``(K, columns)``, without penalty.

        Estimated as :meth:`score_curvature`; at least 0.
        """
        return self.design.pull_back_squares(self.score_curvature(w)).clamp_min(0)

    def score_curvature(self, w: Tensor) -> Tensor:
        """The second derivative of the loss at ``w`` by each score, ``(N, K)``, or an estimate."""
        parts = self.design.blocks()
        return torch.cat([self.curvature.own(self.design.scores(w, p), p) for p in parts])

    def score_hessian(self, w: Tensor) -> Tensor:
        """The second derivatives of the loss at ``w`` by two scores of a row, ``(K, N, K)``."""
        parts = self.design.blocks()
        return torch.cat([self.curvature.matrices(self.design.scores(w, p), p) for p in parts], 1)
