"""Targets: class indices, or dense probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ._check import class_indices, is_tensor, label_out_of_range, whole_number
from .arrays import takes_arrays

__all__ = ["class_axis", "class_rows", "shift_labels"]


class HasAxes(Protocol):
    """A tensor, or an object that stands for one."""

    @property
    def ndim(self) -> int:
        """The number of axes."""
        ...


class Target(NamedTuple):
    """A checked target.

    ``values`` holds class indices in the shape of the rows, int64, or probabilities in the shape
    of the logits.
    """

    values: Tensor
    soft: bool
    ignore_index: int
    first_class: int = 0  # the number of the first class of these logits; for shards
    sharded: bool = False


@takes_arrays
def shift_labels(
    labels: Tensor, k: int = 1, ignore_index: int = -100, *, documents: Tensor | None = None
) -> Tensor:
    """Labels moved ``k`` places to the left, for models whose position ``t`` predicts ``t + k``.

    With moved labels every loss fits a causal model. Slicing the logits instead would copy them.
    In rows that hold several documents (packed rows), ``documents`` keeps the end of a document
    from predicting the start of the next. Position ids tell where documents start, too:
    ``documents=(position_ids == 0).cumsum(-1)``; and so do their lengths:
    ``documents=torch.arange(len(lengths)).repeat_interleave(lengths)``.

    Args:
        labels: class indices of any integer type, ``(..., T)``; those of ignored tokens move
            along.
        k: how many places, from 0 to ``T``.
        ignore_index: label of the last ``k`` places, and of the last ``k`` of each document.
        documents: a number for each token, the same within a document: integers in the shape of
            ``labels``, or ``(T,)`` or ``(1, T)`` for all rows. Where the number changes, a document
            starts.

    Returns:
        int64, ``(..., T)``.

    Raises:
        ValueError: if there is no axis to move along, ``k`` is out of range, or ``documents`` has
            another shape.
        TypeError: if ``labels`` or ``documents`` are no integers.

    Example:
        >>> import torch, xent
        >>> xent.shift_labels(torch.tensor([[5, 6, 7]]))
        tensor([[   6,    7, -100]])
        >>> packed = torch.tensor([[5, 6, 7, 8, 9]])
        >>> xent.shift_labels(packed, documents=torch.tensor([[0, 0, 0, 1, 1]]))
        tensor([[   6,    7, -100,    9, -100]])
        >>> position_ids = torch.tensor([[0, 1, 2, 0, 1]])
        >>> xent.shift_labels(packed, documents=(position_ids == 0).cumsum(-1))
        tensor([[   6,    7, -100,    9, -100]])
    """
    moved = moved_labels(("labels", labels), ("k", k), ignore_index)
    if documents is None:
        return moved
    documents = class_indices("documents", documents)
    pairs = zip(documents.shape[-2::-1], labels.shape[-2::-1], strict=False)
    of_all = documents.shape[-1:] == labels.shape[-1:] and documents.ndim <= labels.ndim
    if not of_all or any(have not in (1, want) for have, want in pairs):
        raise ValueError(
            f"`documents` must have the shape of `labels`, {tuple(labels.shape)}, or "
            f"({labels.shape[-1]},) for all rows; got {tuple(documents.shape)}"
        )
    if documents.device != labels.device:
        raise ValueError(f"`labels` is on {labels.device} but `documents` on {documents.device}")
    number = (documents.diff(prepend=documents[..., :1]) != 0).cumsum(-1)  # from 0 on, in each row
    return moved.masked_fill(number.roll(-whole_number("k", k), -1) != number, ignore_index)


def moved_labels(labels: tuple[str, Tensor], k: tuple[str, int], ignore_index: int) -> Tensor:
    """Do the work of :func:`shift_labels`; each argument is a pair of its name and its value."""
    (name, values), places = labels, whole_number(*k)
    values, ignore_index = class_indices(name, values), whole_number("ignore_index", ignore_index)
    if values.ndim == 0:
        raise ValueError(f"`{name}` must have an axis of positions, (..., T); got one label")
    if not 0 <= places <= values.shape[-1]:
        raise ValueError(
            f"`{k[0]}` must be 0 to {values.shape[-1]} places, the length of the last axis of "
            f"`{name}`; got {places}"
        )
    return torch.nn.functional.pad(values[..., places:], (0, places), value=ignore_index)


def densified(target: Tensor) -> Tensor:
    """A sparse target as a dense one; any other target unchanged."""
    sparse = isinstance(target, Tensor) and target.layout in _SPARSE
    return target.to_dense() if sparse else target


_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def are_alike(target: Tensor, input: Any) -> bool:
    """True if a target holds a number for each logit.

    The number of axes is compared first, because tracers fix the length of an axis they compare.
    """
    return target.ndim == input.ndim and target.shape == input.shape


def any_class(input: Any) -> Tensor:
    """The first class for each row, for losses in which the class of a target has no say."""
    axis = class_axis(input)
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    return torch.zeros(rows, dtype=torch.int64, device=input.device)


def class_axis(input: HasAxes) -> int:
    """Axis of the classes: 0 of a single row, 1 of any other tensor, the last behind a head.

    Args:
        input: logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, or behind a head ``(..., C)``.

    Example:
        >>> import torch
        >>> from xent.targets import class_axis
        >>> class_axis(torch.zeros(10)), class_axis(torch.zeros(2, 10, 8, 8))
        (0, 1)
    """
    if not isinstance(input, Tensor):
        return getattr(input, "class_axis", input.ndim - 1)
    return 0 if input.ndim == 1 else 1


def read_target(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    first_class: int | None = None,
    name: str = "target",
) -> Target:
    """Check a target against its logits; tell indices from probabilities as PyTorch does.

    ``name`` is what the caller calls the target.
    """
    target = densified(target)
    is_tensor(name, target)
    if not input.is_floating_point():
        way_out = _swapped(input, target, name) or "call input.float()"
        raise TypeError(f"`input` must hold floating-point logits, got {input.dtype}; {way_out}")
    if input.ndim == 0:
        raise ValueError("`input` must have a class axis: shape (C,), (N, C) or (N, C, d1, ...)")
    ignore_index = whole_number("ignore_index", ignore_index)
    if input.device != target.device:
        raise ValueError(f"`input` is on {input.device} but `{name}` on {target.device}")
    if are_alike(target, input):
        if input.shape[class_axis(input)] == 0:
            raise ValueError(
                f"`input` must have a class for a soft target to speak of, got shape "
                f"{tuple(input.shape)}"
            )
        return _soft_target(target, ignore_index, first_class, name)
    return _index_target(input, target, ignore_index, first_class, name)


def _soft_target(target: Tensor, ignore_index: int, first_class: int | None, name: str) -> Target:
    if not target.is_floating_point():
        raise TypeError(
            f"`{name}` has the shape of `input`, so it must hold class probabilities as floating "
            f"point, but it is {target.dtype}. One-hot rows: pass {name}.float(), or "
            f"{name}.argmax(1) for class indices"
        )
    if ignore_index >= 0:
        raise ValueError(
            f"`ignore_index` is not supported for floating point target, got {ignore_index}; give "
            f"the rows to leave out a row_weight of 0"
        )
    return Target(target, True, ignore_index, first_class or 0, first_class is not None)


def _index_target(
    input: Tensor, target: Tensor, ignore_index: int, first_class: int | None, name: str
) -> Target:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        way_out = _swapped(input, target, name) or (
            f"call {name}.long(), or give probabilities the shape of `input`, {tuple(input.shape)}"
        )
        raise TypeError(
            f"expected `{name}` dtype to be Long or another integer type, of class indices, but "
            f"got {target.dtype}; {way_out}"
        )
    labels = class_indices(name, target)
    if input.ndim == 1:
        if target.shape not in ((), (1,)):
            raise ValueError(
                f"a single row of logits, `input` of shape {tuple(input.shape)}, takes a 0-d "
                f"`{name}`; got shape {tuple(target.shape)}"
            )
        labels = labels.reshape(())
    else:
        refuse_other_rows(input, target, name)
    return Target(labels, False, ignore_index, first_class or 0, first_class is not None)


def class_rows(input: Tensor, target: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """Rows of logits with their classes, without ignored rows, as metrics need them.

    Args:
        input: logits, or other numbers per class: ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices of any integer type, in the shape of the rows.
        ignore_index: class index that marks rows to leave out.

    Returns:
        The rows that count, ``(n, C)``, and their classes, ``(n,)``, int64.

    Raises:
        ValueError: for shapes that do not fit, probabilities as targets, or a class out of range.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch
        >>> from xent.targets import class_rows
        >>> class_rows(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([-100, 1]))
        (tensor([[0., 1.]]), tensor([1]))
    """
    is_tensor("input", input)
    checked = read_target(input, target, ignore_index)
    if checked.soft:
        raise ValueError(
            "`target` has the shape of `input`, which makes it probabilities; one class per row is "
            "needed. Pass class indices, target.argmax(1) say"
        )
    labels = checked.values.flatten()  # (N,)
    kept = labels != checked.ignore_index
    rows = input.movedim(class_axis(input), -1).reshape(len(labels), input.shape[class_axis(input)])
    rows, labels = rows[kept], labels[kept]
    outside = (labels < 0) | (labels >= rows.shape[-1])
    if bool(outside.any()):
        raise label_out_of_range(int(labels[outside][0]), rows.shape[-1], ignore_index)
    return rows, labels


def refuse_other_rows(input: Tensor, target: Tensor, name: str = "target") -> None:
    """Raise unless class indices have the shape of the rows of (N, C, d1, ...) logits."""
    rows = input.shape[:1] + input.shape[2:]
    if target.shape == rows:
        return
    way_out = shape_hint(input, target, name)
    if target.ndim and target.shape[0] != rows[0]:
        raise ValueError(
            f"Expected `input` batch_size ({rows[0]}) to match `{name}` batch_size "
            f"({target.shape[0]}); got shapes {tuple(input.shape)} and {tuple(target.shape)}"
            f"{way_out}"
        )
    raise ValueError(
        f"`{name}` must have shape {tuple(rows)} to hold one class index for each row of "
        f"`input`, shape {tuple(input.shape)}; got {tuple(target.shape)}{way_out}"
    )


def shape_hint(input: Tensor, target: Tensor, name: str = "target") -> str:
    """Return a hint how to make class indices and logits fit, to end a message; may be empty."""
    rows, shape = input.shape[:1] + input.shape[2:], target.shape
    if len(shape) == len(rows) + 1 and shape[1] == 1 and shape[:1] + shape[2:] == rows:
        return f"; pass {name}.squeeze(1)"
    if input.ndim > 2 and shape == input.shape[:-1]:
        return "; if the classes are on the last axis, pass class_dim=-1 or input.movedim(-1, 1)"
    if shape.numel() == input.shape[:-1].numel():
        logits = "input.flatten(0, -2) and " if input.ndim > 2 else ""
        return f"; pass {logits}{name}.flatten()"
    return ""


def _swapped(input: Tensor, target: Tensor, name: str) -> str:
    """The question whether the target came first, as in scikit-learn and Keras; or no text."""
    rows = target.shape[:1] + target.shape[2:]
    if target.is_floating_point() and (input.shape == rows or not input.is_floating_point()):
        return f"are `input` and `{name}` swapped? The logits come first, then the targets"
    return ""
