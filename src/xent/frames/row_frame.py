"""The frame of a loss of rows: its parts, and the ways that its calls go.

A call goes the first of four ways that can take it:

* in one call: the options were seen before, the tensors are plain memory of the CPU;
* in one sweep: the result is one number and the body a program (``engines/rows/programs.py``);
* by chunks: the logits lie behind a linear head and are computed a chunk of rows at a time;
* of statistics: the body computes on tensors of statistics, backward sweeps the logits again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from .._check import one_of
from ..engines import core, rows
from ..engines.modes import PLAIN_TENSORS, compiling
from ..engines.rows import autograd
from ..engines.rows.autograd import Total
from ..engines.rows.problem import Problem, Tensors
from ..engines.rows.programs import Program
from ..engines.rows.recorder import Recorded, Recorder, as_key
from ..heads import gradients, products, totals
from ..heads.logits import LinearLogits
from ..heads.measure import measure, taken
from ..heads.problem import HeadProblem, make_problem
from ..hyperparameters import Hyperparameters
from ..row_statistics import REQUESTS, RowStatistics
from ..shards import own_logits
from .by_chunks import reduce_problem
from .plain_calls import (
    is_plain_head,
    is_plain_memory,
    is_plain_on_device,
    positive,
    read_plain,
)
from .reduction import (
    Normalizer,
    Reduce,
    Reduction,
    RowValues,
    divisor_of_problem,
    leave_out,
    read_reduction,
)
from .row_checks import refuse_probabilities, refuse_shared_logits

Needs = str | tuple[str, ...] | Callable[..., tuple[str, ...]]
Empty = Literal["nan", "zero"]

# The options of `make_problem` that a loss may set itself.
OWN_OPTIONS = ("logit_scale", "class_bias", "class_scale", "mean_weight", "target_table")


class Call(NamedTuple):
    """The arguments of a call, checked. Rows of weight 0 are still among them."""

    problem: Problem
    reduce: Reduce
    settings: dict[str, Any]  # the hyperparameters
    engine: str  # that was asked for; of a plain call the one that is taken
    plain: bool = False  # True if the engine is known to read the tensors
    recorded: Recorded | None = None  # of a plain call with classes for targets


class RowFrame:
    """A loss of rows: its parts, and the ways that its calls go."""

    def __init__(
        self,
        body: Callable[..., Tensor],
        needs: Needs,
        weighted: bool,
        soft: bool,
        own: dict[str, Callable[..., Any]],
        rowwise: bool,
    ) -> None:
        self.body, self.name = body, body.__name__
        self.weighted, self.soft, self.own, self.rowwise = weighted, soft, own, rowwise
        if not inspect.signature(body).parameters:
            raise ValueError(
                f"@row_loss: {self.name}() must take the row statistics as its first parameter"
            )
        self.hyper = Hyperparameters(body)
        for name in own:
            one_of("own", name, OWN_OPTIONS)
        self.needs = needs if callable(needs) else _constant(needs)
        self.recorder = Recorder(body, self.requests)
        self.totals: dict[Any, Total] = {}  # by the options of the calls that they belong to
        if not callable(needs):
            self.requests()

    def requests(self, **settings: Any) -> tuple[str, ...]:
        """The statistics that must be asked for."""
        names = tuple(self.needs(**settings))
        for name in names:
            one_of("needs", name, REQUESTS)
        return names

    def read(
        self,
        input: Tensor | LinearLogits,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        options: Mapping[str, Any],
        reduction: Reduction,
        normalizer: Normalizer,
        row_weight: Tensor | None,
        empty: Empty,
        settings: dict[str, Any],
        engine: str,
    ) -> Call:
        """Check a call. ``options`` are scale, softcap and bias of the logits, by name."""
        kernels = core.fast or not getattr(input, "is_cpu", True)
        if engine == "auto" and kernels and not self.own and not compiling():
            given = input, target, weight, ignore_index, *options.values()
            recorded = self._recorded(settings, False, weight)
            requests = self.requests(**settings) if recorded is None else recorded.requests
            plain = read_plain(
                given, (reduction, normalizer, row_weight, empty), requests, self.weighted,
                self.soft,
            )  # fmt: skip
            if plain is not None:
                return Call(*plain[:2], settings, plain[2], True, recorded)
        if not self.soft:
            refuse_probabilities(self.name, input, target)
        requests = self.requests(**settings)
        problem = make_problem(
            input, target, weight, ignore_index, requests=requests,
            **self._options(settings, options, weight if "mean" in requests else None),
        )  # fmt: skip
        reduce = read_reduction(
            reduction, normalizer, problem.flat(row_weight), empty, problem.rows, problem.device
        )
        return Call(problem, reduce, settings, engine)

    def _options(
        self, settings: Mapping[str, Any], given: Mapping[str, Any], mean_weight: Tensor | None
    ) -> dict[str, Any]:
        """The options of :func:`make_problem` that the caller or the loss itself sets."""
        options = dict(given)
        for name, set_by in self.own.items():
            if options.get(name) is not None:
                raise TypeError(f"{self.name}() sets `{name}` itself; leave it out")
            options[name] = set_by(**settings)
        if self.weighted:
            options.setdefault("mean_weight", mean_weight)
        return options

    # ---- the ways ---------------------------------------------------------------------------

    def in_one_call(
        self, input: Any, target: Any, weight: Any, ignore_index: Any, reduction: str,
        normalizer: Any, row_weight: Any, empty: str, settings: dict[str, Any],
    ) -> Tensor | None:  # fmt: skip
        """The result of a plain call with options that were seen before; None for other calls."""
        try:
            options = ignore_index, reduction, normalizer, empty
            key = self._key(options, weight is None, input.dtype, target.is_cpu, settings)
            total = self.totals.get(key)
        except (TypeError, AttributeError):  # an option cannot be hashed, or `input` is no tensor
            return None
        if total is None:
            return None
        if not total.direct:
            if not is_plain_on_device(input, target, weight, row_weight):
                return None
            return autograd.total(Tensors(input, target, None, None, weight), row_weight, total)
        if row_weight is not None:
            row_weight = positive(row_weight)
            if row_weight is None:
                return None
        if type(input) is LinearLogits:
            input = products.for_sum(input)
            if not is_plain_head(input, target, weight, row_weight, ignore_index):
                return None
            tensors = Tensors(input.hidden, target, None, None, weight)
            return totals.total_of_chunk(input, tensors, row_weight, total)
        if not is_plain_memory(input, target, weight, row_weight):
            return None
        return autograd.total(Tensors(input, target, None, None, weight), row_weight, total)

    def _keep(self, call: Call, total: Total) -> None:
        """Let later calls with these options be made in one call, if that can be."""
        known, t, reduce = call.problem.settings, call.problem.tensors, call.reduce
        if (
            self.own or known.soft or known.softcap
            or not (t.scale is t.class_bias is t.class_scale is t.mean_weight is None)
            or isinstance(reduce.normalizer, Tensor) or reduce.normalizer == 0
            or any(isinstance(x, Tensor) for x in call.settings.values())
        ):  # fmt: skip
            return
        if len(self.totals) >= _TOTALS:  # options that change at every step
            self.totals.clear()
        options = known.ignore_index, reduce.reduction, reduce.normalizer, reduce.empty
        unweighted, dtype = t.class_weight is None, call.problem.dtype
        key = self._key(options, unweighted, dtype, t.target.is_cpu, call.settings)
        self.totals[key] = total._replace(direct=total.engine is not rows.TOTALS["triton"])

    def _key(
        self, options: tuple[Any, Any, Any, Any], unweighted: bool, dtype: torch.dtype,
        on_cpu: bool, settings: Mapping[str, Any],
    ) -> tuple[Any, ...]:  # fmt: skip
        """The key of a call: all that its result depends on but for the tensors."""
        ignore_index, _, normalizer, _ = options
        outside = self.recorder.outside() if self.recorder.outside.reads else ()
        return (
            *options, ignore_index.__class__, normalizer.__class__, unweighted, dtype, on_cpu,
            outside, *as_key(settings.values()),
        )  # fmt: skip

    def in_one_sweep(self, call: Call) -> Tensor | None:
        """The result and its gradient in one sweep over the logits; None for other calls."""
        problem, reduce, settings, engine, plain, recorded = call
        if reduce.reduction == "none" or (not plain and (compiling() or reduce.learned())):
            return None
        known = problem.settings
        engine = engine if plain else taken(problem, engine)
        if engine == "reference":
            return None
        if recorded is None or known.soft:
            recorded = self._recorded(settings, known.soft, problem.tensors.class_weight)
        if recorded is None:
            return None
        if plain and engine == rows.PLAIN:
            total = self._total(call, reduce, recorded.program, engine, _divisor(reduce))
            self._keep(call, total)
            return autograd.total(problem.tensors, reduce.row_weight, total)
        if not rows.takes_sums(problem, engine, reduce.row_weight):
            return None
        if isinstance(problem, HeadProblem):
            return self._total_behind_head(call, problem, recorded.program, engine)
        divisor = _divisor(reduce, rows.TOTALS[engine].READS_TENSORS)
        total = self._total(call, reduce, recorded.program, engine, divisor)
        if plain:
            self._keep(call, total)
        return autograd.total(problem.tensors, reduce.row_weight, total)

    def _total(
        self, call: Call, reduce: Reduce, program: Program, engine: str,
        divisor: float | str | Tensor | None,
    ) -> Total:  # fmt: skip
        """The order for an engine: what to do with the tensors of a call."""
        problem = call.problem
        by_operations = functools.partial(
            self._by_operations, reduction=reduce.reduction, normalizer=reduce.normalizer,
            empty=reduce.empty, settings=call.settings,
        )  # fmt: skip
        dtype = problem.logits.dtype if call.plain else problem.result_dtype()
        return Total(
            rows.TOTALS[engine], program, problem.settings, problem.mask, divisor, reduce.empty,
            dtype, by_operations,
        )  # fmt: skip

    def _total_behind_head(
        self, call: Call, problem: HeadProblem, program: Program, engine: str
    ) -> Tensor | None:
        reduce = call.reduce
        if not all(type(x) in PLAIN_TENSORS for x in problem.source.parts):
            return None
        if gradients.needs_all((*problem.others, reduce.row_weight)):
            return None
        left, reduce = leave_out(problem, reduce)  # ignored rows are not multiplied
        source = products.for_sum(cast(HeadProblem, left).source)
        problem = cast(HeadProblem, left).with_source(source)
        if products.type_of(source) == torch.float16:  # too narrow for the gradient of a mean
            total = self._total(call, reduce, program, engine, None)
            of_sum = total._replace(
                dtype=torch.float64,
                by_operations=functools.partial(total.by_operations, reduction="sum"),
            )
            result = totals.total(problem, reduce.row_weight, of_sum)
            divisor = divisor_of_problem(problem, reduce)
            return (result if divisor is None else result / divisor).to(total.dtype)
        if rows.TOTALS[engine].READS_TENSORS:  # the divisor stays on the device
            divisor = divisor_of_problem(problem, reduce)
            total = self._total(call, reduce, program, engine, divisor)
            result = totals.total(problem, reduce.row_weight, total._replace(dtype=torch.float64))
            return result.to(total.dtype)
        if totals.is_one_chunk(problem):
            total = self._total(call, reduce, program, engine, _divisor(reduce))
            if left is call.problem:
                self._keep(call, total)
            return totals.total(problem, reduce.row_weight, total)
        divisor = divisor_of_problem(problem, reduce)
        number = None if divisor is None else divisor.item()
        total = self._total(call, reduce, program, engine, number)
        result = totals.total(problem, reduce.row_weight, total._replace(dtype=torch.float64))
        return result.to(total.dtype)

    def _recorded(
        self, settings: dict[str, Any], soft: bool, weight: Tensor | None
    ) -> Recorded | None:
        if not self.rowwise:
            return None
        return self.recorder.find(settings, soft, self._by_mass(soft, weight))

    def _by_operations(
        self,
        problem: Problem,
        row_weight: Tensor | None,
        *,
        reduction: str,
        normalizer: Normalizer,
        empty: str,
        settings: dict[str, Any],
    ) -> Tensor:
        """The loss in plain operations, which can be differentiated again."""
        if reduction == "sum":
            normalizer = None
        problem, reduce = leave_out(problem, Reduce(reduction, normalizer, row_weight, empty))
        values = self.values(problem, rows.measure(problem, "reference"), settings)
        return reduce.of(values).to(problem.result_dtype())

    def by_chunks(self, call: Call) -> Tensor | None:
        """The result for logits behind a head, a chunk of rows at a time; None for other calls."""
        problem, reduce, settings, engine = call[:4]
        others = (*problem.others, reduce.row_weight)
        if (
            not isinstance(problem, HeadProblem)
            or not self.rowwise
            or reduce.reduction == "none"
            or not self.hyper.fit_chunks(settings)
            or gradients.needs_all(others)
        ):
            return None

        problem, reduce = leave_out(problem, reduce)

        def values_of_chunk(part: Problem, _: Any) -> RowValues:
            # No caller sees the logits of a chunk, so their gradient may be written over them.
            return self.values(part, measure(part, engine, part.logits.is_leaf), settings)

        result = reduce_problem(problem, values_of_chunk, reduce, tuple(settings.values()))
        return result.to(problem.result_dtype())

    def of_statistics(
        self, call: Call, input: Tensor | LinearLogits, return_stats: bool, inplace_backward: bool
    ) -> Tensor | tuple[Tensor, RowStatistics]:
        """The result from tensors of statistics, and with ``return_stats`` these statistics too."""
        every_row, reduce, settings, engine, plain, _ = call
        problem, reduce = leave_out(every_row, reduce)
        if inplace_backward:
            refuse_shared_logits(own_logits(input))
        apart = return_stats and problem is not every_row  # statistics of all rows
        find = rows.measure_plain if plain else measure
        stats = find(problem, engine, inplace_backward and not apart)
        result = reduce.of(self.values(problem, stats, settings)).to(problem.result_dtype())
        result = problem.unflat(result) if reduce.reduction == "none" else result
        if not return_stats:
            return result
        return result, problem.unflat(find(every_row, engine) if apart else stats)

    def values(self, part: Problem, stats: RowStatistics, settings: Mapping[str, Any]) -> RowValues:
        """Return the values of the body for the statistics of some rows."""
        values = self.body(stats, **settings)
        if values.shape != part.rows:
            raise ValueError(
                f"{self.name} must return one value per row, shape {tuple(part.rows)}; it "
                f"returned shape {tuple(values.shape)}"
            )
        soft, weight = part.settings.soft, part.tensors.class_weight
        if self._by_mass(soft, weight):
            values = values * stats.mass
        kept, mass = None if stats.complete else part.kept(), stats.mass
        if soft:
            mass = torch.ones_like(mass) if kept is None else kept.to(mass.dtype)
        return RowValues(values, kept, mass)

    def _by_mass(self, soft: bool, weight: Tensor | None) -> bool:
        """True if the frame multiplies values by class weights, because the body does not."""
        return not (self.weighted or soft or weight is None)


_TOTALS = 64  # at most so many are kept for one loss


def _divisor(reduce: Reduce, tensors: bool = False) -> float | str | Tensor | None:
    """The divisor of a sum, or the name of what the engine counts; a number if not ``tensors``."""
    normalizer = reduce.normalizer
    if isinstance(normalizer, Tensor):
        return normalizer if tensors else normalizer.item()
    return "weight" if reduce.reduction == "mean" and normalizer is None else normalizer


def _constant(needs: str | tuple[str, ...]) -> Callable[..., tuple[str, ...]]:
    names = (needs,) if isinstance(needs, str) else tuple(needs)

    def always(**_: Any) -> tuple[str, ...]:
        return names

    return always
