"""Information: entropies and divergences of distributions and counts, and the meaning of a loss.

Functions on probability vectors take the axis of the classes as ``dim`` and compute in float64:

* ``0 log 0`` is 0, and a result is infinite where the formula is; nothing is added or clipped.
* No term of a divergence is negative, and none is a difference of nearly equal numbers:
  ``kl_divergence(p, p)`` is 0, and a divergence of 1e-20 has all its digits.
* Vectors that do not sum to 1 are refused. ``from_logits=True`` takes logits instead.
* Gradients are exact. Only at a probability of exactly 0, where the derivative may be infinite, a
  finite number replaces it, so that a class masked by ``-inf`` behind a softmax gets gradient 0.

Example:
    >>> import torch
    >>> from xent import information
    >>> coin = torch.tensor([0.99, 0.01], dtype=torch.float64)
    >>> print(f"{information.entropy(coin, unit='bit').item():.10f}")
    0.0807931359
    >>> print(information.report(0.25, counts=[50, 50, 50]))
    loss             0.2500 nats = 0.3607 bits
    perplexity       1.2840
    probability      0.7788 of the target, geometric mean
    label entropy    1.0986 nats
    skill            0.7724 = 1 - loss / label entropy (McFadden's R^2)
    excess           0.2500 nats over the floor of 0.0000
    information      0.8486 nats about the label, at most 1.0986 = label entropy
"""

from .common import NATS_PER_BIT
from .counts import combinatorial_entropy, entropy_from_counts, entropy_from_samples
from .distributions import (
    cross_entropy_of,
    entropy,
    information_content,
    jensen_shannon,
    jensen_shannon_distance,
    kl_divergence,
    perplexity,
)
from .interpretation import Report, bits_per_byte, report
from .reliability import Reliability, bin_confidences

__all__ = [
    "NATS_PER_BIT",
    "Reliability",
    "Report",
    "bin_confidences",
    "bits_per_byte",
    "combinatorial_entropy",
    "cross_entropy_of",
    "entropy",
    "entropy_from_counts",
    "entropy_from_samples",
    "information_content",
    "jensen_shannon",
    "jensen_shannon_distance",
    "kl_divergence",
    "perplexity",
    "report",
]
