"""Errors of the exponentials of softmax, for formulas that are computed in many digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_errors: list[np.ndarray] = []  # (N, V), relative, of the exponentials of logits; the last counts


@contextmanager
def rounded_exponentials(errors: np.ndarray) -> Iterator[None]:
    """Make the exponentials of softmax wrong by so much, and as much more for each nat.

    The logits stay right where a formula has them without an exponential. The largest is the number
    that is subtracted from all, and has the exponential 1. If several are the largest, their
    exponentials are off all the same, because the probability of each is rounded: a third is no
    number of a computer.
    """
    _errors.append(errors)
    try:
        yield
    finally:
        _errors.pop()


def error_of_exponentials(x: np.ndarray) -> np.ndarray | int:
    """Return factors for the exponentials of logits or log-probabilities ``x``, as a rule 1."""
    if not _errors or _errors[-1].shape != x.shape:
        return 1
    error = _errors[-1] * (1 + np.abs(x))
    largest = x == x.max(-1, keepdims=True)
    return 1 + np.where(largest & (largest.sum(-1, keepdims=True) == 1), 0, error)
