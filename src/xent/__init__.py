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
from .losses import (
    adjust_logits,
    arcface_loss,
    backward_corrected_cross_entropy,
    baikal_cma_loss,
    baikal_loss,
    balanced_softmax_loss,
    bootstrap_loss,
    brier_loss,
    complementary_loss,
    confidence_penalty_loss,
    cosface_loss,
    crammer_singer_loss,
    cross_entropy,
    deferred_weights,
    effective_number_weights,
    flip_labels,
    focal_loss,
    forward_corrected_cross_entropy,
    generalized_cross_entropy,
    hard_bootstrap_loss,
    hardest_loss,
    large_margin_loss,
    ldam_loss,
    logit_adjusted_loss,
    mae_loss,
    nce_mae_loss,
    nce_rce_loss,
    ngl_loss,
    normalized_cross_entropy,
    pair_noise_matrix,
    pc_softmax_loss,
    poly1_loss,
    recall_loss,
    reverse_cross_entropy,
    smoothed_cross_entropy,
    symmetric_cross_entropy,
    symmetric_noise_backward,
    symmetric_noise_forward,
    symmetric_noise_matrix,
    taylor_cross_entropy,
    taylorglo_loss,
    truncated_generalized_cross_entropy,
    unlikelihood_loss,
    vs_loss,
)
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
    "adjust_logits",
    "arcface_loss",
    "backward_corrected_cross_entropy",
    "baikal_cma_loss",
    "baikal_loss",
    "balanced_softmax_loss",
    "bootstrap_loss",
    "brier_loss",
    "complementary_loss",
    "confidence_penalty_loss",
    "cosface_loss",
    "crammer_singer_loss",
    "cross_entropy",
    "deferred_weights",
    "diagnose",
    "effective_number_weights",
    "explain",
    "flip_labels",
    "focal_loss",
    "forward_corrected_cross_entropy",
    "generalized_cross_entropy",
    "hard_bootstrap_loss",
    "hardest_loss",
    "large_margin_loss",
    "ldam_loss",
    "log_softmax",
    "logit_adjusted_loss",
    "mae_loss",
    "nce_mae_loss",
    "nce_rce_loss",
    "ngl_loss",
    "nn",
    "normalized_cross_entropy",
    "pair_noise_matrix",
    "pc_softmax_loss",
    "poly1_loss",
    "recall_loss",
    "reverse_cross_entropy",
    "row_loss",
    "smoothed_cross_entropy",
    "softmax",
    "softmax_jacobian",
    "statistics",
    "symmetric_cross_entropy",
    "symmetric_noise_backward",
    "symmetric_noise_forward",
    "symmetric_noise_matrix",
    "taylor_cross_entropy",
    "taylorglo_loss",
    "truncated_generalized_cross_entropy",
    "unlikelihood_loss",
    "vs_loss",
]
