"""Textbook formulas of losses of single elements, ``(z, t) -> value``, in the digits of mpmath."""

import mpmath
from mpmath import mpf


def sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


def binary_cross_entropy(z, t):
    """Return minus the two log terms, weighted by the target."""
    p = sigmoid(z)
    yes = -t * mpmath.log(p) if t else mpf(0)
    no = -(1 - t) * mpmath.log(1 - p) if t != 1 else mpf(0)
    return yes + no


def focal(alpha, gamma):
    def formula(z, t):
        p = sigmoid(z)
        p_t = p * t + (1 - p) * (1 - t)
        share = 1 if alpha is None else mpf(alpha) * t + (1 - mpf(alpha)) * (1 - t)
        return share * (1 - p_t) ** mpf(gamma) * binary_cross_entropy(z, t)

    return formula


def poly1(epsilon):
    def formula(z, t):
        p = sigmoid(z)
        return binary_cross_entropy(z, t) + mpf(epsilon) * (t * (1 - p) + (1 - t) * p)

    return formula


def quality(beta):
    return lambda z, t: abs(t - sigmoid(z)) ** mpf(beta) * binary_cross_entropy(z, t)


def varifocal(z, t):
    return (t if t > 0 else mpf(0.75) * sigmoid(z) ** 2) * binary_cross_entropy(z, t)


def asymmetric(gamma_neg, gamma_pos, clip):
    def formula(z, t):
        p = sigmoid(z)
        yes, no = p, min(1 - p + mpf(clip), 1)
        pt = t * yes + (1 - t) * no
        focus = (1 - pt) ** (mpf(gamma_pos) * t + mpf(gamma_neg) * (1 - t))
        terms = (-t * mpmath.log(yes) if t else 0) - ((1 - t) * mpmath.log(no) if t != 1 else 0)
        return focus * terms

    return formula


def excess(z, t):
    entropy = sum(-x * mpmath.log(x) for x in (t, 1 - t) if x)
    return binary_cross_entropy(z, t) - entropy


def continuous_bernoulli(z, t):
    p = sigmoid(z)
    constant = 2 * mpmath.atanh(1 - 2 * p) / (1 - 2 * p) if z else mpf(2)
    return binary_cross_entropy(z, t) - mpmath.log(constant)
