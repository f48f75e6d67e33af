"""``xent bench``: runs the benchmarks of a checkout; the installed package has no benchmarks."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from .._package import NAME
from .console import UserError

HARNESS = Path("benchmarks", "harness", "logits.py")
CHECKOUT = Path(__file__).resolve().parents[3]  # if this file is not an installed one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent bench``, and ``xent bench linear``."""
    _harness().add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and return 0 unless xent itself failed somewhere."""
    return _harness().run(args)


def _harness() -> ModuleType:
    """Import the harness from the checkout of this file, or from one in the current folder.

    Raises:
        UserError: if there is neither.
    """
    for root in (CHECKOUT, Path.cwd()):
        if (root / HARNESS).is_file():
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))  # worker processes inherit the path
            return importlib.import_module("benchmarks.harness.logits")
    raise UserError(
        "the benchmarks come with the repository, not with the installed package: get its sources "
        f"(or `pip download --no-deps --no-binary {NAME} {NAME}`, and unpack), and run this "
        f"command in their folder, the one that holds {HARNESS.parts[0]}/"
    )
