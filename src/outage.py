"""How patient the backfill is, and how long an exchange that does not answer is left alone."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from src.backoff import Backoff


class Pace(NamedTuple):
    """How patient the backfill is, in seconds and numbers of tries."""

    first_delay: float = 0.25
    """Before data that is not there yet is asked for again; doubled each time."""
    longest_delay: float = 5.0
    not_served_after: float = 120.0
    """How long data may be late before it is given up."""
    longest_retry: float = 60.0
    """Between two tries in the background to reach an exchange that does not answer."""
    failing_after: float = 86_400.0
    """How long answers may be useless before a gap is given up."""
    tries: int = 3
    """How often ids that the exchange skips are asked for, and requests that it refuses are made."""


class Outage:
    """How long not to ask because nobody answered; shared, so that not every gap finds out by itself."""

    def __init__(self, pace: Pace) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._backoff = Backoff(min(1.0, pace.longest_retry), pace.longest_retry, 0)
        self._until = 0.0

    def began(self) -> None:
        """Take note of a request that nobody answered; several at a time count once."""
        with self._lock:
            if self._until <= time.monotonic():
                self._until = time.monotonic() + self._backoff.lost()

    def over(self) -> None:
        """Take note of an answer."""
        with self._lock:
            self._backoff.succeeded()
            self._until = 0.0

    def remaining(self) -> float:
        """Return the seconds until the next try."""
        with self._lock:
            return max(0.0, self._until - time.monotonic())
