"""The number of functions of the library that a small call runs through."""

import gc
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import xent
from xent.engines import core

HOUSE = str(Path(xent.__file__).parent)


@xent.row_loss
def of_a_user(s, power=2.0):
    return s.miss**power - s.log_prob


def steps(call) -> tuple[int, int]:
    """Return how many calls of the library's functions are made, and in how many files."""
    call().backward()  # the first call fills the caches
    calls = Counter()

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(HOUSE):
            calls[frame.f_code.co_filename] += 1

    loss = call()
    gc.disable()  # what other tests have left would be counted when it is freed
    sys.setprofile(profile)
    try:
        loss = call()
        loss.backward()
    finally:
        sys.setprofile(None)
        gc.enable()
    return sum(calls.values()), len(calls)


W, ROWS = torch.linspace(0.5, 2, 10), torch.linspace(0.1, 1, 32, dtype=torch.float64)
OPTIONS = {
    "plain": {},
    "weight": {"weight": W},
    "row_weight": {"row_weight": ROWS},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-3},
    "ignore_index": {"ignore_index": 3},
    "sum": {"reduction": "sum"},
    "normalizer": {"normalizer": 20.0},
    "count": {"normalizer": "count"},
    "logit_scale": {"logit_scale": 2.0},
    "softcap": {"softcap": 30.0},
    "class_bias": {"class_bias": W},
    "empty": {"empty": "zero"},
}


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(32, 10, generator=g, requires_grad=True)
    return logits, torch.randint(10, (32,), generator=g)


@pytest.mark.skipif(not core.fast, reason="the reference engine takes the long way")
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_cross_entropy_is_a_short_way(name, batch):
    calls, files = steps(lambda: xent.cross_entropy(*batch, **OPTIONS[name]))
    assert calls <= 60
    assert files <= 14


@pytest.mark.skipif(not core.fast, reason="the reference engine takes the long way")
@pytest.mark.parametrize("loss", [xent.losses.focal_loss, of_a_user], ids=["focal", "a user's"])
def test_a_loss_of_rows_is_a_short_way(loss, batch):
    calls, files = steps(lambda: loss(*batch))
    assert calls <= 45
    assert files <= 12


# One of each frame: calls and files. Dense losses come through every floor of the house.
binary = xent.binary_cross_entropy_with_logits
OF_FRAMES = {
    "element_loss": (lambda z, _: binary(z, (z > 0).float()), 40, 11),
    "element_loss, weight": (lambda z, _: binary(z, (z > 0).float(), weight=W), 50, 11),
    "token_loss": (lambda z, _: xent.policy.reinforce_loss(z[:, 0], ROWS.float()), 45, 7),
    "dense_loss": (xent.losses.sparsemax_loss, 130, 19),
}


@pytest.mark.skipif(not core.fast, reason="the reference engine takes the long way")
@pytest.mark.parametrize("name", OF_FRAMES)
def test_a_loss_of_each_frame(name, batch):
    loss, most_calls, most_files = OF_FRAMES[name]
    calls, files = steps(lambda: loss(*batch))
    assert calls <= most_calls
    assert files <= most_files


@pytest.mark.skipif(not core.fast, reason="the reference engine takes the long way")
@pytest.mark.parametrize("name", ["plain", "weight", "label_smoothing"])
def test_behind_a_head_it_is_a_short_way(name, batch):
    hidden, weight = torch.randn(32, 16, requires_grad=True), torch.randn(10, 16)
    # No test of logits has these options, so their short way is found behind a head.
    options = {**OPTIONS[name], "reduction": "sum", "empty": "zero"}
    calls, files = steps(
        lambda: xent.cross_entropy(xent.LinearLogits(hidden, weight), batch[1], **options)
    )
    assert calls <= 120
    assert files <= 15  # one of them looks for arrays beside the stand-in
