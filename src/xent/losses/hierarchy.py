"""Hierarchies of classes: a softmax among siblings at every step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._check import class_indices, whole_number
from ..class_dim import takes_class_dim
from ..engines.modes import are_there, compiling
from ..engines.rows.labels import check_labels
from ..frames.reduction import Reduction, RowValues, read_reduction
from ..heads.logits import are_logits
from ..measurement import statistics
from ..targets import class_axis, shape_hint
from .catalog import member


@member("other", proper=True, convex=True)
@takes_class_dim(alike=())
def wordtree_cross_entropy(
    input: Tensor,
    target: Tensor,
    parent: Sequence[int],
    *,
    class_dim: int | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy of a hierarchy of classes: a softmax among siblings at every step of the path.

    .. math::
        \ell = -\sum_{k \in \mathrm{path}(y)} \log \frac{e^{z_k}}{\sum_{j \sim k} e^{z_j}}
             = -\log \Pr(y), \qquad j \sim k: \text{siblings of } k

    The probability of a node is the product of the conditional ones from its root down, so a label
    may be any node. A label that is an inner node gives no gradient to the nodes below it.

    Use:
        For classes in a hierarchy, when a label may be an inner node; not for a flat list of
        classes, where it is :func:`~xent.cross_entropy`.

    Args:
        input: logits of the nodes, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``. Siblings are
            read without a copy.
        target: node of each row, an integer, in the shape of the rows.
        parent: the parent of each node, -1 for roots: C numbers, in darknet's order. A parent comes
            before its children, and siblings stand next to each other.
        class_dim: the axis of the nodes, as for :func:`cross_entropy`.
        ignore_index: node index that marks rows to leave out.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept.
        normalizer: another divisor of the mean: a number or 0-d tensor.
        row_weight: factor on each row; the mean divides by its sum, too.

    Returns:
        In nats; a scalar, or the shape of the rows for ``reduction="none"``, in the dtype of
        ``input``.

    Raises:
        ValueError: for a tree in another order or of another size than the logits, shapes that do
            not fit, or a target out of range.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> parent = [-1, -1, 0, 0]  # animal, plant; dog and cat are animals
        >>> logits = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        >>> xent.losses.wordtree_cross_entropy(logits, torch.tensor([2]), parent)  # log 2 + log 2
        tensor(1.3863)
        >>> xent.losses.wordtree_cross_entropy(logits, torch.tensor([1]), parent)  # log 2
        tensor(0.6931)

    References:
        Redmon and Farhadi, *YOLO9000: better, faster, stronger*, CVPR 2017.
    """
    are_logits("input", input)
    lean = not isinstance(input, Tensor)
    if not input.is_floating_point():
        raise TypeError(f"`input` must hold floating-point logits, got {input.dtype}")
    target = class_indices("target", target)
    ignore_index = whole_number("ignore_index", ignore_index)
    grow = _grow if compiling() else _grow_once  # compilers keep the result themselves
    tree = grow(tuple(int(node) for node in parent))
    axis = class_axis(input)
    if input.ndim == 0 or input.shape[axis] != len(tree.paths):
        raise ValueError(
            f"`parent` names {len(tree.paths)} nodes, but `input` of shape {tuple(input.shape)} "
            f"has its logits on axis {axis}"
        )
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    if target.shape != rows:
        hint = "" if lean else shape_hint(input, target)
        raise ValueError(f"`target` must have shape {tuple(rows)}, got {tuple(target.shape)}{hint}")
    reduce = read_reduction(reduction, normalizer, row_weight, "nan", rows, input.device)
    kept, reduce = reduce.counting(target != ignore_index)
    nodes = len(tree.paths)
    check_labels(torch.where(kept, target, ignore_index), nodes, ignore_index)
    paths = torch.tensor(tree.paths, dtype=torch.int64, device=input.device)  # (C, depth)
    groups = torch.tensor(tree.groups, dtype=torch.int64, device=input.device)  # (C,)
    known = kept & (target >= 0) & (target < nodes)
    path = paths[torch.where(known, target, 0)]  # (..., depth), -1 beyond the end of a path
    path = torch.where(kept.unsqueeze(-1), path, -1)
    group = torch.where(path >= 0, groups[path.clamp(min=0)], -1)
    values = torch.zeros(rows, dtype=torch.float64, device=input.device)
    seen = set(group.unique().tolist()) if are_there(group) else range(len(tree.spans))
    for number, (first, size) in enumerate(tree.spans):
        if number not in seen:
            continue
        step = torch.where(group == number, path - first, -1).amax(-1)
        some = slice(first, first + size)
        siblings: Any = input[..., some] if lean else input.narrow(axis, first, size)
        values = values - statistics(siblings, step, ignore_index=-1).log_prob
    values = torch.where(kept & ~known, torch.inf, values)
    return reduce.of(RowValues(values, kept, kept.to(values.dtype))).to(input.dtype)


class _WordTree(NamedTuple):
    # Numbers, not tensors: tensors would keep the device or mode that was active at the first call.
    paths: list[list[int]]  # (C, depth): each node, its parent and so on, then -1
    groups: list[int]  # (C,): which siblings a node belongs to
    spans: list[tuple[int, int]]  # of each group the first node and how many there are


def _grow(parent: tuple[int, ...]) -> _WordTree:
    paths: list[list[int]] = []
    group: list[int] = []
    families: dict[int, int] = {}  # parent -> group
    spans: list[tuple[int, int]] = []
    for node, above in enumerate(parent):
        if not -1 <= above < node:
            raise ValueError(
                f"`parent` must name a node before its children, or -1 for a root; node {node} has "
                f"parent {above}"
            )
        if above not in families:
            families[above] = len(spans)
            spans.append((node, 0))
        number = families[above]
        first, size = spans[number]
        if first + size != node:
            raise ValueError(
                f"`parent` must list siblings next to each other; node {node} stands apart from "
                f"the children of {above} that start at {first}"
            )
        spans[number] = (first, size + 1)
        group.append(number)
        paths.append([node, *(paths[above] if above >= 0 else [])])
    depth = max([0, *[len(path) for path in paths]])
    padded = [path + [-1] * (depth - len(path)) for path in paths]
    return _WordTree(padded, group, spans)


_grow_once = functools.lru_cache(maxsize=16)(_grow)
