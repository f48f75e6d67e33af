"""Tools that the examples share: options with a small form, and claims that must hold."""

from __future__ import annotations

import argparse
import statistics
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xent.plot.canvas import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import ndarray
    from torch import Tensor


def options(
    file: str, doc: str | None, picture: bool = True, **sizes: tuple[int, int]
) -> argparse.Namespace:
    """Read the options of an example.

    Args:
        file: its ``__file__``, which names the picture.
        doc: its docstring, whose first line is the description.
        picture: whether there is an option ``--picture``; pictures then have the look of xent.
        sizes: options that are whole numbers: the default, and the default with ``--small``. The
            option ``seeds``, the number of seeds, adds an option ``seed``, the first seed.

    Returns:
        All options, ``small`` among them; ``seeds`` is a range.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="seconds, and claims for them")
    if "seeds" in sizes:
        sizes["seed"] = (0, 0)
    for name, (default, small) in sizes.items():
        parser.add_argument(f"--{name}", type=int, help=f"default {default}, small {small}")
    if picture:
        default = Path(f"runs/{Path(file).stem}.png")
        parser.add_argument("--picture", type=Path, default=default)
        with suppress(ImportError):
            from matplotlib import style

            style.use(STYLE)
    chosen = parser.parse_args()
    for name, values in sizes.items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, values[chosen.small])
        least = 0 if name == "seed" else 1
        if getattr(chosen, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(chosen, name)}")
    if "seeds" in sizes:
        chosen.seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    return chosen


def over_seeds(values: Tensor | ndarray, digits: int = 1) -> str:
    """Return mean ± standard deviation of one value per seed; of a single seed the value."""
    each = values.tolist()
    mean = f"{statistics.mean(each):.{digits}f}"
    return mean if len(each) == 1 else f"{mean} ± {statistics.stdev(each):.{digits}f}"


def hold(claims: dict[str, bool]) -> None:
    """Print all claims, and fail if one does not hold."""
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    missed = [claim for claim, holds in claims.items() if not holds]
    if missed:
        raise AssertionError(f"not borne out: {missed}")


def save(figure: Figure, path: Path, dpi: int = 100) -> None:
    """Write a picture, and print where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    print(f"\n{path}")
