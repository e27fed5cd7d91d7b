"""Names of the exchange's spot streams: which exist, how they are built, which symbol they carry.

The exchange acknowledges a SUBSCRIBE for a stream that does not exist and then stays silent
(Binance web-socket-streams.md gives the names), so names are checked here, before anything is opened.
"""

from __future__ import annotations

import difflib
import re

KLINE_INTERVALS = (
    *("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h"),
    *("6h", "8h", "12h", "1d", "3d", "1w", "1M"),
)
STREAM_TYPES = (
    *("aggTrade", "trade", "blockTrade", "miniTicker", "ticker", "bookTicker", "avgPrice", "referencePrice"),
    *(f"ticker_{window}" for window in ("1h", "4h", "1d")),
    *(f"depth{levels}{speed}" for levels in ("", "5", "10", "20") for speed in ("", "@100ms")),
    *(f"kline_{interval}{offset}" for interval in KLINE_INTERVALS for offset in ("", "@+08:00")),
)
"""What may follow `<symbol>@`."""
MARKET_STREAMS = ("!miniTicker@arr", "!ticker_1h@arr", "!ticker_4h@arr", "!ticker_1d@arr")
"""Streams of all symbols at once; each frame is a JSON array."""
_RETIRED = {"!ticker@arr": "2026-03-26", "!bookTicker": "2022-12-07"}
_KNOWN_TYPES = frozenset(STREAM_TYPES)
_SYMBOL = re.compile(r"[\w.\-]{1,50}")  # \w: symbols may be non-ASCII since 2025-12


def fault_in_symbol(symbol: str) -> str | None:
    """Say what is wrong with a trading pair such as `BTCUSDT`, in any case; None when nothing is."""
    if _SYMBOL.fullmatch(symbol):
        return None
    bare = re.sub(r"[^\w.\-]", "", symbol)
    hint = f"; did you mean {bare.upper()}?" if bare else ""
    return f"{symbol!r} is not a symbol: letters and digits only{hint}"


def fault_in_stream_type(stream_type: str) -> str | None:
    """Say what is wrong with a stream type such as `depth@100ms`; None when nothing is."""
    if stream_type in _KNOWN_TYPES:
        return None
    return f"{stream_type!r} is not a stream type{_suggestion(stream_type, STREAM_TYPES)}"


def fault_in_stream(stream: str) -> str | None:
    """Say what is wrong with a whole stream name such as `btcusdt@aggTrade`; None when nothing is."""
    if stream in MARKET_STREAMS:
        return None
    if stream in _RETIRED:
        return f"{stream!r} was retired by the exchange on {_RETIRED[stream]}; known: {', '.join(MARKET_STREAMS)}"
    symbol, at, stream_type = stream.partition("@")
    if stream.startswith("!") or not at:
        return f"{stream!r} is not a stream name{_suggestion(stream, MARKET_STREAMS)}"
    fault = fault_in_symbol(symbol) or fault_in_stream_type(stream_type)
    if fault is None and symbol != symbol.lower():
        return f"{stream!r} would stay silent: the symbol is lower case there, {symbol.lower()}@{stream_type}"
    return fault


def stream_symbol(stream: str) -> str | None:
    """Return the symbol of a stream in upper case, None for a stream of all symbols."""
    symbol, at, _ = stream.partition("@")
    return symbol.upper() if at and symbol and not symbol.startswith("!") else None


def _suggestion(wrong: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return "; known: aggTrade, trade, depth[5|10|20][@100ms], kline_<interval>, bookTicker, ticker, miniTicker, …"
