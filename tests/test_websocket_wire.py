"""The wire over real loopback sockets: every kind of frame, every way to hang, TLS, and being woken."""

from __future__ import annotations

import base64
import gc
import hashlib
import random
import re
import socket
import ssl
import struct
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import websocket
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.exchange.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, fragments, frame
from src import websocket_wire
from src.deadline import Deadline
from src.read_ahead import READ_SIZE, ConnectionLost, ReadAheadSocket, Woken
from src.websocket_wire import MAX_FRAME, FrameReader, NotOpened, WentSilent, has_known_insides

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 10.0
AT_ONCE = 0.2
PAYLOAD = b'{"e":"trade","s":"BTCUSDT"}'


def soon() -> float:
    return time.monotonic() + PATIENCE


def shake_hands(peer: socket.socket, behind: bytes = b"") -> None:
    """Answer the handshake as a server does, with bytes right behind the answer."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += peer.recv(4096)
    key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324
    peer.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + behind
    )


@contextmanager
def serving(behave: Callable[[socket.socket], object]) -> Iterator[int]:
    """Listen on a port; every connection is handed to `behave`, one after the other, and closed after it."""
    stopping = threading.Event()
    current: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        while not stopping.is_set():
            with suppress(OSError), listener.accept()[0] as peer:
                current[:] = [peer]
                if not stopping.is_set():
                    behave(peer)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, listener)
        try:
            yield listener.getsockname()[1]
        finally:
            stopping.set()
            with suppress(OSError, IndexError):
                current[0].shutdown(socket.SHUT_RDWR)
            with socket.create_connection(listener.getsockname()):
                served.result(PATIENCE)


@contextmanager
def opened(behind: bytes = b"") -> Iterator[tuple[FrameReader, socket.socket]]:
    """Open a reader, and give it together with the server's end of its connection."""

    def answer(listener: socket.socket) -> socket.socket:
        peer, _ = listener.accept()
        shake_hands(peer, behind)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer

    reader = FrameReader()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        stack.callback(reader.release)
        answered = pool.submit(answer, listener)
        reader.open(f"ws://127.0.0.1:{listener.getsockname()[1]}/stream", Deadline(PATIENCE))
        peer = answered.result(PATIENCE)
        stack.callback(peer.close)
        yield reader, peer


def read_all(reader: FrameReader, count: int) -> list[bytes]:
    """Read until there are so many payloads."""
    payloads: list[bytes] = []
    while len(payloads) < count:
        frames, closed = reader.read(soon())
        assert not closed
        payloads += frames
    return payloads


def read_what_came(reader: FrameReader) -> list[bytes]:
    """Read without waiting; on loopback what was sent is there."""
    payloads: list[bytes] = []
    with suppress(TimeoutError):
        while True:
            payloads += reader.read(0.0)[0]
    return payloads


def from_client(peer: socket.socket) -> websocket.ABNF:
    """Read one frame of the client with the library, which takes off the mask."""
    peer.settimeout(PATIENCE)
    server = websocket.WebSocket()
    server.sock = peer
    return server.recv_frame()


def library_reads(stream: bytes) -> list[bytes]:
    """Read a stream of frames with the library alone."""
    left, right = socket.socketpair()
    with left, right, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: (left.sendall(stream), left.shutdown(socket.SHUT_WR)))
        client = websocket.WebSocket(skip_utf8_validation=True)
        client.sock = right
        payloads = []
        with suppress(websocket.WebSocketConnectionClosedException):
            while True:
                payloads.append(client.recv_data()[1])
        sending.result()
    return payloads


def masked(payload: bytes, opcode: int = TEXT) -> bytes:
    """Frame a payload as only a client should."""
    return websocket.ABNF.create_frame(payload, opcode).format()


LENGTHS = (0, 1, 125, 126, 65_535, 65_536, 1_048_576)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_frame_of_every_length_class_comes_out_whole_without_the_library(length: int, opcode: int) -> None:
    payload = random.Random(length).randbytes(length)
    with opened() as (reader, peer), ThreadPoolExecutor(1) as pool:
        reader.frame_buffer.recv = None
        pool.submit(peer.sendall, frame(payload, opcode) + frame(PAYLOAD))
        assert read_all(reader, 2) == [payload, PAYLOAD]


def test_many_frames_in_one_segment_are_one_chunk() -> None:
    payloads = [b"%d" % number for number in range(5_000)]
    with opened() as (reader, peer):
        peer.sendall(b"".join(map(frame, payloads)))
        chunk, closed = reader.read(soon())
        assert chunk == payloads[: len(chunk)]
        assert len(chunk) > 1_000
        assert not closed
        assert chunk + read_all(reader, len(payloads) - len(chunk)) == payloads


def test_one_byte_a_segment_gives_the_same_frames() -> None:
    stream = frame(PAYLOAD) + frame(b"p", PING) + fragments(b"abcdef", TEXT, 3) + frame(b"x" * 126) + masked(b"m")
    with opened() as (reader, peer):
        payloads = []
        for byte in stream:
            peer.sendall(bytes([byte]))
            payloads += read_what_came(reader)
        assert payloads == [PAYLOAD, b"abcdef", b"x" * 126, b"m"]
        assert from_client(peer).data == b"p"


def test_frames_right_behind_the_answer_to_the_handshake_are_not_lost() -> None:
    with opened(behind=frame(b"one") + frame(b"two") + frame(b"three")[:3]) as (reader, peer):
        assert read_all(reader, 2) == [b"one", b"two"]
        peer.sendall(frame(b"three")[3:])
        assert read_all(reader, 1) == [b"three"]


messages = st.one_of(
    st.builds(frame, st.binary(max_size=300), st.sampled_from([TEXT, BINARY])),
    st.builds(lambda size: frame(b"z" * size), st.sampled_from([125, 126, 127, 65_535, 65_536])),
    st.builds(fragments, st.binary(max_size=300), st.sampled_from([TEXT, BINARY]), st.integers(1, 5)),
    st.builds(
        lambda part, between: (
            frame(part, TEXT, final=False)
            + frame(between, PING)
            + frame(b"", CONTINUATION, final=False)
            + frame(part, CONTINUATION)
        ),
        st.binary(max_size=200),
        st.binary(max_size=125),
    ),
    st.builds(masked, st.binary(max_size=300)),
    st.builds(frame, st.binary(max_size=125), st.sampled_from([PING, PONG])),
)


@settings(max_examples=80)
@given(parts=st.lists(messages, max_size=8), cuts=st.lists(st.floats(0, 1), max_size=12))
def test_however_the_stream_is_cut_the_payloads_are_those_that_the_library_reads(
    parts: list[bytes], cuts: list[float]
) -> None:
    stream = b"".join(parts)
    places = sorted({0, len(stream), *(int(cut * len(stream)) for cut in cuts)})
    payloads = []
    with opened() as (reader, peer):
        for start, end in pairwise(places):
            peer.sendall(stream[start:end])
            payloads += read_what_came(reader)
    assert payloads == library_reads(stream)


def test_the_library_has_the_parts_that_reading_in_bulk_leans_on() -> None:
    """When this fails the library has changed: see `FrameReader`; until then it reads every frame itself."""
    assert has_known_insides(websocket.WebSocket())
    reader = FrameReader()
    reader.release()
    assert reader._in_bulk
    assert not has_known_insides(SimpleNamespace(frame_buffer=None, cont_frame=None))
    assert not has_known_insides(websocket.WebSocket(), library=object)


@pytest.fixture
def strange_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing of the library's insides be known, nor ours be called by it."""
    monkeypatch.setattr(websocket_wire, "has_known_insides", lambda _: False)
    monkeypatch.delattr(FrameReader, "_recv")
    monkeypatch.delattr(FrameReader, "_send")
    monkeypatch.delattr(FrameReader, "_cut")


def test_a_frame_that_comes_alone_is_waited_for_and_read_with_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as (reader, peer):
        peer.sendall(frame(PAYLOAD))
        read_all(reader, 1)
        monkeypatch.setattr(reader._ahead, "_wait_for", lambda *_: pytest.fail("the socket was polled"))
        for _ in range(3):
            later = threading.Timer(0.03, peer.sendall, [frame(PAYLOAD)])
            later.start()
            assert read_all(reader, 1) == [PAYLOAD]
            later.join()


@pytest.mark.parametrize("after", [0.02, 0.3])
def test_a_quiet_connection_is_woken_soon_and_its_time_is_kept(after: float) -> None:
    with opened() as (reader, _):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            reader.read(began + after)
        assert after <= time.monotonic() - began < after + 0.5
        threading.Timer(after, reader.wake).start()
        began = time.monotonic()
        with pytest.raises(Woken):
            reader.read(soon())
        assert after - 0.01 <= time.monotonic() - began < after + 0.5


@pytest.mark.usefixtures("strange_library")
def test_a_library_with_other_insides_reads_every_frame() -> None:
    stream = frame(PAYLOAD) + frame(b"p", PING) + fragments(b"abcdef", TEXT, 3) + frame(b"x" * 126) + masked(b"m")
    payloads = []
    with opened() as (reader, peer):
        for start in range(0, len(stream), 7):
            peer.sendall(stream[start : start + 7])
            payloads += read_what_came(reader)
        assert payloads == [PAYLOAD, b"abcdef", b"x" * 126, b"m"]
        assert from_client(peer).data == b"p"
        with pytest.raises(TimeoutError):
            reader.read(time.monotonic() + 0.05)
        threading.Timer(0.1, reader.wake).start()
        with pytest.raises(Woken):
            reader.read(soon())
        reader.say_goodbye(soon())
        peer.sendall(frame(PAYLOAD) + close_frame(1001, b"gone"))
        assert read_all(reader, 1) == [PAYLOAD]
        assert reader.read(soon()) == ([], True)
        assert (reader.close_code, reader.close_text) == (1001, "gone")


def test_a_library_that_still_calls_us_is_not_asked_for_its_insides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_wire, "has_known_insides", lambda _: False)
    with opened() as (reader, peer):
        peer.sendall(frame(PAYLOAD) + frame(b"y" * 200))
        reader.frame_buffer = SimpleNamespace(recv_frame=reader.frame_buffer.recv_frame)
        assert read_all(reader, 2) == [PAYLOAD, b"y" * 200]


@pytest.mark.usefixtures("strange_library")
def test_a_library_with_other_insides_notices_the_end_of_the_stream() -> None:
    with opened() as (reader, peer):
        peer.sendall(frame(PAYLOAD) + frame(b"half")[:3])
        peer.shutdown(socket.SHUT_WR)
        assert read_all(reader, 1) == [PAYLOAD]
        with pytest.raises((ConnectionLost, websocket.WebSocketException)):
            reader.read(soon())


def test_pings_between_fragments_are_answered_with_their_payload() -> None:
    first, second = frame(b"ab", TEXT, final=False), frame(b"cd", CONTINUATION)
    with opened() as (reader, peer):
        peer.sendall(first + frame(b"1790134675605", PING) + frame(b"", PING) + second)
        assert read_all(reader, 1) == [b"abcd"]
        answers = [from_client(peer), from_client(peer)]
        assert [(each.opcode, each.data) for each in answers] == [(PONG, b"1790134675605"), (PONG, b"")]


def test_control_frames_and_fragments_are_signs_of_life() -> None:
    with opened() as (reader, peer):
        for sign in (frame(b"", PONG), frame(b"now", PING), frame(b"ab", TEXT, final=False)):
            peer.sendall(sign)
            assert reader.read(soon()) == ([], False)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(bytes([0xC1, 0]), id="reserved bit 1"),
        pytest.param(bytes([0x91, 0]), id="reserved bit 3"),
        pytest.param(bytes([0x83, 0]), id="reserved data opcode"),
        pytest.param(bytes([0x8B, 0]), id="reserved control opcode"),
        pytest.param(frame(b"", CONTINUATION), id="continuation of nothing"),
        pytest.param(frame(b"a", TEXT, final=False) + frame(b"b", TEXT), id="text inside a message"),
        pytest.param(frame(b"", PING, final=False), id="fragmented ping"),
        pytest.param(frame(b"p" * 126, PING), id="long ping"),
        pytest.param(frame(b"\0", CLOSE), id="close with half a code"),
        pytest.param(close_frame(1005), id="close with a code that is never sent"),
    ],
)
def test_a_frame_against_the_protocol_ends_the_connection_behind_the_frames_before_it(broken: bytes) -> None:
    with opened() as (reader, peer):
        peer.sendall(frame(b"good") + broken + frame(b"never"))
        assert read_all(reader, 1) == [b"good"]
        with pytest.raises(websocket.WebSocketException):
            read_all(reader, 1)


@pytest.mark.parametrize("first", [0x81, 0x82, 0x01, 0x80, 0x89, 0x88])
@pytest.mark.parametrize("mask", [0, 128])
@pytest.mark.parametrize("length", [MAX_FRAME + 1, 2**62, 2**64 - 1])
def test_an_absurd_length_is_refused_before_the_bytes_come(first: int, mask: int, length: int) -> None:
    header = struct.pack("!BBQ", first, mask | 127, length) + bytes(4 if mask else 0)
    with opened() as (reader, peer):
        peer.sendall(frame(b"good") + header + b"x")
        assert read_all(reader, 1) == [b"good"]
        with pytest.raises(ConnectionLost, match=f"a frame of {length} bytes was announced"):
            reader.read(soon())


def test_a_message_in_fragments_is_bounded_too() -> None:
    part = frame(b"x" * (MAX_FRAME // 8), CONTINUATION, final=False)
    with opened() as (reader, peer), ThreadPoolExecutor(1) as pool:
        sent = pool.submit(peer.sendall, frame(b"x", TEXT, final=False) + part * 9)
        with pytest.raises(ConnectionLost, match="in fragments"):
            read_all(reader, 1)
        reader.release()
        with suppress(OSError):
            sent.result(PATIENCE)


@pytest.mark.parametrize(
    ("closing", "reason"),
    [
        (close_frame(1008, b"Too many requests"), "closed by the exchange: 1008 Too many requests"),
        (close_frame(1001), "closed by the exchange: 1001"),
        (close_frame(1008, b"\xff"), "closed by the exchange: 1008 \ufffd"),
        (close_frame(4321, b"own"), "closed by the exchange: 4321 own"),
        (close_frame(None), "closed by the exchange without a code"),
        pytest.param(masked(struct.pack("!H", 1001), CLOSE), "closed by the exchange: 1001", id="masked"),
    ],
)
def test_a_close_frame_in_the_middle_of_a_chunk_comes_after_the_frames_before_it(
    closing: bytes, reason: str
) -> None:
    with opened() as (reader, peer):
        peer.sendall(frame(b"one") + frame(b"two") + closing + frame(b"behind"))
        assert reader.read(soon()) == ([b"one", b"two"], False)
        assert reader.read(soon()) == ([], True)
        assert reader.close_reason() == reason
        assert from_client(peer).opcode == CLOSE


@pytest.mark.parametrize("half", [b"", frame(PAYLOAD)[:1], frame(PAYLOAD)[:9], frame(b"p" * 9, PING)[:5]])
def test_the_end_of_the_stream_comes_after_the_frames_before_it(half: bytes) -> None:
    with opened() as (reader, peer):
        peer.sendall(frame(b"last") + half)
        peer.close()
        assert reader.read(soon()) == ([b"last"], False)
        with pytest.raises(ConnectionLost, match="closed the TCP connection"):
            reader.read(soon())


def test_a_reset_connection_is_lost() -> None:
    with opened() as (reader, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(ConnectionResetError):
            reader.read(soon())


def test_what_a_peer_sent_before_it_hung_up_is_read_although_it_cannot_be_answered_any_more() -> None:
    with opened() as (reader, peer):
        reader.request(b"never read: closing with it unread resets the connection", soon())
        peer.sendall(b"".join(frame(b"%d" % n) + frame(b"ping", PING) for n in range(5)) + close_frame(1001))
        peer.close()
        assert read_all(reader, 5) == [b"0", b"1", b"2", b"3", b"4"]
        assert reader.read(soon()) == ([], False)
        assert reader.read(soon()) == ([], True)
        assert reader.close_reason() == "closed by the exchange: 1001"


def test_a_request_larger_than_every_buffer_gets_through_to_a_slow_peer_without_spinning() -> None:
    request = b"r" * 16_000_000
    with opened() as (reader, peer), ThreadPoolExecutor(1) as pool:
        peer.sendall(frame(b"waiting to be read meanwhile"))

        def read_late() -> bytes:
            threading.Event().wait(0.6)
            return bytes(from_client(peer).data)

        received = pool.submit(read_late)
        busy = time.thread_time()
        reader.request(request, soon())
        busy = time.thread_time() - busy
        assert received.result(PATIENCE) == request
        assert busy < 0.4
        assert read_all(reader, 1) == [b"waiting to be read meanwhile"]


def test_a_peer_that_takes_nothing_is_given_up() -> None:
    with opened() as (reader, _), pytest.raises(ConnectionLost, match="takes nothing"):
        reader.request(b"r" * 16_000_000, time.monotonic() + 0.2)


def test_a_goodbye_sends_one_close_frame_and_reads_on_up_to_the_answer() -> None:
    with opened() as (reader, peer):
        reader.wake()
        with pytest.raises(Woken):
            reader.read(soon())
        reader.say_goodbye(soon())
        assert from_client(peer).opcode == CLOSE
        peer.sendall(frame(b"on its way") + close_frame(1000))
        peer.shutdown(socket.SHUT_WR)
        assert reader.read(soon()) == ([b"on its way"], False)
        assert reader.read(soon()) == ([], True)
        reader.release()
        assert peer.recv(100) == b""


def test_the_buffer_never_holds_more_than_one_frame_and_one_read() -> None:
    size, count = 700_000, 40
    with opened() as (reader, peer), ThreadPoolExecutor(1) as pool:
        pool.submit(peer.sendall, frame(b"x" * size) * count)
        received = largest = 0
        while received < count:
            received += len(reader.read(soon())[0])
            largest = max(largest, len(reader._ahead.buffered))
    assert largest <= size + 10 + READ_SIZE


def test_released_readers_leave_no_buffers_to_the_garbage_collector() -> None:
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(100):
            FrameReader().release()
        assert tracemalloc.get_traced_memory()[0] < 4 * READ_SIZE
    finally:
        tracemalloc.stop()
        gc.enable()


def test_what_has_arrived_is_read_even_when_the_time_is_up() -> None:
    with opened() as (reader, peer):
        peer.sendall(frame(b"p", PING) + frame(b"late"))
        assert reader.read(0.0) == ([], False)
        assert reader.read(0.0) == ([b"late"], False)
        with pytest.raises(TimeoutError):
            reader.read(0.0)


def test_silence_is_a_timeout_however_slowly_a_frame_drips() -> None:
    with opened() as (reader, peer):
        peer.sendall(frame(PAYLOAD)[:-1])
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            reader.read(began + 0.1)
        assert time.monotonic() - began >= 0.1
        peer.sendall(frame(PAYLOAD)[-1:])
        assert read_all(reader, 1) == [PAYLOAD]
    assert issubclass(WentSilent, ConnectionLost)


def wait_for_the_end(peer: socket.socket) -> None:
    """Read until the client hangs up."""
    while peer.recv(65_536):
        pass


def drip(peer: socket.socket) -> None:
    """Answer the handshake one byte at a time, without end."""
    peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
    ends = soon()
    while time.monotonic() < ends:
        peer.sendall(b"x")
        threading.Event().wait(0.01)


def flood(peer: socket.socket) -> None:
    """Answer the handshake with headers without end, as fast as they are taken."""
    peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
    ends = soon()
    while time.monotonic() < ends:
        peer.sendall(b"X-Header: value\r\n" * 10_000)


def endless_body(peer: socket.socket) -> None:
    """Refuse with a page that never ends."""
    peer.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000000000000\r\n\r\n")
    ends = soon()
    while time.monotonic() < ends:
        peer.sendall(b"no" * 10_000)


HANGING = [
    pytest.param("ws", wait_for_the_end, "WebSocket handshake", id="accepts and says nothing"),
    pytest.param("ws", drip, "WebSocket handshake", id="drips the handshake"),
    pytest.param("ws", flood, "WebSocket handshake", id="floods the handshake"),
    pytest.param("ws", endless_body, "WebSocket handshake", id="endless refusal"),
    pytest.param("wss", wait_for_the_end, "TLS handshake", id="stalls in TLS"),
    pytest.param("ws", None, "TCP connection", id="never accepts"),
]


@contextmanager
def hanging(scheme: str, behave: Callable[[socket.socket], object] | None) -> Iterator[str]:
    """Give the URL of a server that hangs in its own way; without a behaviour TCP itself is never accepted."""
    if behave is not None:
        with serving(behave) as port:
            yield f"{scheme}://127.0.0.1:{port}/stream"
        return
    with full_backlog() as port:
        yield f"{scheme}://127.0.0.1:{port}/stream"


@contextmanager
def full_backlog(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Listen with a backlog that is full, so that further SYNs stay unanswered."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, ExitStack() as stack:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)  # noqa: FBT003
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextmanager
def reader_that_opens() -> Iterator[FrameReader]:
    reader = FrameReader()
    try:
        yield reader
    finally:
        reader.release()


def why_not_opened(url: str) -> str:
    """Try to open a URL; return why that failed."""
    with reader_that_opens() as reader, pytest.raises(NotOpened) as failed:
        reader.open(url, Deadline(PATIENCE))
    return str(failed.value)


@pytest.mark.parametrize(("scheme", "behave", "step"), HANGING)
def test_whatever_hangs_while_opening_ends_at_the_deadline_as_a_whole(
    scheme: str, behave: Callable[[socket.socket], object] | None, step: str
) -> None:
    with hanging(scheme, behave) as url, reader_that_opens() as reader:
        began = time.monotonic()
        with pytest.raises(NotOpened, match=f"the {step} failed: not done in time"):
            reader.open(url, Deadline(0.5))
        assert 0.5 <= time.monotonic() - began < 5.0


@pytest.mark.parametrize(("scheme", "behave", "step"), HANGING)
def test_whatever_hangs_while_opening_can_be_woken_at_once(
    scheme: str, behave: Callable[[socket.socket], object] | None, step: str
) -> None:
    with hanging(scheme, behave) as url:
        took = [seconds_to_wake(lambda reader: reader.open(url, Deadline(PATIENCE)), step) for _ in range(3)]
    assert min(took) < AT_ONCE


def seconds_to_wake(work: Callable[[FrameReader], object], step: str | None = None) -> float:
    """Let a thread work with a reader, wake it in the middle, and measure how long it still took."""
    ended: list[float] = []

    def run(reader: FrameReader) -> None:
        with pytest.raises(Woken):
            work(reader)
        ended.append(time.monotonic())

    with reader_that_opens() as reader, ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, reader)
        while step and reader._ahead.step != step:
            threading.Event().wait(0.001)
        threading.Event().wait(0.05)
        woken = time.monotonic()
        reader.wake()
        running.result(PATIENCE)
    return ended[0] - woken


def test_a_reader_that_waits_for_frames_is_woken_at_once_and_from_then_on() -> None:
    with opened() as (reader, _), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.read, soon())
        waking = threading.Thread(target=lambda: [reader.wake() for _ in range(300_000)], daemon=True)
        waking.start()  # more often than a socket pair holds
        waking.join(PATIENCE)
        assert not waking.is_alive()
        with pytest.raises(Woken):
            waiting.result(PATIENCE)
        with pytest.raises(Woken):
            reader.read(soon())


def test_a_reader_whose_socket_never_runs_dry_is_woken_at_once() -> None:
    def torrent(peer: socket.socket) -> None:
        shake_hands(peer)
        ends = soon()
        while time.monotonic() < ends:
            peer.sendall(frame(PAYLOAD) * 20_000)

    def read_on(reader: FrameReader) -> None:
        reader.open(url, Deadline(PATIENCE))
        while True:
            reader.read(soon())

    with serving(torrent) as port:
        url = f"ws://127.0.0.1:{port}/stream"
        took = [seconds_to_wake(read_on) for _ in range(3)]
    assert min(took) < AT_ONCE


def test_an_address_that_does_not_answer_leaves_time_for_the_next_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, full_backlog() as dead_port:
        ahead = ReadAheadSocket()
        began = time.monotonic()
        ahead.wait_until = began + 6.0
        stream = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        ahead.connect_to_any([(*stream, ("127.0.0.1", dead_port)), (*stream, listener.getsockname())])
        listener.accept()[0].close()
        assert 3.0 <= time.monotonic() - began < 6.0
        assert ahead.wait_until == began + 6.0
        ahead.release()


def refusing(answer: bytes) -> Callable[[socket.socket], None]:
    def behave(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(answer)
        peer.shutdown(socket.SHUT_WR)
        wait_for_the_end(peer)

    return behave


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nnope!", "answered 403 Forbidden$"),
        (b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\n\r\n", "429 Too Many Requests, retry after 7 s$"),
        (b"HTTP/1.1 503\r\nContent-Length: 0\r\n\r\n", "answered 503$"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "answered 200 OK$"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 99\r\n\r\ncut", "closed the TCP connection"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: many\r\n\r\n", "Invalid content-length"),
        (b"HTTP/1.1 301 Moved\r\nLocation: wss://else.where/\r\n\r\n", r"redirected to wss://else.where/ \(301\)"),
        (b"HTTP/1.1 307 Moved\r\n\r\n", r"redirected to None \(307\)"),
        (
            b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "Invalid WebSocket Header",
        ),
        (b"HTTP/1.1 301 Moved\r\nSet-Cookie: a,b=c\r\n\r\n", "Illegal key"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "Invalid status line"),
        (b"HTTP/1.1 101 ok\r\nnonsense\r\n\r\n", "Invalid header"),
        (b"HTTP/1.1 101 \xff\r\n", "not valid UTF-8"),
        (b"\r\n\r\n", "answered None"),
        (b"", "closed the TCP connection"),
    ],
)
def test_an_answer_that_is_no_handshake_is_a_failed_attempt_with_its_reason(answer: bytes, why: str) -> None:
    with serving(refusing(answer)) as port:
        assert re.search(
            f"the WebSocket handshake failed: .*{why}", why_not_opened(f"ws://127.0.0.1:{port}/stream")
        )


@pytest.mark.parametrize(
    ("host", "step"),
    [
        ("127.0.0.1", "TCP connection failed: .*refused"),
        ("no-such-host.invalid", "name resolution failed"),
        ("a" * 64 + ".invalid", "name resolution failed: .*label"),
    ],
)
def test_a_host_that_cannot_be_reached_is_a_failed_attempt_with_its_reason(host: str, step: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert re.search(step, why_not_opened(f"ws://{host}:{port}/stream"))


AUTHORITY = trustme.CA()


def tls(behave: Callable[[Any], object], *names: str) -> Callable[[socket.socket], None]:
    """Behave behind TLS with a certificate of `AUTHORITY` for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*names).configure_cert(context)

    def behave_secured(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as secured:
            behave(secured)

    return behave_secured


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process trust `AUTHORITY`, as an operator would."""
    bundle = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))


@pytest.mark.usefixtures("authority")
def test_tls_carries_frames_of_every_size_in_both_directions() -> None:
    payloads = [random.Random(size).randbytes(size) for size in (0, 200, 16_384, 70_000, 1_048_576)] + [b"n"] * 500

    def behave(peer: ssl.SSLSocket) -> None:
        shake_hands(peer, b"".join(map(frame, payloads[:2])))
        assert from_client(peer).data == b"a request"
        peer.sendall(b"".join(map(frame, payloads[2:])) + close_frame(1001))
        wait_for_the_end(peer)

    with serving(tls(behave, "localhost")) as port, reader_that_opens() as reader:
        reader.open(f"wss://localhost:{port}/stream", Deadline(PATIENCE))
        reader.request(b"a request", soon())
        assert read_all(reader, len(payloads)) == payloads
        assert reader.read(soon()) == ([], True)


@pytest.mark.usefixtures("authority")
def test_frames_in_tls_records_of_their_own_are_one_chunk() -> None:
    sent = threading.Event()

    def behave(peer: ssl.SSLSocket) -> None:
        shake_hands(peer)
        for number in range(200):
            peer.sendall(frame(b"%d" % number))
        sent.set()
        wait_for_the_end(peer)

    with serving(tls(behave, "localhost")) as port, reader_that_opens() as reader:
        reader.open(f"wss://localhost:{port}/stream", Deadline(PATIENCE))
        assert sent.wait(PATIENCE)
        assert reader.read(soon()) == ([b"%d" % number for number in range(200)], False)


@pytest.mark.usefixtures("authority")
def test_the_end_of_tls_is_noticed_although_tcp_stays_open() -> None:
    over = threading.Event()

    def behave(peer: ssl.SSLSocket) -> None:
        shake_hands(peer, frame(b"last"))
        peer.settimeout(0)
        with suppress(OSError):
            peer.unwrap()  # says goodbye, and would wait for an answer
        over.wait(PATIENCE)

    with serving(tls(behave, "localhost")) as port, reader_that_opens() as reader:
        reader.open(f"wss://localhost:{port}/stream", Deadline(PATIENCE))
        assert reader.read(soon()) == ([b"last"], False)
        began = time.monotonic()
        with pytest.raises(ConnectionLost):
            reader.read(soon())
        over.set()
        assert time.monotonic() - began < 5.0


@pytest.mark.usefixtures("authority")
def test_a_certificate_for_another_host_is_refused() -> None:
    with serving(tls(wait_for_the_end, "elsewhere.example")) as port:
        why = why_not_opened(f"wss://localhost:{port}/stream")
    assert re.search("the TLS handshake failed: .*not valid for 'localhost'", why)


def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    with serving(tls(wait_for_the_end, "localhost")) as port:
        why = why_not_opened(f"wss://localhost:{port}/stream")
    assert re.search("the TLS handshake failed: .*unable to get local issuer", why)


def test_a_server_without_tls_is_refused_on_a_secure_url() -> None:
    with serving(lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert "the TLS handshake failed" in why_not_opened(f"wss://127.0.0.1:{port}/stream")


@pytest.mark.usefixtures("authority")
def test_a_goodbye_over_tls_at_full_load_gives_out_all_that_was_sent() -> None:
    sent: list[int] = []

    def behave(peer: ssl.SSLSocket) -> None:
        shake_hands(peer)
        peer.settimeout(0)
        count, asked = 0, False
        while not asked:
            with suppress(ssl.SSLWantReadError):
                asked = bool(peer.recv(100))
            peer.settimeout(PATIENCE)
            peer.sendall(frame(PAYLOAD) * 500)
            peer.settimeout(0)
            count += 500
        sent.append(count)
        peer.settimeout(PATIENCE)
        peer.sendall(close_frame(1000))
        wait_for_the_end(peer)

    with serving(tls(behave, "localhost")) as port:
        for _ in range(5):
            sent.clear()
            assert count_to_the_end(f"wss://localhost:{port}/stream") == sent[0]


def count_to_the_end(url: str) -> int:
    """Read a while, be woken, say goodbye, read on to the answer; return how many frames came."""
    received = 0
    with reader_that_opens() as reader:
        reader.open(url, Deadline(PATIENCE))
        waker = threading.Timer(0.1, reader.wake)
        waker.start()
        with suppress(Woken):
            while True:
                received += len(reader.read(soon())[0])
        waker.join()
        reader.say_goodbye(soon())
        closed = False
        while not closed:
            frames, closed = reader.read(soon())
            received += len(frames)
    return received


@pytest.mark.usefixtures("authority")
def test_over_tls_what_a_peer_sent_before_it_hung_up_is_read_although_it_cannot_be_answered_any_more() -> None:
    hung_up = threading.Event()

    def behave(peer: ssl.SSLSocket) -> None:
        shake_hands(peer)
        peer.sendall(b"".join(frame(b"%d" % n) + frame(b"ping", PING) for n in range(5)) + close_frame(1001))
        peer.shutdown(socket.SHUT_RDWR)
        hung_up.set()

    with serving(tls(behave, "localhost")) as port, reader_that_opens() as reader:
        reader.open(f"wss://localhost:{port}/stream", Deadline(PATIENCE))
        assert hung_up.wait(PATIENCE)
        assert read_all(reader, 5) == [b"0", b"1", b"2", b"3", b"4"]
