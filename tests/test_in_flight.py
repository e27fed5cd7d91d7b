"""The bound on what Kafka has not acknowledged: neither records nor bytes pass it, whatever threads do."""

from __future__ import annotations

import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.events import Event, Route
from src.in_flight import InFlight

ROUTE = Route("trade", "trades", b"BTCUSDT", b"}", 0, b"")
SOON = 5.0


def events(*sizes: int) -> list[Event]:
    return [Event(ROUTE, bytes(size), 0) for size in sizes]


def test_records_are_admitted_up_to_the_bound() -> None:
    in_flight = InFlight(max_records=3, max_bytes=1000)
    assert in_flight.admit(events(1, 1)) == 2
    assert in_flight.admit(events(1, 1)) == 1
    assert in_flight.admit(events(1)) == 0
    assert in_flight.admit([]) == 0
    assert (in_flight.records, in_flight.bytes) == (3, 3)


def test_bytes_are_admitted_up_to_the_bound_and_the_first_ones_first() -> None:
    in_flight = InFlight(max_records=100, max_bytes=100)
    assert in_flight.admit(events(60, 40, 1)) == 2
    assert in_flight.admit(events(0)) == 1
    assert in_flight.admit(events(1)) == 0
    assert in_flight.settle(1, 60)
    assert in_flight.admit(events(61, 1)) == 0, "order is kept: a small event does not overtake a big one"
    assert in_flight.admit(events(60)) == 1


def test_an_event_beyond_the_bound_is_never_admitted() -> None:
    in_flight = InFlight(max_records=10, max_bytes=10)
    assert in_flight.admit(events(11)) == 0
    assert (in_flight.records, in_flight.bytes) == (0, 0)


def test_what_is_settled_makes_room() -> None:
    in_flight = InFlight(max_records=2, max_bytes=10)
    in_flight.admit(events(5, 5))
    assert in_flight.settle(2, 10)
    assert in_flight.admit(events(5, 5)) == 2


@pytest.mark.parametrize(
    ("records", "size", "full"), [(94, 1, False), (95, 1, True), (1, 949, False), (1, 950, True)]
)
def test_full_is_95_percent_of_either(records: int, size: int, full: bool) -> None:  # noqa: FBT001
    in_flight = InFlight(max_records=100, max_bytes=1000)
    in_flight.admit(events(size, *[0] * (records - 1)))
    assert in_flight.full is full


def test_after_giving_up_nothing_is_in_flight_and_nothing_is_admitted_or_settled() -> None:
    in_flight = InFlight(max_records=10, max_bytes=10)
    in_flight.admit(events(1, 2))
    assert in_flight.give_up() == 2
    assert (in_flight.records, in_flight.bytes) == (0, 0)
    assert not in_flight.settle(2, 3), "a late acknowledgement is not counted a second time"
    assert (in_flight.records, in_flight.bytes) == (0, 0)
    assert in_flight.admit(events(1)) == 0, "nobody would ever settle it"
    assert in_flight.give_up() == 0
    assert in_flight.wait_empty(0)


def test_waiting_for_empty_ends_in_time() -> None:
    in_flight = InFlight(max_records=10, max_bytes=10)
    assert in_flight.wait_empty(0)
    in_flight.admit(events(1))
    started = time.monotonic()
    assert not in_flight.wait_empty(0.05)
    assert not in_flight.wait_empty(0)
    assert not in_flight.wait_empty(-1)
    assert 0.05 <= time.monotonic() - started < SOON


@pytest.mark.parametrize("end", ["settle", "give_up"])
def test_the_last_one_ends_the_wait_at_once(end: str) -> None:
    in_flight = InFlight(max_records=10, max_bytes=10)
    in_flight.admit(events(1, 1))
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(in_flight.wait_empty(600)), daemon=True)
    waiter.start()
    while not in_flight._settled._waiters:  # type: ignore[attr-defined]
        time.sleep(0.001)
    in_flight.settle(1, 1)
    if end == "settle":
        in_flight.settle(1, 1)
    else:
        in_flight.give_up()
    waiter.join(SOON)
    assert results == [True]


@given(st.lists(st.lists(st.integers(0, 40), max_size=8)), st.integers(1, 20), st.integers(1, 100), st.randoms())
def test_as_much_as_fits_is_admitted_and_no_more(
    offers: list[list[int]], max_records: int, max_bytes: int, order: random.Random
) -> None:
    in_flight = InFlight(max_records, max_bytes)
    held: list[int] = []
    for sizes in offers:
        count = in_flight.admit(events(*sizes))
        held += sizes[:count]
        assert (in_flight.records, in_flight.bytes) == (len(held), sum(held))
        assert len(held) <= max_records
        assert sum(held) <= max_bytes
        if count < len(sizes):
            assert len(held) == max_records or sum(held) + sizes[count] > max_bytes
        if held and order.random() < 0.5:
            assert in_flight.settle(1, held.pop(order.randrange(len(held))))


def test_threads_that_admit_and_settle_never_pass_the_bound_and_leave_nothing() -> None:
    in_flight = InFlight(max_records=50, max_bytes=300)
    seen: list[tuple[int, int]] = []
    admitted: list[int] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(500):
            sizes = [rng.randrange(20) for _ in range(rng.randrange(12))]
            count = in_flight.admit(events(*sizes))
            seen.append((in_flight.records, in_flight.bytes))
            admitted.append(count)
            in_flight.settle(count, sum(sizes[:count]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (in_flight.records, in_flight.bytes) == (0, 0)
    assert sum(admitted) > 0
    assert all(records <= 50 and size <= 300 for records, size in seen)


def test_every_record_is_settled_or_given_up_exactly_once() -> None:
    for seed in range(30):
        in_flight = InFlight(max_records=1000, max_bytes=1_000_000)
        in_flight.admit(events(*[1] * 1000))
        settled: list[bool] = []

        def settle(in_flight: InFlight = in_flight, settled: list[bool] = settled) -> None:
            settled.extend(in_flight.settle(1, 1) for _ in range(1000))

        thread = threading.Thread(target=settle)
        thread.start()
        while in_flight.records > 33 * seed:
            pass
        left = in_flight.give_up()
        thread.join(SOON)
        assert settled.count(True) + left == 1000
