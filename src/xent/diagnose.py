"""Diagnosis of the classic mistakes around cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ._check import class_indices, is_tensor, whole_number
from ._probabilities import rounding
from .arrays import takes_arrays
from .class_dim import axis_of_classes
from .heads.stand_in import Lean
from .targets import class_axis, read_target, shape_hint

# Sums of logits this near to 1 look like probabilities, in any dtype.
LOOKS_LIKE_1 = 0.02


class Finding(NamedTuple):
    """One mistake, and its fix.

    Attributes:
        name: a short identifier, such as ``"softmax-as-logits"``.
        problem: what is wrong, with the figures seen.
        fix: what to do about it.
    """

    name: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}\n    fix: {self.fix}"


class Diagnosis(list[Finding]):
    """A list of findings, empty if all is well; prints as text."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing suspicious found"


@takes_arrays
def diagnose(
    input: Tensor | Lean, target: Tensor, *, class_dim: int | None = None, ignore_index: int = -100
) -> Diagnosis:
    """Look for the classic mistakes in a batch of logits and targets, and say how to correct them.

    Reads every value, so call it once when something looks wrong, not in the training loop. Bad
    values are reported as findings and never raise.

    Args:
        input: logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; or :class:`xent.LinearLogits`,
            which are computed.
        target: class indices or probabilities, as for :func:`xent.cross_entropy`.
        class_dim: the axis of the classes, as for :func:`xent.cross_entropy`. Without it a finding
            tells where the last axis looks like that of the classes.
        ignore_index: class index that marks rows to leave out.

    Returns:
        A list of findings, each with ``name``, ``problem`` and ``fix``; empty if nothing is
        suspicious; ``print`` it.

    Raises:
        TypeError: if ``input`` or ``target`` is no tensor or array, or ``class_dim`` no integer.
        ValueError: if ``class_dim`` is not one of the axes of ``input``.

    Example:
        >>> import torch, xent
        >>> probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
        >>> for finding in xent.diagnose(probabilities, torch.tensor([1, 2])):
        ...     print(finding.name)
        softmax-as-logits
        >>> print(xent.diagnose(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([3])))
        label-out-of-range: `target` holds 3, but with 3 classes the labels go from 0 to 2
            fix: the labels seem to start at 1: pass target - 1
    """
    if isinstance(input, Lean):
        class_dim = class_dim if input.moved else -1
        input = input.materialize_for("diagnose")
    is_tensor("input", input)
    is_tensor("target", target)
    if class_dim is not None and input.ndim:
        axis, place = axis_of_classes(input, class_dim), class_axis(input)
        target = target.movedim(axis, place) if target.ndim == input.ndim else target
        input = input.movedim(axis, place)
    refused = _refusal(input, target, ignore_index)
    if input.ndim == 0 or not input.is_floating_point():
        problem = f"`input` is a {input.dtype} tensor of shape {tuple(input.shape)}"
        fix = "pass floating-point scores with a class axis: (C,), (N, C) or (N, C, d1, ...)"
        if refused is not None and "swapped" in refused.fix:
            fix = refused.fix
        return Diagnosis([Finding("not-logits", problem, fix)])
    if input.device != target.device or input.is_meta:
        meta = Finding("no-values", "`input` and `target` are on the meta device", "pass values")
        return Diagnosis([refused or meta])
    try:
        ignore_index = whole_number("ignore_index", ignore_index)
    except (TypeError, ValueError):
        assert refused is not None
        return Diagnosis([refused])
    found = _findings(input, target, ignore_index)
    if class_dim is None and input.ndim > 2:
        axes = [*_about_axes(input.detach().cpu(), target.detach().cpu())]
        found = axes + [f for f in found if not (axes and f.name == "soft-target-sum")]
    if refused is not None:  # take the fix from the error message of the losses
        found = [f._replace(fix=refused.fix) if f.name == "target-dtype" else f for f in found]
    if refused is not None and not {finding.name for finding in found} & _REFUSED:
        found.append(refused)
    return Diagnosis(found)


# Findings that already explain why the losses refuse the arguments.
_REFUSED = {"one-hot-integers", "target-dtype", "target-shape"}


def _refusal(input: Tensor, target: Tensor, ignore_index: int) -> Finding | None:
    """Return the error that every loss of classes raises for this pair, as a finding."""
    try:
        read_target(input, target, ignore_index)
    except (TypeError, ValueError) as error:
        problem, _, fix = str(error).rpartition("; ")
        return Finding("refused", problem or fix, fix if problem else "see xent.cross_entropy")
    return None


def _findings(input: Tensor, target: Tensor, ignore_index: int) -> list[Finding]:
    z = input.detach().movedim(class_axis(input), -1).double().cpu()  # (..., C)
    y = target.detach().cpu()
    if _are_swapped(z, input, target):
        return [
            Finding(
                "swapped-arguments",
                "`input` holds one-hot rows, and `target` holds numbers between: in Keras the "
                "target comes first, here the logits do",
                "pass (logits, target), by name if in doubt: input=logits, target=one_hot",
            )
        ]
    found = [*_about_logits(z, rounding(input.dtype))]
    rows, classes = z.shape[:-1], z.shape[-1]
    if y.is_floating_point() and target.shape == input.shape:
        found += _about_soft(y.movedim(class_axis(input), -1).double(), z, rounding(y.dtype))
    elif _is_one_hot(y, input.shape, classes):
        found.append(
            Finding(
                "one-hot-integers",
                f"`target` holds one-hot rows as {target.dtype}, which would be read as indices",
                "pass target.float() for probabilities, or target.argmax(1) for class indices",
            )
        )
    elif y.is_floating_point() or y.dtype == torch.bool or y.is_complex():
        found.append(
            Finding(
                "target-dtype",
                f"`target` is {target.dtype} of shape {tuple(target.shape)}; class indices are "
                f"int64 of shape {tuple(rows)}, probabilities have shape {tuple(input.shape)}",
                "pass target.long() if these are class indices",
            )
        )
    elif y.shape != rows and not (input.ndim == 1 and y.numel() == 1):
        found.append(_about_shape(input, y, rows))
    else:
        found += _about_labels(z, class_indices("target", y).reshape(rows), ignore_index)
    return found


def _are_swapped(z: Tensor, input: Tensor, target: Tensor) -> bool:
    """True for one-hot rows in the place of logits, and numbers that are none as their target."""
    if target.shape != input.shape or not target.is_floating_point() or z.shape[-1] < 2:
        return False
    one_hot = bool(((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all())
    return z.numel() > 0 and one_hot and not bool(((target == 0) | (target == 1)).all())


def _about_axes(z: Tensor, y: Tensor) -> Iterator[Finding]:
    """Tell where the classes, which are read on axis 1, may be on the last axis."""
    seen = None
    if z.numel() and y.is_floating_point() and y.shape == z.shape and _adds_up(y, -1):
        seen = "`target` adds up to 1 along"
    elif z.numel() and any(_adds_up(x, -1) and not _adds_up(x, 1) for x in (z, z.double().exp())):
        seen = "`input` looks like probabilities along"
    elif y.shape == z.shape[:-1] == z.shape[:1] + z.shape[2:]:
        seen = "`target` also fits classes on"
    if seen is not None:
        yield Finding(
            "class-axis",
            f"{seen} the last axis, of length {z.shape[-1]}, but the classes are read on axis 1, "
            f"of length {z.shape[1]}, as in PyTorch",
            "for classes on the last axis pass class_dim=-1, otherwise class_dim=1",
        )


def _adds_up(p: Tensor, axis: int) -> bool:
    """True if the numbers along an axis look like probabilities, all over the tensor."""
    p = p.double()
    return bool((p >= 0).all() and ((p.sum(axis) - 1).abs() < LOOKS_LIKE_1).all())


def _count(mask: Tensor) -> str:
    return f"{int(mask.sum())} of {mask.numel()} rows"


def _about_logits(z: Tensor, slack: float) -> Iterator[Finding]:
    if z.numel() == 0:
        yield Finding(
            "empty-batch",
            f"there are no logits: shape {tuple(z.shape)} with the classes last",
            'the mean over no rows is NaN; pass empty="zero" if it should count for nothing',
        )
        return
    nan = z.isnan().any(-1)
    if nan.any():
        yield Finding(
            "nan-rows",
            f"{_count(nan)} hold NaN, first at row {_first(nan)}; their losses are NaN",
            "look upstream: torch.autograd.set_detect_anomaly(True) finds where it starts",
        )
    infinite = (z == math.inf).any(-1)
    if infinite.any():
        yield Finding(
            "infinite-logits",
            f"{_count(infinite)} hold +inf, first at row {_first(infinite)}; their losses are NaN",
            "an overflow upstream: lower the learning rate, or compute the logits in bfloat16 or "
            "float32 instead of float16",
        )
    masked = (z == -math.inf).all(-1)
    if masked.any():
        yield Finding(
            "all-classes-masked",
            f"{_count(masked)} are -inf throughout, first at row {_first(masked)}",
            "leave at least one class unmasked, or mark the row with ignore_index",
        )
    yield from _about_probabilities(z, slack)


def _about_probabilities(z: Tensor, slack: float) -> Iterator[Finding]:
    """Tell of logits that look like probabilities, or their logarithms."""
    sums = z.sum(-1)
    looks_like = (z >= 0).all(-1) & ((sums - 1).abs() < LOOKS_LIKE_1)
    if z.shape[-1] > 1 and looks_like.all():
        floor = math.log(math.e + z.shape[-1] - 1) - 1
        yield Finding(
            "softmax-as-logits",
            f"every row of `input` is non-negative and sums to 1, or nearly: these look like "
            f"probabilities. "
            f"Softmax would be applied twice, and the loss could never fall below {floor:.4f}",
            "pass the logits, the scores before softmax; or input.log() if they cannot be had",
        )
        off = (sums - 1).abs() > slack
        if off.any():
            yield Finding(
                "unnormalised-rows",
                f"{_count(off)} of `input` do not sum to 1, first row {_first(off)} with a sum of "
                f"{sums[off][0].item():.6g}; softmax would rescale them silently, and so does "
                "input.log()",
                "find out where the missing probability went; or pass input / input.sum(1, "
                "keepdim=True), which says that the rows are rescaled",
            )
    logs = z.exp().sum(-1)
    if z.shape[-1] > 1 and (z <= 0).all() and ((logs - 1).abs() < LOOKS_LIKE_1).all():
        yield Finding(
            "log-softmax-as-logits",
            "every row of `input` holds log-probabilities. That gives the right loss, at the price "
            "of a second softmax and of the digits that the first one rounded away",
            "pass the logits themselves",
        )


def _about_soft(q: Tensor, z: Tensor, slack: float) -> Iterator[Finding]:
    if q.numel() == 0:
        return
    bad = ~q.isfinite().all(-1)
    if bad.any():
        yield Finding(
            "soft-target-nan",
            f"{_count(bad)} of `target` hold NaN or infinity, first at row {_first(bad)}",
            "look at where the probabilities come from: a softmax of -inf throughout gives NaN",
        )
    negative = (q < 0).any(-1)
    if negative.any():
        yield Finding(
            "soft-target-negative",
            f"{_count(negative)} of `target` hold negative values, first at row {_first(negative)}",
            "pass probabilities; if these are logits of a teacher, pass their softmax",
        )
    off = ((q.sum(-1) - 1).abs() > slack) & ~negative & ~bad
    if off.any():
        worst = q.sum(-1)[off][0].item()
        yield Finding(
            "soft-target-sum",
            f"{_count(off)} of `target` do not sum to 1 (the first sums to {worst:.4g}); each row "
            f"counts with its sum",
            "divide by target.sum(1, keepdim=True). If each class is a question of its own "
            "(multi-label), use binary cross-entropy instead",
        )
    lost = ((q > 0) & (z == -math.inf)).any(-1)
    if lost.any():
        yield _masked_target(lost)


def _about_labels(z: Tensor, y: Tensor, ignore_index: int) -> Iterator[Finding]:
    if y.numel() == 0:
        return
    classes = z.shape[-1]
    kept = y != ignore_index
    if not kept.any():
        yield Finding(
            "everything-ignored",
            f"every label is ignore_index={ignore_index}; the mean over no rows is NaN",
            'pass empty="zero" if such a batch should count for nothing',
        )
        return
    outside = kept & ((y < 0) | (y >= classes))
    if outside.any():
        yield _out_of_range(y[kept], y[outside], classes, ignore_index)
    inside = kept & ~outside
    if inside.any():
        at_label = z.gather(-1, torch.where(inside, y, 0).unsqueeze(-1)).squeeze(-1)
        lost = inside & (at_label == -math.inf) & ~(z == -math.inf).all(-1)
        if lost.any():
            yield _masked_target(lost)
    valid = 0 <= ignore_index < classes
    if valid and (~kept).any():
        yield Finding(
            "ignore-index-is-a-class",
            f"ignore_index={ignore_index} is a class: {_count(~kept)} are left out, and the class "
            f"still takes part in the softmax of the others",
            "if the class itself should go, set its logits to -inf; else mark the rows with -100",
        )


def _out_of_range(y: Tensor, outside: Tensor, classes: int, ignore_index: int) -> Finding:
    low, high = int(y.min()), int(y.max())
    one_based = low >= 1 and high == classes
    if one_based:
        fix = "the labels seem to start at 1: pass target - 1"
    elif low < 0 and high < classes:
        fix = f"to leave rows out, mark them with {ignore_index}, or pass ignore_index={low}"
    else:
        fix = f"give the model at least {high + 1} outputs, or check how the labels are made"
    return Finding(
        "label-out-of-range",
        f"`target` holds {int(outside[0])}, but with {classes} classes the labels go from 0 to "
        f"{classes - 1}",
        fix,
    )


def _masked_target(lost: Tensor) -> Finding:
    return Finding(
        "masked-target",
        f"{_count(lost)} have their target on a class masked by -inf, first at row {_first(lost)}; "
        f"their loss is infinite",
        "do not mask the target class, or mark the row with ignore_index",
    )


def _is_one_hot(y: Tensor, shape: torch.Size, classes: int) -> bool:
    if y.shape != shape or y.is_floating_point() or y.is_complex() or y.numel() == 0:
        return False
    last = y.movedim(class_axis(y), -1).long()
    return bool(((last == 0) | (last == 1)).all() and (last.sum(-1) == 1).all())


def _about_shape(input: Tensor, y: Tensor, rows: torch.Size) -> Finding:
    problem = (
        f"`target` has shape {tuple(y.shape)}; class indices for `input` of shape "
        f"{tuple(input.shape)} have shape {tuple(rows)}"
    )
    fix = shape_hint(input, y) if input.ndim > 1 else ""
    return Finding("target-shape", problem, fix.removeprefix("; ") or "check the shapes")


def _first(mask: Tensor) -> int | tuple[int, ...]:
    where = mask.nonzero()[0].tolist()
    return where[0] if len(where) == 1 else tuple(where)
