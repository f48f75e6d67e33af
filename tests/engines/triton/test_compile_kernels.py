"""The kernels compile for GPUs, without a GPU, take few instructions, and spill no registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import model
from xent.engines import triton

pytestmark = pytest.mark.skipif(not triton.INSTALLED, reason="Triton is not installed")


ROOT = Path(__file__).parents[3]


def compiled_for(*target: str, cache: Path) -> list[dict]:
    """Return the output of compile_kernels.py, from a process that interprets no kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.triton.compile_kernels", *target], cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(cache)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


KERNELS = {
    "sweep", "finish", "find_coefficients", "differentiate", "cross_entropy", "note_down", "add_up",
    "divide", "row_loss", "scale",
}  # fmt: skip


# The budgets of docs/gpu.md.
BUDGETS = {
    (kernel, classes): most
    for kernel, budgets in (
        ("cross_entropy", model.ONE_SWEEP), ("row_loss", model.ROW_LOSS),
        ("sweep", model.STATISTICS), ("differentiate", model.GRADIENT),
    )
    for classes, most in budgets.items()
}  # fmt: skip


def test_instructions_for_a_logit(tmp_path):
    lengths = [str(classes) for classes in sorted({classes for _, classes in BUDGETS})]
    kernels = compiled_for("cuda", "90", *lengths, cache=tmp_path)
    found = {(k["kernel"], k["classes"]): k["per logit"] for k in kernels}
    assert found.keys() == BUDGETS.keys()
    assert {name: n for name, n in found.items() if n > BUDGETS[name]} == {}
    assert max(k["STACK"] for k in kernels) == 0


@pytest.mark.slow
def test_nvidia(tmp_path):
    kernels = compiled_for("cuda", "90", cache=tmp_path)
    assert {k["kernel"] for k in kernels} == KERNELS
    assert max(k["threads"] for k in kernels) <= 512
    for kernel in kernels:
        # Nothing of what a thread holds is spilled. May be: 16 rows of one class, whose loss is 0,
        # and statistics of a row while a program that asks for all of them runs, once for a group.
        rare = kernel["constants"].get("BLOCK") == 1 or kernel["kernel"] == "row_loss"
        assert kernel["STACK"] <= (64 if rare else 16), kernel
        reads = kernel["kernel"] in ("sweep", "differentiate", "cross_entropy", "row_loss")
        wide = kernel["constants"].get("ALIGN") == 8  # 16 bytes of bfloat16
        assert kernel["wide loads"] or not (reads and wide), kernel


@pytest.mark.slow
def test_amd(tmp_path):
    kernels = compiled_for("hip", "gfx942", cache=tmp_path)
    assert {k["kernel"] for k in kernels} == KERNELS
    assert max(k["threads"] for k in kernels) <= 1024
