r"""The objective of a linear classifier: a mean loss of scores, and a penalty on coefficients.

.. math:: f(W) = \ell(\tilde X W^\top) + \tfrac12 \sum_{kj} \lambda_{kj} (W_{kj} - A_{kj})^2

:math:`\tilde X` are the rows with a column of ones for the intercept, W has a row for each score.
The scores are linear in W. So two matrix products turn the derivatives of any loss by the scores
into its gradient and Hessian by W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import hstack
from torch import Tensor

ROWS_PER_FEATURE = 8  # rows per feature that suffice to see how features vary together
PROBES = 2  # random directions that estimate the curvature of a row
ALL = slice(None)
BLOCK = 1 << 16  # rows whose curvature is computed at once, in 600 bytes each
SMALL = 4_000_000  # entries up to which rows are made dense and double
OFFSET_ROWS = 1000  # rows that suffice to find the offset of a feature
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
        slopes = w[:, : self.features].T.contiguous()  # takes a third of the time of a view
        x: Any = self.x if rows == ALL else self.x[rows]
        if self.sparse:
            scores = torch.from_numpy(x @ slopes.numpy())
        else:
            scores = (x @ slopes.to(x.dtype)).double()
        return scores + w[:, -1] if self.intercept else scores

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Turn slopes of scores, ``(N, K)``, into slopes of coefficients, ``(K, columns)``."""
        if self.sparse:
            gradient = torch.from_numpy((self.x.T @ slopes.numpy()).T)
        else:
            gradient = (slopes.to(self.x.dtype).T @ self.x).double()
        if not self.intercept:
            return gradient
        return torch.cat([gradient, slopes.sum(0).unsqueeze(1)], 1)

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
            parts = [weights[s].T @ self.x[s].double().square() for s in self.blocks()]
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

    def blocks(self) -> Iterator[slice]:
        """Yield slices of rows that are small enough to be copied."""
        return (slice(k, k + BLOCK) for k in range(0, self.rows, BLOCK))

    def far_offsets(self) -> Tensor:
        """Return an offset for each feature that is far from 0 compared with its spread, else 0.

        The offset is a median, so that a column of one value becomes exact zeros, and a few codes
        for missing values change nothing. Some of the rows are enough to find it.
        """
        if self.sparse or not self.intercept:
            return torch.zeros(self.features, dtype=torch.float64, device="cpu")
        some = self.x[:: max(1, self.rows // OFFSET_ROWS)].double().numpy()
        quartiles = np.quantile(some, (0.25, 0.5, 0.75), axis=0, method="lower")
        low, middle, high = torch.from_numpy(quartiles)
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
        curvature: maps scores and a slice to the second derivatives of the loss by two scores of a
            row, ``(K, N, K)``; None leaves them to autograd.
    """

    design: Design
    loss: Callable[..., Tensor]
    bound: float
    penalty: Tensor
    anchor: Tensor
    curvature: Callable[..., Tensor] | None = None
    _at: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False)

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

    def gradient(self, w: Tensor) -> Tensor:
        """The gradient at ``w``, ``(K, columns)``, in double precision."""
        slopes = self.slopes(w)
        parts = [rows.pull_back(slopes[some]) for some, rows in self.design.doubled()]
        return torch.stack(parts).sum(0) + self.penalty * (w - self.anchor)

    def rounding(self, w: Tensor) -> float:
        """Estimate how much the rounding of ``w`` adds to the objective.

        Where scores are small differences of large products, no float64 coefficients give them
        exactly.
        """
        unit = 0.5 * float(np.finfo(np.float64).eps)
        sizes = torch.cat([rows.absolute().scores(w.abs()) for _, rows in self.design.doubled()])
        return 0.5 * (self.score_curvature(w).abs() * (unit * sizes).square()).sum().item()

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
        if len(w) == 1:
            return self.score_hessian(w)[0]
        generator = torch.Generator().manual_seed(0)
        curvature = []
        for rows in self.design.blocks():
            scores, slopes = self._slopes(w, rows)
            signs = torch.randint(
                2, (PROBES, *scores.shape), generator=generator, dtype=torch.float64, device="cpu"
            ).mul_(2).sub_(1)  # fmt: skip
            turns = [torch.autograd.grad(slopes, scores, v, retain_graph=True)[0] for v in signs]
            curvature.append((signs * torch.stack(turns)).mean(0))
        return torch.cat(curvature)

    def score_hessian(self, w: Tensor) -> Tensor:
        """The second derivatives of the loss at ``w`` by two scores of a row, ``(K, N, K)``."""
        if self.curvature is not None:
            parts = self.design.blocks()
            return torch.cat([self.curvature(self.design.scores(w, p), p) for p in parts], 1)
        columns, blocks = torch.eye(len(w), dtype=torch.float64, device="cpu").unsqueeze(1), []
        for some in self.design.blocks():
            scores, slopes = self._slopes(w, some)
            turns = [
                torch.autograd.grad(slopes, scores, v.expand_as(scores), retain_graph=True)[0]
                for v in columns
            ]
            blocks.append(torch.stack(turns))
        return torch.cat(blocks, 1)

    def turns(self, w: Tensor, direction: Tensor) -> Tensor:
        """Return the change of the slopes at ``w`` along a direction of scores, both ``(N, K)``."""
        if self._at is None or not torch.equal(self._at[0], w):  # a solver asks often at one w
            self._at = None  # frees the old graph first
            self._at = w.clone(), *self._slopes(w, ALL)
        _, scores, slopes = self._at
        return torch.autograd.grad(slopes, scores, direction, retain_graph=True)[0]

    def _slopes(self, w: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return scores of some rows at ``w``, and the slopes of the loss with their graph."""
        scores = self.design.scores(w, rows).requires_grad_()
        (slopes,) = torch.autograd.grad(self.loss(scores, rows), scores, create_graph=True)
        return scores, slopes
