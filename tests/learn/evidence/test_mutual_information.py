"""Mutual information by cross-entropy, InfoNCE, infoCAM, and the command ``xent mi``."""

import doctest
import importlib
import json
import math
from functools import partial

import numpy as np
import pytest
import torch

import xent
from xent import cli

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import check_estimator

from xent.learn import (
    GaussianClasses,
    MutualInformation,
    NetworkClassifier,
    class_activation_map,
    info_cam,
    info_nce_bound,
    mutual_information_from_logits,
)
from xent.learn.evidence.gaussian_classes import BALANCED, IMBALANCED


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- sets whose information is known ------------------------------------------------------------

KNOWN = {  # computed by quadrature in another program
    BALANCED: {1: 1.0314, 2: 1.3003, 5: 1.5544, 10: 1.6058},
    IMBALANCED: {1: 1.0224, 2: 1.2393, 5: 1.4449, 10: 1.4868},
}


@pytest.mark.parametrize("counts", KNOWN)
@pytest.mark.parametrize("dims", [1, 2, 5, 10])
def test_the_quadrature_gives_the_known_values(dims, counts):
    classes = GaussianClasses(dims, counts)
    truth = classes.mutual_information()
    assert truth == pytest.approx(KNOWN[counts][dims], abs=5.1e-5)
    x, y = classes.sample(seed=dims)
    log_p = classes.log_posterior(x)
    told = classes.entropy + log_p.gather(1, y[:, None]).mean().item()
    error = log_p.gather(1, y[:, None]).std().item() / len(y) ** 0.5
    assert abs(told - truth) < 4 * error
    assert torch.equal(torch.bincount(y), torch.tensor(counts))


def test_two_far_classes_tell_all_and_equal_ones_nothing():
    assert GaussianClasses(1, (10, 30), (0.0, 40.0)).mutual_information() == pytest.approx(
        -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), abs=1e-9
    )
    assert abs(GaussianClasses(3, (10, 30), (1.0, 1.0)).mutual_information()) < 1e-9
    for wrong in ({"dims": 0}, {"counts": (1, 2)}, {"counts": (0, 1, 1, 1, 1)}):
        with pytest.raises(ValueError, match="`counts` must be at least 1"):
            GaussianClasses(**wrong)


# ---- the estimate -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counts",
    [pytest.param((800,) * 5, marks=pytest.mark.slow), (400, 800, 1200, 1600, 2000)],
)
def test_the_default_network_comes_close_to_the_truth(counts):
    classes = GaussianClasses(2, counts)
    x, y = classes.sample(seed=3)
    found = MutualInformation(folds=2, bootstrap=200).estimate(x.numpy(), y.numpy(), quiet=True)
    # On the same rows the true posterior gives about the same estimate.
    best = mutual_information_from_logits(classes.log_posterior(x), y)
    assert abs(found.nats - best.nats) < 0.02
    low, high = found.interval
    assert low < found.nats < high
    assert low < classes.mutual_information() + 0.01
    assert found.bound == pytest.approx(classes.entropy, rel=1e-12)
    assert found.entropy == pytest.approx(classes.entropy, rel=1e-12)


def test_an_estimate_is_the_sum_of_its_parts():
    x, y = GaussianClasses(1, (30, 60, 90), (0, 1, 2)).sample()
    names = np.array(["a", "b", "c"])[y.numpy()]
    found = MutualInformation(LogisticRegression(), folds=3, seed=1).estimate(
        x.numpy(), names, quiet=True
    )
    assert found.classes == ("a", "b", "c")
    assert found.counts.tolist() == [30, 60, 90]
    assert found.pointwise.mean().item() == pytest.approx(found.nats, rel=1e-12)
    assert found.per_class.sum().item() == pytest.approx(found.nats, rel=1e-12)
    for c, count in enumerate((30, 60, 90)):
        assert found.per_class[c] == pytest.approx(found.pointwise[y == c].sum().item() / 180)
        assert found.per_class[c] <= count / 180 * math.log(180 / count)
    assert found.bits == pytest.approx(found.nats / math.log(2))
    assert found.share == found.nats / found.bound
    kept = json.loads(json.dumps(found.to_dict()))
    assert kept["nats"] == found.nats
    assert kept["rows"] == 180
    assert f"{found.nats:.4f} nats" in str(found)


def test_what_is_held_out_is_what_scikit_learn_holds_out():
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x, y = GaussianClasses(2, (40, 60), (0, 1)).sample()
    x, y = x.numpy(), y.numpy()
    found = MutualInformation(LogisticRegression(), folds=4, seed=7).estimate(x, y, quiet=True)
    folds = StratifiedKFold(4, shuffle=True, random_state=7)
    p = cross_val_predict(LogisticRegression(), x, y, cv=folds, method="predict_proba")
    assert found.cross_entropy == pytest.approx(log_loss(y, p), rel=1e-12)


def test_the_interval_is_that_of_the_normal_approximation_where_rows_are_many():
    x, y = GaussianClasses(1, (2000, 4000), (0.0, 2.0)).sample()
    found = mutual_information_from_logits(2 * torch.cat([1 - x, x - 1], 1), y, bootstrap=4000)
    error = found.pointwise.std().item() / len(y) ** 0.5
    low, high = found.interval
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    wide = mutual_information_from_logits(2 * torch.cat([1 - x, x - 1], 1), y, confidence=0.999)
    assert wide.interval[0] < low < high < wide.interval[1]


def test_features_that_tell_nothing_are_not_clipped():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 8)), np.repeat([0, 1], 30)
    found = MutualInformation(LogisticRegression(C=100)).estimate(x, y, quiet=True)
    assert found.nats < 0
    assert "below 0" in str(found)
    nothing = MutualInformation(DummyClassifier(strategy="prior")).estimate(x, y, quiet=True)
    assert nothing.nats == pytest.approx(0, abs=1e-12)


def test_probability_zero_is_refused_and_not_clipped():
    x, y = GaussianClasses(1, (40, 40), (0, 1)).sample()
    with pytest.raises(ValueError, match=r"probability 0 to the class of \d+ of 80 held-out rows"):
        MutualInformation(KNeighborsClassifier(1)).estimate(x.numpy(), y.numpy(), quiet=True)


def test_bad_input_of_estimates(capsys):
    x, y = np.zeros((20, 1)), np.repeat([0, 1], 10)
    for estimator, labels, message in (
        (MutualInformation(folds=1), y, "`folds` must be at least 2"),
        (MutualInformation(folds=11), y, "class 0 of `y` has 10 rows, fewer than the 11 `folds`"),
        (MutualInformation(DummyClassifier()), np.zeros(20), "all of one class"),
        (MutualInformation(DummyClassifier(strategy="prior"), confidence=1.0), y, "`confidence`"),
        (MutualInformation(DummyClassifier(strategy="prior"), bootstrap=1), y, "`bootstrap`"),
        (MutualInformation(), np.zeros(7), "`X` has 20 rows, `y` has 7"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.estimate(x, labels, quiet=True)
    with pytest.raises(TypeError, match="Perceptron has neither"):
        MutualInformation(Perceptron()).estimate(x, y, quiet=True)
    capsys.readouterr()
    MutualInformation(DummyClassifier(strategy="prior")).estimate(x, y)
    assert "folds: 100%" in capsys.readouterr().err


def test_a_data_frame_will_do():
    pandas = pytest.importorskip("pandas")
    x, y = GaussianClasses(2, (30, 30), (0, 1)).sample()
    frame, classes = pandas.DataFrame(x.numpy(), columns=["a", "b"]), pandas.Series(y.numpy())
    estimator = MutualInformation(LogisticRegression())
    assert (
        estimator.estimate(frame, classes, quiet=True).nats
        == estimator.estimate(x.numpy(), y.numpy(), quiet=True).nats
    )


# ---- PC-softmax ---------------------------------------------------------------------------------


def test_pc_softmax_is_balanced_softmax_up_to_the_prior():
    z, y = torch.randn(50, 4, dtype=torch.float64), torch.arange(50) % 4
    y[:20] = 0
    prior = torch.bincount(y).double()
    pi = prior / prior.sum()
    pc = z[torch.arange(50), y].exp() / (pi * z.exp()).sum(1)
    balanced = xent.losses.balanced_softmax_loss(z, y, prior=prior, reduction="none")
    torch.testing.assert_close(-pc.log(), balanced + pi.log()[y], rtol=1e-13, atol=1e-13)
    found = mutual_information_from_logits(z, y, prior=prior)
    torch.testing.assert_close(found.pointwise, pc.log(), rtol=1e-13, atol=1e-13)
    assert found.nats == pytest.approx(pc.log().mean().item(), rel=1e-12)
    same = mutual_information_from_logits(z + pi.log(), y)
    assert found.nats == pytest.approx(same.nats, rel=1e-12)
    assert found.interval == pytest.approx(same.interval, rel=1e-12)


def test_a_network_trained_as_pc_softmax_tells_the_information():
    classes = GaussianClasses(1, (1000, 2000, 5000), (0, 2, 4))
    x, y = classes.sample(seed=0)
    prior = torch.tensor(classes.counts, dtype=torch.float64)
    loss = partial(xent.losses.logit_adjusted_loss, prior=prior)
    logits = NetworkClassifier(loss=loss, networks=2).fit(x.numpy(), y.numpy()).logits
    new, labels = classes.sample(seed=1)
    found = mutual_information_from_logits(logits(new.numpy()), labels, prior=prior)
    best = mutual_information_from_logits(classes.log_posterior(new), labels)
    assert abs(found.nats - best.nats) < 0.02
    plain = mutual_information_from_logits(logits(new.numpy()), labels)
    assert plain.nats < found.nats - 0.02  # without the prior it is another model


def test_bad_logits():
    z, y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
    assert mutual_information_from_logits(z, y).nats == pytest.approx(
        1.0397 - math.log(3), abs=1e-4
    )
    masked = z.clone()
    masked[1, 1] = -torch.inf
    for logits, labels, options, message in (
        (z, torch.full((4, 3), 1 / 3), {}, "`input` must hold logits"),
        (z[0], torch.tensor(1), {}, "`input` must hold logits"),
        (masked, y, {}, "the loss of 1 rows is not finite"),
        (z, torch.zeros(4, dtype=torch.int64), {}, "all of one class"),
        (z, torch.tensor([0, 1, 3, 0]), {}, "out of bounds"),
        (z, torch.tensor([0, 1, -100, 0]), {}, "`target` holds negative classes"),
        (z, y, {"prior": torch.ones(2)}, "`prior`"),
    ):
        with pytest.raises(ValueError, match=message):
            mutual_information_from_logits(logits, labels, **options)


# ---- the default classifier ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_network_is_an_estimator_of_scikit_learn():
    check_estimator(NetworkClassifier(hidden=16, networks=2, max_steps=100), on_skip=None)


def test_the_network_stops_where_the_held_out_loss_is_least():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 10)), rng.integers(0, 2, 80)  # nothing to learn
    network = NetworkClassifier().fit(x, y)
    assert network.steps_ < 1000
    new = rng.normal(size=(500, 10))
    loss = -network.predict_log_proba(new)[np.arange(500), rng.integers(0, 2, 500)].mean()
    assert loss < 0.8  # a network that knows its rows by heart would be far above log 2
    again = NetworkClassifier().fit(x, y)
    assert np.array_equal(network.predict_proba(new), again.predict_proba(new))
    with pytest.raises(ValueError, match="`networks` must be at least 2"):
        NetworkClassifier(networks=1).fit(x, y)


# ---- InfoNCE ------------------------------------------------------------------------------------


def best_critic(information, pairs, dims=20, seed=0):
    rho = math.sqrt(1 - math.exp(-2 * information / dims))
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, pairs, dims, dtype=torch.float64, generator=generator)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    scale = rho / (1 - rho**2)
    query = torch.cat([x * scale, torch.ones(pairs, 1, dtype=torch.float64)], 1)
    return query, torch.cat([y, -y.square().sum(1, keepdim=True) * scale * rho / 2], 1)


@pytest.mark.parametrize(
    ("information", "keys", "expected"),
    [(2, 128, 1.921), (4, 128, 3.331), (6, 128, 4.197), (10, 128, 4.778), (10, 1024, 6.649)],
)
def test_info_nce_tells_what_is_known_of_it(information, keys, expected):
    query, key = best_critic(information, 32 * 1024)
    each = zip(query.split(keys), key.split(keys), strict=True)
    bounds = [info_nce_bound(q, k) for q, k in each]
    mean = sum(bound.nats for bound in bounds) / len(bounds)
    assert mean == pytest.approx(expected, abs=0.05)
    assert mean < min(information, math.log(keys))
    scores = query[:keys] @ key[:keys].T
    direct = math.log(keys) - torch.nn.functional.cross_entropy(scores, torch.arange(keys)).item()
    assert bounds[0].nats == pytest.approx(direct, rel=1e-12)
    assert bounds[0].cap == math.log(keys)


def test_info_nce_of_scores_is_that_of_features():
    query, key = best_critic(3, 64)
    bound = info_nce_bound(query, key, temperature=1.5)
    assert info_nce_bound(query @ key.T, temperature=1.5).nats == pytest.approx(
        bound.nats, rel=1e-12
    )
    order = torch.randperm(64)
    moved = info_nce_bound(query, key[order], target=order.argsort(), temperature=1.5)
    assert moved.nats == pytest.approx(bound.nats, rel=1e-12)
    scores = (query @ key.T)[:, order]
    of_scores = info_nce_bound(scores, target=order.argsort(), temperature=1.5)
    assert of_scores.nats == pytest.approx(bound.nats, rel=1e-12)
    assert bound.bits == bound.nats / math.log(2)
    assert f"cannot exceed log 64 = {math.log(64):.4f}" in str(bound)
    with pytest.raises(ValueError, match="`normalize`"):
        info_nce_bound(scores, normalize=True)
    with pytest.raises(ValueError, match="M at least N"):
        info_nce_bound(scores[:, :10])
    with pytest.raises(ValueError, match="`temperature`"):
        info_nce_bound(scores, temperature=0.0)
    with pytest.raises(TypeError, match="`query`"):
        info_nce_bound("scores")


# ---- infoCAM ------------------------------------------------------------------------------------


def test_maps_add_up_to_logits():
    features = torch.randn(6, 8, 5, 7, dtype=torch.float64)
    head = torch.nn.Linear(8, 4).double()
    z = head(features.mean((2, 3))).detach()
    weight, bias = head.weight.detach(), head.bias.detach()
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    own = z[torch.arange(6), y]
    plain = class_activation_map(features, weight, y, bias=bias)
    torch.testing.assert_close(plain.mean((1, 2)), own, rtol=1e-12, atol=1e-12)
    against_others = own - (z.sum(1) - own) / 3
    found = info_cam(features, weight, y, bias=bias)
    torch.testing.assert_close(found.mean((1, 2)), against_others, rtol=1e-12, atol=1e-12)
    lowest = info_cam(features, weight, y, bias=bias, against="lowest")
    torch.testing.assert_close(lowest.mean((1, 2)), own - z.amin(1), rtol=1e-12, atol=1e-12)
    # Place by place, as in the definition; without the bias, less by the difference of biases.
    bare = info_cam(features, weight, y)
    others = weight[[0, 1, 3]].mean(0)
    expected = ((weight[2] - others)[:, None, None] * features[2]).sum(0)
    torch.testing.assert_close(bare[2], expected, rtol=1e-12, atol=1e-12)
    difference = bias[2] - bias[[0, 1, 3]].mean()
    torch.testing.assert_close(found[2], bare[2] + difference, rtol=1e-12, atol=1e-12)


def test_what_softmax_does_not_see_info_cam_does_not_see():
    features, weight = torch.randn(3, 8, 4, 4).double(), torch.randn(5, 8).double()
    y, common = torch.tensor([4, 0, 2]), 10 * torch.randn(8).double()
    for against in ("others", "lowest"):
        torch.testing.assert_close(
            info_cam(features, weight + common, y, against=against),
            info_cam(features, weight, y, against=against), rtol=1e-10, atol=1e-10,
        )  # fmt: skip
    plain = class_activation_map(features, weight, y)
    assert (class_activation_map(features, weight + common, y) - plain).abs().max() > 1


def test_bad_maps():
    features, weight, y = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3), torch.tensor([0, 4])
    for arguments, options, message in (
        ((features[0], weight, y), {}, r"`features` must be \(N, D, H, W\)"),
        ((features, weight.T, y), {}, "`weight`"),
        ((features, weight, y[:1]), {}, "`target` must hold a class for each of the 2 images"),
        ((features, weight, y + 1), {}, "out of bounds"),
        ((features, weight, y), {"bias": torch.zeros(3)}, "`bias`"),
        ((features, weight, y), {"against": "all"}, "`against`"),
        ((features, weight[:1], y * 0), {}, "only one"),
    ):
        with pytest.raises(ValueError, match=message):
            info_cam(*arguments, **options)
    with pytest.raises(TypeError, match="`weight`"):
        info_cam(features, None, y)


# ---- examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        "learn.evidence.activation_maps",
        "learn.evidence.gaussian_classes",
        "learn.evidence.info_nce",
        "learn.evidence.mutual_information",
        "learn.networks.network_classifier",
        "plot.evidence",
    ],
)
def test_the_examples_run(module):
    if module.startswith("plot"):
        pytest.importorskip("matplotlib")
    report = doctest.testmod(importlib.import_module(f"xent.{module}"))
    assert report.attempted
    assert not report.failed


# ---- pictures -----------------------------------------------------------------------------------


def test_pictures():
    pytest.importorskip("matplotlib")
    from xent.plot import activation_map, information, information_bars

    z, y = torch.randn(40, 3), torch.arange(40) % 3
    found = mutual_information_from_logits(z, y)
    bars = information(found).patches
    widths = [bar.get_width() for bar in bars]
    assert sum(widths[:3]) == pytest.approx(found.bound)
    assert sum(widths[3:]) == pytest.approx(found.nats)
    ax = information_bars({"a": found, "b": found}, truth={"b": 0.5})
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([found.bound] * 2)
    with pytest.raises(ValueError, match="must be matrices"):
        activation_map(torch.zeros(3, 4, 4), torch.zeros(2, 2))


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def in_csv(tmp_path):
    rng = np.random.default_rng(0)
    good, noise = rng.normal(size=200), rng.normal(size=200)
    lines = [f"{a},{b},{'xy'[int(a > 0)]}" for a, b in zip(good, noise, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["good,noise,kind", *lines]))
    return str(tmp_path / "a.csv")


def test_the_command_on_a_table(in_csv, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    call = ["mi", in_csv, "--classifier", "linear", "--bootstrap", "100", "--out", str(out)]
    assert cli.main([*call, "--quiet"]) == 0
    told, progress = capsys.readouterr()
    assert "at most          0.69" in told
    assert not progress
    assert json.loads((out / "record.json").read_text())["settings"]["target"] == "kind"
    assert cli.main([*call, "--each", "--target", "kind", "--json", "--quiet"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / "record.json").read_text())
    assert list(record["estimates"]) == ["all columns", "good", "noise"]
    assert record["estimates"]["good"]["nats"] > 0.5
    assert abs(record["estimates"]["noise"]["nats"]) < 0.1
    assert (out / "information.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main([*call, "--each"]) == 0
    told, progress = capsys.readouterr()
    assert "noise" in told
    assert "100%" in progress


def test_the_command_on_synthetic_sets(tmp_path, capsys):
    call = ["mi", "--synthetic", "--dims", "1", "2", "--rows", "2000", "--classifier", "linear"]
    assert cli.main([*call, "--out", str(tmp_path), "--bootstrap", "50", "--quiet", "--json"]) == 0
    estimates = json.loads(capsys.readouterr().out)["estimates"]
    assert len(estimates) == 4
    assert estimates["balanced, d=2"]["truth"] == pytest.approx(1.3003, abs=1e-3)
    assert all(abs(e["nats"] - e["truth"]) < 0.15 for e in estimates.values())


def test_the_command_refuses(in_csv, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    out = ["--out", str(tmp_path / "out"), "--quiet"]
    for words, message in (
        ([], "name a table, or give --synthetic"),
        ([in_csv, "--synthetic"], "one of the two"),
        ([in_csv, "--target", "none"], "no column 'none'"),
        ([in_csv, "--target", "good"], "a quantity rather than a class"),
        (["--synthetic", "--dims", "0"], "--dims must be at least 1"),
        (["--synthetic", "--rows", "3"], "--rows"),
        (["--synthetic", "--drop", "a"], "--drop is about a table; with --synthetic there is none"),
    ):
        assert cli.main(["mi", *words, *out]) == 2
        assert message in capsys.readouterr().err


class Constant(ClassifierMixin, BaseEstimator):
    """A classifier that gives each row the frequencies, times a factor, or in another order."""

    def __init__(self, times: float = 1.0, step: int = 1) -> None:
        self.times = times
        self.step = step

    def fit(self, X, y):
        classes, counts = np.unique(y, return_counts=True)
        self.classes_, self.p_ = classes[:: self.step], counts[:: self.step] / len(y)
        return self

    def predict_proba(self, X):
        return np.tile(self.p_ * self.times, (X.shape[0], 1))


LABELS = np.arange(60) % 3


def test_what_does_not_sum_to_1_is_no_bound():
    x = np.zeros((60, 1))
    found = MutualInformation(Constant()).estimate(x, LABELS, quiet=True)
    assert found.nats == pytest.approx(0, abs=1e-12)
    for times in (2.0, 1.01):
        with pytest.raises(ValueError, match="sum to 1"):
            MutualInformation(Constant(times)).estimate(x, LABELS, quiet=True)


def test_classes_in_another_order_or_number_are_refused():
    for step in (-1, 2):
        with pytest.raises(ValueError, match="sorted"):
            MutualInformation(Constant(step=step)).estimate(np.zeros((60, 1)), LABELS, quiet=True)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.coo_array, sparse.csc_matrix, list])
def test_features_of_any_form(form):
    x = np.random.default_rng(0).normal(size=(60, 2)) + LABELS[:, None]
    estimator = MutualInformation(LogisticRegression(), bootstrap=2)
    dense = estimator.estimate(x, LABELS, quiet=True)
    other = estimator.estimate(form(x), LABELS[:, None], quiet=True)
    assert other.nats == pytest.approx(dense.nats, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.zeros(60), "all of one class"),
        (np.array(["a", 1, None] * 20, object), "one kind, got NoneType, int, str"),
        (np.where(LABELS == 1, np.nan, LABELS), "NaN"),
        (np.eye(3)[LABELS], "1d array"),
    ],
)
def test_labels_that_are_no_classes(labels, match):
    with pytest.raises(ValueError, match=match):
        MutualInformation(Constant()).estimate(np.zeros((60, 1)), labels, quiet=True)


def test_a_feature_that_hardly_varies_says_nothing():
    """The mean of equal numbers may differ in the last digit, which is not a spread."""
    x = np.random.default_rng(0).normal(size=(60, 1))
    constant = np.full((60, 1), 0.1)
    assert constant.std() > 0
    network = NetworkClassifier(networks=2, max_steps=50).fit(np.hstack([x, constant]), x[:, 0] > 0)
    near, far = network.logits(np.array([[1.0, 0.1], [1.0, 0.2]]))
    assert (near - far).abs().max() < 1


def test_quadrature_sees_classes_far_apart():
    """A third class is never mistaken, so the rest is the information of the other two."""
    near = GaussianClasses(1, (10, 10), (0.0, 0.5)).mutual_information()
    far = GaussianClasses(1, (10, 10, 10), (0.0, 0.5, 1e4)).mutual_information()
    assert far == pytest.approx(math.log(3) - 2 / 3 * math.log(2) + 2 / 3 * near, abs=1e-9)
    assert GaussianClasses(1, (5, 7), (2.0, 2.0)).mutual_information() == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="finite"):
        GaussianClasses(1, (5, 7), (0.0, math.nan))


@pytest.mark.parametrize("scores", [torch.full((3, 3), torch.nan), torch.zeros(0, 3)])
def test_info_nce_of_nothing(scores):
    with pytest.raises(ValueError, match="finite"):
        info_nce_bound(scores)


def test_seeds_of_the_network():
    x, y = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2
    for seed in (None, 3, np.int64(3)):
        assert NetworkClassifier(max_steps=2, random_state=seed).fit(x, y).steps_ == 2
    with pytest.raises(TypeError, match="integer"):
        NetworkClassifier(random_state="a").fit(x, y)
    with pytest.raises(ValueError, match="too large"):
        NetworkClassifier().fit(x * 1e300, y)
