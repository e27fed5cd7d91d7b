"""The order book that a consumer rebuilds: equal to the exchange's own at each step, unknown where it must be."""

from __future__ import annotations

import random  # noqa: TC003 - hypothesis asks for it by its annotation
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.order_book import Level, NotDepth, OrderBook, State

NOW = 1_700_000_000_000


def update(first: int, last: int, *, at: int | None = None, **sides: list[list[str]]) -> dict[str, Any]:
    ids = {"E": NOW + last if at is None else at, "U": first, "u": last}
    return {"event_type": "depth_update", "b": [], "a": []} | ids | sides


def snapshot(
    last: int, bids: list[list[str]] | None = None, asks: list[list[str]] | None = None
) -> dict[str, Any]:
    sides = {"bids": bids or [["10", "1"], ["9", "2"]], "asks": asks or [["11", "1"], ["12", "2"]]}
    return {"event_type": "depth_snapshot", "lastUpdateId": last, "ingestion_timestamp": NOW + last} | sides


def book(*events: dict[str, Any]) -> OrderBook:
    made = OrderBook()
    for event in events:
        made.take(event)
    return made


def pairs(levels: list[Level]) -> list[tuple[str, str]]:
    return [(level.price, level.quantity) for level in levels]


def test_an_update_before_any_snapshot_leaves_the_book_unknown() -> None:
    waiting = book(update(1, 5, b=[["9", "1"]]))
    assert waiting.state is State.WAITING
    assert (waiting.bids(), waiting.asks(), waiting.best, waiting.breaks) == ([], [], None, 0)


def test_a_quantity_replaces_the_one_before_and_0_in_any_form_removes_the_level() -> None:
    live = book(
        snapshot(5),
        update(6, 9, b=[["10", "0.00000000"], ["9.5", "7"], ["9", "3"], ["1", "0"]], a=[["11", "0"], ["13", "4"]]),
    )
    assert pairs(live.bids()) == [("9.5", "7"), ("9", "3")]
    assert pairs(live.asks()) == [("12", "2"), ("13", "4")]
    assert (live.best, live.update_id, live.updates) == ((Decimal("9.5"), Decimal(12)), 9, 1)


def test_prices_are_compared_as_numbers_and_kept_to_the_digit() -> None:
    live = book(
        snapshot(1, [["9.10", "1"], ["10.00000001", "1"]], [["100", "1"]]),
        update(2, 2, b=[["9.1000", "5"], ["10.00000002", "6"]]),
    )
    assert pairs(live.bids()) == [("10.00000002", "6"), ("10.00000001", "1"), ("9.1000", "5")]
    assert pairs(live.bids(1)) == [("10.00000002", "6")]


@pytest.mark.parametrize(("first", "last"), [(1, 5), (4, 5), (5, 5)])
def test_an_update_that_the_snapshot_holds_already_is_dropped(first: int, last: int) -> None:
    live = book(snapshot(5), update(first, last, b=[["9", "77"]]))
    assert (live.state, live.updates, live.update_id) == (State.LIVE, 0, 5)
    assert pairs(live.bids()) == [("10", "1"), ("9", "2")]


@pytest.mark.parametrize(("first", "last"), [(6, 6), (4, 6), (6, 20)])
def test_an_update_bridges_when_the_next_id_lies_in_it(first: int, last: int) -> None:
    live = book(snapshot(5), update(first, last, b=[["9", "77"]]))
    assert (live.state, live.updates, live.update_id) == (State.LIVE, 1, last)


def test_a_hole_makes_the_book_unknown_until_the_next_snapshot() -> None:
    broken = book(snapshot(5), update(6, 7), update(9, 12))
    assert (broken.state, broken.breaks, broken.missing) == (State.BROKEN, 1, (8, 8))
    assert (broken.bids(), broken.best) == ([], None)
    broken.take(update(13, 14))
    assert broken.state is State.BROKEN
    broken.take(snapshot(14, [["5", "1"]], [["6", "1"]]))
    assert (broken.state, broken.missing, broken.snapshots) == (State.LIVE, None, 2)
    assert broken.best == (5, 6)


def test_a_snapshot_in_the_place_of_what_is_missing_breaks_nothing() -> None:
    live = book(
        snapshot(5), update(6, 7), snapshot(12, [["5", "1"]], [["6", "1"]]), update(11, 14, b=[["4", "1"]])
    )
    assert (live.state, live.breaks, live.snapshots, live.update_id) == (State.LIVE, 0, 2, 14)
    assert pairs(live.bids()) == [("5", "1"), ("4", "1")]


def test_a_snapshot_that_comes_late_is_met_with_the_updates_that_came_before_it() -> None:
    live = book(update(1, 4), update(5, 6, b=[["9", "7"]]), update(7, 8, a=[["11", "0"]]), snapshot(4))
    assert (live.state, live.update_id, live.updates) == (State.LIVE, 8, 2)
    assert pairs(live.bids()) == [("10", "1"), ("9", "7")]
    assert pairs(live.asks()) == [("12", "2")]


def test_a_snapshot_that_ends_before_what_came_begins_is_of_no_use() -> None:
    waiting = book(update(10, 12), snapshot(8))
    assert waiting.state is State.WAITING
    waiting.take(snapshot(9))
    assert (waiting.state, waiting.update_id) == (State.LIVE, 12)


def test_only_the_updates_since_the_last_hole_can_meet_a_snapshot() -> None:
    waiting = book(update(1, 2), update(5, 6), snapshot(1))
    assert waiting.state is State.WAITING
    waiting.take(snapshot(4))
    assert (waiting.state, waiting.update_id) == (State.LIVE, 6)


def test_what_came_before_a_book_was_known_does_not_hide_a_later_hole() -> None:
    broken = book(update(4, 6), snapshot(4), update(7, 8), update(12, 13), snapshot(5))
    assert (broken.state, broken.missing) == (State.BROKEN, (9, 11))


def test_a_repeat_while_the_book_is_not_known_does_not_interrupt_what_came() -> None:
    live = book(update(1, 3), update(4, 6), update(1, 3), update(7, 8), snapshot(3))
    assert (live.state, live.update_id, live.updates) == (State.LIVE, 8, 2)


def test_a_snapshot_of_where_the_book_stands_adds_what_was_not_known() -> None:
    live = book(snapshot(5), update(6, 6), snapshot(6, [["10", "1"], ["9", "2"], ["8", "3"]]))
    assert pairs(live.bids()) == [("10", "1"), ("9", "2"), ("8", "3")]


def test_a_snapshot_older_than_a_book_that_is_known_changes_nothing() -> None:
    live = book(snapshot(5), update(6, 9, b=[["9", "7"]]), snapshot(7), update(10, 11))
    assert (live.state, live.update_id, live.breaks) == (State.LIVE, 11, 0)
    assert pairs(live.bids()) == [("10", "1"), ("9", "7")]


def test_what_is_twice_in_the_topic_counts_once() -> None:
    events = [snapshot(5), *(update(number, number, b=[["9", str(number)]]) for number in range(6, 30))]
    live = book(*events, *events, update(30, 30))
    assert (live.state, live.update_id, live.updates, live.breaks) == (State.LIVE, 30, 25, 0)


@pytest.mark.parametrize("with_snapshot", [True, False])
def test_an_exchange_that_counts_anew_does_not_leave_a_stale_book(with_snapshot: bool) -> None:  # noqa: FBT001
    live = book(snapshot(10_000), update(10_001, 10_001))
    if with_snapshot:
        live.take(snapshot(5, [["3", "1"]], [["4", "1"]]))
    for number in range(6, 20):
        live.take(update(number, number, at=NOW + 20_000 + number))
    assert live.breaks == 1
    assert live.missing is None
    if with_snapshot:
        assert (live.state, live.update_id, live.best) == (State.LIVE, 19, (3, 4))
    else:
        assert (live.state, live.best) == (State.BROKEN, None)
        live.take(snapshot(18, [["3", "1"]], [["4", "1"]]))
        assert (live.state, live.update_id, live.best) == (State.LIVE, 19, (3, 4))


def test_updates_older_than_the_snapshot_are_no_new_numbering_whatever_the_clocks_say() -> None:
    late = [update(number, number, at=NOW + 10_000 + number) for number in range(60, 101)]
    live = book(snapshot(50), update(51, 51), snapshot(100), *late)
    assert (live.state, live.breaks) == (State.LIVE, 0)


def test_a_slower_stream_of_the_same_symbol_is_no_new_numbering() -> None:
    live = book(snapshot(100))
    for number in range(101, 130):
        live.take(update(number, number))
        live.take(update(number - 2, number - 2, at=NOW + number + 1))  # the same ids again, a moment later
    assert (live.state, live.breaks, live.update_id) == (State.LIVE, 0, 129)


def test_a_crossed_book_is_counted() -> None:
    assert book(snapshot(5), update(6, 6, b=[["11", "1"]])).crossed == 1
    assert book(snapshot(5), update(6, 6, b=[["11", "1"]], a=[["11", "0"]])).crossed == 0
    assert book(snapshot(5, [["3", "1"]], [["3", "1"]])).crossed == 1


def test_beyond_the_range_of_the_snapshot_a_level_is_not_certain() -> None:
    bids = [[str(price), "1"] for price in range(200, 100, -1)]
    asks = [[str(price), "1"] for price in range(201, 241)]
    live = book(snapshot(5, bids, asks), update(6, 6, b=[["100", "1"], ["150.5", "1"]], a=[["999", "1"]]))
    certain = {level.price: level.certain for level in (*live.bids(), *live.asks())}
    assert certain.pop("100") is False
    assert all(certain.values())  # fewer than 100 asks came, so there were no more: 999 is certain too


@pytest.mark.parametrize(
    "wrong",
    [
        {"event_type": "depth_snapshot"},
        snapshot(5) | {"lastUpdateId": "5"},
        snapshot(5) | {"bids": [["x", "1"]]},
        snapshot(5) | {"asks": [["1"]]},
        update(6, 6) | {"u": None},
        update(6, 6, b=[["10", "5"]], a=[["NaN", "1"]]),
        update(6, 6, b=[["10", "5"]], a=[["11", 1]]),  # type: ignore[list-item]
        update(6, 6, b=[["10", "5"]]) | {"a": 7},
    ],
)
def test_a_record_that_is_not_what_it_says_leaves_the_book_as_it_was(wrong: dict[str, Any]) -> None:
    live = book(snapshot(5))
    with pytest.raises(NotDepth):
        live.take(wrong)
    assert (live.update_id, live.snapshots, live.updates) == (5, 1, 0)
    assert pairs(live.bids()) == [("10", "1"), ("9", "2")]


def test_other_types_are_no_business_of_the_book() -> None:
    assert book({"event_type": "trade"}, {}).state is State.WAITING


class Market:
    """A book that changes at random, and what the exchange says of it."""

    def __init__(self, chance: random.Random, levels: int) -> None:
        self.chance = chance
        self.last = chance.randrange(1, 1_000)
        self.bids = {1_000 - step: chance.randrange(1, 9) for step in range(levels)}
        self.asks = {1_001 + step: chance.randrange(1, 9) for step in range(levels)}
        self.states: dict[int, tuple[dict[int, int], dict[int, int]]] = {}
        self._keep()

    def step(self) -> dict[str, Any]:
        """Change up to six levels, the best ones too, and return the update."""
        first = self.last + 1
        bids: dict[int, int] = {}
        asks: dict[int, int] = {}
        for _ in range(self.chance.randrange(1, 7)):
            self.last += 1
            side, changed = self.chance.choice(((self.bids, bids), (self.asks, asks)))
            lowest, highest = (800, min(self.asks) - 1) if side is self.bids else (max(self.bids) + 1, 1_200)
            price = self.chance.choice((self.chance.randint(lowest, highest), *side))
            quantity = self.chance.randrange(5) if len(side) > 1 else 1
            changed[price] = quantity
            side.pop(price, None)
            if quantity:
                side[price] = quantity
        self._keep()
        return update(first, self.last, b=texts(bids), a=texts(asks))

    def snapshot(self, at: int, limit: int = 5_000) -> dict[str, Any]:
        """Return the book as it was at an id."""
        bids, asks = self.states[at]
        return snapshot(
            at, texts(dict(sorted(bids.items())[::-1][:limit])), texts(dict(sorted(asks.items())[:limit]))
        )

    def _keep(self) -> None:
        self.states[self.last] = dict(self.bids), dict(self.asks)


def texts(levels: dict[int, int]) -> list[list[str]]:
    return [[f"{price}.00", f"{quantity}.000"] for price, quantity in levels.items()]


def numbers(levels: list[Level]) -> list[tuple[int, int]]:
    return [(int(Decimal(level.price)), int(Decimal(level.quantity))) for level in levels]


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.lists(st.sampled_from("uuuuuuuucrs"), max_size=60))
def test_at_each_step_the_book_is_the_exchanges_own_or_unknown(chance: random.Random, steps: list[str]) -> None:
    """`u` an update, `c` a cut and what follows it, `r` a repeat, `s` a snapshot that is some updates old."""
    market = Market(chance, chance.randrange(1, 40))
    rebuilt = OrderBook()
    sent: list[dict[str, Any]] = []
    run = [market.last]  # the ids at which a snapshot meets what came since the last hole
    known = False
    for step in steps:
        if step == "c":
            market.step()
            run, known = [market.last], False
        elif step == "s":
            rebuilt.take(market.snapshot(chance.choice(run[-4:])))
            known = True
        if step in "uc":
            sent.append(market.step())
            rebuilt.take(sent[-1])
            run.append(market.last)
        elif step == "r" and sent:
            rebuilt.take(chance.choice(sent))
        assert (rebuilt.state is State.LIVE) == known
        assert rebuilt.crossed == 0
        if known:
            bids, asks = market.states[rebuilt.update_id]
            assert numbers(rebuilt.bids()) == sorted(bids.items(), reverse=True)
            assert numbers(rebuilt.asks()) == sorted(asks.items())
            assert rebuilt.update_id == run[-1]


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_within_the_range_of_the_snapshot_nothing_is_wrong_and_beyond_it_nothing_is_stale(
    chance: random.Random,
) -> None:
    market = Market(chance, 150)
    rebuilt = book(market.snapshot(market.last, limit=100))
    for _ in range(100):
        rebuilt.take(market.step())
    for levels, truth, best_first in ((rebuilt.bids(), market.bids, -1), (rebuilt.asks(), market.asks, 1)):
        certain = numbers([level for level in levels if level.certain])
        edge = max(certain, key=lambda level: level[0] * best_first)[0] * best_first
        whole = sorted(truth.items(), key=lambda level: level[0] * best_first)
        assert certain == [level for level in whole if level[0] * best_first <= edge]
        assert set(numbers(levels)) <= set(truth.items())
    assert rebuilt.crossed == 0
