"""Second derivatives of a loss by the scores of a row: of any loss by autograd, of softmax closed.

A loss judges each row alone. So its second derivatives by all scores, ``(N, K)``, are one symmetric
matrix per row, ``(K, K)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

PROBES = 2  # random directions that estimate the curvature of a row
ALL = slice(None)


class Curvature(Protocol):
    """Second derivatives of the mean loss at scores ``(N, K)`` of some rows."""

    def matrices(self, scores: Tensor, rows: slice) -> Tensor:
        """Return the derivatives by two scores of a row, ``(K, N, K)``."""
        ...

    def own(self, scores: Tensor, rows: slice) -> Tensor:
        """Return the derivative by each score twice, ``(N, K)``, or an estimate of it."""
        ...

    def turning(self, scores: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function from a direction of all scores to the change of the slopes."""
        ...


class AutogradCurvature:
    """Second derivatives of any loss.

    Args:
        loss: maps scores and a slice of the rows to the part of the mean that these rows add.
    """

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self.loss = loss

    def matrices(self, scores: Tensor, rows: slice) -> Tensor:
        """Return the derivatives by two scores of a row, ``(K, N, K)``."""
        turn = self._turning(scores, rows)
        columns = torch.eye(scores.shape[1], dtype=torch.float64, device="cpu").unsqueeze(1)
        return torch.stack([turn(v.expand_as(scores)) for v in columns])

    def own(self, scores: Tensor, rows: slice) -> Tensor:
        """Return the derivative by each score twice, ``(N, K)``.

        Exact for K = 1; else estimated from random directions, right in the mean.
        """
        turn = self._turning(scores, rows)
        if scores.shape[1] == 1:
            return turn(torch.ones_like(scores))
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(
            2, (PROBES, *scores.shape), generator=generator, dtype=torch.float64, device="cpu"
        ).mul_(2).sub_(1)  # fmt: skip
        return (signs * torch.stack([turn(v) for v in signs])).mean(0)

    def turning(self, scores: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function from a direction of all scores to the change of the slopes."""
        return self._turning(scores, ALL)

    def _turning(self, scores: Tensor, rows: slice) -> Callable[[Tensor], Tensor]:
        scores = scores.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(self.loss(scores, rows), scores, create_graph=True)
        return lambda v: torch.autograd.grad(slopes, scores, v, retain_graph=True)[0]


class SoftmaxCurvature:
    """Second derivatives of cross-entropy, a fifth of the time of autograd's.

    Args:
        weight: of each row, ``(N,)``.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def matrices(self, scores: Tensor, rows: slice) -> Tensor:
        """Return the derivatives by two scores of a row, ``(K, N, K)``."""
        p = torch.softmax(logits_of(scores), 1)  # (N, C)
        if scores.shape[1] == 1:
            pairs = (p[:, :1] * p[:, 1:]).unsqueeze(0)
        else:
            pairs = -p.T.unsqueeze(2) * p  # (K, N, K)
            own = torch.diagonal(pairs, dim1=0, dim2=2)  # (N, K)
            own.zero_()
            own.copy_(-pairs.sum(2).T)  # 1 - p would lose the digits of a nearly sure class
        return self.weight[rows].unsqueeze(-1) * pairs

    def own(self, scores: Tensor, rows: slice) -> Tensor:
        """Return the derivative by each score twice, ``(N, K)``."""
        log_p = torch.log_softmax(logits_of(scores), 1)[:, -scores.shape[1] :]
        return self.weight[rows].unsqueeze(1) * log_p.exp() * -torch.expm1(log_p)

    def turning(self, scores: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function from a direction of all scores to the change of the slopes."""
        p = torch.softmax(logits_of(scores), 1)  # (N, C)
        if scores.shape[1] == 1:
            alone = self.weight.unsqueeze(1) * p[:, :1] * p[:, 1:]
            return lambda direction: alone * direction
        weighted, likely = self.weight.unsqueeze(1) * p, p.argmax(1, keepdim=True)

        def turn(direction: Tensor) -> Tensor:
            # Relative to the likely class, or a nearly sure row would lose its digits.
            apart = direction - direction.gather(1, likely)
            return weighted.mul(apart.sub_(torch.linalg.vecdot(p, apart).unsqueeze(1)))

        return turn


def logits_of(scores: Tensor) -> Tensor:
    """Return the logits of all classes from the scores: two classes have one score."""
    if scores.ndim == 2 and scores.shape[1] > 1:
        return scores
    scores = scores.reshape(-1, 1)
    return torch.cat([torch.zeros_like(scores), scores], 1)
