"""What REST answers, as events: the live event of the same id, but for E, source and the time of ingestion."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from config.streams import KLINE_INTERVALS
from src.decoder import EventDecoder
from src.events import Topics
from src.holes import Gap
from src.refetch import refetchable
from src.rest_events import (
    Origin,
    WrongShape,
    aggregate_events,
    bar_interval,
    kline_events,
    snapshot_event,
    trade_events,
)
from tests.exchange_fixtures import eventually
from tests.frames import RECORDINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange
    from src.events import Event
    from tests.exchange_fixtures import Client

TOPICS = Topics("trades", "depth", "raw")
RECEIVED_MS = 1_800_000_000_000
AGGREGATES = Origin("btcusdt@aggTrade", "BTCUSDT", "aggregate_trade")
TRADES = Origin("btcusdt@trade", "BTCUSDT", "trade")
BARS = Origin("btcusdt@kline_1m", "BTCUSDT", "kline")
ADDED = (
    b',"ingestion_timestamp":1800000000000,"source":"binance_rest_backfill","event_type":"%b",'
    b'"pipeline_version":"1.0.0"}'
)


def rows(*rows: Any) -> bytes:
    return json.dumps(rows).encode()


def test_an_aggregate_trade_has_the_streams_fields_in_the_streams_order() -> None:
    (event,) = aggregate_events(
        b'[{"M":true,"T":1605740428136,"a":426856438,"f":471418857,"l":471418859,"m":true,'
        b'"p":"17829.75000000","q":"0.0412130"}]',
        *(AGGREGATES, TOPICS, RECEIVED_MS),
    )
    assert event.value == (
        b'{"e":"aggTrade","E":1605740428136,"s":"BTCUSDT","a":426856438,"p":"17829.75000000","q":"0.0412130",'
        b'"f":471418857,"l":471418859,"T":1605740428136,"m":true,"M":true' + ADDED % b"aggregate_trade"
    )
    assert (event.first_id, event.last_id, event.timestamp_ms) == (426856438, 426856438, 1605740428136)
    assert (event.route.topic, event.route.key, event.final) == ("trades", b"BTCUSDT", True)


def test_a_trade_has_the_streams_fields_in_the_streams_order() -> None:
    (event,) = trade_events(
        b'[{"id":28457,"price":"4.00000100","qty":"12.00000000","quoteQty":"48.000012","time":1499865549590,'
        b'"isBuyerMaker":true,"isBestMatch":false}]',
        *(TRADES, TOPICS, RECEIVED_MS),
    )
    assert event.value == (
        b'{"e":"trade","E":1499865549590,"s":"BTCUSDT","t":28457,"p":"4.00000100","q":"12.00000000",'
        b'"T":1499865549590,"m":true,"M":false' + ADDED % b"trade"
    )
    assert (event.first_id, event.last_id, event.timestamp_ms) == (28457, 28457, 1499865549590)


def test_a_bar_has_the_streams_fields_in_the_streams_order_and_no_trade_ids() -> None:
    row = (
        '[1499040000000,"0.01634790","0.80000000","0.01575800","0.01577100","148976.11427815",1499644799999,'
        '"2434.19055334",308,"1756.87402397","28.46694368","17928899.62484339"]'
    )
    (event,) = kline_events(f"[{row}]".encode(), BARS, TOPICS, RECEIVED_MS)
    assert event.value == (
        b'{"e":"kline","E":1499644799999,"s":"BTCUSDT","k":{"t":1499040000000,"T":1499644799999,"s":"BTCUSDT",'
        b'"i":"1m","f":-1,"L":-1,"o":"0.01634790","c":"0.01577100","h":"0.80000000","l":"0.01575800",'
        b'"v":"148976.11427815","n":308,"x":true,"q":"2434.19055334","V":"1756.87402397","Q":"28.46694368",'
        b'"B":"0"}' + ADDED % b"kline"
    )
    assert (event.first_id, event.last_id, event.route.topic) == (1499040000000, 1499644799999, "raw")


def test_a_bar_of_another_time_zone_names_its_stream_as_the_live_one_does() -> None:
    row = [1499040000000, *["1.0"] * 5, 1499644799999, "1.0", 3, "1.0", "1.0", "0"]
    origin = Origin("btcusdt@kline_1d@+08:00", "BTCUSDT", "kline")
    (event,) = kline_events(rows(row), origin, TOPICS, RECEIVED_MS)
    assert event.value.endswith(b'"pipeline_version":"1.0.0","stream":"btcusdt@kline_1d@+08:00"}')
    assert json.loads(event.value)["k"]["i"] == "1d"
    assert bar_interval(origin.stream) == ("1d", "08:00")
    assert bar_interval("btcusdt@kline_1M") == ("1M", "")


@pytest.mark.parametrize("stream", ["klines", "", "btcusdt@kline", "btcusdt@", "@"])
def test_a_stream_whose_name_tells_no_interval_cannot_be_fetched_again(stream: str) -> None:
    assert bar_interval(stream)[0] not in KLINE_INTERVALS
    assert not refetchable(Gap(stream, "kline", "BTCUSDT", 1, 59_999, "jump", RECEIVED_MS))


def test_a_snapshot_is_the_answers_own_text_and_the_added_fields() -> None:
    body = b'{ "lastUpdateId":1027024,"bids":[["4.00000000","431.0"]] , "asks":[["4.00000200","12.00000000"]] }\n'
    event = snapshot_event(body, "btcusdt@depth@100ms", "BTCUSDT", TOPICS, RECEIVED_MS)
    assert event.value == body.strip()[:-1] + (
        b',"ingestion_timestamp":1800000000000,"source":"binance_rest_snapshot","event_type":"depth_snapshot",'
        b'"pipeline_version":"1.0.0","stream":"btcusdt@depth@100ms"}'
    )
    assert (event.first_id, event.last_id, event.timestamp_ms) == (1027024, 1027024, RECEIVED_MS)
    assert (event.route.topic, event.route.key) == ("depth", b"BTCUSDT")


def test_rows_come_in_order_of_ids_and_each_once() -> None:
    row = {"p": "1.0", "q": "1.0", "f": 1, "l": 1, "T": 5, "m": True, "M": True}
    answer = rows(*({"a": number} | row for number in (9, 7, 8, 7)))
    assert [event.first_id for event in aggregate_events(answer, AGGREGATES, TOPICS, RECEIVED_MS)] == [7, 8, 9]


def test_a_field_that_the_exchange_leaves_out_is_not_made_up_and_a_new_one_does_no_harm() -> None:
    row = {"a": 1, "p": "1.0", "q": "1.0", "f": 1, "l": 1, "T": 5, "m": True, "new": [1]}
    (event,) = aggregate_events(rows(row), AGGREGATES, TOPICS, RECEIVED_MS)
    assert list(json.loads(event.value))[:10] == ["e", "E", "s", "a", "p", "q", "f", "l", "T", "m"]
    assert "M" not in json.loads(event.value)


def test_a_time_that_no_broker_takes_is_not_the_records_time() -> None:
    row = {"a": 1, "p": "1.0", "q": "1.0", "f": 1, "l": 1, "T": RECEIVED_MS * 1000, "m": True, "M": True}
    (event,) = aggregate_events(rows(row), AGGREGATES, TOPICS, RECEIVED_MS)
    assert event.timestamp_ms == RECEIVED_MS


WRONG = [
    b"",
    b"<html>busy</html>",
    b"{}",
    b"null",
    b"[{}]",
    b"[[]]",
    b'[{"a":"1"}]',
    b"[1",
    b"[" * 5000,
    b'["\xff"]',
]


@pytest.mark.parametrize("body", WRONG, ids=range(len(WRONG)))
def test_an_answer_of_another_shape_is_named_so(body: bytes) -> None:
    with pytest.raises(WrongShape):
        aggregate_events(body, AGGREGATES, TOPICS, RECEIVED_MS)
    with pytest.raises(WrongShape):
        trade_events(body, TRADES, TOPICS, RECEIVED_MS)
    with pytest.raises(WrongShape):
        kline_events(body, BARS, TOPICS, RECEIVED_MS)
    with pytest.raises(WrongShape):
        snapshot_event(body, "btcusdt@depth", "BTCUSDT", TOPICS, RECEIVED_MS)


def comparable(event: Event) -> tuple[Any, ...]:
    """Return everything about an event but E, the source and the time of ingestion, in its order."""
    pairs = json.loads(event.value, object_pairs_hook=list, parse_int=str)
    kept = [(name, value) for name, value in pairs if name not in ("E", "source", "ingestion_timestamp")]
    order = [name for name, _ in pairs]
    return order, kept, event.route.topic, event.route.key, event.first_id, event.last_id, event.final


def live_and_answer(
    exchange: Exchange, connect: Callable[[str], Client], stream: str, enough: Callable[[dict[str, Any]], bool]
) -> list[Event]:
    decoder = EventDecoder(TOPICS)
    client = connect(f"{exchange.stream_url}?streams={stream}")
    events: list[Event] = []

    def arrived() -> bool:
        text = client.text()
        events.extend(decoder.decode([text.encode()], RECEIVED_MS).events)
        return enough(json.loads(text)["data"])

    eventually(arrived, 20)
    return events


def get(exchange: Exchange, path: str) -> bytes:
    with urllib.request.urlopen(f"{exchange.rest_url}/api/v3/{path}", timeout=5) as answer:  # noqa: S310
        body: bytes = answer.read()
        return body


@pytest.mark.parametrize("kind", ["trade", "aggTrade"])
def test_for_the_same_id_the_fetched_event_equals_the_live_one(
    kind: str, exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(rate=1_000.0, symbols=("BTCUSDT",))
    stream, seen = f"btcusdt@{kind}", iter(range(1_000))
    live = live_and_answer(exchange, connect, stream, lambda _: next(seen) == 300)
    convert, path, event_type = {
        "trade": (trade_events, "historicalTrades", "trade"),
        "aggTrade": (aggregate_events, "aggTrades", "aggregate_trade"),
    }[kind]
    body = get(exchange, f"{path}?symbol=BTCUSDT&fromId={live[0].first_id}&limit={len(live)}")
    fetched = convert(body, Origin(stream, "BTCUSDT", event_type), TOPICS, RECEIVED_MS)
    assert [comparable(event) for event in fetched] == [comparable(event) for event in live]


def test_for_the_same_bar_the_fetched_event_equals_the_live_closing_one_but_for_the_trade_ids(
    exchange_factory: Callable[..., Exchange], connect: Callable[[str], Client]
) -> None:
    exchange = exchange_factory(rate=500.0, symbols=("BTCUSDT",))
    closed = iter(range(10))
    stream = "btcusdt@kline_1s"
    live = live_and_answer(exchange, connect, stream, lambda bar: bar["k"]["x"] and next(closed) == 2)
    finals = [event for event in live if event.final][-2:]
    body = get(exchange, f"klines?symbol=BTCUSDT&interval=1s&startTime={finals[0].first_id}&limit=2")
    fetched = kline_events(body, Origin(stream, "BTCUSDT", "kline"), TOPICS, RECEIVED_MS)
    assert len(fetched) == len(finals) == 2
    for made, real in zip(fetched, finals, strict=True):
        ours, theirs = comparable(made), comparable(real)
        assert ours[0] == theirs[0]
        assert ours[2:] == theirs[2:]
        bars = [dict(each[1])["k"] for each in (ours, theirs)]
        assert [name for name, _ in bars[0]] == [name for name, _ in bars[1]]
        differing = {name for (name, one), (_, other) in zip(*bars, strict=True) if one != other}
        assert differing == {"f", "L"}


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings are not here")
def test_real_answers_give_events_of_the_shape_that_real_frames_have() -> None:
    shapes = {}
    for line in (RECORDINGS / "one_of_each_spot_shape.jsonl").read_text().splitlines():
        payload = json.loads(line).get("data") if isinstance(json.loads(line), dict) else None
        if isinstance(payload, dict) and "e" in payload:
            shapes.setdefault(payload["e"], payload)
    seen = set()
    for line in (RECORDINGS / "rest_spot_market_data.jsonl").read_text().splitlines():
        answer = json.loads(line)
        kind, body = answer["path"].rpartition("/")[2], json.dumps(answer["body"]).encode()
        if '"":' in line:  # this recording has lost the name of a field
            with pytest.raises(WrongShape):
                aggregate_events(body, AGGREGATES, TOPICS, RECEIVED_MS)
            continue
        if kind == "depth":
            event = snapshot_event(body, "btcusdt@depth", "BTCUSDT", TOPICS, RECEIVED_MS)
            added = ["ingestion_timestamp", "source", "event_type", "pipeline_version", "stream"]
            assert list(json.loads(event.value)) == [*answer["body"], *added]
            seen.add(kind)
            continue
        convert, origin = {
            "aggTrades": (aggregate_events, AGGREGATES),
            "historicalTrades": (trade_events, TRADES),
            "trades": (trade_events, TRADES),
            "klines": (kline_events, BARS),
        }.get(kind, (None, None))
        if convert is None or origin is None:
            continue
        events = convert(body, origin, TOPICS, RECEIVED_MS)
        assert len(events) == len(answer["body"])
        for event in events:
            made = json.loads(event.value)
            real = shapes[made["e"]]
            assert list(made)[: len(real) - 0] == [name for name in real if name not in ("b", "a") or name in made]
            if "k" in made:
                assert list(made["k"]) == list(real["k"])
        seen.add(kind)
    assert {"aggTrades", "historicalTrades", "klines", "depth"} <= seen
