"""Bodies as programs: which can be recorded, what they compute, and when they are kept."""

import random

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import same_bits, value_and_grad
from xent.engines.rows.programs import LOG_LOSS, NLL, record
from xent.engines.rows.recorder import Outside, Recorder
from xent.losses import CATALOG

SCALE = 2.0


def of_a_global(s):
    return SCALE * s.nll


def with_a_helper(s):
    return of_a_global(s) + 1


BODIES = {
    "operators": lambda s: (1 - s.prob) ** 2 / (2 + s.miss) - abs(s.log_prob) * 0.5,
    "functions": lambda s: torch.exp(s.log_prob) + F.logsigmoid(-s.log_odds) - torch.tanh(s.prob),
    "methods": lambda s: s.miss.square().sqrt().add(s.prob.neg()).sub(1.5).mul(-1),
    "clamp": lambda s: s.prob.clamp(0.2, 0.6) + s.miss.clamp(max=0.5) + torch.relu(s.miss - 0.5),
    "where": lambda s: torch.where((s.prob > 0.3) & ~(s.miss < 0.1), s.miss, -s.log_prob),
    "extremes": lambda s: torch.maximum(s.prob, s.miss) - torch.minimum(s.nll, s.miss),
    "detached": lambda s: s.prob.detach() * s.nll,
    "reflected": lambda s: 2**s.miss + 1 / (1 + s.prob) + (1 - s.miss),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_program_does_what_its_body_does(name, weighted):
    """Loss and gradient equal those of the body on tensors, to the rounding of float64."""
    body = BODIES[name]
    assert record(body, False, ()) is not None
    loss = xent.row_loss(body)
    g = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(50, 7, generator=g, dtype=torch.float64)
    y = torch.randint(7, (50,), generator=g)
    y[3] = -100
    weight = torch.rand(7, generator=g, dtype=torch.float64) if weighted else None
    for reduction in ("mean", "sum"):
        value, grad = value_and_grad(loss, z, y, weight, reduction=reduction)
        right, slope = value_and_grad(loss, z, y, weight, reduction=reduction, engine="reference")
        torch.testing.assert_close(value, right, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "body",
    [
        lambda s: s.nll.mean() * s.prob,  # of all rows
        lambda s: s.nll if bool((s.prob > 0.5).any()) else s.miss,
        lambda s: s.nll * torch.arange(3.0),
        lambda s: s.of_label(torch.ones(5)),
        lambda s: s.nll * s.classes,
        lambda s: s.nll.float(),
        lambda s: 1.0,
        lambda s: s.entropy,  # a statistic that was not requested
    ],
)
def test_what_is_no_program(body):
    assert record(body, False, ()) is None


def test_two_ways_to_cross_entropy():
    assert record(lambda s: s.nll, False, ()) == NLL
    assert record(lambda s: -s.log_prob, False, ()) == LOG_LOSS
    assert record(lambda s: -s.log_prob * s.mass + 0 * s.prob, False, ()) not in (NLL, LOG_LOSS)


def test_a_number_outside_is_read_at_every_call(monkeypatch):
    """A program must not outlive the constants that it was recorded with."""
    loss = xent.row_loss(with_a_helper)
    z, y = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    nll = F.cross_entropy(z, y)
    torch.testing.assert_close(loss(z, y), 2 * nll + 1)
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    torch.testing.assert_close(loss(z, y), 5 * nll + 1)
    monkeypatch.setitem(globals(), "of_a_global", lambda s: s.nll)
    torch.testing.assert_close(loss(z, y), nll + 1)


def test_what_may_change_unseen_is_not_kept():
    class Holder:
        scale = 2.0

    holder, numbers, module = Holder(), [2.0], torch.nn.HuberLoss()
    for body in (
        lambda s: holder.scale * s.nll,
        lambda s: numbers[0] * s.nll,
        lambda s: random.random() * s.nll,
        lambda s: float(torch.rand(())) * s.nll,
        lambda s: s.nll * module.delta,
        lambda s: print("here") or s.nll,
    ):
        assert Outside(body)() is None
        assert Recorder(body, lambda: ()).find({}, False, False) is None
    z, y = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    loss = xent.row_loss(lambda s: holder.scale * s.nll)
    before = loss(z, y)
    holder.scale = 4.0
    torch.testing.assert_close(loss(z, y), 2 * before)


def test_settings_that_change_at_every_step_take_no_memory():
    recorder = Recorder(lambda s, gamma: s.miss**gamma, lambda gamma: ())
    for step in range(200):
        assert recorder.find({"gamma": 1 + step / 100}, False, False) is not None
    assert len(recorder.programs) <= 64


@pytest.mark.parametrize("name", ["focal_loss", "generalized_cross_entropy", "poly1_loss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_sweep_has_the_bits_of_two(name, dtype, core):
    """The bits agree for any slope; with `return_stats` a loss takes two sweeps."""
    if not core.fast:
        pytest.skip("this processor takes the reference engine")
    loss = CATALOG[name].function
    g = torch.Generator().manual_seed(1)
    z = (4 * torch.randn(65, 130, generator=g)).to(dtype)
    y = torch.randint(130, (65,), generator=g)

    def scaled(z, y, slope, **options):
        result = loss(z, y, **options)
        return slope * (result[0] if options else result)

    for slope in (1.0, 2.0**10, 2.0**-3, 0.3):
        one = value_and_grad(scaled, z, y, slope)[1]
        two = value_and_grad(scaled, z, y, slope, return_stats=True)[1]
        assert same_bits(one, two), slope


def test_zeros_of_both_signs_are_two_numbers():
    """In a program, in the key of a kept program, and in the divisor of a mean."""
    z, y = torch.tensor([[0.3, -0.2, 0.1]]), torch.tensor([0])

    @xent.row_loss
    def two_zeros(s):
        return torch.where(s.prob > 2, 0.0, 1.0) / (s.miss * -0.0)

    @xent.row_loss
    def of_a_setting(s, a=0.0):
        return 1 / (s.miss * a)

    assert two_zeros(z, y) == two_zeros(z, y, engine="reference") == -torch.inf
    for a in (0.0, -0.0, 0.0):
        assert of_a_setting(z, y, a=a) == of_a_setting(z, y, a=a, engine="reference")
    for a in (-0.0, 0.0, -0.0):
        given = {"normalizer": a}
        assert xent.cross_entropy(z, y, **given) == xent.cross_entropy(
            z, y, **given, engine="reference"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_later_calls_are_as_the_first(dtype):
    """Later calls with known options take a shorter way, with class weights of every dtype."""
    g = torch.Generator().manual_seed(3)
    z = torch.randn(9, 5, generator=g).to(dtype)
    y, w = torch.randint(5, (9,), generator=g), torch.tensor([1.0, 2.0, 3.0, 0.5, 0.25]).to(dtype)
    for loss in (xent.cross_entropy, xent.losses.focal_loss):
        for options in ({}, {"reduction": "sum"}, {"row_weight": torch.rand(9, generator=g)}):
            first, *later = (loss(z, y, w, **options) for _ in range(4))
            assert all(same_bits(x, first) for x in later)
            right = loss(z, y, w, **options, engine="reference")
            torch.testing.assert_close(first, right, rtol=1e-6, atol=0)


def without_gradient(s):
    with torch.no_grad():
        factor = s.miss**2
    return -factor * s.log_prob


def asks_for_the_mode(s):
    return -s.log_prob * (2.0 if torch.is_grad_enabled() else 1.0)


def counts_calls(s):
    counts_calls.number += 1
    return -s.log_prob


def imports(s):
    from math import pi

    return -s.log_prob * pi


counts_calls.number = 0
HARD = {
    "no_grad": without_gradient,
    "grad mode": asks_for_the_mode,
    "a counter": counts_calls,
    "an import": imports,
    "whole numbers": lambda s: -s.log_prob * (s.prob * 10).to(torch.int64),
    "a sum of bools": lambda s: -s.log_prob * ((s.prob > 0) + (s.prob >= 0)),
    "a type": lambda s: -s.log_prob * (2.0 if isinstance(s.log_prob, torch.Tensor) else 1.0),
    "complete": lambda s: -s.log_prob * (2.0 if s.complete else 1.0),
    "an attribute": lambda s: -s.log_prob * counts_calls.number,
    "a name that is not there": lambda s: -s.log_prob if s.soft else missing * s.nll,  # noqa: F821
}


@pytest.mark.parametrize("name", HARD)
def test_a_body_of_more_than_arithmetic_is_no_program(name):
    assert Recorder(HARD[name], lambda: ()).find({}, False, False) is None


def test_a_normaliser_that_changes_in_place_is_read_again():
    hidden, weight, y = torch.randn(7, 4), torch.randn(5, 4), torch.randint(5, (7,))
    number = torch.tensor(3.0)
    for logits in (lambda: hidden @ weight.T, lambda: xent.LinearLogits(hidden, weight)):
        number.fill_(3.0)
        before = [xent.cross_entropy(logits(), y, normalizer=number) for _ in range(3)][-1]
        number.fill_(6.0)
        after = xent.cross_entropy(logits(), y, normalizer=number)
        torch.testing.assert_close(2 * after, before)


def test_rows_of_weight_0_are_counted_in_second_derivatives_too():
    hidden, weight = torch.randn(7, 4).double().requires_grad_(), torch.randn(5, 4).double()
    y, rows = torch.randint(5, (7,)), torch.tensor([1.0, 0, 2, 0, 1, 1, 1]).double()
    for _ in range(3):
        loss = xent.losses.focal_loss(
            xent.LinearLogits(hidden, weight), y, row_weight=rows, normalizer="count"
        )
        (once,) = torch.autograd.grad(loss, hidden, retain_graph=True)
        (again,) = torch.autograd.grad(loss, hidden, create_graph=True)
        torch.testing.assert_close(again, once)
