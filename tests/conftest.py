"""What every test shares: fixed seeds, two threads, and the engines to run on."""

import pytest
import torch
from hypothesis import settings

from xent.engines import native

settings.register_profile("xent", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("xent")


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same seed and thread count, in whatever order they run."""
    torch.manual_seed(0)
    torch.set_num_threads(2)


@pytest.fixture(params=["native", "reference"])
def engine(request) -> str:
    """Each engine by name; a pure-Python installation has only the reference."""
    if request.param == "native" and not native.available():
        pytest.skip("the compiled core is not installed")
    return request.param


@pytest.fixture
def core():
    """For tests of what only the compiled core has."""
    if not native.available():
        pytest.skip("the compiled core is not installed")
    return native
