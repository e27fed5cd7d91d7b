"""Faults on command: each does to the client what its name says, and says to whom."""

from __future__ import annotations

import base64
import json
import socket
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import websocket

from sandbox.exchange import Limits
from tests.exchange_fixtures import Client, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange

TEXT, BINARY = 1, 2


@pytest.fixture
def client(exchange: Exchange, connect: Callable[[str], Client]) -> Client:
    return connect(f"{exchange.ws_url}/btcusdt@trade")


def post(exchange: Exchange, path: str, /, **body: Any) -> Any:
    request = urllib.request.Request(  # noqa: S310 - our own address
        f"{exchange.control_url}/control/{path}", json.dumps(body).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - our own address
        return json.load(answer)


def test_cut_resets_tcp_at_once(exchange: Exchange, client: Client) -> None:
    assert exchange.cut() == {"fault": "cut", "connections": [1], "armed": 0}
    with pytest.raises(ConnectionResetError):
        client.text()
    eventually(lambda: not exchange.connections()[0]["open"])
    assert exchange.connections()[0]["ended_by"] == "cut"


def test_close_carries_code_and_reason(exchange: Exchange, client: Client) -> None:
    exchange.close(1, code=1012, reason="Service restart")
    assert client.close_code() == (1012, "Service restart")


def test_mute_keeps_the_connection_and_says_nothing(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(limits=Limits(ping_interval_s=0.05))
    client = connect(f"{exchange.ws_url}/btcusdt@trade")
    client.frame()
    exchange.mute(1, seconds=0.4)
    exchange.burst(5, "BTCUSDT")
    client.socket.settimeout(0.2)
    with pytest.raises(websocket.WebSocketTimeoutException):
        client.close_code()  # reads whatever comes
    client.socket.settimeout(5)
    eventually(lambda: exchange.connections()[0]["state"] == "open")
    exchange.burst(1, "BTCUSDT")
    assert client.message()["e"] == "trade"
    assert exchange.sent(1)["total"]["count"] == 1


def test_half_open_answers_nothing_not_even_a_close(exchange: Exchange, client: Client) -> None:
    exchange.half_open()
    exchange.burst(5, "BTCUSDT")
    client.socket.ping("x")
    client.socket.send_close(1000)
    client.socket.settimeout(0.3)
    with pytest.raises(websocket.WebSocketTimeoutException):
        client.frame()
    assert exchange.connections()[0]["open"]
    assert exchange.sent()["total"]["count"] == 0
    exchange.resume()
    client.socket.settimeout(5)
    assert client.close_code()[0] == 1000


def test_malformed_and_broken_text_arrive_as_they_are(exchange: Exchange, client: Client) -> None:
    exchange.malformed()
    assert client.text() == '{"e":"trade","E":17,'
    exchange.invalid_utf8()
    with pytest.raises(websocket.WebSocketPayloadException):
        client.text()
    assert exchange.connections()[0]["malformed_frames"] == 2
    assert exchange.connections()[0]["data_frames"] == 0


def test_anything_can_be_injected_in_fragments_and_binary(exchange: Exchange, client: Client) -> None:
    exchange.inject(["hello world"], fragments=4)
    assert client.text() == "hello world"
    exchange.inject([{"base64": base64.b64encode(b"\x00\xff").decode()}], opcode="binary")
    opcode, frame = client.socket.recv_data_frame()
    assert (opcode, frame.data) == (BINARY, b"\x00\xff")


@pytest.mark.parametrize(
    ("mode", "steps"),
    [
        ("missing", [0, 2, 3, 4]),
        ("repeated", [0, 1, 1, 2, 3, 4]),
        ("out_of_order", [0, 2, 1, 3, 4]),
        ("wrong", [0, 1001, 2, 3, 4]),
    ],
)
def test_ids_can_be_tampered_with(mode: str, steps: list[int], exchange: Exchange, client: Client) -> None:
    exchange.burst(1, "BTCUSDT")
    exchange.command("tamper", "btcusdt@trade", mode)
    exchange.burst(4, "BTCUSDT")
    ids = [client.message()["t"] for _ in steps]
    assert [number - ids[0] for number in ids] == steps
    assert exchange.sent(1)["total"]["count"] == len(steps)
    assert exchange.connections()[0]["tampered"] == [
        {"stream": "btcusdt@trade", "mode": mode, "ids": [ids[0] + 1]}
    ]


def test_what_was_tampered_with_is_recorded_when_the_connection_ends_before_all_of_it_was(
    exchange: Exchange, client: Client
) -> None:
    exchange.command("tamper", "btcusdt@trade", "wrong", count=3)
    exchange.burst(1, "BTCUSDT")
    number = client.message()["t"]
    exchange.cut()
    eventually(lambda: not exchange.connections()[0]["open"])
    record = exchange.connections()[0]["tampered"]
    assert record == [{"stream": "btcusdt@trade", "mode": "wrong", "ids": [number - 1000]}]


def test_a_burst_comes_at_once(exchange: Exchange, client: Client) -> None:
    assert exchange.burst(1_000, "BTCUSDT") == {"burst": 1_000, "symbol": "BTCUSDT"}
    ids = [client.message()["t"] for _ in range(1_000)]
    assert ids == list(range(ids[0], ids[0] + 1_000))
    exchange.burst(500)
    assert exchange.sent()["total"]["count"] > 1_050


def test_exact_frames_reach_the_subscribers_of_a_stream(
    exchange: Exchange, client: Client, connect: Callable[[str], Client]
) -> None:
    combined = connect(f"{exchange.stream_url}?streams=btcusdt@trade/ethusdt@trade")
    text = '{"e":"trade","t":7, "odd":  "0.1000"}'
    encoded = {"base64": base64.b64encode(b'{"t":8,"x":"\xc3\xa9"}').decode()}
    answer = post(exchange, "send", stream="btcusdt@trade", frames=[text, encoded])
    assert answer == {"sent": 2, "stream": "btcusdt@trade", "connections": [1, 2]}
    assert [client.text(), client.text()] == [text, '{"t":8,"x":"é"}']
    assert combined.text() == text
    tally = exchange.sent(1)["streams"]["btcusdt@trade"]
    assert (tally["count"], tally["first_id"], tally["last_id"]) == (2, 7, 8)
    exchange.send("ethusdt@trade", ['{"t":1}'], wrap=True)
    combined.text()
    assert combined.text() == '{"stream":"ethusdt@trade","data":{"t":1}}'


def test_a_sent_array_counts_one_frame_and_its_elements(
    exchange: Exchange, connect: Callable[[str], Client]
) -> None:
    connect(f"{exchange.ws_url}/!miniTicker@arr")
    exchange.send("!miniTicker@arr", ['[{"s":"A"},{"s":"B"}]'])
    assert exchange.sent()["total"] | {"bytes": 0} == {"count": 1, "events": 2, "bytes": 0}


def test_a_handshake_may_never_complete(exchange: Exchange) -> None:
    exchange.stall_handshake(1)
    with socket.create_connection(("127.0.0.1", exchange.port)) as waiting:
        waiting.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        waiting.settimeout(0.3)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        assert exchange.command("connections")["stalled_handshakes"] == 1
        Client(exchange.ws_url).socket.shutdown()
        exchange.disarm()
        waiting.settimeout(5)
        assert waiting.recv(1) == b""


@pytest.mark.parametrize("status", [429, 503])
def test_a_handshake_may_be_answered_with_a_status(status: int, exchange: Exchange) -> None:
    exchange.handshake_status(status, 2, retry_after_s=3)
    for _ in range(2):
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            Client(exchange.ws_url)
        assert refused.value.status_code == status
        assert refused.value.resp_headers["retry-after"] == "3"
    Client(exchange.ws_url).socket.shutdown()


def test_tcp_is_truly_refused_and_comes_back_on_the_same_port(exchange: Exchange, client: Client) -> None:
    port = exchange.port
    exchange.refuse()
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            Client(exchange.ws_url)
    exchange.burst(1, "BTCUSDT")
    assert client.message()["e"] == "trade"
    assert post(exchange, "accept") == {"accepting": True, "port": port}
    Client(exchange.ws_url).socket.shutdown()
    exchange.refuse(seconds=0.1)

    def accepted() -> bool:
        try:
            Client(exchange.ws_url).socket.shutdown()
        except ConnectionRefusedError:
            return False
        return True

    eventually(accepted)


def test_a_planned_cut_is_announced(exchange: Exchange, client: Client) -> None:
    exchange.shutdown(cut_after_s=0.05)
    assert client.message()["e"] == "serverShutdown"
    assert client.close_code() == (1001, "")


def test_data_can_be_delayed_and_throttled_and_counts_when_it_leaves(exchange: Exchange, client: Client) -> None:
    exchange.slow(delay_s=0.3)
    began = time.monotonic()
    exchange.burst(3, "BTCUSDT")
    assert exchange.sent()["total"]["count"] == 0
    client.message()
    assert time.monotonic() - began >= 0.29
    assert exchange.sent()["total"]["count"] == 3
    exchange.slow(bytes_per_s=2_000)
    began = time.monotonic()
    for _ in range(5):
        exchange.burst(1, "BTCUSDT")
    for _ in range(7):
        client.message()
    assert time.monotonic() - began > 0.2


def test_faults_can_wait_for_the_next_connections(exchange: Exchange, connect: Callable[[str], Client]) -> None:
    assert post(exchange, "close", target="next", connections=2, code=1013)["armed"] == 2
    for _ in range(2):
        assert connect(exchange.ws_url).close_code()[0] == 1013
    assert connect(exchange.ws_url).ask("LIST_SUBSCRIPTIONS")["result"] == []


def test_a_fault_can_wait_for_a_number_of_frames(exchange: Exchange, connect: Callable[[str], Client]) -> None:
    post(exchange, "after", frames=3, command="close", target="next", arguments={"code": 1012})
    client = connect(f"{exchange.ws_url}/btcusdt@trade")
    for _ in range(5):
        exchange.burst(1, "BTCUSDT")
    assert [client.message()["e"] for _ in range(3)] == ["trade"] * 3
    assert client.close_code() == (1012, "")
    assert exchange.sent()["total"]["count"] == 3


def test_a_fault_can_be_meant_for_one_connection(exchange: Exchange, connect: Callable[[str], Client]) -> None:
    first, second = connect(exchange.ws_url), connect(exchange.ws_url)
    assert post(exchange, "cut", target=2)["connections"] == [2]
    with pytest.raises(ConnectionResetError):
        second.text()
    assert first.ask("LIST_SUBSCRIPTIONS")["result"] == []


@pytest.mark.parametrize(
    ("command", "body"),
    [
        ("cut", {"target": 77}),
        ("cut", {"colour": "red"}),
        ("tamper", {"stream": "btcusdt@trade", "mode": "upside_down"}),
        ("send", {"stream": "x", "frames": [{"base64": "%"}]}),
        ("burst", {"count": 1, "symbol": "NOPE"}),
        ("status", {"status": "ASLEEP"}),
        ("replay", {"path": "/nowhere.jsonl"}),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_with_the_reason(
    command: str, body: dict[str, Any], exchange: Exchange
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(exchange, command, **body)
    with refused.value as answer:
        assert answer.code == 400
        assert json.load(answer)["error"]


def test_no_market_data_is_made_during_a_break(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(rate=2_000.0, symbols=("BTCUSDT",))
    client = connect(f"{exchange.ws_url}/btcusdt@trade")
    client.message()
    exchange.status("BREAK")
    before = exchange.sent()["total"]["count"]
    assert client.ask("LIST_SUBSCRIPTIONS")["result"] == ["btcusdt@trade"]
    assert exchange.sent()["total"]["count"] == before
    exchange.status("HALT")
    client.message()
