"""Means over all rows of an epoch, from batches that differ in size and weight."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...targets import class_axis

__all__ = ["EpochMeans"]


class EpochMeans:
    """Loss of a model batch by batch, and the mean over the rows of all batches.

    The mean of the means of the batches is another number unless all batches have the same divisor.
    So each batch is weighted by the divisor of its own mean, which depends on ignored rows and
    class weights. See :func:`xent.learn.train_classifier` for the arguments.

    Args:
        model: maps ``x`` to what the loss takes.
        loss: called with the output of the model and the targets.
        metrics: functions called as the loss, by name, that return tensors of values.
        count: what the mean of a batch divides by, called with the targets.

    Raises:
        ValueError: if the loss is set to return something else than a mean, or a metric is called
            ``"epoch"``, ``"seconds"`` or ``"loss"``.
        TypeError: for a loss that cannot be called with output and targets.

    Example:
        >>> import torch, xent
        >>> from xent.learn.networks.epoch_means import EpochMeans
        >>> z, y = torch.randn(5, 3), torch.tensor([0, 1, 2, -100, 0])
        >>> means = EpochMeans(torch.nn.Identity(), xent.cross_entropy)
        >>> each = [means([z[:4], y[:4]]).item(), means([z[4:], y[4:]]).item()]
        >>> whole = xent.cross_entropy(z, y).item()
        >>> abs(means.take("data")["loss"] - whole) < 1e-6, abs(sum(each) / 2 - whole) < 1e-6
        (True, False)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any],
        metrics: Mapping[str, Callable[..., Tensor]] | None = None,
        count: Callable[..., float] | None = None,
    ) -> None:
        if not callable(loss) or isinstance(loss, type):
            raise TypeError(
                f"`loss` must be a function or a module, made, not its class; got {loss!r}"
            )
        taken = {"epoch", "seconds", "loss"} & {*(metrics or {})}
        if taken:
            raise ValueError(f"`metrics` must have other names than {', '.join(sorted(taken))}")
        reduction = _setting(loss, "reduction", "mean")
        if reduction != "mean":
            raise ValueError(f'`loss` must return a mean, reduction="mean", not {reduction!r}')
        self.model, self.loss, self.metrics = model, loss, metrics or {}
        self.ignore_index = _setting(loss, "ignore_index", -100)
        self.count = count or _divisor_of(loss, self.ignore_index)
        self.sums: dict[str, tuple[float, float]] = {}  # name: sum of the values, divisor

    def __call__(self, batch: list[Tensor]) -> Tensor | None:
        """The loss of a batch ``[x, y, ...]``; None if there is no row that counts."""
        x, *targets = batch
        output, loss = self._loss_of(batch)  # first: its errors are the clearest
        mass = float(self.count(*targets))
        if mass == 0:
            return None
        if not 0 < mass < math.inf:
            raise ValueError(f"`count` must be positive, or 0 for a batch to leave out; got {mass}")
        self._add("loss", mass * _checked(loss, x, output), mass)
        with torch.no_grad():
            if "accuracy" not in self.metrics and _are_classes(targets[0], output):
                labels = targets[0].long()
                right = output.argmax(class_axis(output)) == labels
                self._add_values("accuracy", right[labels != self.ignore_index])
            for name, metric in self.metrics.items():
                self._add_values(name, metric(output, *targets))
        return loss

    def loss_of(self, batch: list[Tensor]) -> Tensor:
        """Compute the loss of a batch again, without counting it a second time."""
        return self._loss_of(batch)[1]

    def _loss_of(self, batch: list[Tensor]) -> tuple[Any, Any]:
        x, *targets = batch
        output = self.model(x)
        return output, self.loss(output, *targets)

    def take(self, name: str) -> dict[str, float]:
        """Return the means of the batches since the last call.

        Args:
            name: what the data are called, for the message if there was no row.
        """
        sums, self.sums = self.sums, {}
        if not sums:
            raise ValueError(
                f"`{name}` holds no row to learn from: none at all, or all are ignored"
            )
        return {name: total / divisor for name, (total, divisor) in sums.items() if divisor}

    def _add(self, name: str, total: float, divisor: float) -> None:
        before = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = before[0] + total, before[1] + divisor

    def _add_values(self, name: str, values: Tensor) -> None:
        if not isinstance(values, Tensor):
            raise TypeError(f"metric {name!r} must return a tensor of values, got {values!r}")
        self._add(name, values.double().sum().item(), values.numel())


def _setting(loss: Callable[..., Any], name: str, default: Any) -> Any:
    """Return the setting of a loss: an attribute of a module, or the default of an argument."""
    if isinstance(loss, nn.Module):
        return getattr(loss, name, default)
    try:
        found = inspect.signature(loss).parameters[name].default  # also of a functools.partial
    except (KeyError, ValueError):  # no such argument, or a function in C, which has no signature
        return default
    return default if found is inspect.Parameter.empty else found


def _divisor_of(loss: Callable[..., Any], ignore_index: int) -> Callable[..., float]:
    """Return a function from the targets of a batch to the divisor of its mean."""
    weight = _setting(loss, "weight", None)
    ignore_value = _setting(loss, "ignore_value", None)
    if _setting(loss, "normalizer", None) == "count":
        weight = None

    def divisor(target: Tensor, *others: Tensor) -> float:
        if target.is_floating_point():
            if ignore_value is None:
                return target.numel()
            marked = target.isnan() if math.isnan(ignore_value) else target == ignore_value
            return (~marked).sum().item()
        labels = target.long()
        kept = labels[labels != ignore_index]
        return kept.numel() if weight is None else weight[kept].double().sum().item()

    return divisor


def _are_classes(target: Tensor, output: Any) -> bool:
    """True if the targets are class indices, and the output has logits of the classes."""
    indices = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    return indices and getattr(output, "ndim", 0) == target.ndim + 1


def _checked(loss: Any, x: Tensor, output: Any) -> float:
    """Return the loss as a number, or raise unless it is one finite number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(
            f"`loss` must return the mean of the batch, a tensor of one number; got {got}"
        )
    value = loss.item()
    if math.isfinite(value):
        return value
    if not x.isfinite().all():
        cause = "`data` holds inputs that are not finite"
    elif isinstance(output, Tensor) and not output.isfinite().all():
        cause = "the output of the model is not finite: a smaller `lr`, or less at the start"
    else:
        cause = "the output is finite, so look at the targets"
    raise ValueError(
        f"the loss is {value}, and no step was made with it; {cause}. "
        f"xent.diagnose(model(x), y) names the classic mistakes in a batch"
    )
