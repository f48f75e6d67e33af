"""The losses under test, each with its formula in float64 and the facts that the laws ask for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import xent


@xent.row_loss
def focal(s, gamma=2.0):
    """A loss of the log-odds alone."""
    return -(torch.sigmoid(-s.log_odds) ** gamma) * s.log_prob


@xent.row_loss(needs="entropy")
def entropy_regularised(s, beta=0.1):
    """Cross-entropy that pays for being sure."""
    return -s.log_prob - beta * s.entropy


@xent.row_loss(needs="mean")
def above_average(s):
    """How far the target lies below the mean logit: a loss of target and mean, without lse."""
    return torch.nn.functional.softplus(s.mean - s.target)


@xent.row_loss(needs=("entropy", "mean"))
def everything(s, a=0.3):
    """Touches every differentiable statistic at once."""
    return (
        s.lse.square() * 0.01
        - s.log_prob
        + a * s.entropy * s.prob
        + (s.lse - s.mean) * s.rest.tanh()
    )


@dataclass(frozen=True)
class Loss:
    """A loss, how to call it, what it should be, and which laws it obeys."""

    name: str
    call: Callable[..., Any]
    formula: Callable[..., Tensor]  # (z (N, V) float64, y (N,), settings) -> (N,)
    per_class: tuple[str, ...] = ()  # options that hold one number per class
    options: dict[str, Any] = field(default_factory=dict)
    shift_invariant: bool = True
    weighted: bool = True  # whether one-hot targets see the class weights as index targets do
    soft: bool = True  # whether it takes soft targets at all
    raw: bool = False  # whether the formula takes logits without their scale and bias
    offset: bool = False  # whether it subtracts numbers of the height of the logits
    cancels: bool = False  # whether it is a difference of terms several times as large

    def settings(self, classes: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """The keyword arguments, for so many classes."""
        ramp = torch.linspace(0.4, 1.7, classes, dtype=torch.float64).to(dtype)
        return {**self.options, **dict.fromkeys(self.per_class, ramp)}

    def __call__(self, input: Tensor, target: Tensor, **kwargs: Any) -> Any:
        """Call it with its settings; ``kwargs`` override them."""
        axis = 0 if input.ndim == 1 else 1
        settings = self.settings(input.shape[axis], input.dtype)
        return self.call(input, target, **{**settings, **kwargs})

    def truth(self, input: Tensor, target: Tensor) -> Tensor:
        """One value per row of (N, V) logits and (N,) classes, in float64."""
        s = self.settings(input.shape[1], input.dtype)
        if self.raw:
            return self.formula(input.double(), target, s)
        z = input.double() * s.get("logit_scale", 1.0)
        if "softcap" in s:
            z = s["softcap"] * torch.tanh(z / s["softcap"])
        if "class_bias" in s:
            z = z + s["class_bias"].double()
        return self.formula(z, target, s)


def parts(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = torch.log_softmax(z, -1)
    return log_p, log_p.gather(-1, y[:, None])[:, 0], z.gather(-1, y[:, None])[:, 0]


def _cross_entropy(smoothing: float = 0.0, z_loss: float = 0.0) -> Callable[..., Tensor]:
    def formula(z: Tensor, y: Tensor, s: dict[str, Any]) -> Tensor:
        w = s.get("weight", torch.ones(z.shape[1])).double()
        log_p, log_p_y, _ = parts(z, y)
        smooth = -(w * log_p).mean(-1)
        loss = (1 - smoothing) * -w[y] * log_p_y + smoothing * smooth
        return loss + z_loss * w[y] * torch.logsumexp(z, -1).square()

    return formula


def _focal(z: Tensor, y: Tensor, s: dict[str, Any]) -> Tensor:
    log_p = parts(z, y)[1]
    return -((1 - log_p.exp()) ** 2) * log_p * s.get("weight", torch.ones(z.shape[1])).double()[y]


def _entropy_regularised(z: Tensor, y: Tensor, _: dict[str, Any]) -> Tensor:
    log_p, log_p_y, _target = parts(z, y)
    return -log_p_y + 0.1 * (log_p.exp() * log_p).sum(-1)


def _above_average(z: Tensor, y: Tensor, _: dict[str, Any]) -> Tensor:
    return torch.nn.functional.softplus(z.mean(-1) - parts(z, y)[2])


def _everything(z: Tensor, y: Tensor, _: dict[str, Any]) -> Tensor:
    log_p, log_p_y, _target = parts(z, y)
    lse, entropy = torch.logsumexp(z, -1), -(log_p.exp() * log_p).sum(-1)
    chosen = torch.nn.functional.one_hot(y, z.shape[1]).bool()
    rest = torch.logsumexp(z.masked_fill(chosen, -torch.inf), -1)
    value = lse.square() * 0.01 - log_p_y + 0.3 * entropy * log_p_y.exp()
    return value + (lse - z.mean(-1)) * rest.tanh()


CE = xent.cross_entropy
LOSSES = [
    Loss("plain", CE, _cross_entropy()),
    Loss("weight", CE, _cross_entropy(), ("weight",)),
    Loss(
        "label_smoothing", CE, _cross_entropy(0.1), options={"label_smoothing": 0.1}, offset=True
    ),
    Loss(
        "smoothing+weight", CE, _cross_entropy(0.3), ("weight",), {"label_smoothing": 0.3},
        offset=True,
    ),
    Loss("z_loss", CE, _cross_entropy(0, 0.01), ("weight",), {"z_loss": 0.01}, False),
    Loss("softcap", CE, _cross_entropy(), (), {"softcap": 3.0}, False),
    Loss("class_bias", CE, _cross_entropy(), ("class_bias",), offset=True),
    Loss("logit_scale", CE, _cross_entropy(), (), {"logit_scale": 0.7}),
    Loss(
        "all at once", CE, _cross_entropy(0.1, 0.01), ("weight", "class_bias"),
        {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "logit_scale": 1.3}, False,
    ),
    Loss("focal", focal, _focal),
    Loss("focal+weight", focal, _focal, ("weight",), weighted=False),
    Loss("entropy", entropy_regularised, _entropy_regularised),
    Loss("mean", above_average, _above_average, offset=True),
    Loss("everything", everything, _everything, shift_invariant=False),
]  # fmt: skip
