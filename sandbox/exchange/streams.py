"""The grammar of stream names (protocol section 4). What it does not know is acked, listed and silent."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.exchange.bars import INTERVAL_MS

WINDOWS_MS = {"1h": 3_600_000, "4h": 14_400_000, "1d": 86_400_000}
EIGHT_HOURS_MS = 8 * 3_600_000

_PLAIN = frozenset(
    {"aggTrade", "trade", "blockTrade", "miniTicker", "ticker", "bookTicker", "avgPrice", "referencePrice"}
)
_PARTIAL_LEVELS = {"depth5": 5, "depth10": 10, "depth20": 20}
_WHOLE_MARKET = {"!miniTicker@arr": "miniTicker"} | {f"!ticker_{name}@arr": "ticker" for name in WINDOWS_MS}


@dataclass(frozen=True)
class Stream:
    """A stream that carries something. `symbol` is lower case, empty for the whole market's arrays."""

    name: str
    symbol: str
    kind: str
    interval: str = ""
    offset_ms: int = 0
    levels: int = 0
    fast: bool = False

    @property
    def label(self) -> str:
        """The stream type as written behind the symbol, e.g. `kline_1m` or `depth@100ms`."""
        return self.name.partition("@")[2] if self.symbol else self.name


def parse_stream(name: str) -> Stream | None:
    """Read a stream name; None for one that the exchange would ack and never serve."""
    if name in _WHOLE_MARKET:
        window = name.removesuffix("@arr").partition("_")[2]
        return Stream(name, "", _WHOLE_MARKET[name], interval=window)
    symbol, at, kind = name.partition("@")
    if not at or not symbol or symbol != symbol.lower():
        return None
    if kind in _PLAIN:
        return Stream(name, symbol, kind)
    return _depth(name, symbol, kind) or _kline(name, symbol, kind) or _ticker(name, symbol, kind)


def _depth(name: str, symbol: str, kind: str) -> Stream | None:
    base, at, speed = kind.partition("@")
    if at and speed != "100ms":
        return None
    if base == "depth":
        return Stream(name, symbol, "depth", fast=bool(at))
    if base in _PARTIAL_LEVELS:
        return Stream(name, symbol, "partialDepth", levels=_PARTIAL_LEVELS[base], fast=bool(at))
    return None


def _kline(name: str, symbol: str, kind: str) -> Stream | None:
    base, at, offset = kind.partition("@")
    interval = base.removeprefix("kline_")
    if interval == base or interval not in INTERVAL_MS or (at and offset != "+08:00"):
        return None
    return Stream(name, symbol, "kline", interval=interval, offset_ms=EIGHT_HOURS_MS if at else 0)


def _ticker(name: str, symbol: str, kind: str) -> Stream | None:
    window = kind.removeprefix("ticker_")
    if window == kind or window not in WINDOWS_MS:
        return None
    return Stream(name, symbol, "ticker", interval=window)
