"""Launches of compiled kernels, for a GPU that need not be present."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xent.engines import triton

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not triton.INSTALLED, reason="Triton is not installed"),
]

ROOT = Path(__file__).parents[3]


def test_no_number_of_rows_is_compiled_anew(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.triton.count_compilations"], cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    mean, none, *others = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(others) == 8
    # One sweep, and backward asks for the slope; the first of its kind compiles each kernel.
    assert mean["launched"] == [
        "note_down", "cross_entropy", "add_up", "divide", "cross_entropy",
    ]  # fmt: skip
    assert none["launched"] == ["sweep", "finish", "find_coefficients", "differentiate"]
    assert mean["compiled"] == mean["launched"]
    assert none["compiled"] == none["launched"]
    for call in others:
        assert call["compiled"] == [], call
        assert call["launched"] in (mean["launched"], none["launched"])
