"""Losses of rows on Triton that are one number: by groups of rows, or in two sweeps."""

import math

import pytest
import torch

import xent
from benchmarks.harness.internals import launch_sizes
from tests.helpers import same_bits, value_and_grad, worst

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("on_triton")

from xent.engines.triton import launch, launch_sums, plans  # noqa: E402 - imports Triton

ON_TRITON = {"engine": "triton"}
F32 = torch.float32


@xent.row_loss(needs=("entropy", "mean", "top", "squares", "cubes"))
def everything(s):
    asked = s.entropy + 0.5 * s.mean + 0.3 * s.rest_top_logit + s.rest_squares + s.rest_cubes
    return asked - s.log_prob * s.miss + 0.1 * s.lse - 0.1 * s.target


@xent.row_loss(needs=("mean", "top"))
def asking(s):
    return 0.5 * s.mean + 0.3 * s.rest_top_logit - s.log_prob * s.miss + 0.1 * (s.lse - s.target)


def naive(s):
    """Lose digits in anything less than float64."""
    return (1 - s.log_prob.exp()) ** 1.5 * -s.log_prob


LOSSES = {
    "focal": xent.losses.focal_loss,
    "smoothing": lambda z, y, *w, **o: xent.cross_entropy(z, y, *w, label_smoothing=0.1, **o),
    "everything": everything,
    "asking": asking,
    "naive": xent.row_loss(naive),
}
# Blocks of 16 and 2 rows, and of one row in two tiles, in groups; rows, and those of a panel, that
# take two sweeps.
WAYS = {
    "short": (70, 40), "few": (9, 700), "two tiles": (3, 16384), "panel": (2, 21, 70),
    "long": (3, 17000),
}  # fmt: skip
TWO_SWEEPS = ("long", "panel")


@pytest.fixture(autouse=True)
def _small_device(monkeypatch):
    """Let few programs fill a device, so that a group has as many rows as it can."""
    monkeypatch.setattr(launch_sums, "few", lambda device: 1)


def test_a_row_has_the_same_bits_in_a_group_of_any_size(monkeypatch):
    z, y = torch.randn(17, 700).bfloat16(), torch.randint(700, (17,))
    found = []
    for blocks in (1, 2, 4):
        with launch_sizes(MOST_BLOCKS=blocks):
            found.append(value_and_grad(xent.losses.focal_loss, z, y, **ON_TRITON))
    monkeypatch.setattr(plans.Plan, "_blocks_of_group", lambda *_: 0)
    with launch_sizes(MOST_BLOCKS=1):
        found.append(value_and_grad(xent.losses.focal_loss, z, y, **ON_TRITON))  # two sweeps
    for value, grad in found[1:]:
        assert same_bits(value, found[0][0])
        assert same_bits(grad, found[0][1])


@pytest.fixture
def swept(monkeypatch):
    """The names of the sweeps that a call launches."""
    names = []
    for name in ("_sweep", "_second_sweep", "_in_groups"):
        real = getattr(launch_sums.SumLaunch, name)
        monkeypatch.setattr(
            launch_sums.SumLaunch, name,
            lambda self, *a, real=real, name=name: (names.append(name), real(self, *a))[1],
        )  # fmt: skip
    return names


def problem(way, dtype, spread=3.0):
    shape = WAYS[way]
    z = (torch.randn(shape) * spread).to(dtype)
    y = torch.randint(shape[1], (shape[0], *shape[2:]))
    y.view(-1)[1] = -100
    return z, y


def truth(loss, z, y, **options):
    wide = {k: x.double() if isinstance(x, torch.Tensor) else x for k, x in options.items()}
    return value_and_grad(loss, z.double(), y, engine="reference", **wide)


def check(found, expected, dtype):
    """Compare values and gradients; terms of a gradient, which are float32, may cancel."""
    (value, grad), (right, slope) = found, expected
    assert worst(value, right) <= (4 if dtype == F32 else 0.51)
    digits = 6e-6 if dtype == F32 else 0.51 * torch.finfo(dtype).eps
    lowest = 0.51 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    allowed = digits * slope.abs() + 2**-23 * slope.abs().amax(1, keepdim=True) + lowest
    off = (grad.double() - slope).abs()
    assert bool((off <= allowed).all()), (off / allowed).max()


@pytest.mark.sample(8)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16], ids=str)
def test_every_way(way, loss, dtype, swept):
    z, y = problem(way, dtype)
    for options in ({}, {"reduction": "sum", "row_weight": torch.linspace(0, 2, y.numel())}):
        if "row_weight" in options:
            options["row_weight"] = options["row_weight"].view(y.shape)
        swept.clear()
        found = value_and_grad(LOSSES[loss], z, y, **options, **ON_TRITON)
        one = ["_in_groups"] * 2
        two = ["_sweep", "_second_sweep", "_second_sweep"]  # the last finds its work done
        assert swept == (two if way in TWO_SWEEPS else one)
        check(found, truth(LOSSES[loss], z, y, **options), dtype)


@pytest.mark.parametrize("way", ["few", "short"])
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_options(way, dtype):
    z, y = problem(way, dtype)
    n, v = z.shape
    y[:2] = torch.tensor([5, 2])
    weight = torch.linspace(0.5, 2, v)
    cases = [
        {"softcap": 3.0, "logit_scale": torch.linspace(0.5, 2, n), "class_bias": weight},
        {"weight": weight},
        {"weight": weight, "label_smoothing": 0.2},
        {"normalizer": "count", "weight": weight, "ignore_index": 2},
        {"normalizer": 7.5, "z_loss": 1e-2},
        {"empty": "zero", "z_loss": 1.0, "softcap": 5.0},
    ]
    for options in cases:
        found = value_and_grad(xent.cross_entropy, z, y, **options, **ON_TRITON)
        check(found, truth(xent.cross_entropy, z, y, **options), dtype)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_targets(table, weighted, swept):
    z, q = torch.randn(8, 30) * 3, torch.softmax(torch.randn(8, 30) * 2, 1)
    y, weight = torch.randint(30, (8,)), torch.linspace(0.5, 2, 30)
    options = {"weight": weight} if weighted else {}
    if table:
        q = y
        options["label_smoothing"] = 0.1
    found = value_and_grad(xent.cross_entropy, z, q, **options, **ON_TRITON)
    assert set(swept) == {"_in_groups"}
    expected = truth(xent.cross_entropy, z, q if table else q.double(), **options)
    check(found, expected, F32)


def test_soft_targets_with_weights_of_rows_leave_out_what_weighs_nothing():
    z, q = torch.randn(6, 10), torch.softmax(torch.randn(6, 10), 1)
    z[2], q[3] = math.nan, math.nan
    rows = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.5, 1.0])
    value, grad = value_and_grad(xent.cross_entropy, z, q, row_weight=rows, **ON_TRITON)
    kept = rows > 0
    expected, slope = truth(xent.cross_entropy, z[kept], q[kept].double(), row_weight=rows[kept])
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad[kept].double(), slope, rtol=4e-6, atol=1e-9)
    assert not bool(grad[~kept].any())


@pytest.mark.sample(3)
@pytest.mark.parametrize("way", ["few", "short", "panel"])
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_slopes_and_a_second_backward(way, dtype):
    z, y = problem(way, dtype)
    for slope in (1.0, 3.0, 3.0, -0.3, 1.0):
        leaf = z.clone().requires_grad_()
        loss = xent.losses.focal_loss(leaf, y, **ON_TRITON)
        given = torch.tensor(slope, dtype=dtype)
        (first,) = torch.autograd.grad(loss, leaf, given, retain_graph=True)
        bits = first.clone()
        (again,) = torch.autograd.grad(loss, leaf, given)
        assert same_bits(again, bits)
        assert again.data_ptr() != first.data_ptr()
        wide = z.double().requires_grad_()
        exactly = xent.losses.focal_loss(wide, y, engine="reference")
        (right,) = torch.autograd.grad(exactly, wide, given.double())
        bound = {"rtol": 6e-6} if dtype == F32 else {"rtol": 2**-8}
        torch.testing.assert_close(again.double(), right, **bound, atol=1e-9)


@pytest.mark.sample(3)
@pytest.mark.parametrize("way", ["few", "short"])
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16], ids=str)
def test_logits_of_any_size(way, dtype):
    """Rows of a certain target, of a hopeless one, and of logits that have few digits left."""
    shape = WAYS[way]
    z, y = torch.randn(shape), torch.zeros(shape[0], dtype=torch.int64)
    large = 6e4 if dtype == torch.float16 else 1e5
    for n, (shift, lead) in enumerate([(0, 60), (0, -60), (large, 0), (-large, 9), (30, 1e4)]):
        z[n] += shift
        z[n, 0] += lead
    z = z.to(dtype)
    for loss in LOSSES.values():
        found = value_and_grad(loss, z, y, reduction="sum", **ON_TRITON)
        check(found, truth(loss, z, y, reduction="sum"), dtype)


BODIES = {
    "difference": lambda s: s.lse - s.target,
    "pole": lambda s: -torch.log(-torch.expm1(s.log_prob)),  # of a certain target
    "miss": lambda s: (1 - torch.exp(s.target - s.lse)) ** 2 * (s.lse - s.target),
    "power": lambda s: (1 - s.prob**0.7) / 0.7,
}
LEADS = (-60, -20, -4, 0, 0.5, 2, 4, 6, 9, 20, 30, 60, 120)


@pytest.mark.sample(4)
@pytest.mark.parametrize("body", [*LOSSES, *BODIES])
@pytest.mark.parametrize("way", ["few", "short"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_lead_of_the_target(body, way, dtype):
    """A target that is likelier than each other class, but less likely than all of them, too."""
    loss = LOSSES[body] if body in LOSSES else xent.row_loss(BODIES[body])
    z, y = torch.randn(len(LEADS), WAYS[way][1]), torch.arange(len(LEADS))
    for n, lead in enumerate(LEADS):
        z[n, n] = z[n].max() + lead
    z = z.to(dtype)
    found = value_and_grad(loss, z, y, reduction="sum", **ON_TRITON)
    check(found, truth(loss, z, y, reduction="sum"), dtype)


@pytest.mark.sample(2)
@pytest.mark.parametrize("way", ["few", "short"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_broken_row_does_not_change_the_others(way, number):
    z, y = problem(way, torch.bfloat16)
    for loss in LOSSES.values():
        _, healthy = value_and_grad(loss, z, y, reduction="sum", **ON_TRITON)
        broken = z.clone()
        broken[2, 3] = number
        broken[1, 0] = number  # an ignored row may hold anything
        _, grad = value_and_grad(loss, broken, y, reduction="sum", **ON_TRITON)
        assert bool(grad[2].isnan().all())
        others = torch.arange(len(y)) != 2
        assert same_bits(grad[others], healthy[others])


def test_masked_classes():
    z, y = problem("few", F32)
    z[:, 100:] = -math.inf
    y = torch.where(y < 0, y, y % 100)
    for loss in LOSSES.values():
        found = value_and_grad(loss, z, y, **ON_TRITON)
        check(found, truth(loss, z, y), F32)
        assert not bool(found[1][:, 100:].any())


@pytest.mark.parametrize("way", ["few", "short"])
def test_a_gradient_over_its_logits(way):
    hidden, weight = torch.randn(20, 6), torch.randn(WAYS[way][1], 6)
    y = torch.randint(len(weight), (20,))
    y[3] = -100
    for options in ({}, {"softcap": 5.0, "logit_scale": 2.0}):
        for loss in (xent.losses.focal_loss, everything, asking):
            grads = []
            for dtype, engine in ((F32, "triton"), (torch.float64, "reference")):
                h, w = (x.to(dtype).requires_grad_() for x in (hidden, weight))
                value = loss(xent.LinearLogits(h, w), y, engine=engine, **options)
                grads.append(torch.autograd.grad(value, (h, w)))
            for ours, theirs in zip(*grads, strict=True):
                torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=1e-6)


def test_a_loss_without_a_gradient_sweeps_once(swept):
    for way in WAYS:
        z, y = problem(way, F32)
        swept.clear()
        with torch.no_grad():
            value = xent.losses.focal_loss(z, y, **ON_TRITON)
        assert swept == ["_sweep"]
        assert worst(value, truth(xent.losses.focal_loss, z, y)[0]) <= 2


def test_a_body_that_is_no_program_is_computed_from_statistics(monkeypatch):
    found = []
    real = launch.Launch.find
    monkeypatch.setattr(launch.Launch, "find", lambda self: (found.append(1), real(self))[1])
    loss = xent.row_loss(lambda s: s.nll * s.nll.detach().mean())
    z, y = problem("few", F32)
    value_and_grad(loss, z, y, **ON_TRITON)
    assert found


def test_rows_of_many_tiles():
    z, y = problem("long", F32)
    z, y = z[:, :600], y % 600
    with launch_sizes(TILES=(64,)):
        found = value_and_grad(xent.losses.focal_loss, z, y, **ON_TRITON)
    check(found, truth(xent.losses.focal_loss, z, y), F32)
