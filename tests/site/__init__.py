"""Tests of the site. Those of the built pages need ``make site``."""

from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
SITE = PROJECT / "build" / "site"


def needs_site(test):
    """Mark a test that reads the pages: slow, and skipped where they are not built."""
    built = pytest.mark.skipif(
        not (SITE / "objects.inv").exists(), reason="the site is not built: make site"
    )
    return pytest.mark.slow(built(test))
