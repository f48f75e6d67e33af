"""The frame for losses of single elements: logits, each with a target in [0, 1].

input + target --the few lines--> one value per element --weights, sum or mean--> loss

:func:`element_loss` is to the sigmoid family what :func:`xent.row_loss` is to the softmax family.
An element is a row of two classes, and its logit is the log-odds of this row.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor

from ..engines import elements
from ..engines.elements.problem import ElementProblem, Form
from ..engines.modes import can_look_at
from ..heads.logits import LinearLogits
from ..hyperparameters import Hyperparameters
from ..overrides import overridable
from .containers import through_containers
from .docstrings import described, element_docstring
from .element_checks import make_problem, smooth, without_weightless
from .element_head import sum_behind_head, tensors_of
from .reduction import Reduction, of_empty, read_reduction, stable_sum


class ElementLoss(Protocol):
    """A loss of single elements, as :func:`element_loss` makes it."""

    __name__: str
    of_tensors: Callable[..., Tensor]  # the loss for `input` of NO_CONTAINERS
    body: Callable[..., Tensor]  # the few lines

    def __call__(
        self,
        input: Tensor | LinearLogits,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        ignore_value: float | None = None,
        reduction: Reduction = "mean",
        normalizer: float | Tensor | Literal["count", "weight"] | None = None,
        empty: Literal["nan", "zero"] = "nan",
        engine: str = "auto",
        **hyperparameters: Any,
    ) -> Tensor:
        """The loss."""
        ...


@dataclass(frozen=True)
class Elements:
    """Elements of a loss: logits and targets, and the numbers that follow from both.

    Everything has the shape of ``input`` and is float64. No difference of nearly equal numbers is
    taken: ``miss`` is not ``1 - prob``, and so has all its digits where ``prob`` is nearly 1.

    Attributes:
        input: the logits (the probabilities, in losses of probabilities).
        target: the probability that the label is 1, in [0, 1].
        pos_weight: factor on the targets, None without.

    Example:
        >>> import torch, xent
        >>> e = xent.Elements(torch.tensor([40.0]).double(), torch.tensor([1.0]).double())
        >>> f"{e.prob.item()} {e.miss.item():.4e} {e.nll.item():.4e}"
        '1.0 4.2484e-18 4.2484e-18'
    """

    input: Tensor
    target: Tensor
    pos_weight: Tensor | None = None

    @property
    def prob(self) -> Tensor:
        """Probability of label 1."""
        return _sigmoid(self.input)

    @property
    def miss(self) -> Tensor:
        """Probability of label 0, ``1 - prob`` with all its digits."""
        return _sigmoid(-self.input)

    @property
    def log_prob(self) -> Tensor:
        """Log-probability of label 1."""
        return torch.nn.functional.logsigmoid(self.input)

    @property
    def log_miss(self) -> Tensor:
        """Log-probability of label 0."""
        return torch.nn.functional.logsigmoid(-self.input)

    @property
    def nll(self) -> Tensor:
        """Cross-entropy, the negative log-likelihood of the target, times ``pos_weight``."""
        yes = self.target if self.pos_weight is None else self.target * self.pos_weight
        return product(yes, -self.log_prob) + product(1 - self.target, -self.log_miss)

    @property
    def error(self) -> Tensor:
        """Probability that target and prediction, drawn apart, disagree."""
        return self.target * self.miss + (1 - self.target) * self.prob

    @property
    def residual(self) -> Tensor:
        """``target - prob``."""
        return self.target * self.miss - (1 - self.target) * self.prob


_NO_SMOOTHING = 0.0  # compared by identity: another object was given by the caller

# From the problem and the hyperparameters of a call to those that an engine gets.
Share = Callable[[ElementProblem, dict[str, Any]], tuple[ElementProblem, dict[str, Any]]]


def _sigmoid(z: Tensor) -> Tensor:
    """``1 / (1 + e^-z)``, from the smaller of both probabilities.

    The derivative of PyTorch's sigmoid has ``1 - p`` from p, which leaves no digit of it near 1.
    """
    positive = (z > 0).to(z.dtype)
    sign = 1 - 2 * positive
    return torch.addcmul(positive, sign, torch.sigmoid(sign * z))


def product(factor: Tensor, value: Tensor) -> Tensor:
    """``factor * value``, where 0 times infinity is 0."""
    if _finite(value):
        return factor * value
    void = (factor == 0) & value.isinf()
    return torch.where(void, 0.0, factor * torch.where(void, 0.0, value))


def power(base: Tensor, exponent: float | Tensor) -> Tensor:
    """``base ** exponent`` for base and exponent of at least 0, with derivative 0 at base 0."""
    if _finite(1 / base.detach()):
        return base**exponent
    zero = base == 0
    raised = torch.where(zero, 1.0, base) ** exponent
    if isinstance(exponent, Tensor):
        zero = zero & (exponent > 0)
    elif exponent <= 0:
        return raised
    return torch.where(zero, 0.0, raised)


def _finite(value: Tensor) -> bool:
    """True if all values are known to be finite.

    The look costs one sum. ``torch.where``, which it saves, costs as much as ten products.
    """
    if not can_look_at(value):
        return False
    return math.isfinite(value.detach().sum())


@overload
def element_loss(body: Callable[..., Tensor]) -> ElementLoss: ...


@overload
def element_loss(
    *,
    form: Callable[..., Form] | None = None,
    pos_weight: bool = False,
    unnormalized: bool = False,
    label_smoothing: bool = False,
    share: Share | None = None,
) -> Callable[[Callable[..., Tensor]], ElementLoss]: ...


def element_loss(
    body: Callable[..., Tensor] | None = None,
    *,
    form: Callable[..., Form] | None = None,
    pos_weight: bool = False,
    unnormalized: bool = False,
    label_smoothing: bool = False,
    share: Share | None = None,
) -> ElementLoss | Callable[[Callable[..., Tensor]], ElementLoss]:
    r"""Turn a few lines on single elements into a loss. A decorator.

    The decorated function takes :class:`~xent.Elements` and hyperparameters and returns one value
    per element, in plain tensor operations. What comes out is a loss

    ``loss(input, target, weight=None, *, ignore_value=None, reduction="mean", normalizer=None,
    empty="nan", engine="auto", **hyperparameters)``

    whose memory does not grow with the number of operations: large inputs are computed piece by
    piece, in float64, and the gradient of a sum or mean along with it. Its docstring is that of the
    function, with these arguments explained.

    Args:
        body: the function; its parameters after the first are the loss's hyperparameters. Those
            annotated with a range of ``xent.hyperparameters`` are checked at every call.
        form: how the native kernel computes the same, as a function of the hyperparameters.
        pos_weight: whether the loss takes ``pos_weight``, a factor on the targets, too.
        unnormalized: whether the loss can be told to take targets outside [0, 1].
        label_smoothing: whether the loss takes ``label_smoothing``, which moves targets to 1/2.
        share: makes hyperparameters that are tensors part of the weights of a problem. The mean
            does not divide by them.

    Returns:
        The loss.

    Raises:
        ValueError: if the function takes no elements.

    Example:
        >>> import torch, xent
        >>> @xent.element_loss
        ... def brier(e):
        ...     return e.residual**2
        >>> round(brier(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0])).item(), 4)
        0.1321
    """
    if body is None:
        return functools.partial(  # pyright: ignore
            element_loss, form=form, pos_weight=pos_weight, unnormalized=unnormalized,
            label_smoothing=label_smoothing, share=share,
        )  # fmt: skip
    if not inspect.signature(body).parameters:
        raise ValueError(
            f"@element_loss: {body.__name__}() must take the elements as its first parameter"
        )
    hyper = Hyperparameters(body)
    optional = {
        "pos_weight": pos_weight, "unnormalized": unnormalized, "label_smoothing": label_smoothing,
    }  # fmt: skip
    left_out = [name for name, offered in optional.items() if not offered]

    @functools.wraps(body)
    def loss(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        pos_weight: Tensor | None = None,
        unnormalized: bool = False,
        label_smoothing: float = _NO_SMOOTHING,
        ignore_value: float | None = None,
        reduction: Reduction = "mean",
        normalizer: float | Tensor | Literal["count", "weight"] | None = None,
        empty: Literal["nan", "zero"] = "nan",
        engine: str = "auto",
        **hyperparameters: Any,
    ) -> Tensor:
        given = {
            "pos_weight": pos_weight is not None, "unnormalized": unnormalized,
            "label_smoothing": label_smoothing is not _NO_SMOOTHING,
        }  # fmt: skip
        for name in left_out:
            if given[name]:
                raise TypeError(f"{body.__name__}() got an unexpected keyword argument {name!r}")
        settings = hyper.settings(hyperparameters, input)
        usual = (
            normalizer is ignore_value is None
            and engine == "auto"
            and (unnormalized is False)
            and type(label_smoothing) is float
            and label_smoothing == 0
            and empty in ("nan", "zero")
        )
        if usual and form is not None and share is None:
            result = elements.plain(
                input, target, weight, pos_weight, reduction,
                functools.partial(_of_elements, body, settings), form(**settings),
            )  # fmt: skip
            if result is not None:
                return result
        problem = make_problem(input, target, weight, pos_weight, ignore_value, not unnormalized)
        read = read_reduction(reduction, normalizer, None, empty, input.shape, problem.input.device)
        divisor = _divisor(problem, read.normalizer, empty) if reduction == "mean" else 1.0
        problem = smooth(without_weightless(problem), label_smoothing)
        if share is not None:
            problem, settings = share(problem, settings)
        if isinstance(input, LinearLogits):
            same: dict[str, Any] = {"unnormalized": unnormalized} if unnormalized else {}
            same |= {"label_smoothing": problem.smoothing} if problem.smoothing else {}
            same |= {"ignore_value": problem.ignore_value, "engine": engine, **settings}
            if reduction == "none" or not hyper.fit_chunks(settings):
                result = loss(
                    input.materialize_for("a loss of each of them"), **tensors_of(problem),
                    reduction="none" if reduction == "none" else "sum", **same,
                )  # fmt: skip
            else:
                result = sum_behind_head(functools.partial(loss, **same), input, problem)
            return (result / divisor if reduction == "mean" else result).to(problem.dtype)
        problem = problem._replace(
            body=functools.partial(_of_elements, body, settings),
            form=None if form is None else form(**settings),
        )
        if reduction == "none":
            return elements.values(problem, engine)
        return elements.loss(problem, divisor, engine)

    explain = functools.partial(element_docstring, body)
    made = described(loss, hyper.parameters, left_out, explain)
    entry = overridable(through_containers(made, _divisor_of, of_rows=False))
    entry.of_tensors, entry.body = made, body
    return entry


def _of_elements(
    body: Callable[..., Tensor],
    settings: dict[str, Any],
    input: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
) -> Tensor:
    return body(Elements(input, target, pos_weight), **settings)


def _divisor(
    problem: ElementProblem, normalizer: float | Tensor | str | None, empty: str
) -> float | Tensor:
    """Return the divisor of the mean: by default the number of elements that are kept."""
    if normalizer is not None and not isinstance(normalizer, str):
        return normalizer
    kept = problem.kept()
    divisor: float | Tensor
    if normalizer == "weight" and problem.weight is not None:
        weight = problem.weight.double().expand(problem.input.shape)
        divisor = stable_sum(weight if kept is None else torch.where(kept, weight, 0.0))
    else:
        divisor = problem.input.numel() if kept is None else kept.sum()
    if empty == "zero":
        divisor = of_empty(divisor, empty) if isinstance(divisor, Tensor) else divisor or 1
    return divisor


def _divisor_of(given: dict[str, Any]) -> Tensor:
    """Return the divisor of the mean of a call with these arguments, as a tensor."""
    names = ("input", "target", "weight", "pos_weight", "ignore_value")
    problem = make_problem(*(given.get(name) for name in names))  # pyright: ignore
    divisor = _divisor(problem, given["normalizer"], "nan")
    return torch.as_tensor(divisor, dtype=torch.float64, device=problem.input.device)
