"""Reading WebSocket frames in bulk: the one file that leans on the insides of websocket-client.

The library reads the socket two or three times a frame and walks each in Python (10 us a message); here one
read takes what has arrived, up to 256 KiB, and whole text frames are cut out of it (below 1 us a message).
All that is unusual (control frames, fragments, masks, extensions) is left to the library, which reads on
from the same buffer.
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
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import websocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from src.deadline import Deadline

T = TypeVar("T")

READ_SIZE = 256 * 1024
MAX_FRAME = 16 * 1024 * 1024
"""The biggest depth frame seen is 34.5 KB; a length beyond this is a broken or hostile peer."""
_FIN_TEXT, _FIN_BINARY = 0x81, 0x82
_LENGTH_16, _LENGTH_64 = 126, 127
_MASKED = 128


class ConnectionLost(Exception):  # noqa: N818 - named after the fact
    """The connection cannot be used any more; the message says why."""


class WentSilent(ConnectionLost):
    """No frame of any kind came for the settable time, although the TCP session may live."""


class Woken(Exception):  # noqa: N818 - named after the fact
    """Somebody called `wake()` while this thread waited for the socket."""


class ReadAheadSocket:
    """A non-blocking TCP or TLS connection with a read buffer in front and one way of waiting.

    Quacks like a socket as far as websocket-client uses one. Every wait, from connecting on, ends at
    `wait_until`, a moment of the monotonic clock, with TimeoutError however the bytes trickle in; and with
    `Woken` as soon as another thread calls `wake()`. Only one thread may do anything else: a TLS
    connection must not be read and written at the same time.
    """

    def __init__(self) -> None:
        self._sock = socket.socket()
        self._block = memoryview(bytearray(READ_SIZE))
        self._poll = select.poll()
        self._woken, self._waker = socket.socketpair()
        self.buffered = b""
        self.at = 0
        self.wait_until = float("inf")
        self.heeds_wake = True

    def connect(self, url: str) -> None:
        """Resolve the name, open TCP, and TLS for wss://; OSError when no address answers."""
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "wss"
        addresses = socket.getaddrinfo(host, parts.port or (443 if secure else 80), type=socket.SOCK_STREAM)
        failure: OSError | None = None
        for family, kind, protocol, _, address in addresses:
            try:
                self._connect_to(socket.socket(family, kind, protocol), address)
                break
            except OSError as error:
                failure = error
        else:
            raise failure or OSError(f"{host} has no address")
        if secure:
            self._secure(host)

    def _connect_to(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        self._sock.close()
        self._sock = sock
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sock.connect_ex(address) not in (0, errno.EINPROGRESS):
            sock.connect(address)  # raises what went wrong
        self._wait(select.POLLOUT)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))

    def _secure(self, host: str) -> None:
        context = ssl.create_default_context()
        tls = context.wrap_socket(self._sock, server_hostname=host, do_handshake_on_connect=False)
        self._sock = tls
        self._retried(tls.do_handshake)

    def _retried(self, operation: Callable[[], T]) -> T:
        """Do what may have to wait for the socket."""
        while True:
            try:
                return operation()
            except (ssl.SSLWantReadError, BlockingIOError):
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)

    def _wait(self, for_event: int) -> None:
        left = self.wait_until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._poll.register(self._sock, for_event)
        if self.heeds_wake:
            self._poll.register(self._woken, select.POLLIN)
        ready = self._poll.poll(min(left, 3600.0) * 1000 + 1)
        self._poll.unregister(self._sock)
        if self.heeds_wake and any(descriptor == self._woken.fileno() for descriptor, _ in ready):
            raise Woken

    def wake(self) -> None:
        """End the wait of the thread that uses this socket, now and each later one; from any thread."""
        with contextlib.suppress(OSError):  # closed already
            self._waker.send(b"w")

    def ignore_wake(self) -> None:
        """Wait for the socket alone from here on."""
        if self.heeds_wake:
            self.heeds_wake = False
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._woken)

    def fill(self) -> None:
        """Wait for bytes and append them to what is buffered; ConnectionLost at the end of the stream."""
        count = self._retried(lambda: self._sock.recv_into(self._block))
        if not count:
            raise ConnectionLost("the exchange closed the TCP connection")
        self.buffered = self.buffered[self.at :] + self._block[:count].tobytes()
        self.at = 0

    def recv(self, size: int) -> bytes:
        """Return 1 to `size` bytes, from the buffer first."""
        if self.at >= len(self.buffered):
            self.fill()
        start = self.at
        self.at = min(start + size, len(self.buffered))
        return self.buffered[start : self.at]

    def send(self, data: bytes) -> int:
        """Send some of `data`, waiting for room; return how much."""
        try:
            return self._retried(lambda: self._sock.send(data))
        except BlockingIOError:
            return 0

    def gettimeout(self) -> float:
        """Say that reads may wait; how long is `wait_until`'s business."""
        return 1.0

    def settimeout(self, timeout: float | None) -> None:
        """Ignore the library's timeout."""

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._sock.fileno()

    def shutdown(self, how: int) -> None:
        """End the TCP session."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close the descriptors; from the thread that uses the socket."""
        for each in (self._sock, self._woken, self._waker):
            each.close()

    @property
    def _closed(self) -> bool:  # asked for by WebSocket.shutdown()
        return self._sock.fileno() == -1


class FrameReader(websocket.WebSocket):  # type: ignore[misc]  # websocket-client carries no types
    """A WebSocket that gives out text frames in chunks; used by one thread, woken by any."""

    def __init__(self) -> None:
        # The JSON decoder validates the bytes; the library's check costs 33 us a message.
        super().__init__(skip_utf8_validation=True)
        self._ahead = ReadAheadSocket()

    def open(self, url: str, deadline: Deadline) -> None:
        """Connect and shake hands, all of it within the deadline; OSError or WebSocketException when not."""
        self._ahead.wait_until = time.monotonic() + deadline.remaining()
        self._ahead.connect(url)
        self.connect(url, socket=self._ahead, redirect_limit=0, suppress_origin=True)

    def read(self, wait_until: float) -> tuple[list[bytes], bool]:
        """Wait for frames; return the payloads of text and binary ones, and whether a close frame came.

        The list is empty after a control frame (a ping is answered here). `wait_until` is a moment of
        the monotonic clock; TimeoutError when nothing whole came by then, `Woken` after `wake()`.
        """
        ahead = self._ahead
        ahead.wait_until = wait_until
        while True:
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
        unusual = self._library_is_reading()
        while not unusual and end - at >= 2:  # noqa: PLR2004 - the shortest header
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
                    raise ConnectionLost(f"a frame of {length} bytes was announced, more than {MAX_FRAME}")
            stop = start + length
            if stop > end:
                break
            frames.append(buffered[start:stop])
            at = stop
        ahead.at = at
        return frames, unusual

    def _library_is_reading(self) -> bool:
        """Whether the library holds a part of a frame or of a fragmented message."""
        parts = self.frame_buffer
        return bool(parts.header or parts.recv_buffer or self.cont_frame.recving_frames)

    def _read_unusual(self) -> tuple[list[bytes], bool]:
        try:
            opcode, frame = self.recv_data_frame(control_frame=True)
        except websocket.WebSocketTimeoutException:
            raise TimeoutError from None
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            self.close_frame = frame
            return [], True
        is_data = opcode in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY)
        return ([frame.data] if is_data else []), False

    def request(self, text: bytes, wait_until: float) -> None:
        """Send a text frame; TimeoutError when the peer does not take it until then."""
        self._ahead.wait_until = wait_until
        self.send(text)

    def close_reason(self) -> str:
        """Describe the peer's close frame: code and reason, as sent."""
        data = self.close_frame.data if self.close_frame else b""
        if len(data) < 2:  # noqa: PLR2004 - a close frame may carry no code
            return "closed by the exchange without a code"
        (code,) = struct.unpack("!H", data[:2])
        return f"closed by the exchange: {code} {data[2:].decode('utf-8', 'replace')}".rstrip()

    def wake(self) -> None:
        """End the wait of the reading thread with `Woken`; from any thread."""
        self._ahead.wake()

    def say_goodbye(self, wait_until: float) -> None:
        """Send a close frame; what the peer sent before its answer can still be read."""
        self._ahead.ignore_wake()
        self._ahead.wait_until = wait_until
        self.send_close()

    def release(self) -> None:
        """Close the descriptors."""
        self._ahead.close()
