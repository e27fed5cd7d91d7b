"""The exchange's own record is exact: what it says it sent is what a client can read."""

from __future__ import annotations

import json
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.exchange.counter import CountingClient
from tests.exchange_fixtures import ExchangeProcess, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.exchange import Exchange
    from tests.exchange_fixtures import Client

ALL = "btcusdt@trade/btcusdt@aggTrade/btcusdt@depth@100ms/btcusdt@bookTicker/btcusdt@kline_1s"


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
        return json.load(answer)


@pytest.fixture
def busy(exchange_process: Callable[..., ExchangeProcess]) -> Iterator[dict[str, Any]]:
    process = exchange_process("--rate", "20000", "--symbols", "BTCUSDT")
    yield process.started
    assert process.stop() == 0


def test_a_client_that_closes_under_load_has_read_exactly_what_was_counted(busy: dict[str, Any]) -> None:
    for round_ in range(1, 21):
        client = CountingClient(f"{busy['stream']}?streams={ALL}")
        while client.counted.frames < 100 * round_:
            assert client.read()
        client.send_close(1000)
        counted = client.drain(10)
        client.close()
        assert counted.close_code == 1000
        record = read(f"{busy['control']}/control/connections")["connections"][round_ - 1]
        assert record["data_frames"] == counted.frames
        assert record["data_bytes"] + 100 < counted.size  # the combined wrapper comes on top


def test_after_the_close_frame_nothing_follows(busy: dict[str, Any]) -> None:
    client = CountingClient(f"{busy['ws']}/{ALL}")
    while client.counted.frames < 2_000:
        assert client.read()
    client.send_close(1001)
    frames = client.drain(10).frames
    assert client.counted.close_code == 1001
    while client.read(0.2):
        pass
    assert client.counted.ended
    assert client.counted.frames == frames
    client.close()


def test_two_clients_at_once_are_counted_apart_and_together(busy: dict[str, Any]) -> None:
    clients = [CountingClient(f"{busy['ws']}/{streams}") for streams in (ALL, "btcusdt@trade")]

    def use(client: CountingClient) -> None:
        while client.counted.frames < 5_000 and client.read():
            pass
        client.send_close()
        client.drain(10)
        client.close()

    threads = [threading.Thread(target=use, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    counts = [read(f"{busy['control']}/control/sent?connection={n}")["total"]["count"] for n in (1, 2)]
    assert counts == [client.counted.frames for client in clients]
    whole = read(f"{busy['control']}/control/sent")
    assert whole["total"]["count"] == sum(counts)
    assert whole["kinds"]["trade"]["count"] == whole["streams"]["btcusdt@trade"]["count"]


def test_first_and_last_ids_and_counts_are_those_on_the_wire(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(rate=3_000.0, symbols=("BTCUSDT",))
    client = connect(f"{exchange.stream_url}?streams={ALL}")
    fields = {"trade": "t", "aggTrade": "a", "bookTicker": "u", "depth@100ms": "u"}
    messages = [client.message() for _ in range(1_500)]
    client.socket.send_close(1000)
    while True:
        opcode, data = client.frame()
        if opcode == 8:
            break
        if opcode == 1:
            messages.append(json.loads(data))
    sent = exchange.sent(1)["streams"]
    for label, field in fields.items():
        stream = f"btcusdt@{label}"
        ids = [message["data"][field] for message in messages if message["stream"] == stream]
        tally = sent[stream]
        assert (tally["count"], tally["last_id"]) == (len(ids), ids[-1])
        if label == "depth@100ms":
            first = next(message["data"]["U"] for message in messages if message["stream"] == stream)
            assert tally["first_id"] == first
        else:
            assert tally["first_id"] == ids[0]
    assert sum(tally["count"] for tally in sent.values()) == len(messages)


def test_a_connection_is_described(exchange: Exchange, connect: Callable[[str], Client]) -> None:
    client = connect(f"{exchange.stream_url}?streams=btcusdt@trade")
    exchange.burst(3, "BTCUSDT")
    exchange.malformed()
    for _ in range(3):
        client.message()
    client.text()
    client.ask("LIST_SUBSCRIPTIONS")
    client.socket.send_close(1000)
    assert client.close_code()[0] == 1000
    client.socket.shutdown()
    eventually(lambda: not exchange.connections()[0]["open"])
    record = exchange.connections()[0]
    told = {
        "id": 1, "open": False, "combined": True, "close_sent": 1000, "close_received": 1000,
        "ended_by": "client close", "subscriptions": ["btcusdt@trade"], "data_frames": 3, "events": 3,
        "malformed_frames": 1, "control_frames": 1, "client_frames": 2,
    }  # fmt: skip
    assert {key: record[key] for key in told} == told


@pytest.mark.parametrize(("stream", "name"), [("trade", "t"), ("aggTrade", "a")])
def test_the_record_holds_what_the_market_has_traded_whoever_was_connected(
    exchange: Exchange, connect: Callable[[str], Client], stream: str, name: str
) -> None:
    client = connect(f"{exchange.stream_url}?streams=btcusdt@{stream}")
    exchange.burst(3, "BTCUSDT")
    came = [client.message()["data"] for _ in range(3)]
    exchange.cut()
    exchange.burst(4, "BTCUSDT")
    events = exchange.command("history", "BTCUSDT", stream, came[0][name])["events"]
    assert events[:3] == came
    assert [event[name] for event in events] == list(range(came[0][name], came[0][name] + 7))
    assert exchange.command("market")["BTCUSDT"][stream] == events[-1][name]


def test_the_record_is_asked_over_http_as_well(exchange: Exchange) -> None:
    exchange.burst(3, "BTCUSDT")
    control = f"{exchange.control_url}/control"
    newest = read(f"{control}/market")["BTCUSDT"]
    history = read(f"{control}/history?symbol=BTCUSDT&stream=trade&first={newest['trade'] - 1}")["events"]
    assert [event["t"] for event in history] == [newest["trade"] - 1, newest["trade"]]
    book = read(f"{control}/book?symbol=BTCUSDT&levels=5")
    assert book == exchange.command("book", "BTCUSDT", 5)
    assert book["lastUpdateId"] == newest["depth"]
    assert len(book["bids"]) == len(book["asks"]) == 5
