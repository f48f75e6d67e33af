"""A race: calls take turns, round after round, so that a slow minute of the machine hits all.

Rounds in which other processes keep a core busy are repeated, as long as there is patience.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from .machine import cpu_seconds_of_all
from .report import in_one_line
from .timing import PAUSE_SECONDS, seconds_per_call, summary

Key = TypeVar("Key", bound=Hashable)
Turn = Callable[[int], float]  # makes so many calls in a row; returns the seconds of one

TURN_SECONDS = 0.04  # one turn repeats short calls for so long: far above the timer's resolution
PATIENCE = 5.0  # further seconds for rounds without disturbance
QUIET = 0.15  # cores that others may keep busy in a round that counts as undisturbed
MOST = 25  # rounds


class Plan(NamedTuple):
    """Limits on the time of a race.

    Attributes:
        seconds: time for the rounds.
        patience: further seconds, for repeating rounds that other processes disturbed.
        repeats: rounds; None for as many as ``seconds`` allow.
        least: rounds at least, however long they take.
    """

    seconds: float
    patience: float = PATIENCE
    repeats: int | None = None
    least: int = 5

    def rounds(self, seconds: float) -> int:
        """The number of rounds to run, if one takes so many seconds."""
        return self.repeats or min(max(round(self.seconds / (seconds or 1)), self.least), MOST)


class Outcome(NamedTuple):
    """Results of a race.

    Attributes:
        times: median, quartiles and all times in milliseconds of every call that did not fail.
        failed: the reason of every call that failed.
        others_busy: cores that other processes kept busy meanwhile; None where that is unknown.
    """

    times: dict[Any, dict[str, Any]]
    failed: dict[Any, str]
    others_busy: float | None


class ContestantError(Exception):
    """A contestant could not do what it was asked; the message is the reason."""


def turn_of(call: Callable[[], object]) -> Turn:
    """A turn of a call in this process."""

    def turn(calls: int) -> float:
        try:
            return seconds_per_call(call, calls)
        except Exception as error:  # whatever other libraries raise
            raise ContestantError(in_one_line(error)) from None

    return turn


def race(
    turns: Mapping[Key, Turn], plan: Plan, cpu_seconds: Callable[[], float] = time.process_time
) -> Outcome:
    """Let the contestants take turns.

    Args:
        turns: the contestants.
        plan: how long.
        cpu_seconds: the CPU time of the contestants' processes so far.
    """
    return _Race(turns, cpu_seconds).run(plan)


def compare(entries: dict[str, dict[str, Any]], modes: Sequence[str], elements: int) -> None:
    """Add how many times as long as xent each takes, plain copies, and nanoseconds per element.

    Args:
        entries: of each contestant the times of each mode; ``"copy"`` is the plain copy.
        modes: the keys of the times.
        elements: logits of the problem.
    """
    copy = entries.get("copy", {}).get(modes[0])
    for mode in modes:
        ours = entries["xent"].get(mode)
        for name, entry in entries.items():
            if mode not in entry:
                continue
            time = entry[mode]
            time["ns"] = 1e6 * time["ms"] / elements
            if ours and name != "copy":
                time["ratio"] = time["ms"] / ours["ms"]
            if copy:
                time["copies"] = time["ms"] / copy["ms"]


class _Round(NamedTuple):
    """Results of a round, in which every contestant has one turn."""

    busy: float | None  # cores that other processes kept busy; None where that is unknown
    seconds: dict[Any, float]  # of one call of each contestant

    @property
    def quiet(self) -> bool:
        return self.busy is None or self.busy <= QUIET


class _Race(Generic[Key]):
    def __init__(self, turns: Mapping[Key, Turn], cpu_seconds: Callable[[], float]) -> None:
        self.turns, self.cpu_seconds = dict(turns), cpu_seconds
        self.fastest: dict[Key, float] = {}
        self.failed: dict[Key, str] = {}
        self.order = random.Random(0)

    def run(self, plan: Plan) -> Outcome:
        """Run rounds, and keep as many as planned: the least disturbed, whatever their times."""
        self._round()  # not counted
        if min(self.fastest.values(), default=TURN_SECONDS) < TURN_SECONDS:
            self._round()  # not counted either: the first that knows how many calls fill a turn
        expected = sum(max(TURN_SECONDS, s) + PAUSE_SECONDS for s in self.fastest.values())
        wanted = plan.rounds(expected)
        deadline = time.monotonic() + wanted * expected + plan.patience
        rounds = [self._round() for _ in range(wanted)]
        while sum(one.quiet for one in rounds) < wanted and time.monotonic() < deadline:
            rounds.append(self._round())
        kept = sorted(rounds, key=lambda one: one.busy or 0.0)[:wanted]
        times = {
            key: summary([1e3 * one.seconds[key] for one in kept])
            for key in self.turns
            if key not in self.failed
        }
        known = [one.busy for one in kept if one.busy is not None]
        return Outcome(times, self.failed, statistics.mean(known) if known else None)

    def _round(self) -> _Round:
        """Run a round, in an order of its own: nobody always comes after the same rival."""
        before = self._clocks()
        left = [key for key in self.turns if key not in self.failed]
        seconds = {key: self._turn(key) for key in self.order.sample(left, len(left))}
        after = self._clocks()
        if before is None or after is None:
            return _Round(None, seconds)
        wall, everything, ours = (b - a for a, b in zip(before, after, strict=True))
        return _Round(max(0.0, (everything - ours) / wall) if wall else None, seconds)

    def _turn(self, key: Key) -> float:
        time.sleep(PAUSE_SECONDS)
        calls = math.ceil(TURN_SECONDS / self.fastest.get(key, TURN_SECONDS))
        try:
            seconds = self.turns[key](calls)
        except ContestantError as error:
            self.failed[key] = str(error)
            return math.nan
        self.fastest[key] = min(seconds, self.fastest.get(key, seconds))
        return seconds

    def _clocks(self) -> tuple[float, float, float] | None:
        """Wall time, CPU time of all processes, CPU time of ours; None where unknown."""
        everything = cpu_seconds_of_all()
        if everything is None:
            return None
        return time.perf_counter(), everything, self.cpu_seconds()
