"""Records of the registry: losses in one setting, with a formula; entries of the catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mpmath
import torch
from mpmath import mpf
from torch import Tensor

from xent.losses import CATALOG, Member


def nothing(classes: int) -> dict[str, Any]:
    """Return no hyperparameters, for a loss whose hyperparameters all have defaults."""
    return {}


# ---- one loss in one setting, and what it should be -------------------------------------------


@dataclass(frozen=True)
class Loss:
    """A loss of rows, how to call it, what it should be, and which laws it obeys."""

    name: str
    call: Callable[..., Any]
    formula: Callable[..., Tensor]  # (z (N, V) float64, y (N,), settings) -> (N,)
    per_class: tuple[str, ...] = ()  # options that hold one number per class
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Callable[[int], dict[str, Any]] = nothing  # without a default, for so many classes
    shift_invariant: bool = True
    weighted: bool = True  # whether one-hot targets see the class weights as index targets do
    soft: bool = True  # whether it takes soft targets at all
    offset: bool = False  # whether it subtracts numbers of the height of the logits
    cancels: bool = False  # whether it is a difference of terms several times as large
    slopes_cancel: bool = False  # whether its gradient is a difference of terms of some nats
    engines: bool = True  # whether it can be told which engine to run on

    def settings(self, classes: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """Return the keyword arguments for this number of classes."""
        ramp = torch.linspace(0.4, 1.7, classes, dtype=torch.float64)
        found = {**self.arguments(classes), **dict.fromkeys(self.per_class, ramp), **self.options}
        return {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in found.items()}

    def __call__(self, input: Tensor, target: Tensor, **kwargs: Any) -> Any:
        """Call the loss with its settings; ``kwargs`` override them."""
        axis = 0 if input.ndim == 1 else 1
        settings = {**self.settings(input.shape[axis], input.dtype), **kwargs}
        if not self.engines:
            settings.pop("engine", None)
        return self.call(input, target, **settings)

    def truth(self, input: Tensor, target: Tensor) -> Tensor:
        """Return one value per row of (N, V) logits and (N,) classes, in float64."""
        s = self.settings(input.shape[1], input.dtype)
        z = input.double() * s.get("logit_scale", 1.0)
        if "softcap" in s:
            z = s["softcap"] * torch.tanh(z / s["softcap"])
        if "class_bias" in s:
            z = z + s["class_bias"].double()
        return self.formula(z, target, s)


@dataclass(frozen=True)
class ElementLoss:
    """A loss of single elements, how to call it, and what it should be."""

    name: str
    call: Callable[..., Tensor]
    formula: Callable[..., Any]  # (z, t) in mpf -> mpf
    options: Mapping[str, Any] = field(default_factory=dict)
    kernel: bool = False

    def __call__(self, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.call(input, target, *args, **{**self.options, **kwargs})

    def truth(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and slopes, rounded to float64."""
        pairs = zip(z.double().flatten().tolist(), t.double().flatten().tolist(), strict=True)
        both = [[float(x) for x in exact_element(self.formula, *pair)] for pair in pairs]
        values, slopes = torch.tensor(both, dtype=torch.float64).T
        return values.view_as(z), slopes.view_as(z)


def exact_element(formula: Callable[..., Any], x: float, y: float) -> tuple[Any, Any]:
    """Return value and slope of a formula of one element, in mpf."""
    with mpmath.workdps(120):  # for 1 - p at a hundred nats, and its differences
        z, t = mpf(x), mpf(y)
        h = mpf(10) ** -30 * min(abs(z) or 1, 1)
        return formula(z, t), (formula(z + h, t) - formula(z - h, t)) / (2 * h)


# ---- a member of the catalog ------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A member of the catalog: how to call it, what it predicts, and its settings with formulas.

    :meth:`values` makes it a function from logits to its loss for every possible target.
    """

    name: str
    arguments: Callable[[int], dict[str, Any]] = nothing  # without a default, for so many classes
    # What follows the logits where it is not one tensor of targets: from logits (N, C) and a class
    # for each row.
    follows: Callable[[Tensor, Tensor], tuple[Any, ...]] | None = None
    predicts: Callable[[Tensor], Tensor] | None = None  # where it is not softmax or the sigmoid
    labels: int = 0  # how many labels a row has that are 0 or 1; 0 if it has a class
    more_logits: int = 0  # of a row than there are outcomes
    cosines: bool = False  # whether the logits lie between -1 and 1
    batch: bool = False  # whether what a row costs depends on the other rows
    # Why there is no list of all possible targets: the facts are tested elsewhere, or do not apply.
    apart: str = ""
    settings: tuple[Loss | ElementLoss, ...] = ()

    @property
    def member(self) -> Member:
        """What the catalog knows of it."""
        return CATALOG[self.name]

    @property
    def function(self) -> Callable[..., Any]:
        """The loss function."""
        return self.member.function

    def width(self, outcomes: int) -> int:
        """Return how many logits a row has."""
        return self.labels or outcomes + self.more_logits

    def targets(self, outcomes: int) -> Tensor:
        """Return every possible target, one per row."""
        if self.labels:
            bits = [torch.tensor([0.0, 1.0], dtype=torch.float64)] * self.labels
            return torch.cartesian_prod(*bits).view(-1, self.labels)
        if self.member.targets == "soft":
            return torch.eye(outcomes, dtype=torch.float64)
        return torch.arange(outcomes)

    def values(self, z: Tensor, outcomes: int) -> Tensor:
        """Return the loss of each row of ``z`` with each target, ``(N, outcomes)``."""
        n = z.shape[0]
        arguments = self.arguments(outcomes)
        rows = z.repeat_interleave(outcomes, 0)
        targets = self.targets(outcomes)
        targets = targets.repeat(n, *[1] * (targets.ndim - 1))
        if self.batch:
            pairs = zip(rows.split(1), targets.split(1), strict=True)
            return torch.stack([self.function(a, b, **arguments) for a, b in pairs]).view(n, -1)
        values = self.function(*self.data(rows, targets), reduction="none", **arguments)
        return values.reshape(n, outcomes)

    def data(self, z: Tensor, y: Tensor) -> tuple[Any, ...]:
        """Return logits and the arguments after them in a call."""
        return (z, *self.follows(z, y)) if self.follows else (z, y)

    def predictions(self, z: Tensor) -> Tensor:
        """Return the probability of each outcome."""
        default = torch.sigmoid if self.labels else lambda z: torch.softmax(z, 1)
        predicted = (self.predicts or default)(z)
        return self.of_labels(predicted) if self.labels else predicted

    def of_labels(self, marginals: Tensor) -> Tensor:
        """Return the distribution of independent labels, from the probability that each is 1."""
        yes = self.targets(0)[:, None]
        return (yes * marginals + (1 - yes) * (1 - marginals)).prod(-1).T
