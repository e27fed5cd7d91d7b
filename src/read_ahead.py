"""A connection that is read ahead: one read takes what has arrived, and every wait can be ended."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from src.tls_in_memory import Tls

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

READ_SIZE = 256 * 1024
_NAP_SECONDS = 0.1
"""So long may a read of an open connection wait in the kernel, where `wake()` does not reach it."""
_NAP = struct.pack("@ll", 0, int(_NAP_SECONDS * 1e6))  # a timeval


class ConnectionLost(Exception):  # noqa: N818 - named after the fact
    """The connection cannot be used any more; the message says why, `cause` in a word."""

    cause = "closed"


class Woken(Exception):  # noqa: N818 - named after the fact
    """Somebody called `wake()`; what is buffered can still be read after `ignore_wake()`."""


class ReadAheadSocket:
    """A non-blocking TCP or TLS connection with a read buffer in front and one way of waiting.

    Quacks like a socket as far as websocket-client uses one. Every wait, from connecting on, ends at
    `wait_until`, a moment of the monotonic clock, with TimeoutError however the bytes trickle in; and with
    `Woken` as soon as another thread calls `wake()`, of an open connection within 0.1 s. What has arrived is
    read even when the moment has passed. Only one thread may do anything else: a TLS connection must not be read
    and written at the same time.
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

    def opened(self) -> None:
        """Let reads wait in the kernel from here on: a frame that comes alone costs one call, not two."""
        self.step = ""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _NAP)
        self._sock.settimeout(None)

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
        left = self.wait_until - time.monotonic()
        naps = not self.step and left > _NAP_SECONDS
        if self._drained and left > 0 and not naps:
            self._wait_for(select.POLLIN, left)
        count = self._received(0 if naps else socket.MSG_DONTWAIT)
        if not count:
            raise ConnectionLost("the exchange closed the TCP connection")
        arrived = self._block[:count].tobytes()
        self.buffered = self.buffered[self.at :] + arrived if self.at < len(self.buffered) else arrived
        self.at = 0

    def _received(self, flags: int) -> int:
        """Read into the block what is there, waiting for the first of it; return how many bytes, 0 at the end."""
        source = self._tls or self._sock
        try:
            count = source.recv_into(self._block, flags=flags)
        except (BlockingIOError, ssl.SSLWantReadError):
            count = self._retried(lambda: source.recv_into(self._block, flags=socket.MSG_DONTWAIT), select.POLLIN)
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
                return self._retried(lambda: self._sock.send(data, socket.MSG_DONTWAIT), select.POLLOUT)
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
