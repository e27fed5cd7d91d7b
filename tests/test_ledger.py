"""The gap ledger: every record is as its schema says, in the order of what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator
from structlog.testing import capture_logs

from src.events import Event, Route
from src.holes import Gap
from src.ledger import HOUR_MS, Hours, Ledger
from src.lost import ids_of
from src.telemetry import Telemetry

if TYPE_CHECKING:
    from src.outbox import Note

SCHEMA = json.loads((Path(__file__).parents[1] / "docs/schemas/gap-ledger.schema.json").read_text())
GAP = Gap("btcusdt@aggTrade", "aggregate_trade", "BTCUSDT", 10, 19, "jump", 1_700_000_000_000)
DEPTH = Gap("btcusdt@depth@100ms", "depth_update", "BTCUSDT", 5, 7, "reconnect", 1_700_000_000_000)
BARS = Gap(
    "btcusdt@kline_1m", "kline", "BTCUSDT", 1_699_999_920_000, 1_699_999_979_999, "resume", 1_700_000_000_000
)


class Tally(NamedTuple):
    """What one stream brought, as `Continuity` tells it."""

    stream: str = "btcusdt@aggTrade"
    symbol: str = "BTCUSDT"
    event_type: str = "aggregate_trade"
    first: int = 1
    last: int = 100
    received: int = 95
    backfilled: int = 10
    duplicates: int = 5
    missing: int = 0


class Written:
    """A ledger, and what it wrote."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.telemetry = Telemetry()
        self.ledger = Ledger(self.notes.append, self.telemetry, "here")

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(note.value) for note in self.notes]

    @property
    def last(self) -> dict[str, Any]:
        return self.records[-1]

    def count(self, name: str) -> int:
        counted: int = self.telemetry.snapshot()[name]
        return counted


@pytest.fixture
def written() -> Written:
    return Written()


def write_each_kind(ledger: Ledger) -> None:
    """Write one record of each type."""
    ledger.gap_opened(GAP)
    ledger.gap_opened(GAP._replace(cause="dropped"))
    ledger.order_given_up(GAP, "waited_too_long")
    ledger.gap_unfillable(GAP, [(10, 12), (15, 15)], "too_old")
    ledger.gap_filled(GAP, 6)
    ledger.renumbered("btcusdt@trade", "BTCUSDT", 500, 3)
    ledger.snapshot_taken("btcusdt@depth@100ms", "BTCUSDT", 77)
    ledger.connection_opened(0, 4)
    ledger.connection_closed(0, 1008, "disconnected", "closed")
    ledger.connection_closed(1, None, "", "not_opened")
    ledger.connection_rotated(0, 2, "age")
    ledger.streams_changed(["ethusdt@trade"], [])
    ledger.quiet(1_699_999_200_000)
    ledger.resent(ids_of([Event(Route("trade", "trades", b"BTCUSDT", b"", 0, b""), b'{"s":"BTCUSDT","t":7}', 1)]))
    ledger.hour(Tally(), 1_699_999_200_000)
    ledger.hour(Tally(first=-1, last=-2, received=0, backfilled=0, duplicates=0), 1_699_999_200_000, partial=True)
    route = Route("trade", "trades", b"BTCUSDT", b"", 0, b"", "btcusdt@trade")
    lost = [Event(route, b"{}", 1, 0, number, number) for number in (4, 5, 9)]
    ledger.dropped(ids_of([*lost, Event(route, b"{}", 1)]), "spool_full")


def test_every_record_is_as_the_schema_says_and_there_is_one_of_every_type(written: Written) -> None:
    write_each_kind(written.ledger)
    Draft202012Validator.check_schema(SCHEMA)
    validator = Draft202012Validator(SCHEMA)
    for record in written.records:
        assert [error.message for error in validator.iter_errors(record)] == [], record
    described = {branch["properties"]["type"]["const"] for branch in SCHEMA["oneOf"]}
    assert {record["type"] for record in written.records} == described


@pytest.mark.parametrize(
    "change", [{"cause": "because"}, {"first": "10"}, {"more": 1}, {"at": "now"}, {"type": "gone"}]
)
def test_the_schema_refuses_what_no_record_is(written: Written, change: dict[str, Any]) -> None:
    written.ledger.gap_opened(GAP)
    assert not Draft202012Validator(SCHEMA).is_valid(written.last | change)


def test_records_are_keyed_by_symbol_or_connection_and_numbered(written: Written) -> None:
    write_each_kind(written.ledger)
    keys = {record["type"]: note.key for record, note in zip(written.records, written.notes, strict=True)}
    assert keys["opened"] == keys["hour"] == keys["dropped"] == keys["snapshot_taken"] == b"BTCUSDT"
    assert (keys["connection_rotated"], keys["streams_changed"]) == (b"connection-0", b"streams")
    assert keys["quiet"] == b"streams"
    numbers = [int(record["id"].rpartition("-")[2]) for record in written.records]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(
        note.timestamp_ms == record["at_ms"] for note, record in zip(written.notes, written.records, strict=True)
    )


def test_a_gap_is_counted_as_open_until_it_is_filled_or_all_of_it_is_given_up(written: Written) -> None:
    ledger = written.ledger
    ledger.gap_opened(GAP)
    ledger.gap_opened(DEPTH)
    assert (written.count("gaps_opened"), written.count("gaps_open")) == (2, 2)
    ledger.gap_unfillable(DEPTH, [(5, 7)], "no_source")
    assert (written.count("depth_gaps"), written.count("gaps_unfillable"), written.count("gaps_open")) == (1, 0, 1)
    ledger.gap_unfillable(GAP, [(10, 12)], "too_old")
    assert (written.count("gaps_unfillable"), written.count("ids_missing"), written.count("gaps_open")) == (
        1,
        3,
        1,
    )
    ledger.gap_filled(GAP, 7)
    assert (written.count("gaps_filled"), written.count("gaps_open")) == (1, 0)
    ledger.gap_opened(BARS)
    ledger.gap_unfillable(BARS, [(BARS.first, BARS.last)], "too_old")
    assert (written.count("gaps_unfillable"), written.count("ids_missing"), written.count("gaps_open")) == (
        2,
        3,
        0,
    )


def test_what_is_lost_is_an_error_in_the_log_and_depth_a_warning(written: Written) -> None:
    with capture_logs() as lines:
        for gap in (GAP, DEPTH):
            written.ledger.gap_opened(gap)
            written.ledger.order_given_up(gap, "waited_too_long")
            written.ledger.gap_unfillable(gap, [(gap.first, gap.last)], f"reason_of_{gap.event_type}")
        written.ledger.gap_filled(GAP, 1)
    told = [(line["event"], line["log_level"]) for line in lines]
    assert told == [
        ("gap_opened", "warning"),
        ("order_given_up", "warning"),
        ("gap_unfillable", "error"),
        ("gap_opened", "warning"),
        ("gap_unfillable", "warning"),
        ("gap_filled", "info"),
    ]


def test_a_closed_connection_tells_how_long_it_was_open(written: Written) -> None:
    written.ledger.connection_opened(0, 4)
    written.ledger.connection_closed(0, 1008, "x" * 1_000, "closed")
    assert 0 <= written.last["seconds"] < 5
    assert len(written.last["reason"]) == 500
    written.ledger.connection_closed(0, None, "", "not_opened")
    assert written.last["seconds"] is None


def test_lost_events_are_told_as_intervals_and_events_without_ids_are_left_out(written: Written) -> None:
    write_each_kind(written.ledger)
    assert written.last["missing"] == [[4, 5], [9, 9]]


def test_what_was_lost_from_the_disk_is_told_by_what_stands_in_it(written: Written) -> None:
    route = Route("trade", "trades", b"BTCUSDT", b"", 0, b"")  # no stream and no ids stand beside it there
    events = [Event(route, b'{"s":"BTCUSDT","t":%d}' % number, 1, number) for number in (7, 8)]
    written.ledger.dropped(ids_of(events), "full")
    assert (written.last["stream"], written.last["missing"]) == ("btcusdt@trade", [[7, 8]])


def test_a_gap_with_very_many_holes_is_told_in_records_that_kafka_takes(written: Written) -> None:
    wide = GAP._replace(last=100_000)
    written.ledger.gap_unfillable(wide, [(number, number) for number in range(10, 50_000, 2)], "too_old")
    assert sum(len(record["missing"]) for record in written.records) == 24_995
    assert max(len(note.value) for note in written.notes) < 50_000


def test_an_hour_is_told_when_it_has_passed_and_the_last_one_at_the_stop(written: Written) -> None:
    start = 1_699_999_200_000
    hours = Hours(written.ledger, lambda: [Tally()], start + 5)
    hours.tick(start + HOUR_MS - 1)
    assert written.records == []
    hours.tick(start + HOUR_MS)
    hours.tick(start + HOUR_MS + 1)
    hours.finish()
    told = [(record["hour_ms"], record["hour"], record["partial"]) for record in written.records]
    assert told == [
        (start, "2023-11-14T22:00:00.000Z", False),
        (start + HOUR_MS, "2023-11-14T23:00:00.000Z", True),
    ]
    assert (written.last["expected"], written.last["first_id"], written.last["last_id"]) == (100, 1, 100)


def test_an_hour_in_which_no_id_came_is_told_too_so_that_silence_means_that_no_service_runs(
    written: Written,
) -> None:
    start = 1_699_999_200_000
    hours = Hours(written.ledger, list, start)
    hours.tick(start + HOUR_MS)
    hours.finish()
    told = [(record["type"], record["hour_ms"], record["partial"]) for record in written.records]
    assert told == [("quiet", start, False), ("quiet", start + HOUR_MS, True)]
