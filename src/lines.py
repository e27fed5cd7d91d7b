"""All lines: how streams are spread over them, changed while they run, and kept flowing."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from config.streams import stream_symbol
from src.binance_client import MAX_STREAMS
from src.line import Line
from src.rotation import SILENCE
from src.silence import Silence
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from src.deadline import Deadline
    from src.line import Parts

TICK_SECONDS = 0.2
_LOOK_SECONDS = 1.0  # between two looks at the pace of the streams,
_LOOK_STREAMS = 2_000  # and so much more for each so many: a look takes 2 us a stream
_DAY = 86_400


class Changed(NamedTuple):
    """What a new choice of streams came to."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


class Flowing(Protocol):
    """Who counts events by stream and acts on the passing of time."""

    def traffic(self) -> dict[str, int]:
        """Return the events received so far, by stream."""

    def tick(self) -> None:
        """Do what is due; called about five times a second."""


def spread(streams: tuple[str, ...], at_most: int = MAX_STREAMS) -> list[tuple[str, ...]]:
    """Split stream names into groups that fit on one connection each."""
    return [streams[start : start + at_most] for start in range(0, len(streams), at_most)]


class Lines:
    """The lines of one service, under one lock: different threads choose the streams and keep them flowing.

    Connections of different lines are replaced some seconds apart, except when the exchange asks for it.
    """

    def __init__(self, streams: tuple[str, ...], parts: Parts, at_most: int = MAX_STREAMS) -> None:
        self._parts = parts
        self._at_most = at_most
        self._lock = threading.Lock()  # guards everything below
        self._lines: list[Line] = []
        self._emptied: list[Line] = []
        self._next_number = 0
        self._started = self._closing = False
        self._rotated_at = float("-inf")
        settings = parts.settings
        self._silence = Silence(settings.stream_silence_timeout_seconds, settings.stream_silence_times)
        self._look_at = 0.0
        for group in spread(streams, at_most):
            self._add_line(group)

    def start(self) -> None:
        """Start reading."""
        with self._lock:
            self._started = True
            for line in self._lines:
                line.start()

    def close(self) -> None:
        """Ask every connection to say goodbye; no new one is opened from here on."""
        with self._lock:
            self._closing = True
            for line in self._lines:
                line.close()

    def join(self, deadline: Deadline) -> None:
        """Wait for the reading threads."""
        for line in (*self._lines, *self._emptied):
            line.join(deadline)

    @property
    def streams(self) -> tuple[str, ...]:
        """Every stream that is read, or to be read."""
        with self._lock:
            return tuple(stream for line in self._lines for stream in line.streams)

    @property
    def alive(self) -> bool:
        """Whether every reading thread runs."""
        with self._lock:
            return all(line.alive for line in self._lines)

    def state(self) -> dict[str, int | float]:
        """Return what `/status` shows of the lines, by the names of the catalogue."""
        with self._lock:
            lines = self._lines
            return {
                "streams": sum(len(line.streams) for line in lines),
                "streams_silent": self._silence.silent,
                "connections": len(lines) * (2 if self._parts.settings.standby else 1),
                "connection_failures_in_a_row": max((line.failures_in_a_row for line in lines), default=0),
                "connection_age_seconds": round(max((line.age for line in lines), default=0.0), 1),
            }

    def change(self, streams: Sequence[str]) -> Changed:
        """Read exactly these streams from here on; what stays is not touched."""
        with self._lock:
            home = {stream: line for line in self._lines for stream in line.streams}
            wanted = dict.fromkeys(streams)
            added = [stream for stream in wanted if stream not in home]
            removed = [stream for stream in home if stream not in wanted]
            if not self._closing:
                self._apply(added, removed, home)
        return Changed(tuple(added), tuple(removed))

    def tick(self, traffic: Callable[[], dict[str, int]]) -> None:
        """Replace connections whose time has come, and see to streams that have fallen silent."""
        now, second_of_day = time.monotonic(), time.time() % _DAY
        with self._lock:
            if self._closing:
                return
            for line in self._lines:
                may_rotate = now - self._rotated_at >= self._parts.settings.reconnect_interval
                if line.tick(now, second_of_day, may_rotate=may_rotate):
                    self._rotated_at = now
            if now >= self._look_at:
                streams = self._see_to_silence(traffic(), now)
                self._look_at = now + max(_LOOK_SECONDS, streams / _LOOK_STREAMS)

    def _see_to_silence(self, traffic: dict[str, int], now: float) -> int:
        """Act on streams that have fallen silent; return how many are watched."""
        settled = {stream: line for line in self._lines if line.settled for stream in line.streams}
        fallen = self._silence.look(traffic, settled.keys(), now)
        for line, streams in _by_line(fallen.silent, settled):
            self._parts.telemetry.streams_silent(line.number, streams, "resubscribe")
            line.renew(streams)
        for line, streams in _by_line(fallen.unhelped, settled):
            self._parts.telemetry.streams_silent(line.number, streams, "rotate")
            line.wish(SILENCE)
        return len(settled)

    def _apply(self, added: list[str], removed: list[str], home: dict[str, Line]) -> None:
        changes: dict[Line, tuple[list[str], list[str]]] = {line: ([], []) for line in self._lines}
        for stream in removed:
            changes[home[stream]][1].append(stream)
        room = {line: self._at_most - len(line.streams) + len(gone) for line, (_, gone) in changes.items()}
        by_symbol = {stream_symbol(stream): line for stream, line in home.items()}
        left_over = []
        for stream in added:
            line = by_symbol.get(stream_symbol(stream))
            if line is None or not room[line]:
                line = next((each for each, places in room.items() if places), None)
            if line is None:
                left_over.append(stream)
            else:
                room[line] -= 1
                changes[line][0].append(stream)
        for line, (add, remove) in changes.items():
            line.change(add, remove)
        for group in spread(tuple(left_over), self._at_most):
            self._add_line(group)
        self._close_empty_lines()
        self._parts.telemetry.lines_changed(line.number for line in self._lines)

    def _add_line(self, streams: tuple[str, ...]) -> None:
        line = Line(self._next_number, streams, self._parts, time.monotonic())
        self._next_number += 1
        self._lines.append(line)
        self._parts.telemetry.lines_changed(line.number for line in self._lines)
        if self._started:
            line.start()

    def _close_empty_lines(self) -> None:
        for line in [line for line in self._lines if not line.streams]:
            line.close()
            self._lines.remove(line)
            self._emptied.append(line)


def _by_line(streams: Iterable[str], home: dict[str, Line]) -> list[tuple[Line, list[str]]]:
    found: dict[Line, list[str]] = {}
    for stream in streams:
        found.setdefault(home[stream], []).append(stream)
    return list(found.items())


class Keeper:
    """The thread that keeps the lines flowing: it looks at them, and at what they bring, five times a second."""

    def __init__(self, lines: Lines, flowing: Flowing, on_exit: Callable[[Worker], None]) -> None:
        self._lines = lines
        self._flowing = flowing
        self._stopped = threading.Event()
        self._worker = Worker("connection-keeper", self._run, on_exit)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def stop(self, timeout: float) -> None:
        """End the thread, and wait for that."""
        self._stopped.set()
        self._worker.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._worker.alive

    def _run(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            self._flowing.tick()
            self._lines.tick(self._flowing.traffic)
