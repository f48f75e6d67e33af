"""Losses that are limits of each other. A test computes both sides of every line.

In the expressions ``z`` are logits of rows and ``y`` their classes, ``logit`` and ``t`` a logit and
a target of the sigmoid family with labels 0 and 1; the mean over the rows or elements is compared.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Relation(NamedTuple):
    """Two expressions that are equal."""

    left: str
    right: str
    where: str = ""

    @property
    def losses(self) -> set[str]:
        """The functions that the two sides call."""
        return set(re.findall(r"\b(\w+)\(", f"{self.left} {self.right}"))


RELATIONS = [
    Relation(*line)
    for line in (
        ("set_cross_entropy(z, y, groups=arange(C))", "cross_entropy(z, y)"),
        ("focal_loss(z, y, gamma=0)", "cross_entropy(z, y)"),
        ("dual_focal_loss(z, y, gamma=0)", "cross_entropy(z, y)"),
        ("poly1_loss(z, y, epsilon=0)", "cross_entropy(z, y)"),
        ("taylor_cross_entropy(z, y, terms=1)", "mae_loss(z, y) / 2"),
        ("smoothed_cross_entropy(z, y, smoothing=0.1)", "cross_entropy(z, y, label_smoothing=0.1)"),
        ("confidence_penalty_loss(z, y, beta=0)", "cross_entropy(z, y)"),
        ("complementary_loss(z2, 1 - y2)", "cross_entropy(z2, y2)", "two classes"),
        ("weston_watkins_loss(z2, y2)", "crammer_singer_loss(z2, y2)", "two classes"),
        ("margin_smoothing_loss(z, y, alpha=0)", "cross_entropy(z, y)"),
        ("cosface_loss(cosines, y, margin=0)", "cross_entropy(64 * cosines, y)"),
        ("arcface_loss(cosines, y, margin=0)", "cross_entropy(64 * cosines, y)"),
        ("large_margin_loss(cosines, y, margin=1, scale=64)", "cross_entropy(64 * cosines, y)"),
        ("ldam_loss(cosines, y, counts=ones)", "cosface_loss(cosines, y, margin=0.5, scale=30)"),
        ("logit_adjusted_loss(z, y, prior=ones)", "cross_entropy(z, y)"),
        ("vs_loss(z, y, counts=counts, gamma=0)", "logit_adjusted_loss(z, y, prior=counts)"),
        ("hardest_loss(z, y, keep=1.0)", "cross_entropy(z, y)"),
        ("seesaw_loss(z, y, counts=counts, p=0, q=0)", "cross_entropy(z, y)"),
        ("bootstrap_loss(z, y, beta=1)", "cross_entropy(z, y)"),
        ("hard_bootstrap_loss(z, y, beta=1)", "cross_entropy(z, y)"),
        ("generalized_cross_entropy(z, y, q=0)", "cross_entropy(z, y)"),
        ("generalized_cross_entropy(z, y, q=1)", "mae_loss(z, y) / 2"),
        (
            "truncated_generalized_cross_entropy(z, y, threshold=0)",
            "generalized_cross_entropy(z, y)",
        ),
        ("phuber_loss(z, y, tau=1e9)", "cross_entropy(z, y)", "every probability above 1 / tau"),
        ("reverse_cross_entropy(z, y, label_floor=exp(-2))", "mae_loss(z, y)"),
        ("symmetric_cross_entropy(z, y, alpha=1, beta=0)", "cross_entropy(z, y)"),
        ("nce_rce_loss(z, y, beta=0)", "normalized_cross_entropy(z, y)"),
        ("nce_rce_loss(z, y, alpha=0)", "reverse_cross_entropy(z, y)"),
        ("nce_mae_loss(z, y, beta=0)", "normalized_cross_entropy(z, y)"),
        ("nce_mae_loss(z, y, alpha=0)", "mae_loss(z, y)"),
        ("agce_loss(z, y, q=1)", "mae_loss(z, y) / 2"),
        ("aul_loss(z, y, q=1)", "mae_loss(z, y) / 2"),
        ("forward_corrected_cross_entropy(z, y, matrix=eye)", "cross_entropy(z, y)"),
        ("backward_corrected_cross_entropy(z, y, matrix=eye)", "cross_entropy(z, y)"),
        (
            "forward_corrected_symmetric_noise_loss(z, y, rate=0.2)",
            "forward_corrected_cross_entropy(z, y, matrix=symmetric_noise_matrix(C, 0.2))",
        ),
        (
            "backward_corrected_symmetric_noise_loss(z, y, rate=0.2)",
            "backward_corrected_cross_entropy(z, y, matrix=symmetric_noise_matrix(C, 0.2))",
        ),
        ("outlier_exposure_loss(z)", "cross_entropy(z, y, label_smoothing=1)"),
        ("structured_cross_entropy(z, y, table=eye)", "cross_entropy(z, y)"),
        ("mixup_cross_entropy(z, y, y, 0.3)", "cross_entropy(z, y)"),
        ("sparse_cross_entropy(z, y[:, None], ones_like(y)[:, None] / 1.0)", "cross_entropy(z, y)"),
        ("nll_loss(log_softmax(z), y)", "cross_entropy(z, y)"),
        (
            "distillation_loss(z, teacher)",
            "kl_div(log_softmax(z), softmax(teacher), reduction='batchmean')",
        ),
        ("binary_cross_entropy(sigmoid(logit), t)", "binary_cross_entropy_with_logits(logit, t)"),
        (
            "sigmoid_focal_loss(logit, t, alpha=None, gamma=0)",
            "binary_cross_entropy_with_logits(logit, t)",
        ),
        ("sigmoid_poly1_loss(logit, t, epsilon=0)", "binary_cross_entropy_with_logits(logit, t)"),
        ("quality_focal_loss(logit, t)", "sigmoid_focal_loss(logit, t, alpha=None)"),
        (
            "varifocal_loss(logit, t, alpha=1, gamma=0)",
            "binary_cross_entropy_with_logits(logit, t)",
        ),
        ("reconstruction_excess(logit, t)", "binary_cross_entropy_with_logits(logit, t)"),
        (
            "asymmetric_loss(logit, t, gamma_neg=0, gamma_pos=0, clip=0)",
            "binary_cross_entropy_with_logits(logit, t)",
        ),
        (
            "multilabel_cross_entropy(labels_z, labels, labels='mean')",
            "binary_cross_entropy_with_logits(labels_z, labels)",
        ),
        (
            "siglip_loss(z[:C], eye, scale=1, bias=0)",
            "multilabel_cross_entropy(z[:C], eye)",
        ),
        ("bi_tempered_loss(z, y, t1=1, t2=1)", "cross_entropy(z, y)"),
        ("entmax_loss(z, y, alpha=1)", "cross_entropy(z, y)"),
        ("entmax_loss(z, y, alpha=2)", "sparsemax_loss(z, y)"),
        ("baikal_cma_loss(z, y, coefficients=[1.0] * 6)", "baikal_loss(z, y)"),
        ("wordtree_cross_entropy(z, y, parent=[-1] * C)", "cross_entropy(z, y)"),
        ("plackett_luce_loss(z, one_hot, top=1)", "cross_entropy(z, y)"),
        (
            "pairwise_logistic_loss(z2, one_hot2)", "cross_entropy(z2, y2)",
            "two items",
        ),
        (
            "cumulative_loss(logit[:, None], t.long())",
            "binary_cross_entropy_with_logits(logit, t)",
            "two classes",
        ),
        (
            "continuation_loss(logit[:, None], t.long())",
            "binary_cross_entropy_with_logits(logit, t)",
            "two classes",
        ),
        (
            "cumulative_link_loss(logit, zeros(1), t.long())",
            "binary_cross_entropy_with_logits(logit, t)",
            "two classes, cutpoint 0",
        ),
    )
]  # fmt: skip


def of(name: str) -> list[Relation]:
    """The relations of a loss."""
    return [relation for relation in RELATIONS if name in relation.losses]
