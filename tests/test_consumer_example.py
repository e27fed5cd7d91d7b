"""consumer_example.py against real brokers, as the process that a user starts, and its lines as functions."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaProducer

from consumer_example import main
from sandbox.brokers import free_port
from src.consumer_events import Event, decode, describe, line_of, readable_ms
from src.consumer_statistics import Ids, Latencies, Statistics
from tests.broker_fixtures import Topics, create_topics, fresh_topics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.brokers import Broker

ROOT = Path(__file__).parents[1]
LIMIT = 60.0
NOW = 1_700_000_000_500


def trade(number: int, symbol: str = "BTCUSDT", **fields: object) -> dict[str, Any]:
    event = {
        "e": "trade",
        "E": NOW - 500,
        "s": symbol,
        "t": number,
        "p": "61837.63000000",
        "q": "0.0200",
        "m": True,
    }
    added = {"ingestion_timestamp": NOW - 400, "source": "binance_websocket", "event_type": "trade"}
    return event | fields | added


def as_json(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def event(event_type: str, **fields: object) -> Event:
    decoded = decode(b"BTCUSDT", as_json(fields | {"event_type": event_type}), NOW)
    assert decoded is not None
    return decoded


def send(topics: Topics, topic: str, *values: bytes, key: bytes = b"BTCUSDT") -> None:
    producer = KafkaProducer(bootstrap_servers=topics.bootstrap_servers)
    try:
        for sent in [producer.send(topic, value, key=key) for value in values]:
            sent.get(timeout=20)
    finally:
        producer.close()


@contextmanager
def started(
    topics: Topics, *arguments: str, stdout: int = subprocess.PIPE, **more: str
) -> Iterator[subprocess.Popen[str]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
    process = subprocess.Popen(
        [sys.executable, ROOT / "consumer_example.py", *arguments],
        cwd=ROOT / "tests",  # where no .env of the user is
        env=inherited | topics.environment | {"FORCE_COLOR": "1"} | more,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def run(topics: Topics, *arguments: str) -> tuple[int, str, str]:
    with started(topics, *arguments) as process:
        out, err = process.communicate(timeout=LIMIT)
        assert "Traceback" not in err
        assert "\x1b" not in out + err
        return process.returncode, out, err


def fresh_group() -> str:
    return f"group-{uuid.uuid4().hex[:12]}"


@pytest.mark.kafka
def test_json_lines_are_the_values_as_they_are_in_kafka(topics: Topics) -> None:
    values = [as_json(trade(number)) for number in range(20)]
    send(topics, topics.trades, *values)
    send(topics, topics.depth, as_json(trade(1, "ETHUSDT")), key=b"ETHUSDT")
    code, out, err = run(
        topics, "--json", "--from-beginning", "--max-messages=20", "--symbols=btcusdt", f"--group={fresh_group()}"
    )
    assert (code, out.encode().splitlines()) == (0, values)
    assert "20 events" in err
    assert "BTCUSDT trade" in err
    assert "contiguous" in err


@pytest.mark.kafka
def test_a_group_goes_on_where_it_ended(topics: Topics) -> None:
    values = [as_json(trade(number)) for number in range(10)]
    send(topics, topics.trades, *values)
    group = f"--group={fresh_group()}"
    seen = run(topics, "--json", "--from-beginning", "--max-messages=4", group)[1]
    send(topics, topics.trades, as_json(trade(10)))
    seen += run(topics, "--json", "--max-messages=7", group)[1]
    assert [json.loads(line)["t"] for line in seen.splitlines()] == list(range(11))


@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_shows_what_comes_and_ends_on_a_signal_with_statistics(topics: Topics, number: signal.Signals) -> None:
    send(topics, topics.trades, as_json(trade(1)))
    with started(topics, "--topics=trades", f"--group={fresh_group()}") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == f"reading 3 partitions of {topics.trades}\n"
        send(topics, topics.trades, as_json(trade(2)), b"no JSON", as_json(trade(5)))
        assert "BTCUSDT   trade           SELL 61837.63000000 x 0.0200  #2" in process.stdout.readline()
        assert "#5" in process.stdout.readline()
        process.send_signal(number)
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert "2 events" in out
    assert "1 malformed" in out
    assert "2 missing" in out
    assert err == f"malformed value at {where_malformed(err)}: b'no JSON'\n"


def where_malformed(err: str) -> str:
    return err.removeprefix("malformed value at ").partition(": ")[0]


@pytest.mark.kafka
def test_topics_may_come_later(broker: Broker) -> None:
    late = f"late-{uuid.uuid4().hex[:8]}"
    nothing = Topics("none", "none", "none", broker.bootstrap_servers)
    arguments = (f"--topics={late}", "--from-beginning", "--json", "--max-messages=1", f"--group={fresh_group()}")
    with started(nothing, *arguments) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"not there yet: {late}")
        create_topics(broker.bootstrap_servers, [late])
        send(nothing, late, as_json(trade(1)))
        out, _ = process.communicate(timeout=LIMIT)
    assert (process.returncode, out.encode()) == (0, as_json(trade(1)) + b"\n")


@pytest.mark.kafka
def test_a_reader_that_goes_away_ends_it(topics: Topics) -> None:
    send(topics, topics.trades, *[as_json(trade(number)) for number in range(3000)])
    with started(topics, "--from-beginning", f"--group={fresh_group()}") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(LIMIT) == 0
        assert "rror" not in process.stderr.read()


@pytest.mark.kafka
def test_lines_are_cut_to_a_narrow_terminal(topics: Topics) -> None:
    values = [as_json(trade(number)) for number in range(3)]
    send(topics, topics.trades, *values)
    ours, theirs = pty.openpty()
    try:
        arguments = ("--from-beginning", "--max-messages=3", f"--group={fresh_group()}")
        with started(topics, *arguments, stdout=theirs, COLUMNS="40") as process:
            assert process.wait(LIMIT) == 0
    finally:
        os.close(theirs)
        shown = os.read(ours, 65_536).decode()
        os.close(ours)
    lines = [line for line in shown.splitlines() if "BTCUSDT   trade" in line]
    assert len(lines) == 3
    assert all("SELL" not in line and "\x1b[31m" in line for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped_while_it_connects(number: signal.Signals) -> None:
    with started(Topics("raw", "trades", "depth", f"127.0.0.1:{free_port()}"), "--wait=50") as process:
        wait_until_it_takes_signals(process)
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")


def wait_until_it_takes_signals(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT
    caught = 0
    while not caught & (1 << (signal.SIGTERM - 1)):
        assert time.monotonic() < deadline
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        time.sleep(0.01)


def test_no_broker_is_one_clear_line() -> None:
    nowhere = Topics("raw", "trades", "depth", f"127.0.0.1:{free_port()}")
    code, out, err = run(nowhere, "--wait=0.5")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"consumer_example: no connection to Kafka at {nowhere.bootstrap_servers}: ")
    assert "refused; check KAFKA_BOOTSTRAP_SERVERS" in line


def test_a_wrong_configuration_is_one_line_a_fault() -> None:
    code, out, err = run(Topics("raw events", "trades", "depth", "nonsense"))
    assert (code, out) == (2, "")
    assert [line.partition("=")[0] for line in err.splitlines()] == [
        "KAFKA_BOOTSTRAP_SERVERS",
        "KAFKA_TOPIC_RAW_EVENTS",
    ]


@pytest.mark.parametrize("wrong", ["--max-messages=0", "--seconds=inf", "--symbols=,", "--topics="])
def test_a_wrong_command_line_is_refused(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([wrong])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (event("trade", t=7, p="1.10", q="2.0", m=True, a=1, b=2), "SELL 1.10 x 2.0  #7"),
        (event("aggregate_trade", a=9, p="1.10", q="2.0", m=False, f=5, l=8), "BUY  1.10 x 2.0  #9 (4 trades)"),
        (
            event("depth_update", U=4, u=6, b=[["9", "1"], ["10", "0.0"]], a=[["12", "3"], ["11", "2"]]),
            "bid 9 x 1  ask 11 x 2  2+2 levels  4..6",
        ),
        (event("depth_update", U=4, u=6, b=[], a=[]), "bid - x -  ask - x -  0+0 levels  4..6"),
        (
            event("partial_depth", lastUpdateId=3, bids=[["9", "1"]], asks=[["11", "2"]]),
            "bid 9 x 1  ask 11 x 2  1+1 levels  #3",
        ),
        (
            event("kline", k={"i": "1m", "x": True, "o": "1", "h": "4", "l": "0", "c": "2", "v": "5"}),
            "1m closed  O 1 H 4 L 0 C 2  volume 5",
        ),
        (event("ticker", c="2", P="-1.5", h="4", l="1", v="5"), "last 2 -1.5 %  H 4 L 1  volume 5"),
        (event("mini_ticker", c="2", h="4", l="1", v="5"), "last 2  H 4 L 1  volume 5"),
        (event("book_ticker", b="1", B="2", a="3", A="4"), "bid 1 x 2  ask 3 x 4"),
        (event("average_price", w="1.5", i="5m"), "1.5 over 5m"),
        (event("of_tomorrow", x=1), '{"x":1,"event_type":"of_tomorrow"}'),
        (event("trade", m=True), '{"m":true,"event_type":"trade"}'),
        (
            event("depth_update", U=1, u=2, b=[["x"]], a=7),
            '{"U":1,"u":2,"b":[["x"]],"a":7,"event_type":"depth_update"}',
        ),
        (event("kline", k=None), '{"k":null,"event_type":"kline"}'),
    ],
)
def test_each_type_shows_what_matters_of_it(shown: Event, line: str) -> None:
    assert describe(shown) == line


def test_a_line_carries_time_and_both_latencies() -> None:
    shown = decode(None, as_json(trade(7)), NOW)
    assert shown is not None
    line = "22:13:20.000 BTCUSDT   trade           SELL 61837.63000000 x 0.0200  #7  (500 ms, 400 ms)"
    assert line_of(shown) == line


def test_a_line_cannot_steer_the_terminal() -> None:
    assert line_of(event("trade\x1b[2J", E="x")).isprintable()


@pytest.mark.parametrize("value", [None, b"", b"{", b"[1]", b"7", b"\xff", b"[" * 100_000])
def test_a_value_that_is_no_object_is_malformed(value: bytes | None) -> None:
    assert decode(b"BTCUSDT", value, NOW) is None


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (None, "-"),
        (-3.2, "-3 ms"),
        (1999, "1999 ms"),
        (2000, "2.0 s"),
        (180_000, "3.0 min"),
        (200_000_000, "2.3 d"),
    ],
)
def test_durations_are_short(duration: float | None, text: str) -> None:
    assert readable_ms(duration) == text


@pytest.mark.parametrize(
    ("following", "verdict"),
    [
        ([(2, 2), (3, 3)], "contiguous"),
        ([(4, 4)], "2 missing"),
        ([(1, 1), (2, 2)], "1 repeated or out of order"),
        ([(5, 9), (6, 6), (10, 10)], "3 missing, 1 repeated or out of order"),
    ],
)
def test_ids_tell_what_is_missing(following: list[tuple[int, int]], verdict: str) -> None:
    ids = Ids(1, 1)
    for first, last in following:
        ids.add(first, last)
    assert ids.verdict == verdict


def test_percentiles_of_latencies_in_bounded_memory() -> None:
    latencies = Latencies()
    assert list(latencies.percentiles(0.5)) == [None]
    for duration in range(1, 100_001):
        latencies.add(duration)
    assert list(latencies.percentiles(0.5, 0.99, 1.0)) == [50_000, 99_000, 100_000]
    assert len(latencies.counts) < 3_000


def test_statistics_count_by_type_symbol_and_stream() -> None:
    statistics = Statistics()
    for shown in (event("trade", t=1), event("trade", t=2), event("trade", t="odd"), event("kline")):
        statistics.add(shown)
    assert statistics.by_type == {"trade": 3, "kline": 1}
    assert statistics.by_symbol == {"BTCUSDT": 4}
    assert statistics.ids == {("BTCUSDT", "trade"): Ids(1, 2)}


@pytest.mark.kafka
def test_it_outlives_a_restart_of_the_broker_and_ends_when_it_is_frozen(own_broker: Broker) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    send(topics, topics.trades, as_json(trade(1)))
    arguments = ("--topics=trades", "--from-beginning", "--json", f"--group={fresh_group()}")
    with started(topics, *arguments) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["t"] == 1
        own_broker.restart()
        send(topics, topics.trades, as_json(trade(2)))
        assert json.loads(process.stdout.readline())["t"] == 2
        own_broker.freeze()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "consumer_example: what was shown last is not committed: " in err
    assert "Traceback" not in err
    assert "2 events" in err
