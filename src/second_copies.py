"""What waits in flight, on disk as well: so that a killed process does not take it along."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from src.spool import SpoolFailed, SpoolFull

if TYPE_CHECKING:
    from src.events import Event
    from src.kafka_producer import KafkaSink
    from src.spool import Spool
    from src.telemetry import Telemetry

_LOOK_SECONDS = 0.2
_LATE_SECONDS = 2.0
"""What is unacknowledged for so long, beyond its lingering, is written to disk as well."""
_LATEST_SECONDS = 5.0
"""However long it may linger."""
_AGAIN_SECONDS = 5.0
"""After so long a disk is asked again that did not take what is in flight."""
_WRITE_AT_ONCE = 2_000


class SecondCopies:
    """Looks at whole batches, a few times a second, and writes the events of those that wait; for one thread."""

    def __init__(self, sink: KafkaSink, spool: Spool, telemetry: Telemetry) -> None:
        self._sink = sink
        self._spool = spool
        self._telemetry = telemetry
        self._look_at = 0.0
        self._before = 0.0
        self._again_at: float | None = None
        self.late = 0
        """Records in flight that waited for their partitions at the last look."""

    def wanted(self, *, stalled: bool) -> bool:
        """Look, when it is time; whether something waits, in a stall whatever is in flight."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_SECONDS
        patience = min(_LATE_SECONDS + self._sink.in_flight.lingering_seconds, _LATEST_SECONDS)
        self.late = self._sink.count_late(now - patience)
        self._before = now if stalled else now - patience
        return stalled or self.late > 0

    def look_at_once(self) -> None:
        """Let `wanted` look the next time, early as it may be."""
        self._look_at = 0.0

    def write_again(self) -> None:
        """Write also what was written before: it is not there any more."""
        self._again_at = self._look_at = 0.0

    def write(self) -> None:
        """Write what waits; it is sent from the disk only if it comes back."""
        again = self._again_at is not None and time.monotonic() >= self._again_at
        if again:
            self._again_at = None
        events = sorted(self._sink.late(self._before, again=again), key=_seq)
        for start in range(0, len(events), _WRITE_AT_ONCE):
            try:
                self._spool.append(events[start : start + _WRITE_AT_ONCE], sent=True)
            except (SpoolFull, SpoolFailed) as error:
                self._telemetry.not_secured(len(events) - start, str(error))
                self._again_at = time.monotonic() + _AGAIN_SECONDS
                return


def _seq(event: Event) -> int:
    return event.seq
