"""A loss and its hyperparameters in one word, ``focal_loss:gamma=2``, as a curve to draw."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._suggestions import near
from ..losses import CATALOG
from ..losses.catalog import Member, Targets
from ..losses.lookup import find

# Arguments that do not change the curve of a loss, or that the picture sets itself.
_NOT_DRAWN = {
    "empty", "engine", "ignore_index", "inplace_backward", "normalizer", "reduce", "reduction",
    "return_stats", "row_weight", "size_average",
}  # fmt: skip


class Curve(NamedTuple):
    """A loss to draw.

    Attributes:
        label: for the legend.
        call: maps logits and target of one row to the loss.
        targets: the kind of targets, as :class:`xent.losses.Member` names them.
        classes: how many classes the hyperparameters are made for; None if for any number.
        in_nats: whether the loss is in nats, by the catalog.
    """

    label: str
    call: Callable[[Tensor, Tensor], Tensor]
    targets: Targets
    classes: int | None = None
    in_nats: bool = False


def read_curve(word: str) -> Curve:
    """The curve that ``name`` or ``name:key=value,key=value`` names.

    Raises:
        ValueError: as :func:`read_loss`.
    """
    member, given = read_loss(word)
    label = ", ".join([member.name, *(f"{key}={_shown(value)}" for key, value in given.items())])
    return make_curve(partial(member.function, **given), label)


def read_loss(word: str) -> tuple[Member, dict[str, Any]]:
    """The loss that ``name`` or ``name:key=value,key=value`` names, and its hyperparameters.

    Values are numbers, words or lists: ``logit_adjusted_loss:prior=[100,10,1]``.

    Raises:
        ValueError: for a loss or a hyperparameter that does not exist.
    """
    name, _, settings = word.partition(":")
    member = find(name)
    known = hyperparameters(member.function)
    return member, read_settings(settings, word, member.name, known)


def read_settings(settings: str, word: str, loss: str, known: list[str]) -> dict[str, Any]:
    """The hyperparameters that ``key=value,key=value`` of a word gives to a loss with those known.

    Raises:
        ValueError: for a hyperparameter that does not exist.
    """
    given = {}
    for part in _split(settings):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise ValueError(f"{part!r} in {word!r} is no `name=value`, like gamma=2")
        _check_known(loss, key, known)
        given[key] = _value(value)
    return given


def make_curve(loss: Callable[..., Any], label: str | None = None) -> Curve:
    """The curve of a function, a :func:`functools.partial` of one, or a module."""
    function, given = loss, {}
    if isinstance(loss, partial):
        function, given = loss.func, loss.keywords
    function = getattr(function, "function", function)  # the function of a module
    name = getattr(function, "__name__", type(loss).__name__)
    if label is None:
        settings = (f"{key}={_shown(value)}" for key, value in given.items())
        label = repr(loss) if isinstance(loss, torch.nn.Module) else ", ".join([name, *settings])
    member = CATALOG.get(name)
    call = loss
    if member and not isinstance(loss, torch.nn.Module):
        # A mean over one row would divide by the class weight that the curve should show.
        accepted = inspect.signature(function).parameters
        call = partial(loss, reduction="sum") if "reduction" in accepted else loss
    sizes = [v.shape[0] for v in given.values() if isinstance(v, Tensor) and v.ndim]
    of_elements = hasattr(function, "body")
    targets = member.targets if member else "binary" if of_elements else "classes"
    in_nats = member is not None and member.in_nats
    return Curve(label, call, targets, sizes[0] if sizes else None, in_nats)


def hyperparameters(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that shape the curve of a loss."""
    parameters = inspect.signature(function).parameters.values()
    return [
        p.name
        for p in parameters
        if p.name not in _NOT_DRAWN
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and (p.kind is p.KEYWORD_ONLY or p.default is not p.empty)
    ]


def _check_known(loss: str, key: str, known: list[str]) -> None:
    if key not in known:
        told = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{loss} has no hyperparameter {key!r}{near(key, known)} ({told})")


def _split(settings: str) -> list[str]:
    """Split settings at the commas that are not inside brackets."""
    parts = re.split(r",(?![^\[]*\])", settings)
    return [part for part in parts if part.strip()]


def _value(text: str) -> Any:
    try:
        value = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError):
        return text.strip()  # a word, which the loss checks
    return (
        torch.tensor(value, dtype=torch.float64, device="cpu") if isinstance(value, list) else value
    )


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"[{', '.join(map(_shown, value.tolist()))}]" if value.ndim else f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
