"""The buffer: when a batch falls due, that order and number hold, and that nothing waits longer than it must."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src import buffer as subject
from src.buffer import Buffer
from src.events import Event, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUTE = Route("trade", "trades", b"BTCUSDT", b"}", 0, b"")
SOON = 5.0
"""Seconds that something may take which takes none; only a hang is longer, however loaded the machine."""
FOREVER = 600.0


def events(*numbers: int) -> list[Event]:
    return [Event(ROUTE, b"%d" % number, number) for number in numbers]


def numbers(batch: list[Event]) -> list[int]:
    return [event.timestamp_ms for event in batch]


@contextmanager
def running(target: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run something on a thread that has to end by itself."""
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    yield thread
    thread.join(SOON)
    assert not thread.is_alive()


def is_waiting(condition: threading.Condition) -> bool:
    return bool(condition._waiters)  # type: ignore[attr-defined]


def wait_until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.001)


def test_a_batch_is_due_at_once_when_it_is_full() -> None:
    buffer = Buffer(batch_size=3, batch_timeout=FOREVER)
    buffer.put(events(1, 2, 3))
    started = time.monotonic()
    assert numbers(next(buffer.batches())) == [1, 2, 3]
    assert time.monotonic() - started < SOON


def test_the_event_that_fills_the_batch_wakes_the_waiting_consumer() -> None:
    buffer = Buffer(batch_size=3, batch_timeout=FOREVER)
    got: list[int] = []
    with running(lambda: got.extend(numbers(next(buffer.batches())))):
        wait_until(lambda: is_waiting(buffer._due))
        buffer.put(events(1))
        wait_until(lambda: is_waiting(buffer._due))
        buffer.put(events(2, 3))
    assert got == [1, 2, 3]


def test_a_chunk_that_fills_an_empty_buffer_wakes_the_waiting_consumer() -> None:
    buffer = Buffer(batch_size=3, batch_timeout=FOREVER)
    got: list[int] = []
    with running(lambda: got.extend(numbers(next(buffer.batches())))):
        wait_until(lambda: is_waiting(buffer._due))
        buffer.put(events(1, 2, 3, 4))
    assert got == [1, 2, 3, 4]


def test_one_event_less_than_full_waits_for_the_timeout() -> None:
    buffer = Buffer(batch_size=3, batch_timeout=0.15)
    started = time.monotonic()
    buffer.put(events(1, 2))
    assert numbers(next(buffer.batches())) == [1, 2]
    assert 0.15 <= time.monotonic() - started < SOON


def test_the_timeout_counts_from_the_first_event_and_later_ones_do_not_re_arm_it() -> None:
    buffer = Buffer(batch_size=10_000, batch_timeout=0.3)
    stop = threading.Event()

    def keep_putting() -> None:
        for _ in range(500):  # an end of its own, so that a buffer that re-arms fails here and does not hang
            if stop.wait(0.02):
                return
            buffer.put(events(2))

    started = time.monotonic()
    buffer.put(events(1))
    with running(keep_putting):
        batch = next(buffer.batches())
        took = time.monotonic() - started
        stop.set()
    assert numbers(batch)[0] == 1
    assert len(batch) > 1
    assert 0.3 <= took < SOON


def test_the_time_before_the_first_event_does_not_count() -> None:
    buffer = Buffer(batch_size=10, batch_timeout=0.2)
    got: list[float] = []

    def consume() -> None:
        next(buffer.batches())
        got.append(time.monotonic())

    with running(consume):
        wait_until(lambda: is_waiting(buffer._due))
        time.sleep(0.25)  # longer than the timeout, with nothing there
        put_at = time.monotonic()
        buffer.put(events(1))
    assert 0.2 <= got[0] - put_at < SOON


def test_a_consumer_that_sleeps_for_longer_than_the_timeout_is_woken_by_the_first_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject, "_IDLE_SECONDS", FOREVER)
    buffer = Buffer(batch_size=10, batch_timeout=0.2)
    got: list[int] = []
    with running(lambda: got.extend(numbers(next(buffer.batches())))):
        wait_until(lambda: is_waiting(buffer._due))
        buffer.put(events(1))
        wait_until(lambda: got == [1])


def test_a_consumer_that_comes_late_finds_the_batch_due() -> None:
    buffer = Buffer(batch_size=10, batch_timeout=FOREVER)
    buffer.put(events(1))
    buffer._first_at -= FOREVER
    buffer.put(events(2))
    got: list[int] = []
    with running(lambda: got.extend(numbers(next(buffer.batches())))):
        pass
    assert got == [1, 2]


def test_each_batch_has_a_timeout_of_its_own() -> None:
    buffer = Buffer(batch_size=2, batch_timeout=0.1)
    batches = buffer.batches()
    buffer.put(events(1, 2))
    next(batches)
    time.sleep(0.11)
    started = time.monotonic()
    buffer.put(events(3))
    assert numbers(next(batches)) == [3]
    assert time.monotonic() - started >= 0.1


def test_an_empty_chunk_arms_nothing() -> None:
    buffer = Buffer(batch_size=2, batch_timeout=0.01)
    assert buffer.put([])
    assert len(buffer) == 0
    buffer.close()
    assert list(buffer.batches()) == []


@pytest.mark.parametrize("there", [0, 1])
def test_close_ends_a_wait_at_once(there: int) -> None:
    buffer = Buffer(batch_size=100, batch_timeout=FOREVER)
    buffer.put(events(*range(there)))
    got: list[list[int]] = []
    with running(lambda: got.extend(numbers(batch) for batch in buffer.batches())):
        wait_until(lambda: is_waiting(buffer._due))
        buffer.close()
    assert got == [list(range(there))] * there


def test_a_closed_buffer_refuses_what_comes_and_gives_out_what_is_there() -> None:
    buffer = Buffer(batch_size=100, batch_timeout=FOREVER)
    assert buffer.put(events(1, 2))
    buffer.close()
    buffer.close()
    assert not buffer.put(events(3))
    assert not buffer.put([])
    assert [numbers(batch) for batch in buffer.batches()] == [[1, 2]]
    assert len(buffer) == 0


def test_a_full_buffer_holds_the_producer_back_until_the_consumer_makes_room() -> None:
    buffer = Buffer(batch_size=2, batch_timeout=FOREVER, capacity=4)
    assert buffer.put(events(1, 2, 3, 4))
    results: list[bool] = []
    with running(lambda: results.append(buffer.put(events(5)))):
        wait_until(lambda: is_waiting(buffer._room))
        assert results == []
        batches = buffer.batches()
        assert numbers(next(batches)) == [1, 2, 3, 4]
    assert results == [True]
    buffer.close()
    assert [numbers(batch) for batch in batches] == [[5]]


def test_close_frees_a_producer_that_waits_for_room() -> None:
    buffer = Buffer(batch_size=1, batch_timeout=FOREVER, capacity=1)
    buffer.put(events(1))
    results: list[bool] = []
    with running(lambda: results.append(buffer.put(events(2)))):
        wait_until(lambda: is_waiting(buffer._room))
        buffer.close()
    assert results == [False]
    assert [numbers(batch) for batch in buffer.batches()] == [[1]]


def test_whoever_waits_for_room_waits_no_more_once_all_are_let_in() -> None:
    buffer = Buffer(batch_size=1, batch_timeout=FOREVER, capacity=1)
    buffer.put(events(1))
    results: list[bool] = []
    with running(lambda: results.append(buffer.put(events(2)))):
        wait_until(lambda: is_waiting(buffer._room))
        buffer.let_all_in()
    assert results == [True]
    assert buffer.put(events(3))
    buffer.close()
    assert [numbers(batch) for batch in buffer.batches()] == [[1, 2, 3]]


def test_the_capacity_is_never_less_than_a_batch() -> None:
    buffer = Buffer(batch_size=10, batch_timeout=FOREVER, capacity=1)
    with running(lambda: [buffer.put(events(number)) for number in range(10)]):
        pass
    assert numbers(next(buffer.batches())) == list(range(10))


@settings(max_examples=25)
@given(
    chunks=st.lists(st.lists(st.integers(0, 7), max_size=6), min_size=1, max_size=4),
    batch_size=st.integers(1, 8),
    capacity=st.integers(1, 10),
)
def test_many_producers_and_one_consumer_lose_and_reorder_nothing(
    chunks: list[list[int]], batch_size: int, capacity: int
) -> None:
    buffer = Buffer(batch_size, batch_timeout=0.001, capacity=capacity)
    received: list[tuple[int, int]] = []

    def produce(producer: int, sizes: list[int]) -> None:
        serial = 0
        for size in sizes * 10:
            chunk = [Event(ROUTE, b"%d" % producer, serial + at) for at in range(size)]
            serial += size
            assert buffer.put(chunk)

    def consume() -> None:
        for batch in buffer.batches():
            assert batch
            assert len(buffer) < max(batch_size, capacity) + 8
            received.extend((int(event.value), event.timestamp_ms) for event in batch)

    with running(consume):
        producers = [threading.Thread(target=produce, args=item) for item in enumerate(chunks)]
        for thread in producers:
            thread.start()
        for thread in producers:
            thread.join(SOON)
        buffer.close()
    for producer, sizes in enumerate(chunks):
        own = [serial for number, serial in received if number == producer]
        assert own == list(range(10 * sum(sizes)))


def test_closing_in_the_middle_splits_events_into_given_out_and_refused() -> None:
    for _ in range(20):
        buffer = Buffer(batch_size=5, batch_timeout=0.001, capacity=20)
        accepted: list[int] = []
        received: list[int] = []

        def produce(buffer: Buffer = buffer, accepted: list[int] = accepted) -> None:
            while buffer.put(events(1, 2, 3)):
                accepted += [1, 2, 3]

        def consume(buffer: Buffer = buffer, received: list[int] = received) -> None:
            for batch in buffer.batches():
                received += numbers(batch)

        with running(consume), running(produce):
            wait_until(lambda accepted=accepted: len(accepted) > 50)  # type: ignore[misc]
            buffer.close()
        assert received == accepted
