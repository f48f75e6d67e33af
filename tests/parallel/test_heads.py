"""Heads whose weight is a DTensor: the loss, the digits and the gradients of one process."""

import pytest
import torch

import xent

from . import heads_on_ranks
from .pool import values

pytestmark = pytest.mark.slow


def parts_of(classes, bias=True, dtype=torch.float64):
    g = torch.Generator().manual_seed(classes)
    hidden = torch.randn(5, 7, 4, generator=g, dtype=dtype)
    weight = torch.randn(classes, 4, generator=g, dtype=dtype)
    y = torch.randint(classes, (5, 7), generator=g)
    y[:, ::3] = -100
    y[0, 1:5] = -100
    return [hidden, weight, torch.randn(classes, generator=g, dtype=dtype) if bias else None], y


def of_one_process(parts, target, calls):
    found = []
    for name, options in calls:
        leaves = [x.clone().requires_grad_() for x in parts if x is not None]
        z = torch.nn.functional.linear(*leaves)
        loss = getattr(xent.losses, name)(z, target, class_dim=-1, **options)
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaves)))
    return found


def calls_for(classes, soft):
    weight = torch.linspace(0.5, 2, classes).double()
    return [
        ("cross_entropy", {}),
        ("cross_entropy", {"reduction": "sum"} if soft else {"reduction": "sum", "weight": weight}),
        ("cross_entropy", {"label_smoothing": 0.1, "weight": weight, "z_loss": 1e-3}),
        ("cross_entropy", {"reduction": "none", "softcap": 9.0, "logit_scale": 0.7}),
        ("focal_loss", {"gamma": 1.5}) if not soft else ("cross_entropy", {}),
    ]


# Where features, weight and targets lie, on a mesh of these dimensions.
PLACES = [
    ((4,), ["-", "0", "-"]),
    ((4,), ["1", "0", "-"]),  # sequence parallelism
    ((2,), ["0", "0", "-"]),
    ((2, 2), ["0 -", "- 0", "0 -"]),
    ((2, 2), ["1 0", "- 0", "1 -"]),  # pieces of sequences, and features split once more
    ((2, 2), ["- 1", "0 -", "- 1"]),
    ((2, 2), ["0 1", "- -", "0 1"]),  # the weight on every rank
    ((2, 2), ["- -", "- 0", "- -"]),
]


def agree(ranks, dims, parts, target, places, calls):
    """The ranks have the losses and gradients of one process."""
    expected = of_one_process(parts, target, calls)
    count = torch.Size(dims).numel()
    for found in values(
        ranks.run(heads_on_ranks.losses, count, dims, parts, target, places, calls, 2000)
    ):
        for numbers, truths in zip(found, expected, strict=True):
            for x, truth in zip(numbers, truths, strict=True):
                torch.testing.assert_close(x, truth, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("dims", "places"), PLACES, ids=str)
@pytest.mark.parametrize(("classes", "soft"), [(97, False), (3, False), (97, True)])
def test_the_loss_of_one_process(ranks, dims, places, classes, soft):
    parts, y = parts_of(classes, bias=not soft)
    target = torch.randn(5, 7, classes, dtype=torch.float64).softmax(-1) if soft else y
    agree(ranks, dims, parts, target, places, calls_for(classes, soft))


def test_a_rank_without_rows(ranks):
    (hidden, *others), y = parts_of(10)
    places = ["0 -", "- 0", "0 -"]
    agree(ranks, (2, 2), [hidden[:1], *others], y[:1], places, calls_for(10, False))


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_plans_of_tensor_parallelism(ranks, gathers, local):
    (hidden, weight, bias), y = parts_of(10)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    z = torch.nn.functional.linear(*leaves)[:, :-1] * 0.5
    loss = torch.nn.functional.cross_entropy(z.reshape(-1, 10), y[:, 1:].flatten())
    loss.backward()
    expected = [loss.detach(), *(x.grad for x in leaves)]
    for found in values(
        ranks.run(heads_on_ranks.in_a_plan, 4, [hidden, weight, bias], y, gathers, local)
    ):
        for x, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(x, truth, rtol=1e-6, atol=1e-7, check_dtype=False)


@pytest.mark.parametrize(("workspace", "chunks"), [(1 << 20, 1), (300, 2)])
@pytest.mark.parametrize("place", ["-", "1"])
def test_one_gather_for_a_chunk_and_one_reduction(ranks, place, workspace, chunks):
    parts, y = parts_of(12)
    made, added_up, reduced = {}, {"allreduce": chunks}, {}  # begun in forward
    if place == "1":  # features that came split
        made, added_up, reduced = {"all_gather_into_tensor": 1}, {}, {"reduce_scatter_tensor": 1}
    for first, forward, backward in values(
        ranks.run(heads_on_ranks.collectives, 4, parts, y, place, workspace)
    ):
        assert first == made
        assert backward == reduced
        assert forward == {"allgather_base": 1 + chunks} | added_up  # the first is the record


def test_a_gather_of_a_head_has_the_gradient_of_all_classes(ranks):
    parts, _ = parts_of(10, bias=False)
    hidden, weight = (x.clone().requires_grad_() for x in parts[:2])
    slope, of_weight = torch.autograd.grad((hidden @ weight.T).square().sum(), (hidden, weight))
    found = values(ranks.run(heads_on_ranks.gathered_head, 2, *parts[:2]))
    for own, _ in found:
        torch.testing.assert_close(own, slope)
    torch.testing.assert_close(torch.cat([own for _, own in found]), of_weight)


def test_functions_of_a_split_head(ranks):
    parts, y = parts_of(10)
    leaves = [x.clone().requires_grad_() for x in parts]
    z = torch.nn.functional.linear(*leaves)
    slopes = torch.autograd.grad(z.square().sum(), leaves)
    log_prob = xent.token_log_probs(z, y)
    mean = xent.cross_entropy(z, y, class_dim=-1)
    mask = torch.arange(10) % 2 > 0
    truth = {
        "token_log_probs": log_prob, "moved back": log_prob, "entropy": xent.entropy(z),
        "entropy too": xent.entropy(z).masked_fill(y == -100, 0), "statistics": log_prob,
        "stats": log_prob, "loss": mean, "moved": mean, "materialize": z,
        "materialize, local": z, "full_tensor": z, "argmax": z.argmax(-1),
        "log_softmax": z.log_softmax(-1), "classes": z[..., 1:3],
        "masked": z.masked_fill(mask, -9.0),
    }  # fmt: skip
    for name in ("materialize", "materialize, local"):
        truth |= {f"{name} {k}": slope for k, slope in enumerate(slopes)}
    words = {
        "no DTensors": "TypeError", "no DTensors, statistics": "to_local()",
        "dense": "sparsemax_loss takes no logits", "dense, of DTensors": "input.materialize()",
        "shard": "know where their classes are", "rows": "splits the classes",
        "teacher": "TypeError", "return_stats": "not for DTensors",
    }  # fmt: skip
    for found, refused in values(
        ranks.run(heads_on_ranks.other_functions, 4, parts, y, (torch.arange(10) % 2)[None])
    ):
        assert found.keys() == truth.keys()
        for name, x in found.items():
            torch.testing.assert_close(x, truth[name].detach(), rtol=1e-11, atol=1e-11, msg=name)
        for name, text in refused.items():
            assert words[name] in text, (name, text)


def test_heads_that_are_refused(ranks):
    two_ways = ("TypeError", "xent.parallel.shard", 'full_tensor(grad_placements=[Partial("avg")])')
    words = {
        "plain features": two_ways, "plain features of the function": two_ways,
        "plain features of a unit": two_ways,
        "plain weight": ("TypeError: `hidden` is a DTensor, so `weight` must be one",),
        "plain bias": ("TypeError: `hidden` is a DTensor, so `bias` must be one",),
        "no tensor": ("TypeError: `hidden` must be a torch.Tensor",),
        "split features": ("ValueError: `weight` is a DTensor placed as (Shard(dim=1),)",),
        "partial weight": ("ValueError: `weight` is a DTensor placed as (Partial(sum),)",),
        "freed": ("RuntimeError: the weight", "no longer in memory"),
        "freed, torch": ("RuntimeError: the weight", "no longer in memory"),
        "freed, argmax": ("RuntimeError: the weight", "no longer in memory"),
        "other labels": ("ValueError", "`target` is not the same on rank 0 and rank 1"),
    }  # fmt: skip
    for found in values(ranks.run(heads_on_ranks.bad_heads, 2)):
        for name, text in found.items():
            assert all(word in text for word in words[name]), (name, text)
