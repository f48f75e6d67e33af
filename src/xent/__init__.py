"""xent: cross-entropy and its family, exact, fused and memory-lean.

    import xent
    loss = xent.cross_entropy(logits, target)        # instead of torch.nn.functional.cross_entropy

Reading order: ``row_statistics`` (the idea), ``engines/reference`` (the specification),
``row_loss`` (the frame), ``losses`` (the family); for the speed ``engines/native`` and ``csrc/``.
"""

from importlib.metadata import PackageNotFoundError, version

from . import nn
from ._check import TargetError
from .diagnose import diagnose
from .engines import Explanation
from .losses import cross_entropy
from .measurement import explain, statistics
from .row_loss import row_loss
from .row_statistics import RowStatistics
from .softmax import log_softmax, softmax, softmax_jacobian

try:
    __version__ = version("xent")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Explanation",
    "RowStatistics",
    "TargetError",
    "cross_entropy",
    "diagnose",
    "explain",
    "log_softmax",
    "nn",
    "row_loss",
    "softmax",
    "softmax_jacobian",
    "statistics",
]
