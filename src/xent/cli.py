"""The command ``xent``: one subcommand per module of ``xent.commands``, imported when chosen."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from . import __version__
from .commands.console import UserError

COMMANDS = {
    "info": "what is installed and which engine runs",
    "train": "train a small language model behind a lean head, or with PyTorch's loss",
    "eval": "perplexity, accuracy and calibration of a language model over text",
    "losses": "list the losses and what is known about them, or explain one",
    "plot": "draw losses and gradients against the probability of the target",
    "search": "look for a loss that suits your data, by evolution",
    "reinforce": "learn to act in a gymnasium environment, by weighted cross-entropy",
    "cem": "learn to act in a gymnasium environment, by the cross-entropy method",
    "fit": "a linear classifier of a table with any loss: report, picture, a model to use again",
    "mi": "how much the columns of a table tell about a class, in nats, from below",
    "bench": "measure time, memory and accuracy against others",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the command's name; by default those of this process.

    Returns:
        The exit code: 0, 2 for input that cannot be used, 130 after Ctrl-C, 1 if the reader of the
        output went away.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser(words).parse_args(words)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"xent {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"xent {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # As the Python manual advises: the interpreter flushes stdout once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser(words: list[str]) -> argparse.ArgumentParser:
    """The parser; only the chosen subcommand is imported, so that help is quick."""
    parser = argparse.ArgumentParser(
        prog="xent", description="Cross-entropy and its family: exact, fused and memory-lean."
    )
    parser.add_argument("--version", action="version", version=f"xent {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, purpose in COMMANDS.items():
        text = f"{purpose[0].upper()}{purpose[1:]}."
        subparser = subparsers.add_parser(name, help=purpose, description=text)
        if words[:1] == [name]:
            module = importlib.import_module(f".commands.{name}", __package__)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser
