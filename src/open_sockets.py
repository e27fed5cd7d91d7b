"""The sockets that threads wait on, so that another thread can end the waiting."""

from __future__ import annotations

import socket
import threading


class OpenSockets:
    """Knows what was connected; sockets that were closed since are forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._open: set[socket.socket] = set()
        self.shut_down = False

    def add(self, sock: socket.socket) -> None:
        """Take a socket that was just connected."""
        with self._lock:
            self._open = {known for known in self._open if known.fileno() >= 0} | {sock}
            if self.shut_down:
                _shut(sock)

    def shut(self) -> None:
        """End reading and writing on all of them, now and later."""
        with self._lock:
            self.shut_down = True
            for sock in self._open:
                _shut(sock)


def _shut(sock: socket.socket) -> None:
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket's own takes the TLS state from under the reader
    except OSError:
        return
