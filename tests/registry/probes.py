"""Losses as a user writes them: together they request every statistic and every option."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

import xent

from . import formulas
from .formulas import entropy, log_p_y, nll, others, p_y, target
from .records import Loss


@xent.row_loss
def focal(s, gamma=2.0):
    """A loss of the log-odds alone."""
    return -(torch.sigmoid(-s.log_odds) ** gamma) * s.log_prob


@xent.row_loss(needs="entropy")
def entropy_regularised(s, beta=0.1):
    """Compute cross-entropy with a price on confidence."""
    return -s.log_prob - beta * s.entropy


@xent.row_loss(needs="mean")
def above_average(s):
    """Return the mean logit less the target: a loss without lse."""
    return softplus(s.mean - s.target)


@xent.row_loss(needs=("entropy", "mean"))
def everything(s, a=0.3):
    """Use every differentiable statistic at once."""
    return (
        s.lse.square() * 0.01
        - s.log_prob
        + a * s.entropy * s.prob
        + (s.lse - s.mean) * s.rest.tanh()
    )


@xent.row_loss(needs="top", soft=False)
def runner_up(s):
    """Return how near the likeliest other class comes to the target."""
    return softplus(s.rest_top_logit - s.target)


@xent.row_loss(needs="squares", soft=False)
def squared(s):
    """Return the sum of squared errors of the probabilities."""
    return s.miss**2 + s.rest_squares


@xent.row_loss(needs=("squares", "cubes"), soft=False)
def cubed(s):
    """Use both power sums."""
    return -s.log_prob * (1 + s.rest_squares) + s.rest_cubes


@xent.row_loss(needs=("entropy", "mean", "top", "squares", "cubes"), soft=False)
def all_requests(s):
    """Use every statistic that can be requested."""
    powers = s.rest_squares + 0.5 * s.rest_cubes
    gap = (s.rest_top_logit - s.mean).tanh()
    return -s.log_prob * (1 + powers) + 0.3 * s.entropy * s.prob + 0.2 * gap


def _scale(counts: Tensor) -> Tensor:
    return counts / counts.sum() * counts.numel()


@xent.row_loss(own={"class_scale": lambda counts: _scale(counts)})
def scaled(s, counts):
    """Return cross-entropy of logits with a factor for each class."""
    return -s.log_prob


@xent.row_loss(needs="mean", own={"mean_weight": lambda counts: _scale(counts)})
def weighted_mean(s, counts):
    """Return the mean logit with weights that no other part of the loss reads."""
    return softplus(s.mean - s.target)


@xent.row_loss(own={"target_table": lambda shift: _table(shift)})
def looked_up(s, shift):
    """Return cross-entropy with the line of a table that belongs to the class."""
    return -s.log_prob


def _table(shift: Tensor) -> Tensor:
    """Return a table with most of the mass on the class itself, some of it negative."""
    return torch.eye(shift.numel(), dtype=shift.dtype) * 1.5 - shift / shift.numel() * 0.5


# ---- their formulas -----------------------------------------------------------------------------


def _entropy_regularised(z, y, _):
    return nll(z, y) - 0.1 * entropy(z)


def _above_average(z, y, _):
    return softplus(z.mean(-1) - target(z, y))


def _everything(z, y, _):
    lse, rest = torch.logsumexp(z, -1), torch.logsumexp(others(z, y), -1)
    value = lse.square() * 0.01 + nll(z, y) + 0.3 * entropy(z) * p_y(z, y)
    return value + (lse - z.mean(-1)) * rest.tanh()


def _powers(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(z, -1)
    p = p * (1 - one_hot(y, z.shape[1]).double())
    return p.square().sum(-1), (p**3).sum(-1)


def _runner_up(z, y, _):
    return softplus(others(z, y).max(-1).values - target(z, y))


def _squared(z, y, _):
    return (1 - p_y(z, y)) ** 2 + _powers(z, y)[0]


def _cubed(z, y, _):
    squares, cubes = _powers(z, y)
    return nll(z, y) * (1 + squares) + cubes


def _all_requests(z, y, _):
    squares, cubes = _powers(z, y)
    gap = (others(z, y).max(-1).values - z.mean(-1)).tanh()
    value = nll(z, y) * (1 + squares + 0.5 * cubes)
    return value + 0.3 * entropy(z) * p_y(z, y) + 0.2 * gap


def _scaled(z, y, s):
    return -log_p_y(z * _scale(s["counts"].double()), y)


def _weighted_mean(z, y, s):
    return softplus((z * _scale(s["counts"].double())).mean(-1) - target(z, y))


def _looked_up(z, y, s):
    return -(_table(s["shift"].double())[y] * torch.log_softmax(z, -1)).sum(-1)


# ---- on what every loss has, entropy and mean -------------------------------------------------
OF_STATISTICS = (
    Loss("focal", focal, formulas.focal),
    Loss("focal+weight", focal, formulas.focal, ("weight",), weighted=False),
    Loss("entropy", entropy_regularised, _entropy_regularised),
    Loss("mean", above_average, _above_average, offset=True),
    Loss("everything", everything, _everything, shift_invariant=False),
)
# ---- on what is asked for beyond, and options of their own ------------------------------------
OF_REQUESTS = (
    Loss("runner-up", runner_up, _runner_up, soft=False),
    Loss("squares", squared, _squared, soft=False),
    Loss("squares and cubes", cubed, _cubed, soft=False),
    Loss("all requests", all_requests, _all_requests, soft=False),
    Loss("class_scale", scaled, _scaled, ("counts",), shift_invariant=False),
    Loss("mean_weight", weighted_mean, _weighted_mean, ("counts",), shift_invariant=False),
    Loss("target_table", looked_up, _looked_up, ("shift",), soft=False),
)
