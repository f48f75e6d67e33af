"""The command ``xent``: one subcommand per module of ``xent.commands``, imported when chosen."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from . import __version__, _start
from .commands.arguments import Parser
from .commands.console import ERROR, WARNING, UserError, abandon, note, say

COMMANDS = {
    "info": "what is installed and which engine runs",
    "train": "train a small language model behind a lean head, or with PyTorch's loss",
    "eval": "perplexity, accuracy and calibration of a language model over text",
    "losses": "list the losses and what is known about them, or explain one",
    "plot": "draw losses and gradients against the probability of the target",
    "play": "write a page to play with losses in a browser, a loss of your own among them",
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
        The exit code: 0, 2 for input that cannot be used and output that cannot be written, 130
        after Ctrl-C or a SIGTERM, 1 if the reader of the output went away.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    who = " ".join(["xent", *(word for word in words[:1] if word in COMMANDS)])
    with _one_line_each(who), _stopped_by_sigterm():
        try:
            parser = _parser(words[:1])
            args = parser.parse_args(words)
            if args.print_completion:
                from .commands.completion import script

                known = COMMANDS.keys() - {"bench"}  # its options are in a checkout only
                say(script(_parser(known), args.print_completion))
                return 0
            if args.command is None:
                parser.print_help()
                return 0
            return args.run(args)
        except UserError as error:
            note(f"{who}: {error}", ERROR)
            return 2
        except BrokenPipeError:
            abandon(sys.stdout)
            abandon(sys.stderr)
            return 1
        except OSError as error:
            named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            note(f"{who}: {named}", ERROR)
            return 2
        except MemoryError:
            note(f"{who}: not enough memory", ERROR)
            return 2
        except KeyboardInterrupt:
            note(f"{who}: interrupted")
            return 130


def _parser(chosen: Iterable[str]) -> Parser:
    """The parser; only the chosen subcommands are imported, so that help is quick."""
    parser = Parser(
        prog="xent", description="Cross-entropy and its family: exact, fused and memory-lean.",
        epilog="xent COMMAND --help explains a command.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"xent {__version__}")
    parser.add_argument(
        "--print-completion", choices=("bash", "zsh", "fish", "tcsh"), metavar="SHELL",
        help="print a script that completes words: bash, zsh, fish or tcsh",
    )  # fmt: skip
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        text = f"{purpose[0].upper()}{purpose[1:]}."
        subparser = subparsers.add_parser(name, help=purpose, description=text)
        if name in chosen:
            module = importlib.import_module(f".commands.{name}", __package__)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


@contextmanager
def _one_line_each(who: str) -> Iterator[None]:
    """Print each warning as one line, without the place in the source."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: note(f"{who}: warning: {message}", WARNING)
        yield


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let a SIGTERM do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # other threads get no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, _start.interrupt) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
