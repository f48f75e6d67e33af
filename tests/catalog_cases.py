"""How to call each loss of the catalog, where its name is not enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import xent
from xent.losses import CATALOG, Member


def counts(classes: int) -> dict[str, Any]:
    return {"counts": torch.logspace(2, 0, classes, dtype=torch.float64)}


def prior(classes: int) -> dict[str, Any]:
    return {"prior": torch.logspace(2, 0, classes, dtype=torch.float64)}


def noise(classes: int) -> dict[str, Any]:
    """Labels that are one time in five those of the next class, and never of another."""
    eye = torch.eye(classes, dtype=torch.float64)
    return {"matrix": 0.8 * eye + 0.2 * eye.roll(1, 1)}


def rate(classes: int) -> dict[str, Any]:
    return {"rate": 0.2}


def table(classes: int) -> dict[str, Any]:
    """Soft targets that prefer the next class to the others."""
    eye = torch.eye(classes, dtype=torch.float64)
    return {"table": 0.7 * eye + 0.2 * eye.roll(1, 1) + 0.1 / classes}


def tree(classes: int) -> dict[str, Any]:
    """Node 0 has all leaves below it but the first, node 1."""
    return {"parent": [-1, -1, *[0] * (classes - 1)]}


# Hyperparameters without a default, for so many classes.
SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "backward_corrected_cross_entropy": noise,
    "forward_corrected_cross_entropy": noise,
    "kl_div": lambda _: {"reduction": "sum"},
    "ldam_loss": counts,
    "logit_adjusted_loss": prior,
    "structured_cross_entropy": table,
    "backward_corrected_symmetric_noise_loss": rate,
    "forward_corrected_symmetric_noise_loss": rate,
    "vs_loss": counts,
    "wordtree_cross_entropy": tree,
}

# What follows the logits where it is not one tensor of targets: from logits (N, C) and a class for
# each row.
DATA: dict[str, Callable[[Tensor, Tensor], tuple[Any, ...]]] = {
    "distillation_loss": lambda z, y: (torch.nn.functional.one_hot(y, z.shape[1]).double().log(),),
    "mixup_cross_entropy": lambda z, y: (y, y, 0.3),
    "sparse_cross_entropy": lambda z, y: (y[:, None], torch.ones_like(y)[:, None].double()),
    "wordtree_cross_entropy": lambda z, y: (y + 1,),
}


def wordtree(z: Tensor) -> Tensor:
    """The probabilities of the leaves of :func:`tree`."""
    top = torch.softmax(z[:, :2], 1)
    return torch.cat([top[:, 1:], top[:, :1] * torch.softmax(z[:, 2:], 1)], 1)


def mean_of_continuous_bernoulli(z: Tensor) -> Tensor:
    """The mean of the density over [0, 1] with this logit."""
    return 0.5 + z / 12 - z**3 / 720 if z.abs().max() < 1e-2 else 1 / -torch.expm1(-z) - 1 / z


# What the logits predict, where it is not softmax (or the sigmoid for binary targets).
PREDICTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "continuous_bernoulli_loss": mean_of_continuous_bernoulli,
    "bi_tempered_loss": lambda z: xent.tempered_softmax(z, 1.2),
    "entmax_loss": lambda z: xent.entmax(z, 1.5),
    "siglip_loss": lambda z: torch.sigmoid(10 * z - 10),
    "sparsemax_loss": xent.sparsemax,
    "wordtree_cross_entropy": wordtree,
}

# Losses of rows with several labels, each with a logit of its own.
OF_LABELS = {"multilabel_cross_entropy", "siglip_loss", "zlpr_loss"}

# Losses of cosines, which lie between -1 and 1.
OF_COSINES = {"arcface_loss", "cosface_loss", "large_margin_loss", "ldam_loss"}

# Losses of a batch: what a row costs depends on the other rows.
OF_A_BATCH = {"hardest_loss", "recall_loss"}

# Losses with targets of another kind than a class, a distribution or a number per logit: no list of
# all possible targets exists, so their facts are tested where they are, or do not apply.
APART: dict[str, str] = {
    "binary_cross_entropy": "that of the logits, on probabilities",
    "kl_div": "log-probabilities for an input, element by element",
    "nll_loss": "log-probabilities for an input",
    "yolo_loss": "a sum of others",
}


@dataclass(frozen=True)
class Case:
    """A member of the catalog as a function from logits to its loss for every possible target."""

    member: Member
    settings: Callable[[int], dict[str, Any]]

    @property
    def labels(self) -> int:
        """How many labels a row has that are 0 or 1; 0 if it has a class."""
        if self.member.name in OF_LABELS:
            return 2
        binary = self.member.targets == "binary"
        return int(binary or self.member.name == "continuous_bernoulli_loss")

    def width(self, outcomes: int) -> int:
        """How many logits a row has."""
        return self.labels or outcomes + (self.member.name == "wordtree_cross_entropy")

    def targets(self, outcomes: int) -> Tensor:
        """Every possible target, one per row."""
        if self.labels:
            bits = [torch.tensor([0.0, 1.0], dtype=torch.float64)] * self.labels
            return torch.cartesian_prod(*bits).view(-1, self.labels)
        if self.member.targets == "soft":
            return torch.eye(outcomes, dtype=torch.float64)
        return torch.arange(outcomes)

    def values(self, z: Tensor, outcomes: int) -> Tensor:
        """The loss of each row of ``z`` with each target, ``(N, outcomes)``."""
        n = z.shape[0]
        settings = self.settings(outcomes)
        rows = z.repeat_interleave(outcomes, 0)
        targets = self.targets(outcomes)
        targets = targets.repeat(n, *[1] * (targets.ndim - 1))
        if self.member.name in OF_A_BATCH:
            pairs = zip(rows.split(1), targets.split(1), strict=True)
            return torch.stack([self.member.function(a, b, **settings) for a, b in pairs]).view(
                n, -1
            )
        values = self.member.function(*self.data(rows, targets), reduction="none", **settings)
        return values.reshape(n, outcomes)

    def data(self, z: Tensor, y: Tensor) -> tuple[Any, ...]:
        """Logits and what follows them in a call."""
        return z, *DATA.get(self.member.name, lambda _, y: (y,))(z, y)

    def predictions(self, z: Tensor) -> Tensor:
        """The probability of each outcome."""
        default = torch.sigmoid if self.labels else lambda z: torch.softmax(z, 1)
        predicted = PREDICTIONS.get(self.member.name, default)(z)
        return self.of_labels(predicted) if self.labels else predicted

    def of_labels(self, marginals: Tensor) -> Tensor:
        """The distribution of independent labels, from the probability that each is 1."""
        yes = self.targets(0)[:, None]
        return (yes * marginals + (1 - yes) * (1 - marginals)).prod(-1).T


def case(name: str) -> Case:
    """The case of a member."""
    return Case(CATALOG[name], SETTINGS.get(name, lambda _: {}))
