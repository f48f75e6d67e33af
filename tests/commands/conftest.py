"""Settings of the tests of the commands."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def benchmarks_of_this_checkout(monkeypatch):
    """Let an installed package find the benchmarks beside these tests, in any folder."""
    monkeypatch.setattr("xent.commands.bench.CHECKOUT", Path(__file__).parents[2])
