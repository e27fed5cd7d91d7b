"""What is on its way to one client: written as blocks, optionally held back, always bounded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import WriteTransport

    from sandbox.exchange.record import ConnectionRecord, Tally


@dataclass
class _Held:
    due: float
    block: bytes
    counts: list[tuple[str, Tally]] = field(default_factory=list)


class Outbox:
    """Frames of one tick are gathered in `frames` and leave as one write.

    What the client does not read waits in the transport, what a delay holds back waits here; together they
    stay under `limit` bytes: `flush` refuses the block that would pass it.
    """

    def __init__(self, transport: WriteTransport, record: ConnectionRecord, limit: int) -> None:
        self.frames: list[bytes] = []
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self._transport = transport
        self._record = record
        self._limit = limit
        self._held: deque[_Held] = deque()
        self._held_bytes = 0
        self._written_direct = True

    @property
    def backlog(self) -> int:
        """Bytes that have not reached the kernel yet."""
        return self._held_bytes + self._transport.get_write_buffer_size()

    def flush(self, now: float) -> bool:
        """Hand the gathered frames over as one block; False when they do not fit: nothing was written then."""
        block = b"".join(self.frames)
        self.frames.clear()
        if self.backlog + len(block) > self._limit:
            return False
        self.put(block, now)
        return True

    def put(self, block: bytes, now: float) -> None:
        """Write a block now, or behind what is being held back."""
        self._written_direct = not (self.delay_s or self.bytes_per_s or self._held)
        if self._written_direct:
            self._write(block)
            return
        earliest = self._held[-1].due if self._held else now
        pace = len(block) / self.bytes_per_s if self.bytes_per_s else 0.0
        self._held.append(_Held(max(now + self.delay_s, earliest + pace), block))
        self._held_bytes += len(block)

    def count(self, stream: str, tally: Tally) -> None:
        """Count frames of the block put last: at once when it was written, else when it will be."""
        if self._written_direct or not self._held:
            self._record.count(stream, tally)
        else:
            self._held[-1].counts.append((stream, tally))

    def release(self, now: float) -> None:
        """Write what has been held back long enough."""
        while self._held and self._held[0].due <= now:
            held = self._held.popleft()
            self._held_bytes -= len(held.block)
            self._write(held.block)
            for stream, tally in held.counts:
                self._record.count(stream, tally)

    def drop(self) -> None:
        """Forget everything that was not handed to the transport; it was not counted either."""
        self.frames.clear()
        self._held.clear()
        self._held_bytes = 0

    def _write(self, block: bytes) -> None:
        self._transport.write(block)
        self._record.bytes_written += len(block)
