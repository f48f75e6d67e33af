"""Rows with wrong labels: confident learning against a direct count, and against cleanlab."""

import warnings
from collections import Counter
from functools import cache
from typing import get_args

import pytest
import torch

import xent
from xent.learn import find_label_issues, label_quality
from xent.learn.label_noise import Filter, Score

FILTERS, SCORES = get_args(Filter), get_args(Score)
COUNTED = ("prune_by_noise_rate", "prune_by_class", "both")
ALIKE = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
NOISE = {
    "sym .2": xent.losses.symmetric_noise_matrix(10, 0.2),
    "asym .4": xent.losses.pair_noise_matrix(10, 0.4, ALIKE),
}


@cache
def digits(kind, seed=0):
    """Return held-out probabilities of digits, flipped labels, and which labels are wrong."""
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    x, y = datasets.load_digits(return_X_y=True)
    labels = xent.losses.flip_labels(
        torch.tensor(y), NOISE[kind], torch.Generator().manual_seed(seed)
    )
    classifier = LogisticRegression(C=0.1, max_iter=1000)
    p = cross_val_predict(classifier, x / 16, labels.numpy(), cv=3, method="predict_proba")
    return torch.tensor(p), labels, labels != torch.tensor(y)


def small(seed, classes=4, rows=60):
    g = torch.Generator().manual_seed(seed)
    p = torch.softmax(2 * torch.randn(rows, classes, generator=g, dtype=torch.float64), 1)
    labels = torch.multinomial(p**0.3, 1, generator=g)[:, 0]
    labels[:classes] = torch.arange(classes)
    return p, labels


def joint_of(p, labels):
    """Return whole counts (label, class), row by row, as in the paper."""
    classes, p, labels = p.shape[1], p.tolist(), labels.tolist()
    threshold = []
    for j in range(classes):
        own = [row[j] for row, label in zip(p, labels, strict=True) if label == j]
        threshold.append(sum(own) / len(own))
    counts = [[0] * classes for _ in range(classes)]
    confident = {}
    for n, (row, label) in enumerate(zip(p, labels, strict=True)):
        reached = [j for j in range(classes) if row[j] >= threshold[j] - 1e-6]
        if reached:
            confident[n] = max(reached, key=row.__getitem__)
            counts[label][confident[n]] += 1
    for i, line in enumerate(counts):
        line[i] = max(line[i], 1)
        share = [c * labels.count(i) for c in line]
        total = sum(line)
        whole = [s // total for s in share]
        # The largest remainders first; of equal ones the later class.
        order = sorted(range(classes), key=lambda j: (share[j] % total, j), reverse=True)
        for j in order[: labels.count(i) - sum(whole)]:
            whole[j] += 1
        counts[i] = whole
    return counts, confident


@pytest.mark.parametrize("seed", range(12))
def test_every_filter_against_a_direct_count(seed):
    p, labels = small(seed)
    joint, confident = joint_of(p, labels)
    rows = {i: [n for n, label in enumerate(labels.tolist()) if label == i] for i in range(4)}
    off = {n for n in range(len(labels)) if p[n].argmax() != labels[n]}
    by_class, by_rate = set(), set()
    for i in range(4):
        wanted = sum(joint[i]) - joint[i][i]
        by_class |= set(sorted(rows[i], key=lambda n: p[n, i].item())[:wanted])
        for j in set(range(4)) - {i}:
            by_rate |= set(sorted(rows[i], key=lambda n: (p[n, i] - p[n, j]).item())[: joint[i][j]])
    counted = {n for n, j in confident.items() if j != labels[n]}
    truth = {
        "prune_by_noise_rate": by_rate, "prune_by_class": by_class, "both": by_rate & by_class,
        "confident_learning": counted, "predicted_neq_given": off,
    }  # fmt: skip
    for name in FILTERS:
        found = find_label_issues(p, labels, filter_by=name)
        assert set(found.tolist()) == truth[name] & off, name
        assert (p[found, labels[found]].diff() >= 0).all()


@pytest.mark.parametrize("kind", NOISE)
def test_agrees_with_cleanlab(kind):
    pytest.importorskip("cleanlab")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanlab.count import compute_confident_joint
        from cleanlab.filter import find_label_issues as theirs
    p, labels, _ = digits(kind)
    joint = torch.tensor(joint_of(p, labels)[0])
    raw = compute_confident_joint(labels.numpy(), p.numpy(), calibrate=False)
    calibrated = compute_confident_joint(labels.numpy(), p.numpy())
    # cleanlab rounds counts with equal remainders in any order: by an unstable sort, which
    # differs from one processor to the other. Those of a line with the same count may be exchanged.
    for line, ours, counts in zip(calibrated, joint.tolist(), raw, strict=True):
        assert Counter(zip(counts, line, strict=True)) == Counter(zip(counts, ours, strict=True))
    for name in FILTERS:
        for score in SCORES:
            counts = {"confident_joint": joint.numpy()} if name in COUNTED else {}
            found = theirs(
                labels.numpy(), p.numpy(), filter_by=name, return_indices_ranked_by=score,
                n_jobs=1, **counts,
            )  # fmt: skip
            ours = find_label_issues(p, labels, filter_by=name, rank_by=score)
            assert ours.tolist() == found.tolist(), (name, score)


@pytest.mark.parametrize("name", FILTERS)
def test_classes_without_labels_and_near_ties_are_as_in_cleanlab(name):
    """Rows that reach several thresholds, but not that of their likeliest class."""
    pytest.importorskip("cleanlab")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanlab.filter import find_label_issues as theirs
    sets = [
        (torch.tensor(p, dtype=torch.float64), torch.tensor(labels))
        for p, labels in (
            ([[0.1, 0.7, 0.2], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.8, 0.1, 0.1]], [0, 0, 1, 1]),
            ([[0.4999999, 0.5000001], [0.5, 0.5], [0.9, 0.1], [0.1, 0.9]], [0, 0, 0, 1]),
            ([[0.49999, 0.50001], [0.5, 0.5], [0.9, 0.1], [0.1, 0.9]], [0, 0, 0, 1]),
        )
    ]  # fmt: skip
    for p, labels in sets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = theirs(
                labels.numpy(), p.numpy(), filter_by=name, n_jobs=1,
                return_indices_ranked_by="self_confidence",
            )  # fmt: skip
        assert find_label_issues(p, labels, filter_by=name).tolist() == found.tolist()


def test_how_often_the_rows_are_those_of_cleanlab():
    """README says how often: all but one in a thousand, on random predictions."""
    pytest.importorskip("cleanlab")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanlab.filter import find_label_issues as theirs
    rows = differing = 0
    for seed in range(20):
        p, labels = small(seed, classes=3 + seed % 4, rows=100 + 10 * seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mask = theirs(labels.numpy(), p.numpy(), n_jobs=1)
        found = set(mask.nonzero()[0].tolist())
        rows += len(found)
        differing += len(found ^ set(find_label_issues(p, labels).tolist()))
    assert rows > 500
    assert differing <= 0.01 * rows


def test_finds_wrong_labels_of_digits():
    p, labels, wrong = digits("sym .2")
    found = find_label_issues(p, labels)
    hits = wrong[found]
    assert hits.double().mean() > 0.8
    assert hits.sum() / wrong.sum() > 0.8
    assert hits[:100].double().mean() > 0.95  # the worst come first


def test_right_labels_are_left_alone():
    p = torch.softmax(9 * torch.eye(3), 1).repeat(5, 1)
    labels = torch.arange(3).repeat(5)
    for name in FILTERS:
        assert find_label_issues(p, labels, filter_by=name).tolist() == []
    tie = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
    for name in FILTERS:
        assert find_label_issues(tie, torch.tensor([0, 1, 1]), filter_by=name).tolist() == []


def test_quality():
    p, labels = small(3)
    own = p[torch.arange(60), labels]
    others = torch.where(torch.nn.functional.one_hot(labels, 4) == 1, -1, p).amax(1)
    assert torch.equal(label_quality(p, labels), own)
    assert torch.equal(label_quality(p, labels, "normalized_margin"), own - others)
    one = label_quality(torch.ones(3, 1), torch.zeros(3).long(), "self_confidence")
    assert one.tolist() == [1, 1, 1]


def test_bad_input():
    p, labels = small(0)
    with pytest.raises(ValueError, match="filter_by"):
        find_label_issues(p, labels, filter_by="prune")
    with pytest.raises(ValueError, match="rank_by"):
        find_label_issues(p, labels, rank_by="entropy")
    with pytest.raises(ValueError, match="score"):
        label_quality(p, labels, "margin")
    for function in (find_label_issues, label_quality):
        with pytest.raises(ValueError, match="softmax"):
            function(3 * p, labels)
        with pytest.raises(ValueError, match="one class for each"):
            function(p, labels[:-1])
        with pytest.raises(TypeError, match="integers"):
            function(p, labels.double())
        with pytest.raises(ValueError, match="classes, 0 to 3"):
            function(p, labels + 1)
        with pytest.raises(TypeError, match=r"`probabilities` must be a torch\.Tensor"):
            function("p", labels)
        with pytest.raises(TypeError, match=r"`labels` must be a torch\.Tensor"):
            function(p, {0: 1})
