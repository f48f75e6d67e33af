"""Information from counts and samples, and losses in other units."""

import math

import mpmath
import pytest
import torch
from mpmath import mpf

from tests.information.test_distributions import draws, exact_entropy
from xent.information import (
    bits_per_byte,
    combinatorial_entropy,
    cross_entropy_of,
    entropy,
    entropy_from_counts,
    entropy_from_samples,
    information_content,
    kl_divergence,
    report,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

F64 = torch.float64
close = torch.testing.assert_close


# ---- counts ---------------------------------------------------------------------------------


def test_entropy_from_counts():
    counts = torch.tensor([[2, 1, 1, 0], [4, 0, 0, 0]])
    assert entropy_from_counts(counts, unit="bit").tolist() == [1.5, 0.0]
    assert entropy_from_counts(counts).dtype == torch.float64
    adjusted = entropy_from_counts(counts, estimator="miller-madow")
    close(adjusted, torch.tensor([1.5 * math.log(2) + 2 / 8, 0.0], dtype=F64))
    close(entropy_from_counts(counts.T, 0), entropy_from_counts(counts))
    rare = entropy_from_counts(torch.tensor([10**12, 1])).item()
    exact = exact_entropy([mpf(10**12) / (10**12 + 1), mpf(1) / (10**12 + 1)])
    assert rare == pytest.approx(float(exact), rel=1e-14)
    with pytest.raises(ValueError, match="negative, got -1"):
        entropy_from_counts(torch.tensor([-1, 2]))
    with pytest.raises(ValueError, match="one sums to 0"):
        entropy_from_counts(torch.tensor([[0, 0], [1, 0]]))
    with pytest.raises(ValueError, match="`estimator` must be one of"):
        entropy_from_counts(counts, estimator="best")
    with pytest.raises(TypeError, match=r"torch\.bool"):
        entropy_from_counts(counts > 0)
    with pytest.raises(ValueError, match="`dim`"):
        entropy_from_counts(counts, 2)


def test_miller_madow_takes_most_of_the_bias():
    p = torch.softmax(draws(rows=1, classes=10, spread=0.5)[0, 0], 0)
    g = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(p.expand(2000, 10), 60, replacement=True, generator=g)
    counts = torch.nn.functional.one_hot(drawn, 10).sum(1)
    truth = entropy(p)
    plug_in = entropy_from_counts(counts).mean() - truth
    adjusted = entropy_from_counts(counts, estimator="miller-madow").mean() - truth
    assert plug_in.item() == pytest.approx(-9 / 120, rel=0.15)
    assert adjusted.abs() < 0.15 * plug_in.abs()


def test_entropy_from_samples():
    x = torch.tensor([3, 3, 5, 9])
    assert entropy_from_samples(x, unit="bit").item() == 1.5
    assert entropy_from_samples(x / 7, unit="bit").item() == 1.5
    y = torch.tensor([0, 1, 0, 0])
    joint = entropy_from_samples(torch.stack([x, y], 1))
    given_x = 0.5 * math.log(2)  # y is uncertain only if x is 3, half of the time
    close(joint, entropy_from_samples(x) + given_x)
    close(
        entropy_from_samples(x, estimator="miller-madow"), entropy_from_samples(x) + 2 / 8
    )  # three values seen
    with pytest.raises(ValueError, match=r"got \(0,\)"):
        entropy_from_samples(x[:0])


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 40, 1000, 20_000])
def test_combinatorial_entropy_of_what_can_be_counted(n):
    for k in {0, 1, 2, n // 3, n // 2, n - 1, n} & set(range(n + 1)):
        exact = math.log2(math.comb(n, k)) / n
        assert combinatorial_entropy(n, k) == pytest.approx(exact, rel=2e-14, abs=1e-16)
        assert combinatorial_entropy(n, [k, n - k]) == combinatorial_entropy(n, k)


@pytest.mark.parametrize("n", [10**6, 10**9, 10**15])
def test_combinatorial_entropy_of_what_cannot(n):
    for kinds in ([1], [12345], [n // 3], [n // 2, n // 4], [2, 3, n // 5]):
        parts = [*kinds, n - sum(kinds)]
        log = mpmath.loggamma(n + 1) - mpmath.fsum(mpmath.loggamma(j + 1) for j in parts)
        assert combinatorial_entropy(n, kinds, unit="nat") == pytest.approx(
            float(log / n), rel=2e-14
        )


@pytest.mark.parametrize(("n", "k"), [(3, 4), (3, -1), (0, 0), (5, (3, 3))])
def test_impossible_arrangements(n, k):
    with pytest.raises(ValueError, match="at most `n`"):
        combinatorial_entropy(n, k)


def test_arrangements_of_halves():
    with pytest.raises(TypeError):
        combinatorial_entropy(3, 1.5)


# ---- reading a loss -------------------------------------------------------------------------


def test_report():
    said = report(torch.tensor(0.5), torch.tensor([0, 1, 1, -100, 3, 3]))
    h = 2 * 0.4 * math.log(2.5) + 0.2 * math.log(5)
    assert said.nats == 0.5
    assert said.bits == pytest.approx(0.5 / math.log(2))
    assert said.perplexity == pytest.approx(math.exp(0.5))
    assert said.probability == pytest.approx(math.exp(-0.5))
    assert said.label_entropy == pytest.approx(h)
    assert said.skill == pytest.approx(1 - 0.5 / h)
    assert said.information == pytest.approx(h - 0.5)
    assert said.excess == 0.5
    assert "0.5000 nats = 0.7213 bits" in str(said)
    assert report(0.5, counts=[1, 2, 2]).skill == pytest.approx(1 - 0.5 / h)
    assert report(0.5, counts=torch.tensor([1, 2, 2])).skill == pytest.approx(1 - 0.5 / h)


def test_report_of_a_model_that_knows_only_the_frequencies():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    frequencies = torch.bincount(labels).double() / 6
    loss = information_content(frequencies)[labels].mean()
    assert report(loss, labels).skill == pytest.approx(0, abs=1e-15)


def test_report_on_soft_labels():
    q = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=F64)
    p = torch.tensor([[0.6, 0.4], [0.5, 0.5]], dtype=F64)
    said = report(cross_entropy_of(q, p).mean(), q)
    assert said.excess == pytest.approx(kl_divergence(q, p).mean().item())
    assert said.floor == pytest.approx(entropy(q).mean().item())
    assert said.label_entropy == pytest.approx(entropy(q.mean(0)).item())
    assert report(1.0, q.T[None], floor=0.25).excess == 0.75  # classes on axis 1
    assert report(1.0, q[None], class_dim=-1) == report(1.0, q)
    with pytest.raises(ValueError, match="must sum to 1"):
        report(1.0, 2 * q)


def test_report_of_labels_that_are_all_the_same():
    for said in (report(0.1, torch.tensor([1, 1, 1])), report(0.1, counts=[0, 3])):
        assert math.isnan(said.skill)
        assert "nan" not in str(said)
        assert "all labels are the same" in str(said)


def test_report_without_labels_and_at_the_edges():
    said = report(0.0)
    assert said.skill is None
    assert said.information is None
    assert "skill" not in str(said)
    assert report(math.inf).perplexity == math.inf
    assert report(800.0).perplexity == math.inf
    assert math.isnan(report(0.1, torch.zeros(4, dtype=torch.int64)).skill)
    assert str(report(0.1, torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"loss\.mean\(\)"):
        report(torch.ones(3))
    with pytest.raises(ValueError, match="diagnose"):
        report(math.nan)
    with pytest.raises(ValueError, match="at least 0; got -1"):
        report(-1.0)
    with pytest.raises(ValueError, match="not both"):
        report(1.0, torch.tensor([0]), counts=[1])


def test_bits_per_byte():
    # One byte per token: bits of a token. Four bytes per token: a quarter of these.
    assert bits_per_byte(math.log(2), 10, 10) == pytest.approx(1)
    assert bits_per_byte(torch.tensor(math.log(2)), 10, 40).item() == pytest.approx(0.25)
    with pytest.raises(ValueError, match="positive"):
        bits_per_byte(1.0, 0, 4)
