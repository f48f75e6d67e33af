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
    assert len(blocks) == 7
    values(ranks.run(on_ranks.executed, RANKS, "\n".join(blocks)))


def test_the_sizes_on_the_page():
    rows, classes, count = 8192, 128_256, 8
    text = PAGE.read_text()
    assert f"{16 * rows * (count - 1) / 1e6:.1f} MB by `shard`" in text
    assert f"{2 * rows * classes * (count - 1) / count / 1e9:.1f} GB by a gather" in text
