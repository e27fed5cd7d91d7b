"""The lock-guarded buffer between the reading threads and the publishing one."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from src.events import Event


_IDLE_SECONDS = 1.0
"""How long the consumer of an empty buffer sleeps at least, unless it is woken."""


class Buffer:
    """Collects events and gives them out in batches, in order.

    A batch is due when `batch_size` events are there, or `batch_timeout` seconds after the first of them
    came, whichever is first; it then takes everything that is there. The one consumer never waits for
    Kafka, so a full buffer (`capacity` events) only means that this process is short of CPU: `put` then
    waits for the consumer, and the exchange's TCP window fills instead of our memory. After `let_all_in` it waits
    no more.
    """

    def __init__(self, batch_size: int, batch_timeout: float, capacity: int = 10_000) -> None:
        self._batch_size = batch_size
        self._batch_timeout = batch_timeout
        self.capacity = max(capacity, batch_size)
        self._lock = threading.Lock()  # guards everything below
        self._due = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._events: list[Event] = []
        self._first_at = 0.0
        self._looks_at = float("-inf")
        """When the consumer will look by itself; it is woken for what is due before that."""
        self._bounded = True
        self._closed = False

    def put(self, events: list[Event]) -> bool:
        """Append events; return False, taking none, once the buffer is closed."""
        with self._lock:
            if len(self._events) >= self.capacity:
                self._room.wait_for(self._may_come)
            if self._closed:
                return False
            held = self._events
            was = len(held)
            held += events
            if not was and events:
                self._first_at = time.monotonic()
            if was < self._batch_size <= len(held) or self._first_at + self._batch_timeout < self._looks_at:
                self._due.notify()
            return True

    def batches(self) -> Iterator[list[Event]]:
        """Yield batches as they fall due until the buffer is closed and empty; for one consumer."""
        while batch := self._next_batch():
            yield batch

    def let_all_in(self) -> None:
        """Let no `put` wait for the consumer from here on, who may be dead or stuck; for the stop.

        What then comes is only what was on its way.
        """
        with self._room:
            self._bounded = False
            self._room.notify_all()

    def close(self) -> None:
        """Take no more; what is there falls due at once."""
        with self._room:
            self._closed = True
            self._room.notify_all()
            self._due.notify_all()

    def __len__(self) -> int:
        return len(self._events)

    def _next_batch(self) -> list[Event]:
        with self._due:
            while (look_at := self._next_look()) > (now := time.monotonic()):
                self._looks_at = look_at
                self._due.wait(look_at - now)
            self._looks_at = float("-inf")
            batch, self._events = self._events, []
            self._room.notify_all()
            return batch

    def _next_look(self) -> float:
        """Return until when the consumer may sleep: what is there is due then, what comes not before."""
        if len(self._events) >= self._batch_size or self._closed:
            return float("-inf")
        if not self._events:
            return time.monotonic() + max(self._batch_timeout, _IDLE_SECONDS)
        return self._first_at + self._batch_timeout

    def _may_come(self) -> bool:
        return len(self._events) < self.capacity or not self._bounded or self._closed
