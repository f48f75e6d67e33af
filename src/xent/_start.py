"""Ctrl-C while the command ``xent`` is still loading: one line instead of a traceback.

The package is imported before the command's own code can catch anything, and that takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import PurePath


def stop(number: int, frame: object) -> None:
    """End the process; nothing has begun that would have to be put in order."""
    os.write(2, b"xent: interrupted\n")
    os._exit(130)


def is_command() -> bool:
    """Whether this process is the command: the script ``xent``, or ``python -m xent``.

    While Python looks for the module that ``-m`` names, the script is called ``-m``.
    """
    return bool(sys.argv) and (sys.argv[0] == "-m" or PurePath(sys.argv[0]).stem == "xent")


def guard() -> None:
    """Handle Ctrl-C by :func:`stop` if this process is the command, and nobody else handles it."""
    if (
        is_command()
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, stop)


def release() -> None:
    """Give Ctrl-C back to Python, which raises ``KeyboardInterrupt``."""
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


guard()
