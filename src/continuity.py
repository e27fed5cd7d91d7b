"""Between decoder and buffer: a stand-in that passes everything on and counts it."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from src.buffer import Buffer
    from src.events import Event


class Continuity:
    """Passes events on to the buffer."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._lock = threading.Lock()  # guards _traffic
        self._traffic: Counter[str] = Counter()

    def put(self, events: list[Event], source: int) -> bool:  # noqa: ARG002 - of the interface
        """Pass events on; False once the buffer is closed."""
        with self._lock:
            self._traffic.update(event.route.stream for event in events)
        return self._buffer.put(events)

    def traffic(self) -> dict[str, int]:
        """Return the events received so far, by stream."""
        with self._lock:
            return dict(self._traffic)

    def tick(self) -> None:
        """Do nothing."""
