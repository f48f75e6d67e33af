"""Cross-entropy whose classes are other examples, or a sample of all classes.

Similarities are logits behind a linear head whose weight holds the other examples. So a chunk of
rows is in memory at a time, never all N x N similarities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .._check import class_indices, vector_of_classes, whole_number
from ..engines.modes import are_there, behind_transforms, compiling, refuse_where
from ..frames.by_chunks import reduce_by_chunks
from ..frames.dense_loss import explained
from ..frames.reduction import Reduction, RowValues, read_reduction
from ..heads.gradients import rows_of_weight
from ..heads.logits import LinearLogits, Products
from ..measurement import statistics
from .classification import cross_entropy
from .labelled import belonging, nll_of_positives
from .similarity import (
    at_temperature,
    check_features,
    inverse,
    paired,
    similarities,
    without_left_out,
)


@explained
def info_nce_loss(
    query: Tensor,
    key: Tensor,
    target: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    key_mask: Callable[[Tensor], Tensor] | None = None,
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
    max_workspace: int | None = None,
    products: Products | None = None,
) -> Tensor:
    r"""InfoNCE: cross-entropy of choosing the key that belongs to a query among many keys.

    .. math:: \ell_n = -\log \frac{\exp(q_n \cdot k_{y_n} / T)}{\sum_m \exp(q_n \cdot k_m / T)}

    The similarities are never all in memory. ``log(M)`` minus the loss estimates the mutual
    information of query and key from below, and is never above ``log(M)``.

    Use:
        To find the key of a query among many, and to bound mutual information; not to measure more
        than the logarithm of the number of keys, which is its bound.

    Args:
        query: features, ``(N, D)``.
        key: features, ``(M, D)``, of the same dtype. Keys that belong to no query are further
            negatives: a queue, or the keys of other machines.
        target: the number of the key of each query, int64, ``(N,)``; None if key n belongs to
            query n.
        labels: in the place of ``target`` where several keys belong to a query, those with its
            label: integers, ``(N,)``. The loss is the mean over these keys, as in
            :func:`supcon_loss`; a query without any is left out. (For keys of which one must be
            found: ``set_cross_entropy(LinearLogits(query, key), labels, groups=key_labels)``.)
        key_labels: integers, ``(M,)``; None if key n has the label of query n.
        key_mask: a function from numbers of queries, int64, ``(n,)``, to booleans, ``(n, M)``:
            True for keys that take part. It is called for a chunk of queries at a time, and leaves
            out negatives that may be positives, by the similarities of another model say (GIST). A
            key that belongs to a query takes part in any case.
        temperature: ``T``, positive: a number, or a 0-d tensor to be learned.
        normalize: divide features by their length, so that similarities are cosines.
        ignore_index: number in ``target`` or ``labels`` that marks queries to leave out.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of queries kept,
            or by the sum of their ``row_weight``.
        max_workspace: bytes of a chunk of similarities, as for :class:`xent.LinearLogits`.
        products: the type of the products of 16-bit features, as for :class:`xent.LinearLogits`.

    Returns:
        In nats; a scalar, or ``(N,)`` for ``reduction="none"``, in the dtype of ``query``.

    Example:
        >>> import torch, xent
        >>> image, text = torch.eye(4), torch.eye(4) + 0.5
        >>> round(xent.losses.info_nce_loss(image, text, temperature=0.5).item(), 4)
        0.6655
        >>> t = torch.tensor(0.5, requires_grad=True)
        >>> xent.losses.info_nce_loss(image, text, temperature=t).backward()
        >>> round(t.grad.item(), 4)
        1.1223

        Keys that another model finds too much like a query are not its negatives:

        >>> guide = image @ text.T
        >>> far = lambda n: guide[n] < guide.diagonal()[n, None] - 0.5
        >>> loss = xent.losses.info_nce_loss(image, text, temperature=0.5, key_mask=far)

    References:
        van den Oord, Li & Vinyals, *Representation learning with contrastive predictive coding*,
        2018. Poole et al., *On variational bounds of mutual information*, ICML 2019. Solatorio,
        *GISTEmbed: guided in-sample selection of training negatives*, 2024.
    """
    check_features(("query", query), ("key", key))
    ignore_index = whole_number("ignore_index", ignore_index)
    if normalize:
        own = labels if target is None else target
        query = without_left_out(query, own, row_weight, ignore_index)
    logits: Any = similarities(
        ("query", query), ("key", key), normalize, max_workspace=max_workspace, products=products
    )
    options = {
        "reduction": reduction, "normalizer": normalizer, "row_weight": row_weight, "empty": empty,
    }  # fmt: skip
    if labels is None and key_labels is None and key_mask is None:
        target = paired(logits) if target is None else target
        factor = inverse(temperature, logits.device)
        return cross_entropy(
            logits, target, logit_scale=factor, ignore_index=ignore_index, **options
        )
    reduce = read_reduction(rows=query.shape[:1], device=query.device, **options)
    pairs = belonging(logits, target, labels, key_labels, ignore_index, key_mask)
    source = at_temperature(logits, temperature)
    left_out = "" if labels is None else "positives"
    return pairs.reduce(source, nll_of_positives, reduce, leaves_out=left_out).to(logits.dtype)


@explained
def clip_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: float | Tensor = 1 / 0.07,
    normalize: bool = True,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
    max_workspace: int | None = None,
    products: Products | None = None,
) -> Tensor:
    r"""The contrastive loss of CLIP: :func:`xent.losses.info_nce_loss` both ways, and their mean.

    .. math:: \ell_n = \tfrac12 \bigl( -\log \mathrm{softmax}_n(s\, x_n \cdot y_{1..N})
        - \log \mathrm{softmax}_n(s\, y_n \cdot x_{1..N}) \bigr)

    The similarities are never all in memory, in neither direction.

    Use:
        For pairs of images and texts, compared in both directions; not where several keys belong to
        a query, which are for :func:`~xent.losses.info_nce_loss` with ``labels``.

    Args:
        image: features ``x``, ``(N, D)``.
        text: features ``y``, ``(N, D)``; row n belongs to row n of ``image``.
        logit_scale: ``s``, the inverse temperature, positive: a number, or a 0-d tensor to be
            learned (``log_scale.exp()`` of a parameter, say).
        normalize: divide features by their length.
        reduction: ``"none"``, ``"sum"`` or ``"mean"`` over the pairs.
        max_workspace: bytes of a chunk of similarities, as for :class:`xent.LinearLogits`.
        products: the type of the products of 16-bit features, as for :class:`xent.LinearLogits`.

    Returns:
        In nats; a scalar, or ``(N,)`` for ``reduction="none"``, in the dtype of ``image``.

    Example:
        >>> import torch, xent
        >>> image, text = torch.eye(3), torch.eye(3).roll(1, 0) + 2 * torch.eye(3)
        >>> round(xent.losses.clip_loss(image, text, logit_scale=1.0).item(), 4)
        0.717

    References:
        Radford et al., *Learning transferable visual models from natural language supervision*,
        ICML 2021.
    """
    if isinstance(image, Tensor) and isinstance(text, Tensor) and image.shape != text.shape:
        raise ValueError(
            f"`image` and `text` must have the same shape, (N, D); got {tuple(image.shape)} and "
            f"{tuple(text.shape)}"
        )
    check_features(("image", image), ("text", text))
    temperature = inverse(logit_scale, image.device, "logit_scale")
    ways = [
        info_nce_loss(
            a, b, temperature=temperature, normalize=normalize, reduction=reduction,
            normalizer=normalizer, row_weight=row_weight, empty=empty, max_workspace=max_workspace,
            products=products,
        )
        for a, b in ((image, text), (text, image))
    ]  # fmt: skip
    return (ways[0] + ways[1]) / 2


@explained
def nt_xent_loss(
    view_a: Tensor,
    view_b: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    normalize: bool = True,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    max_workspace: int | None = None,
    products: Products | None = None,
) -> Tensor:
    r"""The loss of SimCLR: cross-entropy of finding the other view of an example among all views.

    InfoNCE over ``2 N`` views, each of which is compared with all the others.

    Use:
        For two views of each example, without labels; not when classes are known, which
        :func:`~xent.losses.supcon_loss` uses.

    Args:
        view_a: features of one view of each example, ``(N, D)``.
        view_b: features of the other view, ``(N, D)``.
        temperature: divides the similarities: positive, a number or a 0-d tensor to be learned.
        normalize: divide features by their length.
        reduction: ``"none"``, ``"sum"`` or ``"mean"`` over all ``2 N`` views.
        max_workspace: bytes of a chunk of similarities, as for :class:`xent.LinearLogits`.
        products: the type of the products of 16-bit features, as for :class:`xent.LinearLogits`.

    Returns:
        In nats; a scalar, or ``(2 N,)`` for ``reduction="none"``, the views ``a`` first; in the
        dtype of ``view_a``.

    Example:
        >>> import torch, xent
        >>> round(xent.losses.nt_xent_loss(torch.eye(3), torch.eye(3) + 0.5).item(), 4)
        0.837

    References:
        Chen et al., *A simple framework for contrastive learning of visual representations*, ICML
        2020.
    """
    check_features(("view_a", view_a), ("view_b", view_b))
    if view_a.shape != view_b.shape:
        raise ValueError(
            f"`view_a` and `view_b` must have the same shape, (N, D); got {tuple(view_a.shape)} "
            f"and {tuple(view_b.shape)}"
        )
    reduce = read_reduction(reduction, normalizer, None, "nan", view_a.shape[:1], view_a.device)
    views = ("views", torch.cat([view_a, view_b]))
    logits = similarities(views, views, normalize, max_workspace=max_workspace, products=products)
    source = at_temperature(logits, temperature)
    itself = torch.arange(source.shape[0], device=source.device)
    other = itself.roll(len(view_a))

    def values_of(index: Any, z: Tensor) -> RowValues:
        apart = z.scatter(1, itself[index].unsqueeze(-1), -torch.inf)  # (rows, 2 N)
        values = cross_entropy(apart, other[index], reduction="none")
        return RowValues(values.double(), None, torch.ones_like(values, dtype=torch.float64))

    return reduce_by_chunks((source,), None, values_of, (), reduce).to(view_a.dtype)


@explained
def sampled_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    sampled: Tensor,
    *,
    bias: Tensor | None = None,
    log_q: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
    max_workspace: int | None = None,
    products: Products | None = None,
) -> Tensor:
    r"""Cross-entropy against a sample of the classes, for a vocabulary too large for all of them.

    .. math:: \ell = -\log \frac{e^{z_y - \log q_y}}{e^{z_y - \log q_y}
        + \sum_{j \in S,\, j \ne y} e^{z_j - \log q_j}}, \qquad z = W h + b

    With ``log_q`` the sample stands for all classes in the right proportion, and the gradient tends
    to that of :func:`xent.cross_entropy` as the sample grows. A target that is in the sample does
    not compete with itself.

    Use:
        For training with a vocabulary too large to compute all logits; not for reports, since it
        only estimates cross-entropy.

    Args:
        hidden: features, ``(..., D)``.
        weight: weight of the head, ``(V, D)``; only rows of sampled classes and targets are read.
        target: class indices, int64, ``(...)``.
        sampled: classes to compare with, int64, ``(S,)``, the same for all rows. A class that was
            drawn several times counts as often.
        bias: ``(V,)``.
        log_q: logarithm of the distribution the sample was drawn from, ``(V,)``, up to a constant.
            None for no correction, as for a uniform distribution.
        ignore_index: class index that marks rows to leave out.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept, or
            by the sum of their ``row_weight``.
        max_workspace: bytes that a chunk of logits may take, as for :class:`xent.LinearLogits`.
        products: the type of products with a 16-bit weight, as for :class:`xent.LinearLogits`.

    Returns:
        In nats; a scalar, or ``(...)`` for ``reduction="none"``, in the dtype of ``hidden``.

    Example:
        >>> import torch, xent
        >>> hidden, weight = torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> target, some = torch.tensor([0, 1]), torch.tensor([1, 2])
        >>> xent.losses.sampled_cross_entropy(hidden, weight, target, some, reduction="none")
        tensor([0.4076, 0.6931])

    References:
        Bengio & Senecal, *Quick training of probabilistic neural nets by importance sampling*,
        AISTATS 2003. Jean et al., *On using very large target vocabulary for neural machine
        translation*, ACL 2015.
    """
    every = LinearLogits(hidden, weight, bias)  # checks the shapes
    classes = weight.shape[0]
    sampled, target = class_indices("sampled", sampled), class_indices("target", target)
    ignore_index = whole_number("ignore_index", ignore_index)
    if sampled.ndim != 1 or sampled.numel() == 0:
        raise ValueError(
            f"`sampled` must list at least one class, (S,); got shape {tuple(sampled.shape)}"
        )
    rows = hidden.shape[:-1]
    if target.shape != rows:
        squeeze = "; pass target.squeeze(-1)" * (target.shape == (*rows, 1))
        raise ValueError(
            f"`target` must hold a class index for each row of `hidden`, shape {tuple(rows)}; got "
            f"shape {tuple(target.shape)}{squeeze}"
        )
    reduce = read_reduction(reduction, normalizer, row_weight, empty, rows, hidden.device)
    kept, reduce = reduce.counting(target != ignore_index)
    hidden = torch.where(kept.unsqueeze(-1), hidden, 0)  # NaN in an ignored row must not spread
    label = torch.where(kept, target, 0)
    for name, x in (("target", label), ("sampled", sampled)):
        wrong = (x < 0) | (x >= classes)
        error = ValueError(f"`{name}` holds a class outside 0 to {classes - 1}")
        if compiling():
            refuse_where(wrong, lambda error=error: error, str(error))
            continue
        seen = wrong if are_there(wrong) else behind_transforms(wrong)
        if seen is not None and bool(seen.any()):
            raise error
    # A class drawn several times has its count at its first place and 0 at the others. So no shape
    # depends on the numbers.
    few = sampled.sort().values  # (S,)
    first = torch.searchsorted(few, few)
    correction = (torch.searchsorted(few, few, right=True) - first).double().log()
    again = first != torch.arange(few.shape[0], device=few.device)
    correction = torch.where(again, -torch.inf, correction)
    if log_q is not None:
        vector_of_classes("log_q", log_q, classes, weight.device)
        log_q = log_q.double()
        correction = correction - log_q[few]
    logits = LinearLogits(
        hidden,
        rows_of_weight(weight, few),
        None if bias is None else bias[few],
        max_workspace=max_workspace,
        products=products,
    )
    # The target is one of the sampled classes or absent. Either way the rest is without the target.
    place = torch.searchsorted(few, label).clamp(max=few.shape[0] - 1)
    place = torch.where(few[place] == label, place, few.shape[0])
    stats: Any = statistics(
        logits, torch.where(kept, place, -1),
        ignore_index=-1, class_bias=correction, first_class=0,
    )  # fmt: skip
    wide = torch.promote_types(hidden.dtype, torch.float32)
    z = (rows_of_weight(weight, label).to(wide) * hidden.to(wide)).sum(-1).double()  # (...)
    z = z if bias is None else z + bias[label]
    z = z if log_q is None else z - log_q[label]
    rest = torch.where(kept, stats.rest, 0)
    values = -torch.nn.functional.logsigmoid(z - rest)
    return reduce.of(RowValues(values, kept, kept.to(values.dtype))).to(every.dtype)
