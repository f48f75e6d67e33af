"""Digits of a loss over ranks: those of one process, for any split of the classes."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xent
from tests.helpers import nats_below_top, ulps, value_and_grad, worst

from . import on_ranks
from .pool import RANKS, values

pytestmark = pytest.mark.slow
OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}]


@st.composite
def calls(draw):
    """Logits with margins up to 300 nats and offsets up to 1e4, targets, and edges of the ranks."""
    rows, classes = draw(st.integers(1, 6)), draw(st.integers(2, 40))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    z = torch.randn(rows, classes, generator=g, dtype=torch.float64) * 3
    y = torch.randint(classes, (rows,), generator=g)
    z[torch.arange(rows), y] += draw(st.sampled_from([0.0, 30.0, -300.0, 300.0]))
    z += draw(st.sampled_from([0.0, 1e4]))
    if draw(st.booleans()):
        y[0] = -100
    inner = draw(st.lists(st.integers(0, classes), max_size=RANKS - 1))
    return z.to(dtype), y, [0, *sorted(inner), classes]


@settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(calls(), st.sampled_from(OPTIONS))
def test_digits(ranks, call, options):
    z, y, edges = call
    options = {"reduction": "none", **options}
    whole, _ = value_and_grad(xent.cross_entropy, z, y, **options)
    truth, slope = value_and_grad(xent.cross_entropy, z.double(), y, **options)
    call = (on_ranks.loss_and_gradient, len(edges) - 1, "cross_entropy", z, y, edges, options)
    found = values(ranks.run(*call))
    assert all(torch.equal(loss, found[0][0]) for loss, _ in found)

    loss, gradient = found[0][0], torch.cat([part for _, part in found], 1)
    eps, largest = torch.finfo(torch.float64).eps, z.abs().max().item()
    if z.dtype == torch.float64:
        distance = (loss - truth).abs() - eps * largest
        assert bool((distance <= 4 * eps * truth).all())
    else:
        assert ulps(loss, whole.double()).max() <= 1
    if not options.keys() & {"label_smoothing", "z_loss"}:  # there entries cancel
        bound = 8 + largest if z.dtype == torch.float64 else 4
        assert worst(gradient, slope, nats_below_top(z)) <= bound
