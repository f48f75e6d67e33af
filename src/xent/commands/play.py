"""``xent play``: a page to play with losses, in one file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..playground import page
from .console import UserError, say
from .loss_words import read_word
from .run_folder import write_output

EPILOG = """\
A LOSS is a name, with hyperparameters if you like: focal_loss:gamma=5; or a function of yours that
xent.row_loss or xent.element_loss made: module:function, module:function:gamma=2. The page begins
with the one or two losses named, and offers all others. It is one file, which needs no server and
asks no other host for anything: open it, mail it, put it anywhere."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent play``."""
    parser.epilog = EPILOG
    parser.add_argument("losses", nargs="*", metavar="LOSS", help="begin with these, two at most")
    parser.add_argument(
        "--out", type=Path, default=Path("play.html"), metavar="FILE",
        help="HTML (default play.html)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the page, and print its path."""
    try:
        html = page([read_word(word) for word in args.losses])
    except ValueError as error:
        raise UserError(str(error)) from None
    write_output(args.out, html.encode(), "--out")
    say(str(args.out))
    return 0
