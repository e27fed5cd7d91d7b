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
    """Frames as they were received; `offsets_s` are seconds since the first one, None without times."""

    frames: list[bytes]
    streams: list[str]
    offsets_s: list[float] | None

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read `x.jsonl`, one raw frame a line, and `x.recv_ts` beside it (float seconds or int ns)."""
        try:
            frames = [line for line in path.read_bytes().split(b"\n") if line]
            times = path.with_suffix(".recv_ts")
            offsets = _offsets(times.read_text()) if times.is_file() else None
        except (OSError, ValueError) as error:
            raise ReplayError(f"{path}: {error}") from None
        if not frames:
            raise ReplayError(f"{path}: no frames")
        if offsets is not None and len(offsets) != len(frames):
            raise ReplayError(f"{path}: {len(frames)} frames, but {len(offsets)} receive times")
        return cls(frames, [_stream_of(frame) for frame in frames], offsets)


class Replay:
    """Sends a recording once. `speed` multiplies its own pace; 0 is as fast as the slowest client reads."""

    def __init__(
        self,
        recording: Recording,
        speed: float,
        sessions: Callable[[], list[Session]],
        *,
        to_all: bool,
    ) -> None:
        if speed and recording.offsets_s is None:
            raise ReplayError("without receive times a recording has no pace: use speed 0")
        self._recording = recording
        self._speed = speed
        self._sessions = sessions
        self._to_all = to_all
        self.sent = 0

    async def run(self) -> None:
        """Send every frame, in order."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self.sent < len(self._recording.frames):
            end = self._due(loop.time() - began)
            if end > self.sent and not (self._speed == 0 and self._crowded()):
                self._send(self.sent, end, loop.time())
                self.sent = end
            await asyncio.sleep(_PAUSE_S if self._speed or self._crowded() else 0)

    def _due(self, passed: float) -> int:
        end = min(self.sent + _BLOCK_FRAMES, len(self._recording.frames))
        offsets = self._recording.offsets_s
        if not self._speed or offsets is None:
            return end
        due = self.sent
        while due < end and offsets[due] <= passed * self._speed:
            due += 1
        return due

    def _crowded(self) -> bool:
        return any(each.speaking and each.outbox.backlog > _WAIT_ABOVE_BYTES for each in self._sessions())

    def _send(self, start: int, end: int, now: float) -> None:
        frames, streams = self._recording.frames, self._recording.streams
        for session in self._sessions():
            block: list[bytes] = []
            tallies: dict[str, Tally] = {}
            for frame, stream in zip(frames[start:end], streams[start:end], strict=True):
                if self._to_all or stream in session.subscriptions:
                    block.append(text_frame(frame))
                    tallies.setdefault(stream, Tally()).add(tally_of(frame))
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
