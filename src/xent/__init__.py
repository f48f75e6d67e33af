"""xent: cross-entropy and its family, exact, fused and memory-lean.

::

    import xent
    loss = xent.cross_entropy(logits, target)        # instead of torch.nn.functional.cross_entropy

This package has the functions that replace PyTorch's, softmax and related functions, and the tools
for a loss of your own. The family of losses is in :mod:`xent.losses`, losses of log-probabilities
are in :mod:`xent.policy`, modules in :mod:`xent.nn`. :mod:`xent.learn`, :mod:`xent.parallel`,
:mod:`xent.plot` and :mod:`xent.integrations` are imported at their first use.

Reading order: ``row_statistics`` (the idea), ``engines/rows/reference`` (the specification),
``frames`` (what makes a loss), ``losses`` (the family); for the speed ``engines/rows/native`` and
``csrc/``.
"""

from . import _start as _start  # first, so that Ctrl-C during the other imports prints one line

# isort: split
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._start import collections_paused as _paused

with _paused():
    from . import information, losses, nn, policy

from ._check import TargetError
from ._package import VERSION as _VERSION
from .diagnose import diagnose
from .engines.choice import Explanation
from .evaluation import Evaluation, evaluate
from .frames.dense_loss import dense_loss
from .frames.dense_rows import DenseRows
from .frames.element_loss import Elements, element_loss
from .frames.row_loss import row_loss
from .heads.answers import sample
from .heads.logits import LinearLogits
from .log_probs import TokenLogProbs, entropy, token_log_probs
from .losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    linear_cross_entropy,
    nll_loss,
)
from .losses.sparse import entmax, sparsemax
from .losses.tempered import tempered_softmax
from .measurement import explain, statistics
from .row_statistics import RowStatistics
from .softmax import log_softmax, softmax, softmax_jacobian
from .targets import shift_labels

if TYPE_CHECKING:
    from . import integrations, learn, parallel, plot

__version__ = _VERSION

__all__ = [
    "DenseRows",
    "Elements",
    "Evaluation",
    "Explanation",
    "LinearLogits",
    "RowStatistics",
    "TargetError",
    "TokenLogProbs",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dense_loss",
    "diagnose",
    "element_loss",
    "entmax",
    "entropy",
    "evaluate",
    "explain",
    "information",
    "integrations",
    "kl_div",
    "learn",
    "linear_cross_entropy",
    "log_softmax",
    "losses",
    "nll_loss",
    "nn",
    "parallel",
    "plot",
    "policy",
    "row_loss",
    "sample",
    "shift_labels",
    "softmax",
    "softmax_jacobian",
    "sparsemax",
    "statistics",
    "tempered_softmax",
    "token_log_probs",
]
_AT_FIRST_USE = ("integrations", "learn", "parallel", "plot")


if not TYPE_CHECKING:  # where every name would be right

    def __getattr__(name: str) -> Any:
        """Import a package at its first use; for a name inside a package, say where it stands."""
        if name in _AT_FIRST_USE:
            return import_module(f".{name}", __name__)
        place = "" if name.startswith("_") else _place_of(name)
        raise AttributeError(f"module 'xent' has no attribute {name!r}{place}", name=name)


def _place_of(name: str) -> str:
    """Return a hint to end a message: the package that has the name, or names that look alike."""
    from ._suggestions import near

    for room in ("losses", "policy", "nn", "information", "learn", "parallel", "plot"):
        if name in _names_in(room):
            return f"; `xent.{name}` is `xent.{room}.{name}`"
    return near(name, __all__)


def _names_in(room: str) -> list[str]:
    """Public names of a package."""
    return import_module(f".{room}", __name__).__all__


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
