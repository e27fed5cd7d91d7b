"""The load generator: a WebSocket server that sends frames encoded beforehand, in blocks.

`python -m benchmarks.load --load trades --count 500000 --window 40000 --progress FILE` says where it listens in a
line of JSON, serves one client (a SUBSCRIBE is answered) and sends when it is told `go` on standard input. Either
paced (`--rate`): each `--tick` the frames that are due, or with `--arrivals recorded` each group of frames when it
is due, spaced as frames of the exchange were; or closed-loop (`--window`): never more than that many
frames ahead of the count that FILE holds, so that the receiver's own speed sets the pace and no queue grows.

Its last line of JSON says how it went: how far it fell behind the pace at worst and how much of the time it had
nothing to do but wait, which shows that it was not the bottleneck. A block waits in `sendall` when the client does
not read. With `--blocks FILE` the times of all blocks are kept: frames up to which number, handed to the kernel
when (monotonic clock, ns), or due when, if that was more than 2 ms earlier; that tells the send time of each frame
without a mark in it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import mmap
import socket
import ssl
import struct
import sys
import threading
import time
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from benchmarks.arrivals import SPACINGS, recorded
from benchmarks.loads import LOADS, Encoder
from sandbox.exchange.frames import close_frame, text_frame

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

BLOCK_FRAMES = 2000
"""At most so many frames are handed to the kernel at once."""
LATE_SECONDS = 0.002
"""A block that is so late counts as sent when it was due: a client that does not read shall not look fast."""
POLL_SECONDS = 0.001
SPIN_SECONDS = 0.0002
HEADER_BYTES = 4
"""Of a WebSocket frame of 126 to 65,535 bytes, as nearly all are."""
CLIENT_SECONDS = 20.0
"""How long a client may take to connect."""
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_CLOSE = 0x8
_LENGTH_16 = 126
_COUNT = struct.Struct("=Q")


class Progress:
    """How many records are in the topics: written by one process, read by another."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _COUNT.size)

    @classmethod
    def create(cls, path: Path) -> Progress:
        """Make the file, at zero."""
        path.write_bytes(_COUNT.pack(0))
        return cls(path)

    @property
    def count(self) -> int:
        """The count."""
        return int(_COUNT.unpack_from(self._memory)[0])

    @count.setter
    def count(self, count: int) -> None:
        _COUNT.pack_into(self._memory, 0, count)


class Sent(NamedTuple):
    """How the sending went."""

    frames: int
    seconds: float
    behind_seconds: float
    """Behind the pace at worst; 0 in a closed loop, which has none."""
    waited: float
    """Share of the time in which it slept until a frame was due or the window let one through."""
    blocked: float
    """Share of the time in which the client's socket took nothing."""


class Frames:
    """The frames of a load in order, encoded a stretch ahead: all of them at once, unless there are too many."""

    def __init__(
        self, load: str, total: int, stretch: int | None = None, subscribed: Collection[str] | None = None
    ) -> None:
        self.total = total
        self.bytes = 0
        self._encoder = Encoder(load, subscribed)
        self._stretch = min(stretch or total, total)
        self._first = 0
        self._encoded = self._encoder.encode(self._stretch)

    def piece(self, start: int, stop: int) -> tuple[memoryview, int]:
        """Return what is to be sent of the frames from `start` on, and where it stops: at `stop` at the latest."""
        if start == self._first + len(self._encoded.ends):
            self._first = start
            self._encoded = self._encoder.encode(min(self._stretch, self.total - start))
        block, ends = self._encoded
        stop = min(stop, self._first + len(ends))
        start -= self._first
        piece = memoryview(block)[ends[start - 1] if start else 0 : ends[stop - self._first - 1]]
        self.bytes += len(piece)
        return piece, stop


class Pace(Protocol):
    """Says how many frames may have been sent by now."""

    def allowed(self) -> int: ...  # noqa: D102
    def behind(self, sent: int) -> float: ...  # noqa: D102
    def wait(self) -> None: ...  # noqa: D102


class Even:
    """So many a second, evenly."""

    def __init__(self, rate: float, tick: float) -> None:
        self._rate = rate
        self._tick = tick
        self._started_at = time.monotonic()

    def allowed(self) -> int:
        """Return how many are due."""
        return int((time.monotonic() - self._started_at) * self._rate)

    def behind(self, sent: int) -> float:
        """Return for how long the last of these has been due, in s."""
        return time.monotonic() - self._started_at - sent / self._rate

    def wait(self) -> None:
        """Wait a tick."""
        time.sleep(self._tick)


class Schedule:
    """Each frame at its own time; short gaps are spent spinning, since a sleep takes 0.1 ms longer than asked."""

    def __init__(self, due: Iterator[float]) -> None:
        self._due = due
        self._count = 0
        self._last = 0.0
        self._next = next(due, inf)
        self._started_at = time.monotonic()

    def allowed(self) -> int:
        """Return how many are due."""
        now = time.monotonic() - self._started_at
        while self._next <= now:
            self._count, self._last, self._next = self._count + 1, self._next, next(self._due, inf)
        return self._count

    def behind(self, sent: int) -> float:  # noqa: ARG002 - the last that was allowed is the last that was sent
        """Return for how long the last that was allowed has been due, in s."""
        return time.monotonic() - self._started_at - self._last

    def wait(self) -> None:
        """Wait for the next one."""
        left = self._started_at + self._next - time.monotonic()
        if left > SPIN_SECONDS:
            time.sleep(left - SPIN_SECONDS)
        while time.monotonic() - self._started_at < self._next:
            pass


class Window:
    """So many ahead of what has arrived."""

    def __init__(self, progress: Progress, window: int) -> None:
        self._progress = progress
        self._window = window

    def allowed(self) -> int:
        """Return how many the window lets through."""
        return self._progress.count + self._window

    def behind(self, sent: int) -> float:  # noqa: ARG002
        """Return 0: there is no pace to keep."""
        return 0.0

    def wait(self) -> None:
        """Wait a moment."""
        time.sleep(POLL_SECONDS)


class Sender:
    """Sends all frames over a socket as a schedule allows; keeps the time of each block."""

    def __init__(self, client: socket.socket, frames: Frames) -> None:
        self._client = client
        self._frames = frames
        self.blocks: list[tuple[int, int]] = []
        """Number of frames sent so far, and when (monotonic, ns) the last was handed to the kernel, or due."""

    def paced(self, rate: float, tick: float) -> Sent:
        """Send `rate` frames a second; each tick what is due, in blocks of what falls due in 2 ms at most."""
        return self._send(Even(rate, tick), max(1, min(BLOCK_FRAMES, int(rate * LATE_SECONDS))))

    def scheduled(self, due: Iterator[float]) -> Sent:
        """Send each frame when it is due, in s from now; those that are due together in one block."""
        return self._send(Schedule(due))

    def closed_loop(self, progress: Progress, window: int) -> Sent:
        """Send as fast as the window lets it."""
        return self._send(Window(progress, window))

    def _send(self, pace: Pace, most: int = BLOCK_FRAMES) -> Sent:
        total, sent, behind, waited, blocked = self._frames.total, 0, 0.0, 0.0, 0.0
        started_at = time.monotonic()
        while sent < total:
            allowed = min(pace.allowed(), total, sent + most)
            if allowed > sent:
                piece, sent = self._frames.piece(sent, allowed)
                late = pace.behind(sent)
                blocked += self._send_block(piece, sent, late if late > LATE_SECONDS else 0.0)
                behind = max(behind, pace.behind(sent))
            if pace.allowed() <= sent < total:
                before = time.monotonic()
                pace.wait()
                waited += time.monotonic() - before
        seconds = time.monotonic() - started_at
        return Sent(total, seconds, behind, waited / seconds, blocked / seconds)

    def _send_block(self, piece: memoryview, sent: int, late: float) -> float:
        before = time.monotonic_ns()
        self._client.sendall(piece)
        self.blocks.append((sent, before - int(late * 1e9)))
        return (time.monotonic_ns() - before) / 1e9


def accept(listener: socket.socket, tls: Path | None = None) -> tuple[socket.socket, list[str]]:
    """Take one client through its handshakes, and through its SUBSCRIBE unless its URL names the streams.

    Returns the streams of the SUBSCRIBE, too.
    """
    client, _ = listener.accept()
    client.settimeout(None)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        client = context.wrap_socket(client, server_side=True)
    request = b""
    while b"\r\n\r\n" not in request:
        request += client.recv(65536)
    lines = request.split(b"\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines[1:])}
    accepted = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + _GUID).digest())  # noqa: S324 - RFC 6455
    client.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accepted + b"\r\n\r\n"
    )
    streams: list[str] = []
    if b"streams=" not in lines[0]:
        streams = json.loads(_unmasked(client.recv(65536)))["params"]
        client.sendall(text_frame(b'{"result":null,"id":1}'))
    return client, streams


def _unmasked(frame: bytes) -> bytes:
    """Return the payload of a client's frame of less than 64 KiB."""
    start = 4 if frame[1] & 0x7F == _LENGTH_16 else 2
    mask, masked = frame[start : start + 4], frame[start + 4 :]
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))


def say_goodbye(client: socket.socket) -> None:
    """Answer the client's close frame, whenever it comes; anything else that it sends is ignored."""
    client.settimeout(600.0)
    try:
        while received := client.recv(65536):
            if received[0] & 0x0F == _CLOSE:
                client.sendall(close_frame(1000))
                break
    except OSError:  # gone without a word
        pass
    client.close()


def alone(frames: Frames) -> float:
    """Return how many frames a second go to a socket that is only read from, at full speed."""
    ours, theirs = socket.socketpair()
    reader = threading.Thread(target=_discard, args=(theirs,))
    reader.start()
    started_at = time.monotonic()
    sent = Sender(ours, frames).paced(1e12, 0.0)
    ours.close()
    reader.join()
    return sent.frames / (time.monotonic() - started_at)


def _discard(client: socket.socket) -> None:
    block = bytearray(1 << 18)
    with client:
        while client.recv_into(block):
            pass


def serve(arguments: argparse.Namespace) -> None:
    """Encode while the client starts, wait for it and for `go`, send, say how it went, answer the goodbye."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _say(event="load_started", port=listener.getsockname()[1])
        listener.settimeout(CLIENT_SECONDS)
        if arguments.subscribed:
            client, streams = accept(listener, arguments.tls)
            frames = Frames(arguments.load, arguments.count, arguments.stretch, streams)
        else:
            frames = Frames(arguments.load, arguments.count, arguments.stretch)
            client, streams = accept(listener, arguments.tls)
    _say(event="load_subscribed", streams=streams)
    sys.stdin.readline()
    sender, cpu_before = Sender(client, frames), time.process_time()
    _say(event="load_sending", at=time.monotonic())
    if arguments.window:
        sent = sender.closed_loop(Progress(arguments.progress), arguments.window)
    elif arguments.arrivals == "recorded":
        sent = sender.scheduled(recorded(arguments.count, arguments.rate, arguments.seed))
    else:
        sent = sender.paced(arguments.rate, arguments.tick)
    if arguments.blocks:
        arguments.blocks.write_text(json.dumps(sender.blocks))
    cost = {
        "cpu_seconds": time.process_time() - cpu_before,
        "bytes_a_frame": frames.bytes / frames.total - HEADER_BYTES,
    }
    _say(event="load_sent", **sent._asdict(), **cost)
    say_goodbye(client)


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Read the arguments and serve once, or measure the generator alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--load", choices=LOADS, default="trades")
    parser.add_argument("--count", type=int, default=200_000, help="frames in all")
    parser.add_argument(
        "--stretch", type=int, help="encode so many ahead, not all: for a load too long for memory"
    )
    parser.add_argument("--tls", type=Path, help="serve over TLS, with the key and the certificate of this file")
    parser.add_argument("--subscribed", action="store_true", help="send only what the client subscribed to")
    parser.add_argument("--rate", type=float, default=20_000, help="frames a second")
    parser.add_argument("--tick", type=float, default=0.001, help="seconds between blocks")
    parser.add_argument(
        "--arrivals", choices=SPACINGS, default="even", help="how they are spaced: benchmarks/arrivals.py"
    )
    parser.add_argument("--seed", type=int, default=7, help="of the recorded spacing")
    parser.add_argument("--window", type=int, help="instead of a rate: frames ahead of what --progress says")
    parser.add_argument("--progress", type=Path, help="file with the count of records in the topics")
    parser.add_argument("--blocks", type=Path, help="write the time of each block there")
    parser.add_argument(
        "--alone", action="store_true", help="only say how fast a socket that is just read from takes it"
    )
    arguments = parser.parse_args()
    if arguments.alone:
        _say(event="load_alone", frames_per_second=round(alone(Frames(arguments.load, arguments.count))))
    else:
        serve(arguments)


if __name__ == "__main__":
    main()
