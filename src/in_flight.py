"""The bound on what was accepted for Kafka and is not acknowledged yet."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from src.events import Event


class InFlight:
    """Counts records and bytes under one lock; never lets either pass its bound.

    kafka-python 3 has no memory bound of its own, so this is the only one. When it is reached, `admit`
    takes fewer events than offered, and the caller has to put the rest somewhere else. An event that is larger
    than the whole bound is admitted when nothing else is in flight.
    """

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self.max_records = max_records
        self.max_bytes = max_bytes
        self._lock = threading.Lock()  # guards what follows
        self.records = 0
        self.bytes = 0
        self._moved_at = 0.0
        self.lingering_seconds = 0.0
        """How long a record may wait for others before it is sent; no stall begins before that."""

    def admit(self, events: list[Event]) -> int:
        """Count as many of the first events as the bound allows; return how many."""
        sizes = [len(event.value) for event in events]
        with self._lock:
            count = min(len(events), self.max_records - self.records)
            size = sum(sizes[:count])
            while count and self.bytes + size > self.max_bytes and (count > 1 or self.records):
                count -= 1
                size -= sizes[count]
            if not self.records:
                self._moved_at = time.monotonic()
            self.records += count
            self.bytes += size
            return count

    def settle(self, records: int, size: int) -> None:
        """Release records whose fate is known, `size` bytes of values in all."""
        with self._lock:
            self.records -= records
            self.bytes -= size
            self._moved_at = time.monotonic()

    @property
    def stalled_seconds(self) -> float:
        """How long nothing was settled although something is in flight that should have been sent."""
        with self._lock:
            waited = time.monotonic() - self._moved_at if self.records else 0.0
            return max(0.0, waited - self.lingering_seconds)

    @property
    def full(self) -> bool:
        """Whether the bound is as good as reached (95 % of records or bytes)."""
        with self._lock:
            return self.records >= 0.95 * self.max_records or self.bytes >= 0.95 * self.max_bytes
