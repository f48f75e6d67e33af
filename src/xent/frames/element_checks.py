"""Reads a call of a loss of single elements: checks, marks, label smoothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._check import broadcasts_to, finite_number, is_tensor, number_or_nan
from ..engines.elements.problem import ElementProblem
from ..engines.modes import autocasts, refuse_where, settled
from ..heads.logits import LinearLogits, outline
from ..hyperparameters import Range
from ..targets import densified
from .reduction import rows_left_out


def make_problem(
    input: Tensor | LinearLogits,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore_value: float | None,
    bounded: bool = True,
) -> ElementProblem:
    """Check the tensors of a call against each other; the loss itself is still to be set."""
    input = outline(input)
    is_tensor("input", input)
    target = densified(target)
    is_tensor("target", target)
    if not input.is_floating_point():
        way_out = "call input.float()"
        if target.is_floating_point():
            way_out += "; or are `input` and `target` swapped? The logits come first"
        raise TypeError(f"`input` must be floating point, got {input.dtype}; {way_out}")
    if target.is_complex():
        raise TypeError(f"`target` must hold real numbers in [0, 1], got {target.dtype}")
    if target.shape != input.shape:
        raise ValueError(
            f"`target` must have the shape of `input`, {tuple(input.shape)}, got "
            f"{tuple(target.shape)}{_shape_hint(input, target)}"
        )
    if target.device != input.device:
        raise ValueError(f"`input` is on {input.device} but `target` on {target.device}")
    if not target.is_floating_point():  # labels 0 and 1 of any type
        target = target.to(input.dtype)
    if ignore_value is not None:
        ignore_value = number_or_nan("ignore_value", ignore_value)
    dtype = torch.promote_types(input.dtype, target.dtype)
    if dtype.itemsize < 4 and autocasts(input):
        dtype = torch.float32
    weights = _weight("weight", weight, input), _weight("pos_weight", pos_weight, input)
    problem = ElementProblem(
        settled(input), settled(target), *weights, _no_body, None, ignore_value, bounded, dtype
    )
    if ignore_value is not None and math.isnan(ignore_value):  # NaN equals nothing, not even NaN
        problem = mark_out(problem._replace(ignore_value=None), target.isnan())
    return problem


# Marks elements to leave out where the caller has no mark: exact in every type, and never a target.
_MARK = -33024.0


def mark_out(problem: ElementProblem, out: Tensor) -> ElementProblem:
    """The problem without the elements ``out``: whatever they hold, the result does not change."""
    mark = _MARK if problem.ignore_value is None else problem.ignore_value
    return problem._replace(target=torch.where(out, mark, problem.target), ignore_value=mark)


def without_weightless(problem: ElementProblem) -> ElementProblem:
    """The problem without the elements of weight 0."""
    out = rows_left_out(problem.weight)
    return problem if out is None else mark_out(problem, out)


def smooth(problem: ElementProblem, label_smoothing: float) -> ElementProblem:
    """The problem whose engine moves each target towards 1/2, by this part of its distance."""
    amount = finite_number("label_smoothing", label_smoothing)
    Range(0, 1).check("label_smoothing", amount, None)
    return problem._replace(smoothing=amount)


def _no_body(*_: Tensor | None) -> Tensor:
    raise NotImplementedError


def _shape_hint(input: Tensor, target: Tensor) -> str:
    if target.ndim > 2 and target.movedim(-1, 1).shape == input.shape:
        return "; the channels must come on axis 1: pass target.movedim(-1, 1)"
    if target.ndim > 1 and target.shape[1] == 1 and target.squeeze(1).shape == input.shape:
        return "; pass target.squeeze(1), as target.reshape(input.shape) does"
    if input.ndim > 1 and input.shape[1] == 1 and input.squeeze(1).shape == target.shape:
        return "; pass target.unsqueeze(1)"
    if target.numel() == input.numel():
        return "; call target.reshape(input.shape), if the order is the same"
    if target.ndim < input.ndim:
        return "; nothing is broadcast here. Class indices are for xent.cross_entropy"
    return "; nothing is broadcast here"


def _weight(name: str, weight: Tensor | None, input: Tensor) -> Tensor | None:
    """A weight that broadcasts to the shape of the input, as floating point."""
    if weight is None:
        return None
    is_tensor(name, weight)
    broadcasts_to(name, weight, input)
    if weight.is_complex():
        raise TypeError(f"`{name}` must hold real numbers, got {weight.dtype}")
    return settled(weight if weight.is_floating_point() else weight.to(input.dtype))


def check_unit_range(name: str, value: Tensor, hint: str, weight: Tensor | None) -> None:
    """Raise for a number outside [0, 1] or NaN whose weight is not 0; a GPU is not waited for."""
    is_tensor(name, value)
    outside = ~((value >= 0) & (value <= 1))
    out = rows_left_out(_weight("weight", weight, value))
    if out is not None:
        outside = outside & ~out
    refuse_where(
        outside,
        lambda: ValueError(
            f"`{name}` holds {value[outside][0].item():g}, but must lie between 0 and 1; {hint}"
        ),
        f"`{name}` must lie between 0 and 1",
    )
