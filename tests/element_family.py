"""The losses of single elements, each with its textbook formula in 50 digits."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mpmath
import torch
from mpmath import mpf
from torch import Tensor

import xent


def _sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


def _log_terms(z, t):
    """Minus the two log terms of cross-entropy, weighed by the target."""
    p = _sigmoid(z)
    yes = -t * mpmath.log(p) if t else mpf(0)
    no = -(1 - t) * mpmath.log(1 - p) if t != 1 else mpf(0)
    return yes + no


def _focal(alpha, gamma):
    def formula(z, t):
        p = _sigmoid(z)
        p_t = p * t + (1 - p) * (1 - t)
        share = 1 if alpha is None else mpf(alpha) * t + (1 - mpf(alpha)) * (1 - t)
        return share * (1 - p_t) ** mpf(gamma) * _log_terms(z, t)

    return formula


def _quality(beta):
    return lambda z, t: abs(t - _sigmoid(z)) ** mpf(beta) * _log_terms(z, t)


def _varifocal(z, t):
    return (t if t > 0 else mpf(0.75) * _sigmoid(z) ** 2) * _log_terms(z, t)


def _asymmetric(gamma_neg, gamma_pos, clip):
    def formula(z, t):
        p = _sigmoid(z)
        yes, no = p, min(1 - p + mpf(clip), 1)
        pt = t * yes + (1 - t) * no
        focus = (1 - pt) ** (mpf(gamma_pos) * t + mpf(gamma_neg) * (1 - t))
        terms = (-t * mpmath.log(yes) if t else 0) - ((1 - t) * mpmath.log(no) if t != 1 else 0)
        return focus * terms

    return formula


def _excess(z, t):
    entropy = sum(-x * mpmath.log(x) for x in (t, 1 - t) if x)
    return _log_terms(z, t) - entropy


def _continuous_bernoulli(z, t):
    p = _sigmoid(z)
    constant = 2 * mpmath.atanh(1 - 2 * p) / (1 - 2 * p) if z else mpf(2)
    return _log_terms(z, t) - mpmath.log(constant)


@dataclass(frozen=True)
class ElementLoss:
    """A loss, how to call it, and what it should be."""

    name: str
    call: Callable[..., Tensor]
    formula: Callable[..., Any]  # (z, t) in mpf -> mpf
    options: dict[str, Any] = field(default_factory=dict)
    kernel: bool = False

    def __call__(self, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.call(input, target, *args, **{**self.options, **kwargs})

    def truth(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes, rounded to float64."""
        values, slopes = [], []
        with mpmath.workdps(120):  # for 1 - p at a hundred nats, and its differences
            for x, y in zip(
                z.double().flatten().tolist(), t.double().flatten().tolist(), strict=True
            ):
                x, y = mpf(x), mpf(y)
                values.append(float(self.formula(x, y)))
                h = mpf(10) ** -30
                slope = (self.formula(x + h, y) - self.formula(x - h, y)) / (2 * h)
                slopes.append(float(slope))
        both = torch.tensor([values, slopes], dtype=torch.float64).view(2, *z.shape)
        return both[0], both[1]


def loss(
    name: str, formula: Callable[..., Any], kernel: bool = False, **options: Any
) -> ElementLoss:
    label = name + "".join(f" {k}={v}" for k, v in options.items())
    return ElementLoss(label, getattr(xent.losses, name), formula, options, kernel)


FAMILY = [
    loss("binary_cross_entropy_with_logits", _log_terms, True),
    loss("sigmoid_focal_loss", _focal(0.25, 2), True),
    loss("sigmoid_focal_loss", _focal(None, 1), True, alpha=None, gamma=1.0),
    loss("sigmoid_focal_loss", _focal(0.7, 5), True, alpha=0.7, gamma=5.0),
    loss("sigmoid_focal_loss", _focal(0.25, 0.5), True, gamma=0.5),
    loss("sigmoid_focal_loss", _focal(0.25, 1.7), True, gamma=1.7),
    loss("sigmoid_focal_loss", _focal(0.25, 0), True, gamma=0.0),
    loss("quality_focal_loss", _quality(2), True),
    loss("quality_focal_loss", _quality(0.5), True, beta=0.5),
    loss("varifocal_loss", _varifocal, True),
    loss("asymmetric_loss", _asymmetric(4, 1, 0.05), True),
    loss("asymmetric_loss", _asymmetric(2, 0.5, 0), True, gamma_neg=2.0, gamma_pos=0.5, clip=0.0),
    loss("asymmetric_loss", _asymmetric(1, 0, 1e-6), True, gamma_neg=1.0, gamma_pos=0.0, clip=1e-6),
    loss("reconstruction_excess", _excess),
    loss("continuous_bernoulli_loss", _continuous_bernoulli),
]
