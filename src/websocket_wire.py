"""Reading WebSocket frames in bulk: the one file that leans on the insides of websocket-client.

The library reads the socket two or three times a frame and walks each in Python (10 us a message); here one
read takes what has arrived, up to 256 KiB, and whole text frames are cut out of it (below 1 us a message).
All that is unusual (control frames, fragments, masks, reserved bits) is left to the library, which reads on
from the same buffer. A library without the parts that this leans on reads every frame, in its public way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import struct
import time
from http import HTTPStatus
from http.cookies import CookieError
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import websocket

from src.tls_in_memory import Tls

if TYPE_CHECKING:
    from collections.abc import Callable

    from src.deadline import Deadline

T = TypeVar("T")

READ_SIZE = 256 * 1024
MAX_FRAME = 16 * 1024 * 1024
"""The biggest depth frame seen is 34.5 KB; a frame or message beyond this is a broken or hostile peer's."""
_FIN_TEXT, _FIN_BINARY = 0x81, 0x82
_LENGTH_16 = 126
_MASKED = 128


class ConnectionLost(Exception):  # noqa: N818 - named after the fact
    """The connection cannot be used any more; the message says why, `cause` in a word."""

    cause = "closed"


class NotOpened(ConnectionLost):
    """TCP, TLS or the WebSocket handshake came to nothing; the message says which and why."""

    cause = "not_opened"

    def __init__(self, why: str, retry_after: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after = retry_after
        """Seconds that the exchange asks us to stay away (429, 418, 503); 0 when it says nothing."""


class NoEndpoint(NotOpened):
    """The exchange answered the handshake as a server does that serves no WebSocket under this path."""


class WentSilent(ConnectionLost):
    """No frame of any kind came for the settable time, although the TCP session may live."""

    cause = "silent"


class Woken(Exception):  # noqa: N818 - named after the fact
    """Somebody called `wake()`; what is buffered can still be read after `ignore_wake()`."""


_NOTHING_THERE = frozenset(
    (
        *(HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.GONE),
        *(HTTPStatus.UPGRADE_REQUIRED, HTTPStatus.NOT_IMPLEMENTED),
    )
)
"""What servers and proxies answer under a path that they do not know, or know for plain HTTP only."""
_NOT_OPENED = (ConnectionLost, OSError, websocket.WebSocketException, ValueError, CookieError)
"""What opening raises: ValueError for a name that is none (idna), CookieError for a strange Set-Cookie."""


class ReadAheadSocket:
    """A non-blocking TCP or TLS connection with a read buffer in front and one way of waiting.

    Quacks like a socket as far as websocket-client uses one. Every wait, from connecting on, ends at
    `wait_until`, a moment of the monotonic clock, with TimeoutError however the bytes trickle in; and with
    `Woken` as soon as another thread calls `wake()`. What has arrived is read even when the moment has
    passed. Only one thread may do anything else: a TLS connection must not be read and written at the
    same time.
    """

    def __init__(self) -> None:
        self._sock = socket.socket()
        self._tls: Tls | None = None
        self._block = memoryview(bytearray(READ_SIZE))
        self._poll = select.poll()
        self._waits_for = 0
        """The event that `_sock` is registered with `_poll` for; 0: it is not."""
        self._drained = False
        """Whether the last read left nothing that could be read at once."""
        self._woken, self._waker = socket.socketpair()
        self._waker.settimeout(0)
        self._poll.register(self._woken, select.POLLIN)
        self._wake_called = False
        self._heeds_wake = True
        self.buffered = b""
        self.at = 0
        self.wait_until = float("inf")
        self.step = "name resolution"
        """What is being done to open the connection; empty when it is open."""

    def connect(self, url: str) -> None:
        """Resolve the name, open TCP, and TLS for wss://; OSError when no address answers.

        Resolving knows neither the deadline nor `wake()`: it ends when the system's resolver gives up.
        """
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "wss"
        port = parts.port or (443 if secure else 80)
        self.connect_to_any(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        if secure:
            self._secure(host)
        self.step = "WebSocket handshake"

    def connect_to_any(self, addresses: list[tuple[Any, ...]]) -> None:
        """Open TCP to the first address that answers; none may use up the time of those after it."""
        self.step = "TCP connection"
        until = self.wait_until
        failure = OSError("the host has no address")
        for tried, (family, kind, protocol, _, address) in enumerate(addresses):
            now = time.monotonic()
            self.wait_until = now + (until - now) / (len(addresses) - tried)
            try:
                self._connect_to(socket.socket(family, kind, protocol), address)
            except OSError as error:
                failure = error
            else:
                return
            finally:
                self.wait_until = until
        raise failure

    def _connect_to(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        if self._waits_for:
            self._poll.unregister(self._sock)
            self._waits_for = 0
        self._sock.close()
        self._sock = sock
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            while not self._wait(select.POLLOUT):
                pass
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def _secure(self, host: str) -> None:
        self.step = "TLS handshake"
        self._tls = Tls(self._sock, ssl.create_default_context(), host)
        self._retried(self._tls.do_handshake, select.POLLIN)

    def _retried(self, operation: Callable[[], T], blocked_on: int) -> T:
        """Do what may have to wait for the socket: plain TCP for `blocked_on`, TLS for what it asks."""
        while True:
            try:
                return operation()
            except BlockingIOError:
                event = blocked_on
            except ssl.SSLWantReadError:
                event = select.POLLIN
            except ssl.SSLWantWriteError:
                event = select.POLLOUT
            self._wait(event)

    def _wait(self, for_event: int) -> bool:
        """Wait for the socket; return whether it has something to say."""
        left = self.wait_until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return self._wait_for(for_event, left)

    def _wait_for(self, for_event: int, seconds: float) -> bool:
        if self._waits_for != for_event:
            self._poll.register(self._sock, for_event)
            self._waits_for = for_event
        ready = self._poll.poll(min(seconds, 3600.0) * 1000 + 1)
        if self._wake_called:
            self.heed_wake()
        return bool(ready)

    def wake(self) -> None:
        """End the work of the thread that uses this socket, waiting or not, with `Woken`; from any thread."""
        self._wake_called = True
        with contextlib.suppress(OSError):  # closed already, or woken very often
            self._waker.send(b"w")

    def heed_wake(self) -> None:
        """Raise `Woken` when somebody called `wake()`; a socket that always has data never waits."""
        if self._wake_called and self._heeds_wake:
            raise Woken

    def ignore_wake(self) -> None:
        """Wait for the socket alone from here on."""
        if self._heeds_wake:
            self._heeds_wake = False
            self._poll.unregister(self._woken)

    def fill(self) -> None:
        """Wait for bytes and append them to what is buffered; ConnectionLost at the end of the stream.

        After a read that emptied the socket it waits at once, without asking in vain; when the time is up it
        asks all the same, since what has arrived is to be read.
        """
        if self._drained and (left := self.wait_until - time.monotonic()) > 0:
            self._wait_for(select.POLLIN, left)
        count = self._received()
        if not count:
            raise ConnectionLost("the exchange closed the TCP connection")
        arrived = self._block[:count].tobytes()
        self.buffered = self.buffered[self.at :] + arrived if self.at < len(self.buffered) else arrived
        self.at = 0

    def _received(self) -> int:
        """Read into the block what is there, waiting for the first of it; return how many bytes, 0 at the end."""
        source = self._tls or self._sock
        try:
            count = source.recv_into(self._block)
        except (BlockingIOError, ssl.SSLWantReadError):
            count = self._retried(lambda: source.recv_into(self._block), select.POLLIN)
        self._drained = self._tls.drained if self._tls else 0 < count < READ_SIZE
        return count

    def take(self, size: int) -> bytes:
        """Return 1 to `size` bytes, from the buffer first."""
        self.heed_wake()
        if self.at >= len(self.buffered):
            self.fill()
        start = self.at
        self.at = min(start + size, len(self.buffered))
        return self.buffered[start : self.at]

    def recv(self, size: int) -> bytes:
        """Return a piece; of the answer to the handshake in time only, even if it never pauses."""
        if self.step and time.monotonic() >= self.wait_until:
            raise TimeoutError
        return self.take(size)

    def send(self, data: bytes) -> int:
        """Send some of `data`, waiting for room; return how much.

        A peer that has hung up takes all: what it sent before is still to be read, and then tells of it.
        """
        try:
            if self._tls is None:
                return self._retried(lambda: self._sock.send(data), select.POLLOUT)
            self._tls.encrypt(data)
            self._retried(self._tls.flush, select.POLLOUT)
            return len(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return len(data)

    def gettimeout(self) -> float:
        """Say that reads may wait; how long is `wait_until`'s business."""
        return 1.0

    def settimeout(self, timeout: float | None) -> None:
        """Ignore the library's timeout."""

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the connection; the library does so when the handshake fails."""
        self._sock.close()

    def release(self) -> None:
        """Close every descriptor, drop the buffers; `wake()` must not be called at the same time."""
        for each in (self._sock, self._woken, self._waker):
            each.close()
        self._block, self.buffered, self.at = memoryview(b""), b"", 0  # the library keeps cycles of references


def has_known_insides(connection: object, library: type = websocket.WebSocket) -> bool:
    """Whether the library, and a connection of its, have the parts that reading in bulk leans on."""
    frames, message = getattr(connection, "frame_buffer", None), getattr(connection, "cont_frame", None)
    return (
        all(hasattr(library, name) for name in ("_recv", "_send"))
        and all(hasattr(frames, name) for name in ("header", "recv_buffer", "length"))
        and hasattr(message, "recving_frames")
    )


class FrameReader(websocket.WebSocket):  # type: ignore[misc]  # websocket-client carries no types
    """A WebSocket that gives out text frames in chunks; used by one thread, woken by any."""

    def __init__(self) -> None:
        # The JSON decoder validates the bytes; the library's check costs 33 us a message.
        super().__init__(fire_cont_frame=True, skip_utf8_validation=True)
        self._in_bulk = has_known_insides(self)
        self._ahead = ReadAheadSocket()
        self._fragments = bytearray()
        self._library_is_reading = False
        """Whether the library holds a part of a frame or of a fragmented message."""

    def open(self, url: str, deadline: Deadline) -> None:
        """Connect and shake hands, all of it within the deadline; NotOpened when that fails.

        Name resolution alone may take longer, see `ReadAheadSocket.connect`.
        """
        self._ahead.wait_until = time.monotonic() + deadline.remaining()
        try:
            self._ahead.connect(url)
            self.connect(url, socket=self._ahead, redirect_limit=0, suppress_origin=True)
            self._ahead.step = ""
        except _NOT_OPENED as error:
            kind = NoEndpoint if getattr(error, "status_code", None) in _NOTHING_THERE else NotOpened
            raise kind(f"the {self._ahead.step} failed: {self._why(error)}", _retry_after(error)) from error

    def _why(self, error: Exception) -> str:
        if isinstance(error, (TimeoutError, websocket.WebSocketTimeoutException)):
            return "not done in time"
        if isinstance(error, websocket.WebSocketBadStatusException):
            return _refusal(error)
        if redirect := self.handshake_response:  # kept for no other status that is an error
            return f"redirected to {redirect.headers.get('location')} ({redirect.status})"
        return str(error)

    def read(self, wait_until: float) -> tuple[list[bytes], bool]:
        """Wait for frames; return the payloads of text and binary ones, and whether a close frame came.

        The list is empty after a control frame (a ping is answered here) and after a fragment that is
        not the last of its message. `wait_until` is a moment of the monotonic clock; TimeoutError when
        nothing whole came by then, `Woken` after `wake()`.
        """
        ahead = self._ahead
        ahead.heed_wake()
        ahead.wait_until = wait_until
        while True:
            if self._library_is_reading or not self._in_bulk:
                return self._read_unusual()
            if ahead.at < len(ahead.buffered):
                frames, unusual = self._cut()
                if frames:
                    return frames, False
                if unusual:
                    return self._read_unusual()
            ahead.fill()

    def _cut(self) -> tuple[list[bytes], bool]:
        """Cut whole plain frames off the buffer; say whether the next one is for the library."""
        ahead = self._ahead
        buffered, at = ahead.buffered, ahead.at
        end = len(buffered)
        frames = []
        unusual = False
        while end - at >= 2:  # noqa: PLR2004 - the shortest header
            first, length = buffered[at], buffered[at + 1]
            if first not in (_FIN_TEXT, _FIN_BINARY) or length >= _MASKED:
                unusual = True
                break
            start = at + 2
            if length >= _LENGTH_16:
                start += 2 if length == _LENGTH_16 else 8
                if start > end:
                    break
                length = int.from_bytes(buffered[at + 2 : start], "big")
                if length > MAX_FRAME:
                    unusual = True  # the library reads the header, and _recv() refuses the rest
                    break
            stop = start + length
            if stop > end:
                break
            frames.append(buffered[start:stop])
            at = stop
        ahead.at = at
        return frames, unusual

    def _read_unusual(self) -> tuple[list[bytes], bool]:
        try:
            opcode, frame = self.recv_data_frame(control_frame=True)
        except websocket.WebSocketTimeoutException:
            raise TimeoutError from None
        finally:
            if self._in_bulk:
                parts = self.frame_buffer
                self._library_is_reading = bool(
                    parts.header or parts.recv_buffer or self.cont_frame.recving_frames
                )
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            self.close_frame = frame
            return [], True
        if opcode in (websocket.ABNF.OPCODE_PING, websocket.ABNF.OPCODE_PONG):
            return [], False
        self._fragments += frame.data
        if len(self._fragments) > MAX_FRAME:
            raise ConnectionLost(f"a message of more than {MAX_FRAME} bytes came in fragments")
        if not frame.fin:
            return [], False
        message = bytes(self._fragments)
        self._fragments.clear()
        return [message], False

    def _recv(self, size: int) -> bytes:
        """Give the library the next piece of an unusual frame."""
        announced = self.frame_buffer.length if self._in_bulk else None
        if (announced or 0) > MAX_FRAME:
            raise ConnectionLost(f"a frame of {announced} bytes was announced, more than {MAX_FRAME}")
        return self._ahead.take(size)

    def _send(self, data: bytes) -> int:
        """Send for the library; a frame that is sent in part only leaves nothing to go on with."""
        try:
            return self._ahead.send(data)
        except TimeoutError:
            raise ConnectionLost("the exchange takes nothing from us any more") from None

    def request(self, text: bytes, wait_until: float) -> None:
        """Send a text frame; ConnectionLost when the peer does not take it until then."""
        self._ahead.wait_until = wait_until
        self.send(text)

    def send_close(self, *status_and_reason: Any) -> None:  # noqa: ANN401 - as the library calls it
        """Send a close frame unless one was sent: the library answers the peer's answer to ours, too."""
        if self.connected:
            super().send_close(*status_and_reason)

    @property
    def close_code(self) -> int | None:
        """Return the code of the peer's close frame; None when none came, or one without a code."""
        data = self.close_frame.data if self.close_frame else b""
        return int(struct.unpack("!H", data[:2])[0]) if len(data) >= 2 else None  # noqa: PLR2004 - may be empty

    @property
    def close_text(self) -> str:
        """Return the reason in the peer's close frame, as sent."""
        return str(self.close_frame.data[2:].decode("utf-8", "replace")) if self.close_frame else ""

    def close_reason(self) -> str:
        """Describe the peer's close frame: code and reason."""
        if self.close_code is None:
            return "closed by the exchange without a code"
        return f"closed by the exchange: {self.close_code} {self.close_text}".rstrip()

    def wake(self) -> None:
        """End the reading thread's work with `Woken`; from any thread, not during `release`."""
        self._ahead.wake()

    def say_goodbye(self, wait_until: float) -> None:
        """Send a close frame; what the peer sent before its answer can still be read."""
        self._ahead.ignore_wake()
        self._ahead.wait_until = wait_until
        self.send_close()

    def release(self) -> None:
        """Close the descriptors."""
        self._ahead.release()


def _retry_after(error: Exception) -> float:
    """Return the Retry-After of a refused handshake in seconds; the exchange never gives a date."""
    headers = getattr(error, "resp_headers", None) or {}
    seconds = str(headers.get("retry-after", ""))
    return float(seconds) if seconds.isascii() and seconds.isdigit() else 0.0


def _refusal(answer: websocket.WebSocketBadStatusException) -> str:
    """Describe an HTTP status that is no handshake, without the headers and the page that came with it."""
    status = f"{answer.status_code} {answer.status_message or ''}".strip()
    seconds = (answer.resp_headers or {}).get("retry-after")
    return f"answered {status}" + (f", retry after {seconds} s" if seconds else "")
