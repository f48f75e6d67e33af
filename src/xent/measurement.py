"""Statistics of rows of logits without a loss, and the engine that a call takes."""

from __future__ import annotations

from torch import Tensor

from .engines.choice import Explanation
from .heads.logits import LinearLogits
from .heads.measure import choose, measure
from .heads.problem import make_problem
from .overrides import overridable
from .row_statistics import REQUESTS, RowStatistics


@overridable
def statistics(
    input: Tensor | LinearLogits,
    target: Tensor,
    *,
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


def explain(
    input: Tensor | LinearLogits,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    engine: str = "auto",
) -> Explanation:
    """Tell which engine a call with these arguments takes, and why. Computes nothing.

    Args:
        input: logits, as for :func:`statistics`, and so are the other arguments.
        target: class indices or probabilities.
        weight: class weights.
        ignore_index: class index that marks rows to leave out.
        logit_scale: factor on the logits.
        softcap: cap on the logits.
        class_bias: added to the logits.
        engine: the engine to ask for.

    Returns:
        An :class:`Explanation`: ``engine``, ``reason`` and ``gradient``; prints as text.

    Raises:
        ValueError: if a named engine cannot take this call; the message says why.

    Example:
        >>> import torch, xent
        >>> plan = xent.explain(torch.randn(4, 10), torch.tensor([0, 1, 2, 3]), engine="reference")
        >>> print(plan)
        engine: reference (as asked)
        gradient: autograd on plain tensor operations
    """
    problem = make_problem(input, target, weight, ignore_index, logit_scale, softcap, class_bias)
    return choose(problem, engine)
