"""The bound on what was accepted for Kafka and is not acknowledged yet."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from src.events import Event


class InFlight:
    """Counts records and bytes under one lock; never lets either pass its bound.

    kafka-python 3 has no memory bound of its own, so this is the only one. When it is reached, `admit`
    takes fewer events than offered, and the caller has to put the rest somewhere else.
    """

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._settled = threading.Condition()  # guards what follows
        self.records = 0
        self.bytes = 0
        self._given_up = False

    def admit(self, events: list[Event]) -> int:
        """Count as many of the first events as the bound allows, none after `give_up`; return how many."""
        sizes = [len(event.value) for event in events]
        with self._settled:
            if self._given_up:
                return 0
            count = min(len(events), self._max_records - self.records)
            size = sum(sizes[:count])
            while count and self.bytes + size > self._max_bytes:
                count -= 1
                size -= sizes[count]
            self.records += count
            self.bytes += size
            return count

    def settle(self, records: int, size: int) -> bool:
        """Release records whose fate is known, `size` bytes of values in all; False after `give_up`."""
        with self._settled:
            if self._given_up:
                return False
            self.records -= records
            self.bytes -= size
            if not self.records:
                self._settled.notify_all()
            return True

    def give_up(self) -> int:
        """Release everything without waiting for its fate; return how many records that were."""
        with self._settled:
            self._given_up = True
            left, self.records, self.bytes = self.records, 0, 0
            self._settled.notify_all()
            return left

    def wait_empty(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until nothing is in flight; return whether that is so."""
        with self._settled:
            return self._settled.wait_for(lambda: not self.records, timeout)

    @property
    def full(self) -> bool:
        """Whether the bound is as good as reached (95 % of records or bytes)."""
        with self._settled:
            return self.records >= 0.95 * self._max_records or self.bytes >= 0.95 * self._max_bytes
