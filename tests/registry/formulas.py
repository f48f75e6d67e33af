"""Textbook formulas of losses of rows, ``(z (N, V), y (N,), settings) -> (N,)``, in float64."""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

FLOOR = math.log(1e4)  # minus the logarithm of 0, where one is cut off
CMA = (2.7279, 0.9863, 1.5352, -1.1135, 1.3716, -0.8411)
CROSS_ENTROPY = (0.5, 0.5, 1.0, -1.0, 4 / 3, 2.0, -2.0, 0.0)  # expanded around (1/2, 1/2)
ALPHA = 2.4092  # of the loss of the next generation


# ---- pieces -----------------------------------------------------------------------------------


def log_p_y(z: Tensor, y: Tensor) -> Tensor:
    return torch.log_softmax(z, -1).gather(-1, y[:, None])[:, 0]


def p_y(z: Tensor, y: Tensor) -> Tensor:
    return log_p_y(z, y).exp()


def nll(z: Tensor, y: Tensor) -> Tensor:
    return -log_p_y(z, y)


def target(z: Tensor, y: Tensor) -> Tensor:
    """Return the logit of the target."""
    return z.gather(-1, y[:, None])[:, 0]


def others(z: Tensor, y: Tensor) -> Tensor:
    """Return the logits of every class but the target's, where -inf stands."""
    return z.masked_fill(one_hot(y, z.shape[1]).bool(), -torch.inf)


def entropy(z: Tensor) -> Tensor:
    log_p = torch.log_softmax(z, -1)
    return -(log_p.exp() * log_p).sum(-1)


def hot(z: Tensor, y: Tensor) -> Tensor:
    return one_hot(y, z.shape[1]).double()


def weight_of(z: Tensor, y: Tensor, s: dict) -> Tensor:
    """Return the class weight of each row."""
    return class_weight(z, s)[y]


def class_weight(z: Tensor, s: dict) -> Tensor:
    return s.get("weight", torch.ones(z.shape[1])).double()


# ---- cross-entropy and what multiplies it -------------------------------------------------------


def cross_entropy(smoothing: float = 0.0, z_loss: float = 0.0):
    def formula(z, y, s):
        w = class_weight(z, s)
        smooth = -(w * torch.log_softmax(z, -1)).mean(-1)
        loss = (1 - smoothing) * w[y] * nll(z, y) + smoothing * smooth
        return loss + z_loss * w[y] * torch.logsumexp(z, -1).square()

    return formula


def focal(z, y, s):
    return (1 - p_y(z, y)) ** 2 * nll(z, y) * weight_of(z, y, s)


def poly1(z, y, s):
    return nll(z, y) + 2 * (1 - p_y(z, y))


def taylor(terms):
    return lambda z, y, s: sum((1 - p_y(z, y)) ** k / k for k in range(1, terms + 1))


def smoothed(eps):
    def formula(z, y, s):
        prior = s.get("prior", torch.ones(z.shape[1])).double()
        q = (1 - eps) * hot(z, y) + eps * prior / prior.sum()
        return -(q * torch.log_softmax(z, -1)).sum(-1) * weight_of(z, y, s)

    return formula


def confidence_penalty(z, y, s):
    return nll(z, y) - 0.1 * entropy(z)


def complementary(z, y, s):
    return torch.logsumexp(z, -1) - torch.logsumexp(others(z, y), -1)


def brier(z, y, s):
    return (torch.softmax(z, -1) - hot(z, y)).square().sum(-1)


def hinge(z, y, s):
    return (1 + others(z, y).max(-1).values - target(z, y)).clamp(min=0)


def dual_focal(z, y, s):
    p = torch.softmax(z, -1)
    ahead = p >= p.gather(-1, y[:, None])
    return (1 - p_y(z, y) + p.masked_fill(ahead, 0.0).max(-1).values) ** 5 * nll(z, y)


def hinges(z, y, s):
    return (s["margin"] + others(z, y) - target(z, y)[:, None]).clamp(min=0).sum(-1)


def margin_smoothing(z, y, s):
    return nll(z, y) + 0.1 * (z.max(-1).values[:, None] - z - s["margin"]).clamp(min=0).mean(-1)


# ---- margins, and classes of unlike size --------------------------------------------------------


def lowered(z: Tensor, y: Tensor, psi: Tensor, scale: float) -> Tensor:
    """Return cross-entropy of scaled cosines with ``psi`` in the place of the target's cosine."""
    return nll((z.scatter(1, y[:, None], psi[:, None])) * scale, y)


def cosface(z, y, s):
    return lowered(z, y, target(z, y) - 0.35, 8.0)


def arcface(z, y, s):
    cos = target(z, y)
    theta = torch.acos(cos.clamp(-1, 1))
    psi = torch.where(theta + 0.5 <= math.pi, torch.cos(theta + 0.5), cos - 0.5 * math.sin(0.5))
    return lowered(z, y, psi, 8.0)


def large_margin(z, y, s):
    theta = torch.acos(target(z, y).clamp(-1, 1))
    k = torch.floor(3 * theta / math.pi)
    return lowered(z, y, (-1) ** k * torch.cos(3 * theta) - 2 * k, 8.0)


def logit_adjusted(z, y, s):
    prior = s["prior"].double()
    return nll(z + 0.8 * torch.log(prior / prior.sum()), y)


def vector_scaling(z, y, s):
    n = s["counts"].double()
    return nll(z * (n / n.max()) ** 0.3 + torch.log(n / n.sum()), y)


def ldam(z, y, s):
    n = s["counts"].double()
    return lowered(z, y, target(z, y) - (0.5 * (n / n.min()) ** -0.25)[y], 8.0)


def mitigation(z, y, s):
    n = s["counts"].double()
    return nll(z + 0.8 * torch.log(n / n[y][:, None]).clamp(max=0), y)


# ---- robust against wrong labels ----------------------------------------------------------------


def bootstrap(z, y, s):
    return 0.95 * nll(z, y) + 0.05 * entropy(z)


def hard_bootstrap(z, y, s):
    return 0.8 * nll(z, y) - 0.2 * torch.log_softmax(z, -1).max(-1).values


def generalized(z, y, s):
    return (1 - p_y(z, y) ** 0.7) / 0.7


def truncated(z, y, s):
    return (1 - p_y(z, y).clamp(min=0.1) ** 0.7) / 0.7


FLAT = {"a": 0.6, "q": 0.6}


def phuber(z, y, s):
    p = p_y(z, y)
    return (1 - 4 * p).clamp(min=0) - torch.log(p.clamp(min=0.25))


def agce(z, y, s):
    return (4 - (1 + p_y(z, y)) ** 2) / 2


def flat_agce(z, y, s):
    return (1.6**0.6 - (0.6 + p_y(z, y)) ** 0.6) / 0.6


def aul(z, y, s):
    return ((1.5 - p_y(z, y)) ** 0.9 - 0.5**0.9) / 0.9


def mae(z, y, s):
    return (torch.softmax(z, -1) - hot(z, y)).abs().sum(-1)


def reverse(z, y, s):
    return FLOOR * (1 - p_y(z, y))


def symmetric(z, y, s):
    return 0.1 * nll(z, y) + reverse(z, y, s)


def normalized(z, y, s):
    return nll(z, y) / -torch.log_softmax(z, -1).sum(-1)


def nce_rce(z, y, s):
    return normalized(z, y, s) + reverse(z, y, s)


def nce_mae(z, y, s):
    return normalized(z, y, s) + mae(z, y, s)


def noise_forward(z, y, s):
    """Return the formula of forward correction over the classes that are not masked."""
    others = (z > -torch.inf).sum(-1).double() - 1
    p = p_y(z, y)
    return -torch.log((1 - s["rate"]) * p + s["rate"] / others * (1 - p))


def noise_backward(z, y, s):
    classes = (z > -torch.inf).sum(-1).double()
    eps = -s["rate"] * classes / (classes - 1 - s["rate"] * classes)
    log_p = torch.log_softmax(z, -1)
    uniform = -torch.where(log_p > -torch.inf, log_p, 0.0).sum(-1) / classes
    return (1 - eps) * nll(z, y) + eps * uniform


# ---- uncertainty ---------------------------------------------------------------------------------


def outlier_exposure(z, y, s):
    return -torch.log_softmax(z, -1).mean(-1)


def energy(z, y, s):
    return (-torch.logsumexp(z, -1) + 25).clamp(min=0).square()


def energy_of_outliers(z, y, s):
    return (-1 + torch.logsumexp(z, -1)).clamp(min=0).square()


def evidential(z, y, s):
    alpha = 1 + z.exp()
    return (alpha.sum(-1) / alpha.gather(-1, y[:, None])[:, 0]).log()


def expected_evidential(z, y, s):
    alpha = 1 + z.exp()
    return digamma(alpha.sum(-1)) - digamma(alpha.gather(-1, y[:, None])[:, 0])


def digamma(x):
    """Return the function by its series at ``x + 100``: PyTorch's derivative has nine digits."""
    far = x + 100
    series = far.log() - 1 / (2 * far) - 1 / (12 * far**2) + 1 / (120 * far**4)
    return series - sum(1 / (x + k) for k in range(100))


def logit_norm(z, y, s):
    return nll(z / (s["temperature"] * z.square().sum(-1, keepdim=True) ** 0.5), y)


# ---- evolved: published class by class ----------------------------------------------------------


def baikal(z, y, s):
    p = torch.softmax(z, -1)
    return -(p.log() - hot(z, y) / p).mean(-1)


def baikal_cma(z, y, s):
    p = torch.softmax(z, -1)
    c0, c1, c2, c3, c4, c5 = CMA
    return -(c0 * (c1 * (c2 * p).log() - c3 * (c4 * hot(z, y)) / (c5 * p))).mean(-1)


def polynomial(x, p, theta):
    """Return the terms of third order that depend on the prediction, one by one."""
    t0, t1, t2, t3, t4, t5, t6, t7 = theta
    u, v = x - t0, p - t1
    return t2 * v + t3 * v**2 + t4 * v**3 + t5 * u * v + t6 * u * v**2 + t7 * u**2 * v


def trivial(classes, theta):
    """What the polynomials of all classes add up to whatever is predicted: their constants, and the
    slope of a class of label 0 at p = 0, as often as there is probability."""
    p = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(polynomial(0.0, p, theta), p)
    constants = polynomial(1.0, 0.0, theta) + (classes - 1) * polynomial(0.0, 0.0, theta)
    return constants + slope


def taylorglo(z, y, s):
    terms = polynomial(hot(z, y), torch.softmax(z, -1), s["theta"])
    classes = (z > -torch.inf).sum(-1).double()
    return trivial(classes, s["theta"]) - terms.sum(-1)


def ngl(z, y, s):
    p = torch.softmax(z, -1)
    return (torch.exp(ALPHA - p - p * hot(z, y)) - torch.cos(torch.cos(torch.sin(p)))).mean(-1)


# ---- other exponentials than exp ----------------------------------------------------------------


def log_t(p, t):
    return torch.log(p) if t == 1 else (p ** (1 - t) - 1) / (1 - t)


def exp_t(x, t):
    return torch.exp(x) if t == 1 else (1 + (1 - t) * x).clamp(min=0) ** (1 / (1 - t))


def tempered(z, t):
    """Return probabilities, whose normaliser comes from 200 bisections and a step of Newton."""
    z = z - z.detach().amax(-1, keepdim=True)
    low = torch.zeros_like(z[..., :1])
    high = low - log_t(torch.tensor(1 / z.shape[-1], dtype=z.dtype), t)
    for _ in range(200):
        middle = (low + high) / 2
        above = exp_t(z.detach() - middle, t).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    p = exp_t(z - low, t)
    slope = torch.where(p > 0, p**t, 0).sum(-1, keepdim=True).detach()
    return exp_t(z - low - (p.sum(-1, keepdim=True) - 1) / slope, t)


def bi_tempered(t1, t2, tempered=tempered):
    def formula(z, y, s):
        q, p = hot(z, y), tempered(z, t2)
        loss = (p ** (2 - t1) - q ** (2 - t1)) / (2 - t1)
        inner = loss.sum(-1) - log_t(p.gather(1, y[:, None])[:, 0], t1)
        return weight_of(z, y, s) * inner

    return formula


def entmax(alpha, tempered=tempered):
    def formula(z, y, s):
        p = tempered(z, 2 - alpha)
        inner = ((p - hot(z, y)) * z).sum(-1)
        return weight_of(z, y, s) * (inner + (1 - (p**alpha).sum(-1)) / (alpha * (alpha - 1)))

    return formula
