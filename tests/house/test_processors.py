"""Printed output is the same with the kernels and the arithmetic of other processors.

PyTorch and its products of matrices choose kernels when they start, so each test is a process.
"""

import os
import subprocess
import sys

import pytest

from xent.engines import core as native

pytestmark = pytest.mark.slow
KERNELS = {  # ours, PyTorch's, and those of its products
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
}
PRINTING = [  # tests that compare text with numbers in it
    "tests/house/test_doctests.py",
    "tests/house/test_docs.py",
    "tests/learn/regression/test_regularization.py",
    "tests/information/test_distributions.py",
    "tests/information/test_counts.py",
    "tests/learn/coding/test_arithmetic.py",
    "tests/commands/test_fit.py",
]


def passes(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *PRINTING],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]


@pytest.mark.parametrize("isa", KERNELS)
def test_instruction_sets(isa):
    if isa not in native.isas():
        pytest.skip(f"{isa} is not at hand")
    passes(XENT_ISA=isa, **KERNELS[isa])


def test_without_the_core():
    passes(XENT_NO_CORE="1")
