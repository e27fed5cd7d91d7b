"""An event as a consumer of Kafka meets it: decoded, and what of it is worth a line in a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from src.terminal_parts import clean

if TYPE_CHECKING:
    from collections.abc import Callable


class Event(NamedTuple):
    """One record of Kafka, decoded; times in ms since the epoch."""

    type: str
    symbol: str
    fields: dict[str, Any]
    value: bytes
    received: float

    @property
    def exchange_ms(self) -> float | None:
        """The age of the event by the exchange's clock (`E`), None where the exchange names no time."""
        return self._age("E")

    @property
    def ingestion_ms(self) -> float | None:
        """The time from the service's socket to here."""
        return self._age("ingestion_timestamp")

    def _age(self, name: str) -> float | None:
        at = self.fields.get(name)
        return self.received - at if isinstance(at, int) else None


def decode(key: bytes | None, value: bytes | None, received: float) -> Event | None:
    """Decode one record; None when its value is not a JSON object."""
    try:
        fields = msgspec.json.decode(value or b"")
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    symbol = (key or b"").decode(errors="replace") or str(fields.get("s", "-"))
    return Event(str(fields.get("event_type", "unknown")), symbol.upper(), fields, value or b"", received)


# What is shown of an event, by its type. Field names: Binance web-socket-streams.md.


def _trade(event: dict[str, Any]) -> str:
    side = "SELL" if event["m"] else "BUY"  # `m`: the buyer was the maker, so the seller took the price
    return f"{side:<4} {event['p']} x {event['q']}  #{event.get('t', event.get('a'))}"


def _aggregate_trade(event: dict[str, Any]) -> str:
    return f"{_trade(event)} ({event['l'] - event['f'] + 1} trades)"


def _depth(event: dict[str, Any]) -> str:
    return f"{_book(event['b'], event['a'])}  {event['U']}..{event['u']}"


def _partial_depth(event: dict[str, Any]) -> str:
    return f"{_book(event['bids'], event['asks'])}  #{event['lastUpdateId']}"


def _book(bids: list[list[str]], asks: list[list[str]]) -> str:
    kept = [[level for level in side if float(level[1])] for side in (bids, asks)]  # quantity 0: level removed
    best_bid = max(kept[0], key=lambda level: float(level[0]), default=["-", "-"])
    best_ask = min(kept[1], key=lambda level: float(level[0]), default=["-", "-"])
    best = f"bid {best_bid[0]} x {best_bid[1]}  ask {best_ask[0]} x {best_ask[1]}"
    return f"{best}  {len(bids)}+{len(asks)} levels"


def _kline(event: dict[str, Any]) -> str:
    bar = event["k"]
    state = "closed" if bar["x"] else "open"
    return f"{bar['i']} {state}  O {bar['o']} H {bar['h']} L {bar['l']} C {bar['c']}  volume {bar['v']}"


def _ticker(event: dict[str, Any]) -> str:
    change = f" {event['P']} %" if "P" in event else ""
    return f"last {event['c']}{change}  H {event['h']} L {event['l']}  volume {event['v']}"


def _book_ticker(event: dict[str, Any]) -> str:
    return f"bid {event['b']} x {event['B']}  ask {event['a']} x {event['A']}"


def _average_price(event: dict[str, Any]) -> str:
    return f"{event['w']} over {event['i']}"


_SHOWN: dict[str, Callable[[dict[str, Any]], str]] = {
    "trade": _trade,
    "aggregate_trade": _aggregate_trade,
    "depth_update": _depth,
    "partial_depth": _partial_depth,
    "kline": _kline,
    "ticker": _ticker,
    "mini_ticker": _ticker,
    "rolling_ticker": _ticker,
    "book_ticker": _book_ticker,
    "average_price": _average_price,
}


def describe(event: Event) -> str:
    """Return what matters of an event in one line; its JSON when its type or its fields are not known."""
    try:
        return _SHOWN[event.type](event.fields)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return event.value.decode(errors="replace")


def line_of(event: Event) -> str:
    """Return the whole line: time of the event (UTC), symbol, type, what it says, latencies; printable only."""
    ages = f"({readable_ms(event.exchange_ms)}, {readable_ms(event.ingestion_ms)})"
    return clean(f"{_clock(event)} {event.symbol:<9} {event.type:<15} {describe(event)}  {ages}")


def _clock(event: Event) -> str:
    at: Any = event.fields.get("E", event.fields.get("ingestion_timestamp"))
    try:
        return datetime.fromtimestamp(at / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
    except (TypeError, ValueError, OverflowError, OSError):
        return f"{'-':<12}"


def readable_ms(duration: float | None) -> str:
    """Return a duration in ms with a unit that keeps it short, `-` for None."""
    if duration is None:
        return "-"
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if abs(duration) >= 2 * size:
            return f"{duration / size:.1f} {unit}"
    return f"{duration:.0f} ms"
