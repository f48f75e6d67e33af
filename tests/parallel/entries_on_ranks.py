"""Every public entry that takes logits, called with a shard, for the ranks of a test."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from xent.parallel import shard

from .on_ranks import listed_collectives

ROWS, OWN, RANKS = 4, 3, 2
CLASSES = OWN * RANKS
LOGITS = ("input", "logits", "log_probs")


def logits() -> torch.Tensor:
    """Logits of all classes, with which a cosine may be meant, too."""
    return torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0)).double() / 4


# Arguments that an entry needs, by name. Those of ranks are own columns.
_LABELS = torch.cat([logits().argmin(1)[:1], logits().argmax(1)[1:]])  # not all rows are right
_Q = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1)).double().softmax(1)
GIVEN: dict[str, Any] = {
    "target": _LABELS, "target_a": _LABELS, "target_b": _LABELS.roll(1), "lam": 0.3,
    "labels": _LABELS, "prior": torch.arange(1.0, 7.0), "counts": torch.arange(1.0, 7.0),
    "matrix": torch.eye(CLASSES) * 0.94 + 0.01, "table": torch.eye(CLASSES) * 0.94 + 0.01,
    "theta": [0.1] * 8, "classes": torch.tensor([[0, 1]] * ROWS),
    "probabilities": torch.full((ROWS, 2), 0.5).double(), "teacher": _Q,
    "in_features": CLASSES, "num_classes": 7,
    "linear_weight": torch.randn(7, CLASSES).double(), "weights": torch.ones(ROWS).double() / ROWS,
}  # fmt: skip
COLUMNS = ("teacher",)


def entry(name: str) -> Callable[..., Any]:
    """The function of a public name; of a module the call, with the settings it needs."""
    path, _, last = name.rpartition(".")
    thing = getattr(importlib.import_module(path), last)
    if not inspect.isclass(thing):
        return thing
    needed = [p.name for p in parameters(thing) if p.default is p.empty and p.kind < 2]
    needed += [p.name for p in parameters(thing) if p.default is p.empty and p.kind == 3]
    return thing(**{key: GIVEN.get(key, 0.2) for key in needed})


def parameters(thing: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function or of a constructor."""
    return list(inspect.signature(thing).parameters.values())


def logits_of(thing: Callable[..., Any]) -> str | None:
    """The name of the parameter that takes logits, if there is one."""
    call = getattr(thing, "forward", None) if inspect.isclass(thing) else thing
    try:
        names = [p.name for p in parameters(call)]
    except (TypeError, ValueError):
        return None
    return next((name for name in LOGITS if name in names), None)


def called(name: str, input: Any, columns: slice) -> Any:
    """The result of an entry; with an error the kind of error and its text."""
    try:
        function = entry(name)
        given = {}
        for p in parameters(getattr(function, "forward", function)):
            if p.name in LOGITS:
                given[p.name] = input
            elif p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                value = GIVEN.get(p.name, 0.2)
                given[p.name] = value[:, columns] if p.name in COLUMNS else value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = function(**given)
    except Exception as error:
        return type(error).__name__, str(error)
    result = getattr(result, "log_prob", result)
    if isinstance(result, float):
        return torch.tensor(result, dtype=torch.float64)
    return result.detach() if isinstance(result, torch.Tensor) else repr(result)


def of_shard(group: Any, names: list[str]) -> dict[str, tuple[Any, list[Any]]]:
    """The result of each entry for a shard, and the numbers that the ranks exchanged."""
    rank = dist.get_rank(group)
    columns = slice(OWN * rank, OWN * (rank + 1))
    found = {}
    for name in names:
        z = shard(logits()[:, columns], group, start=OWN * rank, classes=CLASSES)
        with listed_collectives() as counted:
            result = called(name, z, columns)
        found[name] = result, [kind for kind, _ in counted if kind != "record"]
    return found
