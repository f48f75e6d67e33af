"""Memory of the pool is used again, and behaves like any other of PyTorch for whoever keeps it."""

import copy
import gc
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import xent
from xent.engines import core
from xent.engines import pool as pools
from xent.engines.pool import Pool

BYTES = 1 << 20
SHAPE = (BYTES // 4 // 100, 100)  # of float32 logits, nearly that many bytes
pytestmark = pytest.mark.skipif(not core.available(), reason="no kernels, no pool")


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """Give each test an empty pool."""
    fresh = Pool(64 << 20)
    monkeypatch.setattr(core, "pool", fresh)
    return fresh


def gradient(logits: torch.Tensor | None = None) -> torch.Tensor:
    """Return a gradient whose memory is of the pool."""
    z = torch.randn(SHAPE) if logits is None else logits
    z = z.detach().requires_grad_()
    xent.cross_entropy(z, torch.zeros(len(z), dtype=torch.long)).backward()
    assert z.grad is not None
    return z.grad


def address_of_next() -> int:
    return gradient().untyped_storage().data_ptr()


# -- Which block a tensor gets ---------------------------------------------------------------------


def test_the_gradient_of_the_next_step_gets_the_same_memory():
    first = gradient().data_ptr()
    assert {address_of_next() for _ in range(3)} == {first}


def test_memory_in_use_is_not_used_again(pool):
    kept = [gradient() for _ in range(4)]
    copies = [g.clone() for g in kept]
    for _ in range(4):
        gradient()
    assert len({g.data_ptr() for g in kept}) == 4
    assert all(torch.equal(g, c) for g, c in zip(kept, copies, strict=True))
    assert pool.held == 5 * kept[0].nbytes


def test_a_block_serves_tensors_that_are_smaller_by_a_ninth_at_most(pool):
    def address(size):
        return pool.take(size).data_ptr()

    first = address(900_000)
    assert address(800_000) == first == address(900_000)
    assert address(799_999) != first
    assert address(900_001) != first


def test_the_best_fit_is_taken(pool):
    large, small = pool.take(1_000_000), pool.take(950_000)
    addresses = large.data_ptr(), small.data_ptr()
    del large, small
    assert pool.take(950_000).data_ptr() == addresses[1]
    assert pool.take(940_000).data_ptr() == addresses[1]
    assert pool.take(960_000).data_ptr() == addresses[0]


def test_small_tensors_stay_out_of_the_pool(pool):
    gradient(torch.randn(655, 100))  # 262,000 bytes
    assert pool.held == 0
    gradient(torch.randn(656, 100))
    assert pool.held == 262_400


def test_a_storage_that_has_a_name_in_python_is_in_use():
    g = gradient()
    storage = g.untyped_storage()
    address = g.data_ptr()
    del g
    assert address_of_next() != address
    del storage
    kept = [gradient() for _ in range(2)]
    assert address in {g.data_ptr() for g in kept}


@pytest.mark.parametrize(
    "view", [torch.Tensor.numpy, torch.Tensor.__dlpack__, lambda g: g[5:7, 1:], torch.Tensor.detach]
)
def test_what_is_seen_through_another_object_is_in_use(view):
    g = gradient()
    address, seen = g.data_ptr(), view(g)
    del g
    assert address_of_next() != address
    del seen


def test_strided_logits_use_the_pool(pool):
    z = torch.randn(SHAPE[::-1]).T
    g = gradient(z)
    assert g.stride() == z.stride()
    assert pool.held == g.nbytes
    torch.testing.assert_close(g, gradient(z.contiguous()))
    every_second = torch.randn(SHAPE[0], 2 * SHAPE[1])[:, ::2]
    torch.testing.assert_close(gradient(every_second), gradient(every_second.contiguous()))


# -- The bound -------------------------------------------------------------------------------------


def test_the_bound_holds_whatever_is_in_use():
    pool = Pool(10_000_000)
    kept = [pool.take(1_000_000 + 10_000 * k) for k in range(14)]
    assert 8_000_000 < pool.held <= 10_000_000
    latest = kept[-1].data_ptr()
    del kept
    assert pool.take(1_130_000).data_ptr() == latest
    assert pool.take(20_000_000).nbytes() == 20_000_000  # of the system
    assert pool.held <= 10_000_000


def test_the_number_of_blocks_is_bounded(pool):
    kept = [pool.take(300_000 + 40_000 * k) for k in range(2 * pools.MOST_BLOCKS)]
    assert pool.held == sum(s.nbytes() for s in kept[-pools.MOST_BLOCKS :])


def test_a_block_is_given_back_before_a_new_one_is_made():
    """The peak is that of the bound, not of the bound and one block."""
    pool = Pool(3_000_000, lambda *_: sums.append(pool.held))
    sums: list[int] = []
    for size in (2_000_000, 1_000_000, 2_900_000):
        pool.take(size)
    assert sums == [0, 2_000_000, 0]


def test_idle_blocks_are_given_back_at_the_next_call(pool, monkeypatch):
    now = 0.0
    monkeypatch.setattr(pools.time, "monotonic", lambda: now)
    pool.take(1_000_000)
    now = pools.IDLE_SECONDS / 2
    pool.take(3_000_000)
    now = pools.IDLE_SECONDS + 1
    pool.take(3_000_000)
    assert pool.held == 3_000_000


def test_a_cleared_pool_holds_nothing(pool):
    g = gradient()
    expected = g.clone()
    pool.clear()
    assert pool.held == 0
    gradient()
    assert torch.equal(g, expected)


def in_new_process(code: str, **env: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_environment_sets_the_bound(monkeypatch):
    monkeypatch.setenv("XENT_POOL_MIB", "3")
    assert pools.bound_in_environment() == 3 << 20
    monkeypatch.delenv("XENT_POOL_MIB")
    assert pools.bound_in_environment() == pools.DEFAULT_MIB << 20
    for wrong in ("", "-1", "1.5", "all"):
        monkeypatch.setenv("XENT_POOL_MIB", wrong)
        with pytest.raises(ValueError, match="XENT_POOL_MIB must be a whole number of MiB"):
            pools.bound_in_environment()


def test_a_pool_without_bytes_or_without_counts_holds_nothing(monkeypatch):
    unknown = [None, lambda _: 1, lambda _: 2]  # of another PyTorch
    for count in (pools._references, *unknown):
        monkeypatch.setattr(pools, "_references", count)
        pool = Pool(0 if count not in unknown else 1 << 30)
        kept = pool.take(1_000_000)
        assert pool.take(1_000_000).data_ptr() != kept.data_ptr()
        assert (pool.bound, pool.held) == (0, 0)


# -- Whoever keeps a gradient ----------------------------------------------------------------------


def test_memory_can_be_resized():
    g = gradient()
    expected = g.flatten().clone()
    old = g.data_ptr()
    g.resize_(2 * SHAPE[0], SHAPE[1])
    assert g.untyped_storage().resizable()
    assert torch.equal(g.flatten()[: expected.numel()], expected)
    _ = [gradient() for _ in range(2)]  # overwrites what the pool takes for free
    assert torch.equal(g.flatten()[: expected.numel()], expected)
    g.untyped_storage().resize_(0)
    assert gradient().isfinite().all()
    assert g.data_ptr() != old


def test_memory_can_be_exchanged():
    g = gradient()
    first = g.data_ptr()
    g.set_(torch.ones(3).untyped_storage())
    assert address_of_next() == first
    g.data = gradient()
    assert g.data_ptr() == first


def test_memory_is_aligned_to_cache_lines(pool):
    assert all(pool.take(size).data_ptr() % 64 == 0 for size in (262_144, 300_001, 5_000_000))


def test_a_saved_gradient_is_as_large_as_a_copy():
    g = gradient()
    ours, plain = io.BytesIO(), io.BytesIO()
    torch.save(g, ours)
    torch.save(g.clone(), plain)
    assert len(ours.getvalue()) == len(plain.getvalue())
    assert torch.equal(torch.load(io.BytesIO(ours.getvalue())), g)
    assert len(pickle.dumps(g)) <= len(pickle.dumps(g.clone())) + 100


def test_copies_do_not_share_memory():
    g = gradient()
    copied, unpickled = copy.deepcopy(g), pickle.loads(pickle.dumps(g))
    g.zero_()
    assert copied.any()
    assert torch.equal(copied, unpickled)


def test_shared_memory_is_not_used_again(pool):
    g = gradient().share_memory_()
    assert g.is_shared()
    shared = g.data_ptr()
    del g
    gc.collect()
    assert address_of_next() != shared
    assert pool.held == BYTES // 400 * 400


def _double(g: torch.Tensor, answer) -> None:
    torch.set_num_threads(1)  # those of the parent are not there
    answer.send(bool((g.mul_(2) != 0).all()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_memory_of_its_own(pool):
    g = gradient()
    expected = g.clone()
    with pool._lock:  # as if another thread were inside
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            core.pool.clear()  # as the hook at fork does with the pool of the library
            signal.alarm(20)
            same = torch.equal(g, expected)
            _ = gradient(), gradient(), g.zero_()
            os._exit(0 if same and core.pool.held else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(g, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_gradients_can_be_sent_to_another_process():
    g = gradient()
    before = g.clone()
    fork = multiprocessing.get_context("fork")
    g.share_memory_()
    ours, theirs = fork.Pipe()
    process = fork.Process(target=_double, args=(g, theirs))
    process.start()
    assert ours.recv()
    process.join()
    assert torch.equal(g, 2 * before)


def test_threads_share_the_pool(pool):
    z = torch.randn(SHAPE)
    expected = gradient(z)

    def work(_):
        g = gradient(z)
        threading.Event().wait(0.001)
        return torch.equal(g, expected)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(40)))
    assert pool.held <= 6 * expected.nbytes


def test_another_thread_may_free_a_gradient():
    held = [gradient()]
    address = held[0].data_ptr()
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert address_of_next() == address


def test_a_call_within_a_call_does_not_hang(pool, monkeypatch):
    """A destructor may compute a loss at any moment, so also while the pool makes a block."""
    inside: list[torch.UntypedStorage] = []

    def prepare(*_) -> None:
        monkeypatch.setattr(pool, "_prepare", None)
        inside.append(pool.take(BYTES))

    monkeypatch.setattr(pool, "_prepare", prepare)
    outside = pool.take(BYTES)
    assert inside[0].data_ptr() not in (outside.data_ptr(), pool.take(BYTES).data_ptr())


def test_an_error_leaves_the_pool_in_order(pool, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(pool, "_prepare", fail)
    with pytest.raises(MemoryError):
        pool.take(1_000_000)
    monkeypatch.undo()
    first = pool.take(1_000_000).data_ptr()
    assert pool.take(1_000_000).data_ptr() == first


def test_forks_and_the_end_of_the_interpreter():
    """A fork empties the pool of the child, and gradients may outlive the interpreter."""
    code = """
import os, sys, torch, xent
from xent.engines import core
z = torch.randn(3000, 100, requires_grad=True)
xent.cross_entropy(z, torch.zeros(3000, dtype=torch.long)).backward()
sys.kept = z.grad, z.grad.numpy()
assert core.pool.bound == 7 << 20 and core.pool.held == z.grad.nbytes
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        os._exit(core.pool.held != 0)
    assert os.waitpid(child, 0)[1] == 0
"""
    done = in_new_process(code, XENT_POOL_MIB="7")
    assert (done.returncode, done.stderr) == (0, "")


def test_accumulated_and_recomputed_gradients():
    z = torch.randn(SHAPE)
    y = torch.zeros(len(z), dtype=torch.long)
    expected = gradient(z)
    leaf = z.clone().requires_grad_()
    for _ in range(4):
        xent.cross_entropy(leaf, y).backward()
    torch.testing.assert_close(leaf.grad, 4 * expected)
    leaf = z.clone().requires_grad_()
    (xent.cross_entropy(leaf, y) + xent.losses.focal_loss(leaf, y, gamma=0.0)).backward()
    torch.testing.assert_close(leaf.grad, 2 * expected)
    leaf = z.clone().requires_grad_()
    again = checkpoint(lambda x: xent.cross_entropy(x, y), leaf, use_reentrant=False)
    again.backward()
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=0)


def test_double_backward_of_a_loss_whose_gradient_is_kept():
    z = torch.randn(SHAPE, requires_grad=True)
    loss = xent.cross_entropy(z, torch.zeros(len(z), dtype=torch.long))
    (g,) = torch.autograd.grad(loss, z, create_graph=True)
    expected = g.detach().clone()
    _ = [gradient() for _ in range(2)]
    assert torch.equal(g.detach(), expected)
    assert torch.autograd.grad(g.square().sum(), z)[0].isfinite().all()


def test_memory_from_inference_mode_serves_later_training():
    with torch.inference_mode():
        core.empty(SHAPE, torch.float32)
    g = gradient()
    assert not g.is_inference()
    g.mul_(2)
