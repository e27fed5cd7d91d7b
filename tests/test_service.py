"""The real process against the simulated exchange and a real broker, with real signals."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import defaultdict
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.broker_fixtures import Topics, delete_topics, fresh_topics, read_all
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.brokers import Broker
    from sandbox.exchange import Exchange
    from tests.broker_fixtures import Record
    from tests.service_fixtures import StartService

pytestmark = pytest.mark.kafka

SYMBOLS = "BTCUSDT,ETHUSDT"
STREAMS = "btcusdt@aggTrade,btcusdt@trade,ethusdt@depth@100ms,ethusdt@bookTicker,btcusdt@kline_1m"
ADDED = ["ingestion_timestamp", "source", "event_type", "pipeline_version"]


@pytest.fixture
def market(exchange_factory: Callable[..., Exchange]) -> Exchange:
    """Start a market at 500 messages a second."""
    return exchange_factory(rate=500)


@pytest.fixture
def quiet(exchange_factory: Callable[..., Exchange]) -> Exchange:
    """Start an exchange that sends only what is commanded."""
    return exchange_factory(rate=0)


def sent_by(exchange: Exchange) -> int:
    """How many events the exchange put on its connections."""
    return int(exchange.command("sent")["total"]["events"])


def records_in(topics: Topics) -> list[Record]:
    return read_all(topics.bootstrap_servers, *topics.names)


def trade(number: int, symbol: str = "BTCUSDT") -> str:
    now = int(time.time() * 1000)
    return (
        f'{{"stream":"{symbol.lower()}@trade","data":{{"e":"trade","E":{now},"s":"{symbol}","t":{number},'
        f'"p":"0.10","q":"1.0","T":{now},"m":true,"M":true}}}}'
    )


def logged_at(line: dict[str, Any]) -> float:
    """Return when a line was logged, in seconds since the epoch."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def assert_in_order(records: list[Record]) -> None:
    """Per symbol and kind, the ids in Kafka step as they did on the socket."""
    last: dict[tuple[str, bytes | None], int] = {}
    for record in records:
        event = json.loads(record.value or b"")
        if event["event_type"] not in ("trade", "aggregate_trade"):
            continue
        line, number = (event["event_type"], record.key), int(event["t" if event["e"] == "trade" else "a"])
        assert number == last.get(line, number - 1) + 1, f"{line}: {number} after {last[line]}"
        last[line] = number


def test_every_event_of_the_exchange_is_in_kafka_once_enriched_keyed_and_in_order(
    market: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = start_service(market.ws_url, topics, BINANCE_STREAMS=STREAMS)
    service.ready()
    service.wait_for(lambda: service.status()["kafka_produced"] > 500, "500 delivered")
    assert balanced(service.status())
    assert service.stop() == 0
    final = service.final
    records = records_in(topics)
    assert final["messages_received"] == final["kafka_produced"] == len(records) == sent_by(market)
    assert final["messages_buffered"] == final["messages_in_flight"] == 0
    assert balanced(final)
    assert final["producer"] == {
        "messages_sent": len(records),
        "messages_failed": 0,
        "bytes_sent": sum(len(record.value or b"") for record in records),
    }
    assert service.lines[-1]["exit_code"] == 0
    assert not service.not_json
    assert service.errors == ""
    assert_in_order(records)
    kinds = defaultdict(set)
    for record in records:
        event = json.loads(record.value or b"")
        kinds[record.topic].add(event["event_type"])
        stream = ["stream"] if event["event_type"] == "book_ticker" else []
        assert list(event)[-len(ADDED + stream) :] == ADDED + stream
        assert record.key == event["s"].encode()
        assert record.timestamp == event.get("E", event["ingestion_timestamp"])
    assert kinds[topics.trades] == {"trade", "aggregate_trade"}
    assert kinds[topics.depth] == {"depth_update"}
    assert kinds[topics.raw] == {"book_ticker", "kline"}


def test_with_the_mirror_on_every_event_is_in_the_raw_topic_too(
    market: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = start_service(market.ws_url, topics, BINANCE_STREAMS=STREAMS, KAFKA_MIRROR_RAW_EVENTS="true")
    service.ready()
    service.wait_for(lambda: service.status()["kafka_produced"] > 300, "300 delivered")
    assert service.stop() == 0
    assert balanced(service.final)
    records = records_in(topics)
    raw = [record.value for record in records if record.topic == topics.raw]
    others = [record.value for record in records if record.topic != topics.raw]
    assert len(raw) == service.final["messages_received"] == sent_by(market)
    assert set(others) <= set(raw)
    assert service.final["mirror_produced"] == len(others)


def test_a_hundred_messages_are_flushed_at_once_and_fewer_after_the_timeout(
    quiet: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = start_service(quiet.ws_url, topics, CONNECTION_BATCH_TIMEOUT_SECONDS=3)
    service.ready()
    service.logged("subscription_confirmed")
    quiet.send("btcusdt@trade", [trade(number) for number in range(99)], target="all")
    first_at = time.monotonic()
    service.wait_for(lambda: service.status()["messages_buffered"] == 99, "99 buffered")
    quiet.send("btcusdt@trade", [trade(99)], target="all")
    service.wait_for(lambda: service.status()["kafka_produced"] == 100, "100 delivered")
    assert time.monotonic() - first_at < 2.5, "the hundredth did not flush"
    assert service.status()["buffer_flushes"] == 1
    quiet.send("btcusdt@trade", [trade(100)], target="all")
    alone_at = time.monotonic()
    service.wait_for(lambda: service.status()["kafka_produced"] == 101, "the last one delivered")
    assert 2.8 < time.monotonic() - alone_at < 10
    assert service.status()["buffer_flushes"] == 2


def test_bad_frames_of_every_kind_are_skipped_and_counted_and_the_rest_is_unharmed(
    quiet: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = start_service(quiet.ws_url, topics, CONNECTION_BATCH_TIMEOUT_SECONDS=0.1)
    service.ready()
    service.logged("subscription_confirmed")
    bad = ["", "{", "nonsense", '{"e":"trade"', "[1]", "5", "null", '{"e":"trade","s":NaN}', "[[]]"]
    frames = [trade(1), *bad, trade(2), '{"error":{"code":2,"msg":"x"},"id":77}', "[]", trade(3)]
    quiet.send("btcusdt@trade", frames, target="all")
    quiet.invalid_utf8()
    quiet.send("btcusdt@trade", ['{"e":7}', trade(4)], target="all")
    service.wait_for(lambda: service.status()["messages_received"] == 5 + len(bad) + 1, "all received")
    service.wait_for(lambda: service.status()["kafka_produced"] == 5, "the good ones delivered")
    assert service.stop() == 0
    final = service.final
    assert final["messages_skipped"] == len(bad) + 1
    assert sum(final["messages_skipped_by_reason"].values()) == len(bad) + 1
    assert final["messages_skipped_by_reason"]["invalid_utf8"] == 1
    assert final["enrichment_failures"] == 1
    assert balanced(final)
    records = records_in(topics)
    assert [json.loads(record.value or b"")["t"] for record in records if record.topic == topics.trades] == [
        1,
        2,
        3,
        4,
    ]
    assert [record.value for record in records if record.topic == topics.raw] == [b'{"e":7}']
    assert service.events("frame_skipped")
    assert service.events("exchange_error")


def test_the_fifth_failed_attempt_in_a_row_ends_the_service_with_1(
    quiet: Exchange, start_service: StartService
) -> None:
    quiet.refuse()
    service = start_service(
        quiet.ws_url,
        CONNECTION_RECONNECT_INTERVAL=0.05,
        KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9",
        SHUTDOWN_TIMEOUT_SECONDS=3,
    )
    assert service.wait() == 1
    assert [line["delay_seconds"] for line in service.events("reconnect_scheduled")] == [0.05, 0.1, 0.2, 0.4]
    assert service.final["connection_attempts"] == service.final["connection_failures"] == 5
    assert service.final["reconnect_count"] == 4
    assert service.events("gave_up")
    assert service.lines[-1]["exit_code"] == 1


def test_after_a_lost_connection_five_reconnects_are_tried_then_it_gives_up_with_everything_delivered(
    quiet: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = start_service(quiet.ws_url, topics, CONNECTION_RECONNECT_INTERVAL=0.05)
    service.ready()
    service.logged("subscription_confirmed")
    quiet.send("btcusdt@trade", [trade(1)], target="all")
    service.wait_for(lambda: service.status()["messages_received"] == 1, "received")
    quiet.refuse()
    quiet.cut()
    assert service.wait() == 1
    delays = [line["delay_seconds"] for line in service.events("reconnect_scheduled")]
    assert delays == [0.05, 0.1, 0.2, 0.4, 0.8]
    assert service.final["kafka_produced"] == 1
    assert service.final["reconnect_count"] == 5


def test_a_good_frame_resets_the_backoff_and_everything_is_subscribed_again(
    market: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = start_service(market.ws_url, topics, CONNECTION_RECONNECT_INTERVAL=0.05, BINANCE_STREAMS=STREAMS)
    service.ready()
    for cuts in (1, 2, 3):
        service.logged("subscription_confirmed", count=cuts)
        before = service.status()["messages_received"]
        service.wait_for(lambda before=before: service.status()["messages_received"] > before + 20, "data flows")
        market.cut()
        service.logged("connection_lost", count=cuts)
    service.logged("subscription_confirmed", count=4)
    assert {line["delay_seconds"] for line in service.events("reconnect_scheduled")} == {0.05}
    assert service.stop() == 0
    assert service.final["reconnect_count"] == 3
    assert balanced(service.final)


@pytest.mark.parametrize("fault", ["mute", "half_open"])
def test_a_connection_that_falls_silent_is_replaced(
    fault: str, market: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = start_service(
        market.ws_url, topics, CONNECTION_SILENCE_TIMEOUT_SECONDS=1, CONNECTION_RECONNECT_INTERVAL=0.05
    )
    service.ready()
    service.logged("subscription_confirmed")
    market.command(fault)
    assert "WentSilent" in service.logged("connection_lost")["error"]
    service.logged("subscription_confirmed", count=2)
    before = service.status()["messages_received"]
    service.wait_for(lambda: service.status()["messages_received"] > before + 50, "data flows again")
    assert service.stop() == 0


def test_a_handshake_that_never_completes_is_given_up(
    quiet: Exchange, topics: Topics, start_service: StartService
) -> None:
    quiet.stall_handshake(1)
    service = start_service(quiet.ws_url, topics, CONNECTION_TIMEOUT_SECONDS=1, CONNECTION_RECONNECT_INTERVAL=0.05)
    service.logged("connection_failed")
    service.ready()
    assert service.stop() == 0


def test_more_than_1024_streams_share_several_connections(
    exchange_factory: Callable[..., Exchange], topics: Topics, start_service: StartService
) -> None:
    exchange = exchange_factory(rate=300)
    symbols = ",".join(["BTCUSDT", *(f"SYM{number}USDT" for number in range(300))])
    service = start_service(
        exchange.ws_url, topics, BINANCE_SYMBOLS=symbols, BINANCE_STREAM_TYPES="aggTrade,trade,depth,kline_1m"
    )
    service.ready()
    service.wait_for(
        lambda: sorted(len(each["subscriptions"]) for each in exchange.connections()) == [180, 1024],
        "all subscribed",
    )
    assert service.stop() == 0
    assert service.final["connected"] is False
    assert service.final["messages_received"] == sent_by(exchange)


def test_kafka_absent_at_start_stops_nothing_and_everything_is_delivered_when_it_comes(
    market: Exchange, own_broker_factory: Callable[[], Broker], start_service: StartService
) -> None:
    broker = own_broker_factory()
    broker.start()
    topics = fresh_topics(broker.bootstrap_servers)
    broker.stop()
    service = start_service(market.ws_url, topics)
    service.logged("kafka_unavailable")
    service.wait_for(lambda: service.status()["messages_received"] > 500, "reading goes on")
    status, body = service.get("/ready")
    assert status == 503
    assert "not connected to Kafka" in json.loads(body)["reasons"]
    assert service.get("/health")[0] == 200
    assert balanced(service.status())
    broker.start()
    service.ready()
    assert service.stop() == 0
    assert service.final["kafka_produced"] == len(records_in(topics)) == sent_by(market)
    assert_in_order(records_in(topics))


def test_a_broker_that_stops_under_way_is_named_with_what_to_look_at(
    market: Exchange, own_broker: Broker, start_service: StartService
) -> None:
    service = start_service(market.ws_url, fresh_topics(own_broker.bootstrap_servers))
    service.ready()
    own_broker.stop()
    line = service.logged("kafka_unavailable")
    assert line["reason"].startswith("NotConnectedError: ")
    assert "Unable to bootstrap" not in line["reason"]
    assert line["check"].startswith("KAFKA_BOOTSTRAP_SERVERS")
    own_broker.start()
    service.wait_for(lambda: not service.status()["messages_spooled"], "the spool sent")
    assert service.stop() == 0


def test_a_frozen_broker_neither_stops_reading_nor_loses_anything_when_it_thaws(
    market: Exchange, own_broker: Broker, start_service: StartService
) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    service = start_service(market.ws_url, topics)
    service.ready()
    service.wait_for(lambda: service.status()["kafka_produced"] > 100, "it flows")
    own_broker.freeze()
    before = service.status()["messages_received"]
    service.wait_for(lambda: service.status()["messages_received"] > before + 1000, "reading goes on")
    waiting = service.status()
    assert waiting["messages_in_flight"] + waiting["messages_spooled"] > 500
    assert balanced(waiting)
    own_broker.thaw()
    assert service.stop() == 0
    records = records_in(topics)
    assert service.final["kafka_produced"] == len(records) == sent_by(market)
    assert_in_order(records)


def test_beyond_every_bound_events_are_counted_and_named_as_lost_and_memory_stays_flat(
    exchange_factory: Callable[..., Exchange], own_broker: Broker, start_service: StartService
) -> None:
    exchange = exchange_factory(rate=5000)
    topics = fresh_topics(own_broker.bootstrap_servers)
    service = start_service(
        exchange.ws_url,
        topics,
        DELIVERY_MAX_IN_FLIGHT_RECORDS=2000,
        SPOOL_MAX_BYTES=2_000_000,
        SHUTDOWN_TIMEOUT_SECONDS=4,
    )
    service.ready()
    own_broker.freeze()
    service.wait_for(lambda: service.status()["messages_dropped"] > 1000, "events dropped")
    assert "lost" in service.get("/ready")[1].decode()
    first = memory_mb(service.pid)
    service.wait_for(lambda: service.status()["messages_dropped"] > 20_000, "many more dropped")
    assert service.status()["messages_in_flight"] <= 2000
    assert memory_mb(service.pid) < first + 20
    started = time.monotonic()
    assert service.stop() == 1
    assert time.monotonic() - started < 7
    own_broker.thaw()
    final = service.final
    assert balanced(final)
    assert final["messages_received"] == sent_by(exchange)
    assert final["messages_dropped_by_reason"] == {"spool_full": final["messages_dropped"]}
    assert final["messages_spooled"] > 0
    assert final["messages_in_flight"] == 0
    assert service.events("events_dropped")[0]["level"] == "error"
    assert service.logged("events_undelivered")["level"] == "error"


def memory_mb(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


@pytest.mark.parametrize("first", range(4))
def test_no_shutdown_under_load_loses_anything(
    first: int,
    exchange_factory: Callable[..., Exchange],
    broker: Broker,
    start_service: StartService,
    pytestconfig: pytest.Config,
) -> None:
    for round_number in range(first, pytestconfig.getoption("--shutdowns"), 4):
        exchange = exchange_factory(rate=pytestconfig.getoption("--shutdown-rate"), seed=round_number)
        topics = fresh_topics(broker.bootstrap_servers)
        service = start_service(exchange.ws_url, topics)
        service.ready()
        service.wait_for(lambda service=service: service.status()["kafka_produced"] > 500, "it flows")
        assert service.stop(signal.SIGINT if (round_number + round_number // 4) % 2 else signal.SIGTERM) == 0
        final = service.final
        assert final["kafka_produced"] == final["messages_received"] == sent_by(exchange)
        exchange.stop()
        assert len(records_in(topics)) == final["kafka_produced"]
        delete_topics(broker.bootstrap_servers, topics.names)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.4, 0.8])
def test_a_stop_during_start_up_is_obeyed(
    delay: float, market: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = start_service(market.ws_url, topics)
    service.wait_for(lambda: blocks_signals(service.pid), "python started")
    timer = threading.Timer(delay, service.send)
    timer.start()
    assert service.wait(within=25) == 0
    timer.join()
    final = service.final
    assert balanced(final)
    assert final["kafka_produced"] == final["messages_received"] == sent_by(market)


def blocks_signals(pid: int) -> bool:
    """Whether the process got as far as blocking SIGTERM, its first act."""
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("SigBlk"))
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def test_two_signals_stop_it_once(market: Exchange, topics: Topics, start_service: StartService) -> None:
    service = start_service(market.ws_url, topics)
    service.ready()
    service.send(signal.SIGTERM)
    service.send(signal.SIGINT)
    assert service.stop(signal.SIGTERM) == 0
    assert len(service.events("service_stopped")) == 1


def test_a_stop_during_a_reconnect_wait_ends_at_once(
    quiet: Exchange, topics: Topics, start_service: StartService
) -> None:
    quiet.refuse()
    service = start_service(quiet.ws_url, topics, CONNECTION_RECONNECT_INTERVAL=60)
    service.logged("reconnect_scheduled")
    service.logged("kafka_connected")
    started = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - started < 5


def test_a_stop_without_kafka_ends_in_time_with_everything_on_disk(
    market: Exchange, start_service: StartService
) -> None:
    service = start_service(market.ws_url, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9", SHUTDOWN_TIMEOUT_SECONDS=3)
    service.logged("service_started")
    service.wait_for(lambda: service.status()["messages_received"] > 200, "reading goes on")
    started = time.monotonic()
    assert service.stop() == 1
    assert time.monotonic() - started < 6
    final = service.final
    assert balanced(final)
    assert final["messages_spooled"] == final["messages_received"] == sent_by(market)
    told = service.logged("events_undelivered")
    assert (told["level"], told["messages_spooled"]) == ("warning", final["messages_spooled"])


def test_a_stop_with_a_frozen_broker_ends_in_time_with_exact_counts(
    market: Exchange, own_broker: Broker, start_service: StartService, tmp_path: Path
) -> None:
    topics = fresh_topics(own_broker.bootstrap_servers)
    kept = {"SPOOL_PATH": tmp_path / "kept"}
    service = start_service(market.ws_url, topics, SHUTDOWN_TIMEOUT_SECONDS=4, **kept)
    service.ready()
    service.wait_for(lambda: service.status()["kafka_produced"] > 100, "it flows")
    own_broker.freeze()
    before = service.status()["messages_received"]
    service.wait_for(lambda: service.status()["messages_received"] > before + 300, "reading goes on")
    started = time.monotonic()
    assert service.stop() == 1
    assert time.monotonic() - started < 7
    own_broker.thaw()
    final = service.final
    assert balanced(final)
    assert final["messages_spooled"] >= 300
    assert final["messages_in_flight"] == final["messages_buffered"] == 0
    assert final["kafka_produced"] + final["messages_spooled"] == final["messages_received"] == sent_by(market)
    assert service.errors == ""
    market.rate(0)
    heir = start_service(market.ws_url, topics, **kept)
    heir.ready()
    heir.wait_for(lambda: heir.status()["messages_spooled"] == 0, "what was on disk is delivered")
    assert heir.stop() == 0
    assert heir.final["messages_recovered"] == final["messages_spooled"]
    records = records_in(topics)
    there = {(record.topic, record.value) for record in records}
    assert len(there) == sent_by(market)
    possible = final["possible_duplicates"] + heir.final["possible_duplicates"]
    assert len(records) - len(there) <= possible


def test_what_is_on_disk_for_topics_of_other_settings_goes_to_those_of_today(
    market: Exchange, topics: Topics, start_service: StartService, tmp_path: Path
) -> None:
    kept = {"SPOOL_PATH": tmp_path / "kept", "SHUTDOWN_TIMEOUT_SECONDS": 3}
    before = start_service(market.ws_url, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9", **kept)
    before.wait_for(lambda: before.events("service_metrics")[-1:], "metrics")
    before.wait_for(lambda: before.status()["messages_received"] > 200, "reading goes on")
    assert before.stop() == 1
    left = before.final["messages_spooled"]
    after = start_service(market.ws_url, topics, **kept)
    after.wait_for(lambda: after.events("service_metrics")[-1:], "metrics")
    after.wait_for(lambda: after.status()["kafka_produced"] > left, "what was left is delivered")
    assert after.stop() == 0
    assert after.final["messages_recovered"] == left
    assert balanced(after.final)
    assert after.events("spool_redirected")[0]["events"] == left
    assert len(records_in(topics)) == sent_by(market)
    by_line = defaultdict(list)
    for record in records_in(topics):
        if record.topic == topics.trades:
            event = json.loads(record.value or b"")
            by_line[event["event_type"], record.key].append(event["t" if event["e"] == "trade" else "a"])
    assert all(numbers == sorted(numbers) for numbers in by_line.values())


BROKEN_STAGE = """
import sys
from src import signals
signals.block()
import src.{module} as module
def broken(*arguments):
    raise RuntimeError("broken on purpose")
module.{place} = broken
from src.service import serve
sys.exit(serve())
"""


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("decoder", "EventDecoder.decode"),
        ("kafka_producer", "KafkaSink.send"),
        ("kafka_producer", "KafkaSink._create_missing_topics"),
        ("delivery", "Delivery._settled"),
    ],
)
def test_a_stage_that_raises_ends_the_process_with_1_and_the_cause_in_the_log(
    module: str, place: str, market: Exchange, topics: Topics, start_service: StartService
) -> None:
    script = BROKEN_STAGE.format(module=module, place=place)
    service = start_service(market.ws_url, topics, command=("-c", script), SHUTDOWN_TIMEOUT_SECONDS=3)
    assert service.wait(within=25) == 1
    (failure,) = service.events("worker_failed")
    assert "broken on purpose" in failure["exception"]
    assert balanced(service.final)
    assert service.lines[-1]["exit_code"] == 1


def test_a_producer_whose_fates_cannot_be_told_is_broken_off_at_once(
    market: Exchange, topics: Topics, start_service: StartService
) -> None:
    script = BROKEN_STAGE.format(module="delivery", place="Delivery._settled")
    service = start_service(market.ws_url, topics, command=("-c", script), SHUTDOWN_TIMEOUT_SECONDS=3)
    assert service.wait() == 1
    assert "broken on purpose" in service.logged("producer_broken_off")["error"]


FULL_BUFFER = """
import sys, threading
from src import signals
signals.block()
import src.buffer, src.kafka_producer, src.spool
src.buffer.Buffer.__init__.__defaults__ = (100,)
full = threading.Event()
put = src.buffer.Buffer.put
def noted(buffer, events):
    if len(buffer) >= buffer.capacity:
        full.set()
    return put(buffer, events)
src.buffer.Buffer.put = noted
def raises(*arguments):
    full.wait()
    raise RuntimeError("broken on purpose")
def hangs(*arguments, **more):
    threading.Event().wait()
{place} = {broken}
from src.service import serve
sys.exit(serve())
"""


def test_a_publisher_that_raises_while_the_buffer_is_full_ends_the_process_with_1(
    market: Exchange, topics: Topics, start_service: StartService
) -> None:
    script = FULL_BUFFER.format(place="src.kafka_producer.KafkaSink.send", broken="raises")
    service = start_service(market.ws_url, topics, command=("-c", script), SHUTDOWN_TIMEOUT_SECONDS=5)
    assert service.wait() == 1
    (failure,) = service.events("worker_failed")
    assert "broken on purpose" in failure["exception"]
    final = service.final
    assert final["messages_received"] == sent_by(market)
    assert final["messages_dropped_by_reason"] == {"stage_failed": final["messages_dropped"]}
    assert final["messages_dropped"] >= 100
    assert balanced(final)


def test_a_stop_while_the_disk_does_not_answer_and_the_buffer_is_full_ends_in_time(
    market: Exchange, start_service: StartService
) -> None:
    script = FULL_BUFFER.format(place="src.spool.Spool._append", broken="hangs")
    service = start_service(
        market.ws_url, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9", command=("-c", script), SHUTDOWN_TIMEOUT_SECONDS=3
    )
    service.logged("service_started")
    service.wait_for(lambda: service.status()["messages_buffered"] >= 200, "the buffer full")
    assert service.stop() == 1
    final = service.final
    assert final["messages_received"] == sent_by(market) == final["messages_dropped"]
    assert final["messages_buffered"] == final["messages_in_flight"] == 0
    assert balanced(final)
    assert service.events("spool_failing")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"KAFKA_BATCH_SIZE": "many"}, ["KAFKA_BATCH_SIZE"]),
        ({"BINANCE_STREAMS": "btcusdt@depth@50ms", "LOG_LEVEL": "LOUD"}, ["BINANCE_STREAMS", "LOG_LEVEL"]),
    ],
)
def test_wrong_settings_end_with_2_one_line_a_fault_and_no_traceback(
    variables: dict[str, Any], expected: list[str], start_service: StartService
) -> None:
    service = start_service("ws://127.0.0.1:9", None, **variables)
    assert service.wait() == 2
    lines = service.errors.splitlines()
    assert len(lines) == len(expected)
    assert all(line.startswith(name) for line, name in zip(sorted(lines), sorted(expected), strict=True))
    assert not service.lines


def test_an_unknown_variable_is_warned_about_with_the_nearest_name(
    quiet: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = start_service(quiet.ws_url, topics, KAFKA_LINGERMS="5")
    assert service.logged("unknown_variable")["nearest"] == "KAFKA_LINGER_MS"
    service.ready()
    assert service.stop() == 0


def test_addresses_of_two_markets_are_warned_about_and_named(
    quiet: Exchange, topics: Topics, start_service: StartService
) -> None:
    live = "https://api.binance.com:9"  # where nobody answers
    mixed = start_service(quiet.ws_url, topics, BINANCE_REST_BASE_URL=live)
    warning = mixed.logged("addresses_of_two_markets")
    assert (warning["ws_base_url"], warning["rest_base_url"], warning["level"]) == (quiet.ws_url, live, "warning")
    assert "BINANCE_REST_BASE_URL" in warning["fix"]
    assert mixed.logged("service_started")["rest_url"] == live
    alike = start_service(quiet.ws_url, topics)
    assert alike.logged("service_started")["rest_url"] == quiet.ws_url.replace("ws://", "http://").removesuffix(
        "/ws"
    )
    assert not alike.events("addresses_of_two_markets")
    mixed.ready()
    alike.ready()
    assert mixed.stop() == alike.stop() == 0


def test_metrics_are_logged_at_the_interval_with_every_field_of_the_contract(
    market: Exchange, topics: Topics, start_service: StartService
) -> None:
    service = start_service(market.ws_url, topics, METRICS_INTERVAL_SECONDS=0.5)
    service.logged("service_metrics", count=6)
    fields = [
        "messages_received",
        "messages_processed",
        "messages_buffered",
        "messages_in_flight",
        "messages_skipped",
        "buffer_flushes",
        "kafka_produced",
        "kafka_failed",
        "bytes_sent",
        "connected",
        "connection_attempts",
        "connection_failures",
        "reconnect_count",
        "last_message_time",
        "producer",
    ]
    assert set(fields) <= set(service.events("service_metrics")[2])
    assert set(fields) <= set(service.status())
    assert service.stop() == 0
    periodic = service.events("service_metrics")[:-1]  # the last one came with the stop
    started = logged_at(service.logged("service_started"))
    moments = [logged_at(line) - started for line in periodic]
    assert all(moment >= 0.5 * number - 0.002 for number, moment in enumerate(moments, 1)), moments
    pauses = [after - before for before, after in pairwise(moments)]
    assert min(pauses) < 1.0, pauses  # a busy machine delays a line, and not each of them by as much
    assert max(pauses) < 10.0, pauses
    assert all(balanced(line) for line in service.events("service_metrics"))
    assert all(list(line)[:3] == ["timestamp", "level", "event"] for line in service.lines)


def test_a_taken_monitoring_port_is_named_and_the_data_flows_all_the_same(
    market: Exchange, topics: Topics, start_service: StartService
) -> None:
    first = start_service(market.ws_url, topics)
    first.ready()
    second = start_service(market.ws_url, topics, MONITORING_PORT=first.port)
    assert second.logged("monitoring_unavailable")["port"] == first.port
    second.wait_for(lambda: second.events("service_metrics")[-1:], "metrics")
    second.wait_for(lambda: second.events("service_metrics")[-1]["kafka_produced"] > 100, "it flows")
    assert second.stop() == first.stop() == 0
