"""Names of the numbers that the kernels of a problem must find."""

from __future__ import annotations

import itertools

from ..rows.problem import Problem
from . import gradient, sweep
from .gradient import Partials


def sums_of(p: Problem) -> list[str]:
    """Return the names of the sums that the tiles find."""
    needed = {"every", *p.settings.requests}
    if p.settings.soft:  # the pivot is the largest class, so "top" needs no sum of its own
        needed = needed - {"top"} | {"soft"}
    groups = [names for group, names in sweep.SUMMED.items() if group in needed]
    return list(dict.fromkeys(itertools.chain(*groups)))


def coefficients_for(p: Problem, addresses: Partials) -> list[str]:
    """Return the names of the coefficients that the gradient needs."""
    names = [*gradient.ALWAYS]
    if addresses.entropy is not None:
        names += ["spread"]
    if addresses.rest_squares is not None or addresses.rest_cubes is not None:
        names += ["square", "cube"]
    if addresses.mean is not None:
        names += ["mean"]
    if p.settings.soft:
        names += ["soft"]
    if addresses.rest_top_logit is not None:
        names += ["at_top"]
    return names
