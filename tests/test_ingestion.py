"""The service from outside, between a plain WebSocket server, not our simulated exchange, and a real broker."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.broker_fixtures import Topics, read_all
from tests.plain_exchange import PlainExchange, trade
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.service_fixtures import ServiceProcess, StartService

    StartExchange = Callable[..., PlainExchange]

pytestmark = pytest.mark.kafka

EVENTS = 250


@pytest.fixture
def plain_exchange() -> Iterator[StartExchange]:
    with ExitStack() as stack:
        yield lambda path, **how: stack.enter_context(PlainExchange(path, EVENTS, **how))


def delivered(service: ServiceProcess) -> None:
    service.ready()
    service.wait_for(lambda: service.status()["kafka_produced"] == EVENTS, "everything delivered")


def assert_all_in_kafka(topics: Topics, service: ServiceProcess) -> None:
    """Stop the service; the broker has each trade once, in order, untouched but for the added fields."""
    assert service.stop() == 0
    assert service.final["messages_received"] == service.final["kafka_produced"] == EVENTS
    assert balanced(service.final)
    assert not service.not_json
    records = read_all(topics.bootstrap_servers, topics.trades)
    assert [record.key for record in records] == [b"BTCUSDT"] * EVENTS
    for number, record in enumerate(records):
        value = (record.value or b"").decode()
        assert value.startswith(trade(number).removesuffix("}"))
        added = list(json.loads(value))[-4:]
        assert added == ["ingestion_timestamp", "source", "event_type", "pipeline_version"]


@pytest.mark.parametrize("base", ["/ws", "/stream", "", "/ws/"])
def test_whatever_the_base_ends_in_the_combined_endpoint_is_used(
    base: str, plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    exchange = plain_exchange("/stream")
    service = start_service(f"ws://127.0.0.1:{exchange.port}{base}", topics, BINANCE_STREAMS="btcusdt@trade")
    delivered(service)
    assert_all_in_kafka(topics, service)
    assert exchange.asked == ["/stream"]
    assert [(each["method"], each["params"]) for each in exchange.requests] == [("SUBSCRIBE", ["btcusdt@trade"])]


@pytest.mark.parametrize(("path", "base"), [("/ws", "/ws"), ("/", "")])
def test_where_there_is_no_combined_endpoint_the_base_itself_is_used(
    path: str, base: str, plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    exchange = plain_exchange(path)
    service = start_service(f"ws://127.0.0.1:{exchange.port}{base}", topics, BINANCE_STREAMS="btcusdt@trade")
    delivered(service)
    assert_all_in_kafka(topics, service)
    assert exchange.asked == ["/stream", path]
    assert service.logged("combined_endpoint_missing")["instead"].endswith(f"{exchange.port}{base}")
    assert (service.final["connection_attempts"], service.final["connection_failures"]) == (1, 0)


@pytest.mark.parametrize("path", ["/ws/btcusdt@trade", "/stream?streams=btcusdt@trade"])
def test_where_only_addresses_that_name_streams_are_served_they_are_used(
    path: str, plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    exchange = plain_exchange(path, answers=False, waits=False)
    service = start_service(f"ws://127.0.0.1:{exchange.port}/ws", topics, BINANCE_STREAMS="btcusdt@trade")
    delivered(service)
    assert_all_in_kafka(topics, service)
    assert exchange.asked[:2] == ["/stream", "/ws"]
    assert exchange.asked[-1] == path
    assert (service.final["connection_attempts"], service.final["connection_failures"]) == (1, 0)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/stream", ["/stream"]),
        ("/ws", ["/stream", "/ws"]),
        ("/stream?streams=btcusdt@trade", ["/stream", "/ws", "/stream?streams=btcusdt@trade"]),
        (
            "/ws/btcusdt@trade",
            ["/stream", "/ws", "/stream?streams=btcusdt@trade", "/ws/btcusdt@trade"],
        ),
    ],
)
def test_a_path_before_the_base_is_kept_wherever_the_server_is_asked(
    path: str, asked: list[str], plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    exchange = plain_exchange(f"/fake/proxy{path}", waits=False)
    base = f"ws://127.0.0.1:{exchange.port}/fake/proxy/ws"
    service = start_service(base, topics, BINANCE_STREAMS="btcusdt@trade")
    delivered(service)
    assert_all_in_kafka(topics, service)
    assert exchange.asked == [f"/fake/proxy{each}" for each in asked]


@pytest.mark.parametrize("status", [400, 405, 410, 426, 501])
def test_where_nothing_is_served_may_be_said_in_other_words_than_404(
    status: int, plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    exchange = plain_exchange("/ws", elsewhere=status)
    service = start_service(f"ws://127.0.0.1:{exchange.port}/ws", topics, BINANCE_STREAMS="btcusdt@trade")
    delivered(service)
    assert_all_in_kafka(topics, service)
    assert exchange.asked == ["/stream", "/ws"]
    assert f"answered {status} " in service.logged("combined_endpoint_missing")["error"]


@pytest.mark.parametrize("status", [403, 418, 429, 451, 500, 503])
def test_a_refusal_of_another_kind_is_a_failed_attempt_and_no_other_address_is_asked(
    status: int, plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    exchange = plain_exchange("/ws", elsewhere=status)
    service = start_service(
        f"ws://127.0.0.1:{exchange.port}/ws",
        topics,
        BINANCE_STREAMS="btcusdt@trade",
        CONNECTION_RECONNECT_INTERVAL=0.01,
        CONNECTION_MAX_RETRIES=2,
    )
    assert service.wait() == 1
    assert exchange.asked == ["/stream", "/stream"]
    assert f"answered {status} " in service.logged("gave_up")["error"]


AS_IF_LIVE = """
import sys
from src import signals
signals.block()
import config.binance
config.binance._LIVE_HOSTS = frozenset({"127.0.0.1"})
from src.service import serve
sys.exit(serve())
"""


def test_the_live_exchange_is_not_asked_under_another_address(
    plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    """It has the combined endpoint, whatever an edge of it may answer for a moment."""
    exchange = plain_exchange("/ws", elsewhere=404)
    service = start_service(
        f"ws://127.0.0.1:{exchange.port}/ws",
        topics,
        command=("-c", AS_IF_LIVE),
        BINANCE_STREAMS="btcusdt@trade",
        CONNECTION_RECONNECT_INTERVAL=0.01,
        CONNECTION_MAX_RETRIES=2,
    )
    assert service.wait() == 1
    assert exchange.asked == ["/stream", "/stream"]


def test_where_nothing_is_there_every_attempt_fails(
    plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    exchange = plain_exchange("/elsewhere")
    service = start_service(
        f"ws://127.0.0.1:{exchange.port}/ws",
        topics,
        BINANCE_STREAMS="btcusdt@trade",
        CONNECTION_RECONNECT_INTERVAL=0.01,
        CONNECTION_MAX_RETRIES=3,
    )
    assert service.wait() == 1
    named = ["/stream?streams=btcusdt@trade", "/ws/btcusdt@trade"]
    assert exchange.asked == ["/stream", "/ws", *named] * 3
    assert "answered 404" in service.logged("gave_up")["error"]
    assert service.final["connection_failures_by_reason"] == {"not_opened": 3}


def test_data_counts_also_where_the_subscription_is_never_confirmed(
    plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    exchange = plain_exchange("/stream", answers=False)
    service = start_service(
        f"ws://127.0.0.1:{exchange.port}/ws",
        topics,
        BINANCE_STREAMS="btcusdt@trade",
        CONNECTION_TIMEOUT_SECONDS=0.5,
    )
    delivered(service)
    assert service.logged("subscription_unconfirmed")["streams"] == ["btcusdt@trade"]
    assert_all_in_kafka(topics, service)


def test_a_handshake_alone_does_not_reset_the_count_of_failures(
    plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    exchange = plain_exchange("/stream", closes="at once")
    service = start_service(f"ws://127.0.0.1:{exchange.port}/ws", topics, CONNECTION_RECONNECT_INTERVAL=0.01)
    assert service.wait() == 1
    waits = [line["delay_seconds"] for line in service.events("reconnect_scheduled")]
    assert waits == [0.01, 0.02, 0.04, 0.08]
    assert service.final["connection_attempts"] == service.final["connection_failures"] == 5


def test_the_answer_to_a_subscription_is_a_frame_and_resets_it(
    plain_exchange: StartExchange, topics: Topics, start_service: StartService
) -> None:
    exchange = plain_exchange("/stream", closes="answered")
    service = start_service(f"ws://127.0.0.1:{exchange.port}/ws", topics, CONNECTION_RECONNECT_INTERVAL=0.01)
    service.logged("reconnect_scheduled", count=8)
    assert {line["delay_seconds"] for line in service.events("reconnect_scheduled")} == {0.01}
    assert service.stop() == 0
