"""The native kernel of single elements: digits of its powers, instruction sets, memory."""

import pytest
import torch

from tests.helpers import same_bits, value_and_grad
from xent import losses
from xent.engines import core as native
from xent.engines import elements
from xent.engines.elements.problem import Form
from xent.frames.element_checks import make_problem

BCE = losses.binary_cross_entropy_with_logits
FOCAL, ASYMMETRIC = losses.sigmoid_focal_loss, losses.asymmetric_loss
# Powers that take products and a square root, none, and one that takes logarithms.
POWERS = {
    "focal 3/2": (FOCAL, {"gamma": 1.5}),
    "focal 5/2": (FOCAL, {"gamma": 2.5}),
    "asymmetric": (ASYMMETRIC, {}),
    "asymmetric, halves": (ASYMMETRIC, {"gamma_neg": 2.5, "gamma_pos": 1.5, "clip": 0.2}),
    "asymmetric, one power": (ASYMMETRIC, {"gamma_neg": 1.5, "gamma_pos": 0.0}),
    "asymmetric, no margin": (ASYMMETRIC, {"clip": 0.0}),
    "asymmetric, detached": (ASYMMETRIC, {"detach_focus": True}),
    "asymmetric, any power": (ASYMMETRIC, {"gamma_neg": 1.2}),
}
EACH = pytest.mark.parametrize("name", POWERS)
SIZE = 3 * 2048 + 77


def labels_and_logits(spread):
    """Labels 0 and 1 in all blocks of the kernel but the last two, which have soft targets, too."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(SIZE, generator=generator) * spread
    t = (torch.rand(SIZE, generator=generator) < 0.5).float()
    t[2 * 2048 :] = torch.rand(SIZE - 2 * 2048, generator=generator)
    return z, t


@EACH
@pytest.mark.parametrize("spread", [3.0, 30.0])
def test_digits_of_powers(core, name, spread):
    """Each factor of a product may be wrong by three units, and the logits by half a unit."""
    loss, options = POWERS[name]
    z, t = labels_and_logits(spread)
    z, t = z[: 2 * 2048], t[: 2 * 2048]
    found = value_and_grad(loss, z, t, reduction="none", engine="native", **options)
    exact = {"reduction": "none", "engine": "reference", **options}
    truth = value_and_grad(loss, z.double(), t.double(), **exact)
    beside = value_and_grad(loss, z.double() * (1 + 2**-24), t.double(), **exact)
    for a, b, c in zip(found, truth, beside, strict=True):
        rounding = 3 * (4 + 2) * (b.abs() * 2**-23 + 2.0**-149)  # at most power 4
        assert bool(((a.double() - b).abs() <= rounding + 4 * (c - b).abs()).all())


@EACH
def test_instruction_sets_have_the_same_bits(core, name):
    loss, options = POWERS[name]
    z, t = labels_and_logits(20.0)
    before, results = native.isa, []
    try:
        for isa in native.isas():
            native.set_isa(isa)
            found = value_and_grad(loss, z, t, engine="native", **options)
            smooth = value_and_grad(BCE, z, t, label_smoothing=0.1, engine="native")
            results.append((*found, *smooth))
    finally:
        native.set_isa(before)
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(other, results[0], strict=True))


@EACH
def test_elements_do_not_see_each_other(core, name):
    """Blocks of labels take another way than blocks with soft targets or huge logits."""
    loss, options = POWERS[name]
    options = {"reduction": "none", "engine": "native", **options}
    z, t = labels_and_logits(3.0)
    z[100], t[200] = 200.0, 0.25
    whole = value_and_grad(loss, z, t, **options)
    kept = torch.ones(SIZE, dtype=torch.bool)
    kept[[100, 200]] = False
    alone = value_and_grad(loss, z[kept], t[kept], **options)
    for a, b in zip(whole, alone, strict=True):
        torch.testing.assert_close(a[kept], b, rtol=1e-4, atol=1e-7)


def test_not_a_number_is_seen_in_blocks_of_labels(core):
    z, t = labels_and_logits(3.0)
    z[:2] = torch.nan
    t[:2] = torch.tensor([0.0, 1.0])
    for loss, options in POWERS.values():
        found = value_and_grad(loss, z, t, reduction="none", engine="native", **options)
        assert all(x[:2].isnan().all() and x[2:].isfinite().all() for x in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_are_in_memory_of_the_pool(core, dtype):
    z = torch.zeros(native.SMALLEST, dtype=dtype)
    values = BCE(z, z, reduction="none", engine="native")
    blocks = [block.address for block in native.pool._blocks]
    assert values.untyped_storage().data_ptr() in blocks


def test_slow_arithmetic_is_left_to_the_reference(core):
    """Without fused multiply-add, kernels are slow in float64, in which they sweep wide targets."""
    before = native.isa
    try:
        native.set_isa("baseline")
        if torch.float64 in native.fast:
            pytest.skip("this processor always has fused multiply-add")
        z = torch.zeros(3)
        for t, engine in ((z, "native"), (z.double(), "reference")):
            problem = make_problem(z, t, None, None, None)._replace(form=Form())
            assert elements.choose(problem, "auto").engine == engine
    finally:
        native.set_isa(before)


@pytest.mark.parametrize("amount", [0.1, 1e-3, 1e-6])
def test_a_little_smoothing_keeps_its_digits(every_engine, amount):
    """The share of the other label has digits that 1 minus a rounded share has not."""
    z, t = labels_and_logits(20.0)
    z, t = z[:2048], t[:2048]
    options = {"reduction": "none", "label_smoothing": amount, "engine": every_engine}
    found = value_and_grad(BCE, z, t, **options)
    yes, no = (x * (1 - amount) + amount / 2 for x in (t.double(), 1 - t.double()))
    z = z.double()
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    value = -yes * torch.nn.functional.logsigmoid(z) - no * torch.nn.functional.logsigmoid(-z)
    for a, b, size in zip(found, (value, no * p - yes * q), (value, no * p + yes * q), strict=True):
        assert bool(((a.double() - b).abs() <= 6 * 2.0**-23 * size).all())
