"""Scores of points by the workers of a ``map``, which get one point at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..workers import Map, Round, results_of


def scores_one_by_one(
    map: Map, function: Callable[..., Any], points: Tensor, iteration: int, numbered: bool
) -> list[float]:
    """The score of each point.

    Args:
        map: calls a function for each item of a list, like the built-in ``map``.
        function: takes a point, ``(d,)``, and returns a number.
        points: ``(population, d)``.
        iteration: how many iterations are done.
        numbered: whether the function also takes ``iteration`` and the number of the point.

    Raises:
        RuntimeError: if a call raises, or a worker ends.
        TypeError: if something cannot be sent to workers, or ``map`` returns no results.
        ValueError: if ``map`` returns too few results.
    """
    round = Round(
        f"iteration {iteration + 1}", "point", {"function": function},
        "The search is as it was before this iteration, and goes on if `run` is called again",
    )  # fmt: skip
    numbers = [(iteration, k) if numbered else () for k in range(len(points))]
    # Numbers travel, not tensors: between processes PyTorch would share memory for each.
    items = zip(points.tolist(), numbers, strict=True)
    return results_of(map, _OnePoint(function, points.dtype), items, round)


@dataclass(frozen=True)
class _OnePoint:
    """The score of a point that comes as a list."""

    function: Callable[..., Any]
    dtype: torch.dtype

    def __call__(self, values: list[float], numbers: tuple[int, ...]) -> float:
        point = torch.tensor(values, dtype=self.dtype, device="cpu")
        score = self.function(point, *numbers)
        try:
            return float(score)
        except (TypeError, ValueError, RuntimeError):
            shape = getattr(score, "shape", None)
            what = type(score).__name__ if shape is None else f"shape {tuple(shape)}"
            raise TypeError(
                f"with `map`, `function` gets one point, shape {tuple(point.shape)}, and must "
                f"return one number; it returned {what}"
            ) from None
