"""Textbook formulas of the losses that have none in the registry of the tests.

Each takes logits ``(N, V)``, the class of each row and what the subject adds: tensors by name.
"""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import torch
from mpmath import mpf
from torch import Tensor

from tests.registry import formulas

from .exact import Exact

Extras = dict[str, Any]
F: Any = formulas  # of tensors, in whose place there are exact arrays here

STAY, MOVE = 0.75, 0.25  # how much of a target belongs to its class, and to the next


def divergence(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return the divergence of the teacher's distribution from the student's."""
    log_q, log_p = s["teacher"].log_softmax(), z.log_softmax()
    return (log_q.exp() * (log_q - log_p)).sum()


def divergence_of_log_probabilities(x: Exact, y: Tensor, s: Extras) -> Exact:
    """Return the sum of ``t (log t - x)``."""
    t = s["shares"]
    return (t * (t.log() - x)).sum()


def minus_target(x: Exact, y: Tensor, s: Extras) -> Exact:
    """Return minus the log-probability of the target, which is given."""
    return -F.target(x, y)


def recall_of_one(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return the loss of a batch of one row, whose class was missed or not."""
    missed = z.value.argmax(-1) != y.numpy()
    return F.nll(z, y) * torch.from_numpy((missed + 1) / 2)


def mixed(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return cross-entropy with two classes that share the target."""
    return STAY * F.nll(z, y) + MOVE * F.nll(z, s["second"])


def structured(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return cross-entropy with a target that the class shares with the next."""
    return STAY * F.nll(z, y) + MOVE * F.nll(z, (y + 1) % z.shape[1])


def noise_forward(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return minus the logarithm of the probability of the label after the noise."""
    return -(STAY * F.p_y(z, y) + MOVE * F.p_y(z, (y - 1) % z.shape[1])).log()


def noise_backward(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return the sum over labels with the weights of the inverse, a geometric series here."""
    classes, ratio = z.shape[1], mpf(-MOVE) / mpf(STAY)
    powers = np.array([ratio**k for k in range(classes)], dtype=object)
    steps = (np.arange(classes) - y.numpy()[:, None]) % classes
    line = Exact(powers[steps] / ((1 - ratio**classes) * STAY))
    return -(line * z.log_softmax()).sum()


def inverse_probability(z: Exact, y: Tensor) -> Exact:
    """Return 1 / p of the target; above 20 nats its tangent as a function of the nats."""
    nats = F.nll(z, y)
    capped = nats.clamp(max=20.0)
    return capped.exp() * (1 + (nats - capped))


def baikal(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return the mean surprise of the classes, and the inverse probability of the target."""
    return -z.log_softmax().mean() + inverse_probability(z, y) / z.count


def baikal_cma(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return the same with six coefficients."""
    c0, c1, c2, c3, c4, c5 = F.CMA
    surprise = -(c1 * (z.log_softmax() + Exact(c2).log())).mean()
    return c0 * (surprise + c3 * c4 / c5 * inverse_probability(z, y) / z.count)


def taylorglo(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return minus the polynomials of all classes, without what does not depend on them."""
    t0, t1, _, t3, t4, t5, t6, t7 = theta = [mpf(t) for t in s["theta"]]
    constants = F.polynomial(1, 0, theta) + (z.count - 1) * F.polynomial(0, 0, theta)
    slope = theta[2] - 2 * t1 * t3 + 3 * t1**2 * t4 - t0 * t5 + 2 * t0 * t1 * t6 + t0**2 * t7
    return constants + slope - F.polynomial(Exact(F.hot(z, y), z.times), z.softmax(), theta).sum()


def of_a_tree(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return cross-entropy of the second root, or of a node below the first."""
    top, leaves = F.nll(z[:, :2], (y == 1).long()), z[:, 2:]
    below = y >= 2
    leaf = F.nll(leaves, (y - 2).clamp(min=0)) * below.double()
    return top + leaf


def of_labels(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return the sum of the losses of the labels, of which the target alone is 1."""
    sign = 1 - 2 * F.hot(z, y)
    return (sign * z).softplus().sum()


def of_pairs(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return the same of similarities, scaled and shifted."""
    return of_labels(10 * z - 10, y, s)


def zlpr(z: Exact, y: Tensor, s: Extras) -> Exact:
    """Return the sum of two terms, of the labels that are 0 and of the target."""
    others = F.others(z, y).logsumexp()
    return others.softplus() + (-F.target(z, y)).softplus()


def binary_probability(p: Any, t: Any) -> Any:
    """Return binary cross-entropy of a probability."""
    return -(t * mpmath.log(p) if t else 0) - ((1 - t) * mpmath.log(1 - p) if t != 1 else 0)
