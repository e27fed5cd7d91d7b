"""What is told of a stream from the events that stand in Kafka: last id, holes, in any order of seeing."""

from __future__ import annotations

import json
import random  # noqa: TC003 - hypothesis asks for it by its annotation

from hypothesis import given
from hypothesis import strategies as st

from config.kafka import KafkaConfig
from src.coverage import Coverage, Place, event_type, place, sent_at
from src.decoder import EventDecoder
from src.holes import Position
from src.kafka_producer import topic_names
from tests.resume_fixtures import aggregate, bar, depth, expanded, now_ms, trade

IDS = st.lists(st.integers(1, 60), min_size=1, max_size=80)
TRADE = "btcusdt@trade"


def seen(ids: list[int], known: dict[str, Position] | None = None) -> Position:
    coverage = Coverage(known or {})
    for number in ids:
        coverage.saw(Place(TRADE, number, number))
    return coverage.positions()[TRADE]


@given(IDS)
def test_whatever_is_not_seen_between_the_first_and_the_last_is_missing(ids: list[int]) -> None:
    found = seen(ids)
    above = {number for number in ids if number >= ids[0]}
    assert found.last == max(above)
    assert expanded(found) == set(range(ids[0], found.last)) - above
    assert list(found.missing) == sorted(found.missing)


@given(IDS, st.integers(0, 60), st.randoms(use_true_random=False))
def test_seeing_the_past_once_more_changes_nothing(ids: list[int], start: int, chance: random.Random) -> None:
    known = {TRADE: Position(TRADE, start)}
    once = seen(ids, known)
    assert seen([*ids, *chance.sample(ids, len(ids))], known) == once
    assert expanded(once).isdisjoint(ids)
    assert set(ids) | expanded(once) >= set(range(start + 1, once.last + 1))


def test_the_holes_of_a_checkpoint_are_filled_by_what_came_later() -> None:
    known = {TRADE: Position(TRADE, 100, ((10, 19), (50, 50)))}
    assert seen([12, 13, 101, 50], known) == Position(TRADE, 101, ((10, 11), (14, 19)))


def seen_at(*events: tuple[int, int], known: Position | None = None) -> Position:
    """Let trades be seen, each with the time of its sending."""
    coverage = Coverage({TRADE: known} if known else {})
    for number, at_ms in events:
        coverage.saw(Place(TRADE, number, number), at_ms)
    return coverage.positions()[TRADE]


def test_a_new_numbering_in_the_tail_takes_the_place_of_the_old_one() -> None:
    old = Position(TRADE, 1_000_000, ((500, 600),), at_ms=5_000)
    assert seen_at((1, 5_001), (2, 5_001), (4, 5_003), known=old) == Position(TRADE, 4, ((3, 3),), at_ms=5_003)
    assert seen_at((999_999, 10), (1_000_000, 11), (7, 12), (8, 13)) == Position(TRADE, 8, at_ms=13)


def test_the_tail_of_an_old_numbering_behind_a_checkpoint_of_the_new_one_opens_no_absurd_gap() -> None:
    new = Position(TRADE, 3, ((2, 2),), at_ms=9_000)
    tail = [(999_999, 5_000), (1_000_000, 5_001), (1, 8_000), (3, 9_000), (4, 9_001)]
    assert seen_at(*tail, known=new) == Position(TRADE, 4, ((2, 2),), at_ms=9_001)


def test_what_came_late_or_twice_is_no_new_numbering() -> None:
    known = Position(TRADE, 100, ((40, 49),), at_ms=5_000)
    assert seen_at((45, 6_000), known=known).last == 100, "it fills a hole, whenever it was sent"
    assert seen_at((45, 0), (80, 0), known=known).last == 100, "fetched: nobody knows when it was sent"
    assert seen_at((99, 4_999), (100, 5_000), (99, 4_999), known=known).last == 100
    assert seen_at((7, 1), known=Position(TRADE, 100)).last == 100, "of an older checkpoint nobody knows the time"


def test_only_of_live_trades_is_it_known_when_they_were_sent() -> None:
    decoder = EventDecoder(topic_names(KafkaConfig()))
    trades, bars = (
        decoder.decode([each], now_ms()).events[0] for each in (trade("A", 1), bar("A", 0, closed=True))
    )
    assert sent_at(trades.value, b"trade", 77) == 77
    assert sent_at(trades.value.replace(b"binance_websocket", b"binance_rest_backfill"), b"trade", 77) == 0
    assert sent_at(bars.value, b"kline", 77) == 0


def test_an_event_is_found_again_by_the_stream_that_it_came_from() -> None:
    opened = now_ms() // 60_000 * 60_000
    frames = [trade("BTCUSDT", 5), aggregate("ETHUSDT", 6), bar("BNBUSDT", opened, closed=False)]
    frames += [bar("BNBUSDT", opened, closed=True, interval="1m@+08:00"), depth("BTCUSDT", 7, 9, "depth")]
    events = EventDecoder(topic_names(KafkaConfig())).decode(frames, now_ms()).events
    assert len(events) == len(frames)
    for event in events:
        found = place(event.value, event_type(event.value))
        assert found == Place(event.route.stream, event.first_id, event.last_id, event.final)


def test_what_counts_nothing_or_is_no_event_has_no_place() -> None:
    for value in (b"", b"{}", b'{"event_type":"trade"}', b'{"s":"A","event_type":"ticker"}', b'"event_type":"'):
        assert place(value, event_type(value)) is None
    value = json.dumps({"s": "BTCUSDT", "t": "5", "event_type": "trade"}, separators=(",", ":")).encode()
    assert place(value, event_type(value)) is None


QUICK, SLOW = "btcusdt@depth@100ms", "btcusdt@depth"


def books(*updates: tuple[int, int], known: dict[str, int] | None = None) -> dict[str, Position]:
    """Let updates of a book be seen; return where each speed stands."""
    coverage = Coverage({name: Position(name, last) for name, last in (known or {}).items()})
    for first, last in updates:
        coverage.saw(Place(SLOW, first, last))
    return coverage.positions()


def test_of_one_speed_of_depth_the_last_update_counts_whatever_is_missing_or_sent_again() -> None:
    updates = [(1, 5), (6, 9), (20, 25), (6, 9), (20, 25), (26, 30)]
    assert books(*updates) == {SLOW: Position(SLOW, 30)}
    assert books((4, 5), (6, 9), (10, 12), known={QUICK: 9}) == {QUICK: Position(QUICK, 12)}


def test_of_two_speeds_of_depth_an_update_belongs_to_the_one_that_it_alone_goes_on_from() -> None:
    known = {QUICK: 20, SLOW: 10}
    expected = {QUICK: Position(QUICK, 30), SLOW: Position(SLOW, 40)}
    assert books((11, 22), (21, 30), (23, 40), known=known) == expected


def test_two_speeds_of_depth_that_cannot_be_told_apart_stand_at_the_highest_id_and_say_so() -> None:
    both = {QUICK: Position(QUICK, 30, mixed=True), SLOW: Position(SLOW, 30, mixed=True)}
    assert books((21, 25), (26, 30), (21, 30), known={QUICK: 20, SLOW: 20}) == both
    assert books((1, 5), (6, 10), (1, 10), (11, 15)) == {SLOW: Position(SLOW, 15, mixed=True)}
    assert books((8, 15), known={QUICK: 10}) == {QUICK: Position(QUICK, 15, mixed=True)}
