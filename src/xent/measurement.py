"""Statistics of rows of logits without a loss, and the engine that a call takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from .class_dim import takes_class_dim
from .engines.choice import Explanation
from .heads.logits import LinearLogits
from .heads.measure import choose, measure
from .heads.problem import make_problem
from .overrides import overridable
from .row_statistics import REQUESTS, RowStatistics
from .shards import ShardedLogits, takes_shards

__all__ = ["LeanExplanation", "explain", "statistics"]


class LeanExplanation(NamedTuple):
    """Explanation of a model.

    Attributes:
        lean: when its logits are late, as the argument ``when`` of ``lean``; or ``"no"``.
        head: the output head, and the type of its weight.
        products: the type in which the head is multiplied, and why.
        all_logits: what needed all logits since the model became lean.
    """

    lean: str
    head: str
    products: str
    all_logits: tuple[str, ...]

    def __str__(self) -> str:
        read = "; ".join(self.all_logits) or "nothing so far"
        return (
            f"lean: {self.lean}\nhead: {self.head}\nproducts: {self.products}\n"
            f"all logits were needed by: {read}"
        )


@overridable
@takes_class_dim
@takes_shards
def statistics(
    input: Tensor | LinearLogits | ShardedLogits,
    target: Tensor,
    *,
    class_dim: int | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    entropy: bool = False,
    mean: bool = False,
    top: bool = False,
    squares: bool = False,
    cubes: bool = False,
    class_scale: Tensor | None = None,
    first_class: int | None = None,
    engine: str = "auto",
) -> RowStatistics:
    """Statistics of each row: log-odds, log-probability, lse and more; differentiable.

    Args:
        input: logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices of any integer type in the shape of the rows, ``()``, ``(N,)`` or
            ``(N, d1, ...)``; or probabilities in the shape of ``input``.
        class_dim: the axis of the classes, as for every loss: -1 for ``(B, T, C)``. By default axis
            1, or the only one. Must be given for probabilities of three or more axes.
        weight: class weights, ``(C,)``. They scale ``mass``, soft targets and ``mean``.
        ignore_index: class index that marks rows to leave out.
        logit_scale: factor on the logits, a number or one per row.
        softcap: replaces logits ``z`` by ``softcap * tanh(z / softcap)``, after the scale.
        class_bias: added to the logits, ``(C,)``, after scale and softcap.
        entropy: also compute the entropy of the predictions.
        mean: also compute the mean logit.
        top: also find the largest logit and its class, and the same among the classes that are not
            the target (index targets).
        squares: also sum the squared probabilities of the classes that are not the target.
        cubes: likewise the third powers.
        class_scale: factor on the logits of each class, ``(C,)``, after scale and softcap and
            before ``class_bias``.
        first_class: for logits that are one shard of the classes: the number of the first one.
            Targets outside the shard are then absent rather than wrong, and the statistics of all
            shards :meth:`~xent.RowStatistics.merge` into those of the whole.
        engine: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``; see :func:`xent.explain`.

    Returns:
        :class:`xent.RowStatistics`, float64, in nats.

    Raises:
        ValueError: for shapes that do not fit, a class index out of range, or an engine that
            cannot take this call.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> s = xent.statistics(logits, torch.tensor([0, 2]), entropy=True)
        >>> [round(v, 4) for v in s.prob.tolist()], [round(v, 4) for v in s.entropy.tolist()]
        ([0.6652, 0.3333], [0.8324, 1.0986])

        Two halves of the classes, merged:

        >>> a = xent.statistics(logits[:, :1], torch.tensor([0, 2]), first_class=0)
        >>> b = xent.statistics(logits[:, 1:], torch.tensor([0, 2]), first_class=1)
        >>> [round(v, 4) for v in a.merge(b).prob.tolist()]
        [0.6652, 0.3333]
    """
    wanted = (entropy, mean, top, squares, cubes)
    requests = tuple(name for name, on in zip(REQUESTS, wanted, strict=True) if on)
    problem = make_problem(
        input, target, weight, ignore_index, logit_scale, softcap, class_bias, requests,
        first_class=first_class, class_scale=class_scale, mean_weight=weight,
    )  # fmt: skip
    return problem.unflat(measure(problem, engine))


@overload
def explain(input: torch.nn.Module) -> LeanExplanation: ...


@overload
def explain(
    input: Tensor | LinearLogits,
    target: Tensor | LinearLogits,
    *,
    class_dim: int | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    engine: str = "auto",
    loss: Callable[..., Any] | None = None,
    **hyperparameters: Any,
) -> Explanation: ...


@overridable
def explain(
    input: Any,
    target: Any = None,
    *,
    class_dim: int | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    engine: str = "auto",
    loss: Callable[..., Any] | None = None,
    **hyperparameters: Any,
) -> Explanation | LeanExplanation:
    """Tell which engine a call with these arguments takes, and why. Computes nothing.

    Of a model of Transformers, the only argument then, it tells whether the model is lean, and what
    has needed all its logits since.

    Without ``loss`` the answer is for losses of row statistics, which share their kernels. The
    losses that need all logits of a row (``distillation_loss``, ``sparsemax_loss``,
    ``entmax_loss``, ``bi_tempered_loss``) have kernels of their own on the CPU, and none in Triton.

    Args:
        input: logits, as for :func:`statistics`, and so are the other arguments.
        target: class indices or probabilities; for ``distillation_loss`` the logits of the teacher.
        class_dim: the axis of the classes.
        weight: class weights.
        ignore_index: class index that marks rows to leave out.
        logit_scale: factor on the logits.
        softcap: cap on the logits.
        class_bias: added to the logits.
        engine: the engine to ask for.
        loss: a loss that needs all logits of a row.
        hyperparameters: those of ``loss``.

    Returns:
        An :class:`Explanation`: ``engine``, ``reason`` and ``gradient``; prints as text.

    Raises:
        ValueError: if a named engine cannot take this call; the message says why.
        TypeError: for a loss that needs less than all logits of a row, or for an option that
            ``loss`` does not have.

    Example:
        >>> import torch, xent
        >>> plan = xent.explain(torch.randn(4, 10), torch.tensor([0, 1, 2, 3]), engine="reference")
        >>> print(plan)
        engine: reference (as asked)
        gradient: autograd on plain tensor operations

        Soft targets have no kernel in these losses:

        >>> soft = torch.full((4, 10), 0.1)
        >>> xent.explain(torch.randn(4, 10), soft, loss=xent.losses.sparsemax_loss).engine
        'reference'
    """
    if isinstance(input, torch.nn.Module):
        owner = next((m for m in input.modules() if hasattr(m, "_xent_hooks")), None)
        if owner is None:
            return LeanExplanation("no", "", "", ("every call, as lean(model) was not called",))
        return owner._xent_hooks.explanation(owner)  # pyright: ignore
    if loss is not None:
        options = {
            "class_dim": class_dim, "weight": weight, "logit_scale": logit_scale,
            "softcap": softcap, "class_bias": class_bias,
            "ignore_index": ignore_index if ignore_index != -100 else None,
        }  # fmt: skip
        given = {name: value for name, value in options.items() if value is not None}
        return _explanation_of(loss)(input, target, engine=engine, **given, **hyperparameters)
    for name in hyperparameters:
        raise TypeError(
            f"explain() got an unexpected keyword argument {name!r}; hyperparameters come with "
            f"their `loss`"
        )
    labels: Any = target  # logits behind a head are refused
    return _explained(
        input, labels, weight, ignore_index, logit_scale, softcap, class_bias, engine,
        class_dim=class_dim,
    )  # fmt: skip


@takes_class_dim(refuses=False)
def _explained(
    input: Tensor | LinearLogits,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    logit_scale: float | Tensor | None,
    softcap: float | None,
    class_bias: Tensor | None,
    engine: str,
    *,
    class_dim: int | None = None,
) -> Explanation:
    """The engine that a loss of row statistics takes, and why."""
    problem = make_problem(input, target, weight, ignore_index, logit_scale, softcap, class_bias)
    return choose(problem, engine)


def _explanation_of(loss: Callable[..., Any]) -> Callable[..., Explanation]:
    """The function that tells the engine of a loss that needs all logits of a row."""
    explanation = getattr(loss, "explanation", None)
    if explanation is None:
        raise TypeError(
            "`loss` must be a loss that needs all logits of a row, such as "
            "xent.losses.sparsemax_loss; for losses of row statistics leave it out"
        )
    return explanation
