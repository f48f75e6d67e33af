"""Calls that workers make, by any function like the built-in ``map``.

    with concurrent.futures.ProcessPoolExecutor() as pool:
        found = search.run(score, iterations=30, map=pool.map)

Each call carries the number of its item. So it does not matter which worker answers when: results
are put in the order of the items, and an error names its item.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


class Round(NamedTuple):
    """Words of messages about a round of calls.

    Attributes:
        name: ``"iteration 3"``.
        item: what an item is, ``"point"``.
        sent: what travels to the workers beside the items, by the names of arguments.
        again: how the caller goes on after a failure, a sentence.
    """

    name: str
    item: str
    sent: Mapping[str, Any]
    again: str


def results_of(
    map: Map, function: Callable[..., Any], items: Iterable[tuple[Any, ...]], round: Round
) -> list[Any]:
    """Results of a function for each item, in the order of the items.

    Args:
        map: calls a function for each item of a list, like the built-in ``map``.
        function: takes the arguments that an item holds.
        items: the arguments of each call.
        round: words for messages.

    Raises:
        RuntimeError: if a call raises, or a worker ends; the message names the item.
        TypeError: if ``map`` is no function or returns no results, or if what travels to the
            workers cannot be pickled.
        ValueError: if ``map`` returns too few results, or some twice.
    """
    if not callable(map):
        hint = "; pass its `map`" if hasattr(map, "map") else ""
        raise TypeError(
            f"`map` must be a function like the built-in map, got {type(map).__name__}{hint}"
        )
    numbered = list(enumerate(items))
    answers: list[Any] = []
    try:
        returned = map(_Call(function, f"{round.item} {{}} of {round.name}"), numbered)
        for answer in returned if isinstance(returned, Iterable) else [returned]:
            answers.append(answer)
    except _CallError as error:
        raise RuntimeError(f"{error}. {round.again}") from error
    except Exception as error:
        raise _explained(error, answers, round) from error
    return _in_order(answers, len(numbered), round)


class _Answer(NamedTuple):
    number: int
    result: Any


class _CallError(RuntimeError):
    """An error of a call in words, since not every exception can be pickled."""


@dataclass(frozen=True)
class _Call:
    """A function of numbered items, whose errors name the item."""

    function: Callable[..., Any]
    name: str  # of an item, with a place for its number

    def __call__(self, numbered: tuple[int, tuple[Any, ...]]) -> _Answer:
        number, arguments = numbered
        try:
            return _Answer(number, self.function(*arguments))
        except Exception as error:
            name = self.name.format(number)
            raise _CallError(f"{name}: {type(error).__name__}: {error}") from error


def _explained(error: Exception, answers: Sequence[Any], round: Round) -> Exception:
    """An error for one that does not come from a call: what cannot be sent, or where it stopped."""
    pickling = isinstance(error, (pickle.PicklingError, AttributeError))  # of local functions
    if pickling or "pickle" in str(error):
        for name, thing in round.sent.items():
            if reason := _why_not_sent(thing):
                return TypeError(
                    f"`{name}` cannot be sent to the workers of `map`, because it cannot be "
                    f"pickled: {reason}. Define functions and classes at the top of a module, not "
                    "within a function; a lambda cannot be sent"
                )
    return RuntimeError(
        f"`map` failed before it had the result of {round.item} {len(answers)} of {round.name}: "
        f"{type(error).__name__}: {error}. Where a worker has ended, make a new pool; workers end "
        f"when they are killed, run out of memory, or cannot import what is sent. {round.again}"
    )


def _why_not_sent(thing: Any) -> str:
    """Say why something cannot be pickled; nothing if it can be."""
    try:
        pickle.dumps(thing)
    except Exception as error:
        return str(error)
    return ""


def _in_order(answers: Sequence[Any], count: int, round: Round) -> list[Any]:
    """The results of all answers in the order of their numbers."""
    for answer in answers:
        if not isinstance(answer, _Answer):
            raise TypeError(
                f"`map` must return the results of the calls, returned {type(answer).__name__}. "
                "Where a map returns futures, pass one that waits for them: with Dask "
                "map=lambda function, items: client.gather(client.map(function, items))"
            )
    found = {answer.number: answer.result for answer in answers}
    if len(answers) != count or len(found) != count:
        raise ValueError(
            f"`map` must return one result for each of the {count} {round.item}s of {round.name}; "
            f"it returned {len(answers)}, of {len(found)} {round.item}s"
        )
    return [found[number] for number in range(count)]
