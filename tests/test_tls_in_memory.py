"""TLS decrypted in memory, against OpenSSL's own server side, its bytes cut wherever."""

from __future__ import annotations

import functools
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from src.tls_in_memory import Tls

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
NOTHING_YET = (BlockingIOError, ssl.SSLWantReadError)


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a client's and a server's."""
    authority = trustme.CA()
    client, server = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client)
    authority.issue_cert("exchange").configure_cert(server)
    return client, server


class Counting(socket.socket):
    """Knows how often it was read."""

    reads = 0

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        self.reads += 1
        return super().recv_into(*arguments, **named)


class Pair:
    """A connection: `ours` decrypts in memory, at the other end stands OpenSSL."""

    def __init__(self, version: ssl.TLSVersion) -> None:
        near, self.far = socket.socketpair()
        self.near = Counting(fileno=near.detach())
        for each in (self.near, self.far):
            each.settimeout(0)
        client, server = contexts()
        server.maximum_version = version
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.peer = server.wrap_bio(self._arrived, self._leaving, server_side=True)
        self.ours = Tls(self.near, client, "exchange")
        self.plain = memoryview(bytearray(1 << 18))

    def shake_hands(self) -> None:
        for _ in range(5):
            with suppress(*NOTHING_YET):
                self.ours.do_handshake()
            self.receive()
            with suppress(ssl.SSLWantReadError):
                self.peer.do_handshake()
            self.far.send(self._leaving.read())
        assert self.peer.version()

    def receive(self) -> bytes:
        """Return what has come to the other end, as it was encrypted."""
        came = b""
        with suppress(BlockingIOError):
            while more := self.far.recv(1 << 20):
                came += more
        self._arrived.write(came)
        return came

    def encrypted(self, *records: bytes) -> bytes:
        for record in records:
            self.peer.write(record)
        return self._leaving.read()

    def read(self, size: int = 1 << 18) -> bytes:
        return bytes(self.plain[: self.ours.recv_into(self.plain[:size])])


@contextmanager
def pair(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Iterator[Pair]:
    both = Pair(version)
    try:
        both.shake_hands()
        yield both
    finally:
        both.near.close()
        both.far.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_all_records_that_have_arrived_are_read_with_one_call_of_the_kernel(version: ssl.TLSVersion) -> None:
    records = [b"%d," % number for number in range(500)]
    with pair(version) as both:
        both.far.send(both.encrypted(*records))
        before = both.near.reads
        assert both.read() == b"".join(records)
        assert both.near.reads == before + 1
        assert both.ours.drained
        with pytest.raises(BlockingIOError):
            both.read()


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40) | st.integers(16_000, 17_000), max_size=20),
    cuts=st.lists(st.integers(0, 20_000)),
    block=st.integers(500, 40_000),
    version=st.sampled_from(VERSIONS),
)
def test_however_the_bytes_are_cut_and_however_little_is_taken_all_comes_in_order(
    sizes: list[int], cuts: list[int], block: int, version: ssl.TLSVersion
) -> None:
    records = [bytes([number]) * size for number, size in enumerate(sizes)]
    with pair(version) as both:
        sent, came = both.encrypted(*records), b""
        at_once = range(0, len(sent) + 1, 50_000)  # more would wait for its reader
        begins = sorted({*at_once, *(cut % (len(sent) + 1) for cut in cuts)})
        for begin, end in zip(begins, [*begins[1:], len(sent)], strict=True):
            assert both.far.send(sent[begin:end]) == end - begin
            with suppress(BlockingIOError):
                while True:
                    with suppress(ssl.SSLWantReadError):  # a part of a record fills a small block
                        came += both.read(block)
        assert came == b"".join(records)


def test_what_the_kernel_does_not_take_at_once_is_sent_later_in_order() -> None:
    first, second = b"a" * 3_000_000, b"b" * 100
    with pair() as both:
        both.ours.encrypt(first)
        with pytest.raises(ssl.SSLWantWriteError):
            both.ours.flush()
        both.ours.encrypt(second)
        for _ in range(1_000):
            try:
                both.ours.flush()
            except ssl.SSLWantWriteError:
                both.receive()
            else:
                break
        both.receive()
        came = b""
        with suppress(ssl.SSLWantReadError):
            while more := both.peer.read(1 << 20):
                came += more
    assert came == first + second


def test_what_came_before_a_spoiled_record_is_read_and_then_it_is_an_error_for_good() -> None:
    with pair() as both:
        good, bad = both.encrypted(b"good"), bytearray(both.encrypted(b"bad"))
        bad[-1] ^= 1
        both.far.send(good + bad)
        assert both.read() == b"good"
        assert not both.ours.drained, "nobody is to wait before the next read"
        for _ in range(2):
            with pytest.raises(ssl.SSLError, match="bad record mac"):
                both.read()


@pytest.mark.parametrize("goodbye", [True, False])
def test_the_end_comes_after_all_that_was_sent_and_stays_the_end(goodbye: bool) -> None:  # noqa: FBT001
    with pair() as both:
        sent = both.encrypted(b"last")
        if goodbye:
            with suppress(ssl.SSLWantReadError):
                both.peer.unwrap()
            sent += both.encrypted()
        both.far.send(sent)
        if not goodbye:
            both.far.shutdown(socket.SHUT_WR)
        assert both.read() == b"last"
        assert both.ours.drained is not goodbye
        assert [both.read(), both.read()] == [b"", b""]


def test_who_is_somebody_else_is_refused_and_told_so() -> None:
    client, _ = contexts()
    both = Pair(ssl.TLSVersion.TLSv1_3)
    both.ours = Tls(both.near, client, "another-exchange")
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'another-exchange'"):
        both.shake_hands()
    both.receive()
    with pytest.raises(ssl.SSLError, match="alert"):
        both.peer.do_handshake()
    both.near.close()
    both.far.close()


def test_sending_never_waits_for_the_other_side_though_reading_does() -> None:
    with pair() as both, ThreadPoolExecutor(1) as pool:
        both.near.settimeout(None)  # as of an open connection
        both.ours.encrypt(b"x" * (8 << 20))
        flushed = pool.submit(both.ours.flush)
        try:
            with pytest.raises(ssl.SSLWantWriteError):
                flushed.result(5)
        finally:
            both.far.close()
