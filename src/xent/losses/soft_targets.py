"""Soft targets that are not given row by row: tables, mixtures and short lists.

Dense probabilities are targets of :func:`xent.cross_entropy` itself.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from .._check import (
    class_indices,
    is_tensor,
    one_of,
    scalar,
    vector_of_classes,
    whole_number,
)
from .._probabilities import sums_to_1
from ..class_dim import takes_class_dim
from ..engines.modes import autocasts, can_look_at, widened
from ..engines.rows.labels import check_labels
from ..engines.rows.problem import Index, Problem
from ..frames.by_chunks import reduce_problem
from ..frames.dense_loss import explained
from ..frames.reduction import Reduction, RowValues, read_reduction
from ..frames.row_loss import row_loss
from ..heads.logits import LinearLogits, are_logits
from ..heads.problem import make_problem
from ..hyperparameters import Logits, PerClass, Range
from ..row_statistics import RowStatistics
from ..targets import class_axis
from .catalog import member
from .listed import look_up, nll_of_listed, nll_with_tail, refuse_doubles, where


class _SoftTargets(PerClass):
    """A rule for tables with a soft target for each class."""

    def check(self, name: str, value: Any, input: Logits | None) -> Any:
        """The table; raise unless it is a square of rows that add up to 1."""
        is_tensor(name, value)
        classes = value.shape[-1] if input is None else input.shape[class_axis(input)]
        if value.shape != (classes, classes):
            raise ValueError(
                f"`{name}` must hold the soft target of each class, shape ({classes}, {classes}) "
                f"for {classes} classes; got shape {tuple(value.shape)}"
            )
        if input is not None:
            vector_of_classes(name, value[0], classes, input.device)
        sums_to_1(name, value)
        return value


@member(proper=False, convex=True)
@row_loss(weighted=True, soft=False, own={"target_table": lambda table: table})
def structured_cross_entropy(s: RowStatistics, table: Annotated[Tensor, _SoftTargets()]) -> Tensor:
    r"""Cross-entropy with a soft target for each class, looked up in a table.

    .. math:: \ell = -\sum_j Q_{y j} \log p_j

    The table says which mistakes are smaller than others: by the similarity of the classes, their
    distance in a hierarchy, or their order (structured label smoothing). No tensor of the size of
    the logits is made. Class weights are those of the classes in the soft target, as in
    :func:`xent.cross_entropy` with probabilities.

    Use:
        When some mistakes are smaller than others, by similarity or order; not for another soft
        target in each row, which :func:`~xent.cross_entropy` takes.

    Args:
        table: ``Q``, ``(C, C)``: its row ``y`` is the target of class ``y``, a distribution. It may
            be learned.

    Example:
        >>> import torch, xent
        >>> order = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]])
        >>> logits = torch.tensor([[2.0, 0.0, -2.0], [2.0, -2.0, 0.0]])
        >>> y = torch.tensor([0, 0])
        >>> xent.losses.structured_cross_entropy(logits, y, table=order, reduction="none")
        tensor([0.3429, 0.5429])

    References:
        Bertinetto et al., *Making better mistakes: leveraging class hierarchies with deep
        networks*, CVPR 2020.
    """
    return s.nll


# ---- short lists --------------------------------------------------------------------------------


def _mark(kept: Tensor, ignore_index: int) -> Tensor:
    """Labels that only mark the kept rows: any class there, ``ignore_index`` in other rows."""
    return torch.where(kept, int(ignore_index == 0), ignore_index)


@member("other", proper=True, convex=True)
@explained
@takes_class_dim(alike=())
def mixup_cross_entropy(
    input: Tensor | LinearLogits,
    target_a: Tensor,
    target_b: Tensor,
    lam: float | Tensor,
    weight: Tensor | None = None,
    *,
    class_dim: int | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> Tensor:
    r"""Cross-entropy of rows that are mixtures of two, each with its class.

    .. math:: \ell = -\lambda \log p_a - (1 - \lambda) \log p_b

    One sweep over the logits, not two. Every row counts as two rows, of weight :math:`\lambda` and
    :math:`1 - \lambda`: if one of its classes is ignored, the other still counts for its part.

    Use:
        For rows that are mixtures of two, each with its class; not for mixtures of many classes,
        which :func:`~xent.cross_entropy` takes as probabilities.

    Args:
        target_a: class indices of any integer type, in the shape of the rows.
        target_b: class indices of the other side of the mixture, in the same shape.
        lam: how much of a row is ``a``, in [0, 1]; a number or one per row.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> a, b = torch.tensor([0, 1]), torch.tensor([1, 1])
        >>> xent.losses.mixup_cross_entropy(logits, a, b, 0.75, reduction="none")
        tensor([0.6269, 0.1269])

    References:
        Zhang et al., *mixup: beyond empirical risk minimization*, ICLR 2018.
    """
    ignore_index = whole_number("ignore_index", ignore_index)
    options = (weight, ignore_index, logit_scale, softcap, class_bias)
    problem, other = (
        make_problem(input, target, *options, target_name=name)
        for name, target in (("target_a", target_a), ("target_b", target_b))
    )
    if problem.settings.soft or other.settings.soft:
        raise ValueError(
            "`target_a` and `target_b` must be class indices. Probabilities mix by themselves: "
            "cross_entropy(input, lam * target_a + (1 - lam) * target_b)"
        )
    row_weight = problem.flat(row_weight)
    reduce = read_reduction(reduction, normalizer, row_weight, empty, problem.rows, problem.device)
    lam = _mixing_weight(problem.flat(lam), problem)
    both = torch.stack([problem.tensors.target, other.tensors.target], -1)
    labelled = (both != ignore_index).any(-1)
    kept, reduce = reduce.counting(labelled)
    if kept is not labelled:
        both = torch.where(kept.unsqueeze(-1), both, ignore_index)
        lam = torch.where(kept, lam, 0)
    for name, labels in zip(("target_a", "target_b"), both.unbind(-1), strict=True):
        check_labels(labels, problem.classes, ignore_index, name=name)
    if can_look_at(lam) and not bool(((lam >= 0) & (lam <= 1)).all()):
        raise ValueError("`lam` must be at least 0 and at most 1 in every row")
    problem = problem.replace(target=_mark(kept, ignore_index))

    def values_of(part: Problem, index: Index) -> RowValues:
        part, listed = look_up(part, both[index], ignore_index, engine)
        mass = where(listed.present, torch.stack([lam[index], 1 - lam[index]], -1), 0)
        if weight is not None:
            mass = mass * weight.to(mass.dtype)[listed.classes]
        values = nll_of_listed(part, listed, mass, engine)
        return RowValues(values, kept[index], mass.sum(-1))

    return reduce_problem(problem, values_of, reduce, (lam,)).to(problem.result_dtype())


def _mixing_weight(lam: float | Tensor, problem: Problem) -> Tensor:
    """The mixing proportion ``lam`` of each row."""
    if isinstance(lam, Tensor) and lam.ndim == 0:
        scalar("lam", lam, problem.device)
    if not isinstance(lam, Tensor):
        lam = Range(0, 1).check("lam", lam, None)
        lam = torch.tensor(lam, dtype=torch.float64, device=problem.device)
    if lam.ndim and lam.shape != problem.rows:
        raise ValueError(
            f"`lam` must be a number or one per row, shape {tuple(problem.rows)}; got shape "
            f"{tuple(lam.shape)}"
        )
    return widened(lam).expand(problem.rows)


def mixup(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.2,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor, float]:
    r"""Mix every row of a batch with another one, in one random proportion.

    Args:
        input: what a model is given, rows first, floating point.
        target: the class of each row.
        alpha: the proportion is drawn from Beta(alpha, alpha); small: mostly near 0 or 1.
        generator: source of the randomness, on the CPU; by default PyTorch's global one.

    Returns:
        ``(mixed, target_a, target_b, lam)``: the mixture
        :math:`\lambda x + (1 - \lambda) x'` and what :func:`xent.losses.mixup_cross_entropy` needs.

    Raises:
        ValueError: if ``alpha`` is not positive, or the rows of the two differ in number.

    Example:
        >>> import torch, xent
        >>> _ = torch.manual_seed(0)
        >>> x, *ab, lam = xent.losses.mixup(torch.eye(3), torch.tensor([0, 1, 2]), alpha=1.0)
        >>> x.sum(1)
        tensor([1., 1., 1.])
        >>> loss = xent.losses.mixup_cross_entropy(x, *ab, lam)
    """
    alpha = Range(0, open=True).check("alpha", alpha, None)
    if len(input) != len(target):
        raise ValueError(f"`input` has {len(input)} rows and `target` {len(target)}")
    concentration = torch.tensor([alpha, alpha], dtype=torch.float64, device="cpu")
    drawn = torch._sample_dirichlet(concentration, generator)  # pyright: ignore
    lam = float(drawn[0])
    order = torch.randperm(len(input), generator=generator, device="cpu").to(input.device)
    return lam * input + (1 - lam) * input[order], target, target[order], lam


@member("other", proper=True, convex=True)
@explained
@takes_class_dim(alike=("classes", "probabilities"))
def sparse_cross_entropy(
    input: Tensor | LinearLogits,
    classes: Tensor,
    probabilities: Tensor,
    weight: Tensor | None = None,
    *,
    class_dim: int | None = None,
    tail: Literal["ignore", "mass", "renormalize"] = "ignore",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> Tensor:
    r"""Cross-entropy with soft targets that list a few classes: the top of a teacher, say.

    .. math:: \ell = -\sum_{k=1}^K q_k \log p_{c_k}
        \;\Bigl[\, - \bigl(1 - \textstyle\sum_k q_k\bigr) \log \bigl(1 - \sum_k p_{c_k}\bigr) \Bigr]

    The part in brackets belongs to ``tail="mass"``: listed classes and all others together are a
    problem of ``K + 1`` classes, whose loss is least where the student gives each its share. With
    ``"ignore"`` the student learns to give the others nothing.

    Use:
        For soft targets of which a few classes are stored, as of a teacher; not for dense ones,
        which :func:`~xent.cross_entropy` takes.

    Args:
        classes: integers, like ``input`` with K in the place of the classes: ``(K,)``, ``(N, K)``,
            ``(N, K, d1, ...)``. No class twice in a row.
        probabilities: in the shape of ``classes``, adding up to at most 1 in a row.
        weight: class weights, ``(C,)``, factors on the probabilities; not with ``tail="mass"``.
        tail: use of the probability that is not listed: ``"ignore"`` (the value of the dense
            target), ``"mass"`` (kept for all other classes together; one copy of the logits)
            or ``"renormalize"`` (given to the listed classes).
        ignore_index: class index that stands for no class, so that lists may be of any length. Rows
            without any class are left out.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
        >>> classes, q = torch.tensor([[0, 1]]), torch.tensor([[0.7, 0.2]])
        >>> round(xent.losses.sparse_cross_entropy(logits, classes, q).item(), 4)
        0.5962
        >>> round(xent.losses.sparse_cross_entropy(logits, classes, q, tail="mass").item(), 4)
        0.8089
    """
    one_of("tail", tail, ("ignore", "mass", "renormalize"))
    ignore_index = whole_number("ignore_index", ignore_index)
    classes = class_indices("classes", classes)
    axis = _check_lists(input, classes, probabilities)
    if tail == "mass" and weight is not None:
        raise ValueError(
            '`weight` has a number for each class, and tail="mass" a target of many classes '
            "together. Leave one of the two out"
        )
    classes = classes.movedim(axis, -1)
    listed = (classes != ignore_index).any(-1)
    reduce = read_reduction(reduction, normalizer, row_weight, empty, listed.shape, input.device)
    kept, reduce = reduce.counting(listed)
    if kept is not listed:
        classes = torch.where(kept.unsqueeze(-1), classes, ignore_index)
    q = torch.where(classes != ignore_index, probabilities.movedim(axis, -1), 0)
    sums_to_1("probabilities", q, at_most=True)
    problem = make_problem(
        input, _mark(kept, ignore_index), weight, ignore_index, logit_scale, softcap, class_bias
    )
    classes, q, kept = (problem.flat(x) for x in (classes, q, kept))
    reduce = reduce._replace(row_weight=problem.flat(reduce.row_weight))
    q = widened(q)
    if tail == "renormalize":
        q = q / torch.where(kept, q.sum(-1), 1).unsqueeze(-1)

    def values_of(part: Problem, index: Index) -> RowValues:
        part, listed = look_up(part, classes[index], ignore_index, engine)
        refuse_doubles(listed)
        here = kept[index]
        if tail == "mass":
            values = nll_with_tail(part, listed, q[index], engine)
        else:
            mass = q[index] if weight is None else q[index] * weight.to(q.dtype)[listed.classes]
            values = nll_of_listed(part, listed, mass, engine)
        return RowValues(values, here, here.to(values.dtype))

    dtype = torch.promote_types(problem.result_dtype(), probabilities.dtype)
    dtype = torch.float32 if autocasts(input) and dtype.itemsize < 4 else dtype
    return reduce_problem(problem, values_of, reduce, (q, classes)).to(dtype)


def _check_lists(input: Tensor | LinearLogits, classes: Tensor, probabilities: Tensor) -> int:
    """The axis of the classes; raise unless the lists fit the logits."""
    are_logits("input", input)
    for name, value in (("classes", classes), ("probabilities", probabilities)):
        is_tensor(name, value)
    axis = class_axis(input)
    shape = [*input.shape]
    if classes.ndim == input.ndim:
        shape[axis] = classes.shape[axis]
    if [*classes.shape] != shape or classes.shape != probabilities.shape:
        last = classes.ndim == input.ndim > 2 and classes.shape[:-1] == input.shape[:-1]
        hint = "; for classes on the last axis pass class_dim=-1" if last else ""
        raise ValueError(
            f"`classes` and `probabilities` must have the shape of `input`, {tuple(input.shape)}, "
            f"with K in the place of the classes, axis {axis}; got {tuple(classes.shape)} and "
            f"{tuple(probabilities.shape)}{hint}"
        )
    for name, value in (("classes", classes), ("probabilities", probabilities)):
        if value.device != input.device:
            raise ValueError(f"`input` is on {input.device} but `{name}` on {value.device}")
    if not probabilities.is_floating_point():
        raise TypeError(f"`probabilities` must be floating point, got {probabilities.dtype}")
    return axis
