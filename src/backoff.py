"""How long to wait before the next attempt, and when to stop trying."""

from __future__ import annotations


class Backoff:
    """Waits of `min(first * 2**(n-1), cap)` seconds before the n-th attempt since something good was received.

    Gives up after `max_failures` failed attempts in a row, 0 never (contract, section 5). The loss of
    a connection that had worked is no failed attempt: it is followed by the first wait.
    """

    def __init__(self, first: float, cap: float, max_failures: int) -> None:
        self._first = first
        self._cap = cap
        self._max_failures = max_failures
        self.failures = 0
        self.attempt = 0
        """The number of the attempt that the last wait led to, from 1."""

    def lost(self) -> float:
        """Return the seconds to wait after a working connection was lost."""
        self.attempt += 1
        return float(min(self._first * 2 ** min(self.attempt - 1, 63), self._cap))

    def failed(self) -> float | None:
        """Count a failed attempt; return the seconds to wait, None when it was the last one allowed."""
        self.failures += 1
        return None if self.exhausted else self.lost()

    @property
    def exhausted(self) -> bool:
        """Whether as many attempts in a row have failed as are allowed."""
        return bool(self._max_failures) and self.failures >= self._max_failures

    def succeeded(self) -> None:
        """Start over: something good was received."""
        self.failures = self.attempt = 0
