"""The losses that the playground can show, and the reasons why it cannot show the others."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from ..frames.element_loss import Elements
from ..frames.row_frame import RowFrame
from ..hyperparameters import Hyperparameters, PerClass, Range
from ..losses import CATALOG, binary, classification
from ..losses.catalog import Member
from ..row_statistics import RowStatistics, field_mask, fields_of
from .trace import Given, Untraceable, javascript

# Losses that look at their arguments before they call a loss that a frame made.
_INSIDE = {
    "cross_entropy": classification._cross_entropy,
    "binary_cross_entropy_with_logits": binary._cross_entropy,
}
START = 0.2  # of a hyperparameter without a default, such as a rate
COUNTS = torch.ones(
    2, dtype=torch.float64, device="cpu"
)  # stands for the numbers of rows that the page has
WHOLE = 6  # a whole number goes over so many values


@cache
def of_catalog() -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The entries of all losses of the catalog that can be shown, and why the others cannot."""
    shown, left_out = {}, {}
    for name in CATALOG:
        try:
            shown[name] = of_member(CATALOG[name])
        except Untraceable as error:
            left_out[name] = str(error)
    return shown, left_out


def of_member(member: Member, **given: Any) -> dict[str, Any]:
    """The entry of a loss of the catalog; raises as :func:`entry`."""
    if member.name == "binary_cross_entropy":
        raise Untraceable("it takes probabilities, not logits")
    home = "xent" if member.name in _INSIDE else "xent.losses"
    loss = _INSIDE.get(member.name, member.function)
    return entry(loss, f"{home}.{member.name}", member.summary, **given)


def of_function(loss: Any, **given: Any) -> dict[str, Any]:
    """The entry of a loss that is not in the catalog; raises as :func:`entry`."""
    name, summary = loss.__name__, (loss.__doc__ or "").strip().partition("\n")[0]
    made = entry(loss, name, summary, **given)
    return made | {"from": f"from {loss.__module__} import {name}"}


def entry(loss: Any, call: str, summary: str, **given: Any) -> dict[str, Any]:
    """Return what the page knows of a loss, as JavaScript and numbers.

    Args:
        loss: a loss that :func:`xent.row_loss` or :func:`xent.element_loss` made.
        call: how Python calls the loss.
        summary: one sentence.
        **given: hyperparameters that the page does not change.

    Raises:
        Untraceable: if the loss is none of these, or its body is no formula.
        ValueError: if it has no such hyperparameter, or not with this value.
    """
    frame: RowFrame | None = getattr(loss, "frame", None)
    if frame is None and not hasattr(loss, "body"):
        raise Untraceable("its body sees more than the numbers of a row or of an element")
    if frame is not None and not frame.rowwise:
        raise Untraceable("it compares the rows of a batch")
    hyper = Hyperparameters(loss.body) if frame is None else frame.hyper
    start = _start(hyper, given)
    options = {n: o for n, x in start.items() if n not in given and (o := _option(hyper, n, x))}
    codes = {
        key: _code(function, options, start) for key, function in _functions(loss, frame).items()
    }
    used = set(re.findall(r"\bh\.(\w+)", " ".join(codes.values())))
    free = {name: option for name, option in options.items() if name in used}
    return {
        "call": call,
        "summary": summary.replace("``", ""),
        "elements": frame is None,
        "options": {n: o | {"default": hyper.defaults.get(n)} for n, o in free.items()},
        "fixed": {n: start[n] for n in given},
        **codes,
    }


def _functions(loss: Any, frame: RowFrame | None) -> dict[str, Callable[..., Any]]:
    """Functions of ``given`` and the hyperparameters that are to become JavaScript."""
    if frame is None:
        return {
            "index": lambda given, settings: loss.body(
                Elements(given("s.input"), given("s.target")), **settings
            )
        }
    found = {"index": lambda given, settings: _of_row(frame, False, given, settings)}
    if frame.soft:
        found["soft"] = lambda given, settings: _of_row(frame, True, given, settings)
    for name, of_settings in frame.own.items():
        if name == "target_table":
            raise Untraceable("it makes a soft target of a class by its matrix")
        if name != "mean_weight":
            found[name] = partial(_of_settings, of_settings)
    return found


def _of_settings(function: Callable[..., Any], given: Given, settings: dict[str, Any]) -> Any:
    """Return what a function of the hyperparameters alone gives."""
    return function(**settings)


class _Row(RowStatistics):
    """The statistics of one row, whose class is no index that has to be checked."""

    def of_label(self, values: Any) -> Any:
        """Return the number of the target class."""
        return values[self.label]


def _of_row(frame: RowFrame, soft: bool, given: Given, settings: dict[str, Any]) -> Any:
    """Return what the body makes of the statistics of a row."""
    fields = fields_of(field_mask(soft, frame.requests(**settings)))
    numbers: Any = [given(f"s.{name}") for name in fields]
    label: Any = None if soft else given("s.label")
    classes: Any = given("s.classes")
    stats = _Row.from_fields(
        numbers, fields, soft, constant_masses=False, label=label, classes=classes, complete=True
    )
    return frame.body(stats, **settings)


# ---- hyperparameters -----------------------------------------------------------------------------


def _start(hyper: Hyperparameters, given: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters to start with, checked."""
    rules = dict(hyper.checks)
    missing: dict[str, Any] = {name: START for name in hyper.required if name not in given}
    for name in (*missing, *hyper.per_class.intersection(given)):
        rule = rules.get(name)
        if type(rule) is PerClass and name in given:
            raise Untraceable(f"leave `{name}` out: the page has a field for each class")
        if type(rule) is PerClass:
            missing[name] = COUNTS
        elif not isinstance(rule, Range):
            raise Untraceable(f"it needs `{name}`, which is no number")
    given = {n: x.tolist() if isinstance(x, Tensor) else x for n, x in given.items()}
    try:
        return hyper.settings(missing | given)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _option(hyper: Hyperparameters, name: str, value: Any) -> dict[str, Any] | None:
    """The range or the choices of a hyperparameter on the page; None if it is fixed."""
    if value is COUNTS:
        return {"counts": True}
    hint = hyper.hints.get(name)
    rule = next((r for n, r in hyper.checks if n == name and isinstance(r, Range)), Range())
    if isinstance(value, bool):
        return {"value": value, "choices": [False, True]}
    if get_origin(hint) is Literal:
        return {"value": value, "choices": list(get_args(hint))}
    if int in (hint, *get_args(hint)):
        first = int(max(rule.low, 0))
        return {"value": int(value), "choices": sorted({*range(first, first + WHOLE), int(value)})}
    if isinstance(value, (int, float)):
        low, high = (x if abs(x) < float("inf") else None for x in (rule.low, rule.high))
        return {"value": value, "low": low, "high": high, "open": rule.open}
    return None


def _code(function: Callable[..., Any], options: dict[str, Any], start: dict[str, Any]) -> str:
    """A function of JavaScript, of statistics ``s`` and hyperparameters ``h``."""
    chosen = {name: o["choices"] for name, o in options.items() if "choices" in o}
    numbers = [name for name in options if name not in chosen]

    def lines(settled: dict[str, Any]) -> str:
        return javascript(
            lambda given: function(given, start | {n: given(f"h.{n}") for n in numbers} | settled)
        )

    combined = [dict(zip(chosen, v, strict=True)) for v in itertools.product(*chosen.values())]
    ways = [lines(settled) for settled in combined]
    if len(set(ways)) == 1:
        return f"(s, h) => {{ {ways[0]}}}"
    asked = [" && ".join(f"h.{n} === {json.dumps(v)}" for n, v in c.items()) for c in combined]
    parts = [f"if ({a}) {{ {way}}} " for a, way in zip(asked, ways, strict=True)]
    return f"(s, h) => {{ {''.join(parts)}}}"
