"""Control messages of clients: acks, lists, properties, errors, and what is silently accepted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.exchange import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange
    from tests.exchange_fixtures import Client

UNKNOWN_METHOD = (
    "Invalid request: unknown variant `FOO`, expected one of `SUBSCRIBE`, `UNSUBSCRIBE`, `LIST_SUBSCRIPTIONS`, "
    "`SET_PROPERTY`, `GET_PROPERTY`"
)
PATIENT = {"limits": Limits(frames_per_second=1000)}


@pytest.fixture
def client(exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]) -> Client:
    return connect(exchange_factory(**PATIENT).stream_url)


def test_subscriptions_are_acked_listed_and_taken_back(client: Client) -> None:
    streams = ["btcusdt@aggTrade", "btcusdt@depth@100ms"]
    assert client.ask("SUBSCRIBE", streams, 312) == {"result": None, "id": 312}
    assert client.ask("LIST_SUBSCRIPTIONS", number=3) == {"result": streams, "id": 3}
    assert client.ask("UNSUBSCRIBE", ["btcusdt@aggTrade", "never@subscribed"], 4) == {"result": None, "id": 4}
    assert client.ask("LIST_SUBSCRIPTIONS", number=5)["result"] == streams[1:]


def test_acks_are_written_as_the_exchange_writes_them(client: Client) -> None:
    client.socket.send('{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1}')
    assert client.text() == '{"result":null,"id":1}'


def test_combined_is_a_property_that_can_be_flipped(exchange: Exchange, connect: Callable[[str], Client]) -> None:
    client = connect(f"{exchange.ws_url}/btcusdt@trade")
    assert client.ask("GET_PROPERTY", ["combined"], 2) == {"result": False, "id": 2}
    assert client.ask("SET_PROPERTY", ["combined", True], 5) == {"result": None, "id": 5}
    exchange.burst(1, "BTCUSDT")
    assert client.message()["stream"] == "btcusdt@trade"
    assert client.ask("SET_PROPERTY", ["combined", False], 6) == {"result": None, "id": 6}
    exchange.burst(1, "BTCUSDT")
    assert client.message()["e"] == "trade"


@pytest.mark.parametrize(
    "name",
    [
        "nopeusdt@trade",
        "BTCUSDT@trade",
        "btcusdt@depth@50ms",
        "btcusdt@depth30",
        "btcusdt@kline_1D",
        "!ticker@arr",
    ],
)
def test_a_stream_that_does_not_exist_is_acked_listed_and_silent(
    name: str, exchange: Exchange, connect: Callable[[str], Client]
) -> None:
    client = connect(exchange.ws_url)
    client.subscribe(name, "btcusdt@trade")
    assert client.ask("LIST_SUBSCRIPTIONS")["result"] == [name, "btcusdt@trade"]
    exchange.burst(20, "BTCUSDT")
    assert {client.message()["e"] for _ in range(20)} == {"trade"}
    assert list(exchange.sent()["streams"]) == ["btcusdt@trade"]


ERRORS = [
    ({"method": "FOO"}, 2, UNKNOWN_METHOD),
    ({"params": []}, 2, "Invalid request: missing field `method` at line 1 column 24"),
    ({"method": "GET_PROPERTY", "params": [3]}, 2, "Invalid request: property name must be a string"),
    ({"method": "GET_PROPERTY", "params": ["colour"]}, 0, "Unknown property"),
    ({"method": "GET_PROPERTY", "params": ["combined", 1]}, 2, "Invalid request: too many parameters"),
    ({"method": "SET_PROPERTY", "params": ["combined", 1]}, 1, "Invalid value type: expected Boolean"),
    ({"method": "SUBSCRIBE", "params": "x"}, 2, "Invalid request: params must be an array of stream names"),
]


@pytest.mark.parametrize(("request_", "code", "message"), ERRORS)
def test_errors_are_nested_and_keep_the_connection(
    request_: dict[str, Any], code: int, message: str, client: Client
) -> None:
    client.socket.send(json.dumps(request_ | {"id": 20}))
    assert client.message() == {"error": {"code": code, "msg": message}, "id": 20}
    assert client.ask("LIST_SUBSCRIPTIONS")["result"] == []


@pytest.mark.parametrize("number", [None, -1, 2**63 - 1, "abc123"])
def test_ids_may_be_integers_short_texts_or_null(number: Any, client: Client) -> None:
    assert client.ask("LIST_SUBSCRIPTIONS", number=number) == {"result": [], "id": number}


@pytest.mark.parametrize("number", [1.5, True, "a" * 37, "with space", 2**63, []])
def test_other_ids_are_refused(number: Any, client: Client) -> None:
    refused = client.ask("LIST_SUBSCRIPTIONS", number=number)
    message = "Invalid request: request ID must be an unsigned integer"
    assert refused == {"error": {"code": 2, "msg": message}, "id": None}


@pytest.mark.parametrize("text", ["hello", "[1]", '{"method":', "7"])
def test_text_that_is_no_request_ends_the_connection(text: str, client: Client) -> None:
    client.socket.send(text)
    assert client.close_code() == (1008, "Invalid request")


def test_no_connection_holds_more_streams_than_allowed(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    limits = Limits(frames_per_second=1000)
    exchange = exchange_factory(limits=limits)
    client = connect(exchange.ws_url)
    names = [f"s{number}@trade" for number in range(1025)]
    for start in range(0, 1000, 200):
        client.subscribe(*names[start : start + 200])
    client.subscribe(*names[1000:1024])
    refused = client.ask("SUBSCRIBE", names[1024:])
    assert refused == {"error": {"code": 4, "msg": "Too many subscriptions"}, "id": 1}
    client.subscribe(*names[:10])
    assert len(client.ask("LIST_SUBSCRIPTIONS")["result"]) == 1024


def test_a_url_with_too_many_streams_ends_the_connection(
    exchange: Exchange, connect: Callable[[str], Client]
) -> None:
    client = connect(exchange.ws_url + "".join(f"/s{number}@trade" for number in range(1025)))
    assert client.close_code() == (1008, "Too many subscriptions")


def test_a_long_subscribe_frame_is_not_answered_and_does_not_subscribe(client: Client) -> None:
    def request(length: int) -> str:
        bare = json.dumps({"method": "SUBSCRIBE", "params": ["btcusdt@trade", ""], "id": 9})
        return bare.replace('""', '"' + "x" * (length - len(bare)) + '"')

    client.socket.send(request(4089))
    assert client.ask("LIST_SUBSCRIPTIONS", number=10) == {"result": [], "id": 10}
    client.socket.send(request(4088))
    assert client.message() == {"result": None, "id": 9}


def test_a_client_may_ping_and_gets_its_payload_back(client: Client) -> None:
    client.socket.ping("abc")
    opcode, data = client.frame()
    assert (opcode, data) == (0xA, b"abc")
