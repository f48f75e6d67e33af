"""The kernels compile for GPUs, without a GPU, and do not spill registers."""

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


def compiled_for(*target: str, cache: Path) -> list[dict]:
    """Return the output of compile_kernels.py, from a process that interprets no kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "compile_kernels.py", *target],
        env={**environment, "TRITON_CACHE_DIR": str(cache)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


KERNELS = {"sweep", "finish", "find_coefficients", "differentiate", "cross_entropy", "scale"}


def test_nvidia(tmp_path):
    kernels = compiled_for("cuda", "90", cache=tmp_path)
    assert {k["kernel"] for k in kernels} == KERNELS
    assert max(k["threads"] for k in kernels) == 1024
    for kernel in kernels:
        assert kernel["STACK"] <= 16, kernel  # nothing of what a thread holds is spilled
        reads = kernel["kernel"] in ("sweep", "differentiate", "cross_entropy")
        wide = kernel["constants"].get("ALIGN") in (8, -8)  # 16 bytes of bfloat16
        assert kernel["wide loads"] or not (reads and wide), kernel


def test_amd(tmp_path):
    kernels = compiled_for("hip", "gfx942", cache=tmp_path)
    assert {k["kernel"] for k in kernels} == KERNELS
    assert max(k["threads"] for k in kernels) == 1024
