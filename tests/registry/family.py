"""An entry for every member of the catalog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import xent
from xent.losses import CATALOG

from . import element_formulas as element
from . import formulas
from .records import ElementLoss, Entry, Loss, nothing

# ---- hyperparameters without a default, for so many classes -------------------------------------


def counts(classes: int) -> dict[str, Any]:
    return {"counts": torch.logspace(2, 0, classes, dtype=torch.float64)}


def prior(classes: int) -> dict[str, Any]:
    return {"prior": torch.logspace(2, 0, classes, dtype=torch.float64)}


def noise(classes: int) -> dict[str, Any]:
    """Return a matrix: one label in five is that of the next class, and never of another."""
    eye = torch.eye(classes, dtype=torch.float64)
    return {"matrix": 0.8 * eye + 0.2 * eye.roll(1, 1)}


def near(classes: int) -> dict[str, Any]:
    """Return a margin: logits of the distributions in the tests lie nearer than the default one."""
    return {"margin": 1.0}


def rate(classes: int) -> dict[str, Any]:
    return {"rate": 0.2}


def table(classes: int) -> dict[str, Any]:
    """Return soft targets that prefer the next class to the others."""
    eye = torch.eye(classes, dtype=torch.float64)
    return {"table": 0.7 * eye + 0.2 * eye.roll(1, 1) + 0.1 / classes}


def tree(classes: int) -> dict[str, Any]:
    """Return a tree: node 0 has all leaves below it but the first, node 1."""
    return {"parent": [-1, -1, *[0] * (classes - 1)]}


def summed(classes: int) -> dict[str, Any]:
    return {"reduction": "sum"}


def with_the_next(z: Tensor, y: Tensor) -> Tensor:
    """Return sets of two classes: that of each row, and the class after it."""
    classes = torch.arange(z.shape[1], device=z.device)
    return ((classes - y.unsqueeze(-1)) % z.shape[1]) < 2


# ---- predictions --------------------------------------------------------------------------------


def of_the_leaves(z: Tensor) -> Tensor:
    """Return the probabilities of the leaves of :func:`tree`."""
    top = torch.softmax(z[:, :2], 1)
    return torch.cat([top[:, 1:], top[:, :1] * torch.softmax(z[:, 2:], 1)], 1)


def of_cumulative(z: Tensor) -> Tensor:
    """Return the probabilities of classes in order, from those of being above each but the last."""
    above = torch.nn.functional.pad(torch.sigmoid(z), (1, 0), value=1.0)
    return above - torch.nn.functional.pad(torch.sigmoid(z), (0, 1))


def of_continuation(z: Tensor) -> Tensor:
    """Return the probabilities of classes in order, from those of going on beyond each."""
    reached = torch.nn.functional.pad(torch.sigmoid(z).cumprod(1), (1, 0), value=1.0)
    return reached * torch.nn.functional.pad(torch.sigmoid(-z), (0, 1), value=1.0)


def mean_of_continuous_bernoulli(z: Tensor) -> Tensor:
    """Return the mean of the density over [0, 1] with this logit."""
    return 0.5 + z / 12 - z**3 / 720 if z.abs().max() < 1e-2 else 1 / -torch.expm1(-z) - 1 / z


# ---- orders -------------------------------------------------------------------------------------


def order(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Return a relevance for each item of a list: item y last, the item before it first."""
    return ((torch.arange(z.shape[1], device=z.device) - y[:, None]) % z.shape[1],)


def times(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Return the times of :func:`order`, and events at all but one of them."""
    (time,) = order(z, y)
    return time, time != 1


def classes_of(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Return the classes, of a loss whose targets the catalog calls by another name."""
    return (y,)


def of_a_dirichlet(z: Tensor) -> Tensor:
    """Return the mean of a Dirichlet distribution with this evidence."""
    alpha = 1 + z.exp()
    return alpha / alpha.sum(1, keepdim=True)


# ---- entries ------------------------------------------------------------------------------------


def rows(
    name: str, *settings: tuple[str, Any, dict[str, Any]], arguments: Any = nothing, **facts: Any
) -> Entry:
    """Return the entry of a loss of rows; settings for the laws are label, formula and facts."""
    call = CATALOG[name].function
    losses = (Loss(label, call, f, arguments=arguments, **more) for label, f, more in settings)
    return Entry(name, arguments, settings=tuple(losses), **facts)


def elements(name: str, *settings: tuple[Any, dict[str, Any]], kernel: bool = True, **facts: Any):
    """Return the entry of a loss of single elements; settings are formula and options."""
    call = CATALOG[name].function
    losses = (
        ElementLoss(
            name + "".join(f" {k}={v}" for k, v in options.items()), call, f, options, kernel
        )
        for f, options in settings
    )
    return Entry(name, labels=1, settings=tuple(losses), **facts)


def setting(label: str, formula: Callable[..., Tensor], *per_class: str, **facts: Any):
    """Return a setting: ``options`` are those of the call; other facts are fields of `Loss`."""
    return label, formula, {"per_class": per_class, **facts}


def hard(label: str, formula: Callable[..., Tensor], *per_class: str, **facts: Any):
    """Return a setting of a loss that takes one class per row, and no distribution."""
    return setting(label, formula, *per_class, soft=False, **facts)


def dense(label: str, formula: Callable[..., Tensor], *per_class: str, **options: Any):
    """Return a setting of a loss of all logits of a row at once, which has no choice of engine."""
    facts = {"offset": True, "engines": False, "options": options}
    return setting(label, formula, *per_class, **facts)


def unsoft(label: str, formula: Callable[..., Tensor], **options: Any):
    """Return such a setting of a loss that takes one class per row.

    Margins lie off the grid of the logits: a hinge has no derivative where it bends.
    """
    return hard(label, formula, offset=True, engines=False, options=options)


CE, F = formulas.cross_entropy, formulas
ENTRIES = [
    # ---- classification, modulated
    rows(
        "cross_entropy",
        setting("plain", CE()),
        setting("weight", CE(), "weight"),
        setting("label_smoothing", CE(0.1), options={"label_smoothing": 0.1}, offset=True),
        setting(
            "smoothing+weight", CE(0.3), "weight", options={"label_smoothing": 0.3}, offset=True
        ),
        setting("z_loss", CE(0, 0.01), "weight", options={"z_loss": 0.01}, shift_invariant=False),
        setting("softcap", CE(), options={"softcap": 3.0}, shift_invariant=False),
        setting("class_bias", CE(), "class_bias", offset=True),
        setting("logit_scale", CE(), options={"logit_scale": 0.7}),
        setting(
            "all at once", CE(0.1, 0.01), "weight", "class_bias", shift_invariant=False,
            options={"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "logit_scale": 1.3},
        ),
    ),
    rows("set_cross_entropy", follows=lambda z, y: (with_the_next(z, y),)),
    rows("focal_loss", hard("focal loss", F.focal, "weight")),
    rows("dual_focal_loss", unsoft("dual focal", F.dual_focal)),
    rows("poly1_loss", hard("poly1", F.poly1)),
    rows(
        "taylor_cross_entropy",
        hard("taylor", F.taylor(2)),
        hard("taylor of 6", F.taylor(6), options={"terms": 6}),
    ),
    rows(
        "smoothed_cross_entropy",
        hard("smoothed", F.smoothed(0.1), offset=True),
        hard(
            "smoothed to a prior", F.smoothed(0.3), "prior", "weight", options={"smoothing": 0.3},
            offset=True,
        ),
        hard(
            "smoothed below zero", F.smoothed(-0.5), options={"smoothing": -0.5}, offset=True,
            cancels=True,
        ),
    ),
    rows("confidence_penalty_loss", hard("confidence penalty", F.confidence_penalty)),
    rows("complementary_loss", hard("complementary", F.complementary)),
    rows("brier_loss", hard("brier", F.brier)),
    rows("crammer_singer_loss", hard("crammer-singer", F.hinge)),
    rows("weston_watkins_loss", unsoft("weston-watkins", F.hinges, margin=1.01)),
    rows(
        "margin_smoothing_loss",
        unsoft("margin smoothing", F.margin_smoothing, margin=1.01),
        arguments=near,
    ),
    # ---- margin, imbalance
    rows("cosface_loss", hard("cosface", F.cosface, options={"scale": 8.0}), cosines=True),
    rows("arcface_loss", hard("arcface", F.arcface, options={"scale": 8.0}), cosines=True),
    rows(
        "large_margin_loss",
        hard("large margin", F.large_margin, options={"scale": 8.0, "margin": 3}),
        cosines=True,
    ),
    rows(
        "logit_adjusted_loss",
        setting("logit adjusted", F.logit_adjusted, options={"tau": 0.8}, offset=True),
        arguments=prior,
    ),
    rows(
        "vs_loss",
        setting("vector scaling", F.vector_scaling, shift_invariant=False),
        arguments=counts,
    ),
    rows(
        "ldam_loss", hard("ldam", F.ldam, options={"scale": 8.0}), arguments=counts, cosines=True
    ),
    rows(
        "seesaw_loss",
        unsoft("seesaw, mitigation", F.mitigation, q=0.0),  # no finite difference sees a constant
        arguments=counts,
    ),
    rows("recall_loss", batch=True),
    rows("hardest_loss", batch=True),
    # ---- robust, noise
    rows("bootstrap_loss", setting("bootstrap", F.bootstrap)),
    rows("hard_bootstrap_loss", hard("hard bootstrap", F.hard_bootstrap)),
    rows("generalized_cross_entropy", hard("gce", F.generalized)),
    rows(
        "truncated_generalized_cross_entropy",
        hard("truncated gce", F.truncated, options={"threshold": 0.1}),
    ),
    rows("phuber_loss", hard("phuber", F.phuber, options={"tau": 4.0})),
    rows("agce_loss", hard("agce", F.agce), hard("agce, flat", F.flat_agce, options=F.FLAT)),
    rows("aul_loss", hard("aul", F.aul)),
    rows("mae_loss", hard("mae", F.mae)),
    rows("reverse_cross_entropy", hard("reverse", F.reverse)),
    rows("symmetric_cross_entropy", hard("symmetric", F.symmetric)),
    rows("normalized_cross_entropy", hard("normalized", F.normalized, offset=True)),
    rows("nce_rce_loss", hard("nce+rce", F.nce_rce, offset=True)),
    rows("nce_mae_loss", hard("nce+mae", F.nce_mae, offset=True)),
    rows("forward_corrected_cross_entropy", arguments=noise),
    rows("backward_corrected_cross_entropy", arguments=noise),
    rows(
        "forward_corrected_symmetric_noise_loss",
        hard("noise forward", F.noise_forward, options={"rate": 0.3}),
        arguments=rate,
    ),
    rows(
        "backward_corrected_symmetric_noise_loss",
        hard("noise backward", F.noise_backward, options={"rate": 0.1}, offset=True),
        arguments=rate,
    ),
    # ---- uncertainty
    rows("outlier_exposure_loss", hard("outlier exposure", F.outlier_exposure, offset=True)),
    rows(
        "energy_loss",
        hard("energy", F.energy, shift_invariant=False),
        hard(
            "energy of outliers", F.energy_of_outliers, shift_invariant=False,
            options={"outliers": True, "margin": -1.0},
        ),
    ),
    rows("entropy_loss", hard("entropy", lambda z, y, s: F.entropy(z), slopes_cancel=True)),
    rows(
        "evidential_loss",
        hard("evidential", F.evidential, shift_invariant=False),
        hard(
            "evidential, expected", F.expected_evidential, shift_invariant=False,
            options={"form": "expected"},
        ),
        predicts=of_a_dirichlet,
    ),
    rows(
        "logit_norm_loss",
        hard(
            "logit norm", F.logit_norm, shift_invariant=False, engines=False,
            options={"temperature": 0.2},
        ),
    ),
    # ---- soft targets, distillation, log-probabilities
    rows("structured_cross_entropy", arguments=table),
    rows("mixup_cross_entropy", follows=lambda z, y: (y, y, 0.3)),
    rows(
        "sparse_cross_entropy",
        follows=lambda z, y: (y[:, None], torch.ones_like(y)[:, None].double()),
    ),
    rows("distillation_loss", follows=lambda z, y: (F.hot(z, y).log(),)),
    rows(
        "decoupled_distillation_loss", follows=lambda z, y: (z.sin(), y),
        apart="a teacher that is certain has no other classes",
    ),
    rows("nll_loss", apart="log-probabilities for an input"),
    rows("kl_div", arguments=summed, apart="log-probabilities for an input, element by element"),
    # ---- binary, multilabel
    elements("binary_cross_entropy_with_logits", (element.binary_cross_entropy, {})),
    rows("binary_cross_entropy", apart="that of the logits, on probabilities"),
    elements(
        "sigmoid_focal_loss",
        (element.focal(0.25, 2), {}),
        (element.focal(None, 1), {"alpha": None, "gamma": 1.0}),
        (element.focal(0.7, 5), {"alpha": 0.7, "gamma": 5.0}),
        (element.focal(0.25, 0.5), {"gamma": 0.5}),
        (element.focal(0.25, 1.7), {"gamma": 1.7}),
        (element.focal(0.25, 0), {"gamma": 0.0}),
    ),
    elements(
        "sigmoid_poly1_loss",
        (element.poly1(1), {}),
        (element.poly1(-0.5), {"epsilon": -0.5}),
        kernel=False,
    ),
    elements(
        "quality_focal_loss", (element.quality(2), {}), (element.quality(0.5), {"beta": 0.5})
    ),
    elements("varifocal_loss", (element.varifocal, {})),
    elements("reconstruction_excess", (element.excess, {})),
    elements(
        "continuous_bernoulli_loss",
        (element.continuous_bernoulli, {}),
        kernel=False,
        predicts=mean_of_continuous_bernoulli,
    ),
    elements(
        "asymmetric_loss",
        (element.asymmetric(4, 1, 0.05), {}),
        (element.asymmetric(2, 0.5, 0), {"gamma_neg": 2.0, "gamma_pos": 0.5, "clip": 0.0}),
        (element.asymmetric(1, 0, 1e-6), {"gamma_neg": 1.0, "gamma_pos": 0.0, "clip": 1e-6}),
        (element.asymmetric(2, 1, 0.75), {"gamma_neg": 2.0, "clip": 0.75}),
    ),
    rows("multilabel_cross_entropy", labels=2),
    rows("zlpr_loss", labels=2),
    rows("siglip_loss", labels=2, predicts=lambda z: torch.sigmoid(10 * z - 10)),
    # ---- batches of features, each compared with the others
    *(
        rows(name, apart="compares examples with each other")
        for name in (
            "supcon_loss", "nca_loss", "decoupled_contrastive_loss", "multi_similarity_loss",
            "circle_loss",
        )
    ),
    # ---- tempered, sparse, evolved
    rows(
        "bi_tempered_loss",
        dense("bi-tempered", F.bi_tempered(0.8, 1.2)),
        dense("bi-tempered, weight", F.bi_tempered(0.8, 1.2), "weight"),
        dense("bi-tempered, both 1", F.bi_tempered(1, 1), t1=1.0, t2=1.0),
        dense("bi-tempered, heavy", F.bi_tempered(0.3, 2.5), t1=0.3, t2=2.5),
        predicts=lambda z: xent.tempered_softmax(z, 1.2),
    ),
    rows("sparsemax_loss", dense("sparsemax", F.entmax(2)), predicts=xent.sparsemax),
    rows(
        "entmax_loss",
        dense("entmax", F.entmax(1.5)),
        dense("entmax, weight", F.entmax(1.5), "weight"),
        dense("entmax of 1.25", F.entmax(1.25), alpha=1.25),
        dense("entmax of 1.8", F.entmax(1.8), alpha=1.8),
        predicts=lambda z: xent.entmax(z, 1.5),
    ),
    rows("baikal_loss", hard("baikal", F.baikal, offset=True)),
    rows("baikal_cma_loss", hard("baikal cma", F.baikal_cma, offset=True)),
    rows("taylorglo_loss", hard("taylorglo", F.taylorglo, options={"theta": F.CROSS_ENTROPY})),
    rows("ngl_loss", setting("ngl", F.ngl, engines=False)),
    # ---- hierarchy, detection
    rows(
        "wordtree_cross_entropy", arguments=tree, follows=lambda z, y: (y + 1,),
        predicts=of_the_leaves, more_logits=1,
    ),
    rows("yolo_loss", apart="a sum of others"),
    # ---- orders
    rows("plackett_luce_loss", follows=order, apart="an order for a target"),
    rows("cox_loss", follows=times, apart="an order for a target"),
    rows("cosent_loss", follows=order, apart="an order for a target"),
    rows("pairwise_logistic_loss", follows=order, apart="an order for a target"),
    # ---- ordered classes
    rows("cumulative_loss", follows=classes_of, predicts=of_cumulative, more_logits=-1),
    rows("continuation_loss", follows=classes_of, predicts=of_continuation, more_logits=-1),
    rows("cumulative_link_loss", apart="a score for an input"),
]  # fmt: skip
