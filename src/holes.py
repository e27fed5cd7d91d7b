"""Ids that are missing from a stream: intervals of whole numbers, and the events that fill them.

Every id is an interval, so that one arithmetic serves all: a trade is `t..t`, an aggregate trade `a..a`, a depth
update `U..u`, a bar its open to its close time in ms. Two events are consecutive when the second begins one
behind the end of the first (Binance web-socket-streams.md; for trades observed, not promised).
"""

from __future__ import annotations

from bisect import bisect, insort
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from src.events import Event

Interval = tuple[int, int]
"""First and last number, both inclusive."""


class Gap(NamedTuple):
    """What is missing from one stream, as it was found."""

    stream: str
    """The stream's name as subscribed, such as `btcusdt@aggTrade`."""
    event_type: str
    symbol: str
    """In upper case."""
    first: int
    last: int
    cause: str
    """`jump` on a connection, `reconnect` between two, `resume` between two runs of the service, `dropped` on the
    way to Kafka, after it had come, `late` after it had been given up."""
    opened_ms: int
    """When it was found, ms since the epoch."""

    @property
    def id(self) -> str:
        """Name the gap, the same in every record about it."""
        return f"{self.stream}:{self.first}-{self.last}"


class Position(NamedTuple):
    """Where a stream stands: the last id, and what is missing before it."""

    stream: str
    last: int
    missing: tuple[Interval, ...] = ()
    final: bool = True
    """Of a bar: whether its closing frame was seen. True for everything else."""
    at_ms: int = 0
    """When the exchange sent the last one, ms since the epoch; 0: not known."""
    mixed: bool = False
    """Of depth: whether two speeds came that could not be told apart; the last id is that of the later one."""

    def lacking(self, ids: Iterable[Interval]) -> Position:
        """Return the same with these ids missing too, as far as they are not behind the last."""
        ids = [(first, min(last, self.last)) for first, last in ids if first <= self.last]
        return self._replace(missing=tuple(joined([*self.missing, *ids]))) if ids else self


def without(intervals: Iterable[Interval], first: int, last: int) -> list[Interval]:
    """Return what is left of sorted intervals when `first..last` is taken out."""
    left = []
    for start, end in intervals:
        if end < first or start > last:
            left.append((start, end))
            continue
        if start < first:
            left.append((start, first - 1))
        if end > last:
            left.append((last + 1, end))
    return left


def joined(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the same numbers as few intervals, sorted."""
    union: list[Interval] = []
    for first, last in sorted(intervals):
        if union and first <= union[-1][1] + 1:
            union[-1] = (union[-1][0], max(union[-1][1], last))
        else:
            union.append((first, last))
    return union


def include(intervals: list[Interval], new: Interval, *, may_grow: bool = True) -> None:
    """Add numbers to sorted intervals that do not touch; not where that makes one more of them, unless it may."""
    first, last = new
    begin = end = bisect(intervals, new)
    if begin and intervals[begin - 1][1] >= first - 1:
        begin -= 1
    while end < len(intervals) and intervals[end][0] <= last + 1:
        end += 1
    if begin < end:
        first, last = min(first, intervals[begin][0]), max(last, intervals[end - 1][1])
    elif not may_grow:
        return
    intervals[begin:end] = [(first, last)]


def holds(intervals: Sequence[Interval], event: Event) -> bool:
    """Whether one of these sorted intervals, which do not touch, has all ids of an event."""
    at = bisect(intervals, (event.first_id, inf)) - 1
    return at >= 0 and event.last_id <= intervals[at][1]


class Hole:
    """A gap being filled: what is still missing, and the events that came for it and wait for those before them.

    Not locked; its owner is.
    """

    def __init__(self, gap: Gap) -> None:
        self.gap = gap
        self.missing: list[Interval] = [(gap.first, gap.last)]
        self.filled = 0
        """Events taken so far."""
        self._waiting: list[tuple[int, int, Event]] = []  # sorted by id; the number keeps events uncompared

    def lacks(self, event: Event) -> bool:
        """Whether all ids of an event are missing here."""
        return holds(self.missing, event)

    def offer(self, event: Event) -> bool:
        """Take an event all of whose ids are missing here; return False for any other."""
        if not self.lacks(event):
            return False
        first, last = event.first_id, event.last_id
        self.missing = without(self.missing, first, last)
        self.filled += 1
        insort(self._waiting, (first, self.filled, event))
        return True

    def due(self) -> list[Event]:
        """Give out, in order, the events before which nothing is missing any more."""
        until = self.missing[0][0] if self.missing else None
        ready = 0
        while ready < len(self._waiting) and (until is None or self._waiting[ready][0] < until):
            ready += 1
        due = [event for _, _, event in self._waiting[:ready]]
        del self._waiting[:ready]
        return due

    def everything(self) -> list[Event]:
        """Give out, in order, all that waits, whatever is missing before it."""
        events = [event for _, _, event in self._waiting]
        self._waiting.clear()
        return events

    def give_up(self, intervals: Iterable[Interval]) -> list[Interval]:
        """Wait for these ids no more; return those of them that were missing."""
        given_up = []
        for first, last in intervals:
            given_up += [
                (max(start, first), min(end, last))
                for start, end in self.missing
                if start <= last and end >= first
            ]
            self.missing = without(self.missing, first, last)
        return given_up

    @property
    def closed(self) -> bool:
        """Whether nothing is missing and nothing waits."""
        return not self.missing and not self._waiting

    @property
    def first(self) -> int:
        """The first id that is missing or waits; not of one that is closed."""
        waiting = [self._waiting[0][0]] if self._waiting else []
        return min([interval[0] for interval in self.missing[:1]] + waiting)

    def __len__(self) -> int:
        return len(self._waiting)
