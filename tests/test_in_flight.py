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
    in_flight.settle(1, 60)
    assert in_flight.admit(events(61, 1)) == 0, "order is kept: a small event does not overtake a big one"
    assert in_flight.admit(events(60)) == 1


def test_an_event_beyond_the_whole_bound_is_admitted_alone() -> None:
    in_flight = InFlight(max_records=10, max_bytes=10)
    assert in_flight.admit(events(11, 0)) == 1, "it would wait for room for ever"
    assert (in_flight.records, in_flight.bytes) == (1, 11)
    assert in_flight.admit(events(11)) == 0
    assert in_flight.admit(events(1)) == 0
    in_flight.settle(1, 11)
    assert in_flight.admit(events(1, 11)) == 1
    assert in_flight.admit(events(11)) == 0, "not beside another one"


def test_what_is_settled_makes_room() -> None:
    in_flight = InFlight(max_records=2, max_bytes=10)
    in_flight.admit(events(5, 5))
    in_flight.settle(2, 10)
    assert in_flight.admit(events(5, 5)) == 2


@pytest.mark.parametrize(
    ("records", "size", "full"), [(94, 1, False), (95, 1, True), (1, 949, False), (1, 950, True)]
)
def test_full_is_95_percent_of_either(records: int, size: int, full: bool) -> None:  # noqa: FBT001
    in_flight = InFlight(max_records=100, max_bytes=1000)
    in_flight.admit(events(size, *[0] * (records - 1)))
    assert in_flight.full is full


def test_nothing_stalls_while_nothing_is_in_flight() -> None:
    in_flight = InFlight(max_records=10, max_bytes=10)
    assert in_flight.stalled_seconds == 0
    in_flight.admit(events(1))
    in_flight.settle(1, 1)
    assert in_flight.stalled_seconds == 0


def test_the_stall_counts_from_the_first_of_what_is_in_flight() -> None:
    in_flight = InFlight(max_records=10, max_bytes=10)
    time.sleep(0.05)  # the time before does not count
    began = time.monotonic()
    in_flight.admit(events(1))
    assert in_flight.stalled_seconds <= time.monotonic() - began
    time.sleep(0.05)
    in_flight.admit(events(1))
    assert in_flight.stalled_seconds >= 0.05, "what joins does not move what waits"


def test_the_stall_counts_from_the_end_of_the_lingering() -> None:
    in_flight = InFlight(max_records=10, max_bytes=10)
    in_flight.lingering_seconds = 0.1
    began = time.monotonic()
    in_flight.admit(events(1))
    for pause in (0.05, 0.1):
        time.sleep(pause)
        assert in_flight.stalled_seconds <= max(0.0, time.monotonic() - began - 0.1)
    assert in_flight.stalled_seconds >= 0.05


def test_each_settled_record_ends_the_stall() -> None:
    in_flight = InFlight(max_records=10, max_bytes=10)
    in_flight.admit(events(1, 1))
    time.sleep(0.05)
    moved = time.monotonic()
    in_flight.settle(1, 1)
    assert in_flight.stalled_seconds <= time.monotonic() - moved
    in_flight.settle(1, 1)
    assert in_flight.stalled_seconds == 0


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
        assert sum(held) <= max_bytes or len(held) == 1, "only one that is larger than all may pass it, alone"
        if count < len(sizes):
            assert len(held) == max_records or (held and sum(held) + sizes[count] > max_bytes)
        if held and order.random() < 0.5:
            in_flight.settle(1, held.pop(order.randrange(len(held))))


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
