r"""Class-activation maps and infoCAM: the places of an image that a classifier decides by.

The maps are for networks whose last layers are the mean over all places and one linear layer. There
a logit is the mean of what each place contributes, :math:`z_c = b_c + \frac{1}{HW} \sum_{h,w} w_c
\cdot f(h, w)`. A single logit means nothing, because softmax does not change when a number is added
to all logits. Differences of logits are differences of pointwise mutual information; infoCAM maps
these differences.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..._check import is_tensor, label_out_of_range, one_of
from ...arrays import takes_arrays

__all__ = ["class_activation_map", "info_cam"]


@takes_arrays
def class_activation_map(
    features: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = None
) -> Tensor:
    r"""Return what each place adds to the logit of a class: :math:`w_c \cdot f(h, w)`.

    Args:
        features: of the last layer before the mean over all places, ``(N, D, H, W)``.
        weight: of the linear layer, ``(C, D)``.
        target: a class for each image, ``(N,)``: of the label, or ``logits.argmax(1)``.
        bias: of the linear layer, ``(C,)``; added at each place.

    Returns:
        ``(N, H, W)``; with ``bias`` the mean over all places is the logit.

    Raises:
        ValueError: for shapes that do not fit, or classes out of range.
        TypeError: for anything but tensors.

    Example:
        >>> import torch
        >>> from xent.learn import class_activation_map
        >>> features = torch.zeros(1, 2, 2, 2)
        >>> features[0, :, 0, 1] = 1
        >>> class_activation_map(features, torch.tensor([[1.0, 2], [0, 1]]), torch.tensor([0]))
        tensor([[[0., 3.],
                 [0., 0.]]])

    References:
        Zhou et al., *Learning deep features for discriminative localization*, CVPR 2016.
    """
    bias = _check(features, weight, target, bias)
    return _project(features, weight[target], bias[target])


@takes_arrays
def info_cam(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    against: Literal["others", "lowest"] = "others",
) -> Tensor:
    r"""Return the evidence of each place for a class against the others, in nats.

    .. math:: \Bigl(w_c - \frac{1}{C - 1} \sum_{j \ne c} w_j\Bigr) \cdot f(h, w)

    Args:
        features: of the last layer before the mean over all places, ``(N, D, H, W)``.
        weight: of the linear layer, ``(C, D)``.
        target: a class for each image, ``(N,)``: of the label, or ``logits.argmax(1)``.
        bias: of the linear layer, ``(C,)``; its difference is added at each place.
        against: ``"others"``, the mean of all other classes; or ``"lowest"``, the class of the
            lowest logit of each image (infoCAM+).

    Returns:
        ``(N, H, W)``; with ``bias`` the mean over all places is exactly the logit of the class less
        that of the others.

    Raises:
        ValueError: for shapes that do not fit, classes out of range, or fewer than two.
        TypeError: for anything but tensors.

    Example:
        >>> import torch
        >>> from xent.learn import info_cam
        >>> features = torch.zeros(1, 2, 2, 2)
        >>> features[0, :, 0, 1] = 1
        >>> info_cam(features, torch.tensor([[1.0, 2], [0, 1]]), torch.tensor([0]))
        tensor([[[0., 2.],
                 [0., 0.]]])

    References:
        Qin, Kim & Gedeon, *Neural network classifiers as mutual information evaluators*, 2021.
    """
    one_of("against", against, ("others", "lowest"))
    bias = _check(features, weight, target, bias)
    classes = len(weight)
    if classes < 2:
        raise ValueError("infoCAM compares classes; `weight` has only one")
    if against == "others":
        # w_c - (sum - w_c) / (C - 1), with one sum for all images
        scale = classes / (classes - 1)
        w = scale * (weight[target] - weight.mean(0))
        b = scale * (bias[target] - bias.mean())
    else:
        lowest = (features.mean((2, 3)) @ weight.T + bias).argmin(1)
        w, b = weight[target] - weight[lowest], bias[target] - bias[lowest]
    return _project(features, w, b)


def _project(features: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("nd,ndhw->nhw", w, features) + b[:, None, None]


def _check(features: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
    """Check the arguments, and return the bias, 0 if there is none."""
    for name, value in (("features", features), ("weight", weight), ("target", target)):
        is_tensor(name, value)
    if features.ndim != 4 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"`features` must be (N, D, H, W) and `weight` (C, D); got {tuple(features.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if target.shape != features.shape[:1]:
        raise ValueError(
            f"`target` must hold a class for each of the {len(features)} images; got shape "
            f"{tuple(target.shape)}"
        )
    outside = target[(target < 0) | (target >= len(weight))]
    if len(outside):
        raise label_out_of_range(int(outside[0]), len(weight), -100)
    if bias is None:
        return torch.zeros_like(weight[:, 0])
    is_tensor("bias", bias)
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"`bias` must be ({len(weight)},), got shape {tuple(bias.shape)}")
    return bias
