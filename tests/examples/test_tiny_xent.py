"""The example that explains the library: its functions against the library and formulas."""

import re
import runpy
import sys
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import xent
from tests.heads.test_gradients import Memory

PROJECT = Path(__file__).parents[2]
FILE = PROJECT / "examples" / "tiny_xent.py"
sys.path.insert(0, str(FILE.parent))
tiny = SimpleNamespace(**runpy.run_path(str(FILE)))
sys.path.remove(str(FILE.parent))

INF, EPS = float("inf"), torch.finfo(torch.float64).eps
LOSSES = [(tiny.nll, xent.cross_entropy), (tiny.focal, xent.losses.focal_loss)]
every_loss = pytest.mark.parametrize(("ours", "xents"), LOSSES, ids=["nll", "focal"])


def random_case(rows, classes, scale, dtype):
    z = (scale * torch.randn(rows, classes, dtype=torch.float64)).to(dtype)
    return z, torch.randint(classes, (rows,))


def masked(dtype):
    """Return rows with classes at -inf: some, all but the target, and the target itself."""
    z, y = random_case(6, 5, 3.0, dtype)
    z[:2].masked_fill_(torch.rand(2, 5) < 0.4, -INF)
    z[2:4] = z[2:4].masked_fill(torch.arange(5) != y[2:4, None], -INF)
    z[4, y[4]] = -INF
    return z, y


def confident(dtype):
    """Return rows with margins up to 700 nats, for the target and for another class."""
    z, y = random_case(8, 7, 1.0, dtype)
    lead = torch.tensor([0.0, 5, 17, 40, 90, 700, -90, -700], dtype=dtype)
    return z.scatter_add(1, y[:, None], lead[:, None]), y


def ignored(dtype):
    z, y = random_case(9, 4, 2.0, dtype)
    y[::2] = -100
    z[4] = torch.nan  # is not read
    return z, y


CASES = {
    "random": lambda dtype: random_case(13, 11, 4.0, dtype),
    "one class": lambda dtype: random_case(3, 1, 1.0, dtype),
    "wide": lambda dtype: random_case(3, 3000, 30.0, dtype),
    "masked": masked,
    "confident": confident,
    "ignored": ignored,
}


def with_gradients(value, *leaves):
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same(found, expected, logits):
    """Assert equality up to rounding.

    Log-odds are float64, rounded at the size of the logits, and a rounding of ``a`` in an exponent
    is one of ``a`` times the result. Float32 kernels lose a unit for each nat below 1 besides.
    """
    largest = logits.detach().double().masked_fill(~logits.isfinite(), 0.0).abs().max()
    for a, b in zip(found, expected, strict=True):
        info = torch.finfo(b.dtype)
        size = b.double().abs()
        nats = torch.where((size > 0) & size.isfinite(), size.log().abs(), 0.0)
        units = info.eps * (4 + nats) + EPS * (4 + 2 * largest)
        slack = (units * size).nan_to_num(posinf=0.0) + 4 * info.smallest_normal
        same = (a == b) | (a.isnan() & b.isnan()) | ((a.double() - b.double()).abs() <= slack)
        assert same.all(), (a[~same], b[~same])


@every_loss
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_losses_are_those_of_the_library(ours, xents, case, dtype):
    z, y = CASES[case](dtype)
    kept = (y != -100).nonzero().squeeze(1)
    # All rows, and each alone: a mean hides the small loss of a confident row.
    for rows in (torch.arange(len(y)), *kept.split(1)):
        part = z[rows].requires_grad_()
        found = with_gradients(tiny.mean_loss(part, y[rows], ours), part)
        assert_same(found, with_gradients(xents(part, y[rows]), part), part)


def test_a_confident_row_against_its_formula():
    lead = torch.tensor([0.0, 1, 17, 60, 300, 700], dtype=torch.float64)
    z = torch.stack([lead, torch.zeros_like(lead)], 1).requires_grad_()  # two classes
    for k, d in enumerate(lead):
        (found, d_z) = with_gradients(tiny.mean_loss(z[k : k + 1], torch.tensor([0])), z)
        miss = 1 / (1 + d.exp())
        assert_same([found, d_z[k]], [torch.log1p(torch.exp(-d)), torch.stack([-miss, miss])], z)


def test_no_rows_at_all():
    z = torch.randn(3, 4)
    assert tiny.mean_loss(z, torch.full((3,), -100)).isnan()
    assert xent.cross_entropy(z, torch.full((3,), -100)).isnan()


def test_parts_merge_in_any_order_and_grouping():
    z, y = CASES["confident"](torch.float64)
    parts = [tiny.statistics(z[:, a:b], y - a) for a, b in ((0, 2), (2, 3), (3, 7))]
    nothing = tiny.Statistics(*torch.full((2, len(y)), -INF, dtype=torch.float64))
    expected = xent.statistics(z, y)
    close = {"rtol": 0.0, "atol": 2 * EPS * z.abs().max().item()}
    a, b, c = parts
    for merged in (
        reduce(tiny.merge, parts),
        reduce(tiny.merge, parts[::-1]),
        tiny.merge(a, tiny.merge(b, c)),
        tiny.merge(nothing, tiny.merge(c, tiny.merge(a, b))),
    ):
        torch.testing.assert_close(merged.target, expected.target, rtol=0, atol=0)
        torch.testing.assert_close(merged.rest, expected.rest, **close)
        torch.testing.assert_close(merged.log_odds, expected.log_odds, **close)


@every_loss
@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_a_head_in_chunks_is_that_of_the_library(ours, xents, rows):
    hidden, weight = (torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in (10, 7))
    y = torch.randint(7, (10,))
    y[3:6] = -100
    found = 2.5 * tiny.mean_loss_behind_head(hidden, weight, y, ours, rows)
    expected = 2.5 * xents(xent.LinearLogits(hidden, weight), y)
    found = with_gradients(found, hidden, weight)
    for a, b in zip(found, with_gradients(expected, hidden, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)  # sums in another order
    assert not found[1][3:6].any()


def test_the_head_holds_the_logits_of_a_chunk_only():
    n, d, v, rows = 500, 8, 2000, 10
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    with Memory(hidden, weight) as memory:
        loss = tiny.mean_loss_behind_head(hidden, weight, torch.randint(v, (n,)), rows=rows)
        loss.backward()
    chunk = rows * v * (4 + 4 + 5 * 8)  # logits and gradient, and what float64 needs on the way
    gradients = 3 * (n + v) * d * 4
    assert memory.peak <= chunk + gradients < n * v * 4 / 2


def test_what_it_explains_needs_pytorch_only_and_names_rooms_that_exist():
    text = FILE.read_text(encoding="utf-8")
    ideas, _ = text.split("# ---- What it shows")
    assert "import xent" not in ideas
    named = re.findall(r"src/xent/[\w/]+(?:\.py)?", ideas)
    assert len(named) >= 5
    assert [path for path in named if not (PROJECT / path).exists()] == []
