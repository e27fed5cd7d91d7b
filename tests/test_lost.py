"""Which trades are to be fetched again: those that came and were lost before Kafka had them, within bounds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from src import lost as subject
from src.events import Event, Route
from src.holes import include, joined
from src.lost import Lost, Which, ids_of
from src.telemetry import Telemetry

if TYPE_CHECKING:
    import pytest

TRADE = Which("btcusdt@trade", "BTCUSDT", "trade", "trades")


def live(*ids: int, kind: str = "trade", symbol: str = "BTCUSDT") -> list[Event]:
    route = Route(kind, "trades", symbol.encode(), b"", 0, b"", f"{symbol.lower()}@{kind}")
    return [Event(route, b"{}", 1, 0, number, number) for number in ids]


def from_disk(*ids: int) -> list[Event]:
    route = Route("trade", "trades", b"BTCUSDT", b"", 0, b"")
    return [Event(route, json.dumps({"s": "BTCUSDT", "t": number}).encode(), 1, number) for number in ids]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=60))
def test_intervals_that_are_added_one_by_one_are_those_joined_at_once(pairs: list[tuple[int, int]]) -> None:
    intervals: list[tuple[int, int]] = []
    for first, more in pairs:
        include(intervals, (first, first + more))
    assert intervals == joined((first, first + more) for first, more in pairs)


def test_ids_of_a_stream_are_merged_wherever_they_were_lost() -> None:
    lost = Lost()
    lost.note(ids_of(live(7, 8, 20)))
    lost.note(ids_of(from_disk(5, 6, 9)))
    assert lost.take(10) == [(TRADE, [(5, 9), (20, 20)])]
    assert lost.take(10) == []


def test_an_update_of_an_open_bar_is_no_bar_that_is_lost() -> None:
    route = Route("kline", "raw", b"BTCUSDT", b"", 0, b"", "btcusdt@kline_1m")
    bar = {"t": 60_000, "T": 119_999, "s": "BTCUSDT", "i": "1m"}
    told = [json.dumps({"s": "BTCUSDT", "k": bar | {"x": closed}}).encode() for closed in (False, True)]
    read = [
        Event(route, value, 1, 0, 60_000, 119_999, final) for value, final in zip(told, (False, True), strict=True)
    ]
    from_disk = [Event(msgspec.structs.replace(route, stream=""), event.value, 1, 7) for event in read]
    for opened, closed in (read, from_disk):
        assert ids_of([opened]) == {}
        ((which, ids),) = ids_of([opened, closed]).items()
        assert (which.stream, ids) == ("btcusdt@kline_1m", [(60_000, 119_999)])


def test_what_no_exchange_gives_again_by_id_is_not_kept() -> None:
    lost = Lost()
    lost.note(ids_of(live(1, kind="depth_update") + live(2, kind="ticker") + [Event(live(1)[0].route, b"{}", 1)]))
    assert lost.take(10) == []


def test_so_many_are_given_out_and_streams_take_turns() -> None:
    lost = Lost()
    lost.note(ids_of(live(1, 3, 5) + live(1, 3, symbol="ETHUSDT")))
    assert [ids for _, ids in lost.take(2)] == [[(1, 1), (3, 3)]]
    assert [(which.symbol, ids) for which, ids in lost.take(1)] == [("ETHUSDT", [(1, 1)])]
    assert [(which.symbol, ids) for which, ids in lost.take(5)] == [("BTCUSDT", [(5, 5)]), ("ETHUSDT", [(3, 3)])]


def test_more_intervals_than_are_kept_are_not_remembered_and_those_that_are_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject, "MOST_OF_A_STREAM", 3)
    monkeypatch.setattr(subject, "MOST", 4)
    lost = Lost()
    lost.note(ids_of(live(1, 3, 5, 7, 9, 6) + live(1, 3, symbol="ETHUSDT")))
    assert [ids for _, ids in lost.take(10)] == [[(1, 1), (3, 3), (5, 6)], [(1, 1)]]
    lost.note(ids_of(live(1, 3, symbol="ETHUSDT")))
    assert [ids for _, ids in lost.take(10)] == [[(1, 1), (3, 3)]], "what was taken has made room"


def test_what_was_lost_since_a_checkpoint_began_is_told_also_when_it_was_taken() -> None:
    lost = Lost()
    lost.note(ids_of(live(1)))
    assert lost.begin() == {"btcusdt@trade": [(1, 1)]}
    lost.note(ids_of(live(2)))
    lost.take(10)
    assert lost.since() == {"btcusdt@trade": [(2, 2)]}
    assert lost.begin() == {}
    assert lost.since() == {}


def test_what_an_earlier_run_read_is_left_to_whoever_knows_what_of_it_is_missing() -> None:
    lost = Lost()
    lost.note(ids_of(live(1, 2, 3, 8) + live(1, symbol="ETHUSDT")))
    lost.forget("btcusdt@trade", 3)
    assert [ids for _, ids in lost.take(10)] == [[(1, 1)], [(3, 3), (8, 8)]]


def test_a_key_that_the_disk_has_spoiled_is_no_reason_to_fail() -> None:
    spoiled = [Event(Route("trade", "trades", b"BTC\xff", b"", 0, b""), b'{"s":"BTCUSDT","t":7}', 1)]
    (which,) = ids_of(spoiled)
    assert (which.stream, which.symbol) == ("btcusdt@trade", "BTC\ufffd")
    on_disk = subject.OnDisk()
    on_disk.add(spoiled)
    on_disk.gone(spoiled)
    assert on_disk.clear() == {}
    telemetry = Telemetry()
    telemetry.dropped(spoiled, "spool_full")
    assert telemetry.snapshot()["messages_dropped"] == 1
