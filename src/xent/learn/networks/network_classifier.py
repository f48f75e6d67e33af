"""A classifier of small networks that stop learning where their held-out loss is least."""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ... import log_softmax
from ...losses import cross_entropy
from .small_networks import SmallNetworks

__all__ = ["NetworkClassifier"]

FEWEST = 5  # least number of steps between two measurements of the held-out loss


class NetworkClassifier(ClassifierMixin, BaseEstimator):
    """The mean logits of a few networks of one hidden layer, each stopped by its held-out rows.

    Made for good probabilities: a network is stopped by its held-out loss, not by its accuracy, and
    the loss of the mean logits is at most the mean of the losses. For tables of numbers; features
    are standardised.

    Args:
        hidden: hidden units of each network.
        networks: how many networks. Each holds out another part of the rows, one in ``networks``.
        loss: any of :mod:`xent` that takes classes; with :func:`xent.losses.logit_adjusted_loss`
            and a ``prior`` the logits are those of PC-softmax.
        batch: rows per step and network.
        lr: step size of Adam.
        patience: after so many steps in which the held-out loss has not fallen by ``tol``, the
            networks learn no more.
        tol: smallest fall of the held-out loss that counts, in nats.
        max_steps: the most steps.
        random_state: seed of the networks and of the rows they hold out; None draws a seed.

    Attributes:
        classes_: the classes, sorted.
        steps_: how many steps were taken.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from xent.learn import NetworkClassifier
        >>> x, y = load_iris(return_X_y=True)
        >>> NetworkClassifier().fit(x, y).score(x, y) > 0.95
        True
    """

    def __init__(
        self,
        hidden: int = 64,
        networks: int = 4,
        *,
        loss: Callable[..., Any] = cross_entropy,
        batch: int = 256,
        lr: float = 3e-3,
        patience: int = 500,
        tol: float = 1e-3,
        max_steps: int = 20_000,
        random_state: int | None = 0,
    ) -> None:
        self.hidden = hidden
        self.networks = networks
        self.loss = loss
        self.batch = batch
        self.lr = lr
        self.patience = patience
        self.tol = tol
        self.max_steps = max_steps
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> NetworkClassifier:
        """Train the networks.

        Args:
            X: features, ``(N, F)``.
            y: classes, ``(N,)``: numbers or words.

        Returns:
            Itself.

        Raises:
            ValueError: for features that are not finite numbers, targets that are no classes, or
                fewer rows than networks.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(y) < self.networks or self.networks < 2:
            raise ValueError(
                f"`networks` must be at least 2 and at most the number of rows, of which each "
                f"holds out a part; got {self.networks} for n_samples = {len(y)}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            self._scaler = StandardScaler().fit(X)  # leaves the scale of a constant column as it is
        scale: Any = self._scaler.scale_
        if not np.isfinite(scale).all():
            raise ValueError("the spread of the features of `X` is too large; scale them first")
        seed = self.random_state
        self._seed = int(np.random.default_rng().integers(1 << 31)) if seed is None else index(seed)
        self._learn(self._features(X), torch.from_numpy(codes))
        return self

    def _learn(self, x: Tensor, y: Tensor) -> None:
        learnt, held = self._parts(y)
        first = self._seed * self.networks
        seeds = range(first, first + self.networks)
        net = SmallNetworks(x.shape[1], len(self.classes_), seeds, hidden=self.hidden)
        with torch.no_grad():  # the networks start from the class frequencies
            net.parameters[2].zero_()
            net.parameters[3].add_((torch.bincount(y) / len(y)).log())
        self._net, best = net, [parameter.detach().clone() for parameter in net.parameters]
        least = self._held_out_loss(x, y, held)
        mark, marked = least.mean().item(), 0
        every = max(FEWEST, learnt.shape[1] // self.batch)
        for step in net.training(x, y, self.loss, rows=learnt, batch=self.batch, lr=self.lr):
            if step % every == 0:
                now = self._held_out_loss(x, y, held)
                better = now < least
                least = torch.where(better, now, least)
                for kept, parameter in zip(best, net.parameters, strict=True):
                    kept[better] = parameter.detach()[better]
                if least.mean().item() < mark - self.tol:
                    mark, marked = least.mean().item(), step
            if step >= self.max_steps or step - marked >= self.patience:
                self.steps_ = step
                break
        net.parameters = best

    def _parts(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows that each network learns from and holds out, ``(networks, n)`` each."""
        generator = torch.Generator().manual_seed(self._seed)
        shuffled = torch.randperm(len(y), generator=generator, device="cpu")
        by_class = shuffled[y[shuffled].argsort(stable=True)]  # so all hold out each class
        held = by_class[: len(y) - len(y) % self.networks].view(-1, self.networks).T
        others = [torch.cat([held[:k], held[k + 1 :]]).flatten() for k in range(self.networks)]
        return torch.stack(others), held

    @torch.no_grad()
    def _held_out_loss(self, x: Tensor, y: Tensor, held: Tensor) -> Tensor:
        z = self._net.logits(x[held])  # (networks, n, C)
        return self.loss(z.flatten(0, 1), y[held].flatten(), reduction="none").view_as(held).mean(1)

    def _features(self, X: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(self._scaler.transform(X), np.float32))

    @torch.no_grad()
    def logits(self, X: Any) -> Tensor:
        """Mean logits of the networks, ``(N, C)``.

        Args:
            X: features, ``(N, F)``.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self._net.logits(self._features(X)).double().mean(0)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Log-probabilities of the classes, ``(N, C)``; none is ``-inf``.

        Args:
            X: features, ``(N, F)``.
        """
        return log_softmax(self.logits(X)).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, ``(N, C)``.

        Args:
            X: features, ``(N, F)``.
        """
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most likely class of each row, ``(N,)``.

        Args:
            X: features, ``(N, F)``.
        """
        best = self.logits(X).argmax(1).numpy()
        return self.classes_[best]
