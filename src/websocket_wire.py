"""Reading WebSocket frames in bulk: the one file that leans on the insides of websocket-client.

The library reads the socket two or three times a frame and walks each in Python (10 us a message); here one
read takes what has arrived, up to 256 KiB, and whole text frames are cut out of it (below 1 us a message).
All that is unusual (control frames, fragments, masks, reserved bits) is left to the library, which reads on
from the same buffer. A library without the parts that this leans on reads every frame, in its public way.
"""

from __future__ import annotations

import struct
import time
from http import HTTPStatus
from http.cookies import CookieError
from typing import TYPE_CHECKING, Any

import websocket

from src.read_ahead import ConnectionLost, ReadAheadSocket

if TYPE_CHECKING:
    from src.deadline import Deadline

MAX_FRAME = 16 * 1024 * 1024
"""The biggest depth frame seen is 34.5 KB; a frame or message beyond this is a broken or hostile peer's."""
_FIN_TEXT, _FIN_BINARY = 0x81, 0x82
_LENGTH_16 = 126
_USUAL = struct.Struct(">HH")
"""The header of a text frame of 126 to 65,535 bytes, as nearly all are: `_FIN_TEXT`, `_LENGTH_16`; the length."""
_USUAL_START = _FIN_TEXT << 8 | _LENGTH_16
_MASKED = 128


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


_NOTHING_THERE = frozenset(
    (
        *(HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.GONE),
        *(HTTPStatus.UPGRADE_REQUIRED, HTTPStatus.NOT_IMPLEMENTED),
    )
)
"""What servers and proxies answer under a path that they do not know, or know for plain HTTP only."""
_NOT_OPENED = (ConnectionLost, OSError, websocket.WebSocketException, ValueError, CookieError)
"""What opening raises: ValueError for a name that is none (idna), CookieError for a strange Set-Cookie."""


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
            self._ahead.opened()
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
        while self._in_bulk and not self._library_is_reading:
            if ahead.at >= len(ahead.buffered):
                ahead.fill()
            frames, unusual = self._cut()
            if frames:
                return frames, False
            if unusual:
                break
            ahead.fill()  # there is a part of a frame
        return self._read_unusual()

    def _cut(self) -> tuple[list[bytes], bool]:
        """Cut whole plain frames off the buffer; say whether the next one is for the library."""
        ahead = self._ahead
        buffered, at = ahead.buffered, ahead.at
        end = len(buffered)
        frames: list[bytes] = []
        unusual = False
        unpack = _USUAL.unpack_from
        while True:
            while (start := at + _USUAL.size) <= end:
                kind, length = unpack(buffered, at)
                stop = start + length
                if kind != _USUAL_START or stop > end:
                    break
                frames.append(buffered[start:stop])
                at = stop
            if end - at < 2:  # noqa: PLR2004 - the shortest header
                break
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
