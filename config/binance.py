"""The section BINANCE_: what is read from the exchange, and where."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import field_validator
from pydantic_settings import SettingsConfigDict

from config import streams as names
from config.section import Names, Seconds, Section, listed

_LIVE_HOSTS = frozenset(
    (
        *("stream.binance.com", "data-stream.binance.vision"),
        *("api.binance.com", "api-gcp.binance.com", "data-api.binance.vision"),
        *(f"api{number}.binance.com" for number in range(1, 5)),
    )
)
"""Where Binance's live market is, by its documentation; its testnet and its demo mode are elsewhere."""
_PATH = re.compile(r"[A-Za-z0-9/._~%+-]*")


class BinanceConfig(Section):
    """What is read from the exchange, and where."""

    prefix = "BINANCE_"
    model_config = SettingsConfigDict(env_prefix="BINANCE_")

    symbols: Names = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "ADAUSDT", "XRPUSDT")
    stream_types: Names = ("aggTrade", "depth@100ms", "trade", "kline_1m")
    streams: Names = ()
    ws_base_url: str = "wss://stream.binance.com:9443/ws"
    rest_base_url: str = "https://api.binance.com"
    listing_interval_seconds: Seconds = 86_400.0

    _split = field_validator("symbols", "stream_types", "streams", mode="before")(listed)

    @field_validator("symbols")
    @classmethod
    def _check_symbols(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        _refuse([names.fault_in_choice(symbol) for symbol in symbols], names.ALLOWED_CHOICE)
        left_out = {symbol.upper() for symbol in symbols if symbol.startswith("-")}
        if all(symbol.startswith("-") or f"-{symbol.upper()}" in left_out for symbol in symbols):
            raise ValueError(f"must name at least one symbol: {names.ALLOWED_CHOICE}")
        return tuple(dict.fromkeys(symbol.upper() for symbol in symbols))

    @field_validator("stream_types")
    @classmethod
    def _check_stream_types(cls, stream_types: tuple[str, ...]) -> tuple[str, ...]:
        _refuse([names.fault_in_stream_type(stream_type) for stream_type in stream_types], names.ALLOWED_TYPES)
        if not stream_types:
            raise ValueError(f"must name at least one stream type: {names.ALLOWED_TYPES}")
        return stream_types

    @field_validator("streams")
    @classmethod
    def _check_streams(cls, streams: tuple[str, ...]) -> tuple[str, ...]:
        _refuse([names.fault_in_stream(stream) for stream in streams], names.ALLOWED_STREAMS)
        return streams

    @field_validator("ws_base_url")
    @classmethod
    def _check_ws_base_url(cls, url: str) -> str:
        if not _PATH.fullmatch(_checked_url(url, ("ws", "wss")).path):
            raise ValueError(
                "must be an address that may end in /ws or /stream, its path of letters, digits and . _ ~ % + -; "
                "streams go into BINANCE_STREAMS"
            )
        return url

    @field_validator("rest_base_url")
    @classmethod
    def _check_rest_base_url(cls, url: str) -> str:
        _checked_url(url, ("http", "https"))
        url = url.rstrip("/")
        for ending in ("/api", "/api/v3"):
            if url.endswith(ending):
                base = url.removesuffix(ending)
                raise ValueError(f"must not end in {ending}: write {base}; the service appends /api/v3 itself")
        return url

    @property
    def fallback_url(self) -> str | None:
        """Where to go when a server has no combined endpoint: the base itself; None for the live exchange's hosts.

        They have one, so that an answer to the contrary is a passing failure.
        """
        return None if urlsplit(self.ws_base_url).hostname in _LIVE_HOSTS else self.ws_base_url

    @property
    def half_live(self) -> bool:
        """Whether only one of the two addresses is the live exchange's: REST would then tell of another market."""
        hosts = (urlsplit(url).hostname for url in (self.ws_base_url, self.rest_base_url))
        return sum(host in _LIVE_HOSTS for host in hosts) == 1

    @property
    def needs_listing(self) -> bool:
        """Whether only the exchange can tell which symbols are meant."""
        return not self.streams and any(symbol.split(":")[0] == names.ALL for symbol in self.symbols)

    def stream_names(self, symbols: tuple[str, ...]) -> tuple[str, ...]:
        """Every stream to subscribe to: `streams` when given, else every one of these symbols with every type."""
        return self.streams or tuple(
            f"{symbol.lower()}@{stream_type}" for symbol in symbols for stream_type in self.stream_types
        )

    def named_streams(self) -> tuple[str, ...]:
        """Every stream that can be told without the exchange."""
        excluded = {symbol[1:] for symbol in self.symbols if symbol.startswith("-")}
        named = (symbol for symbol in self.symbols if symbol.split(":")[0] != names.ALL)
        return self.stream_names(
            tuple(symbol for symbol in named if not symbol.startswith("-") and symbol not in excluded)
        )

    def combined_url(self) -> str:
        """Return the exchange's combined endpoint: only there each frame names its stream.

        What stands before `/ws` or `/stream`, as a proxy may want it, stays.
        """
        parts = urlsplit(self.ws_base_url)
        before = re.sub(r"/(?:ws|stream)$", "", parts.path.rstrip("/")).rstrip("/")
        return f"{parts.scheme}://{parts.netloc}{before}/stream"


def _refuse(faults: list[str | None], allowed: str) -> None:
    found = [fault for fault in faults if fault]
    if found:
        raise ValueError(f"{'; '.join(found)}; allowed: {allowed}")


def _checked_url(url: str, schemes: tuple[str, ...]) -> Any:  # noqa: ANN401 - SplitResult, see urlsplit
    allowed = " or ".join(f"{scheme}://host[:port]" for scheme in schemes)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        usable = usable and not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"must be a URL like {allowed}, without user, query or fragment")
    return parts
