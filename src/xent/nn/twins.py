"""Modules made from functions: settings in the constructor, data in ``forward``.

Signature, checks and the list of arguments of a module are read off its function, so that nothing
about a loss is written twice.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._check import is_tensor, number_or_nan, one_of, whole_number
from ..arrays import Door
from ..engines.choice import ENGINES
from ..hyperparameters import Hyperparameters
from ..losses import cross_entropy, linear_cross_entropy
from ..losses.lookup import members

Rule = Callable[[str, Any], Any]

# Arguments that belong to one batch, and so to `forward`.
PER_CALL = (
    "normalizer", "row_weight", "return_stats", "iou", "best_iou", "center", "mask",
)  # fmt: skip

# PyTorch's modules of the functions that ours replace. Our modules are subclasses of them, and take
# the same settings by position.
_BASES = {
    "binary_cross_entropy": torch.nn.BCELoss,
    "binary_cross_entropy_with_logits": torch.nn.BCEWithLogitsLoss,
    "cross_entropy": torch.nn.CrossEntropyLoss,
    "kl_div": torch.nn.KLDivLoss,
    "nll_loss": torch.nn.NLLLoss,
}
_LEGACY = ("size_average", "reduce")  # PyTorch's constructors turn these into a reduction

_SAVED = ("weight", "pos_weight")  # buffers that PyTorch saves

# Words of a name that are not written with a single capital letter at the front.
_SPELLING = {
    word.lower(): word
    for word in (
        "AGCE", "ArcFace", "AUL", "BCE", "CMA", "CoSENT", "CosFace", "GCE", "JS", "KL", "LDAM",
        "MAE", "NCA", "NCE", "NGL", "OHEM", "PC", "PHuber", "RCE", "SCE", "SigLIP", "SupCon",
        "TaylorGLO", "VS", "ZLPR",
    )
}  # fmt: skip


class Loss(torch.nn.Module):
    """Base class of the modules of :mod:`xent.nn` that are made from functions.

    The settings are attributes. Tensors among them are buffers; of these only ``weight`` and
    ``pos_weight`` are saved with the module, as in PyTorch: a setting is given, not loaded.
    """

    function: ClassVar[Callable[..., Any]]
    settings: ClassVar[dict[str, Any]]  # default by name; Parameter.empty where there is none
    by_place: ClassVar[tuple[str, ...]]  # settings that PyTorch's module takes, too

    def __init__(self, *placed: Any, **given: Any) -> None:
        given = self._join(placed, given)
        super().__init__(**{name: given[name] for name in self.by_place if name in given})
        for name, default in self.settings.items():
            value = given.get(name, default)
            if value is inspect.Parameter.empty:
                raise TypeError(f"{type(self).__name__}() needs the keyword argument `{name}`")
            if name not in self.by_place:
                self._set(name, value)

    def _join(self, placed: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
        """The given settings by name, checked."""
        module = type(self).__name__
        if len(placed) > len(self.by_place):
            named = next(name for name in self.settings if name not in self.by_place)
            raise TypeError(f"{module}() takes its settings by name, {named}=...")
        by_place = dict(zip(self.by_place, placed, strict=False))
        for name in (*by_place, *given):
            if name not in self.settings and name not in self.by_place:
                raise TypeError(self._unexpected(name))
            if name in by_place and name in given:
                raise TypeError(f"{module}() got multiple values for argument {name!r}")
        given = {**by_place, **given}
        _, settings = Door(self.function).read((), given)
        if settings.get("weight") is not given.get("weight"):  # as parameters of the model
            settings["weight"] = settings["weight"].to(torch.get_default_dtype())
        for name, value in settings.items():
            for rule in _rules(self.function).get(name, ()):
                settings[name] = value = rule(name, value)
            if value is not None and _is_tensor(name, self.function):
                is_tensor(name, value)
        return settings

    def _unexpected(self, name: str) -> str:
        module = type(self).__name__
        if name in PER_CALL:
            return f"`{name}` belongs to one batch; pass it when you call the {module}"
        known = ", ".join(self.settings)
        return f"{module}() got an unexpected keyword argument {name!r}; it takes {known}"

    def _set(self, name: str, value: Any) -> None:
        if isinstance(value, torch.nn.Parameter):  # to be learned along with the model
            self.register_parameter(name, value)
        elif isinstance(value, Tensor) or _is_tensor(name, self.function):
            self.register_buffer(name, value, persistent=name in _SAVED)
        else:
            setattr(self, name, value)

    def forward(self, *data: Any, **options: Any) -> Any:
        """The loss of a batch. A setting among the options holds for this call only."""
        settings = {name: getattr(self, name) for name in self.settings}
        return self.function(*data, **{**settings, **options})

    def extra_repr(self) -> str:
        """The settings that are not the default ones."""
        shown = []
        for name, default in self.settings.items():
            value = getattr(self, name)
            if isinstance(value, Tensor):
                shown.append(f"{name}=<tensor {tuple(value.shape)}>")
            elif default is inspect.Parameter.empty or value != default:
                shown.append(f"{name}={getattr(value, '__name__', repr(value))}")
        return ", ".join(shown)


@cache
def modules() -> dict[str, Callable[..., Any]]:
    """The function of each module, by the name of the module; second names of a loss, too."""
    made = {class_name(name): member.function for name, member in members().items()}
    return {**made, "LinearCrossEntropyLoss": linear_cross_entropy}


def class_name(name: str) -> str:
    """The name of the module for the function of a name: ``focal_loss`` gives ``FocalLoss``."""
    if name in _BASES:
        return _BASES[name].__name__
    words = name.removesuffix("_loss").split("_")
    return "".join(_SPELLING.get(word, word.capitalize()) for word in words) + "Loss"


def make_module(function: Callable[..., Any]) -> type[Loss]:
    """The module class of a function."""
    name = function.__name__
    call, settings = [], []
    for p in inspect.signature(function).parameters.values():
        (call if _belongs_to_the_call(p, function) else settings).append(p)
    by_place = [p for p in settings if name in _BASES and p.kind is p.POSITIONAL_OR_KEYWORD]
    named = [p.replace(kind=p.KEYWORD_ONLY) for p in settings if p not in by_place]
    shared = inspect.signature(cross_entropy).parameters
    named.sort(key=lambda p: p.name in shared)  # settings of this loss alone come first

    def __init__(self: Loss, *placed: Any, **given: Any) -> None:
        Loss.__init__(self, *placed, **given)

    def forward(self: Loss, *data: Any, **options: Any) -> Any:
        return Loss.forward(self, *data, **options)

    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    anything = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
    call = [p for p in call if p.kind is not p.VAR_KEYWORD]
    __init__.__signature__ = inspect.Signature([myself, *by_place, *named])
    forward.__signature__ = inspect.Signature([myself, *call, anything])
    forward.__doc__ = Loss.forward.__doc__
    content = {
        "__init__": __init__,
        "__doc__": _docstring(function, [*by_place, *named], call),
        "__module__": "xent.nn",
        "forward": forward,
        "function": staticmethod(function),
        "settings": {p.name: p.default for p in (*by_place, *named) if p.name not in _LEGACY},
        "by_place": tuple(p.name for p in by_place),
    }
    bases = [_BASES[name]] if name in _BASES else []
    return type(class_name(name), (Loss, *bases), content)


def _belongs_to_the_call(p: inspect.Parameter, function: Callable[..., Any]) -> bool:
    """True if an argument is data: a tensor that has a position, or a name in ``PER_CALL``."""
    if p.name in PER_CALL or p.kind is p.VAR_KEYWORD:
        return True
    hint = _hints(function).get(p.name)
    tensor = hint in (Tensor, "Tensor") or Tensor in typing.get_args(hint)
    return p.kind is not p.KEYWORD_ONLY and p.name not in _SAVED and tensor


def _is_tensor(name: str, function: Callable[..., Any]) -> bool:
    """True if an argument must be a tensor, or a tensor or None."""
    return _hints(function).get(name) in (Tensor, Tensor | None, "Tensor | None")


def _docstring(
    function: Callable[..., Any],
    settings: list[inspect.Parameter],
    call: list[inspect.Parameter],
) -> str:
    told = []
    for p in settings:
        saved = ", saved with the module" * (p.name in _SAVED)
        kind = f"; a buffer{saved}" if _is_tensor(p.name, function) else ""
        told.append(f"    {p.name}: as for the function{kind}.")
    name = function.__name__
    lines = [
        f"Module of :func:`xent.losses.{name}`, which holds the formula and explains arguments.",
        "",
        "Args:",
        *told,
        "",
        "Call:",
        f"    With {', '.join(f'``{p.name}``' for p in call)}, as the function. Settings that are",
        "    given here, too, hold for this call.",
    ]
    return "\n".join(lines) + "\n"


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of the arguments by name. Arguments that a frame adds keep the text of their types."""
    texts = {p.name: p.annotation for p in inspect.signature(function).parameters.values()}
    return {**texts, **typing.get_type_hints(cross_entropy), **typing.get_type_hints(function)}


@cache
def _rules(function: Callable[..., Any]) -> dict[str, list[Rule]]:
    """Return the checks of each setting that need no logits; a check returns the value for use."""
    rules: dict[str, list[Rule]] = {"engine": [lambda name, value: one_of(name, value, ENGINES)]}
    for name, hint in _hints(function).items():
        if typing.get_origin(hint) is typing.Literal:
            choices = typing.get_args(hint)
            rules[name] = [lambda name, value, choices=choices: one_of(name, value, choices)]
        elif hint in (int, "int"):
            rules[name] = [whole_number]
        elif hint in (int | None, "int | None"):
            rules[name] = [_whole_or_none]
        elif hint in (float, "float", float | None, "float | None"):
            rules[name] = [_number]
    for name, rule in Hyperparameters(inspect.unwrap(function)).checks:
        rules.setdefault(name, []).append(lambda n, value, rule=rule: rule.check(n, value, None))
    return rules


def _whole_or_none(name: str, value: Any) -> Any:
    return None if value is None else whole_number(name, value)


def _number(name: str, value: Any) -> Any:
    return None if value is None else number_or_nan(name, value)
