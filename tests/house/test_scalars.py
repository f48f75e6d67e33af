"""Numbers of every library are taken as numbers by each option of each loss; others are not."""

import inspect
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import xent
from tests.registry import APART, OF_A_BATCH, REGISTRY
from xent._check import finite_number, is_whole, whole_number
from xent.hyperparameters import Hyperparameters, PerElement, Range
from xent.losses import CATALOG

NUMBERS = {
    "float32": np.float32, "array": np.array, "tensor": torch.tensor, "fraction": Fraction,
    "decimal": Decimal,
}  # fmt: skip
WHOLE = {"int64": np.int64, "array": np.array, "tensor": torch.tensor, "uint8": np.uint8}
NEITHER = {
    "True": True, "numpy's True": np.True_, "a tensor of True": torch.tensor(True), "text": "1",
    "an axis": np.array([1]), "a tensor with an axis": torch.tensor([1.0]), "nothing": None,
    "complex": 1j, "a list": [1],
}  # fmt: skip

# The options of a loss that are numbers, with one that they may be, and a whole number.
SHARED = {"ignore_index": 1, "label_smoothing": 0.25, "z_loss": 0.5, "softcap": 4.0, "eps": 0.25}
TENSORS = {"normalizer": 3.0, "logit_scale": 0.5}  # which may be 0-d tensors, and keep a gradient


def options_of(name):
    """Return each option of a loss that takes a number, with a valid value."""
    function = CATALOG[name].function
    parameters = inspect.signature(function).parameters
    found = {k: v for k, v in {**SHARED, **TENSORS}.items() if k in parameters}
    if CATALOG[name].targets == "binary" or name in {"zlpr_loss", "multilabel_cross_entropy"}:
        found["ignore_value"] = 0.25
    for key, rule in Hyperparameters(inspect.unwrap(function)).checks:
        if isinstance(rule, Range) and parameters[key].default is not None:
            found[key] = {"terms": 2, "margin": 1}.get(key, 0.25 if rule.low < 1 else 8.0)
    return found


CALLS = [
    (name, option) for name in CATALOG if name not in APART | OF_A_BATCH
    for option in options_of(name)
]  # fmt: skip


def call(name, option, value):
    c, settings = REGISTRY[name], REGISTRY[name].arguments(4)
    z = torch.randn(5, c.width(4), generator=torch.Generator().manual_seed(1)).double()
    y = c.targets(4)
    y = y.repeat(5, *[1] * (y.ndim - 1))[:5]
    return CATALOG[name].function(*c.data(z, y), **{**settings, option: value})


@pytest.mark.parametrize(("name", "option"), CALLS)
def test_every_option_of_every_loss(name, option):
    value = options_of(name)[option]
    expected = call(name, option, value)
    kinds = WHOLE if isinstance(value, int) else NUMBERS
    for kind in kinds.values():
        found = call(name, option, kind(value))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    hyper = Hyperparameters(inspect.unwrap(CATALOG[name].function))
    optional = inspect.signature(CATALOG[name].function).parameters[option].default is None
    optional = optional or option in hyper.optional
    vector = isinstance(dict(hyper.checks).get(option), PerElement)
    for what, wrong in NEITHER.items():
        if (wrong is None and optional) or (vector and what in ("a tensor with an axis", "a list")):
            continue
        with pytest.raises((TypeError, ValueError), match=f"`{option}`"):
            call(name, option, wrong)


@pytest.mark.parametrize(("name", "option"), CALLS)
def test_no_gradient_is_lost_and_no_device_is_waited_for(name, option):
    value = options_of(name)[option]
    with pytest.raises((TypeError, ValueError), match=f"`{option}`"):
        call(name, option, torch.tensor(value, device="meta"))
    learned = torch.tensor(float(value), requires_grad=True)
    rules = dict(Hyperparameters(inspect.unwrap(CATALOG[name].function)).checks)
    if option in TENSORS or isinstance(rules.get(option), PerElement):
        (slope,) = torch.autograd.grad(call(name, option, learned), learned)
        assert slope.isfinite()
    else:
        with pytest.raises((TypeError, ValueError), match=f"`{option}`"):
            call(name, option, learned)


# The infinite terms of a corrected loss may have both signs.
LEARNED = [
    *((n, o) for n, o in CALLS if o == "logit_scale" and n != "backward_corrected_cross_entropy"),
    ("siglip_loss", "scale"), ("cosent_loss", "scale"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "option"), LEARNED)
def test_a_masked_class_leaves_the_gradient_of_a_scale(name, option):
    """A logit of -inf adds no NaN, its 0 times infinity, to the gradient of the factor."""
    c = REGISTRY[name]
    z = torch.randn(2, c.width(4), generator=torch.Generator().manual_seed(1)).double()
    z[:, -1] = -torch.inf
    y = c.targets(4)[:2] if name != "cosent_loss" else torch.tensor([[3, 1, 2, 0]] * 2)
    options = {k: v for k, v in c.arguments(4).items() if k != option}

    def loss(scale):
        data = (z, y) if name == "cosent_loss" else c.data(z, y)
        return CATALOG[name].function(*data, **options, **{option: scale})

    scale, step = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), 1e-5
    with torch.no_grad():
        sloped = (loss(scale + step) - loss(scale - step)) / (2 * step)
    (slope,) = torch.autograd.grad(loss(scale), scale)
    if loss(scale).isfinite():
        torch.testing.assert_close(slope, sloped, rtol=1e-7, atol=1e-9)
    else:  # a loss that no masked class may have
        assert not loss(scale).isnan()


def test_numbers_and_what_is_none():
    for kind in NUMBERS.values():
        found = finite_number("x", kind(0.5))
        assert (found, type(found)) == (0.5, float)
    for kind in WHOLE.values():
        found = whole_number("x", kind(3))
        assert (found, type(found), is_whole(kind(3))) == (3, int, True)
        assert finite_number("x", kind(3)) == 3.0
    for wrong in NEITHER.values():
        assert not is_whole(wrong)
        with pytest.raises(ValueError, match="`x` must be a finite number"):
            finite_number("x", wrong)
        with pytest.raises(TypeError, match="`x` must be an integer"):
            whole_number("x", wrong)
    for wrong in (2**63, -(2**63) - 1, 10**400):
        with pytest.raises(ValueError, match="`x` must be an integer of 64 bits"):
            whole_number("x", wrong)
        for loss in (
            xent.cross_entropy,
            xent.losses.focal_loss,
            xent.nll_loss,
            xent.losses.sparsemax_loss,
        ):
            with pytest.raises(ValueError, match="`ignore_index` must be an integer of 64 bits"):
                loss(P, Y, ignore_index=wrong)
    for wrong in (np.nan, np.inf, 10**400, torch.tensor(torch.inf)):
        with pytest.raises(ValueError, match="finite"):
            finite_number("x", wrong)


X = torch.randn(4, 5)
Y = torch.tensor([0, 1, 2, 3])
P = torch.log_softmax(X, 1)

# Other functions: how to call each with a number, and which.
OTHERS = {
    "linear_cross_entropy": (
        lambda **o: xent.linear_cross_entropy(X, X, Y, **o),
        {"ignore_index": 1, "label_smoothing": 0.25, "z_loss": 0.5, "max_workspace": 64},
    ),
    "shift": (lambda **o: xent.linear_cross_entropy(X[None], X, Y[None], **o), {"shift": 1}),
    "nll_loss": (lambda **o: xent.nll_loss(P, Y, **o), {"ignore_index": 1, "normalizer": 2.0}),
    "hardest_loss": (
        lambda **o: xent.losses.hardest_loss(X, Y, **o),
        {"keep": 0.5, "ignore_index": 1},
    ),
    "hardest rows": (lambda **o: xent.losses.hardest_loss(X, Y, **o), {"keep": 2}),
    "shift_labels": (lambda **o: xent.shift_labels(Y, **o), {"k": 1, "ignore_index": -1}),
    "token_log_probs": (
        lambda **o: xent.token_log_probs(X, Y, **o),
        {"temperature": 0.5, "ignore_index": 1, "shift": 1, "softcap": 4.0},
    ),
    "entropy": (lambda **o: xent.entropy(X, **o), {"temperature": 0.5, "softcap": 4.0}),
    "statistics": (
        lambda **o: xent.statistics(X, Y, **o).log_prob,
        {"ignore_index": 1, "softcap": 4.0},
    ),
    "distillation_loss": (
        lambda **o: xent.losses.distillation_loss(X, X + 1, Y, **o),
        {"temperature": 2.0, "alpha": 0.25, "beta": 0.25, "ignore_index": 1},
    ),
    "info_nce_loss": (
        lambda **o: xent.losses.info_nce_loss(X, X, **o),
        {"temperature": 0.5, "ignore_index": 1},
    ),
    "info_nce_loss of labels": (
        lambda **o: xent.losses.info_nce_loss(X, X, labels=Y, **o),
        {"temperature": 0.5, "ignore_index": 1},
    ),
    "supcon_loss": (
        lambda **o: xent.losses.supcon_loss(X, Y, **o),
        {"temperature": 0.5, "ignore_index": 1},
    ),
    "nca_loss": (lambda **o: xent.losses.nca_loss(X, Y, **o), {"temperature": 0.5}),
    "multi_similarity_loss": (
        lambda **o: xent.losses.multi_similarity_loss(X, Y, **o),
        {"alpha": 0.5, "beta": 2.0, "base": 0.25},
    ),
    "circle_loss": (
        lambda **o: xent.losses.circle_loss(X, Y, **o),
        {"margin": 0.25, "gamma": 2.0},
    ),
    "set_cross_entropy": (
        lambda **o: xent.losses.set_cross_entropy(X, Y, groups=torch.arange(5), **o),
        {"ignore_index": 1, "softcap": 4.0},
    ),
    "cosface_loss of centers": (
        lambda **o: xent.losses.cosface_loss(X[:, :4].tanh(), Y % 2, **{"centers": 2, **o}),
        {"centers": 2, "center_temperature": 0.5, "margin": 0.25},
    ),
    "clip_loss": (lambda **o: xent.losses.clip_loss(X, X, **o), {"logit_scale": 2.0}),
    "nt_xent_loss": (lambda **o: xent.losses.nt_xent_loss(X, X + 1, **o), {"temperature": 0.5}),
    "siglip_loss": (lambda **o: xent.losses.siglip_loss(X, **o), {"scale": 0.5, "bias": -0.5}),
    "siglip_loss behind a head": (
        lambda **o: xent.losses.siglip_loss(xent.LinearLogits(X, X), **o),
        {"scale": 0.5, "bias": -0.5},
    ),
    "sampled_cross_entropy": (
        lambda **o: xent.losses.sampled_cross_entropy(X, X, Y, Y, **o),
        {"ignore_index": 1},
    ),
    "group_advantages": (lambda **o: xent.policy.group_advantages(X[:, 0], **o), {"group": 2}),
    "its eps": (lambda **o: xent.policy.group_advantages(X[:, 0], 2, **o), {"eps": 0.5}),
    "grpo_loss": (
        lambda **o: xent.policy.grpo_loss(P, P - 1, X, reference=P, entropy=X, **o),
        {
            "clip": 0.25,
            "dual_clip": 2.0,
            "max_log_ratio": 0.5,
            "kl_weight": 0.5,
            "entropy_weight": 0.5,
            "average": 4.0,
            "normalizer": 2.0,
        },
    ),
    "kl_estimate": (lambda **o: xent.policy.kl_estimate(P, P + 1, **o), {"max_log_ratio": 0.5}),
    "dpo_loss": (
        lambda **o: xent.policy.dpo_loss(P[0], P[1], **o),
        {"beta": 0.5, "label_smoothing": 0.25, "margin": 0.5},
    ),
    "tempered_softmax": (lambda **o: xent.tempered_softmax(X, **o), {"t": 1.5}),
    "entmax": (lambda **o: xent.entmax(X, **o), {"alpha": 1.5}),
    "mixup_cross_entropy": (
        lambda **o: xent.losses.mixup_cross_entropy(X, Y, Y.flip(0), **o),
        {"lam": 0.25},
    ),
    "effective_number_weights": (
        lambda **o: xent.losses.effective_number_weights(X[0].abs(), **o),
        {"beta": 0.5},
    ),
}


@pytest.mark.parametrize(
    ("name", "option"), [(n, o) for n, (_, options) in OTHERS.items() for o in options]
)
def test_other_functions(name, option):
    function, options = OTHERS[name]
    value = options[option]
    kinds = WHOLE if isinstance(value, int) and value > 0 else NUMBERS
    if option == "ignore_index" and value < 0:
        kinds = {"int64": np.int64, "tensor": torch.tensor}
    expected = function(**{option: value})
    for kind in kinds.values():
        found = function(**{option: kind(value)})
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    for wrong in (True, np.True_, torch.tensor(True), "1", np.array([0.5, 0.5])):
        with pytest.raises((TypeError, ValueError), match=f"`{option}`"):
            function(**{option: wrong})


def test_settings_of_modules():
    """Modules keep them as Python's numbers, so that moving a module does not move them."""
    focal = xent.nn.FocalLoss(gamma=torch.tensor(1.5), ignore_index=np.int64(1))
    assert (focal.gamma, focal.ignore_index, list(focal.buffers())) == (1.5, 1, [])
    assert focal(X, Y) == xent.losses.focal_loss(X, Y, gamma=1.5, ignore_index=1)
    loss = xent.nn.CrossEntropyLoss(ignore_index=torch.tensor(1), label_smoothing=np.float32(0.25))
    assert loss(X, Y) == xent.cross_entropy(X, Y, ignore_index=1, label_smoothing=0.25)
    with pytest.raises(TypeError, match="`ignore_index`"):
        xent.nn.FocalLoss(ignore_index=True)
    with pytest.raises(ValueError, match="`gamma`"):
        xent.nn.FocalLoss(gamma=True)
