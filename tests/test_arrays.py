"""Arrays at the door: lists, NumPy, JAX, and whatever has ``__dlpack__`` or ``__array__``."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import xent
from tests.registry import ENTRIES
from tests.registry.calls import CALLS, close
from xent import information, losses
from xent.arrays import Door
from xent.learn import (
    calibration,
    find_label_issues,
    fit_mixture_weights,
    label_quality,
    mixture_log_prob,
)

MEMBERS = [call for call in CALLS if call.name in {entry.name for entry in ENTRIES}]
Z = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
Y = torch.tensor([1, 2])


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    """Use one thread: the tensors are too small for two."""
    torch.set_num_threads(1)


class OnlyDlpack:
    """An array that offers its memory, and nothing else."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


class OnlyArray:
    """An array that NumPy can read, and nothing else."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x.numpy()


def as_numpy(x):
    return x.numpy() if isinstance(x, Tensor) else x


def as_lists(x):
    return x.tolist() if isinstance(x, Tensor) else x


KINDS = {
    "numpy": Tensor.numpy,
    "fortran": lambda x: np.asfortranarray(x.numpy()),
    "backwards": lambda x: x.numpy()[::-1].copy()[::-1],
    "other bytes": lambda x: x.numpy().astype(x.numpy().dtype.newbyteorder(">")),
    "dlpack": OnlyDlpack,
    "__array__": OnlyArray,
    "list of arrays": lambda x: [row.numpy() for row in x],
    "list of tensors": list,
}


# ---- every function -----------------------------------------------------------------------------


@pytest.mark.parametrize("call", MEMBERS, ids=str)
def test_every_loss_takes_numpy(call):
    inputs = call.inputs(6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = call.function(*map(as_numpy, inputs))
    assert type(found) is Tensor
    close(found, call.function(*inputs))


@pytest.mark.parametrize("call", MEMBERS, ids=str)
def test_every_loss_takes_lists(call):
    inputs = call.inputs(6)
    found = call.function(*map(as_lists, inputs))
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    torch.testing.assert_close(found, call.function(*wide), rtol=1e-12, atol=1e-14)


P = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.9, 0.05, 0.05]])
LABELS = torch.tensor([0, 2, 1, 0])
OTHERS = {
    "softmax": (xent.softmax, (Z,)),
    "log_softmax": (xent.log_softmax, (Z,)),
    "softmax_jacobian": (xent.softmax_jacobian, (Z[0],)),
    "entmax": (xent.entmax, (Z,)),
    "sparsemax": (xent.sparsemax, (Z,)),
    "tempered_softmax": (xent.tempered_softmax, (Z,)),
    "statistics": (lambda z, y: xent.statistics(z, y).log_prob, (Z, Y)),
    "explain": (lambda z, y: str(xent.explain(z, y)), (Z, Y)),
    "diagnose": (lambda z, y: str(xent.diagnose(z, y)), (P, LABELS)),
    "entropy": (xent.entropy, (Z,)),
    "token_log_probs": (lambda z, y: xent.token_log_probs(z, y), (Z, Y)),
    "shift_labels": (xent.shift_labels, (Y[None],)),
    "information.entropy": (information.entropy, (P,)),
    "cross_entropy_of": (information.cross_entropy_of, (P, P.flip(1))),
    "kl_divergence": (information.kl_divergence, (P, P.flip(1))),
    "jensen_shannon": (information.jensen_shannon, (P, P.flip(1))),
    "jensen_shannon_distance": (information.jensen_shannon_distance, (P, P.flip(1))),
    "perplexity": (information.perplexity, (P,)),
    "information_content": (information.information_content, (P,)),
    "entropy_from_counts": (information.entropy_from_counts, (torch.tensor([5, 3, 2]),)),
    "entropy_from_samples": (information.entropy_from_samples, (LABELS,)),
    "report": (lambda y: str(information.report(0.6, y)), (LABELS,)),
    "calibration_error": (calibration.calibration_error, (Z, Y)),
    "brier_score": (calibration.brier_score, (Z, Y)),
    "fit_temperature": (
        calibration.fit_temperature,
        (torch.eye(3).repeat(4, 1), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2, 1])),
    ),
    "label_quality": (label_quality, (P, LABELS)),
    "find_label_issues": (find_label_issues, (P, LABELS)),
    "mixture_log_prob": (mixture_log_prob, (P.log(), torch.tensor([0.2, 0.3, 0.5]))),
    "fit_mixture_weights": (lambda x: fit_mixture_weights(x).weights, (P.log(),)),
    "effective_number_weights": (losses.effective_number_weights, (torch.tensor([10.0, 100.0]),)),
    "adjust_logits": (losses.adjust_logits, (Z, torch.tensor([1.0, 2.0, 3.0]))),
    "dpo_loss": (xent.policy.dpo_loss, tuple(-P[:, k] for k in (0, 1, 2, 0))),
    "reinforce_loss": (xent.policy.reinforce_loss, (-P, P)),
    "group_advantages": (lambda r: xent.policy.group_advantages(r, 2), (P[:, 0],)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["numpy", "dlpack", "__array__"])
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_function_takes_arrays(name, kind):
    function, inputs = OTHERS[name]
    found, expected = function(*map(KINDS[kind], inputs)), function(*inputs)
    assert found == expected if isinstance(found, str) else True
    if isinstance(found, Tensor):
        assert found.dtype == expected.dtype
        close(found, expected)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_function_takes_lists(name):
    function, inputs = OTHERS[name]
    found, expected = function(*map(as_lists, inputs)), function(*inputs)
    if isinstance(found, Tensor) and found.is_floating_point():
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)
    elif isinstance(found, Tensor):
        assert torch.equal(found, expected)
    else:
        assert type(found) is type(expected)


# ---- types --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_arrays(kind):
    z, y = KINDS[kind](Z), KINDS[kind](Y) if "list" not in kind else Y.tolist()
    found = xent.cross_entropy(z, y)
    assert found.dtype == torch.float32
    close(found, xent.cross_entropy(Z, Y))


def test_lists_become_float64_and_labels_int64():
    assert xent.softmax([3, 1]).dtype == xent.softmax([3.0, 1.0]).dtype == torch.float64
    assert xent.cross_entropy([[0.1, 0.2]], [1]).dtype == torch.float64
    exact = -torch.log_softmax(torch.tensor([0.1, 0.2], dtype=torch.float64), 0)[1]
    assert abs(xent.cross_entropy([0.1, 0.2], 1) - exact) < 1e-16  # never through float32
    assert xent.shift_labels([[1, 2, 3]]).dtype == torch.int64


def test_numbers_of_python():
    exact = -torch.tensor(0.012, dtype=torch.float64).log()
    assert xent.binary_cross_entropy(0.012, 1) == exact == xent.binary_cross_entropy(0.012, 1.0)
    assert xent.cross_entropy(input=[2.0, 1.0], target=0) == xent.cross_entropy([2.0, 1.0], [1, 0])


def test_numbers_of_numpy_in_lists():
    exact = xent.cross_entropy([[1.0, 2.0]], [1])
    assert xent.cross_entropy([[np.float64(1), np.float64(2)]], [np.int64(1)]) == exact
    assert xent.cross_entropy([np.float64(1), 2], 1) == exact
    assert xent.binary_cross_entropy(np.float64(0.25), 1) == xent.binary_cross_entropy(0.25, 1)
    assert xent.cross_entropy([[1.0, 2.0]] * 2, [np.int64(1), 1]) == exact


def test_integers_of_python_are_one_hot_rows_where_they_lie_like_the_logits():
    one_hot = [[0, 1, 0], [0, 0, 1]]
    assert xent.cross_entropy(Z.tolist(), one_hot) == xent.cross_entropy(Z.tolist(), Y)
    with pytest.raises(TypeError, match=r"target\.astype\(float\)"):  # arrays keep their type
        xent.cross_entropy(Z, np.array(one_hot))


def advice(call, *args, **options):
    """Return the message of a call that is refused."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call(*args, **options)
    return str(caught.value)


def test_messages_advise_what_the_argument_can_do():
    """No method of tensors for those who passed a list or an array of NumPy."""
    whole, floats, column = np.array([[1, 2]]), np.array([1.0, 2.0]), np.array([[1], [2]])
    p = np.log([0.5, 0.5])
    cases = {
        "input.astype(float)": (xent.cross_entropy, whole, np.array([0])),
        "target.astype(int)": (xent.cross_entropy, Z, floats),
        "target.squeeze(1)": (xent.cross_entropy, Z, column),
        "torch.as_tensor(target).long()": (xent.cross_entropy, Z, floats.tolist()),
        "torch.as_tensor(target).unsqueeze(1)": (
            losses.sigmoid_focal_loss, torch.zeros(2, 1), np.array([0.0, 1.0]),
        ),
        "input.astype(float); or": (losses.sigmoid_focal_loss, whole, np.zeros((1, 2))),
        "target.argmax(1)": (xent.cross_entropy, Z, np.eye(3, dtype=int)[:2]),
    }  # fmt: skip
    for words, (call, *args) in cases.items():
        said = advice(call, *args)
        assert words in said, said
    said = advice(xent.policy.ppo_loss, p, p, p, mask=np.array([1, 0]))
    assert "mask.astype(bool)" in said
    assert "target.long()" in advice(xent.cross_entropy, Z, torch.tensor(floats))  # of tensors


def test_other_arguments_than_logits():
    weight, rows = [1.0, 2.0, 3.0], [0.5, 1.0]
    of_tensors = {"weight": torch.tensor(weight), "row_weight": torch.tensor(rows)}
    for kind in (list, np.array):
        given = {"weight": kind(weight), "row_weight": kind(rows)}
        close(losses.focal_loss(Z, Y, **given), losses.focal_loss(Z, Y, **of_tensors))
    scale = np.array([1.0, 2.0])
    close(
        xent.cross_entropy(Z, Y, logit_scale=scale),
        xent.cross_entropy(Z, Y, logit_scale=torch.tensor([1.0, 2.0])),
    )


def test_arrays_beside_logits_elsewhere_go_there():
    z = Z.to("meta")
    loss = xent.cross_entropy(z, [1, 2], weight=np.ones(3), row_weight=[1.0, 2.0])
    assert loss.device.type == "meta"


def test_gradients_pass_by_arrays_to_tensors():
    z = Z.clone().requires_grad_()
    weight, target = np.array([1.0, 2.0, 3.0]), np.array([1, 2])
    loss = xent.cross_entropy(z, target, weight=weight)
    weight[:], target[:] = 0, 0  # between forward and backward
    loss.backward()
    again = Z.clone().requires_grad_()
    xent.cross_entropy(again, Y, weight=torch.tensor([1.0, 2.0, 3.0])).backward()
    assert torch.equal(z.grad, again.grad)
    rows = [row.clone().requires_grad_() for row in Z]
    xent.cross_entropy(rows, Y).backward()
    plain = Z.clone().requires_grad_()
    xent.cross_entropy(plain, Y).backward()
    assert torch.equal(torch.stack([row.grad for row in rows]), plain.grad)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor], ids=["list", "numpy", "tensor"])
def test_counts_are_whole_numbers(make):
    counts, exact = make([5, 3, 2]), torch.tensor([5.0, 3.0, 2.0], dtype=torch.float64)
    close(
        losses.logit_adjusted_loss(Z, Y, prior=counts),
        losses.logit_adjusted_loss(Z, Y, prior=exact),
    )
    close(losses.ldam_loss(Z / 4, Y, counts=counts), losses.ldam_loss(Z / 4, Y, counts=exact))
    weights = losses.effective_number_weights(counts)
    assert weights.dtype == (torch.float64 if make is list else torch.float32)
    close(weights, losses.effective_number_weights(exact).to(weights.dtype))


def test_lists_of_counts_become_float64():
    """As all lists of numbers do; arrays keep their type."""
    of_list = losses.effective_number_weights([5, 3, 2])
    exact = losses.effective_number_weights(torch.tensor([5.0, 3.0, 2.0], dtype=torch.float64))
    assert torch.equal(of_list, exact)
    assert torch.equal(losses.deferred_weights([5, 3, 2], epoch=200), exact)
    assert losses.effective_number_weights(np.float32([5, 3, 2])).dtype == torch.float32


def test_modules_take_arrays():
    exact = xent.cross_entropy(Z, Y, weight=torch.tensor([1.0, 2.0, 3.0]))
    for weight in ([1, 2, 3], [1.0, 2.0, 3.0], np.array([1.0, 2.0, 3.0])):
        module = xent.nn.CrossEntropyLoss(weight=weight)
        assert module.weight.dtype == torch.float32
        assert module(Z.numpy(), Y.tolist()) == exact
    module = xent.nn.LogitAdjustedLoss(prior=np.array([5, 3, 2]))
    close(module(Z, Y), losses.logit_adjusted_loss(Z, Y, prior=torch.tensor([5.0, 3.0, 2.0])))


# ---- what is refused ----------------------------------------------------------------------------


REFUSED = {
    "ragged": ([[1.0, 2.0], [3.0]], ValueError, "`input` is a list that is no array of numbers"),
    "text in a list": (["a", "b"], TypeError, "`input` is a list that holds 'a'"),
    "none in a list": ([1.0, None], TypeError, "`input` is a list that holds None"),
    "text": ("text", TypeError, "`input` must be a torch.Tensor, got str"),
    "text in an array": (np.array(["a"]), TypeError, r"array of <U1.*astype\(float\)"),
    "objects": (np.array([1, None]), TypeError, "`input` is an array of object"),
    "masked": (np.ma.array([1.0, 2.0], mask=[False, True]), TypeError, r"input\.filled"),
    "shapes": ([np.ones(2), np.ones(3)], ValueError, "arrays of different shapes"),
    "integers of numpy": (np.array([1, 2]), TypeError, r"call input\.astype\(float\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_array_is_refused_by_name(what):
    given, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        xent.cross_entropy(given, 0)


def test_a_label_beyond_64_bits():
    with pytest.raises(ValueError, match="`target` is a list that is no array of numbers"):
        xent.cross_entropy([[1.0, 2.0]], [2**70])


def test_traced_arrays_of_jax_are_refused():
    class Tracer:
        """Stands for the class of that name in JAX."""

    Tracer.__module__ = "jax._src.core"
    with pytest.raises(TypeError, match="gradients do not pass between PyTorch and JAX"):
        xent.cross_entropy(Tracer(), Y)


def test_arrays_of_jax():
    jax = pytest.importorskip("jax")
    z, y = jax.numpy.asarray(Z.numpy()), jax.numpy.asarray(Y.numpy())
    close(xent.cross_entropy(z, y), xent.cross_entropy(Z, Y))
    with pytest.raises(TypeError, match="traced array of JAX"):
        jax.grad(lambda x: xent.cross_entropy(x, y))(z)


def test_numpys_word_for_an_axis_gets_ours():
    with pytest.raises(TypeError, match="`dim`: pass dim=1"):
        xent.softmax(Z, axis=1)
    with pytest.raises(TypeError, match="`class_dim`: pass class_dim=-1"):
        xent.losses.focal_loss(Z, Y, axis=-1)
    with pytest.raises(TypeError, match="`dim`: pass dim=0"):
        information.cross_entropy_of(P, P, axis=0)


# ---- the way by ---------------------------------------------------------------------------------


def test_tensors_are_not_read(monkeypatch):
    monkeypatch.setattr(Door, "read", None)
    xent.cross_entropy(Z, Y, weight=torch.ones(3), reduction="sum", label_smoothing=0.1)
    xent.binary_cross_entropy_with_logits(Z, Z.sigmoid())
    information.kl_divergence(P, P, unit="bit")


# ---- the best-known question --------------------------------------------------------------------


def test_a_row_that_does_not_sum_to_1():
    """The loss by hand gives 0.7136; the second row of predictions sums to 0.99."""
    predictions = [[0.25, 0.25, 0.25, 0.25], [0.01, 0.01, 0.01, 0.96]]
    targets = [[0, 0, 0, 1], [0, 0, 0, 1]]
    with pytest.raises(ValueError, match=r'0\.99.*sums="normalize", or sums="as given"'):
        information.cross_entropy_of(targets, predictions)
    with pytest.warns(UserWarning, match="1 of 2 rows of `q`.*first row 1 with a sum of 0.99"):
        given = information.cross_entropy_of(targets, predictions, sums="as given")
    by_hand = -(np.log(0.25) + np.log(0.96)) / 2
    assert abs(given.mean().item() - by_hand) < 1e-15
    assert abs(by_hand - 0.71355817782) < 1e-11
    scaled = information.cross_entropy_of(targets, predictions, sums="normalize").mean().item()
    assert abs(scaled + (np.log(0.25) + np.log(0.96 / 0.99)) / 2) < 1e-15
    names = [finding.name for finding in xent.diagnose(predictions, targets)]
    assert names == ["softmax-as-logits", "unnormalised-rows"]
    assert [f.name for f in xent.diagnose(targets, predictions)] == ["swapped-arguments"]


def test_normalised_rows_have_the_gradient_of_their_quotient():
    p = torch.tensor([0.2, 0.3], dtype=torch.float64)
    q = torch.tensor([0.5, 0.1], dtype=torch.float64, requires_grad=True)
    call = lambda q: information.cross_entropy_of(p, q, sums="normalize")  # noqa: E731
    assert torch.autograd.gradcheck(call, q)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = lambda q: information.cross_entropy_of(p, q, sums="as given")  # noqa: E731
        assert torch.autograd.gradcheck(call, q)
