"""Backoff, deadline and worker: small, and the service leans on each."""

from __future__ import annotations

import itertools
import platform
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from src.backoff import Backoff
from src.deadline import Deadline
from src.events import Event, Route
from src.failed_copies import FailedCopies
from src.memory import limit_arenas
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

SOON = 5.0

# Backoff


def test_five_failures_in_a_row_are_waits_of_5_10_20_40_and_the_end() -> None:
    backoff = Backoff(first=5, cap=300, max_failures=5)
    assert [backoff.failed() for _ in range(5)] == [5, 10, 20, 40, None]
    assert backoff.failures == 5


def test_after_a_lost_connection_the_waits_are_5_10_20_40_80() -> None:
    backoff = Backoff(first=5, cap=300, max_failures=5)
    backoff.succeeded()
    waits = [backoff.lost(), *(backoff.failed() for _ in range(5))]
    assert waits == [5, 10, 20, 40, 80, None]


def test_the_wait_never_exceeds_the_cap() -> None:
    backoff = Backoff(first=5, cap=300, max_failures=0)
    waits = [backoff.failed() for _ in range(2000)]
    assert waits[:8] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert set(waits[8:]) == {300}


def test_a_cap_below_the_first_wait_is_obeyed() -> None:
    assert Backoff(first=5, cap=1, max_failures=0).lost() == 1


def test_something_good_starts_it_over() -> None:
    backoff = Backoff(first=5, cap=300, max_failures=3)
    for _ in range(10):
        assert [backoff.failed(), backoff.failed()] == [5, 10]
        assert (backoff.failures, backoff.attempt) == (2, 2)
        backoff.succeeded()
        assert (backoff.failures, backoff.attempt) == (0, 0)


def test_losing_connections_that_worked_never_gives_up() -> None:
    backoff = Backoff(first=5, cap=300, max_failures=1)
    for _ in range(100):
        backoff.succeeded()
        assert backoff.lost() == 5


def test_one_allowed_failure_is_the_last() -> None:
    assert Backoff(first=5, cap=300, max_failures=1).failed() is None


# Deadline


def test_a_deadline_runs_down_to_nothing_and_never_below() -> None:
    deadline = Deadline(0.05)
    first, second = deadline.remaining(), deadline.remaining()
    assert 0.05 >= first >= second >= 0
    time.sleep(0.06)
    assert deadline.expired
    assert deadline.remaining() == 0
    assert deadline.remaining(at_most=1) == 0


def test_what_is_left_is_bounded_by_what_one_step_may_take() -> None:
    deadline = Deadline(600)
    assert not deadline.expired
    assert deadline.remaining(at_most=3) == 3
    assert deadline.remaining(at_most=0) == 0
    assert 590 < deadline.remaining() <= 600
    assert deadline.remaining(at_most=-1) == 0


def test_a_deadline_in_the_past_is_expired() -> None:
    assert Deadline(0).expired
    assert Deadline(-1).remaining() == 0


# Worker


class Owner:
    """What a worker reports its end to."""

    def __init__(self) -> None:
        self.ended: list[Worker] = []
        self.told = threading.Event()

    def __call__(self, worker: Worker) -> None:
        self.ended.append(worker)
        self.told.set()


def run(target: Callable[[], None]) -> tuple[Worker, Owner]:
    owner = Owner()
    worker = Worker("test-worker", target, owner)
    worker.start()
    assert worker.join(SOON)
    return worker, owner


def test_a_worker_that_returns_reports_its_end_without_a_failure() -> None:
    worker, owner = run(lambda: None)
    assert owner.ended == [worker]
    assert worker.failure is None
    assert not worker.alive


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_a_worker_keeps_the_exception_that_ended_it(error: BaseException) -> None:
    def fail() -> None:
        raise error

    worker, owner = run(fail)
    assert worker.failure is error
    assert owner.ended == [worker]
    assert worker.failure.__traceback__ is not None


def test_the_failure_is_there_when_the_owner_is_told() -> None:
    seen: list[BaseException | None] = []
    worker = Worker("w", lambda: sys.exit("why"), lambda ended: seen.append(ended.failure))
    worker.start()
    assert worker.join(SOON)
    assert [str(error) for error in seen] == ["why"]


def test_a_worker_is_a_named_daemon_thread() -> None:
    seen: list[tuple[str, bool]] = []
    run(lambda: seen.append((threading.current_thread().name, threading.current_thread().daemon)))
    assert seen == [("test-worker", True)]


def test_joining_waits_as_long_as_it_is_told_and_says_whether_the_thread_ended() -> None:
    release = threading.Event()
    owner = Owner()
    worker = Worker("w", lambda: (release.wait(600), None)[1], owner)
    worker.start()
    started = time.monotonic()
    assert not worker.join(0.05)
    assert not worker.join(0)
    assert 0.05 <= time.monotonic() - started < SOON
    assert worker.alive
    assert owner.ended == []
    release.set()
    assert worker.join(SOON)
    assert owner.told.is_set()


def test_a_worker_that_was_never_started_counts_as_ended() -> None:
    worker = Worker("w", lambda: None, Owner())
    assert not worker.alive
    assert worker.join(0)


def test_a_worker_is_started_once() -> None:
    worker, _ = run(lambda: None)
    with pytest.raises(RuntimeError):
        worker.start()


def test_many_workers_end_and_each_is_reported_once() -> None:
    owner = Owner()
    count = itertools.count()
    workers = [Worker(f"w{number}", lambda: (next(count), None)[1], owner) for number in range(50)]
    for worker in workers:
        worker.start()
    assert all(worker.join(SOON) for worker in workers)
    assert set(owner.ended) == set(workers)
    assert len(owner.ended) == next(count) == 50


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
def test_glibc_takes_the_bound_on_its_arenas() -> None:
    assert limit_arenas()


def test_a_failed_copy_is_lost_only_when_its_event_is_neither_in_flight_nor_comes_back() -> None:
    route = Route("trade", "trades", b"BTCUSDT", b"", 0, b"")
    events = [Event(route, b"x", 0, seq) for seq in range(1, 5)]
    copies = FailedCopies()
    copies.failed(events, "Refused")
    copies.returned(events[:1])
    assert copies.look(lambda: events[1:2]) == {}
    assert copies.look(lambda: events[1:3]) == {"Refused": 1}  # the fourth; the third was in flight again
    copies.returned(events[1:2])
    assert copies.ended() == {"Refused": 1}
    assert copies.ended() == {}
