"""Every loss of the family beside what people use today: ``python -m benchmarks.family``.

The columns of others are the textbook formula of the loss in PyTorch, the same formula compiled,
and the libraries that are installed (``family_others.py``). The losses of one class per row come
first, with ``cross_entropy`` as the first line; then those of a number per logit; then those that
need all logits of a row at once, on fewer rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xent.losses import CATALOG, distillation_loss, entmax_loss, sparsemax_loss

from . import family_others as others
from .harness.calls import Loss, Step, step
from .harness.command import Cell, run

SHAPES = (512, 32000), (65536, 100)
DENSE_SHAPES = (512, 32000), (4096, 1024)
SECONDS = 4.0
FLAT = 1e-3  # standard deviation of logits that are nearly equal: the worst case of sparsemax


def members(
    targets: str, classes: int, device: str = "cpu", *, dense: bool = False
) -> dict[str, Loss]:
    """Return the losses of such targets at their defaults.

    Losses with a matrix of classes by classes are left out, since the matrix may be larger than the
    logits.

    Args:
        targets: as in the catalog, ``"classes"`` or ``"binary"``.
        classes: of the logits.
        device: of vectors over the classes.
        dense: whether to return the losses that need all logits of a row at once, which take no
            ``engine``, or the others.
    """
    required = {
        "prior": torch.linspace(1, 2, classes, device=device),
        "counts": torch.linspace(1, 2, classes, device=device),
        "rate": 0.2,
        "theta": (0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5),
    }
    found: dict[str, Loss] = {}
    for name, member in CATALOG.items():
        parameters = inspect.signature(member.function).parameters
        missing = {
            p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty
        }
        suits = member.targets == targets and ("engine" not in parameters) == dense
        if suits and missing <= required.keys():
            found[name] = partial(member.function, **{key: required[key] for key in missing})
    return found


def of_targets(targets: str, z: Tensor, y: Tensor) -> dict[tuple[str, str], Step]:
    """Return steps of losses of one class per row, or of a number per logit."""
    found = {
        (name, "xent"): step(loss, *inputs(name, z, y))
        for name, loss in members(targets, z.shape[1]).items()
    }
    textbook = others.TEXTBOOK if targets == "classes" else others.TEXTBOOK_BINARY
    for name, loss in textbook.items():
        found |= _both_ways(name, loss, *inputs(name, z, y))
    for library, steps in (("kornia", others.kornia_steps), ("optax", others.optax_steps)):
        found |= _of_library(library, lambda steps=steps: steps(z, y))
    return found


def inputs(name: str, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs of a loss; margins take cosines, as of random vectors of 256 numbers."""
    return (z / 16 if name in ("cosface_loss", "arcface_loss", "ldam_loss") else z), y


def of_whole_rows(z: Tensor, y: Tensor, teacher: Tensor) -> dict[tuple[str, str], Step]:
    """Return steps of the losses that need all logits of a row at once."""
    flat = (FLAT * z.float()).to(z.dtype)
    found = {
        ("sparsemax_loss, flat rows", "xent"): step(sparsemax_loss, flat, y),
        ("entmax_loss, flat rows", "xent"): step(entmax_loss, flat, y),
    }
    for name, loss in members("classes", z.shape[1], dense=True).items():
        found[name, "xent"] = step(loss, z, y)
    for divergence, textbook in others.DIVERGENCES.items():
        name = f"distillation_loss, {divergence}"
        options: dict[str, Any] = {"temperature": 2.0, "divergence": divergence}
        ours = partial(distillation_loss, **options)
        found[name, "xent"] = step(ours, z, teacher)
        found |= _both_ways(name, textbook, z, teacher)
    return found | _of_library("entmax", lambda: others.entmax_steps(z, flat, y))


def _both_ways(name: str, textbook: Loss, z: Tensor, y: Tensor) -> dict[tuple[str, str], Step]:
    """Return the steps of a textbook formula: compiled in float32 only, since that takes long."""
    found = {(name, "torch"): step(textbook, z, y)}
    if z.dtype == torch.float32:
        found[name, "compiled"] = step(torch.compile(textbook), z, y)
    return found


def _of_library(library: str, steps: Callable[[], dict[str, Any]]) -> dict[tuple[str, str], Step]:
    """Return the steps of a library; none, with a note, if the library is not installed."""
    try:
        return {(name, library): call for name, call in steps().items()}
    except ImportError:
        print(f"{library} is not installed")
        return {}


def cells(dtypes: list[str], spread: float) -> Iterator[Cell]:
    """Yield a cell for each shape, dtype and kind of targets."""
    for rows, classes in SHAPES:
        for dtype in dtypes:
            z, y = draw(rows, classes, dtype, spread)
            name = f"{rows} x {classes} {dtype}"
            yield Cell(f"{name}, classes", of_targets("classes", z, y), z)
            binary = torch.rand_like(z).round()
            yield Cell(f"{name}, binary", of_targets("binary", z, binary), z)
    for rows, classes in DENSE_SHAPES:
        for dtype in dtypes:
            z, y = draw(rows, classes, dtype, spread)
            yield Cell(
                f"{rows} x {classes} {dtype}, whole rows",
                of_whole_rows(z, y, spread * torch.randn_like(z)),
                z,
            )


def draw(rows: int, classes: int, dtype: str, spread: float) -> tuple[Tensor, Tensor]:
    """Draw normal logits and uniform targets."""
    torch.manual_seed(0)
    z = (spread * torch.randn(rows, classes)).to(getattr(torch, dtype))
    return z, torch.randint(classes, (rows,))


if __name__ == "__main__":
    raise SystemExit(run(__doc__, "family", cells, SECONDS))
