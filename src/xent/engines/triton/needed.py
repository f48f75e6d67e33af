"""Names of the numbers that the kernels of a problem must find."""

from __future__ import annotations

import itertools
from collections.abc import Collection

from ..rows.problem import Problem
from . import gradient, sweep


def sums_of(p: Problem) -> list[str]:
    """Return the names of the sums that the tiles find."""
    needed = {"every", *p.settings.requests}
    if p.settings.soft:  # the pivot is the largest class, so "top" needs no sum of its own
        needed = needed - {"top"} | {"soft"}
    groups = [names for group, names in sweep.SUMMED.items() if group in needed]
    return list(dict.fromkeys(itertools.chain(*groups)))


def coefficients_for(p: Problem, by: Collection[str]) -> list[str]:
    """Return the names of the coefficients for a loss with derivatives by some fields."""
    names = [*gradient.ALWAYS]
    if "entropy" in by:
        names += ["spread"]
    if "rest_squares" in by or "rest_cubes" in by:
        names += ["square", "cube"]
    if "mean" in by:
        names += ["mean"]
    if p.settings.soft:
        names += ["soft"]
    if "rest_top_logit" in by:
        names += ["at_top"]
    return names
