"""The bits of a result depend on neither splits, vectors nor layouts."""

import pytest
import torch

from tests.helpers import same_bits, value_and_grad
from tests.registry import BASIC, Loss

every_loss = pytest.mark.parametrize("loss", BASIC, ids=lambda loss: loss.name)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # both sweeps, each storage
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def engine(every_engine):
    """Run on Triton's kernels, too."""
    return every_engine


def problem(dtype=torch.float32, n=37, v=300):
    """Return ordinary rows, and two with masked classes and a masked target."""
    z = (torch.randn(n, v) * 4).to(dtype)
    z[3, 10:50] = -torch.inf
    z[5, ::2] -= 200
    y = torch.randint(v, (n,))
    y[3], y[5], y[7] = 0, 4, -100
    return z, y


def both(loss, z, y, **options):
    return value_and_grad(loss, z, y, reduction="none", **options)


@every_loss
def test_any_split_of_the_batch(loss: Loss, core):
    z, y = problem()
    value, grad = both(loss, z, y, engine="native")
    # one row at a time; strips that are not full; two uneven halves
    for size in (1, 5, 20):
        pairs = zip(z.split(size), y.split(size), strict=True)
        parts = [both(loss, a, b, engine="native") for a, b in pairs]
        assert same_bits(torch.cat([p[0] for p in parts]), value)
        assert same_bits(torch.cat([p[1] for p in parts]), grad)


@pytest.mark.parametrize("v", [4, 30, 2500])  # panels, several rows a block, blocks
def test_any_neighbours(core, v):
    # A difficult row of a strip (huge, masked, ignored, underflowing) must not change other rows.
    z = torch.randn(32, v)
    y = torch.randint(v, (32,))
    alone = both(BASIC[0].call, z, y, engine="native")
    z[3] += 1e9
    z[8] = torch.nan
    y[11] = -100
    z[13, 1:] = -torch.inf
    z[17] *= 60
    beside = both(BASIC[0].call, z, y, engine="native")
    kept = torch.ones(32, dtype=torch.bool)
    kept[[3, 8, 11, 13, 17]] = False
    assert all(same_bits(a[kept], b[kept]) for a, b in zip(alone, beside, strict=True))


@every_dtype
def test_a_gradient_too_large_for_the_caches(core, dtype):
    # It is stored past them; its parts are not, and neither starts nor ends where a line does.
    v = 8197 * 4 // torch.tensor([], dtype=dtype).element_size()
    z, y = problem(dtype, n=300, v=v)
    assert z.nbytes > 8 << 20
    value, grad = both(BASIC[0].call, z, y, engine="native")
    parts = [
        both(BASIC[0].call, a, b, engine="native")
        for a, b in zip(z.split(100), y.split(100), strict=True)
    ]
    assert same_bits(torch.cat([p[0] for p in parts]), value)
    assert same_bits(torch.cat([p[1] for p in parts]), grad)


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])  # the fast plain path, and the frame
def test_any_number_of_threads(loss: Loss, core, reduction):
    z, y = problem(n=5000, v=64)  # enough for several grains per thread
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(value_and_grad(loss, z, y, reduction=reduction))
    for value, grad in results[1:]:
        assert same_bits(value, results[0][0])
        assert same_bits(grad, results[0][1])


@every_loss
@every_dtype
@pytest.mark.parametrize("v", [3, 2500])  # less than a vector; a block and a piece
def test_any_instruction_set(loss: Loss, core, dtype, v):
    if len(core.isas()) < 2:
        pytest.skip("only one instruction set here")
    z = (torch.randn(20, v) * 6).to(dtype)
    z[4, 1] = -torch.inf
    y = torch.randint(v, (20,))
    y[4] = 0
    soft = torch.softmax(torch.randn(20, v), -1).to(dtype)
    chosen, results = core.isa, []
    try:
        for isa in core.isas():
            core.set_isa(isa)
            results.append(
                [*both(loss, z, y, engine="native"), *both(loss, z, soft, engine="native")]
            )
    finally:
        core.set_isa(chosen)
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(result, results[0], strict=True))


def layouts(z, y):
    """Return the numbers of ``z`` (N, C, A, B) in several memory layouts."""
    wide = torch.full((z.shape[0] * 2, z.shape[1] + 3, *z.shape[2:]), torch.nan, dtype=z.dtype)
    wide[::2, 2:-1] = z
    odd = torch.full((*z.shape[:3], z.shape[3] * 2), torch.nan, dtype=z.dtype)
    odd[..., 1::2] = z
    offset = torch.full((z.numel() + 1,), torch.nan, dtype=z.dtype)
    offset[1:] = z.flatten()
    yield "channels last", z.contiguous(memory_format=torch.channels_last)
    yield "classes outermost", z.transpose(0, 1).contiguous().transpose(0, 1)
    yield "last two axes swapped", z.mT.contiguous().mT
    yield "a slice of batch and classes", wide[::2, 2:-1]
    yield "every other number", odd[..., 1::2]
    yield "not aligned", offset[1:].view(z.shape)


@pytest.mark.sample(12)
@every_loss
@every_dtype
def test_any_layout_of_extra_axes(loss: Loss, engine, dtype):
    if engine == "triton" and loss.name not in ("weight", "everything"):
        pytest.skip("two losses of each dtype: the interpreter is slow")
    z = (torch.randn(3, 40, 4, 5) * 3).to(dtype)
    y = torch.randint(40, (3, 4, 5))
    value, grad = both(loss, z, y, engine=engine)
    for name, x in layouts(z, y):
        again, slope = both(loss, x, y, engine=engine)
        eps = torch.finfo(dtype).eps  # sums may be grouped by the layout
        torch.testing.assert_close(again, value, rtol=4 * eps, atol=4 * eps, msg=name)
        torch.testing.assert_close(slope, grad, rtol=32 * eps, atol=4 * eps, msg=name)


@pytest.mark.sample(5)
@pytest.mark.parametrize("reduction", ["mean", "none"])  # plain path and frame
@every_dtype
def test_any_layout_of_a_matrix(engine, dtype, reduction):
    loss = BASIC[0].call
    z, y = problem(dtype)
    rows = z[:1].expand(37, -1)  # one row, read 37 times
    column = z[:, :1].expand(-1, 300)  # one number per row, read 300 times
    window = z.flatten()[: 36 + 300].unfold(0, 300, 1)  # rows that overlap
    spread = torch.full((37, 600), torch.nan, dtype=dtype)
    spread[:, ::2] = z
    padded = torch.cat([z, z], 1)[:, 100:400]
    # Rows whose classes are adjacent are read as they lie; others in narrower blocks, whose sums
    # are grouped differently. The gradient of rows that overlap is laid out with classes apart.
    for x, bits in (
        (rows, True), (padded, True), (window, False),
        (column, False), (z.t().contiguous().t(), False), (spread[:, ::2], False),
    ):  # fmt: skip
        again, slope = value_and_grad(loss, x, y, reduction=reduction, engine=engine)
        value, grad = value_and_grad(loss, x.contiguous(), y, reduction=reduction, engine=engine)
        if bits and engine == "native":
            assert same_bits(again, value)
            assert same_bits(slope, grad)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(again, value, rtol=4 * eps, atol=0, equal_nan=True)
        torch.testing.assert_close(slope, grad, rtol=32 * eps, atol=eps, equal_nan=True)


@pytest.mark.sample(3)
@every_dtype
def test_strided_labels_and_soft_targets(engine, dtype):
    loss = BASIC[0].call
    z, y = problem(dtype)
    twice = torch.stack([y, torch.full_like(y, 999)], 1)[:, 0]
    for reduction in ("mean", "none"):
        assert same_bits(
            loss(z, twice, reduction=reduction, engine=engine),
            loss(z, y, reduction=reduction, engine=engine),
        )
    assert same_bits(
        loss(z, torch.tensor(5).expand(37), engine=engine),
        loss(z, torch.full((37,), 5), engine=engine),
    )
    soft = torch.softmax(torch.randn(37, 300), -1).to(dtype)
    z = z.masked_fill(z == -torch.inf, -9)
    for q in (soft.t().contiguous().t(), soft[:1].expand(37, -1)):
        a, da = both(loss, z, q, engine=engine)
        b, db = both(loss, z, q.contiguous(), engine=engine)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(a, b, rtol=4 * eps, atol=0)
        torch.testing.assert_close(da, db, rtol=32 * eps, atol=4 * eps)


def test_plain_call_and_frame_give_the_same_bits(core):
    for dtype in core.fast:
        z, y = problem(dtype)
        for reduction in ("mean", "sum"):
            plain = value_and_grad(BASIC[0].call, z, y, reduction=reduction)
            frame = value_and_grad(BASIC[0].call, z, y, reduction=reduction, engine="native")
            # The sums over rows may group differently: one rounding of the result.
            torch.testing.assert_close(plain[0], frame[0], rtol=torch.finfo(dtype).eps, atol=0)
            torch.testing.assert_close(plain[1], frame[1], rtol=torch.finfo(dtype).eps, atol=0)
