"""WebSocket frames as a server writes them (RFC 6455 section 5.2): unmasked, ready for the transport."""

from __future__ import annotations

import struct

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
CONTINUATION = 0x0

_FINAL = 0x80
_SHORT = 126
_MEDIUM = 65_536
_CACHED = 4096
_MEDIUM_HEAD = struct.Struct("!BBH")
_LONG_HEAD = struct.Struct("!BBQ")

POLICY_VIOLATION = 1008


def frame(payload: bytes, opcode: int = TEXT, *, final: bool = True) -> bytes:
    """Put the header before one payload."""
    return _head(opcode | (_FINAL if final else 0), len(payload)) + payload


def text_frame(payload: bytes) -> bytes:
    """Frame a whole text; the header of a usual size comes from a table."""
    length = len(payload)
    if length < _CACHED:
        return _TEXT_HEADS[length] + payload
    return _head(_FINAL | TEXT, length) + payload


def close_frame(code: int | None, reason: bytes = b"") -> bytes:
    """Frame a close; without a code it has no body."""
    return frame(b"" if code is None else struct.pack("!H", code) + reason, CLOSE)


def fragments(payload: bytes, opcode: int, count: int) -> bytes:
    """One message cut into `count` frames."""
    size = max(-(-len(payload) // count), 1)
    parts = [payload[start : start + size] for start in range(0, len(payload), size)] or [b""]
    last = len(parts) - 1
    return b"".join(
        frame(part, CONTINUATION if number else opcode, final=number == last) for number, part in enumerate(parts)
    )


def _head(first: int, length: int) -> bytes:
    if length < _SHORT:
        return bytes((first, length))
    if length < _MEDIUM:
        return _MEDIUM_HEAD.pack(first, 126, length)
    return _LONG_HEAD.pack(first, 127, length)


_TEXT_HEADS = [_head(_FINAL | TEXT, length) for length in range(_CACHED)]
