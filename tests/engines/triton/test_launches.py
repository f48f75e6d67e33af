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
    mean, none, focal, focal_of_long_rows, *others = calls = [
        json.loads(line) for line in done.stdout.splitlines()
    ]
    assert len(others) == 16
    # One sweep, and backward asks for the slope; the first of its kind compiles each kernel.
    assert mean["launched"] == [
        "note_down", "cross_entropy", "add_up", "divide", "cross_entropy",
    ]  # fmt: skip
    assert none["launched"] == ["sweep", "finish", "find_coefficients", "differentiate"]
    # By groups of rows; and a program between two sweeps, and again for a slope.
    assert focal["launched"] == ["note_down", "row_loss", "add_up", "divide", "row_loss"]
    assert focal_of_long_rows["launched"] == [
        "note_down", "sweep", "add_up", "divide", "differentiate", "add_up", "differentiate",
    ]  # fmt: skip
    for call in (mean, none):
        assert call["compiled"] == call["launched"]
    for call in (focal, focal_of_long_rows):  # some kernels are those of the mean
        assert set(call["compiled"]) <= set(call["launched"])
    # Of more rows a group has two or four blocks.
    assert sum(call["compiled"].count("row_loss") for call in others) <= 8
    for call in others:
        assert set(call["compiled"]) <= {"row_loss"}, call
        assert call["launched"] in [x["launched"] for x in calls[:4]]
