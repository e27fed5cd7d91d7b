"""Between buffer and producer nothing is lost or overtaken and everything counted, whatever Kafka and disk do.

The first half steps through the state machine by hand, the second runs its threads; the scenarios of the second
also run on the real sink and a real broker.
"""

from __future__ import annotations

import itertools
import random
import shutil
import sqlite3
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import closing
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.kafka import KafkaConfig
from config.settings import DeliveryConfig, SpoolConfig
from src import spool_file
from src.deadline import Deadline
from src.delivery import Delivery
from src.events import Decoded, Event, Route
from src.holes import joined
from src.kafka_producer import KafkaSink
from src.lost import DEAD_LETTER, Lost, ids_of
from src.spool import FILE, Spool, SpoolDamaged, SpoolFailed
from src.telemetry import Telemetry
from tests.broker_fixtures import Topics, create_topics, read_all
from tests.scripted_kafka import Clockwork, ScriptedKafka
from tests.service_fixtures import balanced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from sandbox.brokers import Broker
    from src.lost import Ids
    from src.worker import Worker

LIMIT = 30.0
NOW = int(time.time() * 1000) - 60_000
SYMBOLS = (b"BTCUSDT", b"ETHUSDT", b"BNBUSDT")


def wait_until(holds: Callable[[], Any], what: str, within: float = LIMIT) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.002)


class Feed:
    """Numbered events of three symbols in two topics."""

    def __init__(self, trades: str = "trades", depth: str = "depth") -> None:
        self._routes = [
            Route(kind, topic, key, b"", 0, b"")
            for kind, topic in (("trade", trades), ("depth_update", depth))
            for key in SYMBOLS
        ]
        self.made: list[Event] = []
        self._last_ids: Counter[Route] = Counter()

    def events(self, count: int, size: int = 40) -> list[Event]:
        start = len(self.made) + 1
        new = [
            Event(self._routes[number * 7 % 11 % 6], b"%d " % number + b"." * size, NOW)
            for number in range(start, start + count)
        ]
        self.made += new
        return new

    def counted(self, count: int) -> list[Event]:
        """Make events that carry ids, beside them and in them."""
        start = len(self.made) + 1
        new = [self._next_of(self._routes[number * 7 % 11 % 6]) for number in range(start, start + count)]
        self.made += new
        return new

    def _next_of(self, route: Route) -> Event:
        self._last_ids[route] += 1
        number = self._last_ids[route]
        symbol = (route.key or b"").decode()
        kind, ids = ("trade", '"t":%d') if route.event_type == "trade" else ("depth@100ms", '"U":%d,"u":%d')
        stream = f"{symbol.lower()}@{kind}"
        value = f'{{"s":"{symbol}",{ids % ((number,) * ids.count("%"))}}}'.encode()
        return Event(_named(route, stream), value, NOW, 0, number, number)

    def one(self, topic: int, value: bytes) -> Event:
        event = Event(self._routes[topic], value, NOW)
        self.made.append(event)
        return event


@cache
def _named(route: Route, stream: str) -> Route:
    return Route(route.event_type, route.topic, route.key, b"", 0, b"", stream)


class Rig:
    """A delivery on a sink and a spool, fed as the pipeline feeds it."""

    def __init__(self, sink: Any, folder: Path, feed: Feed, refetchable: str = "trades", **spool: Any) -> None:
        self.telemetry = Telemetry()
        self.ended: list[Worker] = []
        self.sink = sink(self.telemetry, self.ended.append) if callable(sink) else sink
        self.spool = Spool(SpoolConfig(**({"path": folder, "min_free_bytes": 0} | spool)))
        self.feed = feed
        self.folder = folder
        self.lost = Lost()
        self.delivery = Delivery(self.sink, self.spool, refetchable, self.telemetry, self.ended.append, self.lost)
        self.slowest = 0.0

    def accept(self, count: int, **more: Any) -> None:
        self.take(self.feed.events(count, **more))

    def take(self, events: list[Event]) -> None:
        self.telemetry.received(Decoded(events), NOW)
        started = time.monotonic()
        self.delivery.accept(events)
        self.slowest = max(self.slowest, time.monotonic() - started)

    def step(self) -> None:
        self.delivery._step()

    def __getitem__(self, name: str) -> Any:
        return self.telemetry.snapshot()[name]

    def close(self, seconds: float = 5.0) -> None:
        deadline = Deadline(seconds)
        self.delivery.finish(deadline)
        self.delivery.close(deadline)

    def assert_accounted_for(self) -> None:
        """Check the equation, and that no part of it is negative."""
        metrics = self.telemetry.snapshot()
        assert balanced(metrics), metrics
        assert all(value >= 0 for value in metrics.values() if isinstance(value, int)), metrics

    def assert_at_rest(self) -> None:
        self.assert_accounted_for()
        metrics = self.telemetry.snapshot()
        assert metrics["messages_in_flight"] == self.sink.in_flight.records == 0
        assert self.sink.in_flight.bytes == 0
        assert metrics["messages_buffered"] == 0
        assert metrics["messages_spooled"] == self.spool.count
        assert [worker.failure for worker in self.ended if worker.failure] == []


def by_line(values: Iterable[tuple[str, bytes | None, bytes]]) -> dict[tuple[str, bytes | None], list[bytes]]:
    lines = defaultdict(list)
    for topic, key, value in values:
        lines[topic, key].append(value)
    return lines


def lines_of(events: Iterable[Event]) -> dict[tuple[str, bytes | None], list[bytes]]:
    return by_line((event.route.topic, event.route.key, event.value) for event in events)


def first_ones(values: list[bytes]) -> list[bytes]:
    return list(dict.fromkeys(values))


def assert_complete_and_in_order(
    written: dict[tuple[str, bytes | None], list[bytes]], expected: list[Event], possible_duplicates: int
) -> None:
    """Each line holds what was expected, first writings in order, and no more duplicates than were counted."""
    wanted = lines_of(expected)
    assert set(written) <= set(wanted)
    for line, values in wanted.items():
        assert first_ones(written.get(line, [])) == values, line
    duplicates = sum(len(values) - len(set(values)) for values in written.values())
    assert duplicates <= possible_duplicates


# By hand


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Make rigs whose threads do not run: the test does what they would."""
    made: list[Rig] = []

    def make(kafka: ScriptedKafka, **spool: Any) -> Rig:
        made.append(Rig(kafka, tmp_path / f"spool-{len(made)}", Feed(), **spool))
        return made[-1]

    yield make
    for rig in made:
        rig.spool.close()


def answer_all(rig: Rig) -> None:
    while lines := rig.sink.lines():
        for line in lines:
            rig.sink.answer(line)


def drain(rig: Rig) -> None:
    """Let a healthy Kafka take everything."""
    rig.sink.in_flight.stalled = None
    if rig.sink.broken or not rig.sink.ready:
        rig.sink.end()
        rig.sink.reopen()
    for _ in range(200):
        answer_all(rig)
        step_and_mend(rig)
        if not rig.spool.count and not rig.sink.in_flight.records:
            break
    rig.assert_at_rest()
    assert not rig.spool.count


def test_a_healthy_kafka_gets_everything_directly_and_the_disk_nothing(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka())
    for _ in range(10):
        rig.accept(100)
        rig.step()
        assert rig.spool.last_seq == 0
        answer_all(rig)
    rig.assert_at_rest()
    assert rig["kafka_produced"] == 1000
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)


class Hasty(ScriptedKafka):
    """Acknowledges what it takes before `send` has returned, as a producer's own thread may."""

    rig: Rig

    def send(self, events: list[Event]) -> int:
        taken = super().send(events)
        for line in self.lines():
            self.answer(line)
            self.rig.assert_accounted_for()
        return taken


def test_a_short_stop_waits_for_kafka_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(ScriptedKafka(), tmp_path / "spool", Feed())
    monkeypatch.setattr(rig.sink, "FORCE_SECONDS", 60.0)
    rig.delivery.start()
    rig.accept(100)
    answers = threading.Timer(0.3, answer_all, [rig])
    answers.start()
    rig.close(20.0)
    answers.join()
    assert (rig["kafka_produced"], rig["messages_spooled"]) == (100, 0)


def test_what_is_acknowledged_at_once_was_in_flight_before(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(Hasty(records=150, is_open=False))
    rig.sink.rig = rig
    rig.accept(1_000)
    rig.sink.reopen()
    for _ in range(20):
        rig.step()
        rig.assert_accounted_for()
    assert not rig.delivery.spooling
    rig.accept(100)
    rig.assert_accounted_for()
    rig.accept(200)  # more than it takes
    rig.assert_accounted_for()
    drain(rig)
    assert rig["kafka_produced"] == rig["messages_processed"] == 1_300
    assert rig["buffer_flushes"] == 3
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)


def test_without_a_producer_everything_goes_to_disk_and_later_to_kafka_in_order(
    by_hand: Callable[..., Rig],
) -> None:
    rig = by_hand(ScriptedKafka(is_open=False))
    for _ in range(50):
        rig.accept(100)
    rig.step()
    assert rig["messages_spooled"] == rig.spool.count == 5000
    rig.sink.reopen()
    rig.step()
    rig.accept(100)
    assert rig["messages_spooled"] > 0, "new ones behind the old"
    drain(rig)
    rig.accept(10)
    assert rig.spool.count == 0, "direct again"
    drain(rig)
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)


def test_a_stall_puts_on_disk_what_is_in_flight_also_when_the_bound_was_reached_first(
    by_hand: Callable[..., Rig],
) -> None:
    rig = by_hand(ScriptedKafka(records=300))
    rig.accept(500)
    assert rig.spool.count == 200
    rig.sink.in_flight.stalled = 1.1
    rig.step()
    assert content_of(rig.spool) == rig.feed.made
    assert rig["messages_spooled"] == 200
    assert rig["messages_in_flight"] == 300
    drain(rig)
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)


def content_of(spool: Spool) -> list[Event]:
    """Return the events on disk, to be compared by value with those that were made."""
    made = {event.seq: event for event in spool.read(0, 10**6)}
    return _Same.of(made.values())


class _Same(list[Any]):
    @classmethod
    def of(cls, events: Iterable[Event]) -> _Same:
        return cls(events)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and [one.value for one in self] == [one.value for one in other]

    __hash__ = None  # type: ignore[assignment]


def test_what_waits_for_one_partition_is_put_on_disk_while_the_others_flow_directly(
    by_hand: Callable[..., Rig],
) -> None:
    rig = by_hand(ScriptedKafka())
    stuck: list[Event] = []
    for _ in range(5):
        stuck += let_all_but_one_line_flow(rig, 600)
        rig.sink.aged = 0.0
        rig.step()
        rig.sink.aged = 2.1
        rig.delivery._copies.look_at_once()
        rig.step()
        assert content_of(rig.spool) == stuck
        assert not rig.delivery.spooling
    assert rig["messages_spooled"] == 0
    assert rig["messages_in_flight"] == len(stuck)
    rig.sink.lose_the_producer()
    drain(rig)
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)
    rig.accept(10)
    assert rig.spool.count == 0, "direct again"


def let_all_but_one_line_flow(rig: Rig, count: int) -> list[Event]:
    """Accept events and answer all but those of one line; return those."""
    first = len(rig.feed.made)
    rig.accept(count)
    lines = sorted(rig.sink.lines())
    for line in lines[1:]:
        rig.sink.answer(line)
    return lines_in(rig.feed.made[first:], lines[0])


def lines_in(events: Iterable[Event], line: tuple[str, bytes | None]) -> list[Event]:
    return [event for event in events if (event.route.topic, event.route.key) == line]


def test_nothing_is_put_on_disk_while_it_lingers(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka())
    rig.sink.in_flight.lingering_seconds = 2.0
    let_all_but_one_line_flow(rig, 600)
    for aged, on_disk in ((3.9, False), (4.1, True)):
        rig.sink.aged = aged
        rig.delivery._copies.look_at_once()
        rig.step()
        assert bool(rig.spool.count) is on_disk
    assert not rig.delivery.spooling
    rig.sink.in_flight.lingering_seconds = 60.0
    let_all_but_one_line_flow(rig, 600)
    rig.sink.aged = 5.1
    rig.delivery._copies.look_at_once()
    rig.step()
    assert rig.spool.count == rig.sink.in_flight.records, "no longer than a flush, however long it may linger"
    drain(rig)


def test_what_waits_is_offered_again_to_a_disk_that_did_not_take_it(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka())
    disk = unwilling(rig)
    disk.failing = {"append"}
    stuck = let_all_but_one_line_flow(rig, 600)
    rig.sink.aged = 2.1
    rig.step()
    assert rig.spool.count == 0
    disk.failing = set()
    rig.delivery._copies.look_at_once()
    rig.step()
    assert rig.spool.count == 0, "not before some seconds have gone by"
    rig.delivery._copies.write_again()
    rig.step()
    assert content_of(rig.spool) == stuck
    assert rig["messages_dropped"] == 0
    drain(rig)


def test_while_nothing_is_acknowledged_a_few_are_sent_now_and_then_and_the_rest_stays_on_disk(
    by_hand: Callable[..., Rig],
) -> None:
    rig = by_hand(ScriptedKafka())
    rig.accept(600)
    rig.sink.in_flight.stalled = 1.1
    rig.step()
    rig.accept(1000)
    rig.step()
    assert rig.sink.in_flight.records == 600
    for probes in (1, 2):
        rig.delivery._probe_at = 0.0
        rig.step()
        rig.step()
        assert rig.sink.in_flight.records == 600 + probes * 100
    assert rig.delivery.spooling
    drain(rig)
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)


def test_as_much_as_fits_is_secured(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka(), max_bytes=1_000_000)
    for _ in range(100):
        rig.accept(100)
    rig.sink.in_flight.stalled = 1.1
    rig.step()
    assert 5000 < rig.spool.count < 10_000
    drain(rig)
    assert rig["messages_dropped"] == 0
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)


def test_a_failure_sends_again_everything_unacknowledged_in_order_and_nothing_else(
    by_hand: Callable[..., Rig],
) -> None:
    rig = by_hand(ScriptedKafka())
    rig.accept(1000)
    first, second = rig.sink.lines()[:2]
    rig.sink.answer(first)
    rig.sink.answer(second, "fail")
    assert not rig.sink.ready
    rig.accept(100)
    rig.step()
    rig.sink.end()
    rig.accept(100)
    rig.step()
    rig.assert_accounted_for()
    acknowledged = {event.value for event in rig.sink.written}
    assert content_of(rig.spool) == [one for one in rig.feed.made if one.value not in acknowledged]
    drain(rig)
    assert len(rig.sink.written) == 1200
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)


def test_nothing_overtakes_what_came_back_although_the_next_producer_is_open_already(
    by_hand: Callable[..., Rig],
) -> None:
    rig = by_hand(ScriptedKafka())
    rig.accept(100)
    rig.sink.answer(rig.sink.lines()[0], "fail")
    rig.sink.end()
    rig.sink.reopen()
    rig.accept(100)  # before the drainer had a look
    answer_all(rig)
    drain(rig)
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)


def test_nothing_that_came_back_is_sent_through_the_producer_that_lost_it(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka(is_open=False))
    rig.accept(600)
    rig.sink.reopen()
    rig.step()
    break_off = rig.sink.break_off

    def let_the_drainer_be_quicker(error: BaseException) -> None:
        rig.step()
        break_off(error)

    rig.sink.break_off = let_the_drainer_be_quicker
    rig.sink.answer(rig.sink.lines()[0], "fail")
    rig.assert_accounted_for()
    assert rig.sink.in_flight.records <= 600
    drain(rig)
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)


def test_a_lost_answer_is_counted_as_a_possible_duplicate(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka())
    rig.accept(600)
    line = rig.sink.lines()[0]
    rig.sink.answer(line, "lost")
    lost = len(rig.sink.written)
    drain(rig)
    assert rig["possible_duplicates"] == lost == len(rig.sink.written) - 600
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, lost)


def test_poison_is_buried_with_reason_and_bytes_and_holds_nothing_up(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka())
    rig.accept(600)
    line = rig.sink.lines()[0]
    rig.sink.answer(line, "poison")
    assert rig.sink.ready
    drain(rig)
    letters = rig.spool.dead_letters()
    assert [letter.value for letter in letters] == lines_of(rig.feed.made)[line]
    assert {(letter.reason, letter.error) for letter in letters} == {("Refused", "too large")}
    assert rig["messages_dead_lettered"] == len(letters)
    assert rig["kafka_produced"] == 600 - len(letters)


def test_the_ids_of_what_kafka_refuses_are_told_and_not_fetched_again(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka())
    told: list[tuple[Ids, str]] = []
    rig.telemetry.tell_dropped = lambda ids, reason: told.append((ids, reason))
    rig.accept(600)
    line = rig.sink.lines()[0]
    rig.sink.answer(line, "poison")
    drain(rig)
    letters = {letter.value for letter in rig.spool.dead_letters()}
    assert letters
    assert told == [(ids_of(event for event in rig.feed.made if event.value in letters), DEAD_LETTER)]
    assert rig.lost.take(10**6) == []


def test_what_was_acknowledged_leaves_the_disk_and_is_not_sent_after_a_restart(
    by_hand: Callable[..., Rig],
) -> None:
    rig = by_hand(ScriptedKafka(is_open=False))
    rig.accept(600)
    rig.sink.reopen()
    rig.step()
    line = rig.sink.lines()[0]
    rig.sink.answer(line)
    rig.step()
    assert rig.spool.count == 600 - len(rig.sink.written)
    assert rig["messages_spooled"] == 0
    assert rig["messages_in_flight"] == rig.spool.count


def test_draining_much_removes_as_it_goes_and_keeps_nothing_in_memory(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka(is_open=False))
    for _ in range(100):
        rig.accept(1000)
    rig.sink.reopen()
    send, most_kept = rig.sink.send, 0

    def take_and_acknowledge(events: list[Event]) -> int:
        nonlocal most_kept
        taken = send(events)
        answer_all(rig)
        most_kept = max(most_kept, sum(map(len, rig.delivery._acknowledged)))
        return taken

    rig.sink.send = take_and_acknowledge
    drain(rig)
    assert most_kept <= 4000
    assert rig["kafka_produced"] == 100_000


# When the disk is full


def kinds(events: Iterable[Event]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for event in events:
        counts[event.route.topic] += 1
    return counts


def test_when_the_disk_is_full_trades_go_first_and_depth_last_each_counted(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka(is_open=False), max_bytes=100_000)
    depth_kept = []
    for _ in range(30):
        rig.accept(100)
        rig.assert_accounted_for()
        depth_kept.append(kinds(rig.spool.read(0, 10**6)).get("depth", 0))
        assert rig["messages_spooled"] == rig.spool.count
    on_disk = kinds(rig.spool.read(0, 10**6))
    assert on_disk.get("trades", 0) <= 2
    assert depth_kept == sorted(depth_kept)
    assert rig.spool.refusing
    metrics = rig.telemetry.snapshot()
    assert metrics["messages_dropped_by_reason"] == {"spool_full": 3000 - rig.spool.count}
    assert sum(metrics["messages_dropped_by_symbol"].values()) == metrics["messages_dropped"]
    kept = {event.value for event in rig.spool.read(0, 10**6)}
    rig.sink.reopen()
    drain(rig)
    assert {event.value for event in rig.sink.written} == kept
    assert_complete_and_in_order(
        lines_of(rig.sink.written), [one for one in rig.feed.made if one.value in kept], 0
    )


def test_what_comes_back_to_a_full_disk_follows_the_same_rule(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka(), max_bytes=20_000)
    rig.accept(600)
    rig.sink.lose_the_producer()
    rig.sink.end()
    rig.step()
    rig.assert_at_rest()
    assert kinds(rig.spool.read(0, 10**6)).get("depth", 0) > kinds(rig.spool.read(0, 10**6)).get("trades", 0)
    drain(rig)


def test_what_is_on_disk_already_is_not_dropped_when_it_comes_back_to_a_full_one(
    by_hand: Callable[..., Rig],
) -> None:
    rig = by_hand(ScriptedKafka())
    rig.accept(600)
    rig.sink.in_flight.stalled = 1.1
    rig.step()
    assert rig.spool.count == 600
    rig.spool._config = SpoolConfig(path=rig.folder, min_free_bytes=10**18, max_bytes=1)
    rig.sink.lose_the_producer()
    rig.sink.end()
    rig.step()
    rig.assert_at_rest()
    assert rig["messages_dropped"] == 0
    drain(rig)
    assert len(rig.sink.written) == 600


def test_trades_that_a_full_disk_lost_are_remembered_whether_they_came_or_lay_there(
    by_hand: Callable[..., Rig],
) -> None:
    rig = by_hand(ScriptedKafka(is_open=False), max_bytes=33_000)
    numbers = iter(range(1, 10_000))
    depth = Route("depth_update", "depth", b"BTCUSDT", b"", 0, b"")
    trades = Route("trade", "trades", b"BTCUSDT", b"", 0, b"", "btcusdt@trade")
    for _ in range(20):
        some = [(number, b'{"s":"BTCUSDT","t":%d}' % number) for number in itertools.islice(numbers, 10)]
        rig.take([Event(trades, value, NOW, 0, number, number) for number, value in some])
        rig.take([Event(depth, b"." * 60, NOW) for _ in range(10)])
    on_disk = {event.value for event in rig.spool.read(0, 10**6)}
    lost = [(number, number) for number in range(1, 201) if b'{"s":"BTCUSDT","t":%d}' % number not in on_disk]
    assert 100 < len(lost) < 180
    assert rig.delivery._lost.take(10**6) == [(("btcusdt@trade", "BTCUSDT", "trade", "trades"), joined(lost))]


def test_what_is_about_to_be_sent_is_not_evicted(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka(is_open=False), max_bytes=200_000)
    rig.accept(1400)
    rig.sink.reopen()
    send = rig.sink.send

    def send_while_more_comes(events: list[Event]) -> int:
        rig.sink.send = send
        publisher = threading.Thread(target=rig.accept, args=(500,))
        publisher.start()
        publisher.join(5)
        assert not publisher.is_alive(), "accept waited for the sink"
        return send(events)

    rig.sink.send = send_while_more_comes
    rig.step()
    rig.assert_accounted_for()
    drain(rig)
    assert rig["messages_dropped"] + rig["kafka_produced"] == 1900
    assert rig["kafka_produced"] == len(rig.sink.written)


class Unwilling:
    """Makes a spool's verbs fail as a broken disk would."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.failing: set[str] = set()
        self.damaged_for: set[str] = set()
        self.refused: set[bytes] = set()
        self.buried: set[bytes] = set()

    def damage(self, verb: str) -> None:
        """Let the next use of this verb find the file damaged."""
        self.damaged_for = {verb}

    def bury(self, events: Sequence[Event], *why: str) -> None:
        self.refused |= {event.value for event in events}
        self.__getattr__("bury")(events, *why)
        self.buried |= {event.value for event in events}

    def __getattr__(self, name: str) -> Any:
        if name in self.failing:
            return self._fail
        if name in self.damaged_for:
            return self._find_damaged
        return getattr(self._spool, name)

    def _fail(self, *_: object, **__: object) -> None:
        raise SpoolFailed("disk I/O error")

    def _find_damaged(self, *_: object, **__: object) -> None:
        self.damaged_for = set()
        raise SpoolDamaged("database disk image is malformed")


def unwilling(rig: Rig) -> Unwilling:
    """Put a disk under the rig that fails on command."""
    disk = Unwilling(rig.spool)
    rig.delivery._spool = rig.delivery._copies._spool = disk  # type: ignore[assignment]
    return disk


ALL_VERBS = {"append", "read", "remove", "evict", "bury", "absent"}


def test_a_disk_that_fails_costs_what_cannot_be_written_and_nothing_else(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka(is_open=False))
    disk = unwilling(rig)
    rig.accept(100)
    disk.failing = ALL_VERBS
    rig.accept(50)
    assert rig["messages_dropped_by_reason"] == {"spool_failed": 50}
    disk.failing = set()
    rig.accept(100)
    rig.sink.reopen()
    drain(rig)
    kept = rig.feed.made[:100] + rig.feed.made[150:]
    assert_complete_and_in_order(lines_of(rig.sink.written), kept, 0)


def test_what_came_back_waits_for_the_disk_to_work_again(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka())
    rig.accept(600)
    disk = unwilling(rig)
    disk.failing = {"absent", "read", "remove"}
    rig.sink.lose_the_producer()
    rig.sink.end()
    for _ in range(3):
        with pytest.raises(SpoolFailed):
            rig.step()
        rig.assert_accounted_for()
    assert rig["messages_dropped"] == 0
    disk.failing = set()
    drain(rig)
    assert len(rig.sink.written) == 600


def test_a_disk_too_full_to_delete_anything_does_not_keep_events_from_kafka(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka(is_open=False))
    disk = unwilling(rig)
    rig.accept(3000)
    disk.failing = {"append", "remove", "evict", "bury"}
    rig.sink.reopen()
    for _ in range(10):
        rig.step()
        answer_all(rig)
    assert rig["kafka_produced"] == 3000
    rig.accept(100)
    assert rig["messages_dropped"] == 0, "direct again"
    assert rig.spool.count == 3000
    disk.failing = set()
    drain(rig)
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made, 0)


def test_what_the_disk_gives_back_otherwise_than_written_is_a_dead_letter_and_the_rest_is_delivered(
    by_hand: Callable[..., Rig],
) -> None:
    rig = by_hand(ScriptedKafka(is_open=False))
    rig.accept(600)
    with closing(sqlite3.connect(rig.folder / FILE)) as behind_its_back:
        behind_its_back.execute(
            "UPDATE events SET value = CAST(x'ff' || value AS BLOB) WHERE seq IN (3, 599, 600)"
        )
        behind_its_back.commit()
    rig.sink.reopen()
    drain(rig)
    letters = rig.spool.dead_letters()
    assert [letter.value[1:] for letter in letters] == [rig.feed.made[at].value for at in (2, 598, 599)]
    assert {letter.reason for letter in letters} == {"ChecksumMismatch"}
    assert rig["messages_dead_lettered"] == 3
    expected = [event for event in rig.feed.made if event.seq not in (3, 599, 600)]
    assert_complete_and_in_order(lines_of(rig.sink.written), expected, 0)


def test_a_file_damaged_under_way_is_set_aside_what_was_in_it_counted_and_the_rest_delivered(
    tmp_path: Path,
) -> None:
    before = Rig(ScriptedKafka(is_open=False), tmp_path / "spool", Feed())
    for _ in range(200):
        before.accept(100, size=300)
    before.close(0.1)
    kafka = ScriptedKafka(is_open=False)
    rig = Rig(kafka, tmp_path / "spool", Feed())
    rig.delivery.start()
    damage_every_page(tmp_path / "spool" / FILE)
    with Clockwork(kafka):
        kafka.reopen()
        wait_until(lambda: rig.spool.damaged, "damage noticed")
        feed_for(rig, 0.5)
        wait_until(lambda: not rig.spool.count and not kafka.in_flight.records, "everything else delivered")
        wait_until(lambda: rig["messages_in_flight"] == 0, "counted")
        rig.close()
    rig.assert_at_rest()
    assert rig.spool.damaged
    assert rig.spool.damaged.stat().st_size > 6_000_000
    metrics = rig.telemetry.snapshot()
    assert set(metrics["messages_dropped_by_reason"]) == {"spool_damaged"}
    assert metrics["messages_dropped"] + metrics["kafka_produced"] == 20_000 + len(rig.feed.made)
    new = [event for event in kafka.written if event.timestamp_ms == NOW and len(event.value) < 300]
    assert_complete_and_in_order(lines_of(new), rig.feed.made, 0)


def test_while_no_new_file_can_be_begun_what_kafka_does_not_take_is_lost_once_and_later_all_is_well(
    by_hand: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = by_hand(ScriptedKafka())
    disk = unwilling(rig)
    rig.take(rig.feed.counted(600))
    rig.sink.lose_the_producer()
    rig.sink.end()
    good = take_no_new_file(monkeypatch)
    disk.damage("append")
    rig.step()  # 600 come back
    for _ in range(5):
        rig.take(rig.feed.counted(10))
        step_and_mend(rig)
        rig.sink.reopen()
    answer_all(rig)
    rig.assert_at_rest()
    assert rig["messages_dropped_by_reason"] == {"spool_failed": 620}, "then a producer was there"
    assert rig["kafka_produced"] == 30
    lost = ids_of(rig.feed.made[:620])
    assert dict(rig.lost.take(10**6)) == {which: ids for which, ids in lost.items() if which.event_type == "trade"}
    monkeypatch.setattr(spool_file, "_SCHEMA", good)
    rig.sink.lose_the_producer()
    rig.sink.end()
    rig.take(rig.feed.counted(100))
    assert rig.spool.count == 100
    rig.sink.reopen()
    drain(rig)
    assert_complete_and_in_order(lines_of(rig.sink.written), rig.feed.made[620:], 0)


def test_while_no_new_file_can_be_begun_what_was_to_be_removed_from_the_damaged_one_holds_nothing_up(
    by_hand: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = by_hand(ScriptedKafka(is_open=False))
    disk = unwilling(rig)
    rig.accept(100)
    rig.sink.reopen()
    rig.step()
    answer_all(rig)
    take_no_new_file(monkeypatch)
    disk.damage("remove")
    step_and_mend(rig)
    assert not rig.delivery.spooling
    step_and_mend(rig)  # with the last look at the disk
    rig.step()


def test_what_kafka_refuses_while_no_new_file_can_be_begun_does_not_hold_up_the_rest(
    by_hand: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = by_hand(ScriptedKafka())
    disk = unwilling(rig)
    rig.accept(600)
    take_no_new_file(monkeypatch)
    disk.damage("bury")
    rig.sink.answer(line := rig.sink.lines()[0], "poison")
    rig.step()
    answer_all(rig)
    rig.accept(600)
    answer_all(rig)
    rig.assert_at_rest()
    refused = [event for event in rig.feed.made[:600] if (event.route.topic, event.route.key) == line]
    assert rig["messages_dropped_by_reason"] == {"spool_failed": len(refused)}
    assert rig["kafka_produced"] == 1200 - len(refused)


def take_no_new_file(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let no file of a spool be begun, as on a disk that is full; returns the schema with which one can."""
    good = spool_file._SCHEMA
    monkeypatch.setattr(spool_file, "_SCHEMA", "nonsense")
    return good


@pytest.mark.parametrize("seed", range(40))
def test_whenever_the_file_is_damaged_it_is_known_which_ids_are_in_kafka_and_which_are_lost(
    seed: int, by_hand: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    chooser = random.Random(seed)
    rig = by_hand(ScriptedKafka(records=900), max_bytes=chooser.choice((10**9, 60_000)))
    told: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)

    refused: list[tuple[int, int]] = []

    def note(ids: Ids, reason: str) -> None:
        for which, intervals in ids.items():
            (refused if reason == DEAD_LETTER else told[which.event_type, which.symbol]).extend(intervals)

    rig.telemetry.tell_dropped = note
    disk = unwilling(rig)
    good = spool_file._SCHEMA
    for _ in range(150):
        monkeypatch.setattr(spool_file, "_SCHEMA", chooser.choice([good, good, "nonsense"]))
        act_at_random(rig, disk, chooser)
        rig.assert_accounted_for()
    disk.damaged_for = set()
    monkeypatch.setattr(spool_file, "_SCHEMA", good)
    step_and_mend(rig)
    drain(rig)
    in_kafka = {event.value for event in rig.sink.written}
    lost = [event for event in rig.feed.made if event.value not in in_kafka | disk.buried]
    assert rig["messages_dropped"] == len(lost)
    assert len(rig.sink.written) == len(in_kafka)
    expected = {which: joined(ids) for which, ids in ids_of(lost).items()}
    assert {line: joined(ids) for line, ids in told.items()} == {
        (which.event_type, which.symbol): ids for which, ids in expected.items()
    }
    assert sum(last - first + 1 for ids in told.values() for first, last in ids) == len(lost), "each told of once"
    assert sum(last - first + 1 for first, last in refused) == rig["messages_dead_lettered"]
    fetched_again = ids_of(event for event in lost if event.value not in disk.refused)
    assert dict(rig.lost.take(10**6)) == {
        which: joined(ids) for which, ids in fetched_again.items() if which.event_type == "trade"
    }


def act_at_random(rig: Rig, disk: Unwilling, chooser: random.Random) -> None:
    """Do one thing that producer, publisher, drainer or disk may do next."""
    acts: dict[str, Callable[[], None]] = {
        "accept": lambda: rig.take(rig.feed.counted(chooser.randint(1, 200))),
        "answer": lambda: answer_one(rig, chooser),
        "step": lambda: step_and_mend(rig),
        "stall": lambda: setattr(rig.sink.in_flight, "stalled", 1.1),
        "calm": lambda: setattr(rig.sink.in_flight, "stalled", None),
        "lose": rig.sink.lose_the_producer,
        "open": lambda: open_the_next(rig),
        "damage": lambda: disk.damage(chooser.choice(["append", "read", "remove", "absent", "sending", "bury"])),
        "both": lambda: damage_while_sending(rig, disk, chooser.randint(1, 200)),
    }
    often = ["accept"] * 3 + ["answer"] * 7 + ["step"] * 3
    acts[chooser.choice([*acts, *often])]()


def answer_one(rig: Rig, chooser: random.Random) -> None:
    if lines := rig.sink.lines():
        rig.sink.answer(chooser.choice(lines), chooser.choice(["ack"] * 9 + ["fail", "poison"]))


def step_and_mend(rig: Rig) -> None:
    try:
        rig.step()
    except SpoolDamaged:
        rig.delivery._mend()


def open_the_next(rig: Rig) -> None:
    rig.sink.end()
    rig.sink.reopen()


def damage_while_sending(rig: Rig, disk: Unwilling, count: int) -> None:
    """Let the publisher find the file damaged while the drainer is about to send what it read there."""
    send = rig.sink.send

    def send_while_more_comes(events: list[Event]) -> int:
        rig.sink.send = send
        if rig.delivery.spooling:
            disk.damage("append")
            rig.take(rig.feed.counted(count))
        return send(events)

    rig.sink.send = send_while_more_comes


def damage_every_page(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 16)


def test_dead_letters_beyond_the_spools_bound_are_counted_as_lost(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka(), max_bytes=5_000)
    rig.accept(600)
    for line in rig.sink.lines():
        rig.sink.answer(line, "poison")
        rig.step()
    rig.assert_accounted_for()
    metrics = rig.telemetry.snapshot()
    assert metrics["messages_dropped_by_reason"] == {"spool_full": 600 - metrics["messages_dead_lettered"]}
    assert len(rig.spool.dead_letters()) == metrics["messages_dead_lettered"]


def test_the_disk_gets_back_what_an_outage_needed(by_hand: Callable[..., Rig]) -> None:
    rig = by_hand(ScriptedKafka(is_open=False))
    for _ in range(100):
        rig.accept(100, size=1000)
    assert size_of(rig.folder) > 10_000_000
    rig.sink.reopen()
    drain(rig)
    rig.step()
    assert size_of(rig.folder) < 1_000_000


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


# Any order of things


actions = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), st.integers(1, 60)),
        st.tuples(
            st.sampled_from(["ack", "ack", "ack", "fail", "lost", "poison"]),
            st.integers(0, 5),
        ),
        st.tuples(
            st.sampled_from(["step", "end and reopen", "end", "reopen", "lose", "stall", "flow", "age"]), st.none()
        ),
    ),
    max_size=60,
)


@settings(max_examples=80)
@given(script=actions, in_flight=st.sampled_from([40, 100_000]), crash=st.booleans(), seed=st.integers(0, 99))
def test_any_sequence_of_fates_loses_doubles_and_overtakes_nothing(  # noqa: C901, PLR0912 - one branch a verb
    script: list[tuple[str, Any]],
    in_flight: int,
    crash: bool,  # noqa: FBT001
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("sequence")
    chance = random.Random(seed)
    kafka = ScriptedKafka(records=in_flight)
    rig = Rig(kafka, folder / "spool", Feed())
    try:
        for verb, argument in script:
            if verb == "accept":
                rig.accept(argument)
            elif verb == "step":
                rig.step()
            elif verb == "stall":
                kafka.in_flight.stalled = 1.1
            elif verb == "flow":
                kafka.in_flight.stalled = None
            elif verb == "lose":
                kafka.lose_the_producer()
            elif verb == "age":
                kafka.aged = 2.1 - kafka.aged
                rig.delivery._copies.look_at_once()
                rig.delivery._probe_at = 0.0
            elif verb.startswith("end"):
                if kafka.broken:
                    kafka.end(chance)
                    if verb == "end and reopen":
                        kafka.reopen()
            elif verb == "reopen":
                if kafka.broken:
                    kafka.end(chance)
                kafka.reopen()
            elif lines := kafka.lines():
                kafka.answer(lines[argument % len(lines)], verb)
            rig.assert_accounted_for()
        if crash:
            check_what_a_crash_leaves(rig, folder)
        drain(rig)
        dead = {letter.value for letter in rig.spool.dead_letters(limit=10**6)}
        expected = [event for event in rig.feed.made if event.value not in dead]
        assert_complete_and_in_order(lines_of(kafka.written), expected, rig["possible_duplicates"])
        assert rig["kafka_produced"] == len(expected)
        rig.accept(10)
        assert rig.spool.count == 0, "direct again"
    finally:
        rig.spool.close()


def check_what_a_crash_leaves(rig: Rig, folder: Path) -> None:
    """Go on with the files as `kill -9` leaves them: what was on disk or acknowledged is in Kafka in the end."""
    (folder / "crashed").mkdir()
    for suffix in ("", "-wal"):
        if (folder / "spool" / (FILE + suffix)).exists():
            shutil.copy(folder / "spool" / (FILE + suffix), folder / "crashed" / (FILE + suffix))
    before = list(rig.sink.written)
    heir = Rig(ScriptedKafka(), folder / "crashed", Feed())
    try:
        heir.sink.written += before
        heir.telemetry.recovered(heir.spool.count)
        maybe_sent = heir.spool.count_sent()
        safe = {event.value for event in before} | {event.value for event in heir.spool.read(0, 10**6)}
        drain(heir)
        written = lines_of(heir.sink.written)
        assert {value for values in written.values() for value in values} == safe
        for line, values in lines_of(rig.feed.made).items():
            in_order = [value for value in values if value in safe]
            assert first_ones(written.get(line, [])) == in_order
        duplicates = sum(len(values) - len(set(values)) for values in written.values())
        assert duplicates <= maybe_sent + rig["possible_duplicates"]
    finally:
        heir.spool.close()


# With its threads


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Let threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("seed", range(3))
def test_racing_threads_lose_double_and_overtake_nothing(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    kafka = ScriptedKafka(records=chance.choice((500, 3000, 100_000)))
    rig = Rig(kafka, tmp_path / "spool", Feed())
    with Clockwork(kafka, seed) as clockwork:
        rig.delivery.start()
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            for _ in range(chance.randint(1, 20)):
                rig.accept(chance.randint(1, 100))
            clockwork.verdicts += [chance.choice(("fail", "lost", "poison", "ack"))] * chance.randint(0, 2)
            if chance.random() < 0.1:
                kafka.in_flight.stalled = chance.choice((None, 1.1))
            if chance.random() < 0.1:
                kafka.aged = chance.choice((0.0, 2.1))
            if chance.random() < 0.1:
                kafka.lose_the_producer()
            assert balanced(rig.telemetry.snapshot())
            time.sleep(chance.choice((0, 0, 0.001, 0.01)))
        kafka.in_flight.stalled = None
        clockwork.verdicts.clear()
        wait_until(lambda: not rig.spool.count and not kafka.in_flight.records, "everything delivered")
        rig.close()
    rig.assert_at_rest()
    with closing(Spool(SpoolConfig(path=tmp_path / "spool", min_free_bytes=0))) as spool:
        dead = {letter.value for letter in spool.dead_letters(limit=10**6)}
    assert rig["messages_dead_lettered"] == len(dead)
    expected = [event for event in rig.feed.made if event.value not in dead]
    assert_complete_and_in_order(lines_of(kafka.written), expected, rig["possible_duplicates"])


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("seed", range(2))
def test_a_close_in_the_midst_of_it_leaves_each_event_in_kafka_or_on_disk(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    kafka = ScriptedKafka(records=3000)
    rig = Rig(kafka, tmp_path / "spool", Feed())
    with Clockwork(kafka, seed) as clockwork:
        rig.delivery.start()
        for _ in range(60):
            rig.accept(chance.randint(1, 100))
            clockwork.verdicts += [chance.choice(("fail", "lost"))] * (chance.random() < 0.1)
            if chance.random() < 0.1:
                clockwork.flowing.clear()
        if chance.random() < 0.5:
            kafka.lose_the_producer()
        rig.close(chance.choice((0.6, 1.0)))
    metrics = rig.telemetry.snapshot()
    assert balanced(metrics)
    assert metrics["messages_in_flight"] == metrics["messages_buffered"] == metrics["messages_dropped"] == 0
    heir = Rig(ScriptedKafka(), tmp_path / "spool", Feed())
    assert heir.spool.count == metrics["messages_spooled"]
    heir.telemetry.recovered(heir.spool.count)
    heir.sink.written += kafka.written
    drain(heir)
    heir.spool.close()
    assert_complete_and_in_order(lines_of(heir.sink.written), rig.feed.made, metrics["possible_duplicates"])


# The same on the scripted and on the real Kafka


class Scripted:
    """The scripted Kafka, running."""

    def __init__(self) -> None:
        self.trades, self.depth = "trades", "depth"
        self.kafka = ScriptedKafka()
        self._clockwork = Clockwork(self.kafka)
        self._clockwork.__enter__()

    def sink(self, *_: object) -> ScriptedKafka:
        return self.kafka

    def stall(self) -> None:
        self._clockwork.flowing.clear()

    def flow(self) -> None:
        self._clockwork.flowing.set()

    def poison(self) -> None:
        """Let the next answer be that the record is too large."""
        wait_until(lambda: not self.kafka.lines(), "nothing in flight")
        self._clockwork.verdicts.append("poison")

    def written(self) -> dict[tuple[str, bytes | None], list[bytes]]:
        return lines_of(self.kafka.written)

    def dead_letters(self, rig: Rig) -> list[bytes]:
        return [letter.value for letter in rig.spool.dead_letters()]

    def end(self) -> None:
        self._clockwork.__exit__()


class Real:
    """A real broker behind the real sink."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._topics = Topics("raw", "trades", "depth", broker.bootstrap_servers)
        limit = {"max.message.bytes": "100000"}
        create_topics(broker.bootstrap_servers, self._topics.names, partitions=3, configs=limit)
        self.trades, self.depth = self._topics.trades, self._topics.depth

    def sink(self, telemetry: Telemetry, on_exit: Callable[[Worker], None]) -> KafkaSink:
        kafka = KafkaConfig(
            bootstrap_servers=(self._broker.bootstrap_servers,),
            topic_raw_events=self._topics.raw,
            topic_trades=self.trades,
            topic_depth=self.depth,
            topic_dead_letters=self._topics.dead_letters,
        )
        return KafkaSink(kafka, DeliveryConfig(), telemetry, on_exit)

    def stall(self) -> None:
        self._broker.freeze()

    def flow(self) -> None:
        self._broker.thaw()

    def poison(self) -> None:
        """Do nothing: the record is too large by itself."""

    def written(self) -> dict[tuple[str, bytes | None], list[bytes]]:
        records = read_all(self._broker.bootstrap_servers, *self._topics.names)
        return by_line((one.topic, one.key, one.value or b"") for one in records)

    def dead_letters(self, rig: Rig) -> list[bytes]:
        """Return those in the topic of dead letters, where they go from their table."""
        if rig.spool.dead_letters():
            return []
        return [one.value or b"" for one in read_all(self._broker.bootstrap_servers, self._topics.dead_letters)]

    def end(self) -> None:
        pass


@pytest.fixture(params=["scripted", pytest.param("real", marks=pytest.mark.kafka)])
def kafka(request: pytest.FixtureRequest, own_broker_factory: Callable[[], Broker]) -> Iterator[Any]:
    if request.param == "scripted":
        side: Scripted | Real = Scripted()
    else:
        broker = own_broker_factory()
        broker.start()
        side = Real(broker)
    yield side
    side.end()


@pytest.fixture
def running(kafka: Any, tmp_path: Path) -> Iterator[Rig]:
    """Start a delivery with its threads on either Kafka."""
    rig = Rig(kafka.sink, tmp_path / "spool", Feed(kafka.trades, kafka.depth), refetchable=kafka.trades)
    rig.delivery.start()
    wait_until(lambda: rig.sink.ready, "ready")
    yield rig
    if not rig.delivery._closing.is_set():
        rig.close(3.0)


def feed_for(rig: Rig, seconds: float) -> None:
    """Feed 5,000 events a second."""
    started, fed = time.monotonic(), 0
    while (now := time.monotonic() - started) < seconds:
        if fed < now * 5000:
            rig.accept(100, size=200)
            fed += 100
        else:
            time.sleep(0.002)


def test_direct_then_spooled_then_direct_without_loss_or_disorder(kafka: Any, running: Rig) -> None:
    feed_for(running, 0.5)
    kafka.stall()
    feed_for(running, 0.3)
    last_unanswered = len(running.feed.made)
    wait_until(lambda: running.spool.last_seq >= last_unanswered, "what is in flight is on disk", 2.5)
    feed_for(running, 1.0)
    assert running["messages_spooled"] > 0
    assert running.slowest < 3.0
    running.assert_accounted_for()
    kafka.flow()
    feed_for(running, 0.5)
    wait_until(lambda: not running.spool.count and not running.sink.in_flight.records, "drained")
    wait_until(lambda: running["messages_in_flight"] == 0, "counted")
    before = running.spool.last_seq
    wait_until(lambda: running.delivery._direct, "direct")
    running.accept(100)
    assert running.spool.last_seq == before, "direct again"
    running.close()
    running.assert_at_rest()
    assert running["messages_dropped"] == 0
    assert_complete_and_in_order(kafka.written(), running.feed.made, running["possible_duplicates"])


def test_a_lost_producer_is_followed_by_another_and_everything_unacknowledged_is_sent_again(
    kafka: Any, running: Rig
) -> None:
    feed_for(running, 0.3)
    running.sink.break_off(RuntimeError("on purpose"))
    feed_for(running, 1.0)
    wait_until(lambda: running.sink.ready, "ready again")
    feed_for(running, 0.3)
    wait_until(lambda: not running.spool.count and not running.sink.in_flight.records, "drained")
    running.close()
    running.assert_at_rest()
    assert_complete_and_in_order(kafka.written(), running.feed.made, running["possible_duplicates"])


def test_poison_is_set_aside_and_what_follows_is_delivered(kafka: Any, running: Rig) -> None:
    feed_for(running, 0.2)
    kafka.poison()
    poison = running.feed.one(0, random.Random(7).randbytes(300_000))
    running.take([poison])
    wait_until(lambda: running["messages_dead_lettered"] == 1, "set aside")
    feed_for(running, 0.2)
    wait_until(lambda: not running.spool.count and not running.sink.in_flight.records, "delivered")
    wait_until(lambda: kafka.dead_letters(running) == [poison.value], "the dead letter where it belongs")
    running.close()
    running.assert_at_rest()
    expected = [event for event in running.feed.made if event is not poison]
    assert_complete_and_in_order(kafka.written(), expected, running["possible_duplicates"])


def test_a_close_while_kafka_is_silent_leaves_the_rest_on_disk_for_the_next_run(
    kafka: Any, running: Rig, tmp_path: Path
) -> None:
    feed_for(running, 0.3)
    kafka.stall()
    feed_for(running, 0.3)
    started = time.monotonic()
    running.close(3.0)
    assert time.monotonic() - started < 5.0
    metrics = running.telemetry.snapshot()
    assert balanced(metrics)
    assert metrics["messages_in_flight"] == metrics["messages_dropped"] == 0
    assert metrics["messages_spooled"] > 0
    if isinstance(kafka, Scripted):
        return  # it cannot be opened again
    kafka.flow()
    heir = Rig(kafka.sink, tmp_path / "spool", running.feed, refetchable=kafka.trades)
    heir.delivery.start()
    assert heir["messages_recovered"] == metrics["messages_spooled"]
    wait_until(lambda: not heir.spool.count and not heir.sink.in_flight.records, "drained")
    heir.close()
    heir.assert_at_rest()
    assert_complete_and_in_order(kafka.written(), running.feed.made, metrics["possible_duplicates"])


def test_a_close_waits_for_the_copies_that_are_still_on_their_way(tmp_path: Path) -> None:
    rig = Rig(ScriptedKafka(), tmp_path / "spool", Feed())
    rig.delivery.start()
    copies = rig.sink.copies_in_flight
    assert copies.admit(Feed().events(3)) == 3
    acknowledgement = threading.Timer(0.3, lambda: copies.settle(3, copies.bytes))
    acknowledgement.start()
    rig.close()
    assert not copies.records
    rig.assert_at_rest()
