"""One connection of a client: its subscriptions, its rules, and what reaches it in which order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType

from sandbox.exchange.frames import PING, POLICY_VIOLATION, PONG, close_frame, frame, text_frame
from sandbox.exchange.outbox import Outbox
from sandbox.exchange.record import Tally
from sandbox.exchange.requests import MalformedRequestError, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange.feed import Feed
    from sandbox.exchange.record import ConnectionRecord
    from sandbox.exchange.settings import Limits
    from sandbox.exchange.tamper import Tamper

_RATE_WINDOW_S = 1.0
_CLIENT_FRAME_HEAD = 8
_GOING_AWAY = 1001
_POLL_S = 0.01


class Session:
    """Everything runs in the exchange's event loop; between two ticks `outbox.frames` is empty.

    States: `open`; `mute` (answers pings and closes, says nothing else); `half_open` (neither reads nor
    writes); `closing` (a close frame was sent); `closed`.
    """

    def __init__(
        self,
        record: ConnectionRecord,
        transport: asyncio.Transport,
        feed: Feed,
        limits: Limits,
        now: float,
    ) -> None:
        self.record = record
        self.combined = False
        self.subscriptions: dict[str, None] = {}
        self.stream_limit = limits.streams
        self.transport = transport
        self.outbox = Outbox(transport, record, limits.unsent_bytes)
        self._feed = feed
        self._limits = limits
        self._arrivals: deque[float] = deque()
        self._pings: deque[tuple[float, bytes]] = deque()
        self._next_ping = now + limits.ping_interval_s
        self._ends = now + limits.lifetime_s
        self._notice_due = self._ends - limits.shutdown_notice_s
        self._speaks_again: float | None = None
        self._triggers: list[tuple[int, Callable[[], object]]] = []
        self._tampers: dict[str, Tamper] = {}
        self._silenced: set[str] = set()  # subscribing to them does not help
        self._deaf_for = 0

    @property
    def id(self) -> int:
        """The number of the connection, counted from 1."""
        return self.record.id

    @property
    def state(self) -> str:
        """One of the states named above."""
        return self.record.state

    @property
    def speaking(self) -> bool:
        """Whether data goes to the client."""
        return self.record.state == "open"

    def sink(self, stream: str) -> Callable[[bytes], None]:
        """Where the frames of a stream go: straight to the outbox unless they are being tampered with."""
        tamper = self._tampers.get(stream)
        if tamper is None:
            return self.outbox.frames.append
        return partial(tamper.pass_on, onwards=self.outbox.frames.append)

    def count(self, stream: str, tally: Tally) -> None:
        """Count what was just flushed, as altered by a tamper."""
        tamper = self._tampers.get(stream)
        if tamper is None:
            self.outbox.count(stream, tally)
            return
        changed = Tally(tally.frames, tally.events, tally.bytes, tally.first_id, tally.last_id)
        changed.add(tamper.difference)
        tamper.difference = Tally()
        self.outbox.count(stream, changed)
        if not tamper.active:
            self._note_tampered(stream, self._tampers.pop(stream))
            self._feed.rewire(stream)

    def tamper_with(self, stream: str, tamper: Tamper) -> None:
        """Alter the next frames of a stream."""
        self._tampers[stream] = tamper
        self._feed.rewire(stream)

    def subscribe(self, names: list[str]) -> None:
        """Add streams; data begins with the next tick."""
        for name in names:
            if name not in self.subscriptions:
                self.subscriptions[name] = None
                if self.speaking and name not in self._silenced:
                    self._feed.listen(self, name)
        self.record.subscriptions = list(self.subscriptions)

    def unsubscribe(self, names: list[str]) -> None:
        """Remove streams; a name that was not subscribed is no error."""
        for name in names:
            if name in self.subscriptions:
                del self.subscriptions[name]
                self._feed.leave(self, name)
        self.record.subscriptions = list(self.subscriptions)

    def silence(self, stream: str, *, for_good: bool) -> None:
        """Bring nothing of one stream any more, until it is subscribed to again or for good."""
        self._feed.leave(self, stream)
        if for_good:
            self._silenced.add(stream)

    def ignore_requests(self, count: int) -> None:
        """Lose the next requests: they change nothing and are not answered."""
        self._deaf_for = count

    def set_combined(self, *, combined: bool) -> None:
        """Wrap data frames in `stream` and `data`, or not."""
        self.combined = self.record.combined = combined
        for name in self.subscriptions:
            self._feed.rewire(name)

    def receive(self, kind: WSMsgType, content: Any, now: float) -> None:  # noqa: ANN401 - as aiohttp gives it
        """Take in one frame of the client."""
        self.record.client_frames += 1
        if kind is WSMsgType.CLOSE:
            self._answer_close(content)
            return
        if self.state in {"closing", "closed", "half_open"} or self._too_many(now):
            return
        if kind is WSMsgType.PING:
            self._write_control(frame(bytes(content), PONG), now)
        elif kind is WSMsgType.PONG:
            self._take_pong(bytes(content))
        elif self.speaking:
            self._take_request(bytes(content), now)

    def flush(self, now: float) -> None:
        """Write the frames of this tick; a client that reads too slowly is closed instead."""
        if self.outbox.frames and not self.outbox.flush(now):
            self.record.ended_by = "slow client"
            self.close(POLICY_VIOLATION, b"Slow client")

    def when_sent(self, frames: int, act: Callable[[], object]) -> None:
        """Act once as many more data frames were sent, at the end of that tick."""
        self._triggers.append((self.record.total().frames + frames, act))

    def fire(self) -> None:
        """Act on what `when_sent` waits for."""
        if not self._triggers:
            return
        sent = self.record.total().frames
        reached = [act for frames, act in self._triggers if sent >= frames]
        self._triggers = [trigger for trigger in self._triggers if sent < trigger[0]]
        for act in reached:
            act()

    def send_data(self, block: bytes, stream: str, tally: Tally, now: float) -> bool:
        """Write data frames outside the tick; False when the connection is not there for it."""
        return self.send_block(block, {stream: tally}, now)

    def send_block(self, block: bytes, tallies: dict[str, Tally], now: float) -> bool:
        """Write data frames of several streams outside the tick."""
        if not self.speaking:
            return False
        self.outbox.frames.append(block)
        self.flush(now)
        if not self.speaking:
            return False
        for stream, tally in tallies.items():
            self.outbox.count(stream, tally)
        return True

    def send_uncounted(self, block: bytes, now: float) -> bool:
        """Write bytes that are no data: faults and announcements."""
        if not self.speaking:
            return False
        self.outbox.put(block, now)
        return True

    def shutdown_notice(self, now_ms: int, now: float) -> bool:
        """Announce that the connection will be cut."""
        payload = b'{"e":"serverShutdown","E":%d}' % now_ms
        if self.combined:
            payload = b'{"stream":"!serverShutdown","data":' + payload + b"}"
        return self.send_data(text_frame(payload), "!serverShutdown", Tally(1, 1, len(payload)), now)

    def pass_time(self, now: float, now_ms: int) -> None:
        """Ping, judge pongs, announce and end the lifetime, release what was held back."""
        if self._speaks_again is not None and now >= self._speaks_again:
            self.resume()
        if self.state == "open":
            self.outbox.release(now)
            self._ping(now, now_ms)
        if now >= self._notice_due:
            self._notice_due = float("inf")
            self.shutdown_notice(now_ms, now)
        if now >= self._ends and self.state in {"open", "mute"}:
            self.record.ended_by = "lifetime"
            self.close(_GOING_AWAY, b"")

    def mute(self, now: float, seconds: float | None) -> None:
        """Say nothing for a while, or for good; data of that time is lost to this connection."""
        self._fall_silent("mute", now, seconds)

    def half_open(self, now: float, seconds: float | None) -> None:
        """Neither read nor write nor answer a close; the socket stays open."""
        self._fall_silent("half_open", now, seconds)
        self.transport.pause_reading()

    def resume(self) -> None:
        """Speak again after `mute` or `half_open`."""
        self._speaks_again = None
        if self.state == "half_open":
            self.transport.resume_reading()
        if self.state in {"mute", "half_open"}:
            self.record.state = "open"
            self._pings.clear()
            for name in self.subscriptions.keys() - self._silenced:
                self._feed.listen(self, name)

    def close(self, code: int | None, reason: bytes = b"") -> None:
        """Send a close frame behind what is queued; the TCP connection ends when the client answers, or soon."""
        if self.state in {"closing", "closed"}:
            return
        self._stop_data("closing")
        self.record.close_sent = code
        self.transport.write(close_frame(code, reason))
        loop = asyncio.get_running_loop()
        loop.call_later(self._limits.close_timeout_s, self._give_up_close)

    def cut(self) -> None:
        """Reset the TCP connection at once; what the transport still held is lost and noted."""
        if self.state == "closed":
            return
        self.record.bytes_unsent = self.outbox.backlog
        self._stop_data("closing")
        self.record.ended_by = self.record.ended_by or "cut"
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    async def awake(self) -> None:
        """Wait until the connection is half open no more."""
        while self.state == "half_open" and not self.transport.is_closing():  # noqa: ASYNC110 - as in `linger`
            await asyncio.sleep(_POLL_S)

    async def linger(self) -> None:
        """After both close frames: stop writing, and let the client be the one who ends TCP.

        Closing first could reset the connection and take away what the client has not read yet.
        """
        with contextlib.suppress(OSError):
            self.transport.write_eof()
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._limits.close_timeout_s
        while not self.transport.is_closing() and loop.time() < ends:  # noqa: ASYNC110 - asyncio tells nobody else
            await asyncio.sleep(_POLL_S)

    def ended(self, now_ms: int) -> None:
        """Take note that the TCP connection is gone."""
        if self.record.ended_by is None:
            closed = self.record.close_received is not None
            self.record.ended_by = "client close" if closed else "connection lost"
        for stream, tamper in self._tampers.items():
            self._note_tampered(stream, tamper)
        self._stop_data("closed")
        self.record.open = False
        self.record.closed_ms = now_ms

    def _note_tampered(self, stream: str, tamper: Tamper) -> None:
        self.record.tampered.append({"stream": stream, "mode": tamper.mode, "ids": tamper.ids})

    def _answer_close(self, code: int) -> None:
        self.record.close_received = code or None
        if self.state in {"half_open", "closed", "closing"}:
            return
        self._stop_data("closing")
        self.record.close_sent = code or None
        self.transport.write(close_frame(code or None))

    def _take_request(self, text: bytes, now: float) -> None:
        if self._deaf_for:
            self._deaf_for -= 1
            return
        try:
            request = Request.parse(text)
        except MalformedRequestError:
            self.record.ended_by = "invalid request"
            self.close(POLICY_VIOLATION, b"Invalid request")
            return
        if request.is_subscribe and len(text) + _CLIENT_FRAME_HEAD > self._limits.subscribe_frame_bytes:
            return
        self._write_control(text_frame(request.answer(self)), now)

    def _take_pong(self, payload: bytes) -> None:
        self.record.client_pongs += 1
        if any(sent == payload for _, sent in self._pings):
            while self._pings.popleft()[1] != payload:
                pass

    def _ping(self, now: float, now_ms: int) -> None:
        if self._pings and now - self._pings[0][0] >= self._limits.pong_timeout_s:
            self.record.ended_by = "pong timeout"
            self.close(POLICY_VIOLATION, b"Pong timeout")
        elif now >= self._next_ping:
            self._next_ping = now + self._limits.ping_interval_s
            payload = str(now_ms).encode()
            self._pings.append((now, payload))
            self.record.pings += 1
            self.outbox.put(frame(payload, PING), now)

    def _too_many(self, now: float) -> bool:
        arrivals = self._arrivals
        while arrivals and now - arrivals[0] >= _RATE_WINDOW_S:
            arrivals.popleft()
        arrivals.append(now)
        if len(arrivals) <= self._limits.frames_per_second:
            return False
        self.record.ended_by = "too many requests"
        self.close(POLICY_VIOLATION, b"Too many requests")
        return True

    def _write_control(self, block: bytes, now: float) -> None:
        self.record.control_frames += 1
        self.outbox.put(block, now)

    def _fall_silent(self, state: str, now: float, seconds: float | None) -> None:
        if self.speaking:
            self._stop_data(state)
            self._speaks_again = None if seconds is None else now + seconds

    def _stop_data(self, state: str) -> None:
        self.outbox.drop()
        for name in self.subscriptions:
            self._feed.leave(self, name)
        self.record.state = state

    def _give_up_close(self) -> None:
        if self.state == "closing" and not self.transport.is_closing():
            self.cut()
