"""The feed: which streams somebody listens to, and the way of each event to them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from sandbox.exchange import payloads
from sandbox.exchange.market import (
    AGGREGATE,
    BLOCK_TRADE,
    DEPTH_FAST,
    DEPTH_SLOW,
    KINDS,
    QUOTE,
    TRADE,
)
from sandbox.exchange.routes import (
    ClockRoute,
    DepthRoute,
    EventRoute,
    KlineRoute,
    Listener,
    PartialDepthRoute,
    Route,
)
from sandbox.exchange.streams import Stream, parse_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange.listing import Listing
    from sandbox.exchange.market import Event, Market

_SECOND_MS = 1000
_EVENTS = {
    "trade": (TRADE, payloads.trade),
    "aggTrade": (AGGREGATE, payloads.agg_trade),
    "bookTicker": (QUOTE, payloads.book_ticker),
    "blockTrade": (BLOCK_TRADE, payloads.block_trade),
}


class Feed:
    """Routes by stream name, and by the event key that leads to them."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._routes: dict[str, Route] = {}
        self._by_event: list[tuple[EventRoute | DepthRoute | PartialDepthRoute, ...]] = [()] * (
            KINDS * len(market.listings)
        )
        self._clocked: dict[str, ClockRoute | KlineRoute] = {}
        self._dirty: list[Route] = []
        self._next_second = 0
        self._numbers = {listing.spec.stream_name: n for n, listing in enumerate(market.listings)}

    def emit(self, event: Event) -> None:
        """Carry an event to whoever listens."""
        for route in self._by_event[event[0]]:
            route.emit(event)  # type: ignore[arg-type]  # a key leads to routes of its own events only

    def push_clocked(self, now_ms: int) -> None:
        """Push klines, tickers and averages when a second has passed."""
        if now_ms < self._next_second:
            return
        self._next_second = now_ms // _SECOND_MS * _SECOND_MS + _SECOND_MS
        for route in self._clocked.values():
            route.push(now_ms)

    def settle(self) -> None:
        """Count what the listeners were handed since the last time."""
        for route in self._dirty:
            route.settle()
        self._dirty.clear()

    def listen(self, member: Listener, name: str) -> None:
        """Let a connection listen to a stream; a name that carries nothing is accepted and stays silent."""
        route = self._routes.get(name) or self._open(name)
        if route is not None:
            route.add(member)

    def leave(self, member: Listener, name: str) -> None:
        """Let a connection stop listening; a stream without listeners is not encoded any more."""
        route = self._routes.get(name)
        if route is None:
            return
        route.remove(member)
        if not route.members:
            self._close(route)

    def rewire(self, name: str) -> None:
        """Take note that a listener changed its shape, or that its frames take another way."""
        route = self._routes.get(name)
        if route is not None:
            route.rewire()

    def _open(self, name: str) -> Route | None:
        stream = parse_stream(name)
        if stream is None or (stream.symbol and stream.symbol not in self._numbers):
            return None
        route = self._whole_market(stream) if not stream.symbol else self._of_listing(stream)
        self._routes[name] = route
        if isinstance(route, ClockRoute | KlineRoute):
            self._clocked[name] = route
        else:
            key = self._key(stream)
            self._by_event[key] += (cast("EventRoute", route),)
        return route

    def _close(self, route: Route) -> None:
        del self._routes[route.stream.name]
        if self._clocked.pop(route.stream.name, None) is None:
            key = self._key(route.stream)
            self._by_event[key] = tuple(other for other in self._by_event[key] if other is not route)

    def _key(self, stream: Stream) -> int:
        depth = DEPTH_FAST if stream.fast else DEPTH_SLOW
        kind = _EVENTS[stream.kind][0] if stream.kind in _EVENTS else depth
        return kind * len(self._numbers) + self._numbers[stream.symbol]

    def _of_listing(self, stream: Stream) -> Route:
        listing = self._market.listings[self._numbers[stream.symbol]]
        if stream.kind in _EVENTS:
            encode = cast("Callable[[Listing, Event], str]", _EVENTS[stream.kind][1])
            return EventRoute(stream, self._dirty, listing, encode)
        if stream.kind == "depth":
            return DepthRoute(stream, self._dirty, listing)
        if stream.kind == "partialDepth":
            return PartialDepthRoute(stream, self._dirty, listing)
        if stream.kind == "kline":
            return KlineRoute(stream, self._dirty, listing)
        return ClockRoute(stream, self._dirty, _clocked_payload(stream, listing))

    def _whole_market(self, stream: Stream) -> Route:
        encode = _ticker_payload(stream)
        return ClockRoute(stream, self._dirty, _Array(self._market.listings, encode))


class _Array:
    """The array streams: one element for each symbol that traded since the last push."""

    def __init__(self, listings: list[Listing], encode: Callable[[Listing, int], str]) -> None:
        self._listings = listings
        self._encode = encode
        self._seen = {listing.spec.name: listing.tape.next_trade for listing in listings}

    def __call__(self, now_ms: int) -> tuple[str, int] | None:
        changed = [each for each in self._listings if each.tape.next_trade != self._seen[each.spec.name]]
        if not changed:
            return None
        self._seen.update((each.spec.name, each.tape.next_trade) for each in changed)
        return f"[{','.join(self._encode(each, now_ms) for each in changed)}]", len(changed)


def _ticker_payload(stream: Stream) -> Callable[[Listing, int], str]:
    if stream.kind == "miniTicker":
        return payloads.mini_ticker
    if stream.interval:
        return lambda listing, now_ms: payloads.rolling_ticker(listing, stream.interval, now_ms)
    return payloads.ticker


def _clocked_payload(stream: Stream, listing: Listing) -> Callable[[int], tuple[str, int] | None]:
    plain = {"avgPrice": payloads.average_price, "referencePrice": payloads.reference_price}
    encode = plain.get(stream.kind) or _ticker_payload(stream)
    return partial(_one, encode, listing)


def _one(encode: Callable[[Listing, int], str], listing: Listing, now_ms: int) -> tuple[str, int]:
    return encode(listing, now_ms), 1
