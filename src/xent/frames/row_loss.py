"""The frame: turns a few lines on row statistics into a loss with all options.

logits + target --engine--> RowStatistics --the few lines--> one value per row
    --mask, weights, reduction, normaliser--> scalar

The ways that a call may go are in ``row_frame.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, overload

from torch import Tensor

from ..class_dim import takes_class_dim
from ..engines.modes import compiling
from ..heads.logits import LinearLogits
from ..overrides import overridable
from ..row_statistics import RowStatistics
from ..shards import takes_shards
from .containers import through_containers
from .docstrings import described, loss_docstring
from .reduction import Normalizer, Reduction, divisor_of_rows
from .row_checks import needs_no_target
from .row_frame import Empty, Needs, RowFrame


class RowLoss(Protocol):
    """A loss of rows, as :func:`row_loss` makes it."""

    __name__: str
    needs: Callable[..., tuple[str, ...]]  # from hyperparameters to the statistics asked for
    of_tensors: Callable[..., Any]  # the loss for `input` of NO_CONTAINERS
    frame: RowFrame  # its parts

    @overload
    def __call__(
        self,
        input: Tensor | LinearLogits,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        normalizer: Normalizer = None,
        row_weight: Tensor | None = None,
        logit_scale: float | Tensor | None = None,
        softcap: float | None = None,
        class_bias: Tensor | None = None,
        return_stats: Literal[False] = False,
        inplace_backward: bool = False,
        empty: Empty = "nan",
        engine: str = "auto",
        **hyperparameters: Any,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        input: Tensor | LinearLogits,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        normalizer: Normalizer = None,
        row_weight: Tensor | None = None,
        logit_scale: float | Tensor | None = None,
        softcap: float | None = None,
        class_bias: Tensor | None = None,
        return_stats: Literal[True],
        inplace_backward: bool = False,
        empty: Empty = "nan",
        engine: str = "auto",
        **hyperparameters: Any,
    ) -> tuple[Tensor, RowStatistics]: ...

    @overload
    def __call__(
        self,
        input: Tensor | LinearLogits,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        normalizer: Normalizer = None,
        row_weight: Tensor | None = None,
        logit_scale: float | Tensor | None = None,
        softcap: float | None = None,
        class_bias: Tensor | None = None,
        return_stats: bool,
        inplace_backward: bool = False,
        empty: Empty = "nan",
        engine: str = "auto",
        **hyperparameters: Any,
    ) -> Tensor | tuple[Tensor, RowStatistics]: ...


class UnlabelledLoss(Protocol):
    """A loss of rows in which the class of a target has no say, so that the target may be None."""

    __name__: str
    needs: Callable[..., tuple[str, ...]]
    of_tensors: Callable[..., Any]
    frame: RowFrame

    def __call__(
        self,
        input: Tensor | LinearLogits,
        target: Tensor | None = None,
        weight: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """The loss; with ``return_stats`` the statistics, too."""
        ...


@overload
def row_loss(body: Callable[..., Tensor]) -> RowLoss: ...


@overload
def row_loss(
    *,
    needs: Needs = (),
    weighted: bool = False,
    soft: bool = True,
    own: Mapping[str, Callable[..., Any]] | None = None,
    rowwise: bool = True,
    like_torch: bool = False,
) -> Callable[[Callable[..., Tensor]], RowLoss]: ...


@overload
def row_loss(
    *, needs: Needs = (), soft: Literal[False], labelled: Literal[False]
) -> Callable[[Callable[..., Tensor]], UnlabelledLoss]: ...


def row_loss(
    body: Callable[..., Tensor] | None = None,
    *,
    needs: Needs = (),
    weighted: bool = False,
    soft: bool = True,
    own: Mapping[str, Callable[..., Any]] | None = None,
    rowwise: bool = True,
    like_torch: bool = False,
    labelled: bool = True,
) -> Any:
    r"""Turn a few lines on row statistics into a loss. A decorator.

    The decorated function takes a :class:`~xent.RowStatistics` and hyperparameters and returns one
    value per row. What comes out is a loss

    ``loss(input, target, weight=None, *, class_dim=None, ignore_index=-100, reduction="mean",
    normalizer=None, row_weight=None, logit_scale=None, softcap=None, class_bias=None,
    return_stats=False, inplace_backward=False, empty="nan", engine="auto", **hyperparameters)``

    with index and soft targets, any number of dimensions, every engine and exact gradients; the
    arguments mean what they mean in :func:`xent.cross_entropy`. ``reduction="mean"`` divides by the
    summed class weight (times ``row_weight``) of the rows that are kept; with soft targets by the
    number of rows. Its docstring is that of the function, with these arguments explained.

    Args:
        body: the function; its parameters after the first are the loss's hyperparameters. Those
            annotated with a range of ``xent.hyperparameters`` are checked at every call.
        needs: statistics that must be asked for: ``"entropy"``, ``"mean"``, ``"top"``,
            ``"squares"``, ``"cubes"`` or several of them, or a function of the hyperparameters that
            returns them.
        weighted: the body applies the class weights itself (as ``s.nll`` does). Otherwise the
            frame multiplies each row by the weight of its target class.
        soft: whether probabilities make sense as targets. If not, they are refused.
        own: options that the loss sets itself, each a function of the hyperparameters:
            ``logit_scale``, ``class_bias``, ``class_scale`` (factor on the logits of each class),
            ``mean_weight`` (what ``mean`` weighs the classes by) or ``target_table`` (``(C, C)``:
            the soft target that stands for each class). The caller cannot set these.
        rowwise: True if the value of a row depends on no other row. Behind a linear head the body
            then gets a chunk of rows at a time.
        like_torch: True if soft targets of three and more axes have their classes on axis 1 unless
            ``class_dim`` is given, as in PyTorch. Otherwise such calls are refused, because nothing
            tells whether the last axis is meant.
        labelled: whether the body looks at the class of the target. If not, the caller may leave
            the target out, and all rows count.

    Returns:
        The loss.

    Raises:
        ValueError: for an unknown name in ``needs`` or ``own``.

    Example:
        >>> import torch, xent
        >>> @xent.row_loss
        ... def focal(s, gamma=2.0):
        ...     return -s.miss**gamma * s.log_prob
        >>> logits, target = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]), torch.tensor([0, 1])
        >>> round(focal(logits, target, gamma=1.0).item(), 4)
        0.0725
        >>> focal(logits, target, reduction="none", weight=torch.tensor([1.0, 0.5, 1.0])).shape
        torch.Size([2])
    """
    if body is None:
        return functools.partial(
            row_loss, needs=needs, weighted=weighted, soft=soft, own=own, rowwise=rowwise,
            like_torch=like_torch, labelled=labelled,
        )  # fmt: skip  # pyright: ignore[reportCallIssue]
    frame = RowFrame(body, needs, weighted, soft, dict(own or {}), rowwise)

    @functools.wraps(body)
    def loss(
        input: Tensor | LinearLogits,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        normalizer: Normalizer = None,
        row_weight: Tensor | None = None,
        logit_scale: float | Tensor | None = None,
        softcap: float | None = None,
        class_bias: Tensor | None = None,
        return_stats: bool = False,
        inplace_backward: bool = False,
        empty: Empty = "nan",
        engine: str = "auto",
        **hyperparameters: Any,
    ) -> Tensor | tuple[Tensor, RowStatistics]:
        settings = frame.hyper.settings(hyperparameters, input)
        one_number = not (return_stats or inplace_backward)
        plain = logit_scale is softcap is class_bias is None and engine == "auto"
        if plain and one_number and not compiling():
            result = frame.in_one_call(
                input, target, weight, ignore_index, reduction, normalizer, row_weight, empty,
                settings,
            )  # fmt: skip
            if result is not None:
                return result
        options = {"logit_scale": logit_scale, "softcap": softcap, "class_bias": class_bias}
        call = frame.read(
            input, target, weight, ignore_index, options, reduction, normalizer, row_weight, empty,
            settings, engine,
        )  # fmt: skip
        if one_number:
            result = frame.in_one_sweep(call)
            result = frame.by_chunks(call) if result is None else result
            if result is not None:
                return result
        return frame.of_statistics(call, input, return_stats, inplace_backward)

    takes_shards(loss)
    explain = functools.partial(loss_docstring, body, soft=soft, labelled=labelled)
    made = described(
        loss if labelled else needs_no_target(loss), frame.hyper.parameters, frame.own, explain
    )
    entry = through_containers(made, divisor_of_rows, of_rows=True, rowwise=rowwise)
    entry = overridable(takes_class_dim(entry, refuses=soft and not like_torch, short=made))
    entry.needs, entry.of_tensors, entry.frame = frame.needs, made, frame
    return entry
