"""Probabilities by other exponentials than exp, with many digits."""

from __future__ import annotations

import numpy as np
from mpmath import mpf

from .exact import Array, Exact, array_of, power


def tempered(z: Exact, t: float) -> Exact:
    """Return the probabilities ``exp_t(z - l)``, whose normaliser ``l`` makes them add up to 1.

    Bisection in float64 gives 15 digits of it, steps of Newton the others. A class that is alone
    has all of the probability, exactly.
    """
    slope_of_base = 1 - mpf(t)
    x = z.value - z.value.max(-1, keepdims=True)
    times = z.times if z.times is not None else np.ones(x.shape[-1], dtype=int).astype(object)
    level = array_of(_bisected(x.astype(float), times.astype(float), t))
    while True:
        base = 1 + slope_of_base * (x - level)
        inside = np.asarray(base > 0, dtype=bool)
        base = np.where(inside, base, mpf(1))
        p = np.where(inside, power(base, 1 / slope_of_base), mpf(0))
        slope = p / base  # p^t
        total = (slope * times).sum(-1, keepdims=True)
        excess = (p * times).sum(-1, keepdims=True) - 1
        if np.all(np.abs(excess) < mpf(10) ** -60):
            break
        level = level + excess / total
    alone = inside & ((inside * times).sum(-1, keepdims=True) == 1)
    p, slope = (np.where(alone, mpf(1), found) for found in (p, slope))
    total = (slope * times).sum(-1, keepdims=True)

    def pull(given: Array) -> Array:
        inner = given * slope
        return inner - slope * times / total * inner.sum(-1, keepdims=True)

    return z.like(p, pull)


def _bisected(x: Array, times: Array, t: float) -> Array:
    """Return the normaliser of each row of float64 numbers whose largest is 0."""
    low = np.zeros((len(x), 1))
    high = low + (times.sum() ** (t - 1) - 1) / (t - 1)  # of equal logits
    for _ in range(100):
        middle = (low + high) / 2
        base = np.maximum(1 + (1 - t) * (x - middle), 1e-300)
        above = (base ** (1 / (1 - t)) * times * (base > 1e-300)).sum(-1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2
