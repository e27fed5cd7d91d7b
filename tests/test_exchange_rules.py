"""The rules of a connection: frame budget, pings and pongs, lifetime, slow clients."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from sandbox.exchange import Limits
from sandbox.exchange.counter import CountingClient
from tests.exchange_fixtures import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange
    from tests.exchange_fixtures import Client

PONG, PING = 0xA, 0x9


@pytest.mark.parametrize("kind", ["json", "ping", "pong", "mixed"])
def test_more_than_five_frames_in_a_second_end_the_connection(
    kind: str, exchange: Exchange, connect: Callable[[str], Client]
) -> None:
    client = connect(exchange.ws_url)
    send = {
        "json": lambda: client.socket.send('{"method":"LIST_SUBSCRIPTIONS","id":1}'),
        "ping": client.socket.ping,
        "pong": client.socket.pong,
    }
    kinds = ["json", "ping", "pong"] * 2 if kind == "mixed" else [kind] * 6
    for each in kinds[:5]:
        send[each]()
    eventually(lambda: exchange.connections()[0]["client_frames"] == 5)
    assert exchange.connections()[0]["state"] == "open"
    send[kinds[5]]()
    assert client.close_code() == (1008, "Too many requests")
    assert eventually(lambda: exchange.connections()[0]["ended_by"]) == "too many requests"


def test_five_frames_a_second_are_fine(exchange: Exchange, connect: Callable[[str], Client]) -> None:
    client = connect(exchange.ws_url)
    for number in range(8):
        time.sleep(0.21)
        assert client.ask("LIST_SUBSCRIPTIONS", number=number)["id"] == number


def test_the_server_pings_with_the_time_and_a_pong_keeps_the_connection(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(
        limits=Limits(ping_interval_s=0.25, pong_timeout_s=0.4), start_ms=1_790_134_675_605
    )
    client = connect(exchange.ws_url)
    payloads = []
    while len(payloads) < 4:
        opcode, data = client.frame()  # the library answers pings
        assert opcode == PING
        payloads.append(int(data))
    assert 1_790_134_675_605 <= payloads[0] < payloads[-1] < 1_790_134_690_000
    assert exchange.connections()[0]["client_pongs"] >= 3


@pytest.mark.parametrize("unsolicited", [False, True])
def test_without_the_matching_pong_the_connection_ends(
    unsolicited: bool,  # noqa: FBT001 - a parameter of the test
    exchange_factory: Callable[..., Exchange],
) -> None:
    exchange = exchange_factory(limits=Limits(ping_interval_s=0.05, pong_timeout_s=0.3))
    client = CountingClient(exchange.ws_url)
    client.answers_pings = False
    if unsolicited:
        client.send(PONG, b"")
    assert client.drain(5).close_code == 1008
    assert client.counted.close_reason == b"Pong timeout"
    client.close()
    eventually(lambda: not exchange.connections()[0]["open"])
    assert exchange.connections()[0]["ended_by"] == "pong timeout"


def test_a_lifetime_ends_after_an_announcement(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(limits=Limits(lifetime_s=0.4, shutdown_notice_s=0.2))
    raw, combined = connect(exchange.ws_url), connect(exchange.stream_url)
    announced = raw.message()
    assert list(announced) == ["e", "E"]
    assert announced["e"] == "serverShutdown"
    wrapped = combined.message()
    assert (wrapped["stream"], wrapped["data"]["e"]) == ("!serverShutdown", "serverShutdown")
    assert raw.close_code()[0] == combined.close_code()[0] == 1001
    eventually(lambda: [each["ended_by"] for each in exchange.connections()] == ["lifetime"] * 2)


def test_a_client_that_does_not_read_is_closed_and_counted(exchange_factory: Callable[..., Exchange]) -> None:
    exchange = exchange_factory(limits=Limits(unsent_bytes=200_000, close_timeout_s=0.3), symbols=("BTCUSDT",))
    client = CountingClient(f"{exchange.ws_url}/btcusdt@trade", receive_buffer=4096)
    for _ in range(200):
        exchange.burst(2_000, "BTCUSDT")
        if exchange.connections()[0]["state"] != "open":
            break
    closed = exchange.connections()[0]
    assert (closed["ended_by"], closed["close_sent"]) == ("slow client", 1008)
    client.close()


def test_by_the_waiting_policy_nothing_is_lost_and_memory_stays_bounded(
    exchange_factory: Callable[..., Exchange],
) -> None:
    limits = Limits(slow_client="wait", pong_timeout_s=3600)
    exchange = exchange_factory(rate=60_000.0, symbols=("BTCUSDT",), limits=limits)
    client = CountingClient(f"{exchange.ws_url}/btcusdt@trade/btcusdt@aggTrade", receive_buffer=4096)
    eventually(lambda: exchange.command("connections")["skipped_ms"] > 100)
    assert exchange.core.sessions[1].outbox.backlog < 4_000_000
    client.send_close()
    assert client.drain(20).close_code == 1000
    client.close()
    assert client.counted.frames == exchange.sent(1)["total"]["count"]
    trades = exchange.sent(1)["streams"]["btcusdt@trade"]
    assert trades["last_id"] - trades["first_id"] + 1 == trades["count"]
