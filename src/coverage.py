"""Which ids of each stream are there, told from events as they stand in Kafka or on disk.

Only the few fields that name a stream and an id are read of a value (measured: 1 to 2 us a record). Names of
streams and fields: Binance web-socket-streams.md; what is appended to a payload: the service's contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from src.events import SOURCE
from src.holes import Interval, Position, without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from src.events import Event

_RECENT = 64  # updates of a book: what is sent again is mostly newer
_TYPE_MARK = b'"event_type":"'
_LIVE = f'"source":"{SOURCE}"'.encode()
_NUMBERED = frozenset({b"trade", b"aggregate_trade", b"depth_update"})


class Place(NamedTuple):
    """Where an event stands in its stream: the ids that it covers, both inclusive."""

    stream: str
    """As subscribed; of depth without its speed, which no field tells."""
    first: int
    last: int
    final: bool = True
    """Of a bar: whether it is closed."""


class _Trade(msgspec.Struct, gc=False):
    s: str
    t: int


class _Aggregate(msgspec.Struct, gc=False):
    s: str
    a: int


class _Depth(msgspec.Struct, gc=False):
    s: str
    U: int
    u: int


class _Bar(msgspec.Struct, gc=False):
    t: int
    T: int
    i: str
    x: bool


class _Kline(msgspec.Struct, gc=False):
    s: str
    k: _Bar
    stream: str | None = None


def _trade(event: _Trade) -> Place:
    return Place(f"{event.s.lower()}@trade", event.t, event.t)


def _aggregate(event: _Aggregate) -> Place:
    return Place(f"{event.s.lower()}@aggTrade", event.a, event.a)


def _depth(event: _Depth) -> Place:
    return Place(f"{event.s.lower()}@depth", event.U, event.u)


def _kline(event: _Kline) -> Place:
    stream = event.stream or f"{event.s.lower()}@kline_{event.k.i}"
    return Place(stream, event.k.t, event.k.T, event.k.x)


_READERS: dict[bytes, tuple[Callable[[bytes], Any], Callable[[Any], Place]]] = {
    b"trade": (msgspec.json.Decoder(_Trade).decode, _trade),
    b"aggregate_trade": (msgspec.json.Decoder(_Aggregate).decode, _aggregate),
    b"depth_update": (msgspec.json.Decoder(_Depth).decode, _depth),
    b"kline": (msgspec.json.Decoder(_Kline).decode, _kline),
}


def event_type(value: bytes) -> bytes:
    """Return the type that an event was given, empty where it has none."""
    start = value.rfind(_TYPE_MARK) + len(_TYPE_MARK)
    return value[start : value.find(b'"', start)] if start >= len(_TYPE_MARK) else b""


def place(value: bytes, kind: bytes) -> Place | None:
    """Return where an event of this type stands; None for one whose stream counts nothing."""
    reader = _READERS.get(kind)
    if reader is None:
        return None
    decode, placed = reader
    try:
        return placed(decode(value))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def sent_at(value: bytes, kind: bytes, timestamp_ms: int) -> int:
    """Return when the exchange sent a live trade or update of a book, by its record's timestamp; 0 for all else.

    Bars are not numbered, and what was fetched has another time.
    """
    return timestamp_ms if kind in _NUMBERED and value.rfind(_LIVE) >= 0 else 0


def place_of(event: Event) -> Place | None:
    """Return where an event stands that was decoded, or read from disk, where no ids are beside it."""
    if event.first_id <= event.last_id and event.route.stream:
        return Place(event.route.stream, event.first_id, event.last_id, event.final)
    return place(event.value, event.route.event_type.encode())


class _Stream:
    """The ids of one stream: everything up to `last` but what is missing."""

    __slots__ = ("at_ms", "final", "first", "last", "missing", "mixed")

    def __init__(  # noqa: PLR0913 - what a position has
        self,
        first: int,
        last: int,
        *,
        final: bool,
        missing: Iterable[Interval] = (),
        at_ms: int = 0,
        mixed: bool = False,
    ) -> None:
        self.first = first  # of the bar that is not closed yet; from a checkpoint only its end is known
        self.last = last
        self.final = final
        self.missing = list(missing)
        self.at_ms = at_ms  # when the last one was sent
        self.mixed = mixed

    def saw(self, first: int, last: int, *, final: bool, at_ms: int) -> None:
        if last < self.last and 0 < self.at_ms < at_ms and not self._lacks(first):
            self.missing.clear()
            self.first, self.last, self.at_ms = first, last, at_ms
        elif first > self.last:
            if not self.final:  # the next bar has come, and its own end was not seen
                self.missing.append((min(self.first, self.last - (last - first)), self.last))
            if first > self.last + 1:
                self.missing.append((self.last + 1, first - 1))
            self.first, self.last, self.final, self.at_ms = first, last, final, at_ms
        elif last >= self.last:  # the same bar again, or an overlap
            self.first, self.last = min(self.first, first), last
            self.final = self.final or final
            self.at_ms = max(self.at_ms, at_ms)
        elif final and self.missing:
            self.missing = without(self.missing, first, last)

    def reaches(self, last: int, at_ms: int) -> None:
        if last > self.last:
            self.last, self.at_ms = last, at_ms

    def _lacks(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.missing)


class Coverage:
    """Grows with every event that is seen, in any order; what was jumped over is missing until it is seen.

    An event that fills no hole and is newer than one with a higher id is of a new numbering: what was known of the
    old one is forgotten. So too when the tail of an old numbering is read behind a checkpoint of the new one.

    `known` is where the streams stood at some time: what lies before is not asked for again. Depth has no
    missing ids, since nobody gives them again; of depth not known before, the name lacks its speed. Of two speeds
    an update belongs to the one that it alone goes on from; where that cannot be told, both are `mixed` and stand
    at the highest id, so that what is behind it is missing from both. Not locked; for one thread.
    """

    def __init__(self, known: Mapping[str, Position]) -> None:
        self._streams = {
            each.stream: _Stream(
                each.last, each.last, final=each.final, missing=each.missing, at_ms=each.at_ms, mixed=each.mixed
            )
            for each in known.values()
        }
        self._speeds: dict[str, list[str]] = {}
        self._tails: dict[str, _Tail] = {}
        for stream in known:
            if "@depth" in stream:
                self._speeds.setdefault(stream.partition("@depth")[0] + "@depth", []).append(stream)

    def saw(self, seen: Place, at_ms: int = 0) -> None:
        """Take note of one event, in the order of a partition; `at_ms` as `sent_at` tells."""
        stream, first, last, final = seen
        if stream.endswith("@depth"):
            self._saw_depth(seen, at_ms)
            return
        known = self._streams.get(stream)
        if known is None:
            self._streams[stream] = _Stream(first, last, final=final, at_ms=at_ms)
        elif first == known.last + 1 and known.final:
            known.first, known.last, known.final, known.at_ms = first, last, final, at_ms
        else:
            known.saw(first, last, final=final, at_ms=at_ms)

    def positions(self) -> dict[str, Position]:
        """Return where each stream stands."""
        return {
            stream: Position(stream, each.last, tuple(sorted(each.missing)), each.final, each.at_ms, each.mixed)
            for stream, each in self._streams.items()
        }

    def _saw_depth(self, seen: Place, at_ms: int) -> None:
        names = self._speeds.setdefault(seen.stream, [])
        tail = self._tails.setdefault(seen.stream, _Tail())
        if not names:
            names.append(seen.stream)
            self._streams[seen.stream] = _Stream(seen.first, seen.last, final=True, at_ms=at_ms)
        books = [self._streams[name] for name in names]
        following = [book for book in books if not book.mixed and book.last + 1 == seen.first]
        overlapping = tail.overlaps(seen)
        if len(following) == 1:
            following[0].last, following[0].at_ms = seen.last, at_ms
        elif len(books) > 1:
            for book in books:
                book.mixed |= book.last < seen.last
                book.reaches(seen.last, at_ms)
        else:
            books[0].mixed |= overlapping or seen.first <= books[0].last < seen.last
            books[0].reaches(seen.last, at_ms)


class _Tail:
    """The updates of a book in a tail: of one speed no two share an id, unless one was sent again."""

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._last = -1

    def overlaps(self, seen: Place) -> bool:
        """Take note of one; return whether it shares ids with an earlier one and is not known to be the same."""
        if self._recent.get(seen.first) == seen.last:
            return False
        overlapping = seen.first <= self._last
        self._recent[seen.first] = seen.last
        self._last = max(self._last, seen.last)
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        return overlapping
