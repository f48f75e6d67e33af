"""The members of the family that are made of row statistics, each with its textbook formula."""

import math

import torch
from torch import Tensor

import xent

from .losses import Loss, parts


def log_p_y(z: Tensor, y: Tensor) -> Tensor:
    return parts(z, y)[1]


def p_y(z: Tensor, y: Tensor) -> Tensor:
    return log_p_y(z, y).exp()


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return -log_p_y(z, y)


def others(z: Tensor, y: Tensor) -> Tensor:
    """The logits of every class but the target's; -inf there."""
    chosen = torch.nn.functional.one_hot(y, z.shape[1]).bool()
    return z.masked_fill(chosen, -torch.inf)


def poly1(z, y, s):
    return cross_entropy(z, y) + 2 * (1 - p_y(z, y))


def taylor(terms):
    return lambda z, y, s: sum((1 - p_y(z, y)) ** k / k for k in range(1, terms + 1))


def smoothed(eps):
    def formula(z, y, s):
        prior = s.get("prior", torch.ones(z.shape[1])).double()
        log_p = torch.log_softmax(z, -1)
        hot = torch.nn.functional.one_hot(y, z.shape[1]).double()
        q = (1 - eps) * hot + eps * prior / prior.sum()
        row = s.get("weight", torch.ones(z.shape[1])).double()[y]
        return -(q * log_p).sum(-1) * row

    return formula


def penalty(z, y, s):
    log_p = torch.log_softmax(z, -1)
    return cross_entropy(z, y) + 0.1 * (log_p.exp() * log_p).sum(-1)


def complementary(z, y, s):
    return torch.logsumexp(z, -1) - torch.logsumexp(others(z, y), -1)


def brier(z, y, s):
    hot = torch.nn.functional.one_hot(y, z.shape[1]).double()
    return (torch.softmax(z, -1) - hot).square().sum(-1)


def hinge(z, y, s):
    return (1 + others(z, y).max(-1).values - parts(z, y)[2]).clamp(min=0)


def lowered(z: Tensor, y: Tensor, psi: Tensor, scale: float) -> Tensor:
    """Cross-entropy of scaled cosines whose target is replaced by ``psi``."""
    return cross_entropy((z.scatter(1, y[:, None], psi[:, None])) * scale, y)


def cosface(z, y, s):
    return lowered(z, y, parts(z, y)[2] - 0.35, 8.0)


def arcface(z, y, s):
    cos = parts(z, y)[2]
    theta = torch.acos(cos.clamp(-1, 1))
    psi = torch.where(theta + 0.5 <= math.pi, torch.cos(theta + 0.5), cos - 0.5 * math.sin(0.5))
    return lowered(z, y, psi, 8.0)


def large_margin(z, y, s):
    theta = torch.acos(parts(z, y)[2].clamp(-1, 1))
    k = torch.floor(3 * theta / math.pi)
    return lowered(z, y, (-1) ** k * torch.cos(3 * theta) - 2 * k, 8.0)


def adjusted(z, y, s):
    prior = s["prior"].double()
    return cross_entropy(z + 0.8 * torch.log(prior / prior.sum()), y)


def vector_scaling(z, y, s):
    n = s["counts"].double()
    return cross_entropy(z * (n / n.max()) ** 0.3 + torch.log(n / n.sum()), y)


def ldam(z, y, s):
    n = s["counts"].double()
    return lowered(z, y, parts(z, y)[2] - (0.5 * (n / n.min()) ** -0.25)[y], 8.0)


def member(name, call, formula, **facts) -> Loss:
    return Loss(name, call, formula, **{"soft": False, **facts})


FAMILY = [
    member("poly1", xent.losses.poly1_loss, poly1),
    member("taylor", xent.losses.taylor_cross_entropy, taylor(2)),
    member("taylor of 6", xent.losses.taylor_cross_entropy, taylor(6), options={"terms": 6}),
    member("smoothed", xent.losses.smoothed_cross_entropy, smoothed(0.1), offset=True),
    member(
        "smoothed to a prior", xent.losses.smoothed_cross_entropy, smoothed(0.3),
        per_class=("prior", "weight"), options={"smoothing": 0.3}, offset=True,
    ),
    member(
        "smoothed below zero", xent.losses.smoothed_cross_entropy, smoothed(-0.5),
        options={"smoothing": -0.5}, offset=True, cancels=True,
    ),
    member("confidence penalty", xent.losses.confidence_penalty_loss, penalty),
    member("complementary", xent.losses.complementary_loss, complementary),
    member("brier", xent.losses.brier_loss, brier),
    member("crammer-singer", xent.losses.crammer_singer_loss, hinge),
    member("cosface", xent.losses.cosface_loss, cosface, options={"scale": 8.0}),
    member(
        "logit adjusted", xent.losses.logit_adjusted_loss, adjusted, per_class=("prior",),
        options={"tau": 0.8}, soft=True, offset=True,
    ),
    member(
        "vector scaling", xent.losses.vs_loss, vector_scaling, per_class=("counts",), soft=True,
        shift_invariant=False,
    ),
    member("ldam", xent.losses.ldam_loss, ldam, per_class=("counts",), options={"scale": 8.0}),
]  # fmt: skip

# Whose logits must be cosines.
COSINES = [
    member("arcface", xent.losses.arcface_loss, arcface, options={"scale": 8.0}),
    member("large margin", xent.losses.large_margin_loss, large_margin,
           options={"scale": 8.0, "margin": 3}),
]  # fmt: skip
