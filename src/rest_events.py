"""From answers of the REST interface to events in the stream's own shape. Pure, time arrives as data.

The same fields in the same order as a live event of the same id, every string digit for digit; `E`, which REST
does not tell, repeats the time of the trade or the close of the bar (Binance rest-api.md, web-socket-streams.md).
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from src.events import MAX_AHEAD_MS, PIPELINE_VERSION, Event, Route, topic_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from src.events import Topics

_Row = TypeVar("_Row")

BACKFILL = "binance_rest_backfill"
SNAPSHOT = "binance_rest_snapshot"
SNAPSHOT_TYPE = "depth_snapshot"
_ROUTES_KEPT = 16_384


class WrongShape(Exception):  # noqa: N818 - a fact about the answer
    """The answer is no JSON, or not of the shape that its endpoint has."""


class Origin(NamedTuple):
    """Which stream the rows stand in for."""

    stream: str
    symbol: str
    """In upper case."""
    event_type: str


class _AggregateRow(msgspec.Struct, gc=False):
    a: int
    p: str
    q: str
    f: int
    l: int  # noqa: E741 - the exchange's name
    T: int
    m: bool
    M: bool | msgspec.UnsetType = msgspec.UNSET


class _TradeRow(msgspec.Struct, gc=False):
    id: int
    price: str
    qty: str
    time: int
    is_buyer_maker: bool = msgspec.field(name="isBuyerMaker")
    is_best_match: bool | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="isBestMatch")


class _BarRow(msgspec.Struct, gc=False, array_like=True):
    opened: int
    open: str
    high: str
    low: str
    close: str
    volume: str
    closed: int
    quote: str
    count: int
    taker_volume: str
    taker_quote: str


class _Aggregate(msgspec.Struct, gc=False):
    e: str
    E: int
    s: str
    a: int
    p: str
    q: str
    f: int
    l: int  # noqa: E741
    T: int
    m: bool
    M: bool | msgspec.UnsetType


class _Trade(msgspec.Struct, gc=False):
    e: str
    E: int
    s: str
    t: int
    p: str
    q: str
    T: int
    m: bool
    M: bool | msgspec.UnsetType


class _Bar(msgspec.Struct, gc=False):
    t: int
    T: int
    s: str
    i: str
    f: int
    L: int
    o: str
    c: str
    h: str
    l: str  # noqa: E741
    v: str
    n: int
    x: bool
    q: str
    V: str
    Q: str
    B: str


class _Kline(msgspec.Struct, gc=False):
    e: str
    E: int
    s: str
    k: _Bar


class _Book(msgspec.Struct, gc=False):
    last_update_id: int = msgspec.field(name="lastUpdateId")
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]


_aggregates = msgspec.json.Decoder(list[_AggregateRow]).decode
_trades = msgspec.json.Decoder(list[_TradeRow]).decode
_bars = msgspec.json.Decoder(list[_BarRow]).decode
_book = msgspec.json.Decoder(_Book).decode
_encode = msgspec.json.Encoder().encode
_Wrong = (msgspec.DecodeError, UnicodeError, RecursionError)


def aggregate_events(body: bytes, origin: Origin, topics: Topics, received_ms: int) -> list[Event]:
    """Convert an answer of `aggTrades`, in order of ids, each once. Raises `WrongShape`."""
    make = _Maker(origin, topics, received_ms)
    events = {}
    for row in _rows(_aggregates, body):
        payload = _Aggregate(
            "aggTrade", row.T, origin.symbol, row.a, row.p, row.q, row.f, row.l, row.T, row.m, row.M
        )
        events[row.a] = make.event(payload, row.T, row.a, row.a)
    return [events[number] for number in sorted(events)]


def trade_events(body: bytes, origin: Origin, topics: Topics, received_ms: int) -> list[Event]:
    """Convert an answer of `historicalTrades`, in order of ids, each once. Raises `WrongShape`."""
    make = _Maker(origin, topics, received_ms)
    events = {}
    for row in _rows(_trades, body):
        payload = _Trade(
            *("trade", row.time, origin.symbol, row.id, row.price, row.qty, row.time),
            row.is_buyer_maker,
            row.is_best_match,
        )
        events[row.id] = make.event(payload, row.time, row.id, row.id)
    return [events[number] for number in sorted(events)]


def kline_events(body: bytes, origin: Origin, topics: Topics, received_ms: int) -> list[Event]:
    """Convert an answer of `klines`, in order of time, each once; whether the last bar is closed it does not tell.

    The ids of a bar's first and last trade are -1: REST does not tell them. Raises `WrongShape`.
    """
    make = _Maker(origin, topics, received_ms)
    interval = bar_interval(origin.stream)[0]
    events = {}
    for row in _rows(_bars, body):
        bar = _Bar(
            t=row.opened,
            T=row.closed,
            s=origin.symbol,
            i=interval,
            f=-1,
            L=-1,
            o=row.open,
            c=row.close,
            h=row.high,
            l=row.low,
            v=row.volume,
            n=row.count,
            x=True,
            q=row.quote,
            V=row.taker_volume,
            Q=row.taker_quote,
            B="0",
        )
        payload = _Kline("kline", row.closed, origin.symbol, bar)
        events[row.opened] = make.event(payload, row.closed, row.opened, row.closed)
    return [events[opened] for opened in sorted(events)]


def snapshot_event(body: bytes, stream: str, symbol: str, topics: Topics, received_ms: int) -> Event:
    """Make an answer of `depth` an event: its own text and the added fields. Raises `WrongShape`."""
    try:
        last = _book(body).last_update_id
    except _Wrong as error:
        raise WrongShape(str(error)) from error
    route = _snapshot_route(stream, symbol, topics)
    value = b'%b,"ingestion_timestamp":%d%b' % (body.strip()[:-1], received_ms, route.tail)
    return Event(route, value, received_ms, first_id=last, last_id=last)


def bar_interval(stream: str) -> tuple[str, str]:
    """Return the interval of a kline stream and its offset from UTC, as REST takes them: `("1d", "08:00")`.

    Each is empty where the stream names none.
    """
    _, _, kind = stream.partition("@")
    interval, _, offset = kind.removeprefix("kline_").partition("@")
    return interval, offset.removeprefix("+")


class _Maker:
    """Makes events of one origin and one answer."""

    def __init__(self, origin: Origin, topics: Topics, received_ms: int) -> None:
        self._route = _backfill_route(origin, topics)
        self._received_ms = received_ms
        self._tail = b',"ingestion_timestamp":%d%b' % (received_ms, self._route.tail)

    def event(self, payload: msgspec.Struct, time_ms: int, first: int, last: int) -> Event:
        """Make one event; `time_ms` is the record's time unless no broker would take it."""
        if not 0 <= time_ms <= self._received_ms + MAX_AHEAD_MS:
            time_ms = self._received_ms
        return Event(self._route, _encode(payload)[:-1] + self._tail, time_ms, first_id=first, last_id=last)


def _rows(decode: Callable[[bytes], list[_Row]], body: bytes) -> list[_Row]:
    try:
        return decode(body)
    except _Wrong as error:
        raise WrongShape(str(error)) from error


@lru_cache(_ROUTES_KEPT)
def _backfill_route(origin: Origin, topics: Topics) -> Route:
    named = origin.event_type == "kline" and origin.stream.count("@") > 1  # as in the live event
    return _route(origin, topics, BACKFILL, named=named)


@lru_cache(_ROUTES_KEPT)
def _snapshot_route(stream: str, symbol: str, topics: Topics) -> Route:
    return _route(Origin(stream, symbol, SNAPSHOT_TYPE), topics, SNAPSHOT, named=True)


def _route(origin: Origin, topics: Topics, source: str, *, named: bool) -> Route:
    added = {"source": source, "event_type": origin.event_type, "pipeline_version": PIPELINE_VERSION}
    if named:
        added["stream"] = origin.stream
    tail = b"," + json.dumps(added, ensure_ascii=False, separators=(",", ":")).encode()[1:]
    topic, key = topic_for(origin.event_type, topics), origin.symbol.encode()
    return Route(origin.event_type, topic, key, tail, 0, b"", origin.stream)
