r"""Targets that are sets of classes: a row is right if its class is any class of the set.

    d = lse(S) - lse(not S),    loss = -log sigmoid(d)

The set takes the place of the target in the log-odds. So whatever is a function of row statistics
is one of sets, too, and nothing cancels: no logarithm of a sum of probabilities is taken.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .._check import class_indices, is_tensor, whole_number
from ..class_dim import takes_class_dim
from ..engines.modes import wide_dtype
from ..engines.rows.problem import Index, Problem
from ..frames.by_chunks import reduce_problem
from ..frames.dense_loss import explained
from ..frames.reduction import Reduction, RowValues, read_reduction
from ..heads.logits import LinearLogits, are_logits
from ..heads.measure import measure
from ..heads.problem import make_problem
from ..row_statistics import RowStatistics
from ..targets import class_axis, shape_hint
from .catalog import member


@member("other", proper=False, convex=False, second_pass=True)
@explained
@takes_class_dim
def set_cross_entropy(
    input: Tensor | LinearLogits,
    target: Tensor,
    *,
    groups: Tensor | None = None,
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
    r"""Cross-entropy of a set of classes: minus the log-probability that the class is one of them.

    .. math:: \ell = -\log \sum_{j \in S} p_j = -\log \sigma(d), \qquad
        d = \log \sum_{j \in S} e^{z_j} - \log \sum_{j \notin S} e^{z_j}

    For partial labels (one of these, nobody knows which), superclasses, events that are known to
    come after a time (all later bins), and several right answers (MIL-NCE: ``LinearLogits(query,
    key)`` with the labels of the keys as ``groups``). A set of one class is
    :func:`xent.cross_entropy`; the loss of the set of all classes is 0, of no class infinite. The
    loss has all its digits however sure the prediction.

    Use:
        For rows of which only a set of possible classes is known; not for several labels that all
        hold, which are for :func:`~xent.losses.multilabel_cross_entropy`.

    Args:
        target: the set of each row: booleans in the shape of ``input``; or with ``groups`` the
            number of a group, an integer, in the shape of the rows.
        groups: the group of each class, integers, ``(C,)``: the set of a row holds the classes of
            its group. Behind a linear head nothing of the size of all logits is then in memory.
        ignore_index: group that marks rows to leave out. With booleans a ``row_weight`` of 0 does.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept, or
            by the sum of their ``row_weight``.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[20.0, 19.0, -5.0, -6.0]])
        >>> some = torch.tensor([[True, True, False, False]])
        >>> f"{xent.losses.set_cross_entropy(logits, some).item():.2e}"
        '1.39e-11'
        >>> animal = torch.tensor([0, 0, 1, 1])  # cat and dog are group 0, oak and elm group 1
        >>> loss = xent.losses.set_cross_entropy(logits, torch.tensor([1]), groups=animal)
        >>> f"{loss.item():.4f}"
        '25.0000'

    References:
        Jin & Ghahramani, *Learning with multiple labels*, NeurIPS 2002. Miech et al., *End-to-end
        learning of visual representations from uncurated instructional videos*, CVPR 2020.
    """
    ignore_index = whole_number("ignore_index", ignore_index)
    target, groups = _check_sets(input, target, groups)
    axis = class_axis(input)
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    reduce = read_reduction(reduction, normalizer, row_weight, empty, rows, input.device)
    if groups is None:
        kept = torch.ones(rows, dtype=torch.bool, device=input.device)
    else:
        kept = target != ignore_index
    kept, reduce = reduce.counting(kept)
    label = torch.where(kept, int(ignore_index == 0), ignore_index)  # marks the kept rows
    problem = make_problem(input, label, None, ignore_index, logit_scale, softcap, class_bias)
    target, kept, row_weight = (problem.flat(x) for x in (target, kept, reduce.row_weight))

    def values_of(part: Problem, index: Index) -> RowValues:
        inside = target[index]
        if groups is not None:
            inside = (inside.unsqueeze(-1) == groups).movedim(-1, part.axis)
        here = kept[index]
        values = 0.0 - set_statistics(part, inside, engine).log_prob  # no minus 0
        return RowValues(values, here, here.to(values.dtype))

    reduce = reduce._replace(row_weight=row_weight)
    return reduce_problem(problem, values_of, reduce, (target, groups)).to(problem.result_dtype())


def _check_sets(
    input: Tensor | LinearLogits, target: Tensor, groups: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Sets and groups, integers as int64; raise unless they fit the logits."""
    are_logits("input", input)
    is_tensor("target", target)
    if not input.is_floating_point():
        raise TypeError(f"`input` must hold floating-point logits, got {input.dtype}")
    if input.ndim == 0:
        raise ValueError("`input` must have a class axis: shape (C,), (N, C) or (N, C, d1, ...)")
    if target.device != input.device:
        raise ValueError(f"`input` is on {input.device} but `target` on {target.device}")
    axis, shape = class_axis(input), tuple(input.shape)
    if groups is None:
        if target.dtype != torch.bool:
            raise TypeError(
                f"`target` must hold booleans, the classes of each row's set; got {target.dtype}. "
                f"For the number of a group per row pass `groups`, the group of each class"
            )
        if target.shape != input.shape:
            raise ValueError(
                f"`target` must have the shape of `input`, {shape}; got {tuple(target.shape)}"
            )
        return target, None
    target, groups = class_indices("target", target), class_indices("groups", groups)
    if groups.shape != (shape[axis],) or groups.device != input.device:
        raise ValueError(
            f"`groups` must hold the group of each class, shape ({shape[axis]},), on "
            f"{input.device}; got {tuple(groups.shape)} on {groups.device}"
        )
    rows = shape[:axis] + shape[axis + 1 :]
    if target.shape != rows:
        hint = shape_hint(input, target) if isinstance(input, Tensor) and input.ndim > 1 else ""
        raise ValueError(
            f"`target` must hold the group of each row, shape {rows}; got "
            f"{tuple(target.shape)}{hint}"
        )
    return target, groups


def set_statistics(problem: Problem, inside: Tensor, engine: str = "auto") -> RowStatistics:
    """The statistics of rows whose targets are sets of classes, differentiable.

    Args:
        problem: logits; its labels only say which rows are ignored.
        inside: the sets, bool, in the shape of the logits.
        engine: the engine to ask for.
    """
    problem = with_plain_logits(problem)
    z, kept = problem.logits, problem.kept()
    within = lse_of(problem, z.masked_fill(~inside, -torch.inf), engine)
    without = lse_of(problem, z.masked_fill(inside, -torch.inf), engine)
    assert kept is not None
    log_odds = torch.where(kept, within - without, torch.inf)
    return RowStatistics(
        log_odds,
        torch.nn.functional.logsigmoid(log_odds),
        target=within,
        lse=torch.logaddexp(within, without),
        mass=kept.to(log_odds.dtype),
        classes=problem.classes,
    )


def with_plain_logits(problem: Problem) -> Problem:
    """The problem for masking with -inf: transformed first if the transform wants a gradient.

    The gradient of a scale would be 0 times infinity at a masked class.
    """
    if not problem.differentiable_beyond_logits():
        return problem
    z = problem.logits.movedim(problem.axis, -1).to(wide_dtype(problem.logits))
    return problem.without_transform(problem.transform(z).movedim(-1, problem.axis))


def lse_of(problem: Problem, logits: Tensor, engine: str = "auto") -> Tensor:
    """Log-sum-exp of each row of ``logits``, which take the place of those of a problem.

    It is -inf where all logits are.
    """
    ignored = problem.settings.ignore_index
    absent = problem.classes + (problem.classes == ignored)
    label = torch.where(problem.tensors.target == ignored, ignored, absent)
    shard = problem.settings._replace(sharded=True)
    rest = Problem(problem.tensors._replace(logits=logits, target=label), shard)
    return measure(rest, engine).lse
