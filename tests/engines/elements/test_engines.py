"""Losses of single elements, frame and engines: parity, layouts, derivatives, errors."""

import copy

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import HALF, same_bits, ulps, value_and_grad, widest
from tests.house.test_parity import run
from tests.registry import ELEMENTS
from xent.engines import core as native
from xent.engines.elements.problem import Form
from xent.frames.element_loss import power, product

EACH = pytest.mark.parametrize("loss", ELEMENTS, ids=lambda loss: loss.name)
BCE = xent.binary_cross_entropy_with_logits
SHAPES = [(), (5,), (4, 5), (2, 3, 4), (2, 3, 4, 2), (0, 5), (1, 1), (3, 700)]


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    """Use one thread: the tensors are too small for two."""
    torch.set_num_threads(1)


def pair(*shape, dtype=torch.float64):
    return (torch.randn(shape) * 3).to(dtype), torch.rand(shape).to(dtype)


# ---- drop-in for torch --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_parity(every_engine, shape, reduction):
    dtype = widest(every_engine)
    z, t = pair(*shape, dtype=dtype)
    for options in (
        {},
        {"weight": torch.rand(shape).to(dtype)},
        {
            "weight": torch.rand(shape[-1:]).to(dtype),
            "pos_weight": torch.rand(shape[:1] + (1,) * (len(shape) - 1)).to(dtype),
        },
        {"pos_weight": torch.tensor(3.0).to(dtype)},
    ):
        assert_parity(every_engine, z, t, reduction=reduction, **options)


def assert_parity(engine, z, t, **options):
    """Assert that value and gradient equal torch's in float64, in torch's shapes and types."""
    eps = torch.finfo(z.dtype).eps
    ours = run(lambda *a, **k: BCE(*a, engine=engine, **k), z, t, **options)
    theirs = run(F.binary_cross_entropy_with_logits, z, t, **options)
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    truth = run(F.binary_cross_entropy_with_logits, z.double(), t.double(), **wide)
    for a, b, exact in zip(ours, theirs, truth, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        torch.testing.assert_close(a.double(), exact, rtol=400 * eps, atol=4 * eps, equal_nan=True)


@pytest.mark.parametrize("a", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("b", [torch.float64, torch.float32, *HALF], ids=str)
def test_dtypes_are_those_of_torch(every_engine, a, b):
    engine = every_engine
    if engine == "triton" and torch.float64 in (a, b):
        pytest.skip("knows no float64")
    z, t = torch.randn(4, 3).to(a), torch.rand(4, 3).to(b)
    for reduction in ("mean", "none"):
        loss, grad = run(lambda *x, **k: BCE(*x, engine=engine, **k), z, t, reduction=reduction)
        theirs, slope = run(F.binary_cross_entropy_with_logits, z, t, reduction=reduction)
        assert (loss.dtype, grad.dtype) == (theirs.dtype, slope.dtype)
        wide = F.binary_cross_entropy_with_logits(z.double(), t.double(), reduction=reduction)
        assert ulps(loss, wide).max() <= 4


def test_positional_order_of_torch():
    z, t = pair(3, 4)
    w, pw = torch.rand(4).double(), torch.rand(4).double()
    ours = BCE(z, t, w, None, None, "sum", pw)
    theirs = F.binary_cross_entropy_with_logits(z, t, w, None, None, "sum", pw)
    torch.testing.assert_close(ours, theirs)
    q = torch.sigmoid(z)
    ours = xent.binary_cross_entropy(q, t, w, None, None, "sum")
    torch.testing.assert_close(ours, F.binary_cross_entropy(q, t, w, None, None, "sum"))
    with pytest.warns(UserWarning, match="deprecated"):
        assert BCE(z, t, size_average=False) == BCE(z, t, reduction="sum")
    with pytest.warns(UserWarning, match="deprecated"):
        assert xent.binary_cross_entropy(q, t, reduce=False).shape == q.shape


ops = pytest.importorskip(
    "torch.testing._internal.common_methods_invocations", exc_type=ImportError
)
INFOS = {op.name.rpartition(".")[2]: op for op in ops.op_db if "binary_cross_entropy" in op.name}


@pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
def test_samples_of_torch_itself(name, dtype):
    samples = list(INFOS[name].sample_inputs("cpu", dtype, requires_grad=False))
    assert len(samples) > 5
    for sample in samples:
        ours = run(getattr(xent.losses, name), sample.input, *sample.args, **sample.kwargs)
        theirs = run(getattr(F, name), sample.input, *sample.args, **sample.kwargs)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            limit = 64 * torch.finfo(dtype).eps
            torch.testing.assert_close(a, b, rtol=limit, atol=limit, equal_nan=True)


# ---- layouts and weights ------------------------------------------------------------------------

LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "strided": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("of_logits", LAYOUTS)
@pytest.mark.parametrize("of_targets", ["plain", *LAYOUTS])
def test_layouts(every_engine, of_logits, of_targets):
    z, t = pair(2, 3, 4, 5, dtype=widest(every_engine))
    z = LAYOUTS[of_logits](z)
    t = t if of_targets == "plain" else LAYOUTS[of_targets](t)
    for reduction in ("mean", "none"):
        assert_parity(every_engine, z, t, reduction=reduction)


@pytest.mark.parametrize(
    "shape",
    [(), (1,), (6,), (5, 1), (4, 1, 1), (3, 1, 1, 1), (4, 5, 6), (3, 1, 5, 6), (5, 6), (1, 4, 1, 6),
     (3, 4, 5, 6), (3, 1, 5, 1)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("layout", ["plain", "channels last"])
def test_weights_broadcast(every_engine, shape, layout):
    """Weights may be a map over pixels, a factor per channel, or any shape that broadcasts."""
    dtype = widest(every_engine)
    z, t = pair(3, 4, 5, 6, dtype=dtype)
    if layout != "plain":
        z = LAYOUTS[layout](z)
    w, pw = torch.rand(shape).to(dtype), torch.rand(shape).to(dtype) * 5
    for reduction in ("mean", "none"):
        assert_parity(every_engine, z, t, weight=w, pos_weight=pw, reduction=reduction)


def test_large_inputs_are_cut_into_pieces():
    """Several pieces of the reference, several blocks of the kernel, and incomplete last ones."""
    z, t = pair(3, 33331)
    w, pw = torch.rand(33331).double(), torch.rand(3, 1).double()
    for reduction in ("mean", "none"):
        options = {"weight": w, "pos_weight": pw, "reduction": reduction}
        b = run(F.binary_cross_entropy_with_logits, z, t, **options)
        for engine in ("reference", "native") if native.available() else ("reference",):
            a = run(lambda *x, e=engine, **k: BCE(*x, engine=e, **k), z, t, **options)
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gradient_past_the_caches(core, dtype):
    z, t = torch.randn(2_200_001).to(dtype), torch.rand(2_200_001).to(dtype)  # streamed
    grad = value_and_grad(BCE, z, t, reduction="sum", engine="native")[1]
    part = value_and_grad(BCE, z[:9000], t[:9000], reduction="sum", engine="native")[1]
    assert same_bits(grad[:9000], part)
    tail = value_and_grad(BCE, z[-4000:], t[-4000:], reduction="sum", engine="native")[1]
    assert same_bits(grad[-4000:], tail)


@pytest.mark.parametrize("loss", [ELEMENTS[k] for k in (0, 1, 4, 7, 10)], ids=lambda x: x.name)
def test_same_bits_for_any_number_of_threads(loss, engine):
    if engine == "native" and not loss.kernel:
        pytest.skip("has no kernel")
    z, t = torch.randn(70_001), torch.rand(70_001)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(value_and_grad(loss, z, t, engine=engine))
        results[-1] += value_and_grad(loss, z, t, reduction="none", engine=engine)
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(other, results[0], strict=True))


# ---- errors -------------------------------------------------------------------------------------

Z, Y = torch.zeros(4, 3), torch.zeros(4, 3)
WRONG = {
    "column against vector": (lambda: BCE(torch.zeros(4, 1), torch.zeros(4)), ValueError, "shape"),
    "vector against column": (lambda: BCE(Z[:, 0], Y[:, :1]), ValueError, "reshape"),
    "pixels": (lambda: BCE(Z, Y + 255), ValueError, "holds 255.*divide by 255"),
    "byte pixels": (lambda: BCE(Z, (Y + 128).byte()), ValueError, "divide by 255"),
    "signs": (lambda: BCE(Z, Y - 1), ValueError, r"\(target \+ 1\) / 2"),
    "just above": (lambda: BCE(Z, Y + 1.001), ValueError, "holds 1.001.*unnormalized"),
    "focal above": (
        lambda: xent.losses.sigmoid_focal_loss(Z, Y + 2),
        ValueError,
        "between 0 and 1",
    ),
    "quality above": (
        lambda: xent.losses.quality_focal_loss(Z, Y + 2),
        ValueError,
        "between 0 and 1",
    ),
    "weight": (lambda: BCE(Z, Y, torch.ones(4)), ValueError, "`weight` must broadcast"),
    "big weight": (lambda: BCE(Z, Y, torch.ones(2, 4, 3)), ValueError, "`weight` must broadcast"),
    "pos_weight": (lambda: BCE(Z, Y, pos_weight=torch.ones(2)), ValueError, "`pos_weight` must"),
    "no tensor": (lambda: BCE("0", Y), TypeError, "`input` must be a torch.Tensor"),
    "text for targets": (lambda: BCE(Z, "0"), TypeError, "`target` must be a torch.Tensor"),
    "integer logits": (lambda: BCE(Z.long(), Y), TypeError, r"call \w+\.float\(\)"),
    "complex": (lambda: BCE(Z, Y + 0j), TypeError, "real"),
    "fewer rows": (lambda: BCE(Z, Y[:2]), ValueError, "nothing is broadcast here$"),
    "fewer channels": (lambda: BCE(Z[:, :1], Y), ValueError, "nothing is broadcast here$"),
    "fewer of both": (lambda: BCE(Z[:2, :1], Y[:1]), ValueError, "nothing is broadcast here$"),
    "another device": (lambda: BCE(Z, Y.to("meta")), ValueError, "on cpu but `target` on meta"),
    "weight elsewhere": (lambda: BCE(Z, Y, Y.to("meta")), ValueError, "`weight` is on meta"),
    "text for weights": (lambda: BCE(Z, Y, "1"), TypeError, "`weight` must be a torch.Tensor"),
    "class indices": (lambda: BCE(Z, torch.zeros(4).long()), ValueError, "xent.cross_entropy"),
    "reduction": (lambda: BCE(Z, Y, reduction="avg"), ValueError, "reduction"),
    "normalizer": (lambda: BCE(Z, Y, reduction="sum", normalizer=3), ValueError, "normalizer"),
    "ignore_value": (lambda: BCE(Z, Y, ignore_value="x"), ValueError, "ignore_value"),
    "engine": (lambda: BCE(Z, Y, engine="cuda"), ValueError, "engine"),
    "no kernel": (
        lambda: xent.losses.continuous_bernoulli_loss(Z, Y, engine="native"),
        ValueError,
        "cannot do this",
    ),
    "no kernel for GPUs": (
        lambda: xent.losses.continuous_bernoulli_loss(Z, Y, engine="triton"),
        ValueError,
        "cannot do this",
    ),
    "float64 for GPUs": (
        lambda: BCE(Z, Y, torch.ones(3).double(), engine="triton"),
        ValueError,
        "cannot do this",
    ),
    "gamma": (lambda: xent.losses.sigmoid_focal_loss(Z, Y, gamma=-1), ValueError, "`gamma`"),
    "alpha": (lambda: xent.losses.sigmoid_focal_loss(Z, Y, alpha=-1), ValueError, "`alpha`"),
    "clip": (lambda: xent.losses.asymmetric_loss(Z, Y, clip=1.5), ValueError, "`clip`"),
    "eps": (lambda: xent.binary_cross_entropy(Z, Y, eps=0.7), ValueError, "`eps`"),
    "unknown": (lambda: xent.losses.sigmoid_focal_loss(Z, Y, delta=1), TypeError, "delta"),
    "not offered": (
        lambda: xent.losses.sigmoid_focal_loss(Z, Y, pos_weight=Z),
        TypeError,
        "pos_weight",
    ),
    "logits for probabilities": (
        lambda: xent.binary_cross_entropy(Z + 2, Y),
        ValueError,
        "binary_cross_entropy_with_logits",
    ),
    "one logit for a probability": (
        lambda: xent.binary_cross_entropy(torch.tensor([0.0, 1.0, 1.5]), Y[0]),
        ValueError,
        "1.5",
    ),
    "one sign for a probability": (
        lambda: xent.binary_cross_entropy(torch.tensor([0.0, 1.0, -1.0]), Y[0]),
        ValueError,
        "-1",
    ),
    "nan probability": (
        lambda: xent.binary_cross_entropy(Z * torch.nan, Y),
        ValueError,
        "`input` holds nan",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("size", [3, 200_000])
def test_a_bad_target_is_found_wherever_it_is(every_engine, size):
    engine, size = every_engine, min(size, 5000) if every_engine == "triton" else size
    z, t = torch.zeros(size), torch.zeros(size)
    t[-1] = 1.5
    for loss in (BCE, xent.losses.quality_focal_loss):
        for reduction in ("mean", "none"):
            with pytest.raises(ValueError, match=r"holds 1\.5"):
                loss(z, t, reduction=reduction, engine=engine)


def test_whole_numbers_are_weights(every_engine):
    z, t = pair(4, 3, dtype=torch.float32)
    for name in ("weight", "pos_weight"):
        found = BCE(z, t, **{name: torch.tensor([1, 0, 3])}, engine=every_engine)
        wide = {name: torch.tensor([1.0, 0.0, 3.0]).double()}
        truth = F.binary_cross_entropy_with_logits(z.double(), t.double(), **wide)
        torch.testing.assert_close(found.double(), truth, rtol=4e-7, atol=0)


@pytest.mark.parametrize("batched", [False, True])
def test_powers_and_products_at_the_edge(batched):
    """0 times infinity is 0, and a power of 0 has slope 0, also where values cannot be read."""
    run = torch.vmap if batched else lambda function: function
    inf = torch.inf
    factor = torch.tensor([0.0, 2.0, 0.0, 0.5, -1.0], dtype=torch.float64)
    value = torch.tensor([inf, inf, -inf, 3.0, inf], dtype=torch.float64)
    for some in (slice(None), slice(3, 4)):
        truth = torch.tensor([0.0, inf, 0.0, 1.5, -inf], dtype=torch.float64)[some]
        assert torch.equal(run(product)(factor[some], value[some]), truth)
    base = torch.tensor([0.0, 0.25, 4.0], dtype=torch.float64, requires_grad=True)
    for exponent, powers, slopes in (
        (0.5, [0.0, 0.5, 2.0], [0.0, 1.0, 0.25]),
        (2.0, [0.0, 0.0625, 16.0], [0.0, 0.5, 8.0]),
        (0.0, [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
    ):
        for some in (slice(None), slice(1, None)):
            raised = run(lambda x, e=exponent: power(x, torch.full_like(x, e)))(base[some])
            (slope,) = torch.autograd.grad(raised.sum(), base)
            assert raised.tolist() == powers[some]
            assert slope[some].tolist() == slopes[some]


def test_targets_outside_are_allowed_when_asked_for(every_engine):
    z, t = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 255.0])
    value = BCE(z, t, reduction="none", unnormalized=True, engine=every_engine)
    theirs = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    torch.testing.assert_close(value, theirs)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
def test_labels_of_any_type(every_engine, dtype):
    z, y = torch.randn(5, 4), torch.randint(2, (5, 4))
    assert same_bits(
        BCE(z, y.to(dtype), engine=every_engine), BCE(z, y.float(), engine=every_engine)
    )


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_a_mark_may_be_a_number_that_targets_round(every_engine, dtype):
    z, t = torch.tensor([1.0, 2.0]).to(dtype), torch.tensor([0.1, 0.7]).to(dtype)
    for loss in (BCE, xent.losses.quality_focal_loss):  # in float32 and in float64
        left = loss(z, t, ignore_value=0.1, reduction="none", engine=every_engine)
        assert left.tolist() == [0, loss(z[1:], t[1:], engine=every_engine).item()]


def test_a_loss_of_ones_own():
    @xent.element_loss
    def squared(e, scale: float = 1.0):
        """The Brier score."""
        return scale * e.residual**2

    z, t = pair(300, 200)
    value, grad = value_and_grad(squared, z, t, scale=3.0)
    p = torch.sigmoid(z)
    torch.testing.assert_close(value, 3 * ((p - t) ** 2).mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(grad, 6 * (p - t) * p * (1 - p) / z.numel(), rtol=1e-11, atol=1e-18)
    assert "scale" in str(squared.__signature__)
    assert copy.copy(squared.__doc__).startswith("The Brier score.")
    with pytest.raises(ValueError, match="first parameter"):
        xent.element_loss(lambda: None)


def test_the_form_of_a_loss_comes_through(core):
    """The native kernel computes the form; the other engines run the body."""

    @xent.element_loss(form=lambda: Form())
    def own(e):
        raise AssertionError("the kernel does not need the body")

    z, t = torch.randn(40), torch.rand(40)
    torch.testing.assert_close(own(z, t), F.binary_cross_entropy_with_logits(z, t))
