"""The peer that a user would take: cryptofeed with its Kafka backend, pointed at the load generator.

Runs in its own virtual environment (see `peer_venv`), takes BINANCE_WS_BASE_URL, BINANCE_REST_BASE_URL,
KAFKA_BOOTSTRAP_SERVERS, PEER_TOPIC_PREFIX and PEER_CHANNELS. Everything is cryptofeed's own; three things are
set: its addresses (it insists on wss://, so the scheme is put right just before it connects), open candles are
kept, and its books are not written out in full every 1,000 updates (that would be more records than frames). It
asks Kafka for acks=all, as the others here do. Its Kafka backend waits for the acknowledgement of each record
before it sends the next; that is how it is written.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

# Not installed beside the service: benchmarks/peer_venv.py gives it an environment of its own.
from cryptofeed import FeedHandler  # type: ignore[import-not-found]
from cryptofeed.backends.kafka import (  # type: ignore[import-not-found]
    BookKafka,
    CandlesKafka,
    TickerKafka,
    TradeKafka,
)
from cryptofeed.connection import RestEndpoint, Routes, WebsocketEndpoint  # type: ignore[import-not-found]
from cryptofeed.defines import CANDLES, L2_BOOK, TICKER, TRADES  # type: ignore[import-not-found]
from cryptofeed.exchanges import Binance  # type: ignore[import-not-found]

SYMBOLS = ["BTC-USDT", "ETH-USDT", "BNB-USDT", "ADA-USDT", "XRP-USDT"]
BACKENDS: dict[str, tuple[Any, str, dict[str, int]]] = {
    "aggTrade": (TRADES, "trades", {}),
    "depth": (L2_BOOK, "book", {"snapshot_interval": 10**9}),
    "kline": (CANDLES, "candles", {}),
    "bookTicker": (TICKER, "ticker", {}),
}
CLASSES = {"trades": TradeKafka, "book": BookKafka, "candles": CandlesKafka, "ticker": TickerKafka}
LISTENER = os.environ["BINANCE_WS_BASE_URL"].removesuffix("/ws")
SECURE = LISTENER.replace("ws://", "wss://")


class LocalBinance(Binance):  # type: ignore[misc]  # no types
    """cryptofeed's Binance at other addresses."""

    websocket_endpoints = (WebsocketEndpoint(SECURE),)
    rest_endpoints = (
        RestEndpoint(
            os.environ["BINANCE_REST_BASE_URL"],
            routes=Routes("/api/v3/exchangeInfo", l2book="/api/v3/depth?symbol={}&limit={}"),
        ),
    )

    def connect(self) -> Any:  # noqa: ANN401 - cryptofeed's own list of tuples
        """Return the connections of cryptofeed, without TLS."""
        connections = super().connect()
        for connection, *_ in connections:
            connection.address = connection.address.replace(SECURE, LISTENER)
        return connections


def backend(kind: str) -> tuple[Any, Any]:
    """Return cryptofeed's channel and a Kafka backend for it."""
    channel, name, options = BACKENDS[kind]
    topic_prefix = os.environ["PEER_TOPIC_PREFIX"] + name
    servers = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
    return channel, CLASSES[name](key=topic_prefix, bootstrap_servers=servers, acks="all", **options)


def main() -> None:
    """Run until SIGTERM, which cryptofeed takes as its end."""
    callbacks = dict(backend(kind) for kind in os.environ["PEER_CHANNELS"].split(","))
    handler = FeedHandler()
    asyncio.set_event_loop(asyncio.new_event_loop())  # it expects one to be there; recent uvloops make none
    feed = LocalBinance(
        symbols=SYMBOLS,
        channels=list(callbacks),
        callbacks=callbacks,
        candle_closed_only=False,
        config=handler.config,
    )
    handler.add_feed(feed)
    handler.run()


if __name__ == "__main__":
    main()
