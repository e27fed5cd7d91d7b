"""When a connection is to be replaced, and when the new one has taken over. Pure, time arrives as data."""

from __future__ import annotations

AGE, WINDOW, SHUTDOWN, SILENCE = "age", "window", "server_shutdown", "silence"
"""Why a connection is replaced."""
LIFETIME = 86_400.0
"""Seconds after which the exchange ends a connection (Binance web-socket-streams.md)."""
_DAY = 86_400
_BEFORE_THE_END = 300.0
_SHUTDOWN_SECONDS = 10.0
_QUIET_SHARE = 6

Window = tuple[int, int]
"""From and to, seconds of the day in UTC; it may go over midnight."""


def due(age: float, rotate_after: float, window: Window | None, second_of_day: float) -> str | None:
    """Say why a connection of this age is to be replaced now, `age` or `window`; None when it is not.

    With a window its age alone decides only just before the exchange ends it, and in the window it is replaced
    when it would not live to see the next one: from the middle on, since a replacement lives 24 h too, so that
    each day's falls a little earlier than the day before's, and must not slip out of the window.
    """
    if window is None:
        return AGE if age >= rotate_after else None
    limit = max(rotate_after, LIFETIME - _BEFORE_THE_END)
    if age >= limit:
        return AGE
    length = (window[1] - window[0]) % _DAY
    inside = (second_of_day - window[0]) % _DAY
    now = (length + _BEFORE_THE_END) / 2 < inside < length and limit - age < _DAY - inside
    return WINDOW if now else None


class Overlap:
    """The time in which both connections bring the same streams, from the moment the new one is subscribed.

    The old one is needed no more as soon as each stream that was active on it before has data on the new one;
    else when a sixth of `bound` has passed and whatever came on the old one since came on the new one too:
    what is left is quiet. After `bound` seconds it ends in any case, and what is missing is to be named.
    """

    def __init__(self, began: float, active: set[str], bound: float) -> None:
        self._began = began
        self._active = active
        self._bound = bound

    def missing(self, on_old: set[str], on_new: set[str]) -> set[str]:
        """Return the streams that came on the old one since, and not on the new one."""
        return on_old - on_new

    def over(self, on_old: set[str], on_new: set[str], now: float) -> bool:
        """Say whether the old connection can go."""
        if self._active <= on_new:
            return True
        waited = now - self._began
        quiet = waited >= self._bound / _QUIET_SHARE and not self.missing(on_old, on_new)
        return quiet or waited >= self._bound


def bound_of(cause: str, overlap_seconds: float) -> float:
    """Return how long an overlap may last: nobody knows how soon after its announcement a shutdown comes."""
    return min(overlap_seconds, _SHUTDOWN_SECONDS) if cause == SHUTDOWN else overlap_seconds
