"""Processes that work for a command."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch

from .arguments import whole
from .console import UserError, as_options


def add_workers_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare the option ``--workers``.

    Args:
        parser: of a command.
        what: what a process does, ``"play a policy at a time"``.
    """
    parser.add_argument(
        "--workers", type=whole, metavar="N",
        help=f"N processes {what}; default: all at once, in this process",
    )  # fmt: skip


@contextmanager
def workers(count: int | None) -> Iterator[Any]:
    """The ``map`` of so many processes; None for None.

    Raises:
        UserError: if one of the processes ends or fails.
    """
    if count is None:
        yield None
        return
    # Not forked: PyTorch's threads do not survive a fork.
    with ProcessPoolExecutor(count, get_context("spawn"), _begin) as pool:
        try:
            yield pool.map
        except RuntimeError as error:
            told = as_options(str(error).replace("`folder`", "the folder of --out"), ("resume",))
            told = told.replace("if `run` is called again", "with --resume")
            raise UserError(f"--workers {count}: {told}") from None


def _begin() -> None:
    """Prepare a process: one thread, and Ctrl-C is for the process that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
