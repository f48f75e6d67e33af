"""What every test shares: fixed seeds, two threads, and the engines to run on."""

import os

import torch

if not torch.cuda.is_available():  # Triton's kernels run in its interpreter, on CPU tensors
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
from hypothesis import settings

from xent.engines import native, triton

settings.register_profile("xent", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("xent")


if triton.INTERPRETED:
    from triton.runtime import interpreter

    from .helpers import as_bfloat16

    # It cuts float32 off to bfloat16, where a GPU rounds to nearest.
    interpreter._convert_float = as_bfloat16(interpreter._convert_float)


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same seed and thread count, in whatever order they run."""
    torch.manual_seed(0)
    torch.set_num_threads(2)


def _named(name: str) -> str:
    """The engine of this name, if it can run here."""
    if name == "native" and not native.available():
        pytest.skip("the compiled core is not installed")
    if name == "triton" and not triton.INTERPRETED:
        pytest.skip("Triton's interpreter is not at hand")
    return name


@pytest.fixture(params=["native", "reference"])
def engine(request) -> str:
    """Each engine by name; a pure-Python installation has only the reference."""
    return _named(request.param)


@pytest.fixture(params=["native", "triton", "reference"])
def any_engine(request) -> str:
    """Each engine by name, for what Triton's kernels know: no float64, no second derivatives."""
    return _named(request.param)


@pytest.fixture(params=["native", "triton"])
def kernels(request) -> str:
    """Each engine with kernels by name."""
    return _named(request.param)


@pytest.fixture
def core():
    """For tests of what only the compiled core has."""
    if not native.available():
        pytest.skip("the compiled core is not installed")
    return native
