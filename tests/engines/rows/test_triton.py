"""The kernels for GPUs: tiles of a matrix, one sweep instead of two, no wait for the device.

Their results for a row are tested with those of the other engines: test_laws, test_accuracy,
test_requested_statistics, test_native_bits.
"""

import math
import weakref

import pytest
import torch

import xent
from tests.helpers import exact, nats_below_top, same_bits, value_and_grad, worst
from xent.engines import core, modes, triton
from xent.engines.rows import MODULES

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("on_triton")
interpreted = pytest.mark.skipif(not triton.INTERPRETED, reason="for Triton's interpreter")

NATS = 1.25  # half an ulp per nat, and an eighth for log2(e): see test_accuracy
ON_TRITON = {"engine": "triton"}


def truth_of(z, y):
    """Return loss and gradient of each row from log-odds in float64."""
    wide = z.double()
    others = torch.logsumexp(wide.scatter(1, y[:, None], -math.inf), 1)
    d = wide.gather(1, y[:, None])[:, 0] - others
    slope = torch.softmax(wide, 1).scatter(1, y[:, None], -torch.sigmoid(-d)[:, None])
    return torch.nn.functional.softplus(-d, threshold=1e9), slope


# 16 rows a tile and less than one of them; several tiles of rows; one row a tile; rows of two tiles
# (two sweeps) and of two looks (one sweep), whose last tiles are nearly empty
SHAPES = [(3, 2), (300, 7), (70, 100), (5, 1000), (3, 8192), (2, 8193), (2, 16385)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["sum", "none"])  # one sweep; two
def test_every_way_of_cutting_up_rows(shape, reduction):
    n, v = shape
    z, y = torch.randn(n, v) * 3, torch.randint(v, (n,))
    y[1] = -100
    z[0, y[0]] += 25
    value, grad = value_and_grad(xent.cross_entropy, z, y, reduction=reduction, **ON_TRITON)
    loss, slope = truth_of(z, y.clamp(min=0))
    loss[1], slope[1] = 0, 0
    assert worst(value, loss.sum() if reduction == "sum" else loss) <= 4
    assert worst(grad, slope, nats_below_top(z) * NATS) <= 4


@pytest.mark.sample(3)
@pytest.mark.parametrize("v", [7, 100, 9000, 17000])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_row_has_the_same_bits_in_any_company(v, reduction):
    z, y = torch.randn(9, v), torch.randint(v, (9,))
    whole = value_and_grad(xent.cross_entropy, z, y, reduction="none", **ON_TRITON)[0]
    _, grad = value_and_grad(xent.cross_entropy, z, y, reduction=reduction, **ON_TRITON)
    for part in (slice(4, 5), slice(3, 9)):
        alone = z[part], y[part]
        assert same_bits(xent.cross_entropy(*alone, reduction="none", **ON_TRITON), whole[part])
        _, g = value_and_grad(xent.cross_entropy, *alone, reduction=reduction, **ON_TRITON)
        assert same_bits(g, grad[part])


LAYOUTS = {
    "panel": lambda z: z,  # (N, C, d): d rows side by side
    "few": lambda z: z[..., :3],  # too few of them
    "channels last": lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1),
    "every other": lambda z: z[:, ::2],
    "transposed": lambda z: z.transpose(0, 2).contiguous().transpose(0, 2),
    "expanded": lambda z: z[:1].expand(4, -1, -1),
    "shifted": lambda z: z[:, 1:, 1:],
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_every_layout(layout, reduction):
    z = LAYOUTS[layout](torch.randn(4, 70, 40))
    y = torch.randint(z.shape[1], (4, z.shape[2]))
    options = {"reduction": reduction, "row_weight": torch.rand(y.shape)}
    value, grad = value_and_grad(xent.cross_entropy, z, y, **options, **ON_TRITON)
    expected, slope = value_and_grad(
        xent.cross_entropy, z.double(), y, engine="reference", **options
    )
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), slope, rtol=2e-6, atol=1e-9)


def test_the_axis_whose_numbers_are_adjacent():
    from xent.engines.triton.layout import alignment

    z = torch.zeros(64, 64)
    assert alignment([z]) == 4
    assert alignment([z.t()]) == -1
    assert alignment([z, z.t()]) == 1
    assert alignment([z[:, ::2]]) == 1  # neither rows nor classes
    assert alignment([z.t(), z[:, ::2]]) == 1


@interpreted
def test_offsets_beyond_31_bits():
    try:
        memory = torch.empty(2**31 + 16, dtype=torch.bfloat16)  # of which two pages are touched
    except RuntimeError:
        pytest.skip("no 4 GB of addresses")
    z = memory.as_strided((2, 8), (2**31, 1))
    z.copy_(torch.randn(2, 8))
    y = torch.tensor([3, 5])
    for reduction in ("sum", "none"):
        value, grad = value_and_grad(xent.cross_entropy, z, y, reduction=reduction, **ON_TRITON)
        loss, slope = exact(z, y)
        assert worst(value, loss.sum() if reduction == "sum" else loss) <= 0.51
        assert worst(grad, slope) <= 0.51


EVERYTHING = {"entropy": True, "mean": True, "top": True}


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("masked", [False, True])  # the second shard has no class to offer
def test_shards_merge_to_the_whole(soft, masked):
    z, y = torch.randn(5, 30) * 4, torch.randint(30, (5,))
    y[0] = -100
    if masked:
        z[:, 10:17] = -math.inf
        y = torch.where(y > 9, 3, y)
    q = torch.softmax(torch.randn(5, 30), 1).masked_fill(z == -math.inf, 0)
    target = q if soft else y
    whole = xent.statistics(z.double(), target, engine="reference", **EVERYTHING)
    merged = None
    for cut in (slice(0, 10), slice(10, 17), slice(17, 30)):
        part = xent.statistics(
            z[:, cut], q[:, cut] if soft else y, first_class=cut.start, **ON_TRITON, **EVERYTHING
        )
        merged = part if merged is None else merged.merge(part)
    for name in ("log_odds", "log_prob", "target", "lse", "mass", "entropy", "mean", "support"):
        ours, theirs = getattr(merged, name)[1:], getattr(whole, name)[1:]
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=name)
    assert torch.equal(merged.top[1:], whole.top[1:])
    if not soft:
        assert merged.log_prob[0] == merged.mass[0] == 0


def test_logits_behind_a_head():
    hidden, weight = torch.randn(20, 6), torch.randn(30, 6)
    y = torch.randint(30, (20,))
    y[3] = -100
    for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.1, "softcap": 5.0}):
        grads = []
        for dtype, engine in ((torch.float32, "triton"), (torch.float64, "reference")):
            h, w = (x.to(dtype).requires_grad_() for x in (hidden, weight))
            loss = xent.cross_entropy(xent.LinearLogits(h, w), y, engine=engine, **options)
            grads.append(torch.autograd.grad(loss.sum(), (h, w)))
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


# ---- rows without numbers -----------------------------------------------------------------------

SUMS = [
    lambda z, y: xent.cross_entropy(z, y, reduction="sum", **ON_TRITON),  # one sweep
    lambda z, y: xent.statistics(z, y, top=True, entropy=True, **ON_TRITON).entropy.sum(),
    lambda z, y: xent.cross_entropy(z, torch.ones_like(z), reduction="none", **ON_TRITON).sum(),
]


@pytest.mark.parametrize("loss", SUMS, ids=["one sweep", "entropy", "soft"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("places", [[0], [8], [3, 4], slice(None)], ids=str)
def test_a_broken_row_is_nan_and_does_not_change_the_others(loss, number, places):
    z, y = torch.randn(3, 9), torch.tensor([2, 4, 8])
    _, healthy = value_and_grad(loss, z, y)
    z[1, places] = number
    _, grad = value_and_grad(loss, z, y)
    assert bool(grad[1].isnan().all())
    assert same_bits(grad[[0, 2]], healthy[[0, 2]])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("v", [1, 9, 8200])
def test_the_largest_class_exists_even_beside_nan(soft, v):
    z = torch.randn(9, v)
    for n, place in enumerate([0, 1, v // 2, v - 2, v - 1, slice(None)]):
        z[n, place if isinstance(place, slice) else place % v] = math.nan
    z[6] = -math.inf
    z[7, : v - 1] = math.nan
    z[8, v // 2] = 9
    target = torch.ones_like(z) if soft else torch.zeros(9, dtype=torch.int64)
    s = xent.statistics(z, target, top=True, **ON_TRITON)
    for place in (s.top,) if soft else (s.top, s.rest_top):
        assert bool(((place >= 0) & (place < v)).all())
    assert s.top[8] == v // 2


def test_a_row_of_masked_classes_has_no_gradient_in_either_way():
    z, y = torch.randn(3, 9), torch.tensor([2, 4, 8])
    z[1] = -math.inf
    z[2, :8] = -math.inf  # none but its target
    grads = [
        value_and_grad(xent.cross_entropy, z, y, reduction=reduction, **ON_TRITON)[1]
        for reduction in ("sum", "none")
    ]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=0, equal_nan=True)
    others = torch.arange(9) != y[:, None]
    assert bool((grads[0][1:][others[1:]] == 0).all())


# ---- one sweep ----------------------------------------------------------------------------------


def takes(monkeypatch, name):
    """Count the calls of a function of the engine."""
    calls, real = [], getattr(MODULES["triton"], name)

    def counted(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(MODULES["triton"], name, counted)
    return calls


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum"},
        {"weight": torch.linspace(0.5, 2, 6)},
        {"row_weight": torch.linspace(0, 3, 8)},
        {"normalizer": 5.0},
        {"normalizer": "count", "weight": torch.linspace(0.5, 2, 6), "ignore_index": 2},
        {"softcap": 3.0, "logit_scale": torch.linspace(0.5, 2, 8), "class_bias": torch.arange(6.0)},
        {"empty": "zero"},
    ],
    ids=lambda options: "+".join(options) or "mean",
)
def test_one_sweep_is_two(monkeypatch, options):
    ahead = takes(monkeypatch, "total_ahead")
    z, y = torch.randn(8, 6) * 3, torch.randint(6, (8,))
    options = {k: v.to(z.device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    value, grad = value_and_grad(xent.cross_entropy, z, y, **options, **ON_TRITON)
    assert len(ahead) == 1
    same = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    expected, slope = value_and_grad(xent.cross_entropy, z.double(), y, engine="reference", **same)
    torch.testing.assert_close(value.double(), expected, rtol=2e-7, atol=0)
    torch.testing.assert_close(grad.double(), slope, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize(
    "loss", ["logit_adjusted_loss", "vs_loss"]
)  # cross-entropy of other logits
def test_losses_that_take_one_sweep(monkeypatch, loss):
    ahead = takes(monkeypatch, "total_ahead")
    counts = torch.tensor([90.0, 9.0, 1.0])
    name = "prior" if loss == "logit_adjusted_loss" else "counts"
    z, y = torch.randn(5, 3), torch.randint(3, (5,))
    value, grad = value_and_grad(getattr(xent.losses, loss), z, y, **{name: counts}, **ON_TRITON)
    assert len(ahead) == 1
    expected, slope = value_and_grad(
        getattr(xent.losses, loss), z.double(), y, **{name: counts.double()}
    )
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), slope, rtol=4e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_slope_and_a_second_backward(dtype):
    z = (torch.randn(6, 50) * 4).to(dtype).requires_grad_()
    y = torch.randint(50, (6,))
    loss = xent.cross_entropy(z, y, reduction="sum", **ON_TRITON)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    bits = first.clone()
    (third,) = torch.autograd.grad(loss * 3, z, retain_graph=True)
    (again,) = torch.autograd.grad(loss, z)
    assert again.data_ptr() != first.data_ptr()
    assert same_bits(first, bits)
    assert same_bits(again, bits)
    slope = exact(z.detach(), y)[1] * 3
    assert worst(third, slope, nats_below_top(z.detach()) * NATS) <= (
        4 if third.itemsize == 4 else 0.6
    )


@pytest.mark.parametrize("changed", ["logits", "labels", "row_weight", "normalizer"])
def test_what_changes_before_backward_is_noticed(changed):
    leaf = torch.randn(6, 50, requires_grad=True)
    given = {
        "logits": leaf * 1,
        "labels": torch.randint(50, (6,)),
        "row_weight": torch.rand(6, dtype=torch.float64),
        "normalizer": torch.tensor(5.0, dtype=torch.float64),
    }
    z, y, row_weight, normalizer = given.values()
    loss = xent.cross_entropy(z, y, row_weight=row_weight, normalizer=normalizer, **ON_TRITON)
    given[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_slopes_other_than_1_are_rounded_once():
    z, y = (torch.randn(20, 50) * 6).bfloat16(), torch.randint(50, (20,))
    _, grad = value_and_grad(
        lambda z: 0.3 * xent.cross_entropy(z, y, reduction="sum", **ON_TRITON).double(), z
    )
    slope = exact(z, y)[1] * torch.tensor(0.3).bfloat16().double()  # of a loss in bfloat16
    assert worst(grad, slope, nats_below_top(z) * 2**-14) <= 0.51


def test_what_is_ready_is_left_alone():
    from xent.engines.rows.autograd import Total
    from xent.engines.rows.problem import Settings, Tensors
    from xent.engines.rows.programs import NLL

    tensors, engine = Tensors(torch.randn(5, 7), torch.randint(7, (5,))), MODULES["triton"]
    total = Total(engine, NLL, Settings(False), 0, torch.tensor(4), "nan", torch.float32, None)
    right = torch.empty_like(tensors.logits)
    engine.total(tensors, None, total, right)
    known = torch.full_like(right, 7.0)  # no gradient: it shows whether anything is written

    def follow(slope, gradient):
        return engine.follow(tensors, None, total, torch.tensor(slope), gradient)

    assert follow(1.0, known) is known
    assert bool((known == 7).all())
    assert follow(-2.0, known) is known
    torch.testing.assert_close(known, -2 * right, rtol=2e-7, atol=0)
    assert same_bits(follow(1.0, None), right)


@pytest.mark.parametrize("classes", [7, 3000])
def test_the_gradient_may_take_the_place_of_the_logits(classes):
    from xent.engines.rows import TOTALS
    from xent.engines.rows.autograd import Total
    from xent.engines.rows.problem import Settings, Tensors
    from xent.engines.rows.programs import NLL

    tensors = Tensors(torch.randn(5, classes), torch.randint(classes, (5,)))
    for engine in TOTALS.values():
        total = Total(engine, NLL, Settings(False), 0, torch.tensor(4), "nan", torch.float32, None)
        apart, over = torch.empty_like(tensors.logits), tensors.logits.clone()
        loss = engine.total(tensors, None, total, apart)
        assert same_bits(engine.total(tensors._replace(logits=over), None, total, over), loss)
        assert same_bits(over, apart)


def test_second_derivatives_go_by_the_reference():
    z = torch.randn(3, 4, requires_grad=True)
    y = torch.tensor([1, -100, 3])
    loss = xent.cross_entropy(z, y, **ON_TRITON)
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    (twice,) = torch.autograd.grad(grad.square().sum(), z)
    wide = z.detach().double().requires_grad_()
    (g,) = torch.autograd.grad(xent.cross_entropy(wide, y), wide, create_graph=True)
    (expected,) = torch.autograd.grad(g.square().sum(), wide)
    torch.testing.assert_close(twice.double(), expected, rtol=1e-5, atol=1e-7)


@interpreted
def test_a_loss_in_the_middle_of_a_model(monkeypatch):
    layer = torch.nn.Linear(5, 9)
    x, y = torch.randn(7, 5), torch.randint(9, (7,))
    grads = []
    for engine in ("triton", "native" if core.available() else "reference"):
        layer.zero_grad()
        a = xent.cross_entropy(layer(x), y, engine=engine)
        b = xent.cross_entropy(layer(2 * x), y, reduction="sum", engine=engine)
        (a + 0.01 * b).backward()
        grads.append(layer.weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


def test_inplace_backward_writes_over_the_logits():
    leaf, y = torch.randn(6, 50), torch.randint(50, (6,))
    _, expected = value_and_grad(xent.cross_entropy, leaf, y, **ON_TRITON)
    leaf.requires_grad_()
    z = leaf * 1
    where = z.data_ptr()
    seen = []
    z.register_hook(lambda g: seen.append(g.data_ptr()))
    xent.cross_entropy(z, y, inplace_backward=True, **ON_TRITON).backward()
    assert seen == [where]
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-9)


# ---- the choice ---------------------------------------------------------------------------------


@interpreted
def test_why_it_is_taken_or_not(monkeypatch):
    z, y = torch.randn(2, 3), torch.tensor([0, 1])
    assert "Triton kernels in Triton's interpreter" in str(xent.explain(z, y, engine="triton"))
    assert xent.explain(z, y).engine != "triton"  # on a CPU only `engine="triton"` chooses it
    with pytest.raises(
        ValueError, match=r"engine=\"triton\" cannot do this: logits of torch.float6"
    ):
        xent.cross_entropy(z.double(), y, engine="triton")
    monkeypatch.setattr(triton, "INTERPRETED", False)
    with pytest.raises(ValueError, match="the tensors are on cpu"):
        xent.cross_entropy(z, y, engine="triton")
    monkeypatch.setattr(triton, "INSTALLED", False)
    with pytest.raises(ValueError, match="pip install triton"):
        xent.cross_entropy(z, y, engine="triton")


@pytest.mark.sample(1)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fullgraph_and_export(reduction):
    torch._dynamo.reset()
    z, y = torch.randn(6, 9), torch.tensor([0, 8, -100, 3, 3, 1])

    class Model(torch.nn.Module):
        def forward(self, z, y):
            return xent.cross_entropy(z, y, reduction=reduction, label_smoothing=0.1, **ON_TRITON)

    model = Model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    a, da = value_and_grad(compiled, z, y)
    b, db = value_and_grad(model, z, y)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(da, db, rtol=1e-5, atol=1e-7)
    exported = torch.export.export(model, (z, y)).module()
    torch.testing.assert_close(exported(z, y), b, rtol=1e-6, atol=1e-7)


# ---- nobody waits -------------------------------------------------------------------------------

CALLS = [
    (xent.cross_entropy, {}),
    (xent.cross_entropy, {"reduction": "none"}),
    (xent.cross_entropy, {"label_smoothing": 0.1, "z_loss": 1e-4, "empty": "zero"}),
    (xent.cross_entropy, {"ignore_index": 3, "normalizer": 7, "softcap": 5.0, "logit_scale": 2.0}),
    (xent.losses.focal_loss, {}),
    (xent.losses.poly1_loss, {}),
    (xent.losses.generalized_cross_entropy, {}),
    (xent.losses.crammer_singer_loss, {}),
]
CALLS = pytest.mark.parametrize(
    ("loss", "options"), CALLS, ids=lambda x: "+".join(x) if isinstance(x, dict) else x.__name__
)


@interpreted
@CALLS
def test_no_number_is_looked_at(monkeypatch, loss, options):
    """On a GPU, reading a number on the host would wait, and no graph could be captured."""

    def look(*_):
        raise AssertionError("somebody looked")

    loss(torch.randn(2, 3), torch.tensor([0, 1]), **ON_TRITON)  # what is imported or set up once
    z, y = torch.randn(6, 9, requires_grad=True), torch.randint(9, (6,))
    for module in (modes, *(MODULES.values()), xent.frames.reduction, xent.hyperparameters):
        monkeypatch.setattr(module, "can_look_at", lambda _: False, raising=False)
    from triton.runtime import interpreter  # which looks at the tensors of its language only

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, look)
    value = loss(z, y, **options, **ON_TRITON)
    (grad,) = torch.autograd.grad(value, z, torch.ones_like(value))
    monkeypatch.undo()
    assert interpreter is not None
    assert bool(grad.any())


@interpreted
@CALLS
def test_everything_is_on_the_device(monkeypatch, loss, options):
    """With fake tensors of a GPU that is missing: shapes and devices alone; no kernel runs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from xent.engines.triton import launch, layout

    devices = []
    monkeypatch.setattr(modes, "_a_tracer_is_active", lambda: False)
    monkeypatch.setattr(triton, "obstacle_of", lambda _: None)
    monkeypatch.setattr(layout, "address", lambda _: 0)
    monkeypatch.setattr(launch.Kernel, "__call__", lambda kernel, *_: devices.append(kernel.device))
    with FakeTensorMode(), torch.no_grad():
        z, y = torch.randn(6, 9, device="cuda"), torch.randint(9, (6,), device="cuda")
        value = loss(z, y, **options)
    assert value.device.type == "cuda"
    assert devices
    assert {device.type for device in devices} == {"cuda"}


def test_a_kept_loss_keeps_no_logits():
    logits = torch.randn(4, 5, requires_grad=True) * 1
    loss = xent.cross_entropy(logits, torch.tensor([0, 1, 2, 3]), **ON_TRITON)
    where = weakref.ref(logits)
    loss.backward()
    del logits
    assert where() is None
    assert loss.grad_fn is not None
