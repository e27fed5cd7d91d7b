"""Replay of recorded frames: verbatim bytes, at their own pace, faster, or as fast as they are read."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.exchange.frames import text_frame
from sandbox.exchange.record import Tally
from sandbox.exchange.tamper import tally_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.exchange.session import Session

_STREAM = re.compile(rb'\{"stream":"([^"]+)","data":')
_NANOSECONDS_FROM = 10**14
_BLOCK_FRAMES = 500
_WAIT_ABOVE_BYTES = 512 * 1024
_PAUSE_S = 0.002


class ReplayError(Exception):
    """A recording that cannot be replayed, and why."""


@dataclass(frozen=True)
class Recording:
    """Frames ready for the wire; `offsets_s` are seconds since the first one, None without times."""

    frames: list[bytes]
    streams: list[str]
    tallies: list[Tally]
    offsets_s: list[float] | None

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read `x.jsonl`, one raw frame a line, and `x.recv_ts` beside it (float seconds or int ns)."""
        try:
            lines = [line for line in path.read_bytes().split(b"\n") if line]
            times = path.with_suffix(".recv_ts")
            offsets = _offsets(times.read_text()) if times.is_file() else None
        except (OSError, ValueError) as error:
            raise ReplayError(f"{path}: {error}") from None
        if not lines:
            raise ReplayError(f"{path}: no frames")
        if offsets is not None and len(offsets) != len(lines):
            raise ReplayError(f"{path}: {len(lines)} frames, but {len(offsets)} receive times")
        streams = [_stream_of(line) for line in lines]
        return cls([text_frame(line) for line in lines], streams, [tally_of(line) for line in lines], offsets)


@dataclass(frozen=True)
class Pace:
    """`speed` multiplies the recording's own pace, 0 is as fast as the slowest client reads; `repeat` times."""

    speed: float = 1.0
    repeat: int = 1
    to_all: bool = False


class Replay:
    """Sends a recording to the connections that subscribed to its streams, or to all."""

    def __init__(self, recording: Recording, pace: Pace, sessions: Callable[[], list[Session]]) -> None:
        if pace.speed and recording.offsets_s is None:
            raise ReplayError("without receive times a recording has no pace: use speed 0")
        self._recording = recording
        self._pace = pace
        self._sessions = sessions

    async def run(self) -> None:
        """Send every frame, in order, as often as wanted."""
        for _ in range(self._pace.repeat):
            await self._run_once()

    async def _run_once(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        sent = 0
        while sent < len(self._recording.frames):
            end = self._due(sent, loop.time() - began)
            waits = not self._pace.speed and self._crowded()
            if end > sent and not waits:
                self._send(sent, end, loop.time())
                sent = end
            await asyncio.sleep(_PAUSE_S if self._pace.speed or waits else 0)

    def _due(self, sent: int, passed: float) -> int:
        end = min(sent + _BLOCK_FRAMES, len(self._recording.frames))
        offsets = self._recording.offsets_s
        if not self._pace.speed or offsets is None:
            return end
        due = sent
        while due < end and offsets[due] <= passed * self._pace.speed:
            due += 1
        return due

    def _crowded(self) -> bool:
        return any(each.speaking and each.outbox.backlog > _WAIT_ABOVE_BYTES for each in self._sessions())

    def _send(self, start: int, end: int, now: float) -> None:
        recording = self._recording
        for session in self._sessions():
            block: list[bytes] = []
            tallies: dict[str, Tally] = {}
            for number in range(start, end):
                stream = recording.streams[number]
                if self._pace.to_all or stream in session.subscriptions:
                    block.append(recording.frames[number])
                    tallies.setdefault(stream, Tally()).add(recording.tallies[number])
            if block:
                session.send_block(b"".join(block), tallies, now)


def _stream_of(frame: bytes) -> str:
    match = _STREAM.match(frame)
    return match[1].decode("utf-8", "replace") if match else ""


def _offsets(text: str) -> list[float]:
    times = text.split()
    if not times:
        return []
    if "." in times[0]:
        seconds = [float(each) for each in times]
        return [each - seconds[0] for each in seconds]
    numbers = [int(each) for each in times]
    scale = 1e9 if numbers[0] >= _NANOSECONDS_FROM else 1.0
    return [(each - numbers[0]) / scale for each in numbers]
