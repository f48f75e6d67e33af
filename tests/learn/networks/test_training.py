"""Training by backpropagation: exact means, early stopping, only the weights change."""

import inspect
import json
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import xent
from tests.registry import OF_A_BATCH, OTHERWISE_CALLED, REGISTRY
from xent.learn import predict_logits, train_classifier
from xent.learn.networks.batches import Batches
from xent.learn.networks.epoch_means import EpochMeans
from xent.losses import CATALOG
from xent.plot import curves

WEIGHT = torch.tensor([0.2, 1.0, 5.0])


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    torch.set_num_threads(1)  # threads only cost time at this size


def blobs(rows=150, classes=3, noise=0.4, seed=0):
    """Return rows around the unit vectors, and the vector of each."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (rows,), generator=generator)
    return torch.eye(classes)[y] + noise * torch.randn(rows, classes, generator=generator), y


def linear(inputs=3, outputs=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs)


def fit(model, data, loss=xent.cross_entropy, **options):
    return train_classifier(model, data, loss, **{"quiet": True, "epochs": 3} | options)


# ---- what the means divide by -------------------------------------------------------------------

INDICES = torch.tensor([0, 1, 2, 2, -100, 0, 1, -100, 2, 0, -100])
VOID = torch.where(INDICES < 0, 255, INDICES)
SOFT = torch.softmax(torch.arange(33.0).view(11, 3).sin(), 1)
HOLES = torch.where(torch.arange(33).view(11, 3) % 4 == 0, -1.0, (SOFT > 0.3).float())
CASES = {
    # Ignored rows are uneven: the third batch of four has one row that counts among three.
    "ignored": (xent.cross_entropy, INDICES),
    "ignored, PyTorch": (nn.functional.cross_entropy, INDICES),
    "another mark": (partial(xent.cross_entropy, ignore_index=255), VOID),
    "class weights": (partial(xent.cross_entropy, weight=WEIGHT), INDICES),
    "bytes": (partial(xent.cross_entropy, weight=WEIGHT, ignore_index=255), VOID.byte()),
    "module": (xent.nn.FocalLoss(weight=WEIGHT, ignore_index=255), VOID),
    "PyTorch's module": (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), INDICES),
    "smoothed": (partial(xent.losses.smoothed_cross_entropy, weight=WEIGHT), INDICES),
    "per row": (partial(xent.cross_entropy, weight=WEIGHT, normalizer="count"), INDICES),
    "soft": (partial(xent.cross_entropy, weight=WEIGHT), SOFT),
    "multi-label": (xent.losses.multilabel_cross_entropy, (SOFT > 0.3).float()),
    "multi-label, weighted": (
        partial(xent.binary_cross_entropy_with_logits, weight=WEIGHT), (SOFT > 0.3).float(),
    ),
    "multi-label with holes": (partial(xent.losses.sigmoid_focal_loss, ignore_value=-1.0), HOLES),
    "one's own": (lambda z, y: (z - y).square().mean(), SOFT),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_mean_of_batches_is_the_mean_of_all_rows(name):
    loss, target = CASES[name]
    z = torch.randn(11, 3, dtype=torch.float64)
    loss = loss.double() if isinstance(loss, nn.Module) else loss
    if isinstance(loss, partial) and "weight" in loss.keywords:
        loss = partial(loss.func, **loss.keywords | {"weight": WEIGHT.double()})
    target = target.double() if target.is_floating_point() else target
    expected = loss(z, target).item()
    means = EpochMeans(nn.Identity(), loss)
    for batch in Batches("data", (z, target), 4):
        means(batch)
    assert means.take("data")["loss"] == pytest.approx(expected, rel=1e-12)


# With a table or a matrix, class weights are not those of the labels; `count` would have to say so.
NO_WEIGHTS = {"structured_cross_entropy", "backward_corrected_cross_entropy"}
OF_ROWS = [
    name
    for name, member in CATALOG.items()
    if member.targets != "other" and name not in OF_A_BATCH | OTHERWISE_CALLED
]


@pytest.mark.parametrize("name", OF_ROWS)
def test_the_means_of_the_family(name):
    """With class weights, if a loss of classes takes them, and ignored rows."""
    member = CATALOG[name]
    settings = REGISTRY[name].arguments(3)
    weighted = "weight" in inspect.signature(member.function).parameters
    if member.targets == "classes" and weighted and name not in NO_WEIGHTS:
        settings["weight"] = WEIGHT.double()
    loss = partial(member.function, **settings)
    target = INDICES if member.targets == "classes" else SOFT.double()
    z = torch.randn(11, 3, dtype=torch.float64).clamp(-0.9, 0.9)  # cosines, for some
    means = EpochMeans(nn.Identity(), loss)
    for batch in Batches("data", (z, target), 4):
        means(batch)
    assert means.take("data")["loss"] == pytest.approx(loss(z, target).item(), rel=1e-9)


def test_pixels_with_weights_of_their_own():
    """Tensors after the targets go to the loss; `count` gives the divisor of the mean."""
    z, y = torch.randn(5, 3, 4, 4), torch.randint(3, (5, 4, 4))
    y[torch.rand(5, 4, 4) < 0.3] = 255
    w = torch.rand(5, 4, 4)

    def loss(z, y, w):
        return xent.cross_entropy(z, y, row_weight=w, ignore_index=255)

    means = EpochMeans(nn.Identity(), loss, count=lambda y, w: w[y != 255].sum())
    for batch in Batches("data", (z, y, w), 2):
        means(batch)
    assert means.take("data")["loss"] == pytest.approx(loss(z, y, w).item(), rel=1e-6)


def test_accuracy_and_metrics_are_means_of_rows():
    z, y = torch.randn(11, 3), INDICES
    metrics = {"rank": lambda z, y: (z > z.gather(1, y.clamp(min=0)[:, None])).sum(1)[y >= 0]}
    means = EpochMeans(nn.Identity(), xent.cross_entropy, metrics)
    for batch in Batches("data", (z, y), 4):
        means(batch)
    found, kept = means.take("data"), y >= 0
    assert found["accuracy"] == (z.argmax(1) == y)[kept].double().mean().item()
    ranks = z.argsort(1, descending=True).argsort(1)[kept].gather(1, y[kept][:, None])
    assert found["rank"] == pytest.approx(ranks.double().mean().item(), rel=1e-12)


def test_a_metric_has_a_name_of_its_own():
    """With the name of the loss, early stopping would look at the metric, too."""
    for name in ("loss", "epoch", "seconds"):
        with pytest.raises(ValueError, match=f"`metrics` must have other names than {name}"):
            fit(linear(), blobs(), metrics={name: lambda z, y: z})
    record = fit(linear(), blobs(), metrics={"accuracy": lambda z, y: torch.full((3,), 7.0)})
    assert record.epochs[0]["accuracy"] == 7  # replaces the other metric
    with pytest.raises(TypeError, match=r"metric 'half' must return a tensor of values, got 0\.5"):
        fit(linear(), blobs(), metrics={"half": lambda z, y: 0.5})


@pytest.mark.parametrize("mass", [-1.0, math.nan, math.inf])
def test_a_count_that_is_none(mass):
    with pytest.raises(ValueError, match=f"`count` must be positive.*got {mass}"):
        fit(linear(), blobs(), count=lambda y: mass)


def test_a_loss_that_is_none():
    for loss in ("cross_entropy", None, nn.CrossEntropyLoss):
        with pytest.raises(TypeError, match="`loss` must be a function or a module"):
            fit(linear(), blobs(), loss)


def test_a_batch_of_ignored_rows_is_passed_over():
    x, y = blobs(12)
    y[4:8] = -100
    model, twin = linear(), linear()
    record = fit(model, DataLoader(TensorDataset(x, y), 4), epochs=1)
    rest = torch.cat([x[:4], x[8:]]), torch.cat([y[:4], y[8:]])
    expected = fit(twin, DataLoader(TensorDataset(*rest), 4), epochs=1)
    assert torch.equal(model.weight, twin.weight)
    assert record.epochs[0]["loss"] == expected.epochs[0]["loss"]
    with pytest.raises(ValueError, match="`data` holds no row to learn from"):
        fit(linear(), (x, torch.full_like(y, -100)))


# ---- the loop -----------------------------------------------------------------------------------


def test_a_step_is_that_of_the_textbook():
    x, y = blobs(7)
    model, twin = linear(), linear()
    fit(model, (x, y), epochs=1, batch_size=7, lr=0.5, optimizer=torch.optim.SGD)
    loss = nn.functional.cross_entropy(twin(x), y)
    slope, shift = torch.autograd.grad(loss, twin.parameters())
    torch.testing.assert_close(model.weight, twin.weight - 0.5 * slope)
    torch.testing.assert_close(model.bias, twin.bias - 0.5 * shift)


def test_validation_is_measured_on_the_weights_that_are_left():
    rows, held_out = blobs(100), blobs(37, seed=1)
    model = nn.Sequential(linear(), nn.Dropout(0.5), linear())
    record = fit(model, rows, validation=held_out, batch_size=4)
    logits = predict_logits(model, held_out[0], batch_size=10)
    last = record.epochs[-1]
    assert last["validation_loss"] == pytest.approx(
        nn.functional.cross_entropy(logits.double(), held_out[1]).item(), rel=1e-6
    )
    right = (logits.argmax(1) == held_out[1]).double().mean().item()
    assert last["validation_accuracy"] == pytest.approx(right, rel=1e-12)
    assert [entry["epoch"] for entry in record.epochs] == [1, 2, 3]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: TensorDataset(x, y),
        lambda x, y: list(zip(x, y, strict=True)),  # not a dataset: refused
        lambda x, y: DataLoader(TensorDataset(x, y), 32),
    ],
    ids=["dataset", "list", "loader"],
)
def test_rows_come_from_tensors_datasets_and_loaders(wrap):
    x, y = blobs()
    data = wrap(x, y)
    if isinstance(data, list):
        with pytest.raises(TypeError, match="`data` must be tensors"):
            fit(linear(), data)
        return
    record = fit(linear(), data, validation=data, lr=0.1)
    assert record.epochs[-1]["validation_accuracy"] > 0.8
    assert record.epochs[-1]["validation_loss"] < record.epochs[0]["validation_loss"]


class Rows(torch.utils.data.Dataset):
    """A dataset that is not made of tensors."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        return self.x[k], self.y[k]


def test_a_dataset_is_shuffled_anew_each_epoch_and_seen_once():
    x, y = torch.arange(10.0)[:, None], torch.zeros(10, dtype=torch.int64)
    for data in ((x, y), Rows(x, y)):
        batches = Batches("data", data, 3, order=torch.Generator().manual_seed(0))
        passes = [torch.cat([rows for rows, _ in batches])[:, 0] for _ in range(2)]
        assert all(torch.equal(order.sort().values, x[:, 0]) for order in passes)
        assert not torch.equal(*passes)


def test_a_stream_of_rows_is_taken_in_its_order():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return zip(*blobs(10), strict=True)

    model, twin = linear(), linear()
    record = fit(model, Stream(), batch_size=4)
    expected = fit(twin, DataLoader(TensorDataset(*blobs(10)), 4))
    assert torch.equal(model.weight, twin.weight)
    assert record.epochs[-1]["loss"] == expected.epochs[-1]["loss"]


def test_batches_of_something_else():
    x, y = blobs(4)
    for rows, message in [
        ([((x[0], x[0]), y[0])] * 4, r"batches of tensors, got \(list, Tensor\)"),
        ([(x[0], "cat")] * 4, r"batches of tensors, got \(Tensor, tuple\)"),
        (x, r"batches \(x, y\), got Tensor"),
    ]:
        with pytest.raises(TypeError, match=f"`data` must give {message}"):
            fit(linear(), DataLoader(rows, 2))
    with pytest.raises(ValueError, match="`data` holds no row to learn from"):
        fit(linear(), DataLoader(TensorDataset(x, y), 5, drop_last=True))


def test_the_seed_decides_and_global_random_states_stay():
    def run(seed):
        model = nn.Sequential(linear(), nn.Dropout(0.3), linear(seed=1))
        record = fit(model, blobs(), validation=blobs(30, seed=1), seed=seed)
        losses = [[e["loss"], e["validation_loss"]] for e in record.epochs]
        return model[0].weight.detach(), losses

    state = torch.get_rng_state()
    first = run(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, other = run(0), run(1)
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


def test_modes_are_left_as_they_were():
    model = nn.Sequential(linear(), nn.Dropout(), linear()).eval()
    model[1].train()
    before = [part.training for part in model.modules()]
    fit(model, blobs(), validation=blobs(seed=1))
    assert [part.training for part in model.modules()] == before
    predict_logits(model, blobs()[0])
    assert [part.training for part in model.modules()] == before
    with pytest.raises(ValueError, match="not finite"):
        fit(model, (blobs()[0] / 0, blobs()[1]))
    assert [part.training for part in model.modules()] == before


def test_frozen_parts_keep_weights_and_statistics():
    features = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU()).requires_grad_(False)
    model = nn.Sequential(features, nn.Linear(8, 3))
    before = {name: value.clone() for name, value in features.state_dict().items()}
    record = fit(model, blobs(), epochs=5, lr=0.1)
    assert record.epochs[-1]["accuracy"] > 0.8
    assert all(torch.equal(before[name], value) for name, value in features.state_dict().items())
    assert features.training


def test_parameters_of_a_loss_are_learnt_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, z, y):
            return xent.cross_entropy(z, y, logit_scale=self.scale)

    loss = Scaled()
    model = linear().requires_grad_(False)
    fit(model, blobs(), loss, epochs=1, lr=0.1)
    assert loss.scale.item() != 1


def test_an_autoencoder_with_outputs_of_its_own():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(x), torch.randn(len(x))  # noise, as of a variational model

    def loss(output, x):
        return (output[0] - x).square().mean() + 0 * output[1].sum()

    x = blobs()[0]
    record = fit(Pair(), (x, x), loss, validation=(x, x), lr=0.1, epochs=10)
    assert record.epochs[-1]["validation_loss"] < record.epochs[0]["validation_loss"] / 4
    assert "accuracy" not in record.epochs[0]


def test_noise_in_validation_is_the_same_each_time():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.shift + torch.randn(len(x), 3)

    rows = blobs()
    record = fit(Noise(), rows, validation=rows, lr=1e-12)
    losses = {round(entry["validation_loss"], 6) for entry in record.epochs}
    assert len(losses) == 1
    assert len({entry["loss"] for entry in record.epochs}) == 3


def test_logits_behind_a_head_stay_behind_it():
    """Loss and accuracy do not read all logits at once, which would warn."""

    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = linear()

        def forward(self, x):
            return xent.LinearLogits(x, self.head.weight, self.head.bias)

    model, twin = Behind(), linear()
    record = fit(model, blobs(), validation=blobs(seed=1), lr=0.1)
    expected = fit(twin, blobs(), validation=blobs(seed=1), lr=0.1)
    torch.testing.assert_close(model.head.weight, twin.weight)
    for ours, theirs in zip(record.epochs, expected.epochs, strict=True):
        assert ours["validation_accuracy"] == theirs["validation_accuracy"]


# ---- when it ends -------------------------------------------------------------------------------


def overfitting(**options):
    """Return ten rows with random labels, which are soon known by heart."""
    x = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    y = torch.randint(2, (40,), generator=torch.Generator().manual_seed(1))
    model = linear(20, 2)
    rows, held_out = (x[:10], y[:10]), (x[10:], y[10:])
    return model, held_out, fit(model, rows, validation=held_out, epochs=40, lr=0.1, **options)


def test_patience_stops_and_the_best_weights_come_back():
    model, (x, y), record = overfitting(patience=4)
    losses = [entry["validation_loss"] for entry in record.epochs]
    assert record.stopped == "patience"
    assert record.restored
    assert record.best_epoch == losses.index(min(losses)) + 1
    assert len(losses) == record.best_epoch + 4
    found = nn.functional.cross_entropy(model(x), y).item()
    assert found == pytest.approx(min(losses), rel=1e-6)


def test_without_patience_the_last_weights_stay():
    model, (x, y), record = overfitting()
    assert (record.stopped, record.restored, len(record.epochs)) == ("epochs", False, 40)
    assert record.best_epoch is not None
    assert record.best_epoch < 40
    found = nn.functional.cross_entropy(model(x), y).item()
    assert found == pytest.approx(record.epochs[-1]["validation_loss"], rel=1e-6)


@pytest.mark.parametrize("patience", [None, 30])
def test_an_interrupt_loses_nothing(patience):
    def callback(entry):
        if entry["epoch"] == 7:
            raise KeyboardInterrupt

    model, (x, y), record = overfitting(patience=patience, callback=callback)
    losses = [entry["validation_loss"] for entry in record.epochs]
    assert (record.stopped, len(losses)) == ("interrupted", 7)
    kept = losses[-1] if patience is None else min(losses)
    assert nn.functional.cross_entropy(model(x), y).item() == pytest.approx(kept, rel=1e-6)
    assert model.training


def test_an_interrupt_before_the_first_epoch_ends():
    def loss(z, y):
        raise KeyboardInterrupt

    record = fit(linear(), blobs(), loss, patience=2, validation=blobs())
    assert (record.epochs, record.stopped, record.restored) == ([], "interrupted", False)
    assert str(record) == "no epoch was finished (interrupted)"


def test_the_record_is_json_and_reads_as_a_line():
    _, _, record = overfitting(patience=4)
    assert json.loads(json.dumps(record.to_dict())) == record.to_dict()
    best = record.epochs[record.best_epoch - 1]
    line = str(record)
    assert line.startswith(f"epoch {record.best_epoch} of {len(record.epochs)} (patience): ")
    assert f"validation loss {best['validation_loss']:.4g}" in line


def test_progress_is_shown_unless_quiet(capsys):
    fit(linear(), blobs())
    assert capsys.readouterr().err == ""
    fit(linear(), blobs(), quiet=False)
    assert "epochs: 100%" in capsys.readouterr().err


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": (torch.zeros(0, 3), INDICES[:0])}, ValueError, "`data` holds no row"),
        ({"data": Rows([], [])}, ValueError, "`data` holds no row"),
        ({"data": (torch.zeros(5, 3), INDICES)}, ValueError, r"as many rows .*\(5, 3\), \(11,\)"),
        ({"data": (torch.zeros(5, 3),)}, TypeError, r"tensors \(x, y\)"),
        ({"data": torch.zeros(5, 3)}, TypeError, "Dataset or a DataLoader, got Tensor"),
        (
            {"data": DataLoader(torch.zeros(5, 3))},
            TypeError,
            r"an autoencoder learns from \(x, x\)",
        ),
        ({"validation": (torch.zeros(0, 3), INDICES[:0])}, ValueError, "`validation` holds no"),
        ({"validation": ()}, TypeError, "`validation` must be tensors"),
        ({"epochs": 0}, ValueError, "`epochs` must be a whole number"),
        ({"batch_size": 1.5}, ValueError, "`batch_size` must be a whole number"),
        ({"patience": 0}, ValueError, "`patience` must be a whole number"),
        ({"patience": 3}, ValueError, "give `validation` rows"),
        (
            {"model": linear().requires_grad_(False)},
            ValueError,
            "`model` has no parameter to train",
        ),
        ({"loss": xent.nn.FocalLoss(reduction="sum")}, ValueError, "`loss` must return a mean"),
        ({"loss": partial(xent.cross_entropy, reduction="none")}, ValueError, "must return a mean"),
        ({"loss": lambda z, y: z}, TypeError, r"one number; got \(32, 3\)"),
        ({"loss": lambda z, y: 1.0}, TypeError, "one number; got float"),
        ({"loss": lambda z, y: z.detach().mean()}, ValueError, "no gradient"),
        ({"data": (blobs()[0], blobs()[1] + 1)}, ValueError, "3, which is out of bounds for 3"),
        (
            {"data": (blobs()[0], blobs()[1] + 1), "loss": xent.nn.FocalLoss(weight=WEIGHT)},
            ValueError,
            "3, which is out of bounds for 3",
        ),
        ({"data": (blobs()[0], blobs()[1].float())}, TypeError, "target.long"),
        ({"data": (blobs()[0] / 0, blobs()[1])}, ValueError, "inputs that are not finite"),
        ({"loss": lambda z, y: z.sum() * torch.nan}, ValueError, "xent.diagnose"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    settings = {"model": linear(), "data": blobs()} | options
    with pytest.raises(error, match=message):
        fit(**settings)


def test_a_training_that_blows_up_stops_at_once():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = blobs()
    seen = []

    def loss(z, y):
        seen.append(z)
        return z.exp().mean()

    sgd = partial(torch.optim.SGD, momentum=0.0, maximize=True)
    with pytest.raises(ValueError, match=r"output of the model is not finite|look at the targets"):
        fit(model, (x, y), loss, lr=1e30, optimizer=sgd)
    assert len(seen) < 5


def test_predictions_of_no_rows_are_refused():
    with pytest.raises(ValueError, match="`x` holds no row"):
        predict_logits(linear(), torch.zeros(0, 3))


# ---- the picture --------------------------------------------------------------------------------


def test_the_picture_shows_the_record():
    pytest.importorskip("matplotlib")
    _, _, record = overfitting(patience=4)
    ax = curves(record.to_dict())
    training, validation, star = ax.lines
    assert list(training.get_ydata()) == [entry["loss"] for entry in record.epochs]
    assert list(validation.get_ydata()) == [entry["validation_loss"] for entry in record.epochs]
    assert list(star.get_xdata()) == [record.best_epoch]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    ax = curves([record.to_dict()] * 2, over="seconds", labels=["a", "b"])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["a: training", "a: validation", "b: training", "b: validation"]
    with pytest.raises(ValueError, match="`over` cannot be 'step'"):
        curves(record.to_dict(), over="step")
    with pytest.raises(ValueError, match="`labels` must name each"):
        curves(record.to_dict(), labels=["a", "b"])


def test_a_picture_without_validation():
    pytest.importorskip("matplotlib")
    record = fit(linear(), blobs())
    (line,) = curves(record.to_dict()).lines
    assert math.isclose(line.get_ydata()[-1], record.epochs[-1]["loss"])
