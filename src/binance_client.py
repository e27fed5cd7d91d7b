"""The exchange's side: one connection that stays subscribed, and how streams are spread over connections.

What holds towards the exchange (Binance web-socket-streams.md): pings are answered, at most 5 messages a
second leave, at most 1024 streams share a connection; after a reconnect everything is subscribed again.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from websocket import WebSocketException

from src.backoff import Backoff
from src.deadline import Deadline
from src.websocket_wire import ConnectionLost, FrameReader, WentSilent, Woken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.settings import ConnectionConfig
    from src.events import Reply
    from src.telemetry import Telemetry

MAX_STREAMS = 1024
SUBSCRIBE_BYTES = 4_000  # frames over 4,096 bytes were seen to stay unanswered
SUBSCRIBE_STREAMS = 100
SUBSCRIBE_INTERVAL = 0.35
"""Seconds between our requests: 5 messages a second are allowed and pongs count; this leaves room for two."""
GOODBYE_SECONDS = 3.0
"""How long the exchange may take to answer our close frame."""

_Lost = (ConnectionLost, WebSocketException, OSError)  # TimeoutError is an OSError


class Chunk(NamedTuple):
    """What one read from the socket brought."""

    frames: list[bytes]
    received_ms: int
    """When it was read, ms since the epoch."""


class GaveUp(Exception):  # noqa: N818 - named after the fact
    """As many connection attempts in a row failed as the settings allow."""


def spread(streams: tuple[str, ...], at_most: int = MAX_STREAMS) -> list[tuple[str, ...]]:
    """Split stream names into groups that fit on one connection each."""
    return [streams[start : start + at_most] for start in range(0, len(streams), at_most)]


def subscribe_groups(streams: tuple[str, ...]) -> list[list[str]]:
    """Split stream names so that each group's SUBSCRIBE stays within the exchange's limits."""
    groups: list[list[str]] = [[]]
    for stream in streams:
        candidate = [*groups[-1], stream]
        if len(candidate) > SUBSCRIBE_STREAMS or len(_subscribe(candidate, 2**31)) > SUBSCRIBE_BYTES:
            groups.append([stream])
        else:
            groups[-1] = candidate
    return groups


def _subscribe(streams: list[str], request_id: int) -> bytes:
    request = {"method": "SUBSCRIBE", "params": streams, "id": request_id}
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()


class BinanceConnection:
    """One subscribed connection that is replaced whenever it is lost, until closed or given up.

    `chunks` runs on the reading thread; `close` may be called from any other. What the exchange put on
    the wire before it answered our close frame is still read and given out.
    """

    def __init__(
        self,
        number: int,
        url: str,
        streams: tuple[str, ...],
        settings: ConnectionConfig,
        telemetry: Telemetry,
    ) -> None:
        self._number = number
        self._url = url
        self._streams = streams
        self._settings = settings
        self._telemetry = telemetry
        self._backoff = Backoff(settings.reconnect_interval, settings.max_reconnect_interval, settings.max_retries)
        self._closing = threading.Event()
        self._lock = threading.Lock()  # guards _reader against close() from another thread
        self._reader: FrameReader | None = None
        self._subscriptions = _Subscriptions(streams, settings.timeout_seconds)

    def chunks(self) -> Iterator[Chunk]:
        """Yield what arrives until closed; raise `GaveUp` after too many failures in a row."""
        again = False
        while not self._closing.is_set():
            self._telemetry.connection_attempt(self._number, self._url, again=again)
            again = True
            worked = False
            try:
                for chunk in self._one_connection():
                    if not worked:
                        worked = True
                        self._backoff.succeeded()
                    if chunk.frames:
                        yield chunk
            except _Lost as error:
                if not self._closing.is_set():
                    self._wait_after(error, worked=worked)

    @property
    def failures_in_a_row(self) -> int:
        """How often connecting has failed since a connection last brought a frame."""
        return self._backoff.failures

    def replied(self, reply: Reply) -> None:
        """Take note of a reply or error of the exchange; called on the reading thread."""
        streams = self._subscriptions.answered(reply.id)
        if reply.error is not None:
            self._telemetry.exchange_error(self._number, reply.error, streams)
        elif streams:
            self._telemetry.subscribed(self._number, len(streams))

    def close(self) -> None:
        """Ask the reading thread to say goodbye to the exchange and end; returns at once."""
        with self._lock:
            self._closing.set()
            if self._reader is not None:
                self._reader.wake()

    def _one_connection(self) -> Iterator[Chunk]:
        reader = FrameReader()
        with self._lock:
            self._reader = reader
        try:
            if self._closing.is_set():
                return
            reader.open(self._url, Deadline(self._settings.timeout_seconds))
            self._telemetry.connection_opened(self._number, len(self._streams))
            yield from self._read(reader)
        except Woken:
            yield from self._read_to_the_end(reader)
        finally:
            with self._lock:
                self._reader = None
            reader.release()
            if self._closing.is_set():
                self._telemetry.connection_closed(self._number)

    def _read(self, reader: FrameReader) -> Iterator[Chunk]:
        silence = self._settings.silence_timeout_seconds
        subscriptions = self._subscriptions
        subscriptions.start_over()
        now = heard_at = time.monotonic()
        while True:
            if now >= subscriptions.next_at:
                self._subscribe(reader)
            try:
                frames, closed = reader.read(min(heard_at + silence, subscriptions.next_at))
            except TimeoutError:
                now = time.monotonic()
                if now - heard_at >= silence:
                    raise WentSilent(f"no frame of any kind for {silence:g} s") from None
                continue
            now = heard_at = time.monotonic()
            if closed:
                raise ConnectionLost(reader.close_reason())
            yield Chunk(frames, time.time_ns() // 1_000_000)

    def _subscribe(self, reader: FrameReader) -> None:
        """Send the request that is due, if one is; tell of those that were not answered in time."""
        if (request := self._subscriptions.due()) is not None:
            reader.request(request, time.monotonic() + self._settings.timeout_seconds)
        for unanswered in self._subscriptions.overdue():
            self._telemetry.subscription_unconfirmed(self._number, unanswered)

    def _read_to_the_end(self, reader: FrameReader) -> Iterator[Chunk]:
        """Say goodbye, then give out what was on the way until the exchange answers or hangs up."""
        if not reader.connected:
            return
        wait_until = time.monotonic() + GOODBYE_SECONDS
        try:
            reader.say_goodbye(wait_until)
            while True:
                frames, closed = reader.read(wait_until)
                yield Chunk(frames, time.time_ns() // 1_000_000)
                if closed:
                    return
                if time.monotonic() >= wait_until:
                    raise ConnectionLost("the exchange went on sending")
        except _Lost as error:
            self._telemetry.goodbye_unanswered(self._number, error)

    def _wait_after(self, error: Exception, *, worked: bool) -> None:
        """Wait as long as the backoff says; a connection that had worked is no failed attempt yet."""
        delay = self._backoff.lost() if worked else self._backoff.failed()
        self._telemetry.connection_failed(self._number, error, self._backoff.failures)
        if delay is None:
            raise GaveUp(f"{self._backoff.failures} connection attempts in a row failed: {error}") from error
        self._telemetry.reconnect_scheduled(self._number, self._backoff.attempt, delay)
        self._closing.wait(delay)


class _Subscriptions:
    """The SUBSCRIBE requests of one connection: which are to be sent, sent, answered."""

    def __init__(self, streams: tuple[str, ...], timeout: float) -> None:
        self._groups = subscribe_groups(streams)
        self._timeout = timeout
        self._next_id = 1
        self.start_over()

    def start_over(self) -> None:
        """Plan all requests anew, for a new connection."""
        self._unsent = list(self._groups)
        self._send_at = time.monotonic()
        self._unanswered: dict[int, tuple[float, list[str]]] = {}  # by id: when overdue, which streams
        self._plan()

    def due(self) -> bytes | None:
        """Return the next request when its time has come."""
        now = time.monotonic()
        if not self._unsent or now < self._send_at:
            return None
        streams = self._unsent.pop(0)
        request_id, self._next_id = self._next_id, self._next_id + 1
        self._unanswered[request_id] = (now + self._timeout, streams)
        self._send_at = now + SUBSCRIBE_INTERVAL
        self._plan()
        return _subscribe(streams, request_id)

    def _plan(self) -> None:
        """Note when `due` or `overdue` will have something, on the monotonic clock: every read asks for it."""
        send_at = self._send_at if self._unsent else float("inf")
        self.next_at = min([send_at, *(overdue_at for overdue_at, _ in self._unanswered.values())])

    def answered(self, request_id: int | str | None) -> list[str] | None:
        """Return the streams of the request that this is the answer to."""
        streams = self._unanswered.pop(request_id, (0.0, None))[1] if isinstance(request_id, int) else None
        self._plan()
        return streams

    def overdue(self) -> list[list[str]]:
        """Return, once each, the streams of requests that were not answered in time."""
        now = time.monotonic()
        late = [key for key, (overdue_at, _) in self._unanswered.items() if now >= overdue_at]
        streams = [self._unanswered.pop(key)[1] for key in late]
        self._plan()
        return streams
