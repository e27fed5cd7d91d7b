"""Which streams have fallen silent: far beyond their own usual pace. Pure, time arrives as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

_KNOWN_AFTER = 10
"""Events after which a stream's pace is known."""
_MEMORY_SECONDS = 3_600.0
_LONGEST = 2.0


class Fallen(NamedTuple):
    """Streams that have just fallen silent, and those that stayed so although they were subscribed to again."""

    silent: list[str]
    unhelped: list[str]


class _Pace:
    __slots__ = ("acted_at", "count", "heard_at", "interval", "known", "longest", "steps")

    def __init__(self, count: int, now: float) -> None:
        self.count = count
        self.heard_at = self.acted_at = now
        self.interval = self.longest = 0.0
        self.known = 0
        self.steps = 0

    def heard(self, count: int, now: float) -> None:
        """Take note of events: their average interval counts with its share of the last hour."""
        pause, events = now - self.heard_at, count - self.count
        share = min(1.0, pause / _MEMORY_SECONDS) if self.known >= _KNOWN_AFTER else 1.0 / (self.known + 1)
        self.interval += (pause / events - self.interval) * share
        if self.steps != 1:  # else subscribing again has helped, and the pause was no natural one
            self.longest = max(self.longest, pause)
        self.count, self.heard_at, self.acted_at = count, now, now
        self.known += min(events, _KNOWN_AFTER)
        self.steps = 0


class Silence:
    """Watches how often each stream brings something.

    A stream is silent when nothing came for `at_least` seconds, for `times` its usual interval (an average that
    remembers an hour) and for twice its longest pause so far, whichever is longest. One that has not brought ten
    events has no pace yet. What does not come back after subscribing to it again within the same time once
    more is reported a second time; then it is left alone until it speaks: its market may simply be closed.
    """

    def __init__(self, at_least: float, times: float) -> None:
        self._at_least = at_least
        self._times = times
        self._paces: dict[str, _Pace] = {}
        self.silent = 0
        """Streams that are silent now."""

    def look(self, traffic: dict[str, int], watched: Collection[str], now: float) -> Fallen:
        """Compare the events received so far, by stream, with the last look; the others have a good excuse."""
        fallen = Fallen([], [])
        silent = 0
        for stream, count in traffic.items():
            pace = self._paces.get(stream)
            if pace is None:
                self._paces[stream] = _Pace(count, now)
            elif count != pace.count:
                pace.heard(count, now)
            elif stream not in watched:
                pace.heard_at = pace.acted_at = now
            elif pace.known >= _KNOWN_AFTER:
                self._judge(stream, pace, fallen, now)
                silent += pace.steps > 0
        self.silent = silent
        if len(self._paces) > 2 * len(traffic):
            self._paces = {stream: pace for stream, pace in self._paces.items() if stream in traffic}
        return fallen

    def _judge(self, stream: str, pace: _Pace, fallen: Fallen, now: float) -> None:
        patience = max(self._at_least, self._times * pace.interval, _LONGEST * pace.longest)
        if pace.steps > 1 or now - pace.acted_at < patience:
            return
        (fallen.unhelped if pace.steps else fallen.silent).append(stream)
        pace.steps += 1
        pace.acted_at = now
