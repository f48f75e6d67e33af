"""The losses of xent.losses.robust and the noise shortcuts, each with its textbook formula."""

import math

import torch

import xent

from .losses import Loss, parts

A = math.log(1e4)


def p_y(z, y):
    return parts(z, y)[1].exp()


def cross_entropy(z, y):
    return -parts(z, y)[1]


def entropy(z):
    log_p = torch.log_softmax(z, -1)
    return -(log_p.exp() * log_p).sum(-1)


def share(z, y):
    return cross_entropy(z, y) / -torch.log_softmax(z, -1).sum(-1)


def bootstrap(z, y, s):
    return 0.95 * cross_entropy(z, y) + 0.05 * entropy(z)


def hard_bootstrap(z, y, s):
    return 0.8 * cross_entropy(z, y) - 0.2 * torch.log_softmax(z, -1).max(-1).values


def generalized(z, y, s):
    return (1 - p_y(z, y) ** 0.7) / 0.7


def truncated(z, y, s):
    return (1 - p_y(z, y).clamp(min=0.1) ** 0.7) / 0.7


def mae(z, y, s):
    hot = torch.nn.functional.one_hot(y, z.shape[1]).double()
    return (torch.softmax(z, -1) - hot).abs().sum(-1)


def reverse(z, y, s):
    return A * (1 - p_y(z, y))


def symmetric(z, y, s):
    return 0.1 * cross_entropy(z, y) + reverse(z, y, s)


def noisy(z, y, s):
    """Noise at the rate 0.3 over the classes that are not masked."""
    others = (z > -torch.inf).sum(-1).double() - 1
    p = p_y(z, y)
    return -torch.log(0.7 * p + 0.3 / others * (1 - p))


def unbiased(z, y, s):
    classes = (z > -torch.inf).sum(-1).double()
    eps = -0.1 * classes / (classes - 1 - 0.1 * classes)
    log_p = torch.log_softmax(z, -1)
    uniform = -torch.where(log_p > -torch.inf, log_p, 0.0).sum(-1) / classes
    return (1 - eps) * cross_entropy(z, y) + eps * uniform


def member(name, call, formula, **facts) -> Loss:
    return Loss(name, call, formula, **{"soft": False, **facts})


ROBUST = [
    member("bootstrap", xent.losses.bootstrap_loss, bootstrap, soft=True),
    member("hard bootstrap", xent.losses.hard_bootstrap_loss, hard_bootstrap),
    member("gce", xent.losses.generalized_cross_entropy, generalized),
    member(
        "truncated gce",
        xent.losses.truncated_generalized_cross_entropy,
        truncated,
        options={"threshold": 0.1},
    ),
    member("mae", xent.losses.mae_loss, mae),
    member("reverse", xent.losses.reverse_cross_entropy, reverse),
    member("symmetric", xent.losses.symmetric_cross_entropy, symmetric),
    member(
        "normalized", xent.losses.normalized_cross_entropy, lambda z, y, s: share(z, y), offset=True
    ),
    member(
        "nce+rce",
        xent.losses.nce_rce_loss,
        lambda z, y, s: share(z, y) + reverse(z, y, s),
        offset=True,
    ),
    member(
        "nce+mae", xent.losses.nce_mae_loss, lambda z, y, s: share(z, y) + mae(z, y, s), offset=True
    ),
    member(
        "noise forward",
        xent.losses.forward_corrected_symmetric_noise_loss,
        noisy,
        options={"rate": 0.3},
    ),
    member(
        "noise backward",
        xent.losses.backward_corrected_symmetric_noise_loss,
        unbiased,
        options={"rate": 0.1},
        offset=True,
    ),
]
