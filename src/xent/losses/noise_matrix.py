r"""Noise matrices, which say how often each class is labelled as each other.

``T[i, j]`` is the probability that a row of class ``i`` carries the label ``j``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from .._check import class_indices, is_tensor, whole_number
from .._probabilities import sums_to_1
from ..arrays import takes_arrays
from ..engines.modes import can_look_at, widened
from ..hyperparameters import Logits, PerClass, Range
from ..targets import class_axis


class _Stochastic(PerClass):
    """A rule for noise matrices that fit the classes of the logits."""

    def check(self, name: str, value: Any, input: Logits | None) -> Any:
        """The matrix; raise unless it fits the classes and its rows sum to 1."""
        is_tensor(name, value)
        classes = value.shape[-1:].numel() if input is None else _classes(input)
        if value.shape != (classes, classes):
            raise ValueError(
                f"`{name}` must hold one row and one column for each class, shape ({classes}, "
                f"{classes}); got shape {tuple(value.shape)}"
            )
        if not value.is_floating_point():
            raise TypeError(
                f"`{name}` must be floating point, got {value.dtype}; call {name}.float()"
            )
        if input is not None and value.device != input.device:
            raise ValueError(f"`{name}` is on {value.device}, the logits are on {input.device}")
        hint = (
            f". Since {name}[i, j] is the probability of the label j where class i is true, it is "
            f"rows that sum to 1; the other way round, pass {name}.T"
        )
        sums_to_1(name, value, hint=hint)
        return value


class _BelowChance(Range):
    """A rule for rates of uniform exchange that leave the true label the most likely one."""

    def check(self, name: str, value: Any, input: Logits | None) -> Any:
        """The rate; raise unless the true label stays the most likely one."""
        rate = super().check(name, value, input)
        if input is None:
            return rate
        classes = _classes(input)
        if classes > 1 and rate >= 1 - 1 / classes:
            raise ValueError(
                f"`{name}` must be less than {1 - 1 / classes:.6g} for {classes} classes, got "
                f"{value}: from there on the true class is not the most likely label"
            )
        return rate


def _classes(input: Logits) -> int:
    return input.shape[class_axis(input)]


STOCHASTIC, LEAST_CONDITION = _Stochastic(), Range(1)
NoiseMatrix = Annotated[Tensor, STOCHASTIC]
NoiseRate = Annotated[float, _BelowChance(0, 1)]
Condition = Annotated[float, LEAST_CONDITION]


def inverse(matrix: Tensor, max_condition: float) -> Tensor:
    """The inverse of a noise matrix in float64, if its condition number allows."""
    result, failed = torch.linalg.inv_ex(widened(matrix))
    if not can_look_at(matrix):
        return result
    # Condition in the maximum norm, which is 1 for a stochastic matrix.
    condition = math.inf if failed else result.detach().abs().sum(1).max().item()
    if not condition <= max_condition or failed:
        raise ValueError(
            f"`matrix` is singular or nearly so: its condition number is {condition:.4g}, and "
            f"max_condition={max_condition:g}. Classes that are labelled (nearly) alike cannot be "
            f"told apart; merge them, or mix the identity into the matrix"
        )
    return result


def symmetric_noise_matrix(classes: int, rate: float) -> Tensor:
    """The noise matrix of labels that are exchanged uniformly at random.

    Args:
        classes: how many classes, at least 2.
        rate: share of labels that are wrong, each other class being as likely; in [0, 1].

    Returns:
        ``(classes, classes)``, float64.

    Raises:
        ValueError: for fewer classes, or another rate.

    Example:
        >>> import xent
        >>> xent.losses.symmetric_noise_matrix(3, 0.5)
        tensor([[0.5000, 0.2500, 0.2500],
                [0.2500, 0.5000, 0.2500],
                [0.2500, 0.2500, 0.5000]], dtype=torch.float64)
    """
    classes, rate = _check_noise(classes, rate)
    stray = rate / (classes - 1)
    matrix = torch.full((classes, classes), stray, dtype=torch.float64, device="cpu")
    return matrix.fill_diagonal_(1 - rate)


def pair_noise_matrix(classes: int, rate: float, flips: Mapping[int, int] | None = None) -> Tensor:
    """The noise matrix of labels that are exchanged for one other class each.

    Args:
        classes: how many classes, at least 2.
        rate: share of the labels of a class that are wrong, in [0, 1].
        flips: the wrong label of each class; classes that are not in ``flips`` are always labelled
            right. By default every class is taken for the next one.

    Returns:
        ``(classes, classes)``, float64.

    Raises:
        ValueError: for fewer classes, another rate, or classes in ``flips`` that do not exist.

    Example:
        >>> import xent
        >>> xent.losses.pair_noise_matrix(3, 0.25, {2: 0})
        tensor([[1.0000, 0.0000, 0.0000],
                [0.0000, 1.0000, 0.0000],
                [0.2500, 0.0000, 0.7500]], dtype=torch.float64)
    """
    classes, rate = _check_noise(classes, rate)
    if flips is None:
        flips = {c: (c + 1) % classes for c in range(classes)}
    matrix = torch.eye(classes, dtype=torch.float64, device="cpu")
    for true, observed in flips.items():
        if not (0 <= true < classes and 0 <= observed < classes):
            raise ValueError(
                f"`flips` exchanges class {true} for {observed}; there are {classes} classes, 0 to "
                f"{classes - 1}"
            )
        matrix[true, true] -= rate
        matrix[true, observed] += rate
    return matrix


def _check_noise(classes: int, rate: float) -> tuple[int, float]:
    classes = whole_number("classes", classes)
    if classes < 2:
        raise ValueError(f"`classes` must be a whole number of at least 2, got {classes!r}")
    return classes, Range(0, 1).check("rate", rate, None)


@takes_arrays
def flip_labels(
    labels: Tensor, matrix: NoiseMatrix, generator: torch.Generator | None = None
) -> Tensor:
    """Labels as noise would change them: each is drawn from the row of its class.

    Args:
        labels: true classes, integers, any shape.
        matrix: the noise matrix, ``(C, C)``; rows sum to 1.
        generator: source of randomness; by default torch's global one.

    Returns:
        Labels in the shape of ``labels``, int64.

    Raises:
        ValueError: for a matrix whose rows do not sum to 1, or labels without a row.
        TypeError: for labels or a matrix of another dtype.

    Example:
        >>> import torch, xent
        >>> xent.losses.flip_labels(torch.tensor([0, 1, 2]), xent.losses.pair_noise_matrix(3, 1.0))
        tensor([1, 2, 0])
    """
    STOCHASTIC.check("matrix", matrix, None)
    labels = class_indices("labels", labels)
    if labels.numel() == 0:
        return labels.clone()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= matrix.shape[0]:
        raise ValueError(
            f"`labels` must be classes of `matrix`, 0 to {matrix.shape[0] - 1}; got {low} to {high}"
        )
    rows = matrix.detach()[labels.flatten()]
    return torch.multinomial(rows, 1, generator=generator).view(labels.shape)
