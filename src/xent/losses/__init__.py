"""The family of losses: each a few lines on the numbers of a row."""

# The catalog lists its members in this order: from the plainest to the most special.
# isort: off
from . import classification, sets, modulated, imbalance, seesaw, margin, robust  # noqa: F401
from . import asymmetric, noise, uncertainty, soft_targets, distillation, decoupled  # noqa: F401
from . import log_probabilities, binary, multilabel, metric, tempered, sparse, evolved  # noqa: F401
from . import detection, hierarchy, ranking, ordinal  # noqa: F401
# isort: on

from .asymmetric import agce_loss, aul_loss
from .binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    continuous_bernoulli_loss,
    reconstruction_excess,
)
from .binary_modulated import (
    quality_focal_loss,
    sigmoid_focal_loss,
    sigmoid_poly1_loss,
    varifocal_loss,
)
from .catalog import CATALOG, Member
from .class_weights import deferred_weights, effective_number_weights
from .classification import cross_entropy
from .contrastive import clip_loss, info_nce_loss, nt_xent_loss, sampled_cross_entropy
from .decoupled import decoupled_distillation_loss
from .detection import YoloParts, yolo_loss
from .distillation import distillation_loss
from .evolved import baikal_cma_loss, baikal_loss, ngl_loss, taylorglo_loss
from .hierarchy import wordtree_cross_entropy
from .imbalance import (
    adjust_logits,
    balanced_softmax_loss,
    hardest_loss,
    ldam_loss,
    logit_adjusted_loss,
    pc_softmax_loss,
    recall_loss,
    vs_loss,
)
from .linear import linear_cross_entropy
from .log_probabilities import kl_div, nll_loss
from .margin import arcface_loss, cosface_loss, large_margin_loss
from .metric import (
    circle_loss,
    decoupled_contrastive_loss,
    multi_similarity_loss,
    nca_loss,
    supcon_loss,
)
from .modulated import (
    brier_loss,
    complementary_loss,
    confidence_penalty_loss,
    crammer_singer_loss,
    dual_focal_loss,
    focal_loss,
    margin_smoothing_loss,
    poly1_loss,
    smoothed_cross_entropy,
    taylor_cross_entropy,
    unlikelihood_loss,
    weston_watkins_loss,
)
from .multilabel import asymmetric_loss, multilabel_cross_entropy, zlpr_loss
from .noise import (
    backward_corrected_cross_entropy,
    backward_corrected_symmetric_noise_loss,
    forward_corrected_cross_entropy,
    forward_corrected_symmetric_noise_loss,
)
from .noise_matrix import flip_labels, pair_noise_matrix, symmetric_noise_matrix
from .ordinal import continuation_loss, cumulative_link_loss, cumulative_loss
from .ranking import (
    RankedItems,
    cosent_loss,
    cox_loss,
    pairwise_logistic_loss,
    plackett_luce_loss,
)
from .robust import (
    bootstrap_loss,
    generalized_cross_entropy,
    hard_bootstrap_loss,
    mae_loss,
    nce_mae_loss,
    nce_rce_loss,
    normalized_cross_entropy,
    phuber_loss,
    reverse_cross_entropy,
    symmetric_cross_entropy,
    truncated_generalized_cross_entropy,
)
from .seesaw import seesaw_loss
from .sets import set_cross_entropy
from .siglip import siglip_loss
from .soft_targets import (
    mixup,
    mixup_cross_entropy,
    sparse_cross_entropy,
    structured_cross_entropy,
)
from .sparse import entmax_loss, sparsemax_loss
from .tempered import bi_tempered_loss
from .uncertainty import (
    energy_loss,
    entropy_loss,
    evidential_loss,
    logit_norm_loss,
    outlier_exposure_loss,
)

__all__ = [
    "CATALOG",
    "Member",
    "RankedItems",
    "YoloParts",
    "adjust_logits",
    "agce_loss",
    "arcface_loss",
    "asymmetric_loss",
    "aul_loss",
    "backward_corrected_cross_entropy",
    "backward_corrected_symmetric_noise_loss",
    "baikal_cma_loss",
    "baikal_loss",
    "balanced_softmax_loss",
    "bi_tempered_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "bootstrap_loss",
    "brier_loss",
    "circle_loss",
    "clip_loss",
    "complementary_loss",
    "confidence_penalty_loss",
    "continuation_loss",
    "continuous_bernoulli_loss",
    "cosent_loss",
    "cosface_loss",
    "cox_loss",
    "crammer_singer_loss",
    "cross_entropy",
    "cumulative_link_loss",
    "cumulative_loss",
    "decoupled_contrastive_loss",
    "decoupled_distillation_loss",
    "deferred_weights",
    "distillation_loss",
    "dual_focal_loss",
    "effective_number_weights",
    "energy_loss",
    "entmax_loss",
    "entropy_loss",
    "evidential_loss",
    "flip_labels",
    "focal_loss",
    "forward_corrected_cross_entropy",
    "forward_corrected_symmetric_noise_loss",
    "generalized_cross_entropy",
    "hard_bootstrap_loss",
    "hardest_loss",
    "info_nce_loss",
    "kl_div",
    "large_margin_loss",
    "ldam_loss",
    "linear_cross_entropy",
    "logit_adjusted_loss",
    "logit_norm_loss",
    "mae_loss",
    "margin_smoothing_loss",
    "mixup",
    "mixup_cross_entropy",
    "multi_similarity_loss",
    "multilabel_cross_entropy",
    "nca_loss",
    "nce_mae_loss",
    "nce_rce_loss",
    "ngl_loss",
    "nll_loss",
    "normalized_cross_entropy",
    "nt_xent_loss",
    "outlier_exposure_loss",
    "pair_noise_matrix",
    "pairwise_logistic_loss",
    "pc_softmax_loss",
    "phuber_loss",
    "plackett_luce_loss",
    "poly1_loss",
    "quality_focal_loss",
    "recall_loss",
    "reconstruction_excess",
    "reverse_cross_entropy",
    "sampled_cross_entropy",
    "seesaw_loss",
    "set_cross_entropy",
    "siglip_loss",
    "sigmoid_focal_loss",
    "sigmoid_poly1_loss",
    "smoothed_cross_entropy",
    "sparse_cross_entropy",
    "sparsemax_loss",
    "structured_cross_entropy",
    "supcon_loss",
    "symmetric_cross_entropy",
    "symmetric_noise_matrix",
    "taylor_cross_entropy",
    "taylorglo_loss",
    "truncated_generalized_cross_entropy",
    "unlikelihood_loss",
    "varifocal_loss",
    "vs_loss",
    "weston_watkins_loss",
    "wordtree_cross_entropy",
    "yolo_loss",
    "zlpr_loss",
]
