"""A cheap client that only counts: for measuring the exchange, not the client.

`python -m sandbox.exchange.counter ws://127.0.0.1:9443/stream --streams a/b --seconds 5` prints one JSON line.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from sandbox.exchange.frames import CLOSE, PING, PONG

_BLOCK = 256 * 1024
_MASK = b"\0\0\0\0"


@dataclass
class Counted:
    """What arrived: data frames and their size in bytes, pings, and the code of the close frame, if one came."""

    frames: int = 0
    size: int = 0
    pings: int = 0
    close_code: int | None = None
    close_reason: bytes = b""
    ended: bool = False


class CountingClient:
    """A raw socket on one WebSocket; every text or binary frame counts, nothing is decoded."""

    def __init__(self, url: str, receive_buffer: int = 0) -> None:
        parts = urlsplit(url)
        self.counted = Counted()
        self.answers_pings = True
        self._rest = b""
        self._closing = False
        self._socket = socket.socket()
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(10)
        self._socket.connect((parts.hostname or "", parts.port or 80))
        self._shake_hands(parts.path + (f"?{parts.query}" if parts.query else ""), parts.netloc)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def send(self, opcode: int, payload: bytes) -> None:
        """Send one masked frame (with a mask of zeros)."""
        length = len(payload)
        if length > 125:  # noqa: PLR2004 - the largest length that fits the second byte
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
        else:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
        self._socket.sendall(head + _MASK + payload)

    def send_close(self, code: int = 1000) -> None:
        """Begin the closing handshake; read on until `counted.close_code` is there."""
        self._closing = True
        self.send(CLOSE, struct.pack("!H", code))

    def read(self, timeout: float = 5.0) -> bool:
        """Count what is there; False when the connection ended or nothing came in time."""
        self._socket.settimeout(timeout)
        try:
            block = self._socket.recv(_BLOCK)
        except OSError:
            return False
        if not block:
            self.counted.ended = True
            return False
        self._count(self._rest + block)
        return True

    def drain(self, seconds: float) -> Counted:
        """Read until the server's close frame or the end of the connection, at most so long."""
        ends = time.monotonic() + seconds
        while self.counted.close_code is None and time.monotonic() < ends:
            if not self.read(max(ends - time.monotonic(), 0.001)):
                break
        return self.counted

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def _count(self, block: bytes) -> None:
        position, end = 0, len(block)
        frames = size = 0
        while end - position >= 2:  # noqa: PLR2004 - the shortest head
            opcode, length = block[position] & 0x0F, block[position + 1]
            start = position + 2
            if length == 126:  # noqa: PLR2004 - RFC 6455 5.2
                start += 2
                length = int.from_bytes(block[position + 2 : start], "big") if end >= start else end
            elif length == 127:  # noqa: PLR2004 - RFC 6455 5.2
                start += 8
                length = int.from_bytes(block[position + 2 : start], "big") if end >= start else end
            if start + length > end:
                break
            position = start + length
            if opcode < CLOSE:
                frames += 1
                size += length
            else:
                self._control(opcode, block[start:position])
        self._rest = block[position:]
        self.counted.frames += frames
        self.counted.size += size

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.counted.pings += 1
            if self.answers_pings and not self._closing:
                self.send(PONG, payload)
        elif opcode == CLOSE:
            self.counted.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.counted.close_reason = payload[2:]

    def _shake_hands(self, target: str, host: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            block = self._socket.recv(_BLOCK)
            if not block:
                raise ConnectionError("closed during the handshake")
            answer += block
        head, _, rest = answer.partition(b"\r\n\r\n")
        if b" 101 " not in head.partition(b"\r\n")[0]:
            raise ConnectionError(head.decode("latin-1"))
        self._count(rest)


def main() -> int:
    """Count for a while, close in the orderly way, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.exchange.counter", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--streams", default="", help="separated by /")
    parser.add_argument("--seconds", type=float, default=5.0)
    chosen = parser.parse_args()
    client = CountingClient(chosen.url)
    if chosen.streams:
        request = {"method": "SUBSCRIBE", "params": chosen.streams.split("/"), "id": 1}
        client.send(1, json.dumps(request).encode())
    began = time.monotonic()
    while time.monotonic() - began < chosen.seconds and client.read():
        pass
    seconds = time.monotonic() - began
    counted = client.counted
    figures: dict[str, float | int | None] = {
        "seconds": round(seconds, 3),
        "frames_per_second": round(counted.frames / seconds, 1),
        "megabytes_per_second": round(counted.size / seconds / 1e6, 2),
        "cpu_seconds": round(time.process_time(), 2),
    }
    with contextlib.suppress(OSError):
        client.send_close()
    client.drain(5)
    figures |= {"frames": counted.frames, "close_code": counted.close_code}
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
