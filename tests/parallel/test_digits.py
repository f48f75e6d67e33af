"""Digits of a loss over ranks: those of one process, for any split of the classes."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import xent
from tests.helpers import nats_below_top, ulps, value_and_grad, worst

from . import on_ranks
from .pool import RANKS, values

pytestmark = pytest.mark.slow
LOSSES = [
    ("cross_entropy", {}), ("cross_entropy", {"label_smoothing": 0.1}),
    ("cross_entropy", {"z_loss": 1e-3}), ("confidence_penalty_loss", {}),
]  # fmt: skip


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
        masked = torch.arange(classes) % 3 == 0
        z[-1, masked & (torch.arange(classes) != y[-1])] = -torch.inf
    if draw(st.booleans()):
        y[0] = -100
    inner = draw(st.lists(st.integers(0, classes), max_size=RANKS - 1))
    return z.to(dtype), y, [0, *sorted(inner), classes]


@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(calls(), st.sampled_from(LOSSES))
def test_digits(ranks, call, which):
    (z, y, edges), (name, options) = call, which
    assume(not (options.get("label_smoothing") and z.isinf().any()))  # an infinite loss
    loss, options = getattr(xent.losses, name), {"reduction": "none", **options}
    whole, _ = value_and_grad(loss, z, y, **options)
    truth, slope = value_and_grad(loss, z.double(), y, **options)
    call = (on_ranks.loss_and_gradient, len(edges) - 1, name, z, y, edges, options)
    found = values(ranks.run(*call))
    assert all(torch.equal(own, found[0][0]) for own, _ in found)

    loss, gradient = found[0][0], torch.cat([part for _, part in found], 1)
    eps, largest = torch.finfo(torch.float64).eps, z[z.isfinite()].abs().max().item()
    wide, nats = z.dtype == torch.float64, nats_below_top(z).nan_to_num(posinf=0)
    if wide:
        distance = (loss - truth).abs() - eps * max(largest, 1)
        assert bool((distance <= 4 * eps * truth.abs()).all())
    elif name == "cross_entropy":
        assert ulps(loss, whole.double()).max() <= 1
    else:  # a difference with the entropy, of which one process may have fewer digits
        assert bool((ulps(loss, truth) <= 1 + ulps(whole, truth)).all())
    if which == LOSSES[0]:
        assert worst(gradient, slope, nats) <= (8 + largest if wide else 4)
    else:  # entries cancel: their error is that of the largest number of the row
        of_row = torch.finfo(z.dtype).eps * slope.abs().amax(1, keepdim=True).clamp(min=1)
        assert bool(((gradient - slope).abs() <= (8 + largest if wide else 8) * of_row).all())
