"""Kinds of tensors and modes of PyTorch, with every function: a right result, or an error.

What a plain call computes is tested elsewhere. Here the same call in another mode, or of the same
numbers in another kind of tensor, must give the same.
"""

import ast
import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import xent
from tests.registry.calls import CALLS, ROWS, Call, close, gradient_of
from xent.engines import modes

HOUSE = Path(xent.__file__).parent
every_entry = pytest.mark.parametrize("entry", CALLS, ids=str)


def drawn(entry: Call, seed: int = 0, rows: int = ROWS) -> tuple:
    torch.manual_seed(seed)
    return entry.inputs(rows)


# ---- tensors whose memory does not hold their numbers --------------------------------------------


def negated_later(x):
    """Return a tensor with the numbers of ``x``, whose memory holds their negatives."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return torch._neg_view(-x)


def conjugated(x):
    """Return the same as the imaginary part of a conjugate: every other number of its memory."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.bfloat16:
        return x
    return torch.complex(-x, -x).conj().imag


def in_strides(x):
    return x.repeat_interleave(2, -1)[..., ::2] if isinstance(x, Tensor) and x.ndim else x


def inside_a_storage(x):
    if not isinstance(x, Tensor):
        return x
    memory = x.new_full((x.numel() + 7,), -7)
    memory[3 : 3 + x.numel()] = x.reshape(-1)
    return memory[3 : 3 + x.numel()].view(x.shape)


def misaligned(x):
    """Return a tensor at an address that is no multiple of the size of a number."""
    if not isinstance(x, Tensor):
        return x
    raw = bytearray(x.numel() * x.itemsize + 1)
    view = torch.frombuffer(raw, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)
    return view.copy_(x)


def transposed(x):
    return x.t().contiguous().t() if isinstance(x, Tensor) and x.ndim == 2 else x


def parameter(x):
    return torch.nn.Parameter(x) if isinstance(x, Tensor) and x.is_floating_point() else x


KINDS = (negated_later, conjugated, in_strides, inside_a_storage, misaligned, transposed, parameter)


@pytest.mark.sample(250)
@every_entry
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_kinds_of_tensors(entry, kind):
    inputs = drawn(entry)
    value, grad = gradient_of(entry, inputs)
    again, grad_again = gradient_of(entry, tuple(map(kind, inputs)))
    close(again, value)
    close(grad_again, grad)


@every_entry
def test_one_row_for_all(entry):
    """Expanded tensors: all rows are one row of memory."""
    inputs = tuple(
        x[:1].expand(ROWS, *x.shape[1:])
        if isinstance(x, Tensor) and x.ndim and x.shape[0] == ROWS
        else x
        for x in drawn(entry)
    )
    plain = tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)
    close(entry.function(*inputs), entry.function(*plain))


def test_every_tensor_of_a_call_may_be_negated_later(every_engine):
    """Also weights, biases, scales, row weights, divisors and slopes."""
    z, y = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 2])
    options = {
        "weight": torch.rand(4) + 0.1, "row_weight": torch.rand(5), "logit_scale": torch.rand(5),
        "class_bias": torch.randn(4), "normalizer": torch.tensor(3.0),
    }  # fmt: skip
    for changed in (z, torch._neg_view(-z)):
        later = [{name: torch._neg_view(-value)} for name, value in options.items()]
        for replaced in ({}, *later):
            x = changed.detach().requires_grad_()
            value = xent.cross_entropy(x, y, **{**options, **replaced}, engine=every_engine)
            (grad,) = torch.autograd.grad(value, x, torch._neg_view(torch.tensor(-2.0)))
            if not replaced and changed is z:
                expected = value, grad
            close((value, grad), expected)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_slopes_negated_later(engine):
    z, t = torch.randn(5, 4), torch.rand(5, 4)
    for loss, shape in (
        (xent.cross_entropy, (5,)),
        (xent.binary_cross_entropy_with_logits, (5, 4)),
    ):
        slope = torch.randn(shape)
        grads = []
        for v in (slope, torch._neg_view(-slope)):
            x = z.clone().requires_grad_()
            value = loss(x, torch.softmax(t, 1), reduction="none", engine=engine)
            grads += torch.autograd.grad(value, x, v)
        close(grads[1], grads[0])


def test_memory_that_was_freed_is_refused():
    z = torch.randn(4, 5)
    z.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage"):
        xent.cross_entropy(z, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="no memory"):
        xent.cross_entropy(z, torch.tensor([0, 1, 2, 3]), engine="native")


def test_tensors_of_inference_mode():
    with torch.inference_mode():
        z, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
        inside = xent.cross_entropy(z, y)
    close(xent.cross_entropy(z, y), inside)
    value, grad = gradient_of(Call("", xent.cross_entropy, tuple), (z.clone(), y.clone()))
    close(value, inside)
    assert bool(grad.any())


def test_logits_changed_in_place_after_the_loss():
    """The gradient is that of the logits that the loss saw, or an error."""
    z, y, t = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 1, 2, 3]), torch.rand(4, 5)
    for loss in (xent.cross_entropy, xent.losses.focal_loss):
        grad = gradient_of(Call("", loss, tuple), (z, y))[1]
        ours, other = z * 1, z * 1
        value, thrice = loss(ours, y), 3 * loss(other, y)
        with torch.no_grad():
            ours.div_(2)
            other.div_(2)
        with contextlib.suppress(RuntimeError):  # if no gradient was computed with the loss
            close(torch.autograd.grad(value, z)[0], grad)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(thrice, z)
    logits = z * 1
    value = xent.binary_cross_entropy_with_logits(logits, t)
    with torch.no_grad():
        logits.div_(2)
    (grad,) = torch.autograd.grad(value, z)
    close(grad, (z.detach().double().sigmoid() - t.double()).float() / 20)


class Named(torch.Tensor):
    """A subclass with a method of its own, and with the memory of a tensor."""


class Wrapped(torch.Tensor):
    """A subclass whose numbers are in another tensor."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        unwrap = lambda x: x.inner if isinstance(x, Wrapped) else x  # noqa: E731
        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        wrap = lambda x: Wrapped(x) if isinstance(x, Tensor) else x  # noqa: E731
        return torch.utils._pytree.tree_map(wrap, func(*args, **kwargs))


@every_entry
def test_subclasses_keep_their_type(entry):
    if entry.name == "statistics":
        pytest.skip("answers with a record of tensors")
    inputs = drawn(entry)
    value = entry.function(*inputs)
    again = entry.function(inputs[0].as_subclass(Named), *inputs[1:])
    assert type(again) is Named
    close(again.as_subclass(Tensor), value)


@every_entry
def test_subclasses_with_numbers_elsewhere(entry):
    inputs = drawn(entry)
    again = entry.function(*(Wrapped(x) if isinstance(x, Tensor) else x for x in inputs))
    close(again.inner, entry.function(*inputs))


# ---- the user's defaults must not matter ---------------------------------------------------------


@every_entry
def test_the_default_device_has_no_say(entry):
    inputs = drawn(entry)
    value, grad = gradient_of(entry, inputs)
    with torch.device("meta"):
        again, grad_again = gradient_of(entry, inputs)
    assert again.device.type == grad_again.device.type == "cpu"
    assert again.equal(value)
    assert grad_again.equal(grad)


@every_entry
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_has_no_say(entry, dtype):
    inputs = drawn(entry)
    value, grad = gradient_of(entry, inputs)
    torch.set_default_dtype(dtype)
    try:
        again, grad_again = gradient_of(entry, inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.dtype == value.dtype
    assert again.equal(value)
    assert grad_again.equal(grad)


OF_A_DTYPE = {"empty", "zeros", "ones", "full", "tensor", "linspace", "eye", "rand", "randn"}
FACTORIES = {*OF_A_DTYPE, "arange", "as_tensor", "randint", "randperm"}
FILES = [f for f in sorted(HOUSE.rglob("*.py")) if "commands" not in f.relative_to(HOUSE).parts]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_every_tensor_that_is_made_has_a_device(file):
    """Otherwise it would be on the default device; without a dtype, of the default dtype."""
    for node in ast.walk(ast.parse(file.read_text())):
        call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if not call or not isinstance(node.func.value, ast.Name) or node.func.value.id != "torch":
            continue
        if node.func.attr in FACTORIES:
            told = {keyword.arg for keyword in node.keywords}
            assert "device" in told, ast.unparse(node)
            assert "dtype" in told or node.func.attr not in OF_A_DTYPE, ast.unparse(node)


# ---- tracers -------------------------------------------------------------------------------------


def tensors_only(entry: Call, inputs: tuple):
    """Return the tensors among the inputs, and a function of them."""
    places = [k for k, x in enumerate(inputs) if isinstance(x, Tensor)]

    def function(*tensors):
        given = list(inputs)
        for k, x in zip(places, tensors, strict=True):
            given[k] = x
        return entry.function(*given)

    return tuple(inputs[k] for k in places), function


@pytest.mark.sample(20)
@every_entry
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_jit_trace(entry):
    tensors, function = tensors_only(entry, drawn(entry))
    traced = torch.jit.trace(function, tensors, check_trace=False)
    others, function = tensors_only(entry, drawn(entry, seed=1))
    close(traced(*others), function(*others))


# A graph of these has thousands of operations, the steps of a search for the normaliser.
SEARCHING = {"bi_tempered_loss", "entmax", "entmax_loss", "sparsemax_loss", "tempered_softmax"}
TRACED = [
    pytest.param(entry, mode, id=f"{mode}-{entry}")
    for mode in ("real", "symbolic", "fake", "pre_dispatch")
    for entry in CALLS
    if mode == "fake" or entry.name not in SEARCHING
]


@pytest.mark.sample(12)
@pytest.mark.parametrize(("entry", "mode"), TRACED)
def test_make_fx(entry, mode):
    tensors, function = tensors_only(entry, drawn(entry))
    options = {"pre_dispatch": True} if mode == "pre_dispatch" else {"tracing_mode": mode}
    graph = make_fx(function, **options, _allow_non_fake_inputs=True)(*tensors)
    rows = ROWS + 5 if mode == "symbolic" else ROWS
    others, function = tensors_only(entry, drawn(entry, seed=1, rows=rows))
    close(graph(*others), function(*others))


WEIGHT = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))


def behind_a_head(h, y):
    return xent.linear_cross_entropy(h, WEIGHT, y)


@pytest.mark.parametrize("mode", ["symbolic", "pre_dispatch"])
@pytest.mark.parametrize("loss", [xent.cross_entropy, xent.losses.focal_loss, behind_a_head])
def test_make_fx_of_the_plainest_call(loss, mode):
    options = {"pre_dispatch": True} if mode == "pre_dispatch" else {"tracing_mode": mode}
    width = 4 if loss is behind_a_head else 9

    def made(rows):
        return torch.randn(rows, width), torch.randint(9, (rows,))

    loss(*made(6))  # its options are known from now on, and plain calls with them take short ways
    graph = make_fx(lambda z, y: loss(z, y), **options, _allow_non_fake_inputs=True)(*made(6))
    others = made(11 if mode == "symbolic" else 6)
    close(graph(*others), loss(*others))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_aot_function():
    from functorch.compile import aot_function, nop

    for loss in (xent.cross_entropy, xent.losses.focal_loss):
        z, y = torch.randn(6, 9), torch.randint(9, (6,))
        traced = aot_function(loss, nop)
        close(traced(z, y), loss(z, y))


@every_entry
def test_grad_and_vmap_of_torch_func(entry):
    several = [drawn(entry, seed) for seed in (0, 1)]
    places = [k for k, x in enumerate(several[0]) if isinstance(x, Tensor)]
    axes = tuple(0 if k in places else None for k in range(len(several[0])))
    stacked = tuple(
        torch.stack([inputs[k] for inputs in several]) if k in places else x
        for k, x in enumerate(several[0])
    )
    values = torch.func.vmap(entry.function, in_dims=axes)(*stacked)
    slopes = torch.func.vmap(
        torch.func.grad(lambda *inputs: entry.function(*inputs).sum()), in_dims=axes
    )(*stacked)
    for value, slope, inputs in zip(values, slopes, several, strict=True):
        expected, grad = gradient_of(entry, inputs)
        close(value, expected)
        close(slope, grad)


@pytest.mark.sample(40)
@every_entry
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shapes_without_numbers(entry, kind):
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = drawn(entry)
    value, grad = gradient_of(entry, inputs)
    if kind == "meta":
        inputs = tuple(x.to("meta") if isinstance(x, Tensor) else x for x in inputs)
        again, grad_again = gradient_of(entry, inputs)
    else:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            inputs = tuple(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in inputs)
            again, grad_again = gradient_of(entry, inputs)
    assert (again.shape, again.dtype) == (value.shape, value.dtype)
    assert (grad_again.shape, grad_again.dtype) == (grad.shape, grad.dtype)


@every_entry
def test_functionalize(entry):
    """PyTorch refuses functions that are an autograd.Function, with an error."""
    tensors, function = tensors_only(entry, drawn(entry))
    try:
        value = torch.func.functionalize(function)(*tensors)
    except RuntimeError as refusal:
        if "Functionalize rule for custom_function_call" not in str(refusal):
            raise
        return
    close(value, function(*tensors))


REFUSE_PROXIES = {
    "focal_loss behind a head", "information.entropy", "information.kl_divergence",
    "information.cross_entropy_of",
}  # fmt: skip


@every_entry
def test_fx_symbolic_trace(entry):
    """A loss is one call of the graph; other functions raise an error that names the Proxy."""
    tensors, function = tensors_only(entry, drawn(entry))
    names = [f"x{k}" for k in range(len(tensors))]
    space = {"function": function}
    exec(f"def traced({', '.join(names)}): return function({', '.join(names)})", space)
    if entry.name in ("statistics", "cross_entropy with options"):
        pytest.skip("looks at attributes of what it gets")
    if entry.name in REFUSE_PROXIES:
        with pytest.raises((TypeError, AttributeError), match="Proxy"):
            torch.fx.symbolic_trace(space["traced"])
        return
    graph = torch.fx.symbolic_trace(space["traced"])
    others, function = tensors_only(entry, drawn(entry, seed=1))
    close(graph(*others), function(*others))


def test_modes_that_only_watch_leave_the_kernels_alone():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        assert xent.explain(torch.randn(3, 4), torch.tensor([0, 1, 2])).engine != "reference" or (
            not xent.engines.core.fast
        )


@pytest.mark.parametrize("name", ["native", "triton"])
def test_a_named_engine_says_what_it_cannot_read(name):
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"engine=.* cannot do this: (Wrapped|the|Triton)"):
        xent.cross_entropy(Wrapped(z), y, engine=name)
    with pytest.raises(ValueError, match="cannot do this"):
        make_fx(lambda x: xent.cross_entropy(x, y, engine=name))(z)


def test_a_page_of_reasons():
    x = torch.randn(3, 4)
    assert modes.unreadable(x) is None
    assert "negated" in modes.unreadable(torch._neg_view(x))
    assert "sparse" in modes.unreadable(x.to_sparse())
    assert "Wrapped" in modes.unreadable(Wrapped(x))
    assert "ZeroTensor" in modes.unreadable(torch._efficientzerotensor((2, 3)))
    assert "Functionalize" in modes.unreadable(torch._to_functional_tensor(x))
    leaked = []
    torch.func.grad(lambda a: (leaked.append(a), a.sum())[1])(x)
    assert modes.unreadable(leaked[0]) is not None
    assert not modes.can_look_at(x.to("meta"))


# ---- other layouts -------------------------------------------------------------------------------


LAYOUTS = {
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "mkldnn": lambda x: x.to_mkldnn(),
}


@every_entry
@pytest.mark.parametrize("layout", ["coo", "mkldnn"])
def test_sparse_logits_are_refused(entry, layout):
    inputs = drawn(entry)
    with pytest.raises(TypeError, match=r"must be dense; pass .*to_dense\(\)"):
        entry.function(LAYOUTS[layout](inputs[0]), *inputs[1:])


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
@pytest.mark.filterwarnings("ignore:Sparse C.. tensor support")
def test_sparse_soft_targets(layout):
    z, t = torch.randn(6, 9), torch.softmax(torch.randn(6, 9), 1)
    t[t < 0.1] = 0
    t = t / t.sum(1, keepdim=True)
    for loss in (
        xent.cross_entropy,
        xent.losses.sparsemax_loss,
        xent.binary_cross_entropy_with_logits,
    ):
        close(loss(z, LAYOUTS[layout](t)), loss(z, t))
    with pytest.raises(TypeError, match="`weight` is a tensor of layout"):
        xent.binary_cross_entropy_with_logits(z, t, LAYOUTS[layout](torch.rand(6, 9)))


# ---- compilers -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@every_entry
def test_one_graph_for_compilers(entry):
    torch._dynamo.reset()
    tensors, function = tensors_only(entry, drawn(entry))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    close(compiled(*tensors), function(*tensors))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("entry", CALLS[::12], ids=str)
def test_a_graph_of_tensors_that_are_negated_later(entry):
    torch._dynamo.reset()
    tensors, function = tensors_only(entry, drawn(entry))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    close(compiled(*map(negated_later, tensors)), function(*tensors))


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@every_entry
def test_export_with_any_number_of_rows(entry):
    tensors, function = tensors_only(entry, drawn(entry))
    batch = torch.export.Dim("batch")
    axes = tuple({0: batch} if x.ndim and x.shape[0] == ROWS else None for x in tensors)
    exported = torch.export.export(Module(function), tensors, dynamic_shapes=(axes,)).module()
    others, function = tensors_only(entry, drawn(entry, seed=1, rows=5000))
    close(exported(*others), function(*others))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["cross_entropy", "focal_loss", "sparsemax_loss"])
def test_export_with_pictures_of_any_size(name):
    n, height, width = (torch.export.Dim(axis) for axis in ("n", "height", "width"))
    z, y = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    shapes = ({0: n, 2: height, 3: width}, {0: n, 1: height, 2: width})
    loss = getattr(xent.losses, name)
    exported = torch.export.export(Module(loss), (z, y), dynamic_shapes=(shapes,)).module()
    z, y = torch.randn(3, 3, 40, 70), torch.randint(3, (3, 40, 70))
    close(exported(z, y), loss(z, y))


@pytest.mark.sample(1)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["cross_entropy", "focal_loss", "brier_loss"])
def test_compiled_code_may_use_transforms(name):
    torch._dynamo.reset()
    z, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
    by_row = torch.func.vmap(torch.func.grad(getattr(xent.losses, name)))
    compiled = torch.compile(by_row, fullgraph=True, backend="aot_eager")
    close(compiled(z, y), by_row(z, y))


BAD = {
    "labels": (lambda z: xent.losses.sparsemax_loss(z, torch.tensor([0, 9])), "out of bounds"),
    "distributions": (lambda z: xent.losses.sparsemax_loss(z, torch.ones(2, 4)), "probabilities"),
    "targets": (
        lambda z: xent.binary_cross_entropy(z.sigmoid(), torch.full((2, 4), 1.5)), "between 0 and 1"
    ),
    "focal targets": (
        lambda z: xent.binary_cross_entropy_with_logits(z, torch.full((2, 4), 1.5)), "0 and 1"
    ),
    "probabilities": (
        lambda z: xent.binary_cross_entropy(z.exp() + 1, torch.zeros(2, 4)), "between 0 and 1"
    ),
    "temperatures": (
        lambda z: xent.token_log_probs(z, torch.tensor([0, 1]), temperature=z[:, 0] * 0 - 1),
        "positive",
    ),
}  # fmt: skip


@pytest.mark.sample(2)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("what", BAD)
def test_compiled_code_refuses_what_eager_code_refuses(what):
    torch._dynamo.reset()
    function, message = BAD[what]
    with pytest.raises((ValueError, IndexError), match=message):
        function(torch.randn(2, 4))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with pytest.raises((ValueError, IndexError, RuntimeError), match=message):
        compiled(torch.randn(2, 4))
