"""What flows, by kind and by symbol, and how long each leg of the way takes.

Cheap on the way in (measured: 0.1 us an event): routes are counted by identity, one event of a batch stands for
all of it in a histogram, and prices are decoded when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from src.events import Event, Route

LEGS = {
    "exchange_to_read": "from the exchange's event time to the read from the socket",
    "read_to_flush": "from the read to the flush of the buffer, towards Kafka or the disk",
    "flush_to_ack": "from the flush to Kafka's acknowledgement",
    "exchange_to_ack": "the whole way, also by way of the disk",
}
BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000, 3_600_000)
"""Upper bounds of the histograms' buckets; one more bucket takes what is longer."""
_GOLDEN = 0.618034  # its multiples spread evenly between 0 and 1
_FLUSHES_KEPT = 20_000
_ROUTES_KEPT = 20_000
_SYMBOLS_KEPT = 10_000
_KINDS_KEPT = 1_000
_OTHER = ("other", "other")
_TIMELESS = frozenset({"book_ticker", "partial_depth", "unknown", "unenriched"})
_LIVE = b'"source":"binance_websocket"'
"""In a live event; what was fetched later carries the time of a trade that was missed then."""
_READ_MARK = b'"ingestion_timestamp":'
_READ_DIGITS = 13


class _Bar(msgspec.Struct):
    c: str | None = None


class _Prices(msgspec.Struct):
    p: str | None = None
    c: str | None = None
    k: _Bar | None = None


_decode_prices = msgspec.json.Decoder(_Prices).decode
_PRICES: dict[str, Callable[[_Prices], str | None]] = {
    "trade": lambda event: event.p,
    "aggregate_trade": lambda event: event.p,
    "ticker": lambda event: event.c,
    "mini_ticker": lambda event: event.c,
    "rolling_ticker": lambda event: event.c,
    "kline": lambda event: event.k.c if event.k else None,
}


class Histogram:
    """Counts of events by bucket; `counts` are not cumulative."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_MS) + 1)
        self.sum_ms = 0

    def observe(self, duration_ms: int, weight: int) -> None:
        """Count `weight` events; a negative duration, of clocks that disagree, counts as none."""
        duration_ms = max(0, duration_ms)
        self.counts[bisect_left(BOUNDS_MS, duration_ms)] += weight
        self.sum_ms += duration_ms * weight

    def read(self) -> dict[str, Any]:
        """Return it as `/status` shows it."""
        return {"counts": list(self.counts), "sum_ms": self.sum_ms}


class Symbol:
    """What was last seen of one symbol."""

    __slots__ = ("events", "last_ms", "priced")

    def __init__(self) -> None:
        self.events = 0
        self.last_ms = 0
        self.priced: Event | None = None

    def saw(self, event: Event, events: int) -> None:
        """Add `events` events of one route, of which this was the last."""
        self.events += events
        self.last_ms = max(self.last_ms, event.timestamp_ms)
        is_priced = event.route.event_type in _PRICES
        if is_priced and (self.priced is None or event.timestamp_ms >= self.priced.timestamp_ms):
            self.priced = event


class Reading(NamedTuple):
    """A copy of everything, to be shown outside of the lock."""

    kinds: list[tuple[str, str, int, int]]
    """Event type, topic, received, produced."""
    symbols: list[tuple[str, int, int, Event | None]]
    """Name, events, time of the last one in ms, the last one with a price."""
    latency: dict[str, dict[str, Any]]

    def shown(self) -> dict[str, Any]:
        """Return it as `/status` shows it."""
        kinds = [
            {"event_type": event_type, "topic": topic, "received": received, "produced": produced}
            for event_type, topic, received, produced in sorted(self.kinds)
        ]
        symbols = {
            name: {"last_event_time": iso(last_ms), "price": _price(priced), "events": events}
            for name, events, last_ms, priced in sorted(self.symbols, key=lambda symbol: symbol[0])
        }
        return {"kinds": kinds, "symbols": symbols, "latency": {"bounds_ms": BOUNDS_MS, "legs": self.latency}}


class Flow:
    """Counts and times; whoever owns it holds one lock around every call."""

    def __init__(self) -> None:
        self._received: Counter[Route] = Counter()
        self._produced: Counter[Route] = Counter()
        self._latest: dict[Route, Event] = {}
        # The three above are folded into these two at every reading: routes come and go, names stay.
        self._kinds: dict[tuple[str, str], list[int]] = {}
        self._symbols: dict[str, Symbol] = {}
        self._legs = {leg: Histogram() for leg in LEGS}
        self._flushed_up_to: list[int] = []  # sequence numbers, ascending; the times of the same flushes beside
        self._flushed_at: list[int] = []
        self._known_from = 0
        self._phase = 0.0

    def received(self, reads: Sequence[tuple[list[Event], int]]) -> None:
        """Take note of reads from the socket: the events of each, at least one, and when it was, in ms."""
        events = [event for read, _ in reads for event in read]
        routes = [event.route for event in events]
        self._received.update(routes)
        self._latest.update(zip(routes, events, strict=True))
        for read, at_ms in reads:
            event = self._sample(read)
            if event.route.event_type not in _TIMELESS:
                self._legs["exchange_to_read"].observe(at_ms - event.timestamp_ms, len(read))
        if len(self._latest) > _ROUTES_KEPT:
            self._fold()

    def flushed(self, events: Sequence[Event], at_ms: int) -> None:
        """Take note of a batch that left the buffer; its events are numbered."""
        if not events:
            return
        if not self._flushed_up_to:
            self._known_from = events[0].seq
        self._flushed_up_to.append(events[-1].seq)
        self._flushed_at.append(at_ms)
        if len(self._flushed_at) > _FLUSHES_KEPT:
            self._forget_flushes(_FLUSHES_KEPT // 2)
        if (read_ms := _read_ms(self._sample(events).value)) is not None:
            self._legs["read_to_flush"].observe(at_ms - read_ms, len(events))

    def acknowledged(self, events: Sequence[Event], at_ms: int) -> None:
        """Take note of a batch that Kafka has."""
        if not events:
            return
        self._produced.update([event.route for event in events])
        event = self._sample(events)
        if event.route.event_type not in _TIMELESS and _LIVE in event.value:
            self._legs["exchange_to_ack"].observe(at_ms - event.timestamp_ms, len(events))
        if (flushed_ms := self._flushed_ms(event.seq)) is not None:
            self._legs["flush_to_ack"].observe(at_ms - flushed_ms, len(events))
        if len(self._produced) > _ROUTES_KEPT:
            self._fold()

    def read(self) -> Reading:
        """Return a copy of everything."""
        self._fold()
        return Reading(
            [(*kind, counts[0], counts[1]) for kind, counts in self._kinds.items()],
            [(name, each.events, each.last_ms, each.priced) for name, each in self._symbols.items()],
            {leg: histogram.read() for leg, histogram in self._legs.items()},
        )

    def _sample(self, events: Sequence[Event]) -> Event:
        """Return the event that stands for a batch; over many batches each place in them is seen as often."""
        if len(events) == 1:
            return events[0]
        self._phase = (self._phase + _GOLDEN) % 1.0
        return events[int(len(events) * self._phase)]

    def _flushed_ms(self, seq: int) -> int | None:
        if seq < self._known_from:  # of an earlier run, or long ago
            return None
        index = bisect_left(self._flushed_up_to, seq)
        return self._flushed_at[index] if index < len(self._flushed_at) else None

    def _forget_flushes(self, count: int) -> None:
        self._known_from = self._flushed_up_to[count - 1] + 1
        del self._flushed_up_to[:count], self._flushed_at[:count]

    def _fold(self) -> None:
        for route, count in self._received.items():
            self._kind(route)[0] += count
            if route.key is not None and (symbol := self._symbol(route.key)) is not None:
                symbol.saw(self._latest[route], count)
        for route, count in self._produced.items():
            self._kind(route)[1] += count
        for counted in (self._received, self._produced, self._latest):
            counted.clear()

    def _kind(self, route: Route) -> list[int]:
        kind = (route.event_type, route.topic)
        if kind not in self._kinds and len(self._kinds) >= _KINDS_KEPT:  # names come from the input
            kind = _OTHER
        return self._kinds.setdefault(kind, [0, 0])

    def _symbol(self, key: bytes) -> Symbol | None:
        name = key.decode("utf-8", "replace")
        if name not in self._symbols and len(self._symbols) < _SYMBOLS_KEPT:
            self._symbols[name] = Symbol()
        return self._symbols.get(name)


def iso(epoch_ms: int | None) -> str | None:
    """Write ms since the epoch as ISO 8601."""
    if epoch_ms is None:
        return None
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _read_ms(value: bytes) -> int | None:
    """Return when an event was read from the socket; its own bytes say so."""
    start = value.rfind(_READ_MARK)
    if start < 0:  # an event that could not be enriched
        return None
    start += len(_READ_MARK)
    digits = value[start : start + _READ_DIGITS]
    return int(digits) if digits.isdigit() else None


def _price(event: Event | None) -> str | None:
    """Return the last price that an event names, as the exchange wrote it."""
    if event is None:
        return None
    try:
        return _PRICES[event.route.event_type](_decode_prices(event.value))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
