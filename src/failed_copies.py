"""Copies for the raw topic that failed: which of them are lost, and which are made again with their events."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from src.events import Event


class FailedCopies:
    """Remembers failed copies by the numbers of their events, until it is known what becomes of these.

    An event that comes back from the producer is sent again, and copied again. One that Kafka has is not: its
    copy is lost. Any thread may call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._reasons: dict[int, str] = {}
        self._returned: set[int] = set()
        self._not_in_flight: set[int] = set()
        """At the last look."""

    def failed(self, copies: Iterable[Event], reason: str) -> None:
        """Take note of copies that failed; they have the numbers of their events."""
        with self._lock:
            self._reasons.update((copy.seq, reason) for copy in copies)

    def returned(self, events: Iterable[Event]) -> None:
        """Take note of events that come back from the producer."""
        with self._lock:
            self._returned.update(event.seq for event in events)

    def look(self, in_flight: Callable[[], Iterable[Event]]) -> Counter[str]:
        """Give out the reasons of those that are lost, while the producer is open; now and then.

        An event may just have left the list of those in flight, and its fate not be told yet; so it has to be
        absent at two looks.
        """
        if not self._reasons:  # nearly always: then nobody need list what is in flight
            return Counter()
        with self._lock:
            absent = self._reasons.keys() - self._returned - {event.seq for event in in_flight()}
            lost, self._not_in_flight = absent & self._not_in_flight, absent
            return Counter(self._reasons.pop(number) for number in lost)

    def ended(self) -> Counter[str]:
        """Do the same when the producer has been ended and every fate is told; forget the rest."""
        with self._lock:
            lost = self._reasons.keys() - self._returned
            reasons = Counter(self._reasons[number] for number in lost)
            self._reasons.clear()
            self._returned.clear()
            self._not_in_flight = set()
            return reasons
