"""Detection heads against the rules of darknet, box by box; hierarchies of classes."""

import itertools
import math

import mpmath
import pytest
import torch
from torch import Tensor

import xent
from tests.helpers import ulps
from xent.losses import CATALOG

B, A, C, H, W = 2, 2, 3, 4, 5
TREE = (-1, -1, -1, 0, 0, 2, 2, 2, 4, 4, 6)  # three roots; 3 4 below 0, 5 6 7 below 2, and so on


def uniform(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=g, dtype=torch.float64)


def scene(seed: int = 0) -> dict[str, Tensor]:
    """Return a head and its targets; a third of the boxes is responsible, many overlap objects."""
    return {
        "input": 6 * uniform(B, A * (5 + C), H, W, seed=seed) - 3,
        "responsible": uniform(B, A, H, W, seed=seed + 1) < 0.3,
        "labels": (C * uniform(B, A, H, W, seed=seed + 2)).long(),
        "iou": uniform(B, A, H, W, seed=seed + 3),
        "best_iou": uniform(B, A, H, W, seed=seed + 4),
        "center": uniform(B, A, 2, H, W, seed=seed + 5),
    }


def cells():
    return itertools.product(range(B), range(A), range(H), range(W))


def logistic(z: float, t: float) -> float:
    """Compute logistic cross-entropy in 30 digits."""
    p = 1 / (1 + mpmath.exp(-mpmath.mpf(z)))
    return float(-t * mpmath.log(p) - (1 - t) * mpmath.log(1 - p))


def by_the_rules(scene, version, rescore, scales, ignore_above, truth_above=1.0, multi=None):
    """Return the three sums and darknet's delta, as a gradient, one box at a time."""
    object_scale, noobject_scale, class_scale, center_scale = scales
    input = scene["input"]
    sums, delta = [0.0, 0.0, 0.0], torch.zeros_like(input)
    for b, a, i, j in cells():
        first = a * (5 + C)
        z = input[b, first : first + 5 + C, i, j]
        d = delta[b, first : first + 5 + C, i, j]
        sure = scene["best_iou"][b, a, i, j] > truth_above
        responsible = bool(scene["responsible"][b, a, i, j])
        if not responsible and not sure:
            if scene["best_iou"][b, a, i, j] <= ignore_above:
                sums[0] += noobject_scale * logistic(z[4].item(), 0.0)
                d[4] = noobject_scale * z[4].sigmoid()
            continue
        t = scene["iou"][b, a, i, j].item() if rescore and responsible else 1.0
        sums[0] += object_scale * logistic(z[4].item(), t)
        d[4] = object_scale * (z[4].sigmoid() - t)
        label = scene["labels"][b, a, i, j]
        if version == "v2":
            p = z[5:].softmax(0)
            sums[1] += -class_scale * p[label].log().item()
            d[5:] = class_scale * p
            d[5 + label] -= class_scale
        else:
            one_hot = torch.nn.functional.one_hot(label, C).double()
            y = one_hot if multi is None else multi[b, a, :, i, j]
            sums[1] += class_scale * sum(map(logistic, z[5:].tolist(), y.tolist()))
            d[5:] = class_scale * (z[5:].sigmoid() - y)
        place = scene["center"][b, a, :, i, j]
        sums[2] += center_scale * sum(map(logistic, z[:2].tolist(), place.tolist()))
        d[:2] = center_scale * (z[:2].sigmoid() - place)
    return sums, delta


def call(arguments):
    arguments = dict(arguments)
    return xent.losses.yolo_loss(arguments.pop("input"), **arguments)


def ours(scene, **options):
    z = scene["input"].clone().requires_grad_()
    parts = call({**scene, **options, "input": z})
    (gradient,) = torch.autograd.grad(parts.total.sum(), z)
    return [part.detach() for part in parts], gradient


def close(got, wanted, scale: float = 1.0):
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13 * scale)


# ---- the head -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_values_and_gradient_follow_the_rules(version):
    data = scene()
    scales, above = ((5.0, 1.0, 1.0, 1.0), 0.6) if version == "v2" else ((1.0,) * 4, 0.5)
    sums, delta = by_the_rules(data, version, True, scales, above)
    parts, gradient = ours(data, version=version, reduction="sum")
    for part, wanted in zip(parts, sums, strict=True):
        assert part.item() == pytest.approx(wanted, rel=1e-13)
    close(gradient, delta)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_every_option(version):
    data = scene(10)
    scales = (3.0, 0.5, 2.0, 0.7)
    sums, delta = by_the_rules(data, version, False, scales, 0.3, truth_above=0.8)
    parts, gradient = ours(
        data, version=version, iou=None, ignore_above=0.3, truth_above=0.8, object_scale=3.0,
        noobject_scale=0.5, class_scale=2.0, center_scale=0.7, normalizer=7.0,
    )  # fmt: skip
    for part, wanted in zip(parts, sums, strict=True):
        assert part.item() == pytest.approx(wanted / 7, rel=1e-13)
    close(gradient, delta / 7)


def test_the_mean_is_over_images():
    data = scene()
    total, gradient = ours(data, reduction="sum")
    mean, gradient_of_mean = ours(data)
    for t, m in zip(total, mean, strict=True):
        close(m, t / B)
    close(gradient_of_mean, gradient / B)
    boxes, _ = ours(data, reduction="none")
    for t, each in zip(total, boxes, strict=True):
        assert each.shape == (B, A, H, W)
        close(each.sum(), t)


def test_the_class_slice_gets_p_minus_onehot_for_each_anchor():
    data = scene()
    _, gradient = ours(data, version="v2", class_scale=1.5, center=None, normalizer=4.0)
    heads = data["input"].unflatten(1, (A, 5 + C))
    one_hot = torch.nn.functional.one_hot(data["labels"], C).movedim(-1, 2)
    expected = (heads[:, :, 5:].softmax(2) - one_hot) * data["responsible"].unsqueeze(2)
    close(gradient.unflatten(1, (A, 5 + C))[:, :, 5:], expected * 1.5 / 4)


def test_boxes_in_the_band_are_left_alone():
    data = scene()
    band = ~data["responsible"] & (data["best_iou"] > 0.6)
    assert band.any()
    _, gradient = ours(data, version="v2")
    by_box = gradient.unflatten(1, (A, 5 + C)).movedim(2, -1)
    assert (by_box[band] == 0).all()
    assert (by_box[~band & ~data["responsible"]][:, 4] > 0).all()


def test_two_labels_fit_into_v3_and_not_into_v2():
    data = scene()
    several = (uniform(B, A, C, H, W, seed=9) < 0.5).double()
    several[:, :, :2] = 1.0  # every box has the first two labels
    sums, delta = by_the_rules(data, "v3", True, (1.0,) * 4, 0.5, multi=several)
    parts, gradient = ours(data, version="v3", labels=several, reduction="sum")
    assert parts[1].item() == pytest.approx(sums[1], rel=1e-13)
    close(gradient, delta)
    bool_labels, _ = ours(data, version="v3", labels=several.bool(), reduction="sum")
    close(bool_labels[1], parts[1])
    with pytest.raises(ValueError, match="one label per box"):
        ours(data, version="v2", labels=several)

    # A logistic per class can be sure of both labels; a softmax gives each at best 1/2: log 2.
    z = torch.full((1, 5 + C, 1, 1), -30.0, dtype=torch.float64)
    z[0, 5:7] = 30.0
    here, both = torch.ones(1, 1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, C, 1, 1)
    both[0, 0, :2] = 1.0
    assert xent.losses.yolo_loss(z, here, both, version="v3").classes < 1e-12
    for label in (0, 1):
        target = torch.full((1, 1, 1, 1), label)
        loss = xent.losses.yolo_loss(z, here, target, version="v2").classes
        assert loss.item() == pytest.approx(math.log(2), rel=1e-12)


def test_an_index_is_a_one_hot_label():
    data = scene()
    one_hot = torch.nn.functional.one_hot(data["labels"], C).movedim(-1, 2)
    for a, b in zip(ours(data)[0], ours(data, labels=one_hot.double())[0], strict=True):
        close(a, b)


def test_center_scale_of_each_box():
    data = scene()
    scale = 2 - uniform(B, A, H, W, seed=7)
    boxes, _ = ours(data, reduction="none")
    scaled, _ = ours(data, center_scale=scale, reduction="none")
    close(scaled[2], boxes[2] * scale)
    close(scaled[0], boxes[0])
    assert (ours(data, center=None)[0][2] == 0).all()


def test_targets_elsewhere_are_not_read():
    data = scene()
    expected = ours(data)
    elsewhere = ~data["responsible"]
    changed = {
        **data,
        "labels": torch.where(elsewhere, 999, data["labels"]),
        "iou": torch.where(elsewhere, torch.nan, data["iou"]),
        "center": torch.where(elsewhere.unsqueeze(2), torch.nan, data["center"]),
    }
    for version in ("v2", "v3"):
        (parts, gradient), expected = ours(changed, version=version), ours(data, version=version)
        for a, b in zip([*parts, gradient], [*expected[0], expected[1]], strict=True):
            assert torch.equal(a, b)


def test_the_iou_is_a_constant():
    data = scene()
    iou = data["iou"].clone().requires_grad_()
    z = data["input"].clone().requires_grad_()
    loss = xent.losses.yolo_loss(z, data["responsible"], data["labels"], iou=iou * 1.0).total
    loss.backward()
    assert iou.grad is None


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_float32_and_far_logits(version):
    data = scene()
    for magnitude in (1.0, 30.0):
        z = (data["input"] * magnitude).float()
        narrow = {k: v.float() if v.is_floating_point() else v for k, v in data.items()}
        wide = {k: v.double() if v.is_floating_point() else v for k, v in narrow.items()}
        parts, gradient = ours({**narrow, "input": z}, version=version)
        truth, truth_gradient = ours({**wide, "input": z.double()}, version=version)
        for part, wanted in zip(parts, truth, strict=True):
            assert part.dtype == torch.float32
            assert ulps(part, wanted) <= 4
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient.double(), truth_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_gradcheck(version):
    data = scene()
    keep = {k: v[:1, :, ..., :2, :2] for k, v in data.items() if k != "input"}
    z = data["input"][:1, :, :2, :2].clone().requires_grad_()

    def total(x):
        return xent.losses.yolo_loss(x, **keep, version=version).total

    assert torch.autograd.gradcheck(total, z, fast_mode=True)
    assert torch.autograd.gradgradcheck(total, z, fast_mode=True)


def test_channels_last_and_slices_give_the_same():
    data = scene()
    parts, gradient = ours(data, version="v2")
    for z in (
        data["input"].to(memory_format=torch.channels_last),
        torch.cat([data["input"]] * 2, 3)[..., :W],
    ):
        again, gradient_again = ours({**data, "input": z}, version="v2")
        for a, b in zip([*again, gradient_again], [*parts, gradient], strict=True):
            close(a, b)


def test_bad_heads():
    data = scene()
    for name, change, message in (
        ("input", {"input": data["input"][:, :-1]}, r"A \* \(5 \+ C\)"),
        ("input", {"input": data["input"][:, :10]}, "C at least 1"),
        ("input", {"input": data["input"][0]}, r"\(B, A \* \(5 \+ C\), H, W\)"),
        ("responsible", {"responsible": data["responsible"][..., :-1]}, "batch and grid"),
        ("labels", {"labels": data["labels"][:1]}, "labels"),
        ("labels", {"labels": data["labels"] + C}, "out of bounds"),
        ("iou", {"iou": data["iou"][0]}, "iou"),
        ("best_iou", {"best_iou": data["best_iou"][0]}, "best_iou"),
        ("center", {"center": data["center"][:, :, :1]}, "center"),
        ("center", {"center": data["center"] + 1}, "not in the image"),
        ("center_scale", {"center_scale": torch.ones(3)}, "center_scale"),
        ("version", {"version": "v4"}, "version"),
        ("normalizer", {"normalizer": "count"}, "normalizer"),
        ("normalizer", {"normalizer": 2.0, "reduction": "sum"}, "normalizer"),
        ("object_scale", {"object_scale": math.nan}, "finite"),
        ("truth_above", {"truth_above": math.nan}, "finite"),
        ("tree", {"tree": TREE, "version": "v3"}, "tree"),
    ):
        for version in ("v2", "v3"):
            with pytest.raises(ValueError, match=message):
                call({**data, "version": version, **change})
        assert name in change
    for change in (
        {"responsible": data["responsible"].long()},
        {"labels": data["labels"].double()},
        {"input": data["input"].long()},
    ):
        with pytest.raises(TypeError):
            call({**data, **change})


# ---- hierarchies ----------------------------------------------------------------------------


def siblings(node: int) -> list[int]:
    return [k for k, above in enumerate(TREE) if above == TREE[node]]


def node_log_prob(z: Tensor, node: int) -> Tensor:
    """Return the log-probability of a node: conditional probabilities up to its root."""
    total = z.new_zeros(())
    while node >= 0:
        total = total + z[node] - torch.logsumexp(z[siblings(node)], 0)
        node = TREE[node]
    return total


def test_every_node_as_a_target():
    z = 4 * uniform(len(TREE), len(TREE)) - 2
    target = torch.arange(len(TREE))
    x = z.clone().requires_grad_()
    losses = xent.losses.wordtree_cross_entropy(x, target, TREE, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    y = z.clone().requires_grad_()
    truth = torch.stack([-node_log_prob(row, node) for node, row in enumerate(y)])
    (truth_gradient,) = torch.autograd.grad(truth.sum(), y)
    close(losses, truth.detach())
    close(gradient, truth_gradient)
    close(xent.losses.wordtree_cross_entropy(z, target, TREE), truth.detach().mean())


def test_the_probabilities_of_siblings_sum_to_1():
    z = 4 * uniform(len(TREE)) - 2
    log_p = -xent.losses.wordtree_cross_entropy(
        z.expand(len(TREE), -1), torch.arange(len(TREE)), TREE, reduction="none"
    )
    for above in sorted(set(TREE)):
        family = [k for k, parent in enumerate(TREE) if parent == above]
        whole = 1.0 if above < 0 else log_p[above].exp()
        close(log_p[family].exp().sum(), torch.as_tensor(whole, dtype=torch.float64))
    leaves = [k for k in range(len(TREE)) if k not in TREE]
    close(log_p[leaves].exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_gradient_stays_among_the_siblings_of_the_path():
    z = (4 * uniform(1, len(TREE)) - 2).requires_grad_()
    loss = xent.losses.wordtree_cross_entropy(
        z, torch.tensor([9]), TREE
    )  # the path is 9, its parent 4 and the root 0
    (gradient,) = torch.autograd.grad(loss, z)
    on_the_way = {k for node in (9, 4, 0) for k in siblings(node)}
    for k in range(len(TREE)):
        assert (gradient[0, k] != 0) == (k in on_the_way)
    for node in (9, 4, 0):  # p - onehot among siblings, whose p sum to 1
        assert gradient[0, siblings(node)].sum().abs() < 1e-15
        assert (gradient[0, node] + 1).item() == pytest.approx(
            z[0, siblings(node)].softmax(0)[siblings(node).index(node)].item(), rel=1e-14
        )


def test_a_flat_tree_is_cross_entropy():
    z, y = 4 * uniform(6, 5, 2, 3) - 2, (5 * uniform(6, 2, 3, seed=1)).long()
    y[0, 0] = -100
    weight = uniform(6, 2, 3, seed=2)
    for options in ({}, {"reduction": "sum"}, {"row_weight": weight}, {"normalizer": 3.0}):
        flat = xent.losses.wordtree_cross_entropy(z, y, [-1] * 5, **options)
        plain = xent.cross_entropy(z, y, **options)
        close(flat, plain)
    single = xent.losses.wordtree_cross_entropy(z[0, :, 0, 0], y[1, 0, 0], [-1] * 5)
    close(single, xent.cross_entropy(z[0, :, 0, 0], y[1, 0, 0]))


def test_sure_of_every_step_in_float32():
    for margin in (0.0, 20.0, 80.0):
        z = torch.tensor([[margin, 0.0, 0.0, margin, 0.0]])
        loss = xent.losses.wordtree_cross_entropy(z, torch.tensor([3]), [-1, -1, -1, 0, 0])
        m = mpmath.mpf(margin)
        truth = mpmath.log1p(2 * mpmath.exp(-m)) + mpmath.log1p(mpmath.exp(-m))
        assert ulps(loss, torch.tensor(float(truth), dtype=torch.float64)) <= 4


def test_the_tree_of_a_head():
    nodes = len(TREE)
    z = 4 * uniform(B, A * (5 + nodes), H, W) - 2
    responsible = uniform(B, A, H, W, seed=1) < 0.3
    labels = (nodes * uniform(B, A, H, W, seed=2)).long()
    part = xent.losses.yolo_loss(
        z, responsible, labels, version="v2", tree=TREE, class_scale=2.0, reduction="none"
    ).classes
    for b, a, i, j in cells():
        logits = z[b, a * (5 + nodes) + 5 : (a + 1) * (5 + nodes), i, j]
        wanted = -2 * node_log_prob(logits, int(labels[b, a, i, j])) * responsible[b, a, i, j]
        close(part[b, a, i, j], wanted)


def test_gradcheck_of_a_tree():
    z = (4 * uniform(3, len(TREE)) - 2).requires_grad_()
    target = torch.tensor([10, -100, 8])

    def loss(x):
        return xent.losses.wordtree_cross_entropy(x, target, TREE)

    assert torch.autograd.gradcheck(loss, z, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, z, fast_mode=True)


def test_no_rows_and_ignored_rows():
    z = uniform(2, len(TREE)).requires_grad_()
    ignored = torch.tensor([-100, -100])
    assert xent.losses.wordtree_cross_entropy(z, ignored, TREE).isnan()
    total = xent.losses.wordtree_cross_entropy(z, ignored, TREE, reduction="sum")
    assert total.item() == 0
    assert xent.losses.wordtree_cross_entropy(z[:0], ignored[:0], TREE, reduction="sum").item() == 0


def test_bad_trees_and_targets():
    z, y = uniform(2, 4), torch.tensor([0, 1])
    for tree, message in (
        ([-1, -1, 3, 0], "before its children"),
        ([-1, 0, -1, 0], "next to each other"),
        ([-1, 1, 0, 0], "before its children"),
        ([-1, -1, 0], "names 3 nodes"),
        ([], "names 0 nodes"),
    ):
        with pytest.raises(ValueError, match=message):
            xent.losses.wordtree_cross_entropy(z, y, tree)
    tree = [-1, -1, 0, 0]
    with pytest.raises(IndexError, match="out of bounds"):
        xent.losses.wordtree_cross_entropy(z, torch.tensor([0, 4]), tree)
    with pytest.raises(ValueError, match="names 4 nodes"):
        xent.losses.wordtree_cross_entropy(z[0, 0], y[0], tree)
    with pytest.raises(ValueError, match="`target` must have shape"):
        xent.losses.wordtree_cross_entropy(z, y[:1], tree)
    with pytest.raises(TypeError, match="integers"):
        xent.losses.wordtree_cross_entropy(z, y.double(), tree)


# ---- facts ----------------------------------------------------------------------------------


def test_facts_of_the_catalog():
    """Convex along every line, not bounded, and least in expectation at the truth."""
    data = scene()
    head = {k: v for k, v in data.items() if k != "input"}
    target = torch.arange(len(TREE))
    z = 4 * uniform(len(TREE), len(TREE)) - 2
    calls = {
        "yolo_loss": (
            lambda x: xent.losses.yolo_loss(x, **head, version="v2").total,
            data["input"],
        ),
        "wordtree_cross_entropy": (
            lambda x: xent.losses.wordtree_cross_entropy(x, target, TREE),
            z,
        ),
    }
    for name, (call, point) in calls.items():
        facts = CATALOG[name]
        assert (facts.targets, facts.bounded, facts.symmetric) == ("other", False, False)
        assert facts.convex
        assert facts.proper
        for seed in range(5):
            step = 10 * (uniform(*point.shape, seed=seed) - 0.5)
            middle = call(point + step / 2)
            assert middle <= (call(point) + call(point + step)) / 2 + 1e-12
        assert call(point * 1e4) > 1e3

    # Proper: the gradient of the expected loss is 0 at the true probabilities of the leaves.
    leaves = [k for k in range(len(TREE)) if k not in TREE]
    x = z[:1].expand(len(leaves), -1).clone().requires_grad_()
    losses = xent.losses.wordtree_cross_entropy(x, torch.tensor(leaves), TREE, reduction="none")
    (gradient,) = torch.autograd.grad((losses * (-losses).exp().detach()).sum(), x)
    assert gradient.sum(0).abs().max() < 1e-15
