"""A TCP proxy in front of a broker: it holds back, delays, swallows, resets and refuses on command.

A broker names its own address in its answers, and clients would go around the proxy after their first question.
So the proxy writes its own port into the answers, which works with every broker and needs no setting of it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, Self

from sandbox.brokers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

_HOST = "127.0.0.1"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Proxy:
    """Passes bytes between clients and `127.0.0.1:port`, in the mode that was last commanded."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self._target = port
        self._lock = threading.Lock()  # guards the set of sockets
        self._sockets: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._swallowing = self._refusing = self._closed = False
        self._delay = threading.Event()  # never set: only waited for
        self._delay_seconds = 0.0
        self._listener = socket.create_server((_HOST, self.port))
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)

    @property
    def bootstrap_servers(self) -> str:
        """Where clients go."""
        return f"{_HOST}:{self.port}"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flow()
        self.reset()
        self._acceptor.join(5)

    # Commands

    def hold(self) -> None:
        """Let nothing through in either direction; it is delivered after `flow`."""
        self._flowing.clear()

    def swallow(self) -> None:
        """Lose what comes in either direction while connections stay open; `flow` resets those."""
        self._swallowing = True

    def refuse(self) -> None:
        """Reset every connection at once and each new one."""
        self._refusing = True
        self.reset()

    def delay(self, seconds: float) -> None:
        """Hold back each piece for so long."""
        self._delay_seconds = seconds

    def reset(self) -> None:
        """Reset all connections."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for each in sockets:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                each.shutdown(socket.SHUT_RD)
            each.close()

    def flow(self) -> None:
        """End all of that."""
        self._delay_seconds = 0.0
        self._refusing = False
        if self._swallowing:
            self._swallowing = False
            self.reset()
        self._flowing.set()

    # Connections

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing or not self._connect(client):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()

    def _connect(self, client: socket.socket) -> bool:
        try:
            server = socket.create_connection((_HOST, self._target), 2)
        except OSError:
            return False
        server.settimeout(None)
        with self._lock:
            self._sockets |= {client, server}
        for source, target, change in ((client, server, bytes), (server, client, self._renamed)):
            arguments = (source, target, change)
            threading.Thread(target=self._pump, args=arguments, name="proxy-pump", daemon=True).start()
        return True

    def _pump(self, source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        try:
            while piece := source.recv(65_536):
                if self._delay_seconds:
                    self._delay.wait(self._delay_seconds)
                self._flowing.wait()
                if not self._swallowing:
                    target.sendall(change(piece))
        except OSError:
            pass
        with self._lock:
            self._sockets -= {source, target}
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _renamed(self, piece: bytes) -> bytes:
        """Put our port where the broker names its own, behind the host."""
        for host in (b"127.0.0.1", b"localhost"):
            piece = piece.replace(host + struct.pack(">i", self._target), host + struct.pack(">i", self.port))
        return piece
