"""Error messages name the argument as the caller wrote it, and say how to correct the call."""

import inspect
import re

import pytest
import torch

import xent
from tests.losses.test_classification_errors import BAD
from tests.registry import REGISTRY
from xent.losses import CATALOG

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
Y = torch.tensor([0, 1, 2, 3, 1, 0])
T = torch.rand(6, 4, generator=torch.Generator().manual_seed(4))
P = torch.log_softmax(X, 1)
HEAD = torch.zeros(1, 2 * 8, 4, 4)
RESPONSIBLE = torch.zeros(1, 2, 4, 4, dtype=torch.bool)


BY_HAND = {
    "cumulative_link_loss", "yolo_loss", "siglip_loss", "kl_div", "nll_loss",
    "binary_cross_entropy", "supcon_loss", "nca_loss", "decoupled_contrastive_loss",
    "multi_similarity_loss", "circle_loss",
}  # fmt: skip


def good_calls():
    """Return each public loss with arguments that fit, by name."""
    calls = {}
    for name, member in CATALOG.items():
        if name in BY_HAND:
            continue
        c, settings = REGISTRY[name], REGISTRY[name].arguments(4)
        width = c.width(4)
        z = X[:, :width] if width <= 4 else torch.cat([X, X[:, :1]], 1)
        if name == "hardest_loss" or name == "wordtree_cross_entropy":
            data = (z, Y)
        elif member.targets == "classes" or c.follows:
            data = c.data(z, Y)
        elif member.targets == "soft":
            data = (z, torch.softmax(z, 1))
        else:
            data = (z, T[:, :width])
        calls[name] = (member.function, data, settings)
    calls |= {
        "cumulative_link_loss": (
            xent.losses.cumulative_link_loss,
            (X[:, 0], torch.arange(3.0), Y),
            {},
        ),
        "yolo_loss": (xent.losses.yolo_loss, (HEAD, RESPONSIBLE, RESPONSIBLE.long()), {}),
        "siglip_loss": (xent.losses.siglip_loss, (X @ X.T, torch.eye(6)), {}),
        "kl_div": (xent.kl_div, (P, P.exp()), {"reduction": "sum"}),
        "nll_loss": (xent.nll_loss, (P, Y), {}),
        "binary_cross_entropy": (xent.binary_cross_entropy, (T, T), {}),
        "linear_cross_entropy": (xent.linear_cross_entropy, (X, X, Y), {"linear_bias": X[:, 0]}),
        "info_nce_loss": (xent.losses.info_nce_loss, (X, X, Y), {}),
        "info_nce_loss of labels": (
            xent.losses.info_nce_loss,
            (X, X),
            {"labels": Y, "key_labels": Y},
        ),
        **{
            name: (getattr(xent.losses, name), (X, Y), {})
            for name in (
                "supcon_loss",
                "nca_loss",
                "decoupled_contrastive_loss",
                "multi_similarity_loss",
                "circle_loss",
            )
        },
        "set_cross_entropy of groups": (
            xent.losses.set_cross_entropy,
            (X, Y % 2),
            {"groups": torch.tensor([0, 1, 0, 1])},
        ),
        "cosface_loss of centers": (
            xent.losses.cosface_loss,
            (X.tanh(), Y % 2),
            {"centers": 2, "center_temperature": 0.1},
        ),
        "clip_loss": (xent.losses.clip_loss, (X, X), {}),
        "nt_xent_loss": (xent.losses.nt_xent_loss, (X, X + 1), {}),
        "sampled_cross_entropy": (
            xent.losses.sampled_cross_entropy,
            (X, X, Y, Y),
            {"bias": X[:, 0]},
        ),
        "reinforce_loss": (xent.policy.reinforce_loss, (P, X), {}),
        "ppo_loss": (xent.policy.ppo_loss, (P, P, X), {}),
        "grpo_loss": (xent.policy.grpo_loss, (P, P, X), {"reference": P, "kl_weight": 0.1}),
        "kl_estimate": (xent.policy.kl_estimate, (P, P), {}),
        "dpo_loss": (xent.policy.dpo_loss, (P[0], P[1]), {}),
        "sequence_log_prob": (xent.policy.sequence_log_prob, (P,), {}),
        "group_advantages": (xent.policy.group_advantages, (X[:, 0], 2), {}),
        "token_log_probs": (xent.token_log_probs, (X, Y), {}),
        "entropy": (xent.entropy, (X,), {}),
        "shift_labels": (xent.shift_labels, (Y,), {}),
        "statistics": (xent.statistics, (X, Y), {}),
        "explain": (xent.explain, (X, Y), {}),
        "sample": (xent.sample, (X,), {}),
        "entmax": (xent.entmax, (X,), {}),
        "softmax": (xent.softmax, (X,), {}),
        "adjust_logits": (xent.losses.adjust_logits, (X, T[0]), {}),
        "effective_number_weights": (xent.losses.effective_number_weights, (T[0],), {}),
        "flip_labels": (xent.losses.flip_labels, (Y, torch.eye(4)), {}),
        "mixup": (xent.losses.mixup, (X, Y), {}),
    }
    return {k: v for k, v in calls.items() if v is not None}


CALLS = good_calls()
# Wrong values in the place of a tensor, and of an option.
WRONG = {
    "text": "wrong", "a number": 3.5, "a list": [1.0], "nothing": None, "True": True,
    "a tensor of another shape": torch.rand(3, 7, 2), "a 0-d tensor": torch.tensor(0.5),
    "integers": torch.zeros(6, 4, dtype=torch.int64), "bools": torch.zeros(6, 4) > 0,
    "a column": torch.zeros(6, 1, dtype=torch.int64), "labels": torch.full((6,), 77),
    "numbers above 1": torch.full((6, 4), 7.0), "a vector": torch.rand(3),
    "elsewhere": torch.rand(6, 4, device="meta"), "complex": torch.rand(6, 4) * 1j,
    "a negative number": -3, "a device's number": torch.tensor(0.5, device="meta"),
}  # fmt: skip
# Words in backticks that are no arguments: code of the way out, and what is returned.
ALLOWED = {"xent info", "loss"}


@pytest.mark.parametrize("name", CALLS)
def test_every_name_is_an_argument(name):
    """Each argument in turn is replaced by a wrong value."""
    function, data, settings = CALLS[name]
    parameters = inspect.signature(function).parameters
    function(*data, **settings)
    places = [p for p, _ in zip(parameters, data, strict=False)]
    raised = 0
    for argument, p in parameters.items():
        flag = isinstance(p.default, bool) or argument in {"size_average", "reduce"}
        if p.kind is p.VAR_KEYWORD or flag:
            continue
        for wrong in WRONG.values():
            if name in {"entmax", "sample"} and argument == "input" and given_at(wrong) == "meta":
                continue  # the check looks at numbers, and there are none
            given = dict(zip(places, data, strict=True)) | settings | {argument: wrong}
            said = message(function, given)
            raised += said is not None
            unknown = set(re.findall(r"`([^`]+)`", said or "")) - ALLOWED - set(parameters)
            assert not unknown, f"{argument}={wrong!r}: {said}"
    assert raised > 3


def given_at(value):
    return value.device.type if isinstance(value, torch.Tensor) else None


def message(function, given):
    """Return the message of the error that the call raises, or None if it raises none."""
    try:
        function(**given)
    except (TypeError, ValueError, IndexError) as error:
        return str(error)
    return None


# ---- the way out --------------------------------------------------------------------------------

IMAGE, LAST = torch.randn(2, 5, 3, 4), torch.randn(2, 3, 4, 5)
PIXELS = torch.zeros(2, 3, 4, dtype=torch.int64)
WAYS_OUT = {
    "a column": (X, Y[:, None], "squeeze(1)"),
    "a channel": (IMAGE, PIXELS[:, None], "squeeze(1)"),
    "classes last": (LAST, PIXELS, "movedim(-1, 1)"),
    "tokens": (LAST[0], PIXELS[0], "movedim(-1, 1)"),
    "a row": (X, Y[None], "flatten()"),
    "swapped": (Y, X, "swapped"),
    "floats swapped": (Y.float(), X, "swapped"),
    "pixels swapped": (PIXELS, IMAGE, "swapped"),
    "one-hot": (X, torch.nn.functional.one_hot(Y, 4), "argmax"),
    "floats": (X, Y.float(), "long()"),
}
LOSSES = [
    xent.cross_entropy,
    xent.losses.focal_loss,
    xent.losses.sparsemax_loss,
    xent.losses.hardest_loss,
]


@pytest.mark.parametrize("name", WAYS_OUT)
def test_the_message_says_how_to_correct_the_call(name):
    """By every frame, and by the diagnosis in the same words."""
    input, target, words = WAYS_OUT[name]
    for loss in LOSSES:
        said = message(loss, {"input": input, "target": target})
        assert said is not None, loss.__name__
        if loss is not xent.losses.hardest_loss or "one-hot" not in name:
            assert words in said, said
    found = xent.diagnose(input, target)
    assert any(words in finding.fix for finding in found), str(found)


def test_the_way_out_of_the_sigmoid_family():
    loss = xent.binary_cross_entropy_with_logits
    for input, target, words in (
        (IMAGE[:, :1], PIXELS, "unsqueeze(1)"),
        (IMAGE, LAST, "movedim(-1, 1)"),
        (X[:, 0], X[:, :1], "squeeze(1)"),
        (Y, X[:, 0], "swapped"),
        (T, X, "swapped"),
        (X, Y, "cross_entropy"),
    ):
        said = message(loss, {"input": input, "target": target})
        assert said is not None
        assert words in said, said


def test_class_weights_are_weight():
    for loss in (
        xent.cross_entropy,
        xent.losses.focal_loss,
        xent.losses.sparsemax_loss,
        xent.nll_loss,
    ):
        for weight in (
            torch.ones(3),
            "balanced",
            [1.0] * 3,
            torch.ones(4).long(),
            torch.ones(1, 4),
        ):
            said = message(loss, {"input": P, "target": Y, "weight": weight})
            assert said is not None
            assert "`weight`" in said, said


def test_a_mean_of_the_hardest_rows_has_no_reduction():
    for option, value in (("reduction", "sum"), ("normalizer", 3), ("return_stats", True)):
        said = message(xent.losses.hardest_loss, {"input": X, "target": Y, option: value})
        assert said is not None
        assert "hardest_loss()" in said
        assert f"`{option}`" in said


# ---- the diagnosis ------------------------------------------------------------------------------

REFUSED = {
    **{k: v[:2] for k, v in WAYS_OUT.items()},
    **{
        name: (z, y, *options.values())
        for name, (z, y, options, _) in BAD.items()
        if isinstance(z, torch.Tensor) and isinstance(y, torch.Tensor)
        and options.keys() <= {"ignore_index"}
    },
    "another device": (X, Y.to("meta")),
    "no device": (X.to("meta"), Y.float().to("meta")),
    "no classes": (X[:, :0], X[:, :0]),
    "complex": (X, X * 1j),
    "an index that is none": (X, Y, True),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_losses_refuse_is_diagnosed(name):
    input, target, *ignored = REFUSED[name]
    options = {"ignore_index": ignored[0]} if ignored else {}
    said = message(xent.cross_entropy, {"input": input, "target": target, **options})
    assert said is not None
    found = xent.diagnose(input, target, **options)
    assert found
    for finding in found:
        assert finding.fix


def test_distributions_that_the_losses_refuse_are_diagnosed():
    for q in (T.softmax(1) * 1.001, T.softmax(1) - 0.5, T.softmax(1) * torch.nan):
        assert message(xent.losses.sparsemax_loss, {"input": X, "target": q}) is not None
        assert any(f.name.startswith("soft-target") for f in xent.diagnose(X, q))
    assert not xent.diagnose(X, T.softmax(1))
    assert not xent.diagnose(X, T.bfloat16().softmax(1))  # sums are rounded in bfloat16
