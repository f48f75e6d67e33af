"""Every loss of the catalog as a module: same values; settings kept, copied, moved and shown."""

import ast
import copy
import inspect
import pickle

import pytest
import torch

import xent
from tests.helpers import same_bits
from tests.registry import APART, REGISTRY
from xent.nn.twins import Loss, class_name, modules

NAMES = [name for name in xent.nn.__all__ if modules()[name].__name__ in REGISTRY.keys() - APART]
CLASSES = 4


def example(name):
    """Return a module of a name, and arguments to call it with."""
    c = REGISTRY[modules()[name].__name__]
    settings = c.arguments(CLASSES)
    targets = c.targets(CLASSES)
    z = torch.randn(len(targets), c.width(CLASSES), dtype=torch.float64)
    return getattr(xent.nn, name)(**settings), c.data(z, targets), settings


@pytest.mark.parametrize("name", xent.nn.__all__)
def test_a_module_takes_what_its_function_takes(name):
    module, function = getattr(xent.nn, name), modules()[name]
    settings = set(inspect.signature(module).parameters)
    call = set(inspect.signature(module.forward).parameters) - {"self"}
    head = {"linear_weight", "linear_bias"}  # the module holds them
    assert set(inspect.signature(function).parameters) - head <= settings | call
    assert issubclass(module, torch.nn.Module)
    doc = inspect.getdoc(module)
    assert function.__name__ in doc
    assert all(f"{setting}:" in doc for setting in settings)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_gives_what_its_function_gives(name):
    module, data, settings = example(name)
    function = modules()[name]
    assert same_bits(module(*data), function(*data, **settings))


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_equal(name):
    module, data, _ = example(name)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert repr(other) == repr(module)
        assert same_bits(other(*data), module(*data))
    other.load_state_dict(module.state_dict())


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "FocalLoss", "BCEWithLogitsLoss"])
def test_a_module_compiles(name):
    module, data, _ = example(name)
    value = torch.compile(module, backend="aot_eager", fullgraph=True)(*data)
    torch.testing.assert_close(value, module(*data), rtol=1e-12, atol=1e-12)


def test_settings_are_shown_where_they_are_not_the_default():
    assert repr(xent.nn.FocalLoss()) == "FocalLoss()"
    module = xent.nn.FocalLoss(gamma=0.5, weight=torch.ones(3), reduction="sum")
    assert repr(module) == "FocalLoss(gamma=0.5, weight=<tensor (3,)>, reduction='sum')"
    module = xent.nn.LogitAdjustedLoss(prior=torch.ones(3))
    assert repr(module) == "LogitAdjustedLoss(prior=<tensor (3,)>)"


def test_editors_see_the_twin_of_cross_entropy_as_it_is():
    (told,) = (
        node
        for node in ast.walk(ast.parse(inspect.getsource(xent.nn)))
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    made = inspect.signature(xent.nn.CrossEntropyLoss.__init__)
    names = [p.arg for p in (*told.args.args, *told.args.kwonlyargs)]
    assert names == list(made.parameters)
    assert [p.arg for p in told.args.kwonlyargs] == [
        name for name, p in made.parameters.items() if p.kind is p.KEYWORD_ONLY
    ]
    values = [ast.literal_eval(x) for x in (*told.args.defaults, *told.args.kw_defaults)]
    assert values == [p.default for p in list(made.parameters.values())[1:]]


def test_settings_are_attributes_that_may_be_changed():
    module = xent.nn.FocalLoss()
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    module.gamma = 0.0
    module.weight = torch.rand(4)
    assert same_bits(module(z, y), xent.cross_entropy(z, y, module.weight))
    assert module.double().weight.dtype == torch.float64


def test_options_of_one_call():
    module = xent.nn.FocalLoss(gamma=1.0)
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    value = module(z, y, normalizer=5.0, row_weight=torch.rand(3), gamma=2.0)
    torch.manual_seed(0)
    z, weight = torch.randn(3, 4), torch.rand(3)
    assert same_bits(
        value, xent.losses.focal_loss(z, y, normalizer=5.0, row_weight=weight, gamma=2.0)
    )
    assert module.gamma == 1.0
    assert isinstance(module(input=z, target=y, return_stats=True)[1], xent.RowStatistics)


def test_tensors_move_but_only_class_weights_are_saved():
    counts = torch.tensor([9.0, 3.0, 1.0])
    module = xent.nn.LDAMLoss(counts=counts, weight=torch.ones(3)).double()
    assert module.counts.dtype == module.weight.dtype == torch.float64
    assert list(module.state_dict()) == ["weight"]
    assert list(xent.nn.LDAMLoss(counts=counts).state_dict()) == []
    theirs = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))
    module.load_state_dict(theirs.state_dict())
    assert module.weight.tolist() == [1.0, 2.0, 3.0]


def test_a_parameter_among_the_settings_is_learned():
    scale = torch.nn.Parameter(torch.tensor(1.0))
    module = xent.nn.FocalLoss(logit_scale=scale)
    module(torch.randn(3, 4), torch.tensor([0, 1, 2])).backward()
    assert [name for name, _ in module.named_parameters()] == ["logit_scale"]
    assert scale.grad is not None


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("FocalLoss", {"gamma": -1.0}, ValueError, "`gamma` must be at least 0"),
        ("FocalLoss", {"reduction": "avg"}, ValueError, "`reduction` must be one of"),
        ("FocalLoss", {"engine": "gpu"}, ValueError, "`engine` must be one of"),
        ("FocalLoss", {"weight": "balanced"}, TypeError, "`weight` must be a torch.Tensor"),
        (
            "FocalLoss",
            {"gama": 2.0},
            TypeError,
            "unexpected keyword argument 'gama'; it takes gamma",
        ),
        ("FocalLoss", {"row_weight": torch.ones(2)}, TypeError, "belongs to one batch"),
        ("LDAMLoss", {}, TypeError, "needs the keyword argument `counts`"),
    ],
)
def test_bad_settings_are_refused_at_once(name, settings, error, message):
    with pytest.raises(error, match=message):
        getattr(xent.nn, name)(**settings)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="did you mean FocalLoss"):
        xent.nn.FokalLoss  # noqa: B018
    assert {"FocalLoss", "CrossEntropyLoss"} <= set(dir(xent.nn))


def test_names():
    assert class_name("focal_loss") == "FocalLoss"
    assert class_name("balanced_softmax_loss") == "BalancedSoftmaxLoss"
    assert class_name("ldam_loss") == "LDAMLoss"
    assert xent.nn.PCSoftmaxLoss.function is xent.losses.logit_adjusted_loss
    assert len(set(xent.nn.__all__)) == len(xent.nn.__all__)


def test_a_module_can_be_extended():
    class Halved(xent.nn.FocalLoss):
        def __init__(self):
            super().__init__(gamma=1.0)

        def forward(self, input, target):
            return super().forward(input, target) / 2

    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert issubclass(Halved, Loss)
    torch.testing.assert_close(Halved()(z, y), xent.losses.focal_loss(z, y, gamma=1.0) / 2)


# ---- modules that PyTorch has, too ------------------------------------------------------------


@pytest.mark.parametrize("name", ["BCELoss", "BCEWithLogitsLoss"])
def test_a_module_of_pytorch_has_its_place_taken(name):
    ours, theirs = getattr(xent.nn, name), getattr(torch.nn, name)
    p, target, weight = torch.rand(3, 4), torch.rand(3, 4), torch.rand(4)
    for settings in ((), (weight,), (weight, None, None, "sum")):
        a, b = ours(*settings), theirs(*settings)
        assert isinstance(a, theirs)
        torch.testing.assert_close(a(p, target), b(p, target))
        assert a.state_dict().keys() == b.state_dict().keys()
        assert a.reduction == b.reduction
    assert repr(ours(reduction="sum")) == f"{name}(reduction='sum')"
    assert copy.deepcopy(ours(weight)).weight.tolist() == weight.tolist()


def test_positive_weights_are_saved_as_pytorch_saves_them():
    weight = torch.rand(4)
    ours, theirs = (nn.BCEWithLogitsLoss(pos_weight=weight) for nn in (xent.nn, torch.nn))
    assert ours.state_dict().keys() == theirs.state_dict().keys() == {"pos_weight"}
    z, target = torch.randn(3, 4), torch.rand(3, 4)
    torch.testing.assert_close(ours(z, target), theirs(z, target))
    other = torch.rand(3, 4)  # weights of one batch
    expected = xent.binary_cross_entropy_with_logits(z, target, other, pos_weight=weight)
    assert same_bits(ours(z, target, weight=other), expected)


def test_the_old_names_of_reductions():
    with pytest.warns(UserWarning, match="reduction='sum' instead"):
        assert xent.nn.BCELoss(size_average=False).reduction == "sum"


def test_settings_by_place():
    with pytest.raises(TypeError, match="takes its settings by name"):
        xent.nn.FocalLoss(2.0)
    with pytest.raises(TypeError, match="multiple values for argument 'weight'"):
        xent.nn.BCELoss(torch.ones(2), weight=torch.ones(2))
