"""The real process with rotation and standby under load: Kafka holds what the market did, each event once."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.broker_fixtures import read_all
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange
    from tests.broker_fixtures import Topics
    from tests.service_fixtures import ServiceProcess, StartService

pytestmark = pytest.mark.kafka

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT")
QUICK = {"CONNECTION_RECONNECT_INTERVAL": 0.1, "CONNECTION_MAX_RETRIES": 0}


@pytest.fixture
def market(exchange_factory: Callable[..., Exchange]) -> Exchange:
    """Start a market at 2,000 messages a second."""
    return exchange_factory(rate=2_000, symbols=SYMBOLS)


def started(market: Exchange, topics: Topics, start_service: StartService, **variables: object) -> ServiceProcess:
    service = start_service(
        market.ws_url,
        topics,
        BINANCE_SYMBOLS=",".join(SYMBOLS),
        BINANCE_STREAM_TYPES="trade,aggTrade,depth@100ms",
        BINANCE_REST_BASE_URL=market.rest_url,
        **(QUICK | variables),
    )
    service.ready()
    return service


def whole(market: Exchange) -> list[int]:
    """Return the ids of the connections that are open and subscribed to everything."""
    return [each["id"] for each in market.connections() if each["open"] and len(each["subscriptions"]) == 9]


def assert_each_once_and_in_order(topics: Topics) -> None:
    """Check that the ids of each stream step by one, as they lie in Kafka."""
    streams: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for record in read_all(topics.bootstrap_servers, topics.trades, topics.depth):
        event = json.loads(record.value or b"")
        kind = event["event_type"]
        if kind == "depth_snapshot":
            continue
        first, last = {"trade": ("t", "t"), "aggregate_trade": ("a", "a"), "depth_update": ("U", "u")}[kind]
        streams[kind, event["s"]].append((event[first], event[last]))
    assert len(streams) == 3 * len(SYMBOLS)
    for stream, ids in streams.items():
        assert [pair for pair in pairwise(ids) if pair[1][0] != pair[0][1] + 1] == [], stream


def test_rotation_under_load_leaves_each_event_in_kafka_once_and_in_order(
    market: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = started(market, topics, start_service, CONNECTION_ROTATE_AFTER_SECONDS=1)
    service.wait_for(lambda: service.status()["rotations"] >= 4, "four rotations", within=30)
    assert service.status()["connected"]
    assert service.stop() == 0
    assert service.final["connection_failures"] == 0
    assert service.final["messages_duplicate"] > 0
    assert service.final["messages_backfilled"] == service.final["snapshots_taken"]
    assert balanced(service.final)
    assert_each_once_and_in_order(topics)


def test_a_standby_saves_what_a_cut_connection_loses(
    market: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = started(market, topics, start_service, CONNECTION_STANDBY="true")
    for cuts in (1, 2, 3):
        service.wait_for(lambda: len(whole(market)) == 2, "two connections")
        doubled = service.status()["messages_duplicate"]
        service.wait_for(
            lambda doubled=doubled: service.status()["messages_duplicate"] > doubled + 200, "both bring events"
        )
        market.cut(whole(market)[0])
        service.logged("connection_lost", count=cuts)
        assert service.status()["connected"]
    assert service.stop() == 0
    assert service.final["connection_failures"] == 3
    assert balanced(service.final)
    assert_each_once_and_in_order(topics)
