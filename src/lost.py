"""Trades that came and were lost before Kafka had them, as ids, until they are fetched again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from src.coverage import place_of
from src.holes import include, without

if TYPE_CHECKING:
    from collections.abc import Iterable

    from src.events import Event
    from src.holes import Interval

MOST = 20_000
"""Intervals in all that are kept at a time, and of one stream:"""
MOST_OF_A_STREAM = 1_000
_FETCHED_AGAIN = frozenset({"trade", "aggregate_trade"})


class Which(NamedTuple):
    """A stream of a symbol, and where its events go."""

    stream: str
    symbol: str
    event_type: str
    topic: str


class Lost:
    """Remembers which ids were lost since they were last taken, and since a checkpoint was begun.

    Any thread may call; nobody else's lock is taken. Ids next to each other are one interval; what would begin one
    more than `MOST`, or `MOST_OF_A_STREAM`, is not remembered: it stays lost, as the ledger says.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._waiting = _Kept()
        self._since = _Kept()

    def note(self, events: Iterable[Event]) -> None:
        """Take note of events that are lost; of those that the exchange gives again by id."""
        with self._lock:
            for event in events:
                route = event.route
                if route.event_type in _FETCHED_AGAIN and (at := place_of(event)) is not None:
                    which = Which(at.stream, (route.key or b"").decode(), route.event_type, route.topic)
                    self._waiting.add(which, (at.first, at.last))
                    self._since.add(which, (at.first, at.last))

    def take(self, at_most: int) -> list[tuple[Which, list[Interval]]]:
        """Give out up to so many intervals, for somebody who has them fetched."""
        taken: list[tuple[Which, list[Interval]]] = []
        with self._lock:
            for which, ids in self._waiting.items():
                if at_most <= 0:
                    break
                taken.append((which, ids[:at_most]))
                at_most -= len(ids)
            for which, ids in taken:
                self._waiting.replace(which, self._waiting[which][len(ids) :])
        return taken

    def forget(self, stream: str, below: int) -> None:
        """Leave ids below this one to somebody else, who knows which of them are missing."""
        with self._lock:
            for which, ids in self._waiting.items():
                if which.stream == stream:
                    self._waiting.replace(which, without(ids, 0, below - 1))

    def begin(self) -> dict[str, list[Interval]]:
        """Return what waits, by stream; `since` tells from here on."""
        with self._lock:
            self._since = _Kept()
            return self._waiting.by_stream()

    def since(self) -> dict[str, list[Interval]]:
        """Return what was lost since `begin`, by stream, also what was taken meanwhile."""
        with self._lock:
            return self._since.by_stream()


class _Kept:
    """Intervals by stream, and how many there are."""

    def __init__(self) -> None:
        self._ids: dict[Which, list[Interval]] = {}
        self._count = 0

    def add(self, which: Which, interval: Interval) -> None:
        ids = self._ids.get(which, [])
        before = len(ids)
        include(ids, interval, may_grow=before < MOST_OF_A_STREAM and self._count < MOST)
        self._count += len(ids) - before
        if ids:
            self._ids[which] = ids

    def replace(self, which: Which, ids: list[Interval]) -> None:
        self._count += len(ids) - len(self._ids.pop(which))
        if ids:
            self._ids[which] = ids

    def items(self) -> list[tuple[Which, list[Interval]]]:
        return list(self._ids.items())

    def by_stream(self) -> dict[str, list[Interval]]:
        return {which.stream: list(ids) for which, ids in self._ids.items()}

    def __getitem__(self, which: Which) -> list[Interval]:
        return self._ids[which]
