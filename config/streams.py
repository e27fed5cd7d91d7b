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
ALLOWED_TYPES = (
    "aggTrade, trade, blockTrade, ticker, ticker_<1h|4h|1d>, miniTicker, bookTicker, avgPrice, referencePrice, "
    f"depth[5|10|20][@100ms], kline_<{'|'.join(KLINE_INTERVALS)}>[@+08:00]"
)
ALLOWED_STREAMS = f"{', '.join(MARKET_STREAMS)}, <symbol in lower case>@<type> with a type of {ALLOWED_TYPES}"
ALLOWED_SYMBOLS = "letters and digits, such as BTCUSDT"
ALLOWED_CHOICE = f"{ALLOWED_SYMBOLS}, ALL, ALL:<quote asset>, and -<symbol> to leave one out"

_RETIRED = {"!ticker@arr": "2026-03-26", "!bookTicker": "2022-12-07"}
_KNOWN_TYPES = frozenset(STREAM_TYPES)
# Letters of any script since 2025-12. The exchange's own pattern has "-", "_" and "." too, but none of its
# spot symbols does, and BTC-USDT or BTC_USDT, as other exchanges write it, would stay silent.
_SYMBOL = re.compile(r"[^\W_]{1,50}")


ALL = "ALL"
"""In a choice of symbols: everything that is traded; `ALL:USDT`: everything against that asset."""


def fault_in_choice(token: str) -> str | None:
    """Say what is wrong with a part of a choice of symbols: a symbol, `ALL`, `ALL:<quote>`, `-<symbol>`."""
    kind, colon, quote = token.partition(":")
    if kind.upper() == ALL and (colon or kind == token):
        return fault_in_symbol(quote) if colon else None
    fault = fault_in_symbol(token.removeprefix("-"))
    return fault if fault or token.upper() != f"-{ALL}" else f"{token!r} leaves nothing"


def fault_in_symbol(symbol: str) -> str | None:
    """Say what is wrong with a trading pair such as `BTCUSDT`, in any case; None when nothing is."""
    if _SYMBOL.fullmatch(symbol):
        return None
    bare = re.sub(r"[\W_]", "", symbol)
    return f"{symbol!r} is not a symbol" + (f", did you mean {bare!r}?" if _SYMBOL.fullmatch(bare) else "")


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
        return f"{stream!r} was retired by the exchange on {_RETIRED[stream]}"
    symbol, at, stream_type = stream.partition("@")
    if stream.startswith("!") or not at:
        return f"{stream!r} is not a stream name{_suggestion(stream, MARKET_STREAMS)}"
    fault = fault_in_symbol(symbol) or fault_in_stream_type(stream_type)
    if fault is None and symbol != symbol.lower():
        return f"{stream!r} would stay silent, did you mean {symbol.lower() + at + stream_type!r}?"
    return fault


def stream_symbol(stream: str) -> str | None:
    """Return the symbol of a stream in upper case, None for a stream of all symbols."""
    symbol, at, _ = stream.partition("@")
    return symbol.upper() if at and symbol and not symbol.startswith("!") else None


def _suggestion(wrong: str, known: tuple[str, ...]) -> str:
    by_lower = {name.lower(): name for name in reversed(known)}  # of names that differ by case the first is kept
    near = difflib.get_close_matches(wrong.lower(), by_lower, n=1, cutoff=0.5)
    return f", did you mean {by_lower[near[0]]!r}?" if near else ""
