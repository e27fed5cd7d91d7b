"""The completeness report: what the ledger tells in sum, and its verdict; from records, and from Kafka alone."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from config.kafka import KafkaConfig
from monitoring import main
from sandbox.brokers import free_port
from src.completeness_report import CompletenessReport
from src.completeness_verdict import as_json, drawn, verdict
from src.deadline import Deadline
from src.events import Event, Route
from src.flow import iso
from src.holes import Gap
from src.ledger import Ledger
from src.lost import ids_of
from src.outbox import Outbox
from src.telemetry import Telemetry
from tests.broker_fixtures import create_topics, read_all
from tests.test_event_schema import SCHEMA as EVENTS
from tests.test_kafka_producer import Rig, wait_until
from tests.test_ledger import SCHEMA, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandbox.brokers import Broker
    from sandbox.exchange import Exchange
    from src.lost import Ids
    from src.outbox import Note
    from tests.broker_fixtures import Topics
    from tests.service_fixtures import StartService


ROOT = Path(__file__).parents[1]
HOUR = 1_700_000_000_000 - 1_700_000_000_000 % 3_600_000
STREAM = "btcusdt@aggTrade"


class Book:
    """A real ledger whose records go straight into a report."""

    def __init__(self, minutes_ago: int | None = None) -> None:
        """Without the time since the last record, its age is not looked at."""
        now_ms = None if minutes_ago is None else time.time_ns() // 1_000_000 + minutes_ago * 60_000
        self.report = CompletenessReport(now_ms)
        self.records: list[dict[str, Any]] = []
        self._telemetry = Telemetry()
        self.ledger = self.next_run()

    def next_run(self) -> Ledger:
        self.ledger = Ledger(self._post, self._telemetry, f"run-{uuid.uuid4().hex[:6]}")
        return self.ledger

    def _post(self, note: Note) -> None:
        self.records.append(json.loads(note.value))
        self.report.add(self.records[-1])

    def hour(self, first: int, last: int, received: int, *, partial: bool = False, **more: int) -> None:
        self.ledger.hour(
            Tally(first=first, last=last, received=received, **({"backfilled": 0, "duplicates": 0} | more)),
            HOUR,
            partial=partial,
        )

    def told(self) -> dict[str, Any]:
        return as_json(self.report)

    def stream(self, name: str = STREAM) -> dict[str, Any]:
        return next(stream for stream in self.told()["streams"] if stream["stream"] == name)


@pytest.fixture
def book() -> Book:
    return Book()


def gap(first: int, last: int, cause: str = "jump", stream: str = STREAM, kind: str = "aggregate_trade") -> Gap:
    return Gap(stream, kind, "BTCUSDT", first, last, cause, HOUR)


def bars(first: int, last: int) -> Gap:
    """Make a gap of bars by their number."""
    return gap(first * 60_000, (last + 1) * 60_000 - 1, stream="btcusdt@kline_1m", kind="kline")


def depth(first: int, last: int) -> Gap:
    return gap(first, last, stream="btcusdt@depth@100ms", kind="depth_update")


def test_a_quiet_hour_is_complete(book: Book) -> None:
    book.hour(101, 200, 100)
    assert str(verdict(book.report)) == "complete"
    told = book.stream()
    assert (told["first"], told["last"], told["expected"], told["received"]) == (101, 200, 100, 100)


def test_a_filled_gap_leaves_nothing_missing(book: Book) -> None:
    book.ledger.gap_opened(gap(151, 160))
    book.ledger.gap_filled(gap(151, 160), 10)
    book.hour(101, 200, 95, backfilled=10, duplicates=5)
    assert verdict(book.report).complete
    told = book.stream()
    assert (told["received"], told["backfilled"], told["missing"], told["gaps"]) == (90, 10, 0, 1)


def test_an_open_gap_is_told_until_it_is_closed(book: Book) -> None:
    book.ledger.gap_opened(gap(151, 160))
    assert str(verdict(book.report)) == "1 gap still open"
    assert book.stream()["open"] == [
        {"gap": f"{STREAM}:151-160", "since": "2023-11-14T22:00:00.000Z", "left": [(151, 160)]}
    ]
    book.ledger.gap_unfillable(gap(151, 160), [(151, 155)], "too_old")
    assert str(verdict(book.report)) == "5 ids missing in 1 hole; 1 gap still open"
    book.ledger.gap_unfillable(gap(151, 160), [(156, 160)], "too_old")
    assert str(verdict(book.report)) == "10 ids missing in 1 hole"


def test_ids_that_were_given_up_are_missing_with_the_reason(book: Book) -> None:
    book.ledger.gap_opened(gap(151, 160))
    book.ledger.gap_unfillable(gap(151, 160), [(151, 152), (155, 155)], "not_given")
    book.ledger.gap_filled(gap(151, 160), 7)
    book.ledger.order_given_up(gap(151, 160), "waited_too_long")
    book.hour(101, 200, 90, backfilled=7)
    assert str(verdict(book.report)) == "3 ids missing in 2 holes"
    told = book.stream()
    assert (told["missing_ids"], told["reasons"], told["order_given_up"]) == (
        [(151, 152), (155, 155)],
        {"not_given": 3},
        1,
    )


def test_an_id_that_neither_came_nor_is_in_a_gap_is_found_by_arithmetic(book: Book) -> None:
    book.hour(101, 200, 97)
    assert not verdict(book.report).complete
    assert str(verdict(book.report)) == "3 ids missing in 1 hole"
    assert book.stream()["unexplained"] == 3


def test_repeats_and_a_new_numbering_do_not_upset_the_arithmetic(book: Book) -> None:
    book.hour(101, 200, 103, duplicates=3)
    book.ledger.renumbered(STREAM, "BTCUSDT", 201, 1)
    book.hour(1, 50, 20)
    assert verdict(book.report).complete
    assert book.stream()["renumbered"] == 1


def test_what_a_killed_run_told_of_no_more_is_a_remark_and_what_was_fetched_for_it_counts(book: Book) -> None:
    book.hour(101, 200, 100)
    book.next_run()
    book.ledger.gap_opened(gap(251, 300, "resume"))
    book.ledger.gap_filled(gap(251, 300, "resume"), 50)
    book.hour(301, 400, 100)
    assert verdict(book.report).complete
    assert str(verdict(book.report)) == "complete; 50 ids that no record tells of"


def test_a_gap_that_goes_on_in_the_next_run_is_not_left_open(book: Book) -> None:
    book.ledger.gap_opened(gap(151, 160))
    book.next_run()
    for left in (gap(153, 154, "resume"), gap(158, 160, "resume")):
        book.ledger.gap_opened(left)
    assert str(verdict(book.report)) == "2 gaps still open"
    book.ledger.gap_filled(gap(153, 154, "resume"), 2)
    book.ledger.gap_unfillable(gap(158, 160, "resume"), [(158, 160)], "too_old")
    assert str(verdict(book.report)) == "3 ids missing in 1 hole"


def test_a_hole_in_depth_is_no_fault_once_a_snapshot_has_followed(book: Book) -> None:
    book.ledger.gap_opened(depth(5, 9))
    book.ledger.gap_unfillable(depth(5, 9), [(5, 9)], "not_kept_by_the_exchange")
    assert str(verdict(book.report)) == "1 hole in depth without a snapshot"
    assert not verdict(book.report).complete
    book.ledger.snapshot_taken("btcusdt@depth@100ms", "BTCUSDT", 12)
    assert verdict(book.report).complete
    assert str(verdict(book.report)) == "complete; 1 hole in depth, each followed by a snapshot"


def test_updates_of_a_book_that_were_dropped_are_no_fault_once_a_snapshot_has_followed(book: Book) -> None:
    book.ledger.snapshot_taken("btcusdt@depth@100ms", "BTCUSDT", 4)
    route = Route("depth_update", "depth", b"BTCUSDT", b"", 0, b"", "btcusdt@depth@100ms")
    time.sleep(0.002)  # the records' times are ms
    book.ledger.dropped(ids_of([Event(route, b"", 1, 0, 5, 9), Event(route, b"", 1, 0, 20, 22)]), "spool_full")
    assert str(verdict(book.report)) == "2 holes in depth without a snapshot"
    book.ledger.snapshot_taken("btcusdt@depth@100ms", "BTCUSDT", 30)
    assert str(verdict(book.report)) == "complete; 2 holes in depth, each followed by a snapshot"


def test_bars_are_counted_as_bars(book: Book) -> None:
    book.ledger.gap_opened(bars(100, 104))
    book.ledger.gap_unfillable(bars(100, 104), [(100 * 60_000, 103 * 60_000 - 1)], "too_old")
    book.ledger.gap_filled(bars(100, 104), 2)
    assert str(verdict(book.report)) == "3 bars missing"


def test_events_that_were_dropped_are_missing_unless_they_are_fetched_later(book: Book) -> None:
    book.hour(101, 200, 100)
    book.ledger.dropped(dropped(*range(120, 130)), "spool_full")
    assert str(verdict(book.report)) == "10 ids missing in 1 hole"
    book.ledger.gap_opened(gap(120, 129, "resume"))
    book.ledger.gap_filled(gap(120, 129, "resume"), 10)
    assert verdict(book.report).complete


def dropped(*ids: int) -> Ids:
    route = Route("aggregate_trade", "trades", b"BTCUSDT", b"", 0, b"", STREAM)
    return ids_of([Event(route, b"", 1, 0, number, number) for number in ids])


def test_what_was_dropped_is_missing_only_until_it_was_fetched_and_again_when_that_was_dropped(book: Book) -> None:
    book.hour(101, 200, 100)
    book.ledger.dropped(dropped(*range(120, 130)), "spool_full")
    book.ledger.gap_opened(gap(120, 129, "dropped"))
    assert str(verdict(book.report)) == "1 gap still open"
    book.ledger.gap_filled(gap(120, 129, "dropped"), 10)
    assert str(verdict(book.report)) == "complete"
    book.ledger.dropped(dropped(125, 126), "spool_full")
    assert str(verdict(book.report)) == "2 ids missing in 1 hole"
    assert book.stream()["reasons"] == {"spool_full": 2}
    book.ledger.gap_opened(gap(125, 126, "dropped"))
    book.ledger.gap_unfillable(gap(125, 126, "dropped"), [(125, 126)], "not_served")
    assert book.stream()["reasons"] == {"not_served": 2}


def test_what_kafka_refused_is_told_apart_from_what_is_lost_until_it_was_sent_again(book: Book) -> None:
    book.hour(101, 200, 100)
    book.ledger.dropped(dropped(120, 121, 130), "dead_letter")
    assert str(verdict(book.report)) == "3 dead letters, see dead_letters.py"
    assert not verdict(book.report).complete
    told = book.stream()
    assert (told["missing"], told["reasons"], told["unexplained"]) == (0, {}, 0)
    assert (told["dead_letters"], told["dead_letter_ids"]) == (3, [(120, 121), (130, 130)])
    book.ledger.dropped(dropped(140), "spool_full")
    assert str(verdict(book.report)) == "1 ids missing in 1 hole; 3 dead letters, see dead_letters.py"
    book.ledger.resent(dropped(120, 121))
    assert book.stream()["dead_letter_ids"] == [(130, 130)]
    book.ledger.resent(dropped(130, 140))
    assert str(verdict(book.report)) == "complete"


def test_dead_letters_that_were_sent_again_before_the_ledger_told_of_them_are_none(book: Book) -> None:
    book.hour(101, 200, 100)
    notes: list[Note] = []
    late = Ledger(notes.append, Telemetry())
    late.dropped(dropped(120, 121), "dead_letter")
    book.ledger.resent(dropped(120, 121))
    book.report.add(json.loads(notes[0].value))
    assert str(verdict(book.report)) == "complete"
    time.sleep(0.002)
    book.ledger.dropped(dropped(121), "dead_letter")  # refused once more
    assert book.stream()["dead_letter_ids"] == [(121, 121)]


def test_an_update_of_a_book_that_was_sent_again_is_no_dead_letter_any_more(book: Book) -> None:
    live = Route("depth_update", "depth", b"BTCUSDT", b"", 0, b"", "btcusdt@depth@100ms")
    again = Route("depth_update", "depth", b"BTCUSDT", b"", 0, b"")
    value = b'{"s":"BTCUSDT","U":5,"u":9}'
    book.ledger.dropped(ids_of([Event(live, value, 1, 0, 5, 9)]), "dead_letter")
    assert book.report.streams["btcusdt@depth@100ms"].dead_letters == [(5, 9)]
    book.ledger.resent(ids_of([Event(again, value, 1)]))
    assert book.report.streams["btcusdt@depth@100ms"].dead_letters == []


def test_sending_dead_letters_again_is_no_sign_of_life() -> None:
    hours_ago = int(time.time() * 1000) - 5 * 3_600_000
    notes: list[Note] = []
    ledger = Ledger(notes.append, Telemetry())
    ledger.resent(dropped(120))
    alone = CompletenessReport(int(time.time() * 1000))
    alone.add(json.loads(notes[0].value))
    assert not verdict(alone).complete
    report = CompletenessReport(int(time.time() * 1000))
    ledger.quiet(0)
    report.add(json.loads(notes[1].value) | {"at_ms": hours_ago})
    report.add(json.loads(notes[0].value))
    assert verdict(report).unknown_since == iso(hours_ago)


def test_an_update_of_a_book_that_kafka_refused_is_a_hole_until_a_snapshot_follows(book: Book) -> None:
    book.ledger.snapshot_taken("btcusdt@depth@100ms", "BTCUSDT", 4)
    time.sleep(0.002)  # the records' times are ms
    from_disk = Route("depth_update", "depth", b"BTCUSDT", b"", 0, b"")
    book.ledger.dropped(ids_of([Event(from_disk, b'{"s":"BTCUSDT","U":5,"u":9}', 1)]), "dead_letter")
    assert str(verdict(book.report)) == "1 hole in depth without a snapshot"
    book.ledger.snapshot_taken("btcusdt@depth@100ms", "BTCUSDT", 30)
    assert str(verdict(book.report)) == "complete; 1 hole in depth, each followed by a snapshot"


def test_what_came_for_a_gap_and_was_dropped_before_the_rest_came_is_missing(book: Book) -> None:
    book.hour(101, 200, 100)
    book.ledger.dropped(dropped(*range(120, 130)), "spool_full")
    book.ledger.gap_opened(gap(120, 129, "dropped"))
    book.ledger.dropped(dropped(*range(120, 125)), "spool_full")
    book.ledger.gap_filled(gap(120, 129, "dropped"), 10)
    assert str(verdict(book.report)) == "5 ids missing in 1 hole"
    book.ledger.gap_opened(gap(120, 124, "dropped"))
    assert verdict(book.report).open == 1
    book.ledger.gap_filled(gap(120, 124, "dropped"), 5)
    assert str(verdict(book.report)) == "complete"


def test_what_was_fetched_again_does_not_hide_what_never_came(book: Book) -> None:
    book.ledger.dropped(dropped(*range(120, 130)), "spool_full")
    book.ledger.gap_opened(gap(120, 129, "dropped"))
    book.ledger.gap_filled(gap(120, 129, "dropped"), 10)
    book.hour(101, 200, 97, backfilled=10)
    assert book.stream()["unexplained"] == 3


def test_what_a_killed_run_dropped_and_the_next_one_fetched_is_explained(book: Book) -> None:
    book.ledger.dropped(dropped(*range(120, 130)), "spool_full")
    book.next_run()
    book.ledger.gap_opened(gap(120, 129, "resume"))
    book.ledger.gap_filled(gap(120, 129, "resume"), 10)
    book.hour(201, 300, 100)
    assert str(verdict(book.report)) == "complete; 71 ids that no record tells of"


def test_a_gap_whose_events_were_dropped_and_fetched_again_explains_itself(book: Book) -> None:
    book.ledger.gap_opened(gap(151, 160))
    book.ledger.gap_filled(gap(151, 160), 10)
    book.ledger.dropped(dropped(*range(151, 161)), "spool_full")
    assert str(verdict(book.report)) == "10 ids missing in 1 hole"
    book.ledger.gap_opened(gap(151, 160, "dropped"))
    book.ledger.gap_filled(gap(151, 160, "dropped"), 10)
    book.hour(101, 200, 90, backfilled=20)
    assert str(verdict(book.report)) == "complete"


def test_a_record_that_is_there_twice_counts_once_and_what_is_none_of_ours_is_told(book: Book) -> None:
    book.hour(101, 200, 100)
    book.report.add(book.records[-1])
    assert book.stream()["received"] == 100
    for odd in (None, 7, [], {}, {"id": "x", "type": "poem"}, {"id": "y", "type": "hour", "stream": STREAM}):
        book.report.add(odd)  # type: ignore[arg-type]
    assert str(verdict(book.report)) == "6 records not readable"


def test_an_empty_ledger_is_not_taken_for_completeness(book: Book) -> None:
    assert not verdict(book.report).complete
    assert str(verdict(book.report)) == "no record: nothing is known"


UNKNOWN = r"nothing is known since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z: "
DEAD = UNKNOWN + "no service has written to the ledger since, as one that runs does every hour"


def test_a_service_that_has_been_dead_for_hours_is_not_taken_for_completeness() -> None:
    book = Book(minutes_ago=70)
    book.hour(101, 200, 100)
    assert not verdict(book.report).complete
    assert re.fullmatch(DEAD, str(verdict(book.report)))
    assert (book.told()["complete"], book.told()["unknown_since"]) == (False, book.told()["to"])


@pytest.mark.parametrize("minutes", [0, 59, 64])
def test_a_service_that_writes_every_hour_is_complete_up_to_now(minutes: int) -> None:
    book = Book(minutes_ago=minutes)
    book.hour(101, 200, 100)
    assert str(verdict(book.report)) == "complete"
    assert book.told()["unknown_since"] is None


def test_an_hour_in_which_no_id_came_is_a_sign_of_life() -> None:
    book = Book(minutes_ago=30)
    book.ledger.quiet(HOUR)
    assert str(verdict(book.report)) == "complete"


def test_a_service_that_was_stopped_in_order_is_told_as_such() -> None:
    book = Book(minutes_ago=70)
    book.hour(101, 200, 100, partial=True)
    assert re.fullmatch(UNKNOWN + "the service was stopped", str(verdict(book.report)))
    assert not verdict(book.report).complete
    book.next_run().connection_opened(0, 20)
    assert re.fullmatch(DEAD, str(verdict(book.report))), "started again, and killed"


def test_connections_are_told_with_their_ends_and_lifetimes(book: Book) -> None:
    for code in (1008, 1008, None):
        book.ledger.connection_opened(0, 20)
        book.ledger.connection_closed(0, code, "bye" if code else "timed out", "closed" if code else "lost")
    book.ledger.connection_rotated(0, 1, "age")
    (told,) = book.told()["connections"]
    assert told["closed"] == [
        {"code": 1008, "cause": "closed", "reason": "bye", "times": 2},
        {"code": None, "cause": "lost", "reason": "timed out", "times": 1},
    ]
    assert (told["opened"], told["rotated"]) == (3, {"age": 1})
    assert 0 <= told["seconds"]["shortest"] <= told["seconds"]["longest"] < 5


def test_a_report_is_drawn_with_all_that_is_wrong_and_nothing_that_a_terminal_obeys(book: Book) -> None:
    book.hour(101, 200, 90, backfilled=7)
    book.ledger.gap_opened(gap(151, 160))
    book.ledger.gap_unfillable(
        gap(151, 160), [(number, number) for number in range(151, 161, 2)] + [(160, 160)], "too_old"
    )
    book.ledger.connection_opened(0, 20)
    book.ledger.connection_closed(0, 1008, "\x1b[31mred", "closed")
    book.ledger.dropped(dropped(*range(161, 175, 2)), "dead_letter")
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(drawn(book.report))
    console.file.close()
    text = console.export_text()
    assert "missing 151..151, 153..153, 155..155, 157..157, 159..160 (6 too_old)" in text
    assert f"{STREAM}:151-160 open since 2023-11-14T22:00:00.000Z" in text
    assert "1x 1008 ?[31mred" in text
    assert f"{STREAM}: dead letters 161..161, 163..163, 165..165, 167..167, 169..169 and 2 more" in text
    says = "6 ids missing in 5 holes; 1 gap still open; 7 dead letters, see dead_letters.py"
    assert text.rstrip().endswith(says)


def test_in_a_narrow_terminal_no_stream_and_no_number_is_cut(book: Book) -> None:
    book.hour(5_123_456_789, 5_123_456_888, 100)
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(drawn(book.report))
    console.file.close()
    text = console.export_text()
    assert STREAM in text
    assert "…" not in text


class Ran(NamedTuple):
    exit_code: int
    out: str
    err: str


def run(servers: str, topic: str, *arguments: str) -> Ran:
    plain = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, str(ROOT / "monitoring.py"), "--completeness", *arguments],
        cwd=ROOT / "tests",  # where no .env of the user is
        env=plain | {"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_TOPIC_GAPS": topic},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.kafka
def test_the_report_comes_from_kafka_alone(broker: Broker, tmp_path: Path) -> None:
    servers, topic = broker.bootstrap_servers, f"gaps-{uuid.uuid4().hex[:12]}"
    rig = Rig(KafkaConfig(bootstrap_servers=(servers,), topic_gaps=topic), tmp_path)
    box = Outbox(tmp_path, topic, rig.sink, rig.telemetry, rig.ended.append)
    ledger = Ledger(box.post, rig.telemetry, "here")
    box.start()
    rig.start()
    for number in itertools.islice(itertools.count(1, 100), 300):
        ledger.hour(Tally(first=number, last=number + 99, received=100, backfilled=0, duplicates=0), HOUR)
    wait_until(lambda: not box.waiting)
    good = run(servers, topic)
    assert (good.exit_code, good.err) == (0, "")
    assert good.out.splitlines()[-1].strip() == "complete"
    assert STREAM in good.out
    assert "order given up" in good.out
    ledger.gap_opened(gap(30_001, 30_010))
    ledger.gap_unfillable(gap(30_001, 30_010), [(30_001, 30_004)], "too_old")
    ledger.gap_filled(gap(30_001, 30_010), 6)
    box.close(Deadline(5.0))
    rig.close(5.0)
    bad = run(servers, topic, "--json")
    assert bad.exit_code == 1
    told = json.loads(bad.out)
    assert (told["complete"], told["verdict"], told["records"]) == (False, "4 ids missing in 1 hole", 303)
    assert told["streams"][0]["missing_ids"] == [[30_001, 30_004]]


def assert_as_the_schemas_say(topics: Topics) -> None:
    """Hold all that is in Kafka, live, fetched and of the ledger, against its schema."""
    for names, schema in ((topics.names, EVENTS), ((topics.gaps,), SCHEMA)):
        validator = Draft202012Validator(schema)
        for record in read_all(topics.bootstrap_servers, *names):
            assert [error.message for error in validator.iter_errors(json.loads(record.value or b""))] == []
    sources = {json.loads(one.value or b"")["source"] for one in read_all(topics.bootstrap_servers, *topics.names)}
    assert sources == {"binance_websocket", "binance_rest_backfill", "binance_rest_snapshot"}


@pytest.mark.kafka
def test_the_ledger_of_a_running_service_tells_of_a_cut_and_that_nothing_is_missing(
    exchange_factory: Callable[..., Exchange], topics: Topics, start_service: StartService
) -> None:
    exchange = exchange_factory(rate=300, symbols=("BTCUSDT", "ETHUSDT"))
    service = start_service(
        exchange.ws_url,
        topics,
        BINANCE_SYMBOLS="BTCUSDT,ETHUSDT",
        BACKFILL_ENABLED="true",
        CONNECTION_RECONNECT_INTERVAL="0.3",
        CONNECTION_BATCH_TIMEOUT_SECONDS="0.3",
    )
    service.ready()
    service.wait_for(lambda: service.status()["kafka_produced"] > 200, "200 delivered")
    exchange.cut()
    service.wait_for(lambda: service.status()["gaps_filled"] >= 4, "all filled", within=30)
    service.wait_for(lambda: service.status()["snapshots_taken"] >= 4, "snapshots taken", within=30)
    service.wait_for(lambda: not service.status()["gaps_open"], "no gap open", within=30)
    assert service.stop() == 0
    ran = run(topics.bootstrap_servers, topics.gaps, "--json")
    told = json.loads(ran.out)
    assert (ran.exit_code, told["complete"]) == (0, True), told
    trades = [stream for stream in told["streams"] if stream["stream"].lower().endswith("trade")]
    assert len(trades) == 4
    for stream in trades:
        assert stream["gaps"] >= 1
        assert stream["expected"] == stream["received"] + stream["backfilled"] > 0
        assert stream["backfilled"] > 0
        assert stream["missing"] == stream["unexplained"] == stream["untold"] == 0
    assert_as_the_schemas_say(topics)
    (connection,) = [each for each in told["connections"] if each["opened"]]
    assert (connection["opened"], sum(each["times"] for each in connection["closed"])) == (2, 2)


@pytest.mark.kafka
def test_since_leaves_out_what_is_older(broker: Broker, tmp_path: Path) -> None:
    servers, topic = broker.bootstrap_servers, f"gaps-{uuid.uuid4().hex[:12]}"
    create_topics(servers, [topic])
    rig = Rig(KafkaConfig(bootstrap_servers=(servers,), topic_gaps=topic), tmp_path)
    box = Outbox(tmp_path, topic, rig.sink, rig.telemetry, rig.ended.append)
    two_days_ago = int(time.time() * 1000) - 2 * 86_400_000
    old = Ledger(lambda note: box.post(note._replace(timestamp_ms=two_days_ago)), rig.telemetry, "here")
    old.gap_opened(gap(1, 10))
    new = Ledger(box.post, rig.telemetry, "there")
    new.hour(Tally(first=11, last=20, received=10, backfilled=0, duplicates=0), HOUR)
    box.start()
    rig.start()
    wait_until(lambda: not box.waiting)
    box.close(Deadline(5.0))
    rig.close(5.0)
    assert run(servers, topic).exit_code == 1
    recent = run(servers, topic, "--since", "24h")
    assert (recent.exit_code, recent.out.splitlines()[-1].strip()) == (0, "complete")


@pytest.mark.kafka
def test_a_ledger_that_ended_hours_ago_is_told_with_the_time(broker: Broker, tmp_path: Path) -> None:
    servers, topic = broker.bootstrap_servers, f"gaps-{uuid.uuid4().hex[:12]}"
    rig = Rig(KafkaConfig(bootstrap_servers=(servers,), topic_gaps=topic), tmp_path)
    box = Outbox(tmp_path, topic, rig.sink, rig.telemetry, rig.ended.append)
    two_hours_ago = time.time_ns() // 1_000_000 - 2 * 3_600_000

    def post_as_then(note: Note) -> None:
        told = json.loads(note.value) | {"at_ms": two_hours_ago, "at": iso(two_hours_ago)}
        box.post(note._replace(value=json.dumps(told).encode(), timestamp_ms=two_hours_ago))

    Ledger(post_as_then, rig.telemetry, "here").hour(Tally(backfilled=0, duplicates=0, received=100), HOUR)
    box.start()
    rig.start()
    wait_until(lambda: not box.waiting)
    box.close(Deadline(5.0))
    rig.close(5.0)
    for asked in ([], ["--since", "24h"]):
        ran = run(servers, topic, *asked)
        assert (ran.exit_code, ran.err) == (1, "")
        assert ran.out.splitlines()[-1].startswith(f"nothing is known since {iso(two_hours_ago)}: no service has")


@pytest.mark.kafka
def test_a_ledger_that_is_not_there_is_one_clear_line(broker: Broker) -> None:
    ran = run(broker.bootstrap_servers, "nowhere")
    assert ran == (1, "", "monitoring: there is no topic nowhere; the service and setup_kafka.py make it\n")


def test_no_broker_is_one_clear_line() -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    ran = run(nowhere, "gaps")
    assert (ran.exit_code, ran.out) == (1, "")
    (line,) = ran.err.splitlines()
    assert line.startswith(f"monitoring: no connection to Kafka at {nowhere}: ")
    assert "check KAFKA_BOOTSTRAP_SERVERS" in line


@pytest.mark.parametrize(
    "arguments", [["--since", "soon"], ["--since", "0h"], ["--since", "24"], ["--since", "99999d"]]
)
def test_a_wrong_age_is_refused(arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--completeness", *arguments])
    assert ended.value.code == 2
