"""The ranks that all tests of this folder share."""

import pytest
import torch.distributed as dist

from .pool import Pool


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Give the pool of ranks."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    pool = Pool(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()
