"""Laws that every loss obeys on every engine; tests/registry lists the losses."""

import math

import pytest
import torch

from tests.helpers import nats_below_top, same_bits, ulps, value_and_grad, widest, worst
from tests.registry import KINDS, ROWS, Loss

pytestmark = pytest.mark.parametrize("loss", ROWS, ids=lambda loss: loss.name)

N, V = 6, 9


@pytest.fixture
def engine(every_engine, loss):
    """Run the laws on all engines; in an interpreter, which is slow, one loss of each kind."""
    if every_engine == "triton" and loss not in KINDS:
        pytest.skip("the interpreter is slow: another loss asks for the same statistics")
    return every_engine


def problem(dtype=torch.float64, n=N, v=V):
    """Return logits on a grid of 1/64, so that adding 64 is exact, and one class per row."""
    z = (torch.randn(n, v, dtype=torch.float64) * 128).round() / 64
    return z.to(dtype), torch.randint(v, (n,))


def close(a, b, terms: float = 1.0, limit: float = 8.0) -> None:
    """Assert equality within some ulps of the largest term that is added up."""
    error = (a.double() - b.double()).abs()
    scale = b.double().abs().clamp(min=terms)
    eps = torch.finfo(a.dtype).eps
    assert a.shape == b.shape
    assert bool((error <= limit * eps * scale).all()), (error / (eps * scale)).max().item()


def test_value_and_gradient_are_those_of_the_formula(loss: Loss, every_engine):
    z, y = problem(widest(every_engine), n=40, v=50)
    value, grad = value_and_grad(loss, z, y, reduction="none", engine=every_engine)
    leaf = z.clone().requires_grad_()
    truth = loss.truth(leaf, y)
    (slope,) = torch.autograd.grad(truth.sum(), leaf)
    close(value, truth.detach(), limit=32)
    close(grad, slope, limit=32)


def test_gradcheck(loss: Loss, engine):
    if engine == "triton":
        pytest.skip("finite differences of float32 show nothing")
    z, y = problem(n=3, v=4)
    rows = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    y[0] = -100
    for options in ({"reduction": "mean"}, {"reduction": "none", "row_weight": rows}):
        assert torch.autograd.gradcheck(
            lambda x, options=options: loss(x, y, engine=engine, **options),
            z.requires_grad_(),
            fast_mode=True,  # a random combination of all derivatives, which are those of formulas
        )


def test_a_constant_added_to_the_logits_changes_nothing(loss: Loss, engine):
    if not loss.shift_invariant:
        pytest.skip("looks at the logits' absolute height")
    z, y = problem(widest(engine))
    a, da = value_and_grad(loss, z, y, reduction="none", engine=engine)
    b, db = value_and_grad(loss, z + 64, y, reduction="none", engine=engine)
    close(a, b, terms=64.0 if loss.offset else 1.0)
    close(da, db, terms=64.0 if loss.offset else 1.0)


def test_the_order_of_the_classes_does_not_matter(loss: Loss, engine):
    z, y = problem(widest(engine))
    order = torch.randperm(V)
    permuted = {
        name: value[order]
        for name, value in loss.settings(V, z.dtype).items()
        if isinstance(value, torch.Tensor)
    }
    a, da = value_and_grad(loss, z, y, reduction="none", engine=engine)
    b, db = value_and_grad(
        loss, z[:, order], order.argsort()[y], reduction="none", engine=engine, **permuted
    )
    close(a, b)
    close(da[:, order], db)


def test_a_one_hot_row_is_its_class(loss: Loss, engine):
    if not loss.soft:
        with pytest.raises(ValueError, match="one class per row"):
            loss(torch.randn(2, V), torch.rand(2, V), engine=engine)
        return
    if not loss.weighted:
        pytest.skip("a body that is not linear in log_prob sees the weights in its soft target")
    z, y = problem(widest(engine))
    hot = torch.nn.functional.one_hot(y, V).to(z.dtype)
    a, da = value_and_grad(loss, z, y, reduction="none", engine=engine)
    b, db = value_and_grad(loss, z, hot, reduction="none", engine=engine)
    close(a, b)
    close(da, db)


@pytest.mark.sample(200)
@pytest.mark.parametrize("index", [-100, -1, 3])  # the default; a common one; a class that exists
def test_ignored_rows_are_rows_left_out(loss: Loss, engine, index):
    if engine == "triton" and index != 3:
        pytest.skip("a class that exists: the interpreter is slow")
    z, y = problem(torch.float32)
    out = torch.tensor([False, True, False, False, True, False])
    y = torch.where(y == index, 4, y).masked_fill(out, index)
    each = {"ignore_index": index, "engine": engine}
    kept = {"engine": engine}
    a, da = value_and_grad(loss, z, y, reduction="none", **each)
    b, db = value_and_grad(loss, z[~out], y[~out], reduction="none", **kept)
    assert same_bits(a[~out], b)
    assert same_bits(da[~out], db)
    assert not a[out].any()
    assert not da[out].any()
    for reduction in ("mean", "sum"):
        a, da = value_and_grad(loss, z, y, reduction=reduction, **each)
        b, db = value_and_grad(loss, z[~out], y[~out], reduction=reduction, **kept)
        assert ulps(a, b.double()) <= 1
        assert worst(da[~out], db.double()) <= 1
        assert not da[out].any()


@pytest.mark.sample(80)
def test_garbage_in_an_ignored_row_stays_there(loss: Loss, engine):
    z, y = problem(widest(engine))
    y[2] = -100
    clean = value_and_grad(loss, z, y, engine=engine)
    for garbage in (math.nan, math.inf, -math.inf):
        z[2] = garbage
        value, grad = value_and_grad(loss, z, y, engine=engine)
        assert same_bits(value, clean[0])
        assert same_bits(grad, clean[1])


@pytest.mark.sample(80)
def test_a_row_weight_is_a_repetition(loss: Loss, engine):
    z, y = problem(widest(engine))
    counts = torch.tensor([1, 2, 0, 3, 1, 4])
    again = counts.repeat_interleave(counts) * 0 + torch.arange(N).repeat_interleave(counts)
    for reduction in ("mean", "sum"):
        a, da = value_and_grad(
            loss, z, y, reduction=reduction, row_weight=counts.double(), engine=engine
        )
        b, db = value_and_grad(loss, z[again], y[again], reduction=reduction, engine=engine)
        close(a, b)
        close(da, torch.zeros_like(z).index_add(0, again, db))


def test_a_masked_class_is_a_class_that_is_not_there(loss: Loss, engine):
    z, y = problem(widest(engine))
    y = torch.where(y == 5, 1, y)
    masked = z.clone()
    masked[:, 5] = -torch.inf
    keep = torch.arange(V) != 5
    fewer = {
        name: value[keep]
        for name, value in loss.settings(V, z.dtype).items()
        if isinstance(value, torch.Tensor)
    }
    a, da = value_and_grad(loss, masked, y, reduction="none", engine=engine)
    b, db = value_and_grad(
        loss, z[:, keep], y - (y > 5).long(), reduction="none", engine=engine, **fewer
    )
    close(a, b)
    close(da[:, keep], db)
    assert not da[:, 5].any()


@pytest.mark.sample(80)
def test_reductions_agree(loss: Loss, engine):
    z, y = problem(widest(engine))
    y[1] = -100
    rows = torch.rand(N, dtype=torch.float64)
    class_weight = loss.settings(V, z.dtype).get("weight")
    each = torch.where(y == -100, 0.0, 1.0).double()
    mass = each if class_weight is None else each * class_weight[y.clamp(min=0)]
    for weights in (None, rows):
        w = torch.ones_like(rows) if weights is None else weights
        none = loss(z, y, reduction="none", row_weight=weights, engine=engine)
        call = {"row_weight": weights, "engine": engine}
        total = none.sum()
        close(loss(z, y, reduction="sum", **call), total)
        close(loss(z, y, **call), total / (mass * w).sum())
        close(loss(z, y, normalizer="weight", **call), total / (mass * w).sum())
        close(loss(z, y, normalizer="count", **call), total / each.sum())
        close(loss(z, y, normalizer=7, **call), total / 7)
        close(loss(z, y, normalizer=torch.tensor(0.5), **call), total / 0.5)


def test_the_mean_of_no_rows(loss: Loss, engine):
    z, y = problem(widest(engine))
    for x, t in ((z, torch.full_like(y, -100)), (z[:0], y[:0])):
        assert loss(x, t, engine=engine).isnan()
        value, grad = value_and_grad(loss, x, t, empty="zero", engine=engine)
        assert value == 0
        assert not grad.any()
        assert loss(x, t, reduction="sum", engine=engine) == 0


@pytest.mark.sample(200)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 2)])  # K = none, 1, 2, 3 extra axes
def test_extra_axes_are_more_rows(loss: Loss, engine, shape):
    if engine == "triton" and len(shape) in (1, 3):
        pytest.skip("none and two of them: the interpreter is slow")
    z = torch.randn(4, V, *shape)
    y = torch.randint(V, (4, *shape))
    flat_z, flat_y = z.movedim(1, -1).reshape(-1, V), y.reshape(-1)
    a, da = value_and_grad(loss, z, y, reduction="none", engine=engine)
    b, db = value_and_grad(loss, flat_z, flat_y, reduction="none", engine=engine)
    close(a.reshape(-1), b)
    close(da.movedim(1, -1).reshape(-1, V), db)
    single, dsingle = value_and_grad(loss, flat_z[0], flat_y[0], engine=engine, reduction="none")
    assert single.shape == ()
    close(single, b[0])
    close(dsingle, db[0])


@pytest.mark.sample(150)
@pytest.mark.parametrize(
    ("dtype", "v"),
    [
        (torch.float64, 9),  # one lane block, mostly padding
        (torch.float32, 9),
        (torch.float32, 3000),  # more than one block
        (torch.bfloat16, 100),
        (torch.float16, 100),
    ],
)
def test_engines_agree(loss: Loss, kernels, dtype, v):
    if kernels == "triton" and (dtype == torch.float16 or v == 9):
        pytest.skip("tiles of many rows, and of one: the interpreter is slow")
    if kernels == "triton" and dtype == torch.float64:
        pytest.skip("float64 is for the reference engine")
    if loss.name == "taylorglo":
        pytest.skip("its slopes cancel: test_evolved.py holds both engines against 50 digits")
    z, y = problem(dtype, n=12, v=v)
    a, da = value_and_grad(loss, z, y, reduction="none", engine=kernels)
    b, db = value_and_grad(loss, z, y, reduction="none", engine="reference")
    assert a.dtype == b.dtype == dtype
    assert worst(a, b.double()) <= (32 if loss.cancels else 4)
    # Both carry the conditioning of exp, and terms of one size that cancel (p_j - 1 / V).
    slack = nats_below_top(z) + 8
    error = (da.double() - db.double()).abs()
    eps = torch.finfo(dtype).eps
    allowed = slack * eps * db.double().abs() + 16 * eps / v
    if loss.slopes_cancel:  # p_j times two numbers of nats
        allowed += slack * eps * torch.softmax(z.double(), 1) * math.log(v)
    assert bool((error <= allowed).all())
