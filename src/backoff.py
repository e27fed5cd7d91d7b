"""How long to wait before the next attempt, and when to stop trying."""

from __future__ import annotations


class Backoff:
    """Counts failures in a row; the n-th is followed by `min(first * 2**(n-1), cap)` seconds (spec section 5)."""

    def __init__(self, first: float, cap: float, max_failures: int) -> None:
        self._first = first
        self._cap = cap
        self._max_failures = max_failures
        self.failures = 0

    def failed(self) -> float | None:
        """Count one more failure; return the seconds to wait, None when it was the last one allowed.

        `max_failures` 0 never gives up.
        """
        self.failures += 1
        if self._max_failures and self.failures >= self._max_failures:
            return None
        return self.delay(self.failures)

    def delay(self, attempt: int) -> float:
        """Return the seconds before reconnect attempt `attempt`, counted from 1."""
        return float(min(self._first * 2 ** min(attempt - 1, 63), self._cap))

    def succeeded(self) -> None:
        """Forget the failures: something good was received."""
        self.failures = 0
