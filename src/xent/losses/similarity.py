"""Similarities of examples: logits behind a head whose weight holds the other examples.

So a chunk of rows is in memory at a time, never all N x M similarities.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._check import class_indices, is_tensor, scalar
from ..frames.reduction import rows_left_out
from ..heads.logits import LinearLogits, check_head, under_autocast


def labels_of(name: str, labels: Tensor, of: str, features: Tensor) -> Tensor:
    """Labels as int64; raise unless there is one for each row of features."""
    labels = class_indices(name, labels)
    if labels.shape != features.shape[:1] or labels.device != features.device:
        raise ValueError(
            f"`{name}` must hold an integer for each row of `{of}`, shape "
            f"{tuple(features.shape[:1])}, on {features.device}; got {tuple(labels.shape)} on "
            f"{labels.device}"
        )
    return labels


def check_features(query: tuple[str, Tensor], key: tuple[str, Tensor]) -> None:
    """Raise unless both are features (N, D) that can be multiplied."""
    for name, x in (query, key):
        is_tensor(name, x)
        if x.ndim != 2 or not x.is_floating_point():
            raise ValueError(
                f"`{name}` must hold features, floating point, (N, D); got {x.dtype} of shape "
                f"{tuple(x.shape)}"
            )
    features, others, none = under_autocast(query[1], key[1], None)
    check_head(features, others, none, (query[0], key[0], ""))


def normalized(x: Tensor) -> Tensor:
    """Features divided by their length."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.nn.functional.normalize(wide, dim=-1).to(x.dtype)


def similarities(
    query: tuple[str, Tensor], key: tuple[str, Tensor], normalize: bool, **of_head: Any
) -> LinearLogits:
    """The scalar products of features, behind a head; each argument is a pair of name and value."""
    check_features(query, key)
    features = [normalized(x) if normalize else x for _, x in (query, key)]
    return LinearLogits(*features, **of_head)


def at_temperature(logits: LinearLogits, temperature: float | Tensor) -> LinearLogits:
    """Similarities divided by a temperature, which may be learned."""
    one = torch.ones((), dtype=torch.float64, device=logits.device)
    return logits.absorb(inverse(temperature, logits.device) * one, None)


def without_left_out(
    x: Tensor, target: Tensor | None, row_weight: Tensor | None, ignore_index: int, axis: int = 1
) -> Tensor:
    """Set rows that are left out to 0, so that NaN in these rows cannot spread.

    Each row lies along an axis of ``x``. Errors in the other arguments are raised where those
    arguments are read.
    """
    rows = x.shape[:axis] + x.shape[axis + 1 :]

    def of_rows(given: Tensor | None) -> bool:
        return isinstance(given, Tensor) and given.shape == rows and given.device == x.device

    out = rows_left_out(row_weight) if of_rows(row_weight) else None
    if out is not None:
        x = torch.where(out.unsqueeze(axis), 0, x)
    if of_rows(target):
        marked = class_indices("target", target) == ignore_index
        x = torch.where(marked.unsqueeze(axis), 0, x)
    return x


def paired(logits: LinearLogits) -> Tensor:
    """Targets that give key n to query n."""
    queries, keys = logits.shape
    if keys < queries:
        raise ValueError(
            f"{queries} queries need as many keys, got {keys}; say which belongs to which: `target`"
        )
    return torch.arange(queries, device=logits.device)


def inverse(x: float | Tensor, device: torch.device, name: str = "temperature") -> float | Tensor:
    """The inverse of a positive number, or of a 0-d tensor that holds one."""
    one = x.reshape(()) if isinstance(x, Tensor) and x.numel() == 1 else x
    one = scalar(name, one, device)
    if not isinstance(one, Tensor) and one <= 0:
        raise ValueError(f"`{name}` must be positive, got {x}")
    return 1 / one
