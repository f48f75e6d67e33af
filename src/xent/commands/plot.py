"""``xent plot``: losses, the terms of binary cross-entropy, the Jacobian of softmax."""

from __future__ import annotations

import argparse
from functools import partial
from itertools import chain, count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._package import not_installed
from ..losses.lookup import members
from ..plot.canvas import rendered
from ..plot.loss_names import hyperparameters
from .arguments import finite
from .console import UserError, say
from .loss_words import function_of, is_own, parted, read_own
from .run_folder import write_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USAGE = "xent plot LOSS [LOSS ...] [--HYPERPARAMETER VALUE [VALUE ...]] [options]"
EPILOG = """\
A LOSS is a name, with hyperparameters if you like: focal_loss:gamma=2,weight=[1,5]; or a function
of yours, module:function, module:function:gamma=2. Hyperparameters are options, too, and each
combination of their values is a curve: xent plot focal_loss --gamma 0 2. For names and facts see
xent losses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent plot``."""
    parser.usage, parser.epilog = USAGE, EPILOG
    parser.add_argument("losses", nargs="*", metavar="LOSS", help="draw these and their gradients")
    parser.add_argument(
        "--terms", type=finite, metavar="T",
        help="draw the log terms of binary cross-entropy with target T",
    )  # fmt: skip
    parser.add_argument(
        "--jacobian", metavar="Z,Z,...", help="draw the Jacobian of softmax at these logits"
    )
    parser.add_argument(
        "--over", choices=("prob", "log-odds"), default="prob",
        help="the horizontal axis (default prob)",
    )  # fmt: skip
    parser.add_argument("--classes", type=int, metavar="C", help="number of classes (default 10)")
    parser.add_argument(
        "--target", type=finite, default=1.0, metavar="T", help="of sigmoid losses (default 1)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="PNG, SVG or PDF, which replaces such a file (default plot.png, or plot-2.png and so "
        "on, as a file that is there stays)",
    )  # fmt: skip
    taken = {action.dest for action in parser._actions}
    for name in sorted({n for m in members().values() for n in hyperparameters(m.function)}):
        if name not in taken:
            flags = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
            parser.add_argument(*flags, dest=f"={name}", nargs="+", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Draw, and print the path of the picture."""
    require_matplotlib()
    try:
        figure = _draw(args)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None
    path = args.out or _free(Path("plot.png"))
    save_figure(figure, path, "--out")
    say(str(path))
    return 0


def _free(path: Path) -> Path:
    """The path, or the first of plot-2.png, plot-3.png, ... that is not there yet."""
    numbered = (path.with_stem(f"{path.stem}-{k}") for k in count(2))
    return next(p for p in chain([path], numbered) if not p.exists())


def require_matplotlib() -> None:
    """Raise :class:`UserError` if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(not_installed("matplotlib", "plot")) from None


def save_figure(figure: Any, path: Path, option: str) -> None:
    """Write a picture to the path that an option gave."""
    try:
        data = rendered(figure, path.suffix[1:] or "png", dpi="figure")
    except ValueError as error:  # no such format
        raise UserError(f"{option} {path}: {error}") from None
    write_output(path, data, option)


def _draw(args: argparse.Namespace) -> Figure:
    from .. import plot

    given = {name[1:]: v for name, v in vars(args).items() if name[0] == "=" and v is not None}
    chosen = [bool(args.losses), args.terms is not None, args.jacobian is not None]
    if sum(chosen) != 1:
        raise UserError("name one or more losses, or --terms, or --jacobian: one of the three")
    if args.losses:
        words = [_drawable(word) for word in _vary(args.losses, given)]
        over, classes, target = args.over, args.classes, args.target
        ax: Any = plot.loss_curves(*words, over=over, classes=classes, target=target)[0]
    elif args.jacobian is not None:
        ax = plot.jacobian(_logits(args.jacobian))
    else:
        ax = plot.binary_terms(args.terms)
    return ax.figure


def _vary(losses: list[str], given: dict[str, list[str]]) -> list[str]:
    """The losses with each combination of the values that options give to their hyperparameters."""
    words, used = [], set()
    for word in losses:
        name, settings = parted(word)
        own = hyperparameters(function_of(name))
        varied = {key: values for key, values in given.items() if key in own}
        used |= varied.keys()
        for values in product(*varied.values()):
            more = [f"{key}={value}" for key, value in zip(varied, values, strict=True)]
            words.append(f"{name}:{','.join([settings, *more] if settings else more)}")
    for key in given:
        if key not in used:
            raise UserError(f"none of the losses has the hyperparameter {key!r}")
    return words


def _drawable(word: str) -> Any:
    """A word that :func:`xent.plot.loss_curves` reads, or a function of the user."""
    if not is_own(word):
        return word
    function, given = read_own(word)
    return partial(function, **given)


def _logits(text: str) -> torch.Tensor:
    try:
        return torch.tensor([float(z) for z in text.split(",")], dtype=torch.float64)
    except ValueError:
        raise UserError(f"--jacobian: expected numbers between commas, got {text!r}") from None
