"""``loss_parallel``: PyTorch's losses on DTensors whose classes are split over ranks."""

import pytest
import torch

from . import torch_losses_on_ranks as on_ranks
from .pool import RANKS, values

pytestmark = pytest.mark.slow
WEIGHT = torch.linspace(0.5, 2, 10).double()


def batch(*shape):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(*shape, generator=g, dtype=torch.float64) * 3
    y = torch.randint(shape[1], (shape[0], *shape[2:]), generator=g)
    y[1] = -100
    q = torch.randn(*shape, generator=g, dtype=torch.float64).softmax(1)
    return x, y, q


def of_one_process(losses, x, q):
    x, q = (z.clone().requires_grad_() for z in (x, q))
    return on_ranks.slopes(losses(x, q), x, q)


def agree(found, truth):
    assert found.keys() == truth.keys()
    for name, parts in found.items():
        for x, y in zip(parts, truth[name], strict=True):
            tight = 1e-6 if name == "dtype" else 1e-11
            torch.testing.assert_close(
                x, y, rtol=tight, atol=tight, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize(
    ("count", "square", "shape"),  # the classes are never split into equal parts
    [(4, False, (6, 10)), (4, False, (6, 3)), (2, False, (6, 9)), (4, True, (5, 9, 3))],
)
def test_values_and_gradients_of_one_process(ranks, count, square, shape):
    (x, y, q), weight = batch(*shape), WEIGHT[: shape[1]]
    truth = of_one_process(lambda x, q: on_ranks.losses(x, y, q, weight), x, q)
    for found in values(ranks.run(on_ranks.in_context, count, x, y, q, weight, square)):
        agree(found, truth)


def test_classes_on_the_last_axis(ranks):
    x, _, q = batch(4, 3, 9)
    q = q.softmax(-1)
    truth = of_one_process(on_ranks.last_axis, x, q)
    for found in values(ranks.run(on_ranks.of_language, RANKS, x, q)):
        agree(found, truth)


def test_code_for_the_context_of_torch_needs_no_other_change(ranks):
    given = batch(8, 12)
    weight = torch.linspace(0.5, 2, 12).double()
    x, y, q = given
    truth = of_one_process(lambda x, q: on_ranks.losses(x, y, q, weight), x, q)
    kept = of_one_process(lambda x, q: on_ranks.losses(x, y.clamp(0), q, weight), x, q)
    for torchs, ours, *both in values(ranks.run(on_ranks.beside_torch, RANKS, *given, weight)):
        assert len(ours) == 4
        agree(torchs, ours)
        agree(ours, {name: kept[name][:2] for name in ours})
        for found in both:  # ours counts
            agree(found, {name: truth[name] for name in on_ranks.OF_EACH_FUNCTION})


def test_the_context(ranks):
    words = {
        "out": "takes no `out`", "reduction": "batchmean", "target": "`target` must be one",
        "label": "class index 8", "weight": "`weight`", "positive": "log-probabilit",
        "second": "NotImplementedError",
    }  # fmt: skip
    for found in values(ranks.run(on_ranks.context, RANKS)):
        errors = found.pop("errors")
        assert errors.keys() == words.keys()
        for name, text in errors.items():
            assert words[name] in text, (name, text)
        assert all(found.values()), found


def test_collectives(ranks):
    for of_log_probs, of_loss, of_elements in values(ranks.run(on_ranks.collectives, RANKS)):
        records = [
            [c for c in counted if c[0] != "record"]
            for counted in (of_log_probs, of_loss, of_elements)
        ]
        assert records == [[("all_gather", 16), ("all_reduce", 8)], [("all_gather", 8)], []]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_digits_of_log_probabilities(ranks, dtype):
    z = torch.randn(6, 12, generator=torch.Generator().manual_seed(3)) * 4
    z[0] += 1e4
    z[1, 3] += 300
    z[2, :9] = -torch.inf
    z = z.to(dtype)
    truth = z.double().log_softmax(1)
    for found in values(ranks.run(on_ranks.narrow, RANKS, z, dtype)):
        assert found.dtype == dtype
        torch.testing.assert_close(
            found.double(), truth, rtol=torch.finfo(dtype).eps, atol=torch.finfo(torch.float32).eps
        )
