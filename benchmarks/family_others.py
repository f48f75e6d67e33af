"""The losses of the family as people write them today, and as other libraries have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .harness.calls import Loss, Step, step

# ---- textbook formulas in PyTorch ---------------------------------------------------------------


def log_prob(z: Tensor, y: Tensor) -> Tensor:
    return F.log_softmax(z, 1).gather(1, y[:, None])[:, 0]


def torch_focal(z: Tensor, y: Tensor) -> Tensor:
    ce = F.cross_entropy(z, y, reduction="none")
    return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


def torch_poly1(z: Tensor, y: Tensor) -> Tensor:
    ce = F.cross_entropy(z, y, reduction="none")
    return (ce + 2 * (1 - torch.exp(-ce))).mean()


def torch_smoothed(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, label_smoothing=0.1)


def torch_penalty(z: Tensor, y: Tensor) -> Tensor:
    log_p = F.log_softmax(z, 1)
    return F.nll_loss(log_p, y) + 0.1 * (log_p.exp() * log_p).sum(1).mean()


def torch_gce(z: Tensor, y: Tensor) -> Tensor:
    p = F.softmax(z, 1).gather(1, y[:, None])[:, 0]
    return ((1 - p**0.7) / 0.7).mean()


def torch_mae(z: Tensor, y: Tensor) -> Tensor:
    return 2 * (1 - F.softmax(z, 1).gather(1, y[:, None])[:, 0]).mean()


def torch_sce(z: Tensor, y: Tensor) -> Tensor:
    p = F.softmax(z, 1).clamp(1e-7, 1)
    hot = F.one_hot(y, z.shape[1]).to(z.dtype).clamp(1e-4, 1)
    return 0.1 * F.cross_entropy(z, y) - (p * hot.log()).sum(1).mean()


def torch_nce(z: Tensor, y: Tensor) -> Tensor:
    log_p = F.log_softmax(z, 1)
    return (log_p.gather(1, y[:, None])[:, 0] / log_p.sum(1)).mean()


def torch_brier(z: Tensor, y: Tensor) -> Tensor:
    return (F.softmax(z, 1) - F.one_hot(y, z.shape[1])).square().sum(1).mean()


def torch_cosface(z: Tensor, y: Tensor) -> Tensor:
    margin = torch.zeros_like(z).scatter_(1, y[:, None], 0.35)
    return F.cross_entropy(64 * (z - margin), y)


def torch_adjusted(z: Tensor, y: Tensor) -> Tensor:
    prior = torch.ones(z.shape[1], dtype=z.dtype)
    return F.cross_entropy(z + torch.log(prior / prior.sum()), y)


def torch_hinge_of_top(z: Tensor, y: Tensor) -> Tensor:
    rest = z.scatter(1, y[:, None], -torch.inf).amax(1)
    return (1 + rest - z.gather(1, y[:, None])[:, 0]).clamp(min=0).mean()


TEXTBOOK: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "focal_loss": torch_focal,
    "poly1_loss": torch_poly1,
    "smoothed_cross_entropy": torch_smoothed,
    "confidence_penalty_loss": torch_penalty,
    "generalized_cross_entropy": torch_gce,
    "mae_loss": torch_mae,
    "symmetric_cross_entropy": torch_sce,
    "normalized_cross_entropy": torch_nce,
    "brier_loss": torch_brier,
    "cosface_loss": torch_cosface,
    "logit_adjusted_loss": torch_adjusted,
    "crammer_singer_loss": torch_hinge_of_top,
}


def torch_sigmoid_focal(z: Tensor, y: Tensor) -> Tensor:
    """Focal loss as torchvision has it."""
    p, ce = torch.sigmoid(z), F.binary_cross_entropy_with_logits(z, y, reduction="none")
    right = p * y + (1 - p) * (1 - y)
    return ((0.25 * y + 0.75 * (1 - y)) * (1 - right) ** 2 * ce).mean()


def torch_quality_focal(z: Tensor, y: Tensor) -> Tensor:
    ce = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    return ((y - torch.sigmoid(z)).abs() ** 2 * ce).mean()


def torch_asymmetric(z: Tensor, y: Tensor) -> Tensor:
    """Asymmetric loss as its authors wrote it, without the clamping."""
    p = torch.sigmoid(z)
    not_p = (1 - p + 0.05).clamp(max=1)
    loss = y * torch.log(p) + (1 - y) * torch.log(not_p)
    right = p * y + not_p * (1 - y)
    return -(loss * (1 - right) ** (1 * y + 4 * (1 - y))).mean()


def torch_excess(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy less the entropy of the targets."""
    entropy = -torch.xlogy(y, y) - torch.xlogy(1 - y, 1 - y)
    return (F.binary_cross_entropy_with_logits(z, y, reduction="none") - entropy).mean()


TEXTBOOK_BINARY: dict[str, Loss] = {
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "sigmoid_focal_loss": torch_sigmoid_focal,
    "quality_focal_loss": torch_quality_focal,
    "asymmetric_loss": torch_asymmetric,
    "reconstruction_excess": torch_excess,
}


def log_probs_of_both(z: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of student and teacher at temperature 2."""
    return F.log_softmax(z / 2, 1), F.log_softmax(teacher / 2, 1)


def torch_forward(z: Tensor, teacher: Tensor) -> Tensor:
    """Distillation at temperature 2 as its paper has it."""
    log_p, log_q = log_probs_of_both(z, teacher)
    return 4 * F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


def torch_reverse(z: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = log_probs_of_both(z, teacher)
    return 4 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def torch_jensen_shannon(z: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = log_probs_of_both(z, teacher)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    to_p = F.kl_div(log_m, log_p, log_target=True, reduction="batchmean")
    return 2 * (to_p + F.kl_div(log_m, log_q, log_target=True, reduction="batchmean"))


DIVERGENCES: dict[str, Loss] = {
    "forward": torch_forward,
    "reverse": torch_reverse,
    "jensen_shannon": torch_jensen_shannon,
}


# ---- libraries ----------------------------------------------------------------------------------


def kornia_losses(reduction: str = "mean") -> dict[str, Loss]:
    """Return the losses that kornia has; the mean of one of rows is over its classes, too."""
    from kornia.losses import binary_focal_loss_with_logits, focal_loss  # pyright: ignore

    def focal(z: Tensor, y: Tensor) -> Tensor:
        return focal_loss(z, y, alpha=None, gamma=2.0, reduction=reduction)

    def binary(z: Tensor, y: Tensor) -> Tensor:
        return binary_focal_loss_with_logits(z, y, alpha=0.25, gamma=2.0, reduction=reduction)

    return {"focal_loss": focal, "sigmoid_focal_loss": binary}


def kornia_steps(z: Tensor, y: Tensor) -> dict[str, Step]:
    """Return steps of the losses that kornia has, on these tensors."""
    suits = of_elements if y.is_floating_point() else of_rows
    return {name: step(loss, z, y) for name, loss in suits(kornia_losses()).items()}


def of_elements(losses: dict[str, Any]) -> dict[str, Any]:
    """Return the losses of single logits among these."""
    return {name: loss for name, loss in losses.items() if name in TEXTBOOK_BINARY}


def of_rows(losses: dict[str, Any]) -> dict[str, Any]:
    """Return the losses of rows among these."""
    return {name: loss for name, loss in losses.items() if name in TEXTBOOK}


def optax_losses() -> dict[str, Callable[[Any, Any], Any]]:
    """Return the losses that optax has, of each row or element, on its own arrays."""
    import jax  # pyright: ignore
    import optax  # pyright: ignore

    def poly1(z: Any, y: Any) -> Any:
        hot = jax.nn.one_hot(y, z.shape[1])
        return optax.losses.poly_loss_cross_entropy(z, hot, epsilon=2.0)

    def smoothed(z: Any, y: Any) -> Any:
        hot = optax.smooth_labels(jax.nn.one_hot(y, z.shape[1]), 0.1)
        return optax.softmax_cross_entropy(z, hot)

    def focal(z: Any, y: Any) -> Any:
        return optax.sigmoid_focal_loss(z, y, alpha=0.25, gamma=2.0)

    return {
        "cross_entropy": optax.softmax_cross_entropy_with_integer_labels,
        "poly1_loss": poly1,
        "smoothed_cross_entropy": smoothed,
        "binary_cross_entropy_with_logits": optax.sigmoid_binary_cross_entropy,
        "sigmoid_focal_loss": focal,
    }


def to_jax(x: Tensor) -> Any:
    """Return an array of JAX, which reads no bfloat16 from numpy."""
    import jax.numpy as jnp  # pyright: ignore

    if x.dtype == torch.bfloat16:
        return jnp.asarray(x.float().numpy()).astype(jnp.bfloat16)
    return jnp.asarray(x.numpy())


def entmax_steps(z: Tensor, flat: Tensor, y: Tensor) -> dict[str, Step]:
    """Return steps of the losses that the package entmax has; ``flat`` are rows nearly equal."""
    from entmax import Entmax15Loss, SparsemaxLoss  # pyright: ignore

    sparsemax, entmax15 = SparsemaxLoss(), Entmax15Loss()
    return {
        "sparsemax_loss": step(sparsemax, z, y),
        "sparsemax_loss, flat rows": step(sparsemax, flat, y),
        "entmax_loss": step(entmax15, z, y),
        "entmax_loss, flat rows": step(entmax15, flat, y),
    }


def optax_steps(z: Tensor, y: Tensor) -> dict[str, Step]:
    """Return steps of the losses that optax has, on its own arrays: no conversion is timed."""
    import jax  # pyright: ignore

    def ready(loss: Callable[[Any, Any], Any]) -> Step:
        both = jax.jit(jax.value_and_grad(lambda z, y: loss(z, y).mean()))
        arrays = to_jax(z), to_jax(y)
        return lambda: jax.block_until_ready(both(*arrays))

    suits = of_elements if y.is_floating_point() else of_rows
    return {name: ready(loss) for name, loss in suits(optax_losses()).items()}
