"""Losses of PyTorch, optax, kornia and Liger: their functions, or textbook formulas."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

from ..family_others import TEXTBOOK, TEXTBOOK_BINARY, kornia_losses, optax_losses, to_jax

Both = Callable[..., tuple[Tensor, Tensor]]  # from logits and targets to values and gradients

# Formulas whose hyperparameters are not those of the atlas.
_OTHERWISE = {"cosface_loss", "logit_adjusted_loss"}


def differentiated(loss: Callable[..., Tensor]) -> Both:
    """Return a function to values and the gradient of their sum."""

    def both(z: Tensor, y: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
        leaf = z.detach().clone().requires_grad_()
        values = loss(leaf, y, **arguments)
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]

    return both


def _alone(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a loss of each row, or element, from one that takes the mean of a batch."""

    def call(z: Tensor, y: Tensor) -> Tensor:
        shape = (1, -1) if z.ndim == 2 else (1, 1)
        to = (1,) if z.ndim == 2 else (1, 1)
        pairs = zip(z, y, strict=True)
        return torch.stack([loss(a.reshape(shape), b.reshape(to)).reshape(()) for a, b in pairs])

    return call


def _torch() -> dict[str, Both]:
    none: dict[str, Any] = {"reduction": "none"}
    own: dict[str, Callable[..., Tensor]] = {
        "cross_entropy": partial(TF.cross_entropy, **none),
        "cross_entropy, label_smoothing": partial(TF.cross_entropy, label_smoothing=0.1, **none),
        "nll_loss": partial(TF.nll_loss, **none),
        "kl_div": lambda x, y, shares: TF.kl_div(x, shares, **none).sum(1),
        "binary_cross_entropy": partial(TF.binary_cross_entropy, **none),
        "binary_cross_entropy_with_logits": partial(TF.binary_cross_entropy_with_logits, **none),
    }
    for name in ("distillation_loss", "distillation_loss, near its teacher"):
        own[name] = _torch_distillation
    textbook = {**TEXTBOOK, **TEXTBOOK_BINARY}
    formulas = {k: _alone(loss) for k, loss in textbook.items() if k not in _OTHERWISE}
    return {name: differentiated(loss) for name, loss in {**formulas, **own}.items()}


def _torch_distillation(z: Tensor, y: Tensor, teacher: Tensor) -> Tensor:
    return TF.kl_div(TF.log_softmax(z, 1), TF.softmax(teacher, 1), reduction="none").sum(1)


def _torchvision() -> dict[str, Both]:
    from torchvision.ops import sigmoid_focal_loss  # pyright: ignore

    return {"sigmoid_focal_loss": differentiated(partial(sigmoid_focal_loss, reduction="none"))}


def _kornia() -> dict[str, Both]:
    losses = kornia_losses("sum")
    del losses["sigmoid_focal_loss"]  # takes no targets between 0 and 1
    return {name: differentiated(_alone(loss)) for name, loss in losses.items()}


def _optax() -> dict[str, Both]:
    import jax  # pyright: ignore

    jax.config.update("jax_enable_x64", True)

    def both(loss: Callable[..., Any]) -> Both:
        def call(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            values, pull = jax.vjp(lambda z: loss(z, to_jax(y)), to_jax(z))
            (slopes,) = pull(jax.numpy.ones_like(values))
            return _from_jax(values, z.dtype), _from_jax(slopes, z.dtype)

        return call

    return {name: both(loss) for name, loss in optax_losses().items()}


def _from_jax(x: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(x.astype("float64").tolist(), dtype=torch.float64).to(dtype)


def _liger() -> dict[str, Both]:
    """Return Liger's kernels, which run in Triton's interpreter where there is no GPU."""
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise ImportError("no GPU and no interpreter")
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction  # pyright: ignore

    def loss(smoothing: float) -> Callable[..., Tensor]:
        def call(z: Tensor, y: Tensor) -> Tensor:  # the kernel writes over its input
            return LigerCrossEntropyFunction.apply(
                z.clone(), y, None, -100, 0.0, smoothing, "none"
            )[0]

        return call

    return {
        "cross_entropy": differentiated(loss(0.0)),
        "cross_entropy, label_smoothing": differentiated(loss(0.1)),
        "smoothed_cross_entropy": differentiated(loss(0.1)),
    }


LIBRARIES: dict[str, Callable[[], dict[str, Both]]] = {
    "torch": _torch, "torchvision": _torchvision, "optax": _optax, "kornia": _kornia,
    "liger": _liger,
}  # fmt: skip
IN_AN_INTERPRETER = {"liger"}


def others() -> tuple[dict[str, dict[str, Both]], dict[str, str]]:
    """Return the losses of each library, and why a library has none."""
    found, missing = {}, {}
    for library, losses in LIBRARIES.items():
        try:
            found[library] = losses()
        except Exception as error:
            missing[library] = f"{type(error).__name__}: {error}".partition("\n")[0]
    return found, missing
