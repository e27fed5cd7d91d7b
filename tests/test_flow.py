"""What flows by kind and symbol, and the latencies: pure, times are given."""

from __future__ import annotations

import random
import threading
from bisect import bisect_left

import pytest

from src import flow
from src import telemetry as telemetry_module
from src.decoder import EventDecoder
from src.events import Event, Topics
from src.flow import BOUNDS_MS, Flow, iso
from src.telemetry import Telemetry

READ_MS = 1_700_000_000_000
TOPICS = Topics("trades", "depth", "raw")
PRICED = {
    "trade": ("btcusdt@trade", '"e":"trade","E":%d,"s":"BTCUSDT","p":"101.50","q":"2"', "101.50"),
    "aggregate_trade": ("btcusdt@aggTrade", '"e":"aggTrade","E":%d,"s":"BTCUSDT","p":"7"', "7"),
    "ticker": ("btcusdt@ticker", '"e":"24hrTicker","E":%d,"s":"BTCUSDT","p":"-3.1","c":"99.10"', "99.10"),
    "kline": ("btcusdt@kline_1m", '"e":"kline","E":%d,"s":"BTCUSDT","k":{"o":"1","c":"98.7"}', "98.7"),
}


def frame(stream: str, fields: str, event_ms: int) -> bytes:
    return f'{{"stream":"{stream}","data":{{{fields % event_ms}}}}}'.encode()


def trade(symbol: str = "BTCUSDT", event_ms: int = READ_MS, price: str = "1.0") -> bytes:
    fields = f'"e":"trade","E":%d,"s":"{symbol}","t":1,"p":"{price}"'
    return frame(f"{symbol.lower()}@trade", fields, event_ms)


def decoded(*frames: bytes, at_ms: int = READ_MS, first_seq: int = 1) -> list[Event]:
    events = EventDecoder(TOPICS).decode(list(frames), at_ms).events
    for number, event in enumerate(events, first_seq):
        event.seq = number
    return events


def bucket_of(counts: list[int]) -> float:
    """Return the upper bound of the one bucket that holds anything."""
    (index,) = [index for index, count in enumerate(counts) if count]
    return (*BOUNDS_MS, float("inf"))[index]


def test_each_leg_is_measured_between_its_own_two_moments() -> None:
    moved = Flow()
    events = decoded(*[trade(event_ms=READ_MS - 40)] * 10)
    moved.received([(events, READ_MS)])
    moved.flushed(events, READ_MS + 700)
    moved.acknowledged(events, READ_MS + 3_000)
    latency = moved.read().latency
    assert {leg: bucket_of(histogram["counts"]) for leg, histogram in latency.items()} == {
        "exchange_to_read": 50,
        "read_to_flush": 1000,
        "flush_to_ack": 5000,
        "exchange_to_ack": 5000,
    }
    assert {sum(histogram["counts"]) for histogram in latency.values()} == {10}
    assert latency["flush_to_ack"]["sum_ms"] == 10 * 2_300


@pytest.mark.parametrize("count", [1, 2, 7, 100, 333])
def test_a_batch_weighs_in_a_histogram_what_it_holds(count: int) -> None:
    moved = Flow()
    moved.received([(decoded(*[trade(event_ms=READ_MS - 5)] * count), READ_MS)])
    histogram = moved.read().latency["exchange_to_read"]
    assert sum(histogram["counts"]) == count
    assert histogram["sum_ms"] == 5 * count


def test_each_read_is_measured_by_its_own_time() -> None:
    moved = Flow()
    event = decoded(trade(event_ms=READ_MS))
    moved.received([(event, READ_MS + 5), (event * 3, READ_MS + 100), (event, READ_MS + 30_000)])
    counts = moved.read().latency["exchange_to_read"]["counts"]
    found = {bound: count for bound, count in zip(BOUNDS_MS, counts, strict=False) if count}
    assert found == {5: 1, 100: 3, 30_000: 1}


def test_one_event_of_each_batch_stands_for_all_of_them_as_their_own_times_would() -> None:
    chooser = random.Random(5)
    moved, exact = Flow(), [0] * (len(BOUNDS_MS) + 1)
    for _ in range(400):
        ages = sorted((chooser.randrange(0, 800) for _ in range(50)), reverse=True)
        moved.received([(decoded(*(trade(event_ms=READ_MS - age) for age in ages)), READ_MS)])
        for age in ages:
            exact[bisect_left(BOUNDS_MS, age)] += 1
    sampled = moved.read().latency["exchange_to_read"]["counts"]
    for told, true in zip(sampled, exact, strict=True):
        assert abs(told - true) < 0.02 * 400 * 50


def test_a_clock_behind_that_of_the_exchange_gives_no_negative_latency() -> None:
    moved = Flow()
    moved.received([(decoded(trade(event_ms=READ_MS + 500)), READ_MS)])
    histogram = moved.read().latency["exchange_to_read"]
    assert bucket_of(histogram["counts"]) == 1
    assert histogram["sum_ms"] == 0


def test_an_event_without_a_time_of_its_own_has_no_latency_from_the_exchange() -> None:
    moved = Flow()
    events = decoded(b'{"stream":"btcusdt@bookTicker","data":{"u":1,"s":"BTCUSDT","b":"1","a":"2"}}')
    moved.received([(events, READ_MS)])
    moved.flushed(events, READ_MS + 3)
    moved.acknowledged(events, READ_MS + 9)
    counted = {leg: sum(histogram["counts"]) for leg, histogram in moved.read().latency.items()}
    assert counted == {"exchange_to_read": 0, "read_to_flush": 1, "flush_to_ack": 1, "exchange_to_ack": 0}


def test_an_event_fetched_later_has_no_latency_from_the_exchange() -> None:
    moved = Flow()
    (event,) = decoded(trade(event_ms=READ_MS - 3_600_000))
    event.value = event.value.replace(b"binance_websocket", b"binance_rest_backfill")
    moved.flushed([event], READ_MS + 3)
    moved.acknowledged([event], READ_MS + 9)
    counted = {leg: sum(histogram["counts"]) for leg, histogram in moved.read().latency.items()}
    assert counted == {"exchange_to_read": 0, "read_to_flush": 1, "flush_to_ack": 1, "exchange_to_ack": 0}


def test_an_event_that_could_not_be_enriched_is_counted_and_disturbs_nothing() -> None:
    moved = Flow()
    events = decoded(b'{"stream":"btcusdt@trade","data":{"e":17}}')
    assert events[0].route.event_type == "unenriched"
    moved.received([(events, READ_MS)])
    moved.flushed(events, READ_MS)
    moved.acknowledged(events, READ_MS)
    assert ("unenriched", "raw", 1, 1) in moved.read().kinds


def test_an_event_of_an_earlier_run_counts_as_produced_and_has_no_time_of_flush() -> None:
    moved = Flow()
    moved.flushed(decoded(trade(), first_seq=100), READ_MS)
    moved.acknowledged(decoded(trade(event_ms=READ_MS - 1), first_seq=5), READ_MS + 60_000)
    reading = moved.read()
    assert sum(reading.latency["flush_to_ack"]["counts"]) == 0
    assert bucket_of(reading.latency["exchange_to_ack"]["counts"]) == 300_000
    assert reading.kinds == [("trade", "trades", 0, 1)]


def test_flushes_long_ago_are_forgotten_and_never_taken_for_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "_FLUSHES_KEPT", 10)
    moved = Flow()
    batches = [decoded(trade(), first_seq=number) for number in range(1, 31)]
    for number, batch in enumerate(batches):
        moved.flushed(batch, READ_MS + number)
    for batch in batches:
        moved.acknowledged(batch, READ_MS + 29)
    latency = moved.read().latency["flush_to_ack"]
    kept = sum(latency["counts"])
    assert 5 <= kept <= 10
    assert latency["sum_ms"] == sum(range(kept))


def test_events_are_counted_by_type_and_topic_on_both_ends() -> None:
    moved = Flow()
    events = decoded(
        trade(), trade("ETHUSDT"), frame("btcusdt@depth", '"e":"depthUpdate","E":%d,"s":"BTCUSDT"', 1)
    )
    moved.received([(events, READ_MS)])
    moved.acknowledged(events[:1], READ_MS)
    expected = [("depth_update", "depth", 1, 0), ("trade", "trades", 2, 1)]
    assert sorted(moved.read().kinds) == expected
    moved.received([(events, READ_MS)])
    assert sorted(moved.read().kinds) == [("depth_update", "depth", 2, 0), ("trade", "trades", 4, 1)]


@pytest.mark.parametrize("event_type", PRICED)
def test_the_last_price_of_a_symbol_is_told_digit_for_digit(event_type: str) -> None:
    stream, fields, price = PRICED[event_type]
    moved = Flow()
    moved.received([(decoded(frame(stream, fields, READ_MS - 100)), READ_MS)])
    shown = moved.read().shown()["symbols"]["BTCUSDT"]
    assert shown == {"last_event_time": "2023-11-14T22:13:19.900Z", "price": price, "events": 1}


def test_the_newest_event_with_a_price_tells_it_and_the_newest_of_all_the_time() -> None:
    moved = Flow()
    depth = frame("btcusdt@depth", '"e":"depthUpdate","E":%d,"s":"BTCUSDT"', READ_MS)
    moved.received([(decoded(*[trade(event_ms=READ_MS - 10, price="5")] * 9, depth), READ_MS)])
    kline = frame(*PRICED["kline"][:2], READ_MS - 2000)
    moved.received([(decoded(kline), READ_MS)])
    shown = moved.read().shown()["symbols"]["BTCUSDT"]
    assert shown == {"last_event_time": "2023-11-14T22:13:20.000Z", "price": "5", "events": 11}


@pytest.mark.parametrize("value", [b'"p":17', b'"p":null', b'"q":"1"', b'"p":"\xff"'])
def test_a_price_that_is_none_is_none(value: bytes) -> None:
    event = decoded(trade())[0]
    event.value = b'{"e":"trade",' + value + b"}"
    moved = Flow()
    moved.received([([event], READ_MS)])
    shown = moved.read().shown()["symbols"]["BTCUSDT"]
    assert shown["price"] in (None, "\ufffd")


def test_what_is_kept_is_bounded_and_nothing_is_miscounted_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("_ROUTES_KEPT", "_SYMBOLS_KEPT", "_KINDS_KEPT"):
        monkeypatch.setattr(flow, bound, 5)
    moved = Flow()
    for number in range(100):
        events = decoded(frame(f"s{number}@x", f'"e":"kind{number}","E":%d,"s":"S{number}"', READ_MS))
        moved.received([(events, READ_MS)])
        moved.acknowledged(events, READ_MS)
    assert max(len(moved._received), len(moved._latest), len(moved._produced)) <= 6
    reading = moved.read()
    assert len(reading.symbols) == 5
    assert sum(kind[2] for kind in reading.kinds) == sum(kind[3] for kind in reading.kinds) == 100
    assert ("other", "other", 95, 95) in reading.kinds


def test_kinds_add_up_to_the_totals_of_the_same_status() -> None:
    telemetry = Telemetry()
    read = EventDecoder(TOPICS).decode([trade(), b"17", trade("ETHUSDT")], READ_MS)
    telemetry.received(read, READ_MS)
    telemetry.flushed(read.events)
    telemetry.offered(2)
    telemetry.acknowledged(read.events[:1], 100)
    status = telemetry.status()
    assert sum(kind["received"] for kind in status["kinds"]) == 2
    assert status["messages_received"] - status["messages_skipped"] == 2
    assert sum(kind["produced"] for kind in status["kinds"]) == status["kafka_produced"] == 1
    assert "kinds" not in telemetry.snapshot()


def test_reads_are_counted_before_anybody_is_told_and_notes_of_them_do_not_pile_up() -> None:
    telemetry = Telemetry()
    read = EventDecoder(TOPICS).decode([trade()], READ_MS)
    for number in range(1, 1_001):
        telemetry.received(read, READ_MS + number)
        assert len(telemetry._reads) < telemetry_module._READS_NOTED
    telemetry.received(read, READ_MS + 1_001)
    telemetry.flushed(read.events)
    assert not telemetry._reads
    told = telemetry.status()
    assert told["messages_received"] == told["messages_buffered"] == told["kinds"][0]["received"] == 1_001
    assert told["last_message_time"] == iso(READ_MS + 1_001)
    assert sum(told["latency"]["legs"]["exchange_to_read"]["counts"]) == 1_001


def test_a_read_that_holds_many_events_is_counted_at_once_and_kept_no_longer() -> None:
    telemetry = Telemetry()
    telemetry.received(EventDecoder(TOPICS).decode([trade()] * telemetry_module._MANY_AT_ONCE, READ_MS), READ_MS)
    assert not telemetry._reads


def test_the_equation_holds_in_every_snapshot_while_events_move_on_in_other_threads() -> None:
    telemetry = Telemetry()
    read = EventDecoder(TOPICS).decode([trade()] * 3, READ_MS)
    ended = threading.Event()

    def move_on() -> None:
        while not ended.is_set():
            telemetry.received(read, READ_MS)
            telemetry.duplicates(1)
            telemetry.offered(2)
            telemetry.acknowledged(read.events[:2], 10)

    movers = [threading.Thread(target=move_on) for _ in range(3)]
    for mover in movers:
        mover.start()
    told = [telemetry.snapshot() for _ in range(2_000)]
    ended.set()
    for mover in movers:
        mover.join()
    told.append(telemetry.snapshot())
    for counts in told:
        on_their_way = counts["messages_buffered"] + counts["messages_in_flight"]
        gone = counts["messages_duplicate"] + counts["kafka_produced"]
        assert counts["messages_received"] == on_their_way + gone
        assert min(counts["messages_buffered"], counts["messages_in_flight"]) >= 0
    assert told[-1]["messages_received"] > told[0]["messages_received"]
