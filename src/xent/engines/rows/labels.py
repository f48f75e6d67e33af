"""A check for labels that do not exist, where values may be looked at and a look is free."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._check import TargetError, label_out_of_range
from ..modes import behind_transforms, compiling, on_accelerator, plain_operations, refuse_where
from .problem import Problem


def check_labels(
    labels: Tensor, classes: int, ignore_index: int, first_class: int = 0, name: str = "target"
) -> None:
    """Raise on a class index that does not exist.

    Where values may not be looked at (accelerators, tracers) the row has no target, and no finite
    loss. Under torch.func the check reads the labels behind the wrappers: each label is right or
    wrong by itself.
    """
    if on_accelerator(labels):
        return
    if not compiling() and plain_operations():
        seen = behind_transforms(labels)
        if seen is None:
            return
        with torch._C._DisableFuncTorch():
            bad = _unknown(seen, classes, ignore_index, first_class)
            if bool(bad.any()):
                raise _error(seen[bad], classes, ignore_index, name)
        return
    bad = _unknown(labels, classes, ignore_index, first_class)
    refuse_where(
        bad,
        lambda: _error(labels[bad], classes, ignore_index, name),
        f"`{name}` holds a class index that is out of bounds for {classes} classes",
    )


def check_labels_of(problem: Problem) -> None:
    """Raise on a class index of a problem that does not exist; a shard may have any."""
    settings = problem.settings
    if problem.labelled and not settings.sharded:
        labels = problem.tensors.target
        check_labels(labels, problem.classes, settings.ignore_index, settings.first_class)


def _unknown(labels: Tensor, classes: int, ignore_index: int, first_class: int) -> Tensor:
    """Return which labels are neither a class nor ``ignore_index``."""
    here = labels - first_class if first_class else labels
    return ((here < 0) | (here >= classes)) & (labels != ignore_index)


def _error(bad: Tensor, classes: int, ignore_index: int, name: str) -> TargetError:
    """Return the error for the first of some unknown labels."""
    return label_out_of_range(int(bad.flatten()[0]), classes, ignore_index, name)
