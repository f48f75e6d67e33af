"""Tools of the tests: distances in ulps, exact values from mpmath, calls with gradients."""

import math
import warnings

import mpmath
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

mpmath.mp.dps = 50

HALF = (torch.bfloat16, torch.float16)


def widest(engine: str) -> torch.dtype:
    """Return the dtype with the most digits that an engine takes."""
    return torch.float32 if engine == "triton" else torch.float64


def spacing(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return one unit in the last place of ``dtype`` at each (float64) value."""
    info = torch.finfo(dtype)
    magnitude = value.double().abs().clamp(min=info.tiny)
    exponent = torch.frexp(magnitude).exponent.double() - 1
    return torch.exp2(exponent) * info.eps


def ulps(actual: Tensor, truth: Tensor) -> Tensor:
    """Return the distance from a float64 truth in units of the last place of ``actual``'s dtype.

    Equal infinities and NaN in both places are at distance 0, in one of them at infinity.
    """
    a, t = actual.detach().double(), truth.detach().double()
    assert a.shape == t.shape, (a.shape, t.shape)
    distance = (a - t).abs() / spacing(t.nan_to_num(0, 0, 0), actual.dtype)
    same = (a == t) | (a.isnan() & t.isnan())
    distance = torch.where(same, 0.0, distance)
    return torch.where(~same & (a.isnan() | t.isnan()), math.inf, distance)


def worst(actual: Tensor, truth: Tensor, nats: Tensor | float = 0.0) -> float:
    """Return the largest distance in ulps, less half an epsilon (relative) per nat.

    The allowance is for exp: its argument of so many nats is itself rounded once.
    """
    forgiven = nats / 2 * torch.finfo(actual.dtype).eps * truth.double().abs()
    distance = ulps(actual, truth) - forgiven / spacing(truth.nan_to_num(0, 0, 0), actual.dtype)
    return distance.max().item() if distance.numel() else 0.0


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return True if tensors are equal to the bit, with the sign of 0; NaN equals NaN."""
    same = (a == b) & (a.signbit() == b.signbit())
    return a.shape == b.shape and a.dtype == b.dtype and bool((same | (a != a) & (b != b)).all())


def value_and_grad(loss, input: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    """Return the loss of a fresh copy of ``input`` and the gradient of its sum."""
    z = input.detach().requires_grad_()
    value = loss(z, *args, **kwargs)
    (grad,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), grad


def opcheck(op, arguments) -> None:
    """Run ``torch.library.opcheck``, without PyTorch 2.14's warnings about itself."""
    with warnings.catch_warnings():
        message = r"The \.grad attribute of a Tensor that is not a leaf"
        warnings.filterwarnings("ignore", message, UserWarning, module=r"torch\.")
        torch.library.opcheck(op, arguments)


def nats_below_top(z: Tensor, dim: int = -1) -> Tensor:
    """Return how many nats each logit lies below the largest of its row."""
    z = z.double()
    return z.amax(dim, keepdim=True) - z


def exact_row(z: Tensor, q: list | None = None, y: int | None = None, scale=1):
    """Return loss and gradient of one row of logits in 50 digits, as lists of mpf."""
    values = [mpmath.mpf(v) * scale for v in z.double().tolist()]
    if q is None:
        q = [mpmath.mpf(j == y) for j in range(len(values))]
    top = max(values)
    e = [mpmath.exp(v - top) for v in values]
    total, mass = mpmath.fsum(e), mpmath.fsum(q)
    if y is not None:  # 1 - p as the sum of the others
        others = mpmath.fsum(v for j, v in enumerate(e) if j != y)
        loss = mpmath.log1p(others / e[y]) if e[y] else mpmath.inf
    else:
        loss = mpmath.fsum(
            qj * (mpmath.log(total) - (v - top)) for qj, v in zip(q, values, strict=True) if qj
        )
    grad = []
    for j, (ej, qj) in enumerate(zip(e, q, strict=True)):
        grad.append(-(others / total) if j == y else scale * (mass * ej / total - qj))
    return loss, grad


def exact(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy of index targets and its gradient, rows of (N, V), as float64."""
    rows = [exact_row(row, y=int(label)) for row, label in zip(z, y, strict=True)]
    loss = torch.tensor([float(r[0]) for r in rows], dtype=torch.float64)
    grad = torch.tensor([[float(g) for g in r[1]] for r in rows], dtype=torch.float64)
    return loss, grad


def head(n=37, d=6, v=50, dtype=torch.float64):
    """Return features, weight and bias of a linear head."""
    parts = (torch.randn(n, d), torch.randn(v, d), torch.randn(v))
    return tuple(x.to(dtype).requires_grad_() for x in parts)


def grads(loss, parts, slope=1.5):
    """Return the gradients of a multiple of a loss, or of the sum of losses."""
    return torch.autograd.grad((loss * slope).sum(), parts, allow_unused=True)


class Largest(TorchDispatchMode):
    """A mode that records the largest number of elements that any new tensor has in memory."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [
            min(t.numel(), t.untyped_storage().nbytes() // t.itemsize)  # an expanded one has less
            for t in tree_leaves(out)
            if isinstance(t, torch.Tensor) and t.layout is torch.strided
        ]
        self.numel = max(self.numel, *made, 0)
        return out
