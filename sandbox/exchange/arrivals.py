"""Faults that wait for connections still to come: at the handshake, or as soon as they are open."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange.session import Session


@dataclass
class _Greeting:
    left: int
    act: Callable[[Session], None]


@dataclass
class _HandshakeFault:
    left: int
    status: int | None
    retry_after_s: int | None


class Arrivals:
    """Each fault is armed for a number of connections; 0 stands for all until `disarm`."""

    def __init__(self) -> None:
        self._handshakes: deque[_HandshakeFault] = deque()
        self._greetings: list[_Greeting] = []
        self._released = asyncio.Event()
        self.stalled = 0

    def stall(self, count: int) -> None:
        """Accept TCP for the next connections and never answer the handshake."""
        self._handshakes.append(_HandshakeFault(count or -1, None, None))

    def refuse(self, count: int, status: int, retry_after_s: int | None) -> None:
        """Answer the next handshakes with an HTTP status."""
        self._handshakes.append(_HandshakeFault(count or -1, status, retry_after_s))

    def greet_next(self, count: int, act: Callable[[Session], None]) -> None:
        """Do something to the next connections as soon as they are open."""
        self._greetings.append(_Greeting(count or -1, act))

    def disarm(self) -> int:
        """Forget what is armed and drop the stalled handshakes; says how many faults were armed."""
        armed = len(self._handshakes) + len(self._greetings)
        self._handshakes.clear()
        self._greetings.clear()
        self.release()
        return armed

    def release(self) -> None:
        """Let the stalled handshakes end, without an answer."""
        released, self._released = self._released, asyncio.Event()
        released.set()

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        """Answer as a handshake fault wants it; None lets the handshake go on."""
        if not self._handshakes:
            return None
        fault = self._handshakes[0]
        fault.left -= 1
        if not fault.left:
            self._handshakes.popleft()
        if fault.status is not None:
            headers = {"Retry-After": str(fault.retry_after_s)} if fault.retry_after_s is not None else {}
            return web.Response(status=fault.status, headers=headers)
        self.stalled += 1
        try:
            await self._released.wait()
        finally:
            self.stalled -= 1
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    def greet(self, session: Session) -> None:
        """Do what was armed to a connection that has just opened."""
        for greeting in self._greetings:
            greeting.act(session)
            greeting.left -= 1
        self._greetings = [greeting for greeting in self._greetings if greeting.left]
