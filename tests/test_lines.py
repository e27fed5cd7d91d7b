"""Lines against the simulated exchange: rotation, shutdown, standby, silence, streams that change at run time."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.exchange import Limits
from src.binance_client import GaveUp
from tests.exchange_fixtures import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange import Exchange
    from tests.line_fixtures import OpenLines, Reading

SYMBOLS = ("btcusdt", "ethusdt", "bnbusdt")
COUNTED = tuple(f"{symbol}@{kind}" for symbol in SYMBOLS for kind in ("trade", "aggTrade", "depth@100ms"))
STREAMS = (*COUNTED, "btcusdt@bookTicker", "!miniTicker@arr")


def of(lines: list[Any], event: str) -> list[Any]:
    """Return the log lines of one event."""
    return [line for line in list(lines) if line["event"] == event]


def opened(exchange: Exchange) -> list[dict[str, Any]]:
    """Return the records of the connections that are open and well."""
    return [each for each in exchange.connections() if each["open"] and each["state"] == "open"]


def assert_nothing_missing(reading: Reading, exchange: Exchange, streams: tuple[str, ...] = COUNTED) -> None:
    """Check that every event that was sent was handed on, and that together they have no hole."""
    assert len(reading.handed) == exchange.sent()["total"]["events"]
    for stream in streams:
        intervals = sorted({(event.first, event.last) for event in reading.handed if event.stream == stream})
        assert intervals, stream
        breaks = [(before, after) for before, after in pairwise(intervals) if after[0] != before[1] + 1]
        assert breaks == [], stream


def test_connections_are_rotated_at_2000_messages_a_second_without_losing_one(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=2_000, symbols=tuple(map(str.upper, SYMBOLS)))
    reading = open_lines(exchange.stream_url, STREAMS, rotate_after_seconds=1.5)
    eventually(lambda: reading.count("rotations") >= 3, within=30)
    reading.stop()
    assert_nothing_missing(reading, exchange)
    assert [
        line["streams_missing"] for line in of(logged, "connection_rotated") if "streams_missing" in line
    ] == []
    eventually(lambda: {each["ended_by"] for each in exchange.connections()} == {"client close"})
    assert reading.count("connection_failures") == reading.count("reconnect_count") == 0
    written = [note for note in reading.ledger.written if note[0] == "rotated"]
    assert written[:3] == [("rotated", 0, 1, "age"), ("rotated", 1, 0, "age"), ("rotated", 0, 1, "age")]


def test_without_the_wrapper_a_rotation_goes_by_the_streams_that_are_subscribed(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=2_000, symbols=tuple(map(str.upper, SYMBOLS)))
    reading = open_lines(exchange.ws_url, STREAMS, rotate_after_seconds=2.5)
    eventually(lambda: reading.count("rotations") >= 2, within=30)
    reading.stop()
    assert_nothing_missing(reading, exchange)
    assert {event.stream for event in reading.handed} == set(STREAMS)
    assert [line for line in of(logged, "connection_rotated") if "streams_missing" in line] == []
    for number in {event.source for event in reading.handed}:
        assert {event.stream for event in reading.handed if event.source == number} == set(STREAMS)


def test_the_old_connection_is_closed_only_when_each_stream_has_data_on_the_new_one(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines
) -> None:
    exchange = exchange_factory(rate=1_000, symbols=tuple(map(str.upper, SYMBOLS)))
    reading = open_lines(exchange.stream_url, COUNTED, rotate_after_seconds=2)
    eventually(lambda: reading.count("rotations") == 1)
    reading.stop()
    places: dict[tuple[str, int], list[int]] = {}
    for place, event in enumerate(reading.handed):
        places.setdefault((event.stream, event.source), []).append(place)
    last_of_old = max(found[-1] for (_, source), found in places.items() if source == 0)
    assert all(places[stream, 1][0] < last_of_old for stream in COUNTED)
    assert all(set(reading.ids(stream)[0]) & set(reading.ids(stream)[1]) for stream in COUNTED)


def test_a_stream_that_does_not_come_on_the_new_connection_keeps_the_old_one_until_the_bound_and_is_named(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=500, symbols=("BTCUSDT",))
    reading = open_lines(
        exchange.stream_url,
        ("btcusdt@trade", "btcusdt@aggTrade"),
        rotate_after_seconds=4,
        rotate_overlap_seconds=3,
    )
    eventually(lambda: exchange.sent(1)["streams"].get("btcusdt@trade"))
    exchange.silence("btcusdt@trade", "next", for_good=True)
    (line,) = eventually(lambda: of(logged, "connection_rotated"))
    assert line["log_level"] == "warning"
    assert line["streams_missing"] == ["btcusdt@trade"]
    assert 3 <= line["seconds"] < 10
    assert len(reading.ids("btcusdt@trade")[0]) > 100


def test_a_quiet_stream_does_not_keep_the_old_connection(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=0)
    reading = open_lines(
        exchange.stream_url, ("btcusdt@trade",), rotate_after_seconds=1, rotate_overlap_seconds=30
    )
    eventually(lambda: of(logged, "subscription_confirmed"))
    exchange.burst(1, "BTCUSDT")
    eventually(lambda: reading.handed)
    (line,) = eventually(lambda: of(logged, "connection_rotated"))
    assert 5 <= line["seconds"] < 15
    assert "streams_missing" not in line


def test_an_announced_shutdown_replaces_the_connection_at_once(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=500, symbols=tuple(map(str.upper, SYMBOLS)))
    reading = open_lines(exchange.stream_url, COUNTED)
    eventually(lambda: len(reading.handed) > 100)
    exchange.shutdown(1, cut_after_s=8)
    (line,) = eventually(lambda: of(logged, "connection_rotated"))
    assert line["cause"] == "server_shutdown"
    assert line["seconds"] < 7
    eventually(lambda: exchange.connections()[0]["ended_by"] == "client close")
    reading.stop()
    assert_nothing_missing(reading, exchange)
    assert reading.count("connection_failures") == 0


def test_a_new_connection_that_fails_leaves_the_old_one_and_is_tried_for_ever(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=500, symbols=tuple(map(str.upper, SYMBOLS)))
    reading = open_lines(exchange.stream_url, COUNTED, rotate_after_seconds=1, max_retries=2)
    eventually(lambda: opened(exchange))
    exchange.handshake_status(503, connections=6)
    eventually(lambda: len(of(logged, "connection_failed")) == 6)
    assert reading.telemetry.connected
    eventually(lambda: reading.count("rotations") == 1)
    reading.stop()
    assert reading.ended[0].failure is None
    assert_nothing_missing(reading, exchange)


def test_an_old_connection_lost_while_the_new_one_fails_is_opened_again_itself(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=200, symbols=("BTCUSDT",))
    reading = open_lines(exchange.stream_url, ("btcusdt@trade",), reconnect_interval=1)
    eventually(lambda: reading.handed)
    exchange.handshake_status(503, connections=0)
    exchange.shutdown(1)
    eventually(lambda: of(logged, "connection_failed"))
    exchange.cut(1)
    eventually(lambda: of(logged, "rotation_cancelled"))
    exchange.disarm()
    eventually(lambda: subscriptions(exchange) == [["btcusdt@trade"]])
    assert [line["slot"] for line in of(logged, "connection_opened")] == [0, 0]
    assert reading.telemetry.connected


def test_an_old_connection_lost_while_the_new_one_is_open_is_a_plain_hand_over(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=0)
    reading = open_lines(exchange.stream_url, ("btcusdt@trade",), rotate_after_seconds=1, reconnect_interval=1)
    eventually(lambda: len(opened(exchange)) == 2)
    exchange.cut(1)
    eventually(lambda: of(logged, "connection_rotated"))
    assert [record["id"] for record in opened(exchange)] == [2]
    assert reading.telemetry.connected
    eventually(lambda: of(logged, "connection_closed"))
    assert reading.count("reconnect_count") == 0


def test_a_line_without_any_connection_gives_up_after_the_fifth_failure(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines
) -> None:
    exchange = exchange_factory(rate=0)
    exchange.refuse()
    reading = open_lines(exchange.stream_url, ("btcusdt@trade",))
    eventually(lambda: reading.ended)
    assert isinstance(reading.ended[0].failure, GaveUp)
    assert reading.count("connection_attempts") == reading.count("connection_failures") == 5


def test_with_a_standby_a_cut_connection_costs_nothing(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=1_000, symbols=tuple(map(str.upper, SYMBOLS)))
    reading = open_lines(exchange.stream_url, COUNTED, standby=True, reconnect_interval=0.5)
    for cuts in range(1, 3):
        both = eventually(lambda: two if len(two := opened(exchange)) == 2 else None)
        eventually(lambda: sum(each["streams"] for each in of(logged, "subscription_confirmed")) >= 9 * (1 + cuts))  # noqa: B023
        before = len(reading.handed)
        eventually(lambda: len(reading.handed) > before + 500)  # noqa: B023
        exchange.cut(both[0]["id"])
        eventually(lambda: len(of(logged, "connection_lost")) == cuts)  # noqa: B023
        assert reading.telemetry.connected
    eventually(lambda: len(opened(exchange)) == 2)
    reading.stop()
    for stream in COUNTED:
        found = sorted({(event.first, event.last) for event in reading.handed if event.stream == stream})
        assert all(after[0] == before[1] + 1 for before, after in pairwise(found))


def test_with_a_standby_both_connections_are_rotated_one_after_the_other(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=1_000, symbols=tuple(map(str.upper, SYMBOLS)))
    reading = open_lines(exchange.stream_url, COUNTED, standby=True, rotate_after_seconds=2)
    eventually(lambda: reading.count("rotations") >= 3, within=30)
    reading.stop()
    assert_nothing_missing(reading, exchange)
    assert {line["slot"] for line in of(logged, "connection_rotated")} == {0, 1}
    eventually(lambda: {each["ended_by"] for each in exchange.connections()} == {"client close"})


def test_with_a_standby_a_shutdown_announced_on_both_replaces_one_and_then_the_other(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines
) -> None:
    exchange = exchange_factory(rate=500, symbols=tuple(map(str.upper, SYMBOLS)))
    reading = open_lines(exchange.stream_url, COUNTED, standby=True)
    eventually(lambda: len(opened(exchange)) == 2 and len(reading.handed) > 200)
    exchange.shutdown()
    eventually(lambda: reading.count("rotations") == 2)
    assert [record["id"] for record in opened(exchange)] == [3, 4]
    reading.stop()
    assert_nothing_missing(reading, exchange)


def test_lines_of_one_age_are_rotated_some_time_apart(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=500, symbols=("BTCUSDT",))
    streams = ("btcusdt@trade", "btcusdt@aggTrade", "btcusdt@depth@100ms")
    # Old enough for all three to have had their turn before the first is due again.
    reading = open_lines(exchange.stream_url, streams, 1, rotate_after_seconds=3, reconnect_interval=0.8)
    began: dict[int, float] = {}
    while len(began) < 3:
        for line in of(logged, "rotation_started"):
            began.setdefault(line["connection"], time.monotonic())
        eventually(lambda: len(of(logged, "rotation_started")) > len(began) or len(began) == 3)
    first, second, third = sorted(began.values())
    assert second - first >= 0.6
    assert third - second >= 0.6
    assert reading.telemetry.connected


# Streams that change at run time


def subscriptions(exchange: Exchange) -> list[list[str]]:
    return [record["subscriptions"] for record in opened(exchange)]


def test_streams_are_added_and_removed_by_the_difference_only(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=500, symbols=tuple(map(str.upper, SYMBOLS)))
    reading = open_lines(exchange.stream_url, COUNTED)
    eventually(lambda: subscriptions(exchange) == [list(COUNTED)])
    added = ("btcusdt@bookTicker", "bnbusdt@bookTicker")
    wanted = (*COUNTED[1:], *added)
    assert reading.lines.change(wanted) == (added, COUNTED[:1])
    eventually(lambda: subscriptions(exchange) == [list(wanted)])
    (record,) = exchange.connections()
    assert record["client_frames"] == 3
    (confirmed,) = eventually(lambda: of(logged, "unsubscription_confirmed"))
    assert confirmed["streams"] == 1
    eventually(lambda: reading.ids("bnbusdt@bookTicker"))
    assert reading.lines.change(wanted) == ((), ())


def test_streams_beyond_what_fits_are_read_on_lines_of_their_own_that_close_when_empty(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines
) -> None:
    exchange = exchange_factory(rate=500, symbols=tuple(map(str.upper, SYMBOLS)))
    reading = open_lines(exchange.stream_url, COUNTED[:4], 4)
    eventually(lambda: subscriptions(exchange) == [list(COUNTED[:4])])
    reading.lines.change(COUNTED)
    eventually(lambda: sorted(map(len, subscriptions(exchange))) == [1, 4, 4])
    eventually(lambda: reading.telemetry.connected)
    assert reading.lines.state()["connections"] == 3
    reading.lines.change((*COUNTED[1:4], COUNTED[8], "btcusdt@bookTicker"))
    eventually(lambda: subscriptions(exchange) == [[*COUNTED[1:4], "btcusdt@bookTicker"], [COUNTED[8]]])
    assert reading.telemetry.connected
    assert reading.lines.state()["connections"] == 2
    reading.stop()
    eventually(lambda: {each["ended_by"] for each in exchange.connections()} == {"client close"})


def test_streams_that_change_during_a_rotation_are_those_of_the_new_connection(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=0)
    reading = open_lines(exchange.stream_url, COUNTED[:3], rotate_after_seconds=1, rotate_overlap_seconds=12)
    eventually(lambda: len(opened(exchange)) == 2)
    reading.lines.change(COUNTED[2:5])
    eventually(lambda: of(logged, "connection_rotated"))
    eventually(lambda: [sorted(each) for each in subscriptions(exchange)] == [sorted(COUNTED[2:5])])


# Requests that are lost


def test_a_subscription_that_is_lost_is_asked_for_again(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=0)
    exchange.ignore(1, "next")
    open_lines(exchange.stream_url, COUNTED[:2], timeout_seconds=0.5)
    eventually(lambda: subscriptions(exchange) == [list(COUNTED[:2])])
    eventually(lambda: of(logged, "subscription_confirmed"))
    assert of(logged, "subscription_unconfirmed") == []


@pytest.mark.parametrize("lost", [2, 3])
def test_a_subscription_that_is_lost_more_often_is_looked_up_named_and_asked_for_later(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any], lost: int
) -> None:
    exchange = exchange_factory(rate=0)
    exchange.ignore(lost, "next")
    open_lines(exchange.stream_url, COUNTED[:2], timeout_seconds=0.5)
    eventually(lambda: subscriptions(exchange) == [list(COUNTED[:2])])
    (line,) = of(logged, "subscription_unconfirmed")
    assert line["streams"] == list(COUNTED[:2])


def test_what_is_refused_is_named_and_tried_again(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=0, limits=Limits(streams=4))
    reading = open_lines(exchange.stream_url, COUNTED[:4])
    eventually(lambda: subscriptions(exchange) == [list(COUNTED[:4])])
    reading.lines.change(COUNTED[:6])
    first = eventually(lambda: of(logged, "exchange_error"))[0]
    assert first["streams"] == list(COUNTED[4:6])
    reading.lines.change(COUNTED[2:6])
    eventually(lambda: subscriptions(exchange) == [list(COUNTED[2:6])])


# Silence of single streams

WATCHFUL = {"stream_silence_timeout_seconds": 1.0, "stream_silence_times": 20}


def test_a_stream_that_falls_silent_is_subscribed_to_again(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=500, symbols=("BTCUSDT", "ETHUSDT"))
    reading = open_lines(exchange.stream_url, ("btcusdt@trade", "ethusdt@trade"), **WATCHFUL)
    eventually(lambda: reading.traffic().get("btcusdt@trade", 0) > 100)
    exchange.silence("btcusdt@trade")
    (line,) = eventually(lambda: of(logged, "streams_silent"))
    assert (line["streams"], line["remedy"]) == (["btcusdt@trade"], "resubscribe")
    before = reading.traffic()["btcusdt@trade"]
    eventually(lambda: reading.traffic()["btcusdt@trade"] > before + 100)
    eventually(lambda: reading.lines.state()["streams_silent"] == 0)
    assert len(exchange.connections()) == 1
    assert reading.count("streams_fallen_silent") == 1


def test_a_stream_that_stays_silent_has_its_connection_replaced_once(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=500, symbols=("BTCUSDT", "ETHUSDT"))
    reading = open_lines(exchange.stream_url, ("btcusdt@trade", "ethusdt@trade"), **WATCHFUL)
    eventually(lambda: reading.traffic().get("btcusdt@trade", 0) > 100)
    exchange.silence("btcusdt@trade", for_good=True)
    (line,) = eventually(lambda: of(logged, "connection_rotated"))
    assert line["cause"] == "silence"
    assert [each["remedy"] for each in of(logged, "streams_silent")] == ["resubscribe", "rotate"]
    before = reading.traffic()["btcusdt@trade"]
    eventually(lambda: reading.traffic()["btcusdt@trade"] > before + 100)


def test_a_market_that_is_closed_is_left_alone_after_both_remedies(
    exchange_factory: Callable[..., Exchange], open_lines: OpenLines, logged: list[Any]
) -> None:
    exchange = exchange_factory(rate=500, symbols=("BTCUSDT", "ETHUSDT"), limits=Limits(ping_interval_s=0.5))
    reading = open_lines(
        exchange.stream_url, ("btcusdt@trade", "ethusdt@trade"), rotate_overlap_seconds=1, **WATCHFUL
    )
    eventually(lambda: reading.traffic().get("btcusdt@trade", 0) > 100)
    exchange.status("BREAK")
    eventually(lambda: of(logged, "connection_rotated"))
    time.sleep(3)  # for a third remedy, which is not to come
    assert [each["remedy"] for each in of(logged, "streams_silent")] == ["resubscribe", "rotate"]
    assert reading.lines.state()["streams_silent"] == 2
    assert reading.count("rotations") == 1
    exchange.status("TRADING")
    eventually(lambda: reading.lines.state()["streams_silent"] == 0)
