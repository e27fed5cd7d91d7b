"""TLS that decrypts in memory: all that has arrived is taken from the kernel with one call.

`ssl.SSLSocket` asks the kernel twice for each record, a record being a frame as a rule, and once more in vain.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Tls:
    """TLS over a connected, non-blocking socket, which stays its owner's; for one thread.

    Where it would have to wait it raises what `ssl.SSLSocket` raises, or the socket's BlockingIOError, and may be
    called again.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._sock = sock
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._leaving, server_hostname=host)
        self._read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]  # into a buffer
        self._unsent = memoryview(b"")
        self._ended = False
        self._failure: ssl.SSLError | None = None
        self.drained = False
        """Whether the last `recv_into` left nothing that could be read at once."""

    def do_handshake(self) -> None:
        """Shake hands, certificate and host name included; SSLError when they do not."""
        block = memoryview(bytearray(1 << 16))
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self._take(block)
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # the other side is to know why
                    self.flush()
                raise
            else:
                self.flush()
                return

    def recv_into(self, block: memoryview, flags: int = 0) -> int:
        """Read and decrypt into `block` what is there; return how many bytes, 0 at the end of the stream."""
        count = 0 if self.drained else self._decrypt(block)
        self.drained = False
        if not count and not self._ended:
            taken = self._take(block, flags)
            count = self._decrypt(block)
            if self._leaving.pending:  # an answer to a change of keys
                with contextlib.suppress(OSError):  # the next one that sends or reads will know
                    self.flush()
            if not count and not self._ended:
                raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "a part of a record")
            self.drained = count < len(block) and taken < len(block) and not (self._ended or self._failure)
        return count

    def encrypt(self, data: bytes) -> None:
        """Take what is to be sent; `flush` sends it."""
        self._tls.write(data)

    def flush(self) -> None:
        """Send what was encrypted; SSLWantWriteError when the socket does not take it all."""
        while self._unsent or self._leaving.pending:
            if not self._unsent:
                self._unsent = memoryview(self._leaving.read())
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "the socket is full") from None

    def _take(self, block: memoryview, flags: int = 0) -> int:
        """Take what the kernel has, by way of `block`; return how many bytes."""
        count = self._sock.recv_into(block, flags=flags)
        if count:
            self._arrived.write(block[:count])
        else:
            self._arrived.write_eof()
        return count

    def _decrypt(self, block: memoryview) -> int:
        """Decrypt the records that are there as far as there is room; what ends the stream comes after them."""
        if self._failure is not None:
            raise self._failure
        count, size = 0, len(block)
        try:
            while count < size and (self._arrived.pending or self._arrived.eof or self._tls.pending()):
                if not (more := self._read(size - count, block[count:])):
                    self._ended = True
                    break
                count += more
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLEOFError:  # the other side hung up without a word, as many do
            self._ended = True
        except ssl.SSLError as error:
            self._failure = error
            if not count:
                raise
        return count
