"""Every way into a linear head with its oracle, and the largest errors of exact gradients.

The oracle is float64 PyTorch on the whole logits: a function that gives a value for each row.
"""

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.registry import formulas

N, D, V = 37, 6, 50
LISTED = torch.tensor([0.6, 0.3])
TEACHER = torch.linspace(-2, 3, N * V, dtype=torch.float64).view(V, N).T.sin() * 3


def head(n=N, dtype=torch.float64):
    parts = (torch.randn(n, D), torch.randn(V, D), torch.randn(V))
    return tuple(x.to(dtype).requires_grad_() for x in parts)


def labels(n=N):
    y = torch.randint(V, (n,))
    y[1::3] = -100
    return y


def near(actual, expected, rtol=1e-11, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def reduce(rows, y, reduction):
    rows = torch.where(y != -100, rows, 0)
    total = rows.sum()
    return {"none": rows, "sum": total, "mean": total / (y != -100).sum()}[reduction]


def behind(loss, **options):
    return lambda h, w, b, y, r: loss(xent.LinearLogits(h, w, b), y, reduction=r, **options)


def function(h, w, b, y, r):
    return xent.linear_cross_entropy(h, w, y, linear_bias=b, reduction=r)


def tokens(h, w, b, y, r):
    return reduce(-xent.token_log_probs(xent.LinearLogits(h, w, b), y), y, r)


def listed(h, w, b, y, r):
    z, q = xent.LinearLogits(h, w, b), LISTED.expand(*y.shape, 2)
    return xent.losses.sparse_cross_entropy(z, two_classes(y), q, reduction=r)


def distilled(h, w, b, y, r):
    z, t = xent.LinearLogits(h, w, b), TEACHER[: len(h)]
    return xent.losses.distillation_loss(z, t, temperature=2, row_mask=y != -100, reduction=r)


def two_classes(y):
    return torch.stack([y, torch.where(y < 0, -100, (y + 1) % V)], -1)


def log_p(z, y):
    return torch.log_softmax(z, -1).gather(-1, y.clamp(min=0).view(len(y), -1))


def divergence(z, y):
    p, q = torch.log_softmax(z / 2, -1), torch.log_softmax(TEACHER[: len(z)] / 2, -1)
    return 4 * F.kl_div(p, q, log_target=True, reduction="none").sum(-1)


def smoothed(z, y):
    return F.cross_entropy(z, y, label_smoothing=0.1, reduction="none")


def by_formula(formula):
    """Return a function of the registry, which has no ignored rows."""
    return lambda z, y: formula(z, y.clamp(min=0), {})


WAYS = {
    "function": (function, by_formula(formulas.cross_entropy())),
    "smoothed": (behind(xent.cross_entropy, label_smoothing=0.1), smoothed),
    "focal": (behind(xent.losses.focal_loss), by_formula(formulas.focal)),
    "brier": (behind(xent.losses.brier_loss), by_formula(formulas.brier)),
    "tokens": (tokens, by_formula(formulas.cross_entropy())),
    "listed": (listed, lambda z, y: -(LISTED * log_p(z, two_classes(y))).sum(-1)),
    "distilled": (distilled, divergence),
}
every_way = pytest.mark.parametrize("way", WAYS)
every_sum = pytest.mark.parametrize("reduction", ["mean", "sum"])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def lean(way, parts, y, reduction="mean"):
    return WAYS[way][0](*parts, y, reduction)


def whole(way, parts, y, reduction="mean"):
    return reduce(WAYS[way][1](F.linear(*parts), y), y, reduction)


def grads(loss, parts, slope=None, **options):
    return torch.autograd.grad(loss, parts, slope, **options)


# ---- errors of products in float32, and in 16 bits -----------------------------------------------

UNIT = 2.0**-24  # half a float32 epsilon: what one operation rounds by


def logit_error(h, w, b, products="float32"):
    """Return the largest error of logits (N, V): float32 sums of D products and a bias.

    Products in the type of the input are rounded to that.
    """
    size = h.double().abs() @ w.double().abs().T + b.double().abs()
    error = (h.shape[1] + 1) * UNIT * size
    if products == "input":
        error += rounding(F.linear(h.double(), w.double(), b.double()).abs() + error, h.dtype)
    return error


def slopes(h, w, b, y, products="float32"):
    """Return the gradient of the summed cross-entropy by the logits, and relative errors (N, 1).

    A logit that is off by an error moves a probability by so much of itself; exp of so many nats
    has its argument rounded once, and a few operations follow.
    """
    h, w, b = (x.detach() for x in (h, w, b))
    z = F.linear(h.double(), w.double(), b.double())
    dz = torch.softmax(z, -1)
    rows = torch.arange(len(y))
    dz[rows, y] = 0
    dz[rows, y] = -dz.sum(-1)  # p - 1, without the subtraction
    nats = z.amax(-1, keepdim=True) - z.amin(-1, keepdim=True)
    error = torch.expm1(2 * logit_error(h, w, b, products).amax(-1, keepdim=True))
    return dz, error + (nats + 8) * UNIT


def exact_gradients(h, w, b, y, scale=1.0, products="float32"):
    """Return the gradients of the scaled mean by features, weight, bias, and largest errors.

    An error is that of a float32 sum of so many products, and of one rounding to the dtype. With
    products in the type of the input the factor is rounded to that, and so is the sum of a chunk.
    """
    dz, error = slopes(h, w, b, y, products)
    if products == "input":
        error = error + torch.finfo(h.dtype).eps
    ones = torch.ones(len(h), 1)
    products = ((dz, w, error), (dz.T, h, error.T), (dz.T, ones, error.T))
    found = [_product(*product, scale / len(y)) for product in products]
    found[2] = tuple(x[:, 0] for x in found[2])
    return [(x, most + rounding(x, h.dtype)) for x, most in found]


def _product(left, right, error, scale):
    """Return ``left @ right``, scaled, and its largest error, for such errors of the factors."""
    right = right.detach().double()
    most = error + (left.shape[1] + 4) * UNIT  # the sum, then the scale
    return scale * left @ right, scale * 1.01 * (left.abs() * most) @ right.abs()


def rounding(x, dtype):
    """Return the largest error of one rounding: half a unit in the last place."""
    info = torch.finfo(dtype)
    return info.eps / 2 * x.abs().clamp(min=info.smallest_normal)


def within(actual, exact, most):
    assert bool(((actual.double() - exact).abs() <= most).all())
