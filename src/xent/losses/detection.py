"""Heads of object detectors: a grid of anchors, each with objectness, classes and a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._check import class_indices, finite_number, is_tensor, one_of
from ..engines.rows.labels import check_labels
from ..frames.reduction import Reduction, read_reduction, stable_sum
from .binary import binary_cross_entropy_with_logits
from .catalog import member
from .classification import cross_entropy
from .hierarchy import wordtree_cross_entropy


class YoloParts(NamedTuple):
    """The cross-entropies of a detection head, scaled and ready to be added up.

    Attributes:
        objectness: logistic, whether there is an object.
        classes: softmax (v2) or logistic (v3), which object.
        center: logistic, where in its cell the box is centred; 0 without targets for it.
    """

    objectness: Tensor
    classes: Tensor
    center: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of the parts."""
        return self.objectness + self.classes + self.center


# Defaults that v2 and v3 do not share, from darknet's configuration files for VOC.
_OBJECT_SCALE = {"v2": 5.0, "v3": 1.0}
_IGNORE_ABOVE = {"v2": 0.6, "v3": 0.5}


@member("other", proper=True, convex=True)
def yolo_loss(
    input: Tensor,
    responsible: Tensor,
    labels: Tensor,
    *,
    version: Literal["v2", "v3"] = "v3",
    iou: Tensor | None = None,
    best_iou: Tensor | None = None,
    center: Tensor | None = None,
    tree: Sequence[int] | None = None,
    ignore_above: float | None = None,
    truth_above: float = 1.0,
    object_scale: float | None = None,
    noobject_scale: float = 1.0,
    class_scale: float = 1.0,
    center_scale: float | Tensor = 1.0,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
) -> YoloParts:
    r"""The cross-entropies of a YOLO head, v2 or v3, in one call.

    With :math:`R` the boxes responsible for an object, :math:`I` those that overlap one well enough
    to be left alone, :math:`t` the objectness target (1, or the IoU of the box) and :math:`H(t, z)`
    the logistic cross-entropy of a logit,

    .. math::
        \text{objectness} &= \lambda_{\text{obj}} \sum_{R} H(t, z_o)
            + \lambda_{\text{noobj}} \sum_{\overline{R \cup I}} H(0, z_o) \\
        \text{classes} &= \lambda_{\text{class}} \sum_{R} -\log \mathrm{softmax}(z)_y
            \quad\text{(v2)}, \qquad
            \lambda_{\text{class}} \sum_{R} \sum_{c} H(y_c, z_c) \quad\text{(v3)} \\
        \text{center} &= \lambda_{\text{center}} \sum_{R} H(t_x, z_x) + H(t_y, z_y)

    The gradient by a logit is ``p - target`` times its scale. Darknet has the same gradient for the
    classes, and in v3 for all parts. In v2 darknet multiplies the gradients of objectness and
    centre by ``p (1 - p)``, as for a squared error: they vanish for a box that is surely wrong.

    Not included are width and height, which are a regression (darknet: squared error of their
    logarithms; add yours to the parts); darknet's printed cost, which is the squared length of the
    gradient and no cross-entropy; and the pull of all boxes towards their anchors in the first
    12,800 images of v2. A soft target has entropy, so objectness with IoU targets and the centre
    do not go to 0.

    Use:
        For the heads of YOLO v2 and v3; not for the width and height of boxes, which are a
        regression of your own.

    Args:
        input: the head, ``(B, A * (5 + C), H, W)``: for each of A anchors the channels x, y, w, h,
            objectness and C classes. Contiguous memory is not copied.
        responsible: which boxes are responsible for an object, bool, ``(B, A, H, W)``.
        labels: classes of these boxes. Indices, integers in the shape of ``responsible``; or in v3,
            where a box may have any number of labels, 0 or 1 (or between) for each class,
            ``(B, A, C, H, W)``. Not read where no box is responsible.
        version: ``"v2"`` or ``"v3"``.
        iou: overlap of each predicted box with its object, ``(B, A, H, W)``, to be the target of
            objectness (darknet's ``rescore=1``, as v2 is trained). A constant: no gradient. None
            for 1.
        best_iou: largest overlap of each predicted box with any object, ``(B, A, H, W)``, for the
            two thresholds. A constant.
        center: where in its cell each object is centred, x and y in [0, 1],
            ``(B, A, 2, H, W)``.
        tree: the classes are nodes of a hierarchy, see :func:`wordtree_cross_entropy`; v2 only.
        ignore_above: boxes that are not responsible but overlap more than this are left alone;
            None for 0.6 in v2 and 0.5 in v3.
        truth_above: boxes that overlap more than this count as responsible, with objectness 1, and
            need ``labels`` and ``center``. Boxes between the two thresholds are left alone.
        object_scale: :math:`\lambda_{\text{obj}}`; None for 5 in v2 and 1 in v3.
        noobject_scale: :math:`\lambda_{\text{noobj}}`.
        class_scale: :math:`\lambda_{\text{class}}`.
        center_scale: :math:`\lambda_{\text{center}}`, a number or one per box, ``(B, A, H, W)``;
            darknet's v3 takes 2 minus the area of the object, in units of the image.
        reduction: ``"sum"``, ``"mean"`` over the images, or ``"none"`` for the values of the boxes.
        normalizer: another divisor of the mean than B: the number of objects, say.

    Returns:
        :class:`YoloParts` in nats: three scalars, or with ``reduction="none"`` three
        ``(B, A, H, W)``.

    Raises:
        ValueError: for shapes that do not fit, a class index out of range, several labels per box
            in v2, or a value that an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> head = torch.zeros(1, 2 * (5 + 3), 4, 4)  # two anchors, three classes
        >>> responsible = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
        >>> responsible[0, 0, 1, 2] = True
        >>> labels = torch.full((1, 2, 4, 4), 2)
        >>> parts = xent.losses.yolo_loss(head, responsible, labels, version="v2")
        >>> [round(part.item(), 4) for part in parts]
        [24.9533, 1.0986, 0.0]

    References:
        Redmon and Farhadi, *YOLO9000: better, faster, stronger*, CVPR 2017; *YOLOv3: an incremental
        improvement*, 2018. Scales and thresholds: darknet, ``region_layer.c``, ``yolo_layer.c``.
    """
    one_of("version", version, ("v2", "v3"))
    if tree is not None and version != "v2":
        raise ValueError("`tree` is a softmax among siblings: it needs version='v2'")
    classes = _check_head(input, responsible)
    boxes = responsible.shape
    for name, value in (("iou", iou), ("best_iou", best_iou)):
        _check_shape(name, value, boxes)
    given = read_reduction(reduction, normalizer, None, "nan", boxes, input.device).normalizer
    if isinstance(given, str):
        raise ValueError(f"`normalizer` must be a number or a 0-d tensor, got {given!r}")
    if object_scale is None:
        object_scale = _OBJECT_SCALE[version]
    if ignore_above is None:
        ignore_above = _IGNORE_ABOVE[version]
    ignore_above = finite_number("ignore_above", ignore_above)
    truth_above = finite_number("truth_above", truth_above)

    left_alone = present = responsible
    if best_iou is not None:
        present = responsible | (best_iou > truth_above)
        left_alone = present | (best_iou > ignore_above)
    target = present.to(input.dtype)
    if iou is not None:
        target = torch.where(responsible, iou.detach().to(input.dtype), target)
    scale = torch.full_like(target, finite_number("noobject_scale", noobject_scale))
    scale = scale.masked_fill(left_alone, 0.0)
    scale = scale.masked_fill(present, finite_number("object_scale", object_scale))

    # Anchors join the batch: classes stay on axis 1, and no element moves.
    head = input.unflatten(1, (boxes[1], 5 + classes)).flatten(0, 1)
    values = YoloParts(
        _logistic(head[:, 4:5], target.unsqueeze(2), scale),
        finite_number("class_scale", class_scale)
        * _classes(head[:, 5:], labels, present, version, tree),
        _center(head[:, :2], center, present, center_scale),
    )
    if reduction == "none":
        return values
    sums = [stable_sum(part.double()) for part in values]
    if reduction == "mean":
        divisor = boxes[0] if given is None else given
        sums = [part / divisor for part in sums]
    return YoloParts(*(part.to(input.dtype) for part in sums))


def _logistic(logits: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Logistic cross-entropy of each box, summed over its channels.

    Logits come as ``(B * A, K, H, W)``, targets ``(B, A, K, H, W)`` and scales ``(B, A, H, W)``.
    """
    weight = scale.to(logits.dtype).flatten(0, 1).unsqueeze(1)
    target = target.to(logits.dtype).flatten(0, 1)
    losses = binary_cross_entropy_with_logits(logits, target, weight, reduction="none")
    return losses.sum(1).view(scale.shape)


def _classes(
    logits: Tensor, labels: Tensor, present: Tensor, version: str, tree: Sequence[int] | None
) -> Tensor:
    """The class part of each box, from logits ``(B * A, C, H, W)``."""
    is_tensor("labels", labels)
    boxes, classes = present.shape, logits.shape[1]
    several = (*boxes[:2], classes, *boxes[2:])
    if version == "v3" and labels.shape == several:
        return _logistic(logits, labels, present)
    if labels.shape != boxes:
        more = f", or {several} for any number of them" if version == "v3" else ""
        hint = "" if version == "v3" else "; a softmax holds one label per box, v3 holds several"
        raise ValueError(
            f"`labels` must have shape {tuple(boxes)} for one class per box{more}; got "
            f"{tuple(labels.shape)}{hint}"
        )
    index = torch.where(present, class_indices("labels", labels), -100)
    check_labels(index, classes, -100, name="labels")
    if tree is not None:
        loss = wordtree_cross_entropy(logits, index.flatten(0, 1), tree, reduction="none")
        return loss.view(boxes)
    if version == "v2":
        loss = cross_entropy(logits, index.flatten(0, 1), reduction="none")
        return loss.view(boxes)
    one_hot = torch.zeros(several, dtype=logits.dtype, device=logits.device)
    one_hot.scatter_(2, index.clamp(0, classes - 1).unsqueeze(2), 1.0)
    return _logistic(logits, one_hot, present)


def _center(
    logits: Tensor, center: Tensor | None, present: Tensor, scale: float | Tensor
) -> Tensor:
    """The centre part of each box, from logits ``(B * A, 2, H, W)``."""
    boxes = present.shape
    if center is None:
        return logits.new_zeros(boxes)
    if isinstance(scale, Tensor) and scale.ndim:
        _check_shape("center_scale", scale, boxes)
    else:
        scale = finite_number("center_scale", scale)
    _check_shape("center", center, torch.Size((*boxes[:2], 2, *boxes[2:])))
    target = torch.where(present.unsqueeze(2), center, 0.0)
    if bool(((target < 0) | (target > 1)).any()):
        raise ValueError("`center` must lie in [0, 1]: the place in its cell, not in the image")
    return _logistic(logits, target, present.to(logits.dtype) * scale)


def _check_head(input: Tensor, responsible: Tensor) -> int:
    """Check the arguments, and return the number of classes of the head."""
    is_tensor("input", input)
    is_tensor("responsible", responsible)
    if not input.is_floating_point():
        raise TypeError(f"`input` must hold floating-point logits, got {input.dtype}")
    if responsible.dtype != torch.bool:
        raise TypeError(
            f"`responsible` must be bool, got {responsible.dtype}; call responsible.bool()"
        )
    if input.ndim != 4 or responsible.ndim != 4:
        raise ValueError(
            f"`input` must have shape (B, A * (5 + C), H, W) and `responsible` (B, A, H, W); got "
            f"{tuple(input.shape)} and {tuple(responsible.shape)}"
        )
    batch, anchors, *grid = responsible.shape
    if (batch, *grid) != (input.shape[0], *input.shape[2:]):
        raise ValueError(
            f"`responsible` must share batch and grid with `input`, shape {tuple(input.shape)}; "
            f"got {tuple(responsible.shape)}"
        )
    classes, rest = divmod(input.shape[1], max(anchors, 1))
    classes -= 5
    if rest or classes < 1 or not anchors:
        raise ValueError(
            f"`input` must have A * (5 + C) channels, C at least 1, for the A = {anchors} anchors "
            f"of `responsible`; got {input.shape[1]}"
        )
    return classes


def _check_shape(name: str, value: Tensor | None, shape: torch.Size) -> None:
    if value is None:
        return
    is_tensor(name, value)
    if value.shape != shape:
        raise ValueError(f"`{name}` must have shape {tuple(shape)}, got {tuple(value.shape)}")
