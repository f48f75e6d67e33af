r"""The objective of a linear classifier: a mean loss of scores, and a penalty on coefficients.

.. math:: f(W) = \ell(\tilde X W^\top) + \tfrac12 \sum_{kj} \lambda_{kj} (W_{kj} - A_{kj})^2

:math:`\tilde X` are the rows with a column of ones for the intercept, W has a row for each score.
The scores are linear in W. So two matrix products turn the derivatives of any loss by the scores
into its gradient and Hessian by W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .curvature import ALL, Curvature
from .design import Design

NEGLIGIBLE = 1e-18  # nats
MANY = 50_000  # entries from which on sweeps in single precision save more than they cost
SINGLE = float(np.finfo(np.float32).eps)  # relative rounding of rows in single precision
HUGE = 1e15  # size of entries from which on single precision may overflow in sums of squares


@dataclass
class Objective:
    """A mean loss of scores, and a quadratic penalty.

    Args:
        design: the rows.
        loss: maps scores ``(N, K)`` to the mean loss, or with a slice of the rows to the part of
            the mean that these rows add.
        bound: the largest curvature of cross-entropy in the scores of a row.
        penalty: weight of the square of each coefficient, ``(K, columns)``.
        anchor: coefficients at which the penalty is 0, ``(K, columns)``.
        curvature: the second derivatives of the loss by the scores.
    """

    design: Design
    loss: Callable[..., Tensor]
    bound: float
    penalty: Tensor
    anchor: Tensor
    curvature: Curvature
    _at: tuple[Tensor, Callable[[Tensor], Tensor]] | None = field(default=None, init=False)
    _last: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    @cached_property
    def rough(self) -> Objective:
        """The objective with rows in single precision, if rounding hides no direction.

        The rounding of the rows must add less curvature than the penalty has. Few rows are left as
        they are, as are those that were given in single precision.
        """
        design = self.design
        if design.rows * design.features <= MANY or design.noise >= SINGLE:
            return self
        hidden = self.bound * design.features * (SINGLE * design.size) ** 2
        penalised = self.penalty[:, : design.features].min().item()
        if not (1 / HUGE < design.size < HUGE and hidden <= penalised):
            return self
        return replace(self, design=design.single)

    def value(self, w: Tensor) -> float:
        """The objective at coefficients ``(K, columns)``, in double precision."""
        with torch.no_grad():
            parts = [self.loss(rows.scores(w), some) for some, rows in self.design.doubled()]
        loss = torch.stack(parts).sum().item()
        apart = w - self.anchor  # a square may be infinite where nothing is penalised
        return loss + 0.5 * (self.penalty * apart * apart).sum().item()

    def slopes(self, w: Tensor) -> Tensor:
        """Derivative of the loss at ``w`` by each score, ``(N, K)``, in double precision."""
        slopes = []
        for some, rows in self.design.doubled():
            scores = rows.scores(w).requires_grad_()
            slopes.append(torch.autograd.grad(self.loss(scores, some), scores)[0])
        return torch.cat(slopes)

    def rounding(self, w: Tensor) -> float:
        """Estimate how much the rounding of ``w`` adds to the objective.

        Where scores are small differences of large products, no float64 coefficients give them
        exactly.
        """
        unit = 0.5 * float(np.finfo(np.float64).eps)
        # No score is a sum of larger products than this; for most data that is enough to know.
        largest = w.abs().sum(1) * max(self.design.size, 1.0)
        most = 0.5 * self.bound * (unit * largest).square().sum().item()
        if most <= NEGLIGIBLE:
            return most
        sizes = torch.cat([rows.absolute().scores(w.abs()) for _, rows in self.design.doubled()])
        return 0.5 * (self.score_curvature(w).abs() * (unit * sizes).square()).sum().item()

    def value_and_gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """The objective and its gradient at coefficients ``(K, columns)``."""
        return self._value_and_gradient(w, [(ALL, self.design)])

    def exact_value_and_gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """The objective and its gradient, in double precision."""
        return self._value_and_gradient(w, self.design.doubled())

    def _value_and_gradient(
        self, w: Tensor, parts: Iterable[tuple[slice, Design]]
    ) -> tuple[float, Tensor]:
        """Look once at each part of the rows: its scores give its loss and its slopes."""
        apart = w - self.anchor  # a square may be infinite where nothing is penalised
        gradient = self.penalty * apart
        value = 0.5 * (gradient * apart).sum().item()
        for some, rows in parts:
            scores = rows.scores(w)
            if rows is self.design:
                self._last = w, scores
            loss = self.loss(leaf := scores.detach().requires_grad_(), some)
            (slopes,) = torch.autograd.grad(loss, leaf)
            gradient = gradient + rows.pull_back(slopes)
            value += loss.item()
        return value, gradient

    def hessian_product(self, w: Tensor, direction: Tensor) -> Tensor:
        """The Hessian at ``w`` times a direction, both ``(K, columns)``."""
        if self._at is None or not torch.equal(self._at[0], w):  # a solver asks often at one w
            self._at = None  # frees the memory of the former first
            if self._last is not None and torch.equal(self._last[0], w):
                scores = self._last[1]
            else:
                scores = self.design.scores(w)
            self._at = w.clone(), self.curvature.turning(scores)
        turns = self._at[1](self.design.scores(direction))
        return self.design.pull_back(turns) + self.penalty * direction

    def hessian_diagonal(self, w: Tensor) -> Tensor:
        """The diagonal of the Hessian of the loss at ``w``, ``(K, columns)``, without penalty.

        Estimated as :meth:`score_curvature`; at least 0.
        """
        return self.design.pull_back_squares(self.score_curvature(w)).clamp_min(0)

    def score_curvature(self, w: Tensor) -> Tensor:
        """The second derivative of the loss at ``w`` by each score, ``(N, K)``, or an estimate."""
        parts = self.design.blocks()
        return torch.cat([self.curvature.own(self.design.scores(w, p), p) for p in parts])

    def score_hessian(self, w: Tensor) -> Tensor:
        """The second derivatives of the loss at ``w`` by two scores of a row, ``(K, N, K)``."""
        parts = self.design.blocks()
        return torch.cat([self.curvature.matrices(self.design.scores(w, p), p) for p in parts], 1)
