"""Two ranks share the classes: the quick test of all of it."""

from .pool import Pool
from .test_shards import SPLITS, agrees, rows


def test_two_ranks_give_the_loss_of_one_process(tmp_path):
    pool = Pool(tmp_path, ranks=2)
    try:
        agrees(pool, "cross_entropy", *rows(), {"label_smoothing": 0.1}, SPLITS["even"])
    finally:
        pool.close()
