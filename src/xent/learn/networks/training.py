"""Training by backpropagation: one plain loop for every loss, and a record of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..._check import is_whole
from ...losses import cross_entropy
from .batches import Batches, Data
from .epoch_means import EpochMeans
from .steps import Step

__all__ = ["TrainingRecord", "predict_logits", "train_classifier"]

Entry = dict[str, float]
EVALUATION = 4  # how many times larger a batch is in evaluation, without gradients


@dataclass(frozen=True)
class TrainingRecord:
    """Record of :func:`train_classifier`; prints as a line, and ``xent.plot.curves`` draws it.

    Attributes:
        epochs: an entry for each finished epoch: ``epoch``, ``seconds`` since the start, ``loss``,
            ``accuracy`` and other metrics; with validation ``validation_loss`` and so on. The
            training rows are measured during the epoch, each batch with the weights before the
            step on it.
        stopped: ``"epochs"``: all were done; ``"patience"``: the validation loss fell no more;
            ``"interrupted"``: by Ctrl-C.
        best_epoch: the epoch of the least validation loss, None without validation.
        restored: whether the model has the weights of that epoch, not the last ones.
    """

    epochs: list[Entry]
    stopped: str
    best_epoch: int | None
    restored: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain types, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.epochs:
            return f"no epoch was finished ({self.stopped})"
        told = self.epochs[(self.best_epoch or len(self.epochs)) - 1]
        values = (f"{k.replace('_', ' ')} {v:.4g}" for k, v in told.items() if k != "epoch")
        return f"epoch {told['epoch']} of {len(self.epochs)} ({self.stopped}): {', '.join(values)}"


def train_classifier(
    model: nn.Module,
    data: Data,
    loss: Callable[..., Any] = cross_entropy,
    *,
    validation: Data | None = None,
    epochs: int = 20,
    batch_size: int = 32,
    lr: float | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    patience: int | None = None,
    metrics: Mapping[str, Callable[..., Tensor]] | None = None,
    count: Callable[..., float] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    quiet: bool = False,
    callback: Callable[[Entry], object] | None = None,
) -> TrainingRecord:
    r"""Train a model by backpropagation, with any loss and any kind of target.

    The loss is called as ``loss(model(x), y)`` and must return the mean of a batch. The record
    holds the mean over *all* rows. So each batch is weighted by the divisor of its own mean, which
    is smaller for a short last batch, for ignored rows and for classes of small weight,

    .. math:: L = \sum_b m_b L_b \Big/ \sum_b m_b, \qquad
        m_b = \sum_{n \in b,\ y_n \ne \mathrm{ignored}} w_{y_n} .

    (Losses that compare the rows of a batch, :func:`xent.losses.recall_loss` or contrastive ones,
    have no such mean; theirs depends on the batches.)

    Only parameters that require a gradient are trained. A part whose parameters are all frozen
    stays in evaluation mode, so that its batch norms keep their statistics. Afterwards all parts
    are in the mode they had before, and so is the state of the global random numbers.

    Ctrl-C ends the training and returns what was learnt.

    Args:
        model: maps ``x`` to logits, or to whatever ``loss`` takes.
        data: ``(x, y)``, tensors with as many rows; or a dataset or loader of such pairs. What
            comes after ``y`` goes to the loss, too: ``(x, y, w)`` is ``loss(model(x), y, w)``.
        loss: of xent or PyTorch, function or module, or a function of your own. Its parameters, if
            it has any, are trained along.
        validation: rows to measure after each epoch, as ``data``.
        epochs: how often to go through the data, at most.
        batch_size: rows per step; a loader has its own. A batch norm cannot learn from one row: if
            the last batch has but one, take another size or a loader with ``drop_last``.
        lr: step size, by default 1e-3. By default an optimiser that must have a closure, as L-BFGS,
            keeps its own, and a ``functools.partial`` that names ``lr`` keeps that.
        optimizer: called as ``optimizer(parameters, lr=lr)``; for instance
            ``functools.partial(torch.optim.SGD, momentum=0.9)``. An optimiser that computes the
            loss several times in a step, as ``torch.optim.LBFGS``, gets the loss of the same batch
            with the same random numbers; let that batch hold all rows.
        patience: stop after so many epochs without a lower validation loss, and go back to the
            weights of the lowest. None: do all epochs and keep the last weights.
        metrics: what else to measure, by name: functions called as the loss that return a tensor of
            values, which are averaged over all batches. Where the targets are class indices,
            ``accuracy`` is always measured, unless a metric has that name.
        count: :math:`m_b`, called with what the loss gets after the logits. By default the sum of
            the class weights of the entries that are not ignored. What is ignored (-100 if nothing
            else is found) and what classes weigh is read from the loss; a lambda hides both.
        seed: for the order of the rows, and for dropout and whatever else the model draws.
        device: where to train; by default where the model is.
        quiet: show no progress.
        callback: called after each epoch with its entry of the record.

    Returns:
        A :class:`TrainingRecord`. The model is trained in place.

    Raises:
        ValueError: if there is nothing to train or to learn from, if tensors or settings do not fit
            together, or as soon as a loss is not finite.
        TypeError: for data of another kind, or a loss that is no function or returns no scalar.

    Example:
        >>> import torch
        >>> from xent.learn import train_classifier
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > x[:, 1]).long()
        >>> rows, held_out = (x[:150], y[:150]), (x[150:], y[150:])
        >>> model = torch.nn.Linear(2, 2)
        >>> record = train_classifier(model, rows, validation=held_out, lr=0.1, quiet=True)
        >>> record.epochs[-1]["validation_accuracy"] > 0.9, record.stopped
        (True, 'epochs')
    """
    _check_settings(epochs, batch_size, patience, validation)
    learner = nn.ModuleList(part for part in (model, loss) if isinstance(part, nn.Module))
    if device is not None:
        learner.to(device)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "`model` has no parameter to train; call .requires_grad_() on what should learn"
        )
    where, order = parameters[0].device, torch.Generator().manual_seed(seed)
    training = Batches("data", data, batch_size, where, order)
    held_out = None
    if validation is not None:
        held_out = Batches("validation", validation, EVALUATION * batch_size, where)
    means = EpochMeans(model, loss, metrics, count)
    step = Step(means, optimizer, parameters, lr)
    best, stopped = _Best(learner, keep=patience is not None), "epochs"
    entries: list[Entry] = []
    bar, start = tqdm(total=epochs, desc="epochs", disable=quiet), perf_counter()
    with bar, _modes_kept(learner), _random_numbers(seed, where):
        try:
            for epoch in range(1, epochs + 1):
                found = _train(learner, means, training, step)
                if held_out is not None:
                    found |= _evaluate(learner, means, held_out)
                entry = {"epoch": epoch, "seconds": round(perf_counter() - start, 3), **found}
                entries.append(entry)
                best.look(entry)
                bar.set_postfix({k: f"{v:.4f}" for k, v in found.items()})
                bar.update()
                if callback is not None:
                    callback(entry)
                if patience is not None and epoch - (best.epoch or 0) >= patience:
                    stopped = "patience"
                    break
        except KeyboardInterrupt:
            stopped = "interrupted"
    return TrainingRecord(entries, stopped, best.epoch, restored=best.restore())


@torch.no_grad()
def predict_logits(model: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    """Compute the logits of many rows, batch by batch, in evaluation mode and without gradients.

    Args:
        model: maps rows to a tensor; it stays on its device and comes back in the mode it had.
        x: rows, ``(N, ...)``.
        batch_size: how many go through the model at once.

    Returns:
        ``(N, ...)``, on the device of ``x``.

    Raises:
        ValueError: if there is no row.

    Example:
        >>> import torch
        >>> from xent.learn import predict_logits
        >>> predict_logits(torch.nn.Linear(4, 3), torch.randn(1000, 4)).shape
        torch.Size([1000, 3])
    """
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"`x` holds no row: shape {tuple(x.shape)}")
    where = next((p.device for p in model.parameters()), x.device)
    with evaluation_mode(model):
        return torch.cat([model(rows.to(where)).to(x.device) for rows in x.split(batch_size)])


def _train(learner: nn.Module, means: EpochMeans, batches: Batches, step: Step) -> Entry:
    """Train for one epoch, a step for each batch; return the means over the epoch."""
    learner.train()
    for part in learner.modules():
        frozen = [not p.requires_grad for p in part.parameters()]
        if frozen and all(frozen):
            part.eval()
    for batch in batches:
        step(batch)
    return means.take(batches.name)


@torch.no_grad()
def _evaluate(learner: nn.Module, means: EpochMeans, batches: Batches) -> Entry:
    """Measure a model on the validation rows, without steps.

    Random numbers start from the same seed each time, so that the losses of epochs can be compared.
    """
    learner.eval()
    with _random_numbers(0, batches.device):
        for batch in batches:
            means(batch)
    return {f"validation_{name}": mean for name, mean in means.take(batches.name).items()}


class _Best:
    """The epoch of the least validation loss, and its weights if they are to be kept."""

    def __init__(self, learner: nn.Module, keep: bool) -> None:
        self.learner, self.keep = learner, keep
        self.epoch: int | None = None
        self.loss, self.weights = math.inf, None

    def look(self, entry: Entry) -> None:
        """Compare the state after an epoch with the best so far."""
        loss = entry.get("validation_loss", math.inf)
        if loss < self.loss:
            self.weights = copy.deepcopy(self.learner.state_dict()) if self.keep else None
            self.epoch, self.loss = int(entry["epoch"]), loss

    def restore(self) -> bool:
        """Go back to the best weights, if there are any."""
        if self.weights is not None:
            self.learner.load_state_dict(self.weights)
        return self.weights is not None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Keep the model in evaluation mode, and put each part back into its mode afterwards."""
    with _modes_kept(model):
        model.eval()
        yield


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Put each part of the model back into its mode afterwards, training or evaluation."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _random_numbers(seed: int, device: torch.device | str) -> Iterator[None]:
    """Draw random numbers from a seed, and restore the state of the generators afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _check_settings(epochs: int, batch_size: int, patience: int | None, validation: object) -> None:
    counts = {"epochs": epochs, "batch_size": batch_size, "patience": patience}
    for name, value in counts.items():
        if value is not None and (not is_whole(value) or value < 1):
            raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}")
    if patience is not None and validation is None:
        raise ValueError("`patience` waits for the validation loss; give `validation` rows as well")
