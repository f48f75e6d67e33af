"""The rows of a data set, and their products with coefficients and slopes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import hstack
from torch import Tensor

from .curvature import ALL
from .shares import WORTH, in_threads, shares_of

ROWS_PER_FEATURE = 8  # rows per feature that suffice to see how features vary together
BLOCK = 1 << 16  # rows whose curvature is computed at once, in 600 bytes each
SMALL = 4_000_000  # entries up to which rows are made dense and double
OFFSET_ROWS = 200  # rows that suffice to find the offset of a feature
CACHE = 1 << 18  # entries of a block of rows that stays in the second-level cache
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
        """The columns with these numbers, of all rows: ``(N, M)``, float64."""
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
        x = self.x if self.sparse else self.x.numpy()
        shares = self._shares(len(w)) if rows == ALL else [(ALL, x[rows])]
        if not bool(w.any()):  # where a fit begins
            count = sum(part.shape[0] for _, part in shares)
            return torch.zeros(count, len(w), dtype=torch.float64, device="cpu")
        slopes = w[:, : self.features].T.numpy().astype(x.dtype)
        scores = np.empty((sum(part.shape[0] for _, part in shares), len(w)))
        ends = w[:, -1].numpy() if self.intercept else 0.0

        def fill(share: tuple[slice, Any]) -> None:
            some, part = share
            np.add(part @ slopes, ends, out=scores[some], dtype=np.float64)

        in_threads(fill, shares)
        return torch.from_numpy(scores)

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Turn slopes of scores, ``(N, K)``, into slopes of coefficients, ``(K, columns)``."""
        given, dtype = slopes.numpy(), (self.x if self.sparse else self.x.numpy()).dtype
        single = given.astype(dtype, copy=False)

        def pulled(share: tuple[slice, Any]) -> np.ndarray:
            some, part = share
            sums = np.empty((given.shape[1], self.columns))
            of_rows = single[some]
            sums[:, : self.features] = (part.T @ of_rows).T if self.sparse else of_rows.T @ part
            if self.intercept:
                sums[:, -1] = given[some].sum(0)
            return sums

        first, *others = in_threads(pulled, self._shares(slopes.shape[1]))
        return torch.from_numpy(sum(others, first))

    def _shares(self, times: int) -> list[tuple[slice, Any]]:
        """Return the rows that each thread multiplies by so many columns, as arrays."""
        x = self.x if self.sparse else self.x.numpy()
        work = (x.nnz if self.sparse else x.size) * times
        return [(slice(None), x)] if work < WORTH else self._parts

    @cached_property
    def _parts(self) -> list[tuple[slice, Any]]:
        shares = shares_of(self.rows)
        if not self.sparse:
            return [(some, self.x.numpy()[some]) for some in shares]
        return [(some, _rows_of(self.x, some)) for some in shares]

    @cached_property
    def size(self) -> float:
        """The largest absolute value of an entry."""
        entries = torch.from_numpy(self.x.data) if self.sparse else self.x
        if entries.numel() == 0:
            return 0.0
        low, high = torch.aminmax(entries)
        return max(-low.item(), high.item())

    @cached_property
    def single(self) -> Design:
        """The rows in single precision."""
        x = self.x.astype(np.float32) if self.sparse else _in_single(self._parts, self.x.shape)
        near = type(self)(x, self.weight, intercept=self.intercept)
        near.grain, near.offsets = self.grain, self.offsets
        return near

    def absolute(self) -> Design:
        """The rows without their signs."""
        x = abs(self.x) if self.sparse else self.x.abs().numpy()
        return Design(x, self.weight, intercept=self.intercept)

    def doubled(self) -> Iterator[tuple[slice, Design]]:
        """Yield the rows by parts, in double precision."""
        if self.x.dtype in (np.float64, torch.float64):
            yield ALL, self
            return
        for some in self.blocks():
            part = self.x[some]
            rows = part.astype(np.float64) if self.sparse else part.double().numpy()
            yield some, Design(rows, self.weight[some], intercept=self.intercept)

    def pull_back_squares(self, weights: Tensor) -> Tensor:
        """Return sums of squared columns, ``(K, columns)``, weighted by ``(N, K)``.

        Rows that were given in single precision are squared in double precision, as their squares
        may vanish; those of :meth:`single` are not.
        """
        given = weights.numpy()

        def squared(share: tuple[slice, Any]) -> np.ndarray:
            some, part = share
            if self.sparse:
                return (part.multiply(part).T @ given[some]).T
            dtype = np.float64 if self.grain >= np.finfo(part.dtype).eps else part.dtype
            of_rows, sums = given[some].T.astype(dtype), np.zeros(1)
            for k in range(0, len(part), self.cached):
                block = slice(k, k + self.cached)
                sums = sums + of_rows[:, block] @ np.square(part[block], dtype=dtype)
            return sums

        parts = in_threads(squared, self._shares(weights.shape[1]))
        sums = torch.from_numpy(np.sum(parts, axis=0, dtype=np.float64))
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
        if self.rows <= rows:
            return iter([ALL])
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


def _rows_of(x: Any, some: slice) -> Any:
    """Return rows of a sparse array in CSR format, without a copy of their entries."""
    ends = x.indptr[some.start : some.stop + 1]
    held = slice(ends[0], ends[-1])
    parts = x.data[held], x.indices[held], ends - ends[0]
    return type(x)(parts, shape=(len(ends) - 1, x.shape[1]))


def _in_single(shares: list[tuple[slice, Any]], shape: torch.Size) -> np.ndarray:
    """Return all rows in single precision, in large pages of memory, for which NumPy asks."""
    x = np.empty(shape, np.float32)

    def fill(share: tuple[slice, Any]) -> None:
        some, part = share
        x[some] = part

    in_threads(fill, shares)
    return x
