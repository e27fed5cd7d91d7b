"""One point in time that several steps share."""

from __future__ import annotations

import time


class Deadline:
    """A moment on the monotonic clock; waiting steps ask what is left of it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """All of it, as it was in the beginning."""
        self._at = time.monotonic() + seconds

    def remaining(self, at_most: float = float("inf")) -> float:
        """Return the seconds left, never negative, never more than `at_most`."""
        return max(0.0, min(self._at - time.monotonic(), at_most))

    @property
    def expired(self) -> bool:
        """Whether nothing is left."""
        return time.monotonic() >= self._at
