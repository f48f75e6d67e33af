"""Synthetic classes with known mutual information: Gaussians on a line, by quadrature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import log_softmax
from ...information import entropy_from_counts

__all__ = ["GaussianClasses"]

BALANCED = (10_000,) * 5
IMBALANCED = (5_000, 10_000, 15_000, 20_000, 25_000)


@dataclass(frozen=True)
class GaussianClasses:
    r"""Features of class c from :math:`N(\mu_c \mathbf{1}, I_d)`: the synthetic sets of Qin et al.

    Args:
        dims: number of features, d.
        counts: rows of each class.
        means: :math:`\mu_c`, one for each class.

    Example:
        >>> from xent.learn import GaussianClasses
        >>> easy = GaussianClasses(dims=5)
        >>> round(easy.mutual_information(), 4), round(easy.entropy, 4)
        (1.5544, 1.6094)
        >>> x, y = easy.sample(seed=0)
        >>> x.shape, y.shape
        (torch.Size([50000, 5]), torch.Size([50000]))

    References:
        Qin, Kim & Gedeon, *Neural network classifiers as mutual information evaluators*, 2021.
    """

    dims: int = 1
    counts: Sequence[int] = BALANCED
    means: Sequence[float] = (0.0, 2.0, -2.0, 4.0, -4.0)

    def __post_init__(self) -> None:
        fits = self.dims >= 1 and len(self.counts) == len(self.means) and min(self.counts) >= 1
        if not fits or not all(map(math.isfinite, self.means)):
            raise ValueError(
                f"`dims` and all `counts` must be at least 1, and each class needs one of `means`, "
                f"a finite number; got {self}"
            )

    @property
    def entropy(self) -> float:
        """H(Y) in nats."""
        return entropy_from_counts(
            torch.tensor(self.counts, dtype=torch.int64, device="cpu")
        ).item()

    def sample(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Features ``(N, d)`` in float64 and classes ``(N,)``, ``counts`` rows of each class.

        Args:
            seed: of the rows; another seed gives other rows.
        """
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(len(self.counts), device="cpu").repeat_interleave(
            torch.tensor(self.counts, dtype=torch.int64, device="cpu")
        )
        noise = torch.randn(
            len(y), self.dims, dtype=torch.float64, generator=generator, device="cpu"
        )
        return noise + torch.tensor(self.means, dtype=torch.float64, device="cpu")[y, None], y

    def log_posterior(self, x: Tensor) -> Tensor:
        """Log-probabilities of the classes, ``(N, C)``, which no classifier can improve.

        Args:
            x: features, ``(N, d)``.
        """
        return log_softmax(self._joint(x.double().sum(1) / math.sqrt(self.dims)))

    def mutual_information(self) -> float:
        r"""I(X; Y) in nats, by quadrature.

        The projection on the diagonal, :math:`t = \sum_k x_k / \sqrt d`, is sufficient: there the
        classes are :math:`N(\mu_c \sqrt d, 1)`. All other directions hold the same noise for every
        class.

        Raises:
            ImportError: without SciPy.
        """
        from scipy.integrate import quad

        def integrand(t: float) -> float:
            joint = self._joint(torch.tensor([t], dtype=torch.float64, device="cpu"))
            # Sum over the classes of p(c, t) log p(c | t); its integral is -H(Y | T).
            density = joint.exp() / math.sqrt(2 * math.pi)
            return (density * log_softmax(joint)).sum().item()

        places = {mu * math.sqrt(self.dims) for mu in self.means}
        # Where classes are far apart, points are needed only near each class.
        ends = sorted({place + side for place in places for side in (-12, 0, 12)})
        value, _ = quad(integrand, ends[0], ends[-1], points=ends[1:-1], limit=500, epsabs=1e-10)
        return self.entropy + value

    def _joint(self, t: Tensor) -> Tensor:
        """Log of ``pi_c`` times the density of class c at ``t``, less a constant: ``(N, C)``."""
        means = torch.tensor(self.means, dtype=torch.float64, device="cpu") * math.sqrt(self.dims)
        prior = torch.tensor(self.counts, dtype=torch.float64, device="cpu")
        return (prior / prior.sum()).log() - (t[:, None] - means).square() / 2
