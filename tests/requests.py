"""Losses that ask for one statistic each, or set one option of their own, with their formulas."""

import torch
from torch import Tensor

import xent

from .losses import Loss, parts


@xent.row_loss(needs="top", soft=False)
def runner_up(s):
    """How far the likeliest other class comes near the target."""
    return torch.nn.functional.softplus(s.rest_top_logit - s.target)


@xent.row_loss(needs="squares", soft=False)
def squared(s):
    """Sum of squared errors of the probabilities."""
    return s.miss**2 + s.rest_squares


@xent.row_loss(needs=("squares", "cubes"), soft=False)
def cubed(s):
    """Touches both power sums."""
    return -s.log_prob * (1 + s.rest_squares) + s.rest_cubes


@xent.row_loss(needs=("entropy", "mean", "top", "squares", "cubes"), soft=False)
def all_requests(s):
    """Touches whatever can be asked for."""
    powers = s.rest_squares + 0.5 * s.rest_cubes
    gap = (s.rest_top_logit - s.mean).tanh()
    return -s.log_prob * (1 + powers) + 0.3 * s.entropy * s.prob + 0.2 * gap


def _scale(counts: Tensor) -> Tensor:
    return counts / counts.sum() * counts.numel()


@xent.row_loss(own={"class_scale": lambda counts: _scale(counts)})
def scaled(s, counts):
    """Cross-entropy of logits with a factor for each class."""
    return -s.log_prob


@xent.row_loss(needs="mean", own={"mean_weight": lambda counts: _scale(counts)})
def weighted_mean(s, counts):
    """The mean logit with weights that no other part of the loss sees."""
    return torch.nn.functional.softplus(s.mean - s.target)


@xent.row_loss(own={"target_table": lambda shift: _table(shift)})
def looked_up(s, shift):
    """Cross-entropy of the line of a table that belongs to the class."""
    return -s.log_prob


def _table(shift: Tensor) -> Tensor:
    """Most of it on the class itself, some of it negative."""
    return torch.eye(shift.numel(), dtype=shift.dtype) * 1.5 - shift / shift.numel() * 0.5


def _others(z: Tensor, y: Tensor) -> Tensor:
    chosen = torch.nn.functional.one_hot(y, z.shape[1]).bool()
    return z.masked_fill(chosen, -torch.inf)


def _powers(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(z, -1)
    p = p * (1 - torch.nn.functional.one_hot(y, z.shape[1]).double())
    return p.square().sum(-1), (p**3).sum(-1)


def _runner_up(z, y, _):
    return torch.nn.functional.softplus(_others(z, y).max(-1).values - parts(z, y)[2])


def _squared(z, y, _):
    return (1 - parts(z, y)[1].exp()) ** 2 + _powers(z, y)[0]


def _cubed(z, y, _):
    squares, cubes = _powers(z, y)
    return -parts(z, y)[1] * (1 + squares) + cubes


def _all_requests(z, y, _):
    log_p, log_p_y, _target = parts(z, y)
    squares, cubes = _powers(z, y)
    entropy = -(log_p.exp() * log_p).sum(-1)
    gap = (_others(z, y).max(-1).values - z.mean(-1)).tanh()
    return -log_p_y * (1 + squares + 0.5 * cubes) + 0.3 * entropy * log_p_y.exp() + 0.2 * gap


def _scaled(z, y, s):
    return -parts(z * _scale(s["counts"].double()), y)[1]


def _weighted_mean(z, y, s):
    mean = (z * _scale(s["counts"].double())).mean(-1)
    return torch.nn.functional.softplus(mean - parts(z, y)[2])


def _looked_up(z, y, s):
    return -(_table(s["shift"].double())[y] * torch.log_softmax(z, -1)).sum(-1)


REQUESTING = [
    Loss("runner-up", runner_up, _runner_up, soft=False),
    Loss("squares", squared, _squared, soft=False),
    Loss("squares and cubes", cubed, _cubed, soft=False),
    Loss("all requests", all_requests, _all_requests, soft=False),
    Loss("class_scale", scaled, _scaled, ("counts",), shift_invariant=False),
    Loss("mean_weight", weighted_mean, _weighted_mean, ("counts",), shift_invariant=False),
    Loss("target_table", looked_up, _looked_up, ("shift",), soft=False),
]
