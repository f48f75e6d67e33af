"""The blocks of docs/parallel.md, on four ranks."""

import re
from pathlib import Path

import pytest

from . import on_ranks
from .pool import RANKS, values

PAGE = Path(__file__).parents[2] / "docs" / "parallel.md"


@pytest.mark.slow
def test_the_recipes_run(ranks):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 13
    values(ranks.run(on_ranks.executed, RANKS, "\n".join(blocks)))
