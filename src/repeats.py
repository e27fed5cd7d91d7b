"""How often a log line that repeats is said."""

from __future__ import annotations

import threading
import time


class Repeats:
    """Says of each kind of line, once a minute, how much has come together since it was last said."""

    def __init__(self, interval: float, kinds: int = 1000) -> None:
        self._interval = interval
        self._kinds = kinds
        self._lock = threading.Lock()  # guards _seen
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def add(self, kind: tuple[str, str], count: int) -> int | None:
        """Count; return the number to log, None when the line is to be held back."""
        now = time.monotonic()
        with self._lock:
            if len(self._seen) >= self._kinds:
                self._seen.clear()
            said_at, held_back = self._seen.get(kind, (-self._interval, 0))
            if now - said_at < self._interval:
                self._seen[kind] = (said_at, held_back + count)
                return None
            self._seen[kind] = (now, 0)
            return held_back + count
