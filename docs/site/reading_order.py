"""An order of reading in which the pages that run code are far apart.

Sphinx gives each process about twenty pages that follow one another. The lessons, which take nine
tenths of the time, follow one another by name; so one process had most of them, alone at the end.
"""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

STEP = 10  # as many as Sphinx makes groups of the 212 pages


def spread(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Put pages that follow one another in the list far apart, in place."""
    pages[:] = [page for start in range(STEP) for page in pages[start::STEP]]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the order with Sphinx."""
    app.connect("env-before-read-docs", spread)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
