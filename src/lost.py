"""What came and was lost before Kafka had it, as ids: to be named, and trades to be fetched again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from src.coverage import place_of
from src.holes import Interval, include, without

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from src.events import Event, Route

DEAD_LETTER = "dead_letter"
"""The reason, in the ledger, of what Kafka refuses as it is: it is not there, and not lost either."""
MOST = 20_000
"""Intervals in all that are kept at a time, and of one stream:"""
MOST_OF_A_STREAM = 1_000
_FETCHED_AGAIN = frozenset({"trade", "aggregate_trade"})
_DEPTH = "depth_update"
_STREAMS = {"trade": "trade", "aggregate_trade": "aggTrade", _DEPTH: "depth"}


class Which(NamedTuple):
    """A stream of a symbol, and where its events go."""

    stream: str
    symbol: str
    event_type: str
    topic: str


Ids: TypeAlias = "dict[Which, list[Interval]]"


def ids_of(events: Iterable[Event]) -> Ids:
    """Return the ids of events whose streams count, in the order of coming; consecutive ones are one interval.

    Of depth that was read from disk the stream's name lacks its speed. An update of an open bar is left out: it is
    the closed one that counts.
    """
    found: Ids = {}
    for event in events:
        if (at := place_of(event)) is None or not at.final:
            continue
        route = event.route
        symbol = (route.key or b"").decode("utf-8", "replace")  # a disk may have spoiled it
        which = Which(at.stream, symbol, route.event_type, route.topic)
        _append(found.setdefault(which, []), at.first, at.last)
    return found


def _append(ids: list[Interval], first: int, last: int) -> None:
    if ids and ids[-1][1] + 1 == first:
        ids[-1] = (ids[-1][0], last)
    else:
        ids.append((first, last))


class Lost:
    """Remembers which ids were lost since they were last taken, and since a checkpoint was begun.

    Any thread may call; nobody else's lock is taken. Ids next to each other are one interval; what would begin one
    more than `MOST`, or `MOST_OF_A_STREAM`, is not remembered: it stays lost, as the ledger says.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._waiting = _Kept()
        self._since = _Kept()
        self._books: set[str] = set()

    def note(self, ids: Mapping[Which, Iterable[Interval]]) -> None:
        """Take note of what is lost: of ids that the exchange gives again, and of whose book updates are gone."""
        with self._lock:
            for which, intervals in ids.items():
                if which.event_type == _DEPTH:
                    self._books.add(which.symbol)
                if which.event_type in _FETCHED_AGAIN:
                    for interval in intervals:
                        self._waiting.add(which, interval)
                        self._since.add(which, interval)

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

    def take_books(self) -> set[str]:
        """Give out the symbols that depth updates were lost of: their books need a snapshot."""
        with self._lock:
            books, self._books = self._books, set()
        return books

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


class OnDisk:
    """Remembers which ids are in a file, so that it can be told what was in it when it cannot be read any more.

    Of trades, aggregate trades and depth, within the bounds of `Lost`; of bars several events have the same id.
    Not locked; its owner is.
    """

    def __init__(self) -> None:
        self._kept = _Kept()
        self._names: dict[Which, set[str]] = {}
        """As subscribed: of depth that was read from disk the name lacks its speed."""

    def add(self, events: Iterable[Event]) -> None:
        """Take note of events that were written; more than once does no harm."""
        for which, named, intervals in _numbered(events):
            if named:
                self._names.setdefault(which, set()).add(named)
            for interval in intervals:
                self._kept.add(which, interval)

    def gone(self, events: Iterable[Event]) -> None:
        """Take note of events that are in the file no more, or need not be; others do no harm."""
        for which, _, intervals in _numbered(events):
            for first, last in intervals:
                self._kept.remove(which, first, last)

    def clear(self) -> Ids:
        """Forget everything, and return what it was; depth at two speeds under a name without either."""
        kept, self._kept = self._kept, _Kept()
        names, self._names = self._names, {}
        only = {which: stream for which, (stream, *others) in names.items() if not others}
        return {which._replace(stream=only.get(which, which.stream)): ids for which, ids in kept.items()}


def _numbered(events: Iterable[Event]) -> Iterator[tuple[Which, str, list[Interval]]]:
    """Yield stream, its name as subscribed if known, and ids, whether these stand beside an event or in it."""
    found: dict[Route, list[Interval]] = {}
    for event in events:
        route, first, last = event.route, event.first_id, event.last_id
        if route.event_type not in _STREAMS:
            continue
        if first > last:
            if (at := place_of(event)) is None:
                continue
            first, last = at.first, at.last
        _append(found.setdefault(route, []), first, last)
    for route, ids in found.items():
        symbol = (route.key or b"").decode("utf-8", "replace")
        stream = f"{symbol.lower()}@{_STREAMS[route.event_type]}"
        yield Which(stream, symbol, route.event_type, route.topic), route.stream, ids


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

    def remove(self, which: Which, first: int, last: int) -> None:
        if which in self._ids:
            self.replace(which, without(self._ids[which], first, last))

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
