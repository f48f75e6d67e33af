"""Whatever torch refuses, xent refuses, with a message that says how to correct the call."""

import pytest
import torch
import torch.nn.functional as F

import xent

Z, Y = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
Q = torch.softmax(Z, 1)

# name: (input, target, options, part of the message)
BAD = {
    "bool target": (Z, Y.bool(), {}, "long"),
    "float target without classes": (Z, Y.float(), {}, "long"),
    "integer one-hot": (Z, F.one_hot(Y, 5), {}, "argmax"),
    "bool one-hot": (Z, F.one_hot(Y, 5).bool(), {}, "argmax"),
    "int input": (Z.int(), Y, {}, "float"),
    "bool input": (Z.bool(), Y, {}, "float"),
    "0-d input": (torch.tensor(1.0), torch.tensor(0), {}, "class axis"),
    "another batch": (Z, Y[:3], {}, "batch_size"),
    "column target": (Z, Y[:, None], {}, "target"),
    "row target": (Z, Y[None], {}, "target"),
    "0-d target for a batch": (Z, Y[0], {}, "target"),
    "classes last": (torch.randn(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64), {}, "target"),
    "other extra axes": (torch.randn(2, 5, 3), torch.zeros(2, 4, dtype=torch.int64), {}, "target"),
    "missing extra axes": (torch.randn(2, 5, 3), torch.zeros(2, dtype=torch.int64), {}, "target"),
    "single row, batch of targets": (Z[0], Y, {}, "single row"),
    "soft target of another shape": (Z, Q[:3], {}, "target"),
    "soft target of fewer classes": (Z, Q[:, :3], {}, "target"),
    "class too large": (Z, torch.tensor([0, 1, 2, 5]), {}, "5"),
    "class far too large": (Z, torch.tensor([0, 1, 2, 2**40]), {}, str(2**40)),
    "negative class": (Z, torch.tensor([0, 1, 2, -1]), {}, "ignore_index"),
    "class too large, smoothed": (Z, torch.tensor([0, 1, 2, 5]), {"label_smoothing": 0.1}, "5"),
    "class too large, extra axis": (torch.randn(1, 5, 1), torch.tensor([[5]]), {}, "5"),
    "uint8 class too large": (Z, torch.tensor([0, 1, 2, 255]).byte(), {}, "255"),
    "-100 while another index is ignored": (Z, Y - 103, {"ignore_index": -1}, "-10"),
    "weight too short": (Z, Y, {"weight": torch.ones(4)}, "weight"),
    "weight of rank 2": (Z, Y, {"weight": torch.ones(4, 5)}, "weight"),
    "integer weight": (Z, Y, {"weight": torch.ones(5).long()}, "weight"),
    "weight too short, soft": (Z, Q, {"weight": torch.ones(4)}, "weight"),
    "weight that is text": (Z, Y, {"weight": "balanced"}, "weight"),
    "label_smoothing 1.5": (Z, Y, {"label_smoothing": 1.5}, "label_smoothing"),
    "reduction avg": (Z, Y, {"reduction": "avg"}, "reduction"),
    "reduction None": (Z, Y, {"reduction": None}, "reduction"),
    "ignore_index with soft target": (Z, Q, {"ignore_index": 1}, "ignore_index"),
    "text for logits": ("text", Y[:1], {}, "input"),
    "text for a target": (Z[0], "1", {}, "target"),
    "no target": (Z, None, {}, "target"),
}  # fmt: skip

# Options that only xent has: bad values must not pass.
OURS = {
    "label_smoothing -0.1": (Z, Y, {"label_smoothing": -0.1}, "label_smoothing"),
    "label_smoothing nan": (Z, Y, {"label_smoothing": float("nan")}, "label_smoothing"),
    "infinite scale": (Z, Y, {"logit_scale": float("inf")}, "logit_scale"),
    "scale of another shape": (Z, Y, {"logit_scale": torch.ones(3)}, "logit_scale"),
    "softcap 0": (Z, Y, {"softcap": 0.0}, "softcap"),
    "softcap -1": (Z, Y, {"softcap": -1.0}, "softcap"),
    "bias too short": (Z, Y, {"class_bias": torch.ones(4)}, "class_bias"),
    "integer bias": (Z, Y, {"class_bias": torch.ones(5).long()}, "class_bias"),
    "row weights of another shape": (Z, Y, {"row_weight": torch.ones(5)}, "row_weight"),
    "row weights that are text": (Z, Y, {"row_weight": "1"}, "row_weight"),
    "signed row weights and a mean": (Z, Y, {"row_weight": torch.ones(4).neg()}, "normalizer"),
    "normalizer with sum": (Z, Y, {"normalizer": 3, "reduction": "sum"}, "normalizer"),
    "normalizer with none": (Z, Y, {"normalizer": 3, "reduction": "none"}, "normalizer"),
    "normalizer avg": (Z, Y, {"normalizer": "avg"}, "normalizer"),
    "normalizer nan": (Z, Y, {"normalizer": float("nan")}, "normalizer"),
    "normalizer of two numbers": (Z, Y, {"normalizer": torch.ones(2)}, "normalizer"),
    "empty null": (Z, Y, {"empty": "null"}, "empty"),
    "unknown engine": (Z, Y, {"engine": "cuda"}, "engine"),
    "z_loss that is text": (Z, Y, {"z_loss": "a"}, "z_loss"),
    "z_loss nan": (Z, Y, {"z_loss": float("nan")}, "z_loss"),
    "float ignore_index": (Z, Y, {"ignore_index": 1.5}, "ignore_index"),
}  # fmt: skip

REFUSED = (ValueError, TypeError)


@pytest.mark.parametrize("name", BAD)
def test_torch_raises_and_so_do_we(name):
    z, y, options, text = BAD[name]
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError, AttributeError)):
        F.cross_entropy(z, y, **options)
    with pytest.raises(REFUSED, match=f"(?i){text}"):
        xent.cross_entropy(z, y, **options)


@pytest.mark.parametrize("name", OURS)
def test_bad_options_of_our_own(name):
    z, y, options, text = OURS[name]
    with pytest.raises(REFUSED, match=f"(?i){text}"):
        xent.cross_entropy(z, y, **options)


@pytest.mark.parametrize("name", [n for n in BAD if "class" in n and "classes" not in n])
def test_a_class_out_of_range_raises_on_every_engine(engine, name):
    z, y, options, _ = BAD[name]
    for kind in (IndexError, ValueError, xent.TargetError):
        with pytest.raises(kind):
            xent.cross_entropy(z, y, engine=engine, **options)


@pytest.mark.parametrize(
    ("label", "hint"), [(5, "off by one"), (-1, "ignore_index=-100"), (77, "diagnose")]
)  # one too many; a common mark for ignored rows; nonsense
def test_the_hint_fits_the_label(engine, label, hint):
    y = torch.tensor([0, 1, 2, label])
    with pytest.raises(xent.TargetError, match=hint):
        xent.cross_entropy(Z, y, engine=engine)


def test_unknown_hyperparameters_are_refused():
    with pytest.raises(TypeError):
        xent.cross_entropy(Z, Y, gamma=2.0)
