"""A rank that ends in the middle: the others hear of it, and soon."""

import pytest

from . import on_ranks
from .pool import Pool

pytestmark = pytest.mark.slow


def test_a_rank_that_ends_is_missed(tmp_path):
    pool = Pool(tmp_path, ranks=3)
    try:
        for pipe in pool.pipes:
            pipe.send((on_ranks.beside_a_rank_that_ends, 3, ()))
        for pipe in (pool.pipes[0], pool.pipes[2]):
            assert pipe.poll(60)
            heard, seconds = pipe.recv()
            assert heard.startswith("RuntimeError")
            assert "one of them has ended" in heard
            assert seconds < 10
    finally:
        for worker in pool.workers:
            worker.kill()
