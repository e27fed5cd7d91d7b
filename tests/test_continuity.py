"""What goes into the buffer: each id once, in order per symbol, or the ledger names the hole."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import BackfillConfig
from src import continuity, sequences
from src.buffer import Buffer
from src.continuity import Continuity
from src.decoder import EventDecoder
from src.events import Event, Topics
from src.holes import Gap, Position
from src.lost import Lost, ids_of
from src.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from src.holes import Interval

TOPICS = Topics("trades", "depth", "raw")
T0 = 1_790_000_000_000
MINUTE = 60_000


class Stage:
    """A real stage between a real decoder and a real buffer; what it asks for and writes down is kept."""

    def __init__(self, *, standby: bool = False, skew_seconds: float = 0.0, **settings: Any) -> None:
        self.telemetry = Telemetry()
        self.opened = 1
        self.requests: list[Gap] = []
        self.snapshots: list[str] = []
        self.snapshots_taken: list[tuple[str, int]] = []
        self.ledger: list[tuple[Any, ...]] = []
        self._buffer = Buffer(1, 0.001)
        self.lost = Lost()
        self.decoders = {source: EventDecoder(TOPICS) for source in range(4)}
        self.continuity = Continuity(
            self._buffer,
            self,
            self,
            self.telemetry,
            BackfillConfig(**settings),
            standby=standby,
            skew_seconds=skew_seconds,
            lost=self.lost,
        )

    def patience(self, stream: str) -> float:
        """Return how long updates of this book wait for a snapshot, in seconds."""
        return self.continuity._streams[stream, "BTCUSDT"].snapshot_patience

    def came(self, *payloads: dict[str, Any], on: int = 0) -> None:
        """Let frames come on a connection, in one chunk."""
        decoded = self.decode(payloads, on)
        self.telemetry.received(decoded, T0)
        assert self.continuity.put(decoded.events, on, self.opened)

    def decode(self, payloads: Iterable[dict[str, Any]], on: int = 0) -> Any:
        frames = [
            json.dumps({"stream": stream_of(each), "data": each}, separators=(",", ":")) for each in payloads
        ]
        return self.decoders[on].decode([frame.encode() for frame in frames], T0)

    def fetched(self, gap: Gap, *payloads: dict[str, Any]) -> None:
        self.continuity.offer(gap, self.decode(payloads).events)

    def reconnected(self) -> None:
        self.opened += 1

    def passed(self) -> list[dict[str, Any]]:
        """Take out what has gone into the buffer."""
        events = self._buffer._events
        self._buffer._events = []
        self.telemetry.offered(len(events))
        self.telemetry.acknowledged(events, 0)
        return [json.loads(event.value) for event in events]

    def ids(self) -> list[int]:
        return [event.get("t") or event.get("a") or event["u"] for event in self.passed()]

    def positions(self) -> dict[str, Position]:
        """Return where the streams stand, without their times."""
        return {name: each._replace(at_ms=0) for name, each in self.continuity.positions()[1].items()}

    def counts(self) -> dict[str, Any]:
        return self.telemetry.snapshot()

    # The two neighbours

    def request(self, gap: Gap) -> None:
        self.requests.append(gap)

    def request_snapshot(self, stream: str, symbol: str) -> None:
        self.snapshots.append(stream)
        assert symbol == stream.partition("@")[0].upper()

    def gap_opened(self, gap: Gap) -> None:
        self.ledger.append(("opened", gap.stream, gap.first, gap.last, gap.cause))

    def gap_filled(self, gap: Gap, count: int) -> None:
        self.ledger.append(("filled", gap.stream, gap.first, gap.last, count))

    def gap_unfillable(self, gap: Gap, missing: Sequence[Interval], reason: str) -> None:
        self.ledger.append(("unfillable", gap.stream, list(missing), reason))

    def order_given_up(self, gap: Gap, reason: str) -> None:
        self.ledger.append(("order_given_up", gap.stream, gap.first, gap.last, reason))

    def renumbered(self, stream: str, symbol: str, expected: int, got: int) -> None:
        self.ledger.append(("renumbered", stream, symbol, expected, got))

    def snapshot_taken(self, stream: str, symbol: str, last_update_id: int) -> None:
        assert symbol
        self.snapshots_taken.append((stream, last_update_id))


def stream_of(payload: dict[str, Any]) -> str:
    kind = {"depthUpdate": "depth@100ms", "kline": "kline_1m", "24hrTicker": "ticker", None: "bookTicker"}
    name = payload.get("e")
    return f"{payload['s'].lower()}@{kind.get(name, name)}"


def trade(number: int, symbol: str = "BTCUSDT", at: int | None = None) -> dict[str, Any]:
    time = T0 + (number if at is None else at)
    return {
        "e": "trade",
        "E": time,
        "s": symbol,
        "t": number,
        "p": "1.0",
        "q": "2",
        "T": time,
        "m": True,
        "M": True,
    }


def aggregate(number: int, symbol: str = "BTCUSDT") -> dict[str, Any]:
    return {"e": "aggTrade", "E": T0 + number, "s": symbol, "a": number, "p": "1.0", "q": "2", "f": 1, "l": 1}


def depth(first: int, last: int, symbol: str = "BTCUSDT") -> dict[str, Any]:
    return {"e": "depthUpdate", "E": T0 + last, "s": symbol, "U": first, "u": last, "b": [["1", "2"]], "a": []}


def bar(number: int, at: int, *, closed: bool = False) -> dict[str, Any]:
    start = number * MINUTE
    bar = {"t": start, "T": start + MINUTE - 1, "s": "BTCUSDT", "i": "1m", "x": closed}
    return {"e": "kline", "E": start + at, "s": "BTCUSDT", "k": bar}


def ticker(at: int) -> dict[str, Any]:
    return {"e": "24hrTicker", "E": T0 + at, "s": "BTCUSDT", "c": "1.0"}


def quote(number: int) -> dict[str, Any]:
    return {"u": number, "s": "BTCUSDT", "b": "1", "B": "1", "a": "1", "A": "1"}


@pytest.fixture
def stage() -> Stage:
    return Stage()


def equation_holds(counts: dict[str, Any]) -> bool:
    there = ("skipped", "duplicate", "buffered", "in_flight", "spooled", "dead_lettered", "dropped")
    left = counts["messages_received"] + counts["messages_backfilled"]
    return left == sum(counts[f"messages_{name}"] for name in there) + counts["kafka_produced"]


def test_what_comes_in_order_goes_through(stage: Stage) -> None:
    stage.came(*map(trade, range(5, 9)), *map(aggregate, range(50, 54)), depth(1, 9), depth(10, 10))
    assert stage.ids() == [5, 6, 7, 8, 50, 51, 52, 53, 9, 10]
    assert stage.ledger == []


def test_a_repeat_is_left_out_and_counted(stage: Stage) -> None:
    stage.came(
        trade(5), trade(6), trade(6), trade(5), trade(7), aggregate(1), aggregate(1), depth(3, 8), depth(3, 8)
    )
    assert stage.ids() == [5, 6, 7, 1, 8]
    assert stage.counts()["messages_duplicate"] == 4
    assert equation_holds(stage.counts())


def test_behind_a_gap_the_symbol_waits_until_it_is_filled(stage: Stage) -> None:
    stage.came(trade(5), trade(9), trade(10))
    assert stage.ids() == [5]
    assert stage.counts()["messages_buffered"] == 2
    (gap,) = stage.requests
    assert stage.continuity.remaining(gap) == [(6, 8)]
    stage.fetched(gap, trade(6), trade(7))
    assert stage.ids() == [6, 7]
    stage.fetched(gap, trade(7), trade(8))
    assert stage.ids() == [8, 9, 10]
    assert stage.continuity.remaining(gap) == []
    assert stage.ledger == [
        ("opened", "btcusdt@trade", 6, 8, "jump"),
        ("filled", "btcusdt@trade", 6, 8, 3),
    ]
    assert stage.counts()["messages_backfilled"] == 3
    assert equation_holds(stage.counts())


def test_what_shares_symbol_and_topic_waits_too_and_nothing_else_does(stage: Stage) -> None:
    stage.came(trade(5), aggregate(50), depth(1, 1), trade(1, "ETHUSDT"))
    stage.ids()
    stage.came(trade(7), aggregate(51), depth(2, 2), trade(2, "ETHUSDT"))
    assert stage.ids() == [2, 2]
    stage.fetched(stage.requests[0], trade(6))
    assert stage.ids() == [6, 7, 51]


def test_two_gaps_of_a_symbol_are_filled_in_their_order(stage: Stage) -> None:
    stage.came(trade(1), trade(3), aggregate(10), aggregate(12), trade(4))
    assert stage.ids() == [1]
    first, second = stage.requests
    stage.fetched(second, aggregate(11))
    assert stage.ids() == []
    stage.fetched(first, trade(2))
    assert stage.ids() == [2, 3, 10, 11, 12, 4]


def test_a_gap_across_a_reconnect_says_so(stage: Stage) -> None:
    stage.came(trade(1))
    stage.reconnected()
    stage.came(trade(4), trade(6))
    assert stage.ledger == [
        ("opened", "btcusdt@trade", 2, 3, "reconnect"),
        ("opened", "btcusdt@trade", 5, 5, "jump"),
    ]


def test_what_comes_out_of_order_is_put_in_order_without_the_exchange(stage: Stage) -> None:
    stage.came(trade(5, at=0), trade(7, at=2), trade(6, at=1), trade(8, at=3))
    assert stage.ids() == [5, 6, 7, 8]
    assert stage.ledger[-1] == ("filled", "btcusdt@trade", 6, 6, 1)
    assert stage.continuity.remaining(stage.requests[0]) == []
    assert stage.counts()["messages_backfilled"] == 0


def test_what_was_overtaken_is_put_in_order_though_it_says_it_is_newer(stage: Stage) -> None:
    stage.came(trade(5, at=0), trade(7, at=1), trade(6, at=2), trade(8, at=3))
    assert stage.ids() == [5, 6, 7, 8]
    assert stage.counts()["messages_skipped"] == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_what_comes_after_it_was_given_up_is_no_repeat(enabled: bool) -> None:  # noqa: FBT001
    stage = Stage(enabled=enabled)
    stage.came(trade(1), trade(6))
    for gap in stage.requests:
        stage.continuity.abandon(gap, "skipped_by_exchange")
    stage.came(trade(3), trade(4), trade(3), trade(7), on=1)
    stage.came(trade(2), trade(5), trade(8), on=1)
    assert stage.ids() == [1, 6, 3, 4, 7, 2, 5, 8]
    late = [each for each in stage.ledger if each[0] in {"opened", "filled"}][1:]
    assert late == [
        ("opened", "btcusdt@trade", 3, 4, "late"),
        ("filled", "btcusdt@trade", 3, 4, 2),
        ("opened", "btcusdt@trade", 2, 2, "late"),
        ("filled", "btcusdt@trade", 2, 2, 1),
        ("opened", "btcusdt@trade", 5, 5, "late"),
        ("filled", "btcusdt@trade", 5, 5, 1),
    ]
    counts = stage.counts()
    assert counts["messages_duplicate"] == 1
    assert equation_holds(counts)


def test_a_wrong_id_whose_gap_was_given_up_at_once_hides_neither_what_follows_nor_what_is_missing_of_it() -> None:
    stage = Stage(enabled=False)
    stage.came(trade(5, at=0), trade(1006, at=1), *(trade(number, at=number) for number in range(7, 17)))
    stage.came(*(trade(number, at=number) for number in range(20, 23)))
    assert stage.ids() == [5, 1006, *range(7, 17), *range(20, 23)]
    assert ("renumbered", "btcusdt@trade", "BTCUSDT", 1007, 7) in stage.ledger
    assert ("unfillable", "btcusdt@trade", [(17, 19)], "backfill_disabled") in stage.ledger
    assert not [each for each in stage.ledger if each[-1] == "late"]


def test_what_was_overtaken_and_given_up_at_once_passes_though_it_says_it_is_newer() -> None:
    stage = Stage(enabled=False)
    stage.came(trade(5, at=0), trade(7, at=1), trade(6, at=2), trade(8, at=3))
    assert stage.ids() == [5, 7, 6, 8]


def test_a_gap_that_was_given_up_behind_another_one_says_nothing_about_where_its_stream_stands(
    stage: Stage,
) -> None:
    stage.came(trade(1), aggregate(1), trade(5), aggregate(5))
    stage.continuity.abandon(stage.requests[1], "skipped_by_exchange")
    stage.came(aggregate(6))
    positions = stage.positions()
    assert positions["btcusdt@trade"].last == 1
    assert positions["btcusdt@aggTrade"].last == 4
    stage.fetched(stage.requests[0], trade(2), trade(3), trade(4))
    assert stage.ids() == [1, 1, 2, 3, 4, 5, 5, 6]
    assert stage.positions()["btcusdt@aggTrade"].last == 6


def test_a_book_whose_snapshot_is_waited_for_stands_somewhere_when_a_gap_follows(stage: Stage) -> None:
    stage.came(depth(1, 5))
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    stage.came(depth(10, 12))
    assert stage.positions()["btcusdt@depth@100ms"].last == 9


def test_only_the_other_connection_of_the_same_streams_is_waited_for_before_a_gap_is_asked_for() -> None:
    stage = Stage(skew_seconds=60.0)
    stage.came(trade(1), on=0)
    stage.came(trade(1, symbol="ETHUSDT"), on=2)
    stage.came(trade(3), on=0)
    assert len(stage.requests) == 1
    stage.came(trade(1, symbol="ETHUSDT"), on=3)
    stage.came(trade(3, symbol="ETHUSDT"), on=2)
    assert len(stage.requests) == 1


def test_what_comes_when_all_is_closed_changes_nothing(stage: Stage) -> None:
    stage.came(trade(1), trade(2))
    before, counted = stage.continuity.positions(), stage.counts()
    stage.continuity.close()
    decoded = stage.decode([trade(2), trade(3), trade(5)])
    assert not stage.continuity.put(decoded.events, 0, 1)
    assert stage.continuity.positions() == before
    assert stage.counts() == counted
    assert stage.ledger == []


def test_a_wrong_id_is_left_out_and_the_true_one_fetched(stage: Stage) -> None:
    stage.came(trade(5, at=0), trade(1006, at=1), trade(7, at=2), trade(8, at=3))
    gap = stage.requests[0]
    assert stage.continuity.remaining(gap) == [(6, 6)]
    stage.fetched(gap, trade(6, at=1))
    assert stage.ids() == [5, 6, 7, 8]
    counts = stage.counts()
    assert counts["messages_skipped_by_reason"]["misnumbered"] == 1
    assert equation_holds(counts)


def test_only_the_first_event_that_gives_a_wrong_id_the_lie_is_gone_on_from(stage: Stage) -> None:
    stage.came(trade(1), trade(2))
    stage.came(trade(1003, at=3), trade(1004, at=4), trade(5), on=1)
    stage.came(trade(4), trade(5), on=0)
    stage.fetched(stage.requests[0], trade(3))
    stage.came(trade(6), on=1)
    assert stage.ids() == [1, 2, 3, 4, 5, 6]
    assert stage.counts()["messages_duplicate"] == 1
    assert equation_holds(stage.counts())


def test_a_wrong_id_on_a_connection_that_is_behind_makes_no_new_numbering_of_what_has_come_before(
    stage: Stage,
) -> None:
    stage.came(*(trade(number) for number in range(1, 21)), on=0)
    stage.came(trade(1005, at=5), *(trade(number) for number in range(6, 21)), on=1)
    stage.came(trade(21), on=0)
    stage.came(trade(21), trade(22), on=1)
    assert stage.ids() == list(range(1, 23))
    assert not [each for each in stage.ledger if each[0] == "renumbered"]
    assert stage.continuity.held == 0
    counts = stage.counts()
    assert counts["messages_skipped_by_reason"]["misnumbered"] == 1
    assert equation_holds(counts)


def test_gaps_that_other_wrong_ids_have_opened_are_none(stage: Stage) -> None:
    stage.came(trade(1))
    stage.came(trade(1002, at=2), on=0)
    stage.came(trade(1005, at=3), on=1)
    first, second = stage.requests
    stage.came(trade(4), on=0)
    assert stage.continuity.remaining(second) == []
    assert stage.ledger[-1] == ("filled", "btcusdt@trade", 1003, 1004, 0)
    stage.fetched(first, trade(2), trade(3))
    stage.came(*(trade(number) for number in range(5, 1007)))
    stage.fetched(second, trade(1003), trade(1004))
    assert stage.ids() == list(range(1, 1007))
    assert stage.continuity.held == 0
    assert equation_holds(stage.counts())


def test_waiting_ends_by_the_clock_and_the_gap_is_filled_behind() -> None:
    stage = Stage(max_wait_seconds=0.000001)
    stage.came(trade(1), trade(4))
    stage.continuity.tick()
    assert stage.ids() == [1, 4]
    assert stage.ledger[-1] == ("order_given_up", "btcusdt@trade", 2, 3, "waited_too_long")
    stage.came(trade(5))
    assert stage.ids() == [5]
    stage.fetched(stage.requests[0], trade(2), trade(3))
    assert stage.ids() == [2, 3]
    assert stage.ledger[-1] == ("filled", "btcusdt@trade", 2, 3, 2)
    assert equation_holds(stage.counts())


def test_so_many_may_wait_and_no_more() -> None:
    stage = Stage(max_held_events=3)
    stage.came(trade(1), trade(3), trade(4), trade(5))
    assert stage.ids() == [1]
    stage.came(trade(6))
    assert stage.ids() == [3, 4, 5, 6]
    assert stage.ledger[-1][-1] == "too_many_waiting"
    assert stage.continuity.held == 0


def test_what_the_exchange_does_not_give_is_named_and_the_rest_goes_on(stage: Stage) -> None:
    stage.came(trade(1), trade(6))
    gap = stage.requests[0]
    stage.fetched(gap, trade(2), trade(4))
    assert stage.ids() == [1, 2]
    stage.continuity.abandon(gap, "not_served", only=[(3, 3)])
    assert stage.ids() == [4]
    stage.continuity.abandon(gap, "not_served")
    assert stage.ids() == [6]
    assert stage.ledger[1:3] == [
        ("unfillable", "btcusdt@trade", [(3, 3)], "not_served"),
        ("unfillable", "btcusdt@trade", [(5, 5)], "not_served"),
    ]


def test_a_dead_exchange_makes_nobody_wait(stage: Stage) -> None:
    stage.came(trade(1), trade(3))
    stage.continuity.give_up_order(stage.requests[0], "rest_unreachable")
    stage.continuity.give_up_order(stage.requests[0], "rest_unreachable")
    assert stage.ids() == [1, 3]
    assert [record[0] for record in stage.ledger] == ["opened", "order_given_up"]


def test_without_backfill_a_gap_is_named_at_once() -> None:
    stage = Stage(enabled=False)
    stage.came(trade(1), trade(3), depth(1, 1), depth(5, 5))
    assert stage.ids() == [1, 3, 1, 5]
    assert [record[0] for record in stage.ledger] == ["opened", "unfillable"] * 2
    assert stage.requests == stage.snapshots == []


def test_a_book_gets_a_snapshot_at_its_start_and_behind_each_gap(stage: Stage) -> None:
    stage.came(depth(10, 12))
    assert stage.snapshots == ["btcusdt@depth@100ms"]
    assert stage.ids() == [12]
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    stage.came(depth(13, 15), depth(16, 18))
    assert stage.ids() == []
    assert stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 15))
    assert [(each.get("u"), each.get("lastUpdateId")) for each in stage.passed()] == [
        (15, None),
        (None, 15),
        (18, None),
    ]
    assert not stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    stage.came(depth(25, 26))
    assert stage.ledger == [
        ("opened", "btcusdt@depth@100ms", 19, 24, "jump"),
        ("unfillable", "btcusdt@depth@100ms", [(19, 24)], "not_kept_by_the_exchange"),
    ]
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    assert not stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 23))
    assert stage.ids() == []
    assert stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 24))
    assert [(each.get("u"), each.get("lastUpdateId")) for each in stage.passed()] == [(None, 24), (26, None)]
    assert equation_holds(stage.counts())


def test_a_snapshot_from_before_a_gap_that_opened_meanwhile_is_asked_for_again(stage: Stage) -> None:
    stage.came(depth(10, 12))
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    stage.came(depth(13, 15))
    stage.reconnected()
    stage.came(depth(20, 22), depth(23, 24))
    assert not stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 16))
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    assert stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 22))
    assert [each.get("u", each.get("lastUpdateId")) for each in stage.passed()] == [12, 15, 22, 22, 24]
    assert stage.snapshots_taken == [("btcusdt@depth@100ms", 22)]
    assert stage.continuity.held == 0


def test_a_book_without_a_gap_gets_a_snapshot_now_and_then() -> None:
    stage = Stage(snapshot_interval_seconds=0.001)
    stage.came(depth(10, 12))
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    assert stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 12))
    stage.came(depth(13, 15))
    deadline = time.monotonic() + 10
    while len(stage.snapshots) == 1:
        assert time.monotonic() < deadline
        stage.continuity.tick()
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    assert stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 15))
    assert stage.ledger == []


def test_a_snapshot_that_cannot_be_fetched_holds_nothing_up(stage: Stage) -> None:
    stage.came(depth(10, 12), depth(20, 22))
    assert stage.ids() == [12]
    stage.continuity.abandon_snapshot("btcusdt@depth@100ms", "rest_unreachable")
    assert stage.ids() == [22]
    assert not stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 30))
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    assert stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 30))
    assert len(stage.passed()) == 1
    assert stage.snapshots_taken == [("btcusdt@depth@100ms", 30)]


def held_seconds(stage: Stage, update: int) -> float:
    """Keep a place for a snapshot, let an update come behind it, return how long it waits."""
    began = time.monotonic()
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    stage.came(depth(update, update))
    while not stage.ids():
        stage.continuity.tick()
        time.sleep(0.01)
        assert time.monotonic() < began + 15
    return time.monotonic() - began


def test_updates_wait_less_and_less_for_a_snapshot_that_does_not_come_and_longer_for_one_that_comes_late() -> None:
    stage = Stage(max_wait_seconds=3)
    stage.came(depth(1, 1))
    stage.ids()
    for number, patience in ((2, 2.0), (3, 1.0), (4, 0.5)):
        assert stage.patience("btcusdt@depth@100ms") == patience
        assert held_seconds(stage, number) > patience - 0.1
    assert not stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 4))  # nobody waits any more
    assert held_seconds(stage, 5) > 2.9


def test_a_snapshot_that_is_refused_for_good_is_not_waited_for_but_asked_for_behind_the_next_gap(
    stage: Stage,
) -> None:
    stage.came(depth(1, 5))
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    stage.continuity.abandon_snapshot("btcusdt@depth@100ms", "rest_refused", for_good=True)
    stage.came(depth(6, 7))
    assert not stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    stage.came(depth(9, 9))
    assert stage.snapshots == ["btcusdt@depth@100ms"] * 2


def test_a_snapshot_that_is_refused_for_good_is_not_due_again_at_once() -> None:
    stage = Stage(snapshot_interval_seconds=3_600)
    stage.came(depth(1, 5))
    stage.continuity._streams["btcusdt@depth@100ms", "BTCUSDT"].snapshot_at -= 4_000
    stage.continuity.abandon_snapshot("btcusdt@depth@100ms", "invalid_symbol", for_good=True)
    for _ in range(2):
        stage.continuity._renew_at = 0.0
        stage.continuity.tick()
    assert len(stage.snapshots) == 1


def test_of_a_stream_that_is_not_read_any_more_no_snapshot_is_asked_for_and_no_hour_is_told() -> None:
    stage = Stage(snapshot_interval_seconds=0.001)
    stage.came(depth(1, 5), trade(1))
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    assert stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 5))
    stage.continuity.left(["btcusdt@depth@100ms"])
    assert len(stage.continuity.tallies()) == 2, "what came while it was read"
    time.sleep(0.01)
    stage.continuity._renew_at = 0.0
    stage.continuity.tick()
    assert len(stage.snapshots) == 1
    assert [tally.stream for tally in stage.continuity.tallies()] == ["btcusdt@trade"]
    stage.continuity.will_read(["btcusdt@depth@100ms"])
    stage.continuity._renew_at = 0.0
    stage.continuity.tick()
    assert len(stage.snapshots) == 2


def snapshot(stage: Stage, last_update_id: int) -> Event:
    (event,) = stage.decode([depth(1, last_update_id)]).events
    event.value = json.dumps({"lastUpdateId": last_update_id}).encode()
    return Event(event.route, event.value, T0, 0, last_update_id, last_update_id)


def test_of_two_connections_the_first_wins_and_nothing_comes_twice(stage: Stage) -> None:
    stage.came(trade(1), trade(2), depth(1, 5), ticker(1), quote(7), bar(1, 10))
    stage.came(trade(1), trade(2), trade(3), depth(1, 5), ticker(1), quote(7), quote(9), bar(1, 10), on=1)
    stage.came(trade(3), trade(4), ticker(2), quote(9), bar(1, 11))
    assert len(stage.passed()) == 6 + 2 + 3
    assert stage.counts()["messages_duplicate"] == 6 + 2


def test_a_connection_that_goes_on_bringing_what_has_no_id_keeps_its_say(stage: Stage) -> None:
    stage.came(quote(7), ticker(1))
    for stream in stage.continuity._streams.values():
        stream.taken_at -= 100.0  # these came longer ago than a connection without anything new has a say
    stage.came(quote(9), ticker(2))
    stage.came(quote(9), ticker(2), on=1)
    assert len(stage.passed()) == 4
    assert stage.counts()["messages_duplicate"] == 2


def test_on_one_connection_nothing_without_an_id_is_left_out(stage: Stage) -> None:
    stage.came(ticker(5), ticker(5), ticker(4), quote(3), quote(3))
    assert len(stage.passed()) == 5


def test_what_only_the_standby_brought_is_counted() -> None:
    stage = Stage(standby=True)
    stage.came(*map(trade, range(1, 4)))
    stage.came(*map(trade, range(1, 8)), on=1)
    stage.came(*map(trade, range(6, 9)))
    assert stage.ids() == list(range(1, 9))
    assert stage.counts()["messages_saved_by_standby"] == 2
    assert equation_holds(stage.counts())


@pytest.mark.parametrize("enabled", [True, False])
def test_what_the_other_connection_brings_a_moment_later_is_no_gap(*, enabled: bool) -> None:
    stage = Stage(standby=True, skew_seconds=60, enabled=enabled)
    stage.came(trade(1), depth(1, 2))
    stage.came(trade(1), depth(1, 2), on=1)
    stage.came(trade(4), depth(7, 8))
    stage.continuity.tick()
    assert stage.ids() == [1, 2]
    stage.came(trade(2), trade(3), trade(4), depth(3, 6), depth(7, 8), on=1)
    assert stage.ids() == [2, 3, 4, 6, 8]
    assert stage.requests == []
    assert [record[0] for record in stage.ledger] == ["opened", "opened", "filled", "filled"]


def test_what_neither_connection_brings_is_asked_for_after_a_moment() -> None:
    stage = Stage(standby=True)
    stage.came(trade(1), depth(1, 2))
    stage.came(trade(1), depth(1, 2), on=1)
    stage.came(trade(4), depth(7, 8))
    stage.continuity._skew_seconds = -1.0
    stage.continuity.tick()
    (gap,) = stage.requests
    stage.fetched(gap, trade(2), trade(3))
    assert stage.ids() == [1, 2, 2, 3, 4]
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    assert stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 6))
    assert [each.get("lastUpdateId") for each in stage.passed()] == [6, None]


def test_a_book_that_did_not_wait_for_the_other_connection_gets_its_snapshot_all_the_same() -> None:
    stage = Stage(standby=True, skew_seconds=60, max_held_events=1)
    stage.came(depth(1, 2))
    stage.came(depth(1, 2), on=1)
    stage.came(depth(7, 8), depth(9, 10))
    assert stage.ids() == [2, 8, 10]
    stage.continuity._skew_seconds = -1.0
    stage.continuity.tick()
    assert stage.ledger[-1][0] == "unfillable"
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    assert stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 10))
    assert len(stage.passed()) == 1


def test_a_new_numbering_is_followed_and_repeats_are_none(stage: Stage) -> None:
    stage.came(*(trade(1_000 + number, at=number) for number in range(5)))
    stage.came(*(trade(1 + number, at=100 + number) for number in range(10)))
    assert stage.ids() == [*range(1_000, 1_005), *range(1, 11)]
    assert stage.ledger == [("renumbered", "btcusdt@trade", "BTCUSDT", 1_005, 1)]
    assert stage.counts()["messages_duplicate"] == 0


def test_a_repeat_that_says_it_is_new_is_counted_once_the_old_numbering_goes_on(stage: Stage) -> None:
    stage.came(trade(1), trade(2), trade(2, at=50))
    stage.continuity.tick()
    assert stage.counts()["messages_duplicate"] == 0  # it may be the first of a new numbering
    stage.came(trade(3))
    stage.continuity.tick()
    assert stage.counts()["messages_duplicate"] == 1
    assert stage.ids() == [1, 2, 3]
    assert equation_holds(stage.counts())


HOUR = 3_600_000


def test_what_is_older_by_more_than_an_hour_and_was_never_there_is_no_repeat(stage: Stage) -> None:
    stage.came(trade(1_000), trade(7, at=-HOUR), trade(8, at=-HOUR), trade(1_001))
    stage.came(trade(999, at=999), trade(1_000))  # these are late, by as much as the exchange may be, and repeated
    assert stage.ids() == [1_000, 7, 8, 1_001]
    assert stage.ledger == []
    assert stage.counts()["messages_duplicate"] == 2


def test_what_is_newer_by_more_than_an_hour_is_a_new_numbering_at_once(stage: Stage) -> None:
    stage.came(trade(1_000, at=-3 * HOUR), trade(7, at=-HOUR), trade(8, at=-HOUR + 1), trade(7, at=-HOUR))
    assert stage.ids() == [1_000, 7, 8]
    assert stage.ledger == [("renumbered", "btcusdt@trade", "BTCUSDT", 1_001, 7)]
    assert stage.counts()["messages_duplicate"] == 1


def test_recordings_of_several_times_are_all_let_through(stage: Stage) -> None:
    recorded = [
        *(trade(3_735, at=-500 * HOUR), trade(343, at=-900 * HOUR), trade(107, at=-9 * HOUR)),
        *({**depth(first, first + 8), "E": T0 + hours * HOUR} for first, hours in ((500, -500), (51, -9))),
        *(bar(number, 1, closed=True) for number in (900, 500)),
    ]
    stage.came(*recorded)
    assert stage.counts()["messages_buffered"] == len(recorded) == len(stage.passed())


def test_an_id_that_was_never_there_is_not_doubted_for_longer_than_its_stream_is_quiet(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.came(trade(1_000), trade(7, at=2_000), trade(8, at=2_001))
    stage.continuity.tick()
    assert stage.ids() == [1_000]
    monkeypatch.setattr(sequences, "_DOUBT_SECONDS", 0.0)
    stage.continuity.tick()
    stage.continuity.tick()
    assert stage.ids() == [7, 8]
    stage.came(*(trade(9 + number, at=3_000 + number) for number in range(6)))
    assert stage.ids() == [9, 10, 11, 12, 13, 14]
    assert stage.ledger == [("renumbered", "btcusdt@trade", "BTCUSDT", 1_001, 9)]
    stage.came(trade(11, at=4_000))  # it has been there
    stage.continuity.tick()
    assert stage.ids() == []
    stage.continuity.close()
    assert stage.counts()["messages_duplicate"] == 1
    assert equation_holds(stage.counts())


def test_an_id_that_an_earlier_run_may_have_brought_is_doubted_until_its_stream_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "_DOUBT_SECONDS", 0.0)
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 100)})
    stage.came(trade(101), trade(7, at=2_000))
    stage.continuity.tick()
    assert stage.ids() == [101]
    stage.came(trade(102))
    stage.continuity.tick()
    assert stage.ids() == [102]
    assert stage.counts()["messages_duplicate"] == 1


def test_bars_follow_each_other_once_they_are_closed(stage: Stage) -> None:
    stage.came(bar(1, 0), bar(1, 2_000), bar(1, 60_001, closed=True), bar(2, 10), bar(1, 60_001, closed=True))
    assert len(stage.passed()) == 4
    assert stage.ledger == []
    stage.came(bar(4, 10))  # neither the end of bar 2 nor bar 3 was there
    (gap,) = stage.requests
    assert (gap.first, gap.last) == (2 * MINUTE, 4 * MINUTE - 1)
    stage.fetched(gap, bar(2, 1, closed=True), bar(3, 1, closed=True))
    assert [event["k"]["t"] // MINUTE for event in stage.passed()] == [2, 3, 4]


def test_bars_of_which_none_is_ever_closed_follow_each_other_on_one_connection(stage: Stage) -> None:
    stage.came(bar(1, 0), bar(1, 2_000), bar(2, 10), bar(3, 10))
    assert len(stage.passed()) == 4
    assert stage.ledger == []
    stage.reconnected()
    stage.came(bar(4, 10))  # the end of bar 3 may have come meanwhile
    assert [record[:4] for record in stage.ledger] == [
        ("opened", "btcusdt@kline_1m", 3 * MINUTE, 4 * MINUTE - 1),
    ]


def test_a_run_goes_on_where_the_one_before_ended(stage: Stage) -> None:
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 100)})
    stage.came(trade(104))
    assert stage.ids() == []
    (gap,) = stage.requests
    assert (gap.first, gap.last, gap.cause) == (101, 103, "resume")
    stage.fetched(gap, *map(trade, range(101, 104)))
    assert stage.ids() == [101, 102, 103, 104]


def test_what_kafka_has_from_the_run_before_is_left_out(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuity, "_RECORDING_MS", time.time_ns() // 1_000_000 - T0)  # T0 is some time ago
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 100, ((99, 99),))}, T0 + 100)
    stage.came(trade(97), trade(98), trade(99), trade(100), trade(101))
    assert stage.counts()["messages_duplicate"] == 4
    assert stage.ids() == [101]
    (gap,) = stage.requests
    assert (gap.first, gap.last) == (99, 99)
    assert equation_holds(stage.counts())


def test_a_recording_that_is_played_again_after_a_restart_is_none_of_that(stage: Stage) -> None:
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 100)}, T0 + 10**12)
    stage.came(trade(97), trade(98))
    assert stage.ids() == [97, 98]


@pytest.mark.parametrize("name", ["btcusdt@depth@100ms", "btcusdt@depth"])
@pytest.mark.parametrize("late", [False, True])
def test_a_hole_in_depth_between_two_runs_is_named(stage: Stage, name: str, *, late: bool) -> None:
    if late:
        stage.came(depth(110, 112))
    stage.continuity.resume({name: Position(name, 100)})
    stage.came(depth(110, 112) if not late else depth(113, 113))
    assert stage.ledger == [
        ("opened", "btcusdt@depth@100ms", 101, 109, "resume"),
        ("unfillable", "btcusdt@depth@100ms", [(101, 109)], "not_kept_by_the_exchange"),
    ]


def both_speeds(stage: Stage, *updates: tuple[int, int], name: str = "btcusdt@depth") -> None:
    """Let updates come on the slow stream, or another one."""
    frames = [json.dumps({"stream": name, "data": depth(first, last)}).encode() for first, last in updates]
    stage.continuity.put(stage.decoders[0].decode(frames, T0).events, 0, 1)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("names", [["btcusdt@depth"], ["btcusdt@depth", "btcusdt@depth@100ms"]])
def test_two_speeds_of_depth_that_could_not_be_told_apart_lose_nothing_and_name_no_false_gap(
    names: list[str], stage: Stage, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    monkeypatch.setattr(continuity, "_now_ms", lambda: T0 + 200)
    positions = {name: Position(name, 100, at_ms=T0 + (50 if late else 100), mixed=True) for name in names}
    if not late:
        stage.continuity.resume(positions, T0 + 200)
    both_speeds(stage, (81, 99), (100, 120))
    both_speeds(stage, (101, 110), (111, 120), name="btcusdt@depth@100ms")
    if late:
        stage.continuity.resume(positions, T0 + 200)
    assert stage.ids() == [99, 120, 110, 120]
    assert stage.ledger == []
    assert stage.counts()["messages_duplicate"] == 0


def test_what_is_behind_both_of_two_speeds_of_depth_is_missing(stage: Stage) -> None:
    names = ("btcusdt@depth", "btcusdt@depth@100ms")
    stage.continuity.resume({name: Position(name, 100, mixed=True) for name in names})
    both_speeds(stage, (90, 120))
    both_speeds(stage, (111, 120), name="btcusdt@depth@100ms")
    assert stage.ledger[0] == ("opened", "btcusdt@depth@100ms", 101, 110, "resume")


def test_depth_that_goes_on_amid_what_kafka_has_is_no_new_numbering(stage: Stage) -> None:
    stage.continuity.resume({"btcusdt@depth": Position("btcusdt@depth", 110, at_ms=T0)})
    both_speeds(stage, (101, 120))
    assert stage.ids() == [120]
    assert stage.ledger == []


def test_of_two_speeds_of_depth_one_takes_over_what_tells_no_speed(stage: Stage) -> None:
    quick = stage.decode([depth(110, 112)]).events
    named = EventDecoder(TOPICS).decode(
        [json.dumps({"stream": "btcusdt@depth", "data": depth(110, 112)}).encode()], T0
    )
    stage.continuity.put([*quick, *named.events], 0, 1)
    stage.continuity.resume({"btcusdt@depth": Position("btcusdt@depth", 100)})
    assert [record[0] for record in stage.ledger] == ["opened", "unfillable"]


def test_newer_events_with_ids_from_before_are_a_new_numbering_after_a_restart(stage: Stage) -> None:
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 100)}, T0)
    stage.came(trade(1), trade(2))
    assert stage.ids() == [1, 2]
    assert stage.ledger == [("renumbered", "btcusdt@trade", "BTCUSDT", 101, 1)]


def test_what_was_missing_of_an_old_numbering_is_named_and_not_asked_for(stage: Stage) -> None:
    stage.continuity.resume(
        {"btcusdt@trade": Position("btcusdt@trade", 1_000_000, ((50, 60),), at_ms=T0)}, T0 + 10**9
    )
    stage.came(trade(81, at=1), trade(82, at=2))
    assert stage.ids() == [81, 82]
    assert stage.requests == []
    assert stage.ledger == [
        ("renumbered", "btcusdt@trade", "BTCUSDT", 1_000_001, 81),
        ("opened", "btcusdt@trade", 50, 60, "resume"),
        ("unfillable", "btcusdt@trade", [(50, 60)], "renumbered"),
    ]


def test_a_run_that_learns_late_that_the_numbering_is_new_asks_for_nothing_of_the_old_one(stage: Stage) -> None:
    stage.came(trade(81, at=1), trade(82, at=2))
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 1_000_000, ((50, 60),), at_ms=T0)})
    assert stage.ids() == [81, 82]
    assert stage.requests == []
    assert stage.ledger[0] == ("renumbered", "btcusdt@trade", "BTCUSDT", 1_000_001, 81)


def test_what_is_newer_than_the_last_one_is_no_repeat_whatever_our_own_clock_says(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuity, "_now_ms", lambda: T0)
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 1_000, at_ms=T0 - 5_000)}, T0)
    stage.came(trade(900, at=-5_001))
    assert stage.ids() == []
    stage.came(trade(1, at=-4_999))
    assert stage.ids() == [1], "the clock here is ahead of the exchange's"


def test_what_was_lost_of_an_old_numbering_is_not_asked_for(stage: Stage) -> None:
    stage.continuity.resume({})
    stage.came(*map(trade, range(1000, 1010)))
    lose(stage, trade(1005))
    stage.came(*(trade(number, at=10_000 + number) for number in range(1, 9)))
    stage.continuity.fetch_lost()
    assert stage.requests == []


def test_what_the_run_before_left_open_is_filled_too(stage: Stage) -> None:
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 100, ((90, 91),))})
    stage.came(trade(101))
    (gap,) = stage.requests
    assert stage.ids() == [101]
    stage.fetched(gap, trade(90), trade(91))
    assert stage.ids() == [90, 91]


def test_a_run_that_learns_late_where_the_one_before_ended_fills_the_gap_behind(stage: Stage) -> None:
    stage.came(trade(104), trade(105))
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 100)})
    assert stage.ids() == [104, 105]
    stage.fetched(stage.requests[0], *map(trade, range(101, 104)))
    assert stage.ids() == [101, 102, 103]


def test_what_this_run_misses_itself_is_not_taken_for_what_the_one_before_has_left(stage: Stage) -> None:
    stage.came(trade(104), trade(105), trade(108))
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 108, ((101, 103), (106, 107)))})
    assert [(gap.first, gap.last, gap.cause) for gap in stage.requests] == [
        (106, 107, "jump"),
        (101, 103, "resume"),
    ]
    stage.fetched(stage.requests[0], trade(106), trade(107))
    stage.fetched(stage.requests[1], *map(trade, range(101, 104)))
    assert stage.ids() == [104, 105, 106, 107, 108, 101, 102, 103]


def lose(stage: Stage, *payloads: dict[str, Any]) -> None:
    """Drop events on their way, as a full disk does."""
    stage.lost.note(ids_of(stage.decode(payloads).events))


def test_what_was_lost_on_its_way_is_fetched_again_behind_what_is_live(stage: Stage) -> None:
    stage.continuity.resume({})
    stage.came(*map(trade, range(1, 11)))
    lose(stage, trade(4), trade(5), trade(9))
    assert stage.positions()["btcusdt@trade"] == Position("btcusdt@trade", 10, ((4, 5), (9, 9)))
    stage.continuity.fetch_lost()
    assert stage.ledger == [
        ("opened", "btcusdt@trade", 4, 5, "dropped"),
        ("order_given_up", "btcusdt@trade", 4, 5, "dropped"),
        ("opened", "btcusdt@trade", 9, 9, "dropped"),
        ("order_given_up", "btcusdt@trade", 9, 9, "dropped"),
    ]
    assert stage.positions()["btcusdt@trade"] == Position("btcusdt@trade", 10, ((4, 5), (9, 9)))
    assert stage.ids() == list(range(1, 11))
    stage.came(trade(11))
    stage.fetched(stage.requests[0], trade(4), trade(5))
    stage.fetched(stage.requests[1], trade(9))
    assert stage.ids() == [11, 4, 5, 9]
    assert stage.ledger[-2:] == [("filled", "btcusdt@trade", 4, 5, 2), ("filled", "btcusdt@trade", 9, 9, 1)]
    assert stage.positions()["btcusdt@trade"] == Position("btcusdt@trade", 11)
    assert stage.counts()["messages_backfilled"] == 3
    stage.continuity.fetch_lost()
    assert len(stage.requests) == 2


def test_a_book_of_which_updates_were_lost_on_their_way_gets_a_snapshot(stage: Stage) -> None:
    stage.continuity.resume({})
    stage.came(depth(10, 12))
    assert stage.continuity.expect_snapshot("btcusdt@depth@100ms")
    assert stage.continuity.offer_snapshot("btcusdt@depth@100ms", snapshot(stage, 12))
    stage.came(depth(13, 15), depth(16, 20))
    lose(stage, depth(13, 15))
    stage.continuity.fetch_lost()
    stage.continuity.fetch_lost()
    assert stage.snapshots == ["btcusdt@depth@100ms"] * 2
    assert stage.requests == []


def test_before_the_past_is_known_nothing_is_fetched_again_and_what_the_resume_knows_is_left_to_it(
    stage: Stage,
) -> None:
    stage.came(trade(106), trade(107))
    lose(stage, trade(98), trade(101), trade(106))
    stage.continuity.fetch_lost()
    assert stage.requests == []
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 100)})
    stage.continuity.fetch_lost()
    asked = [(gap.first, gap.last, gap.cause) for gap in stage.requests]
    assert asked == [(101, 105, "resume"), (106, 106, "dropped")], "98 is in Kafka: its place was seen there"


def test_what_a_stream_lost_that_this_run_has_not_met_is_fetched_again_and_stands_in_its_position(
    stage: Stage,
) -> None:
    stage.continuity.resume({"btcusdt@trade": Position("btcusdt@trade", 100, ((50, 51),))})
    lose(stage, trade(90))
    stage.continuity.fetch_lost()
    assert [(gap.first, gap.last) for gap in stage.requests] == [(90, 90)]
    position = Position("btcusdt@trade", 100, ((50, 51), (90, 90)))
    assert stage.positions() == {"btcusdt@trade": position}
    stage.fetched(stage.requests[0], trade(90))
    stage.came(trade(101))
    assert stage.ids() == [90, 101]
    assert [(gap.first, gap.last) for gap in stage.requests] == [(90, 90), (50, 51)]


def test_without_backfill_what_was_lost_is_left_to_a_run_that_has_it() -> None:
    stage = Stage(enabled=False)
    stage.continuity.resume({})
    stage.came(trade(1), trade(2), trade(3))
    lose(stage, trade(2))
    stage.continuity.fetch_lost()
    assert stage.ledger == []
    assert stage.positions()["btcusdt@trade"].missing == ((2, 2),)


def test_positions_tell_what_went_into_the_buffer_and_what_is_missing_there(stage: Stage) -> None:
    stage.came(trade(1), trade(2), trade(5), aggregate(9), bar(1, 3))
    put, positions = stage.continuity.positions()[0], stage.positions()
    assert put == 3
    assert positions["btcusdt@trade"] == Position("btcusdt@trade", 2)
    assert positions["btcusdt@aggTrade"] == Position("btcusdt@aggTrade", 8)
    assert positions["btcusdt@kline_1m"] == Position("btcusdt@kline_1m", 2 * MINUTE - 1, (), final=False)
    stage.continuity.close()
    put, positions = stage.continuity.positions()[0], stage.positions()
    assert put == 5
    assert positions["btcusdt@trade"] == Position("btcusdt@trade", 5, ((3, 4),))
    assert positions["btcusdt@aggTrade"] == Position("btcusdt@aggTrade", 9)


def test_a_stop_lets_everything_pass_that_waits(stage: Stage) -> None:
    stage.came(trade(1), trade(3), depth(1, 1), depth(4, 4), aggregate(5))
    stage.fetched(stage.requests[0])
    stage.continuity.close()
    assert sorted(stage.ids()) == [1, 1, 3, 4, 5]
    assert equation_holds(stage.counts())


def test_tallies_tell_expected_against_received_by_the_ids(stage: Stage) -> None:
    stage.came(trade(1), trade(2), trade(2), trade(5))
    stage.fetched(stage.requests[0], trade(3))
    (tally,) = stage.continuity.tallies()
    assert tally[3:] == (1, 5, 4, 1, 1, 1)
    stage.came(trade(6))
    (tally,) = stage.continuity.tallies()
    assert tally[3:6] == (6, 6, 1)


@given(st.data())
def test_whatever_comes_and_is_fetched_each_id_goes_through_once_and_in_order(data: st.DataObject) -> None:
    """Two connections lose, repeat and swap at random; REST gives what is missing, in any pieces."""
    stage = Stage(standby=data.draw(st.booleans()))
    many = data.draw(st.integers(2, 60))
    for number in range(1, many + 1):
        for connection in (0, 1):
            if number in {1, many} or data.draw(st.booleans()):
                stage.came(trade(number), on=connection)
                if data.draw(st.integers(0, 9)) == 0:
                    stage.came(trade(data.draw(st.integers(1, number))), on=connection)
        if stage.requests and data.draw(st.booleans()):
            gap = data.draw(st.sampled_from(stage.requests))
            for first, last in stage.continuity.remaining(gap):
                stage.fetched(gap, *map(trade, range(first, min(last, first + 3) + 1)))
    stage.continuity.tick()
    for gap in stage.requests:
        while left := stage.continuity.remaining(gap):
            stage.fetched(gap, *(trade(first) for first, _ in left))
    assert stage.ids() == list(range(1, many + 1))
    assert stage.continuity.held == 0
    assert equation_holds(stage.counts())


class Unruly:
    """Does anything to a stage: four streams of one symbol jump, repeat and swap, on two connections."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.stage = Stage(
            standby=self.random.random() < 0.5,
            skew_seconds=self.random.choice([0.0, 60.0]),
            enabled=self.random.random() < 0.8,
            max_wait_seconds=self.random.choice([0.000001, 10.0]),
            max_held_events=self.random.choice([3, 1_000]),
        )
        self.next = dict.fromkeys(("trade", "aggregate", "depth", "bar"), 100)

    def payload(self) -> dict[str, Any]:
        kind = self.random.choice(list(self.next))
        number = self.next[kind] = max(
            1, self.next[kind] + 1 + self.random.choice([0] * 8 + [1, 3, -1, -2, -20, 10**6])
        )
        late = self.random.choice([0, 0, 0, 5, -100, 4_000_000, -4_000_000])
        if kind == "trade":
            return trade(number, at=late)
        if kind == "aggregate":
            return aggregate(number) | {"E": T0 + late}
        if kind == "bar":
            return bar(number, late, closed=self.random.random() < 0.5)
        self.next[kind] = last = number + self.random.randint(0, 4)
        return depth(number, last) | {"E": T0 + late}

    def fetched(self, gap: Gap) -> None:
        number = self.random.randint(gap.first, gap.last)
        payloads = {
            "trade": trade(number),
            "aggregate_trade": aggregate(number),
            "kline": bar(gap.first // MINUTE, 0),
        }
        self.stage.fetched(gap, payloads[gap.event_type])

    def of_a_gap(self) -> None:
        if self.stage.requests:
            gap, continuity = self.random.choice(self.stage.requests), self.stage.continuity
            only = self.random.choice([None, [(gap.first, gap.first + 1)]])
            self.random.choice(
                [
                    lambda: self.fetched(gap),
                    lambda: continuity.abandon(gap, "skipped_by_exchange", only=only),
                    lambda: continuity.give_up_order(gap, "too_large"),
                ]
            )()

    def of_a_book(self) -> None:
        if self.stage.snapshots:
            book, continuity = self.stage.snapshots[-1], self.stage.continuity
            last = max(1, self.next["depth"] + self.random.randint(-6, 2))
            self.random.choice(
                [
                    lambda: continuity.expect_snapshot(book),
                    lambda: continuity.offer_snapshot(book, snapshot(self.stage, last)),
                    lambda: continuity.abandon_snapshot(book, "refused", for_good=self.random.random() < 0.5),
                ]
            )()

    def of_the_run_before(self) -> None:
        missing = ((1, 2),) if self.random.random() < 0.5 else ()
        position = Position("btcusdt@trade", self.random.randint(1, 120), missing, at_ms=T0 - 5_000)
        self.stage.continuity.resume({position.stream: position}, T0 - 5_000)

    def do_something(self) -> None:
        stage, source = self.stage, self.random.choice([0, 0, 0, 1])
        steps: list[Callable[[], object]] = [
            *[lambda: stage.came(*(self.payload() for _ in range(self.random.randint(1, 3))), on=source)] * 8,
            *[self.of_a_gap, self.of_a_book] * 2,
            *[self.of_the_run_before, stage.reconnected, stage.continuity.fetch_lost, stage.continuity.tallies],
        ]
        self.random.choice(steps)()


@given(st.integers(0, 1_000_000))
def test_whatever_happens_in_whatever_order_every_event_is_accounted_for(seed: int) -> None:
    unruly = Unruly(seed)
    for _ in range(60):
        unruly.do_something()
        unruly.stage.continuity.tick()
        unruly.stage.continuity.positions()
        assert equation_holds(unruly.stage.counts())
    unruly.stage.continuity.close()
    unruly.stage.passed()
    counts = unruly.stage.counts()
    assert counts["messages_buffered"] == unruly.stage.continuity.held == 0
    assert equation_holds(counts)
