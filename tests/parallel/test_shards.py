"""Classes over ranks: the loss, the digits and the gradients of one process."""

import inspect
import itertools
from time import perf_counter

import pytest
import torch

import xent
from xent.losses import CATALOG

from . import on_ranks
from .pool import values

pytestmark = pytest.mark.slow
ROWS, CLASSES = 12, 10
SPLITS = {
    "one": [0, 10],
    "even": [0, 5, 10],
    "uneven": [0, 2, 3, 10],
    "empty": [0, 0, 4, 4, 10],
}
WANTED = {"entropy": True, "mean": True, "top": True}
SETTINGS = {
    "logit_adjusted_loss": {"prior": torch.arange(1.0, 11.0)},
    "ldam_loss": {"counts": torch.arange(1.0, 11.0)},
    "vs_loss": {"counts": torch.arange(1.0, 11.0)},
    "backward_corrected_cross_entropy": {"matrix": torch.eye(10) * 0.8 + 0.02},
    "structured_cross_entropy": {"table": torch.eye(10) * 0.9 + 0.01},
    "taylorglo_loss": {"theta": [0.1] * 8},
}
OF_ROWS = sorted(name for name, m in CATALOG.items() if hasattr(m.function, "takes_shards"))


def rows(dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(ROWS, CLASSES, generator=g, dtype=torch.float64) * 3
    z[1, 3] += 300  # a margin of 300 nats
    z[2] += 1e4
    z[3, 4:] = -torch.inf
    y = torch.randint(CLASSES, (ROWS,), generator=g)
    y[1], y[3], y[4] = 3, 2, -100
    return z.to(dtype), y


def of_one_process(name, z, target, options):
    z = z.clone().requires_grad_()
    loss = getattr(xent.losses, name)(z, target, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), gradient


def of_ranks(ranks, call, two_steps):
    """The results of a function on the ranks, which merge in two steps if asked to."""
    function, count, *args = call
    if two_steps:
        return ranks.run(on_ranks.in_two_steps, count, function, *args)
    return ranks.run(function, count, *args)


def takes_soft(name):
    frame = getattr(CATALOG[name].function, "frame", None)
    return frame is not None and frame.soft and not frame.own and not frame.hyper.required


SOFT = [name for name in OF_ROWS if name != "cross_entropy" and takes_soft(name)]


def takes_logits(name):
    return next(iter(inspect.signature(CATALOG[name].function).parameters)) == "input"


def settings_of(name):
    function = CATALOG[name].function
    frame = getattr(function, "frame", None)
    missing = (
        []
        if frame is None
        else [n for n in frame.hyper.required if n not in SETTINGS.get(name, {})]
    )
    return SETTINGS.get(name, {}) | dict.fromkeys(missing, 0.2)


def agrees(ranks, name, z, target, options, edges, two_steps=False):
    """The loss and the gradients of the ranks are those of one process."""
    whole, slope = of_one_process(name, z, target, options)
    call = (on_ranks.loss_and_gradient, len(edges) - 1, name, z, target, edges, options)
    found = values(of_ranks(ranks, call, two_steps))
    eps = torch.finfo(z.dtype).eps
    for loss, _ in found:
        assert torch.equal(loss, found[0][0])  # the same bits on all ranks
        assert loss.dtype == whole.dtype
        largest = 16 * eps + torch.finfo(torch.float64).eps * z[z.isfinite()].abs().max()
        torch.testing.assert_close(
            loss.double(), whole.double(), rtol=float(largest), atol=float(largest),
            equal_nan=True,
        )  # fmt: skip
    gradient = torch.cat([gradient for _, gradient in found], 1)
    torch.testing.assert_close(
        gradient, slope, rtol=max(64 * eps, 1e-11), atol=1e-11, equal_nan=True
    )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cross_entropy_with_all_options(ranks, split, dtype):
    z, y = rows(dtype)
    weight = torch.linspace(0.5, 2, CLASSES).to(dtype)
    for options in (
        {},
        {"label_smoothing": 0.1, "weight": weight, "z_loss": 1e-4},
        {"reduction": "none", "class_bias": torch.linspace(-1, 1, CLASSES).to(dtype)},
        {"reduction": "sum", "softcap": 30.0, "logit_scale": 0.5},
        {"row_weight": torch.arange(ROWS).double(), "normalizer": 7.0},
    ):
        agrees(ranks, "cross_entropy", z, y, options, SPLITS[split])


@pytest.mark.parametrize("name", OF_ROWS)
def test_every_loss_of_rows(ranks, name):
    z, y = rows()
    z = z.clamp(-20, 20) / 20 if "cosine" in (CATALOG[name].function.__doc__ or "") else z
    z = torch.where(z.isfinite(), z, -5.0)
    agrees(ranks, name, z, y, settings_of(name), SPLITS["uneven"])


@pytest.mark.parametrize("split", SPLITS)
def test_soft_targets(ranks, split):
    z, _ = rows()
    z[3] = 0.0
    q = torch.randn(ROWS, CLASSES, dtype=torch.float64).softmax(1)
    for name in ("cross_entropy", *SOFT[:5]):
        agrees(ranks, name, z, q, {}, SPLITS[split])


@pytest.mark.parametrize("two_steps", [False, True])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("soft", [False, True])
def test_statistics(ranks, split, soft, two_steps):
    z, y = rows()
    z[3] = 0.0
    target = torch.randn(ROWS, CLASSES, dtype=torch.float64).softmax(1) if soft else y
    options = WANTED if soft else WANTED | {"squares": True, "cubes": True}
    edges = SPLITS[split]
    whole = xent.statistics(z, target, **options)
    call = (on_ranks.statistics_of, len(edges) - 1, z, target, edges, options)
    found = values(of_ranks(ranks, call, two_steps))
    for part in found:
        assert int(part.pop("classes")) == CLASSES
        for name, x in part.items():
            assert torch.equal(x, found[0][name]), name
            if soft and name == "log_odds":  # a function of log_prob, with a slope of 1 / miss
                continue
            torch.testing.assert_close(
                x, getattr(whole, name), rtol=1e-12, atol=1e-11, equal_nan=True, msg=name
            )


@pytest.mark.parametrize("split", ["uneven", "empty"])
@pytest.mark.parametrize("soft", [False, True])
def test_two_steps(ranks, split, soft):
    z, y = rows()
    z[3] = 0.0
    q = torch.randn(ROWS, CLASSES, dtype=torch.float64).softmax(1)
    for name in ("cross_entropy", SOFT[0] if soft else "focal_loss"):
        options = {"label_smoothing": 0.1} if name == "cross_entropy" else {}
        agrees(ranks, name, z[:11], (q if soft else y)[:11], options, SPLITS[split], True)


def test_two_steps_send_at_most_twice_the_packed_rows(ranks):
    call = (on_ranks.collectives, 4, "cross_entropy", {}, False)
    for counted in values(of_ranks(ranks, call, True)):
        assert [kind for kind, _ in counted] == ["record", "all_to_all", "all_gather", "backward"]
        rows, received = 8, counted[1][1] * 3 / 4 + counted[2][1] * 3
        assert received <= 2 * (2 * rows)


@pytest.mark.parametrize("edges", [SPLITS["even"], SPLITS["uneven"], SPLITS["empty"]])
@pytest.mark.parametrize("name", ["cross_entropy", "focal_loss"])
@pytest.mark.parametrize("workspace", [1 << 20, 1000])  # all rows at once; many chunks, uneven
def test_behind_a_head(ranks, name, edges, workspace):
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(100, 4, generator=g, dtype=torch.float64)
    weight = torch.randn(CLASSES, 4, generator=g, dtype=torch.float64)
    y = torch.randint(CLASSES, (100,), generator=g)
    y[::9] = -100
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    whole = getattr(xent.losses, name)(h @ w.T, y)
    whole.backward()
    found = values(
        ranks.run(
            on_ranks.head_and_gradients, len(edges) - 1, name, hidden, weight, y, edges, workspace
        )
    )
    for k, (loss, of_hidden, of_weight) in enumerate(found):
        torch.testing.assert_close(loss, whole.detach(), rtol=1e-14, atol=0)
        torch.testing.assert_close(of_hidden, h.grad, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(
            of_weight, w.grad[edges[k] : edges[k + 1]], rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize(
    ("name", "options", "soft", "numbers"),
    [
        ("cross_entropy", {}, False, 2),
        ("focal_loss", {}, False, 2),
        ("cross_entropy", {}, True, 4),
        ("cross_entropy", {"label_smoothing": 0.1}, False, 5),
        ("confidence_penalty_loss", {}, False, 3),
    ],
)
def test_one_gather_forward_and_none_backward(ranks, name, options, soft, numbers):
    for counted in values(ranks.run(on_ranks.collectives, 3, name, options, soft)):
        kinds = [kind for kind, _ in counted]
        assert kinds == ["record", "all_gather", "backward"], counted
        assert counted[1][1] == numbers * 8  # per row


def test_behind_a_head_each_chunk_has_one_gather_and_one_sum_of_its_features(ranks):
    for rows, chunks in ((8, 1), (4, 2)):
        for counted in values(ranks.run(on_ranks.head_collectives, 3, rows)):
            of_chunk = [("all_gather", 2 * rows), ("all_reduce", 3 * rows)]
            assert counted[1:] == [*of_chunk * chunks, ("backward", 0)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({1: {"rows": 5}}, "rank 1: 5 rows"),
        ({1: {"start": 2}}, "rank 1: 2 to 5"),
        ({2: {"start": 7, "width": 2}}, "rank 2: 7 to 9"),
        ({0: {"dtype": torch.float64}}, "rank 0: torch.float64"),
        ({2: {"options": {"gamma": 3.0}}}, "rank 2: focal_loss(gamma=3.0"),
        ({1: {"options": {"reduction": "sum"}}}, "reduction='sum'"),
        ({1: {"loss": "poly1_loss"}}, "rank 1: poly1_loss"),
        (
            {
                1: {"options": {"class_bias": torch.ones(9)}},
                0: {"options": {"class_bias": torch.zeros(9)}},
                2: {"options": {"class_bias": torch.zeros(9)}},
            },
            "class_bias=a tensor (9,) #",
        ),
        ({2: {"label": 1}}, "`target` is not the same on rank 0 and rank 2"),
        ({1: {"options": {"gamma": -1.0}}}, "`gamma` must be"),
        ({0: {"label": 9}}, "class index 9"),
        (
            {
                k: {"options": {"logit_scale": torch.ones((), requires_grad=k == 1)}}
                for k in range(3)
            },
            "rank 1: focal_loss(logit_scale=a tensor () that requires a gradient",
        ),
    ],
)
def test_all_ranks_hear_of_a_disagreement(ranks, change, words):
    seconds = []
    for _ in range(3):
        started = perf_counter()
        heard = ranks.run(on_ranks.message, 3, change)
        seconds.append(perf_counter() - started)
        assert all(words in text for text in heard), heard
    assert min(seconds) < 1  # the other two may wait for a busy machine


def test_losses_that_need_all_classes_refuse(ranks):
    others = {name for name in CATALOG.keys() - set(OF_ROWS) if takes_logits(name)}
    assert len(others) > 20
    for name in sorted(others):
        for text in ranks.run(on_ranks.refused, 2, name):
            assert text.startswith(f"TypeError: {name} takes no logits"), (name, text)
            assert "gather()" in text, (name, text)


def test_the_splits_cover_all_classes():
    for edges in SPLITS.values():
        assert sum(b - a for a, b in itertools.pairwise(edges)) == CLASSES


@pytest.mark.parametrize(
    ("function", "args", "options"),
    [
        ("cross_entropy", (torch.arange(12).reshape(3, 4) % 10,), {}),
        ("token_log_probs", (torch.arange(12).reshape(3, 4) % 10,), {"temperature": 0.7}),
        ("token_log_probs", (torch.arange(12).reshape(3, 4) % 10,), {"shift": 1}),
        ("entropy", (), {}),
    ],
)
def test_classes_on_the_last_axis(ranks, function, args, options):
    z = torch.randn(3, 4, CLASSES, dtype=torch.float64) * 3
    edges = SPLITS["uneven"]
    leaf = z.clone().requires_grad_()
    axis = {"class_dim": -1} if function == "cross_entropy" else {}
    whole = getattr(xent, function)(leaf, *args, **options, **axis)
    (slope,) = torch.autograd.grad(whole.sum(), leaf)
    found = values(ranks.run(on_ranks.called, 3, function, z, args, edges, options))
    for result, _ in found:
        torch.testing.assert_close(result, whole.detach(), rtol=1e-13, atol=1e-14)
    gradient = torch.cat([g for _, g in found], -1)
    torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-13)


def test_all_logits_if_they_are_needed(ranks):
    z, _ = rows()
    z = z.clamp(-9, 9)
    found = values(ranks.run(on_ranks.all_logits, 4, z, SPLITS["empty"]))
    for whole, _ in found:
        assert torch.equal(whole, z)
    assert torch.equal(torch.cat([g for _, g in found], 1), 2 * z)


def test_what_would_be_wrong_on_one_rank_is_refused(ranks):
    for text in values(ranks.run(on_ranks.second_derivative, 2)):
        assert text.startswith("NotImplementedError")
        assert "first derivatives only" in text
    for text in values(ranks.run(on_ranks.learned_weight, 2)):
        assert text.startswith("NotImplementedError: a class weight or a table")


def test_transforms_are_refused_or_right(ranks):
    for *transforms, compiled in values(ranks.run(on_ranks.transformed, 1)):
        assert all(text.startswith("NotImplementedError") for text in transforms), transforms
        assert compiled == "no error" or compiled.startswith("NotImplementedError")


@pytest.mark.filterwarnings("ignore:.*all their numbers")
@pytest.mark.parametrize("behind_a_head", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        {"logit_scale": torch.tensor(1.5, dtype=torch.float64)},
        {"class_bias": torch.linspace(-1, 1, CLASSES, dtype=torch.float64)},
        {
            "logit_scale": torch.linspace(0.5, 2, ROWS, dtype=torch.float64),
            "class_bias": torch.linspace(-1, 1, CLASSES, dtype=torch.float64),
        },
    ],
)
def test_learned_options(ranks, given, behind_a_head):
    g = torch.Generator().manual_seed(2)
    hidden, weight, bias = (
        torch.randn(*size, generator=g, dtype=torch.float64)
        for size in ((ROWS, 4), (CLASSES, 4), (CLASSES,))
    )
    z, y = torch.nn.functional.linear(hidden, weight, bias), torch.arange(ROWS) % CLASSES
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    whole = xent.cross_entropy(z, y, **leaves)
    truth = (whole.detach(), *torch.autograd.grad(whole, leaves.values()))
    parts = [hidden, weight, bias] if behind_a_head else [z]
    for found in values(ranks.run(on_ranks.learned, 3, parts, y, SPLITS["uneven"], given)):
        for x, expected in zip(found, truth, strict=True):
            torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-13)


def test_accelerators_gather_a_record_once_for_each_signature(ranks):
    for counted in values(ranks.run(on_ranks.signatures, 2)):
        kinds = [kind for kind, _ in counted]
        assert kinds == ["record", "all_gather", "backward", "all_gather", "backward"]


def test_modules_own_losses_and_statistics(ranks):
    z, y = rows()
    edges = SPLITS["uneven"]
    whole, slope = of_one_process("cross_entropy", z, y, {})
    expected = [
        on_ranks.own_loss(z, y, power=3.0), xent.losses.focal_loss(z, y, gamma=1.5), whole,
        xent.statistics(z, y).log_prob, whole,
    ]  # fmt: skip
    found = values(ranks.run(on_ranks.other_ways, 3, z, y, edges))
    for *results, _ in found:
        for x, truth in zip(results, expected, strict=True):
            torch.testing.assert_close(x, truth, rtol=1e-12, atol=1e-11)
    gradient = torch.cat([part[-1] for part in found], 1)
    torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-11)


def test_memory_beyond_the_own_shard(ranks):
    rows, own, count, numbers = 64, 500, 4, 2
    for forward, backward, engine in values(ranks.run(on_ranks.largest_tensors, count)):
        assert backward == rows * own  # the gradient, and nothing for the classes of all ranks
        if engine == "native":
            assert forward <= max(rows * count * numbers, 512)  # the words of a record
        assert forward <= rows * own


def test_gathered_logits_are_in_the_order_of_the_classes(ranks):
    z = torch.arange(24.0).reshape(2, 12)
    for whole in values(ranks.run(on_ranks.gathered_in_another_order, 4, z)):
        assert torch.equal(whole, z)


def test_all_ranks_hear_of_what_would_change_their_collectives(ranks):
    words = {
        "targets": "`target` is not the same", "gradient": "other tensors that require a gradient",
        "products": "another type of products", "dense": "sparsemax_loss takes no logits",
        "rows": "rank 0: rows=2; rank 1: rows=3", "documents": "rank 1: k=1, documents=1",
    }  # fmt: skip
    for found in values(ranks.run(on_ranks.disagreements, 2)):
        for name, text in found.items():
            assert words[name] in text, (name, text)
