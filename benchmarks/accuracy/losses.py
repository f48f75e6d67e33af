"""The losses of the atlas: how each is called, and the formula that it is compared with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.registry import REGISTRY, ElementLoss, Loss
from tests.registry import formulas as F
from xent.losses import CATALOG

from . import formulas
from .rows import FEW, Rows
from .tempered import tempered

SIZES = (10, 1000, 128256)
ENGINES = ("native", "reference", "triton")
TABLES = ("matrix", "table")  # arguments of classes by classes
STAY, MOVE = formulas.STAY, formulas.MOVE


def nothing(rows: Rows) -> dict[str, Any]:
    """Return no arguments, for a loss of logits and classes alone."""
    return {}


def same(z: Tensor) -> Tensor:
    """Return what it is given."""
    return z


@dataclass(frozen=True)
class Subject:
    """A loss and the formula that it is compared with.

    Attributes:
        name: how the atlas calls it.
        call: from logits, targets and keyword arguments to one value per row, or per element.
        formula: from exact logits, targets and exact arguments to the same; of a loss of elements
            from one logit and one target.
        arguments: what the loss takes beside logits and targets. The numbers of a tensor belong to
            groups of classes.
        prepare: makes what the loss takes of logits.
        classes: the numbers of classes that it is measured with; none for a loss of elements.
        unit: how much of a logit a nat of margin is.
        height: whether the logits' own height counts, beside their distances.
        offsets: numbers to add to all logits of a row.
        engines: which can be asked for; "xent" if there is no such choice.
    """

    name: str
    call: Callable[..., Tensor]
    formula: Callable[..., Any]
    arguments: Callable[[Rows], dict[str, Any]] = nothing
    prepare: Callable[[Tensor], Tensor] = same
    classes: tuple[int, ...] = SIZES
    unit: float = 1.0
    height: bool = False
    offsets: tuple[float, ...] = (0.0, 1e4)
    engines: tuple[str, ...] = ENGINES

    @property
    def of_elements(self) -> bool:
        """Return whether it is a loss of single elements."""
        return not self.classes


# ---- losses with a formula in the registry ------------------------------------------------------

_OTHERWISE = {
    "baikal_loss": formulas.baikal,
    "baikal_cma_loss": formulas.baikal_cma,
    "taylorglo_loss": formulas.taylorglo,
    "bi_tempered_loss": F.bi_tempered(0.8, 1.2, tempered),
    "sparsemax_loss": F.entmax(2, tempered),
    "entmax_loss": F.entmax(1.5, tempered),
}  # what is cut off at 20 nats, what needs a normaliser of many digits, constants times the classes

# Three quarters of the published polynomial: 4 / 3, rounded, is not flat at probability 1.
_NUMBERS: dict[str, Any] = {"taylorglo_loss": {"theta": (0.5, 0.5, 0.75, -0.75, 1, 1.5, -1.5, 0)}}


def _engines_of(function: Callable[..., Any]) -> tuple[str, ...]:
    return ENGINES if "engine" in inspect.signature(function).parameters else ("xent",)


def _of_rows(name: str, loss: Loss) -> Subject:
    def arguments(rows: Rows) -> dict[str, Any]:
        plain = replace(loss, per_class=())
        settings = plain.settings(rows.distinct.shape[1], rows.distinct.dtype)
        return {**settings, **_NUMBERS.get(name, {})}

    cosines = REGISTRY[name].cosines
    return Subject(
        name if loss is REGISTRY[name].settings[0] else f"{name}, {loss.name}",
        partial(loss.call, reduction="none"),
        _OTHERWISE.get(name, loss.formula),
        arguments,
        _cosines if cosines else same,
        unit=0.01 if cosines else 1.0,
        height=loss.offset or not loss.shift_invariant,
        offsets=(0.0,) if cosines else (0.0, 1e4),
        engines=_engines_of(loss.call),
    )


def _of_elements(loss: ElementLoss) -> Subject:
    call = partial(loss.call, reduction="none", **loss.options)
    return Subject(
        loss.name, call, loss.formula, classes=(), offsets=(0.0,), engines=_engines_of(loss.call)
    )


def _registered() -> list[Subject]:
    """Return the first setting of each loss, and label smoothing."""
    found = []
    for name, entry in REGISTRY.items():
        for loss in entry.settings:
            if loss is entry.settings[0] or loss.name == "label_smoothing":
                found.append(
                    _of_elements(loss) if isinstance(loss, ElementLoss) else _of_rows(name, loss)
                )
    return found


# ---- the others ---------------------------------------------------------------------------------


def _row_by_row(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function of rows from one that reduces a batch."""

    def call(z: Tensor, y: Tensor, **options: Any) -> Tensor:
        pairs = zip(z.split(1), y.split(1), strict=True)
        return torch.stack([function(a, b, **options).reshape(()) for a, b in pairs])

    return call


def _catalogued(name: str) -> Callable[..., Tensor]:
    return partial(CATALOG[name].function, reduction="none")


def _of_second(name: str, *parts: Any) -> Callable[..., Tensor]:
    """Return a call of a loss of two classes with their shares."""
    loss = _catalogued(name)

    def call(z: Tensor, y: Tensor, second: Tensor, **options: Any) -> Tensor:
        if name == "mixup_cross_entropy":
            return loss(z, y, second, STAY, **options)
        shares = torch.tensor([STAY, MOVE], dtype=z.dtype).expand(len(z), 2)
        return loss(z, torch.stack([y, second], 1), shares, **options)

    return call


def _with_teacher(z: Tensor, y: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return CATALOG["distillation_loss"].function(z, teacher, reduction="none", **options)


def _kl_div(x: Tensor, y: Tensor, shares: Tensor, **options: Any) -> Tensor:
    pairs = zip(x.split(1), shares.split(1), strict=True)
    return torch.stack([CATALOG["kl_div"].function(*pair, reduction="sum") for pair in pairs])


def _of_labels(name: str) -> Callable[..., Tensor]:
    """Return a call with labels of which the target's alone is 1."""
    loss = _catalogued(name)

    def call(z: Tensor, y: Tensor, **options: Any) -> Tensor:
        return loss(z, torch.nn.functional.one_hot(y, z.shape[1]).to(z.dtype), **options)

    return call


def _tree(z: Tensor, y: Tensor) -> Tensor:
    parents = [-1, -1, *[0] * (z.shape[1] - 2)]
    return CATALOG["wordtree_cross_entropy"].function(z, y, parents, reduction="none")


def _far_teacher(rows: Rows) -> dict[str, Any]:
    return {"teacher": rows.distinct.roll(1, 0).sub(rows.distinct[:, :1])}


def _near_teacher(rows: Rows) -> dict[str, Any]:
    noise = torch.linspace(-1e-3, 1e-3, rows.distinct.shape[1], dtype=torch.float64)
    return {"teacher": (rows.distinct.double() + noise).to(rows.distinct.dtype)}


def _shares(rows: Rows) -> dict[str, Any]:
    z = rows.distinct.double()
    p = torch.softmax(torch.linspace(-3, 3, z.shape[1], dtype=torch.float64), 0)
    return {"shares": p.expand_as(z).to(rows.distinct.dtype)}


def _second(rows: Rows) -> dict[str, Any]:
    return {"second": rows.second}


def _neighbours(name: str) -> Callable[[Rows], dict[str, Any]]:
    """Return a matrix in which most stay and some move on: exact numbers in every type."""

    def arguments(rows: Rows) -> dict[str, Any]:
        eye = torch.eye(rows.distinct.shape[1], dtype=rows.distinct.dtype)
        return {name: STAY * eye + MOVE * eye.roll(1, 1)}

    return arguments


def _probabilities(z: Tensor) -> Tensor:
    """Return probabilities that are neither 0 nor 1, whose logarithms PyTorch does not cut off."""
    info = torch.finfo(z.dtype)
    return torch.sigmoid(z.double()).clamp(max(info.tiny, 1e-40), 1 - info.eps).to(z.dtype)


def _cosines(z: Tensor) -> Tensor:
    """Return cosines of angles that are not 0 or straight, where they have no derivative."""
    return z.clamp(-0.96875, 0.96875)


def _log_probabilities(z: Tensor) -> Tensor:
    return torch.log_softmax(z.double(), 1).to(z.dtype)


def _apart(
    name: str, call: Callable[..., Tensor], formula: Callable[..., Any], *more: Any, **facts: Any
) -> Subject:
    """Return the subject of a loss that the registry has no formula for."""
    engines = _engines_of(CATALOG[name.partition(",")[0]].function)
    return Subject(name, call, formula, *more, **{"engines": engines, **facts})


SQUARE: dict[str, Any] = {"classes": tuple(c for c in SIZES if c <= FEW)}  # those with tables


def _of_targets() -> list[Subject]:
    """Return losses of a batch, of noisy labels, and of several classes in a target."""
    return [
        _apart(
            "recall_loss", _row_by_row(CATALOG["recall_loss"].function), formulas.recall_of_one,
            engines=ENGINES[:2],
        ),
        _apart(
            "hardest_loss", _row_by_row(CATALOG["hardest_loss"].function),
            lambda z, y, s: F.nll(z, y), engines=ENGINES[:2],
        ),
        _apart(
            "forward_corrected_cross_entropy", _catalogued("forward_corrected_cross_entropy"),
            formulas.noise_forward, _neighbours("matrix"), **SQUARE,
        ),
        _apart(
            "backward_corrected_cross_entropy", _catalogued("backward_corrected_cross_entropy"),
            formulas.noise_backward, _neighbours("matrix"), height=True, **SQUARE,
        ),
        _apart(
            "structured_cross_entropy", _catalogued("structured_cross_entropy"),
            formulas.structured, _neighbours("table"), height=True, **SQUARE,
        ),
        *(
            _apart(name, _of_second(name), formulas.mixed, _second)
            for name in ("mixup_cross_entropy", "sparse_cross_entropy")
        ),
        _apart("wordtree_cross_entropy", _tree, formulas.of_a_tree, **SQUARE),
    ]  # fmt: skip


def _of_other_inputs() -> list[Subject]:
    """Return losses with a teacher, of probabilities and of several labels."""
    labels: dict[str, Any] = {"offsets": (0.0,), "height": True}
    return [
        *(
            _apart(name, _with_teacher, formulas.divergence, teacher)
            for name, teacher in (
                ("distillation_loss", _far_teacher),
                ("distillation_loss, near its teacher", _near_teacher),
            )
        ),
        _apart(
            "nll_loss", _catalogued("nll_loss"), formulas.minus_target,
            prepare=_log_probabilities, offsets=(0.0,),
        ),
        _apart(
            "kl_div", _kl_div, formulas.divergence_of_log_probabilities, _shares,
            _log_probabilities, offsets=(0.0,),
        ),
        _apart(
            "binary_cross_entropy", _catalogued("binary_cross_entropy"),
            formulas.binary_probability, prepare=_probabilities, classes=(), offsets=(0.0,),
        ),
        _apart(
            "multilabel_cross_entropy", _of_labels("multilabel_cross_entropy"),
            formulas.of_labels, **labels,
        ),
        _apart("zlpr_loss", _of_labels("zlpr_loss"), formulas.zlpr, **labels),
        _apart("siglip_loss", _of_labels("siglip_loss"), formulas.of_pairs, unit=0.1, **labels),
    ]  # fmt: skip


_found = {
    subject.name: subject for subject in [*_registered(), *_of_targets(), *_of_other_inputs()]
}
_names = [name for loss in CATALOG for name in _found if name.partition(",")[0] == loss]
SUBJECTS: dict[str, Subject] = {name: _found[name] for name in _names}
_REASONS = {"set_cross_entropy": "its target is a set of classes"}
LEFT_OUT = {
    name: REGISTRY[name].apart or _REASONS.get(name, "a sum of others")
    for name in CATALOG
    if name not in _found
}
