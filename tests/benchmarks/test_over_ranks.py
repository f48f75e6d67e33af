"""The benchmark of classes over ranks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import over_ranks

MACHINE = {
    "cpu": "a processor", "cores": 2, "threads": 1, "isa": "avx2", "system": "Linux",
    "date": "2026-01-01", "versions": {"python": "3.11"},
}  # fmt: skip


def test_what_it_prints():
    result = {
        "machine": MACHINE, "shape": (1024, 512, 32000), "ranks": 2, "merge": 1.234,
        "ms": {"products": [100.0, 90.0, 400.0], "xent over ranks": [105.0, 106.0, 90.0]},
        "memory": 3 * 2**20,
    }  # fmt: skip
    text = over_ranks.text(result)
    assert ["xent", "over", "ranks", "105", "1.05"] in [line.split() for line in text.splitlines()]
    assert "memory of xent on a rank: 3.0 MiB; its own logits would be 62.5 MiB" in text
    assert "merge of 64 parts of 4096 rows: 1.23 ms" in text


@pytest.mark.slow
def test_it_measures_two_ranks(tmp_path):
    file = tmp_path / "found.json"
    call = ["--shape", "32,8,64", "--rounds", "3", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.over_ranks", *call], capture_output=True, text=True,
        timeout=300, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "xent over ranks" in done.stdout
    found = json.loads(file.read_text())
    assert {len(times) for times in found["ms"].values()} == {3}
    assert found["merge"] > 0
