"""What the terminal view knows: the readings of one service, how they change, and how it is asked."""

from __future__ import annotations

import json
from collections import deque
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

WINDOW_SECONDS = 180
_TIMEOUT_SECONDS = 2.0
_MOST_BYTES = 4_000_000
_RECENT, _BEFORE = 5, 25  # readings that a trend compares
_NOISE = 100  # events: a buffer that fills and empties by the batch is no trend
_RECENT_READINGS = 11
RATES = {"received": "messages_received", "produced": "kafka_produced", "bytes": "bytes_sent"}
LEVELS = {"buffered": "messages_buffered", "in flight": "messages_in_flight", "on disk": "messages_spooled"}
LOSSES = {
    "skipped": "messages_skipped",
    "dropped": "messages_dropped",
    "set aside": "messages_dead_lettered",
    "failed": "kafka_failed",
}
GAPS = {
    "gaps open": "gaps_open",
    "unfillable": "gaps_unfillable",
    "held": "messages_held",
    "backfilled": "messages_backfilled",
    "duplicates": "messages_duplicate",
}
_ESSENTIAL = (*RATES.values(), *LEVELS.values(), *LOSSES.values())
_NESTED = {"symbols": dict, "kinds": list, "latency": dict}
_CAME = ("messages_received", "messages_recovered", "messages_backfilled")
_LEFT_OUT = ("messages_duplicate", "messages_already_delivered")
_ACCOUNTED = (*LOSSES.values(), *LEVELS.values(), *_LEFT_OUT, "kafka_produced")


def missing(status: dict[str, Any]) -> int:
    """Return how many events the equation of the contract does not account for; 0, whatever happens."""
    came, are = (sum(int(status.get(key, 0)) for key in keys) for keys in (_CAME, _ACCOUNTED))
    return came - are


class UnreachableError(Exception):
    """The service did not answer, or what answered is not the service."""


class Sample(NamedTuple):
    """A value that held, or a rate that was the mean, between two moments of the monotonic clock."""

    start: float
    end: float
    value: float


class History:
    """The last readings of one service: their rates and levels over the window, restarts, absence."""

    def __init__(self, window: float = WINDOW_SECONDS) -> None:
        self.window = window
        self.status: dict[str, Any] = {}
        self.fault: str | None = None
        self.away_since: float | None = None
        self.restarts = 0
        self._read_at: float | None = None
        self._recent: deque[tuple[float, dict[str, Any]]] = deque(maxlen=_RECENT_READINGS)
        self._samples: dict[str, deque[Sample]] = {name: deque() for name in (*RATES, *LEVELS)}

    def read(self, status: dict[str, Any], at: float) -> None:
        """Add a reading; a counter that went back means a service that started anew, so no rate."""
        before, before_at = self.status, self._read_at
        restarted = bool(before) and (
            status.get("started_at") != before.get("started_at")
            or any(status[key] < before[key] for key in RATES.values())
        )
        self.restarts += restarted
        if restarted or self.fault is not None:
            self._recent.clear()
        self._recent.append((at, status))
        if before_at is not None and before_at < at and not restarted and self.fault is None:
            for name, key in RATES.items():
                rate = (status[key] - before[key]) / (at - before_at)
                self._samples[name].append(Sample(before_at, at, rate))
            for name, key in LEVELS.items():
                self._samples[name].append(Sample(before_at, at, status[key]))
        self.status, self._read_at = status, at
        self.fault = self.away_since = None
        for samples in self._samples.values():
            while samples and samples[0].end < at - self.window:
                samples.popleft()

    def missed(self, fault: str, at: float) -> None:
        """Note a reading that failed; what was read before stays."""
        self.fault = fault
        self.away_since = at if self.away_since is None else self.away_since

    def latest(self, name: str) -> float | None:
        """Return the last rate, or None when there is none of this moment."""
        samples = self._samples[name]
        current = samples and samples[-1].end == self._read_at and self.fault is None
        return samples[-1].value if current else None

    @property
    def recently(self) -> tuple[float, dict[str, Any]]:
        """Return a reading some readings ago, and the seconds since; without one, the last and 0."""
        if not self._recent or self.fault is not None:
            return 0.0, self.status
        (then, before), (now, _) = self._recent[0], self._recent[-1]
        return now - then, before

    def buckets(self, name: str, count: int, at: float) -> list[float | None]:
        """Return means over `count` equal parts of the window, oldest first; None where nothing was read.

        The parts lie on multiples of their length, so that a line moves instead of trembling.
        """
        length = self.window / count
        first = int(at // length) - count + 1
        found: list[list[float]] = [[] for _ in range(count)]
        for start, end, value in self._samples[name]:
            for index in range(int(start // length), int(end // length) + 1):
                if 0 <= index - first < count:
                    found[index - first].append(value)
        return [sum(values) / len(values) if values else None for values in found]

    def trend(self, name: str) -> str:
        """Compare the last readings with those before them: up, down, flat, or nothing with too few."""
        values = [sample.value for sample in self._samples[name]][-_BEFORE - _RECENT :]
        recent, earlier = values[-_RECENT:], values[:-_RECENT]
        if not earlier:
            return ""
        now, then = sum(recent) / len(recent), sum(earlier) / len(earlier)
        margin = 0.2 * then + _NOISE
        return "up" if now > then + margin else "down" if now < then - margin else "flat"


def fetch(url: str, timeout: float = _TIMEOUT_SECONDS) -> dict[str, Any]:
    """Read `/status` of the service at `url`; raises `UnreachableError`."""
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"{url}/status", timeout=timeout) as response:
            status = json.loads(response.read(_MOST_BYTES))
    except HTTPError as error:
        error.close()
        raise UnreachableError(f"answered with status {error.code}") from error
    except (OSError, ValueError, HTTPException) as error:
        raise UnreachableError(_why(error)) from error
    if not isinstance(status, dict) or not all(isinstance(status.get(key), int) for key in _ESSENTIAL):
        raise UnreachableError("something answered that is not the service")
    if not all(isinstance(status.get(key, kind()), kind) for key, kind in _NESTED.items()):
        raise UnreachableError("something answered that is not the service")
    return status


def _why(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, (ValueError, HTTPException)) and not isinstance(cause, OSError):
        return "something answered that is not the service"
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return str(text)[:1].lower() + str(text)[1:]
