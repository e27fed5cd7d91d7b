"""The exchange itself: market, feed, connections, listeners, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from aiohttp import WSMsgType, web

from sandbox.exchange.arrivals import Arrivals
from sandbox.exchange.feed import Feed
from sandbox.exchange.frames import POLICY_VIOLATION
from sandbox.exchange.market import Market
from sandbox.exchange.pump import Pump
from sandbox.exchange.record import Ledger
from sandbox.exchange.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.exchange.settings import Settings

_LARGEST_CLIENT_MESSAGE = 1024 * 1024
_LONGEST_URL = 16_384
_ENDED = frozenset({WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR})


class _Socket(web.WebSocketResponse[bool]):
    """aiohttp's handshake and reader; the session writes its own frames and decides when to close."""

    async def write_eof(self) -> None:  # type: ignore[override]
        """Write nothing: the session has said what there was to say."""

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        """Write nothing when aiohttp would like to close."""
        del code, message, drain
        self._closed = True
        return True


class Core:
    """Lives in one event loop: `start`, then `stop`; every other method is called from that loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        start_ms = settings.start_ms if settings.start_ms is not None else time.time_ns() // 1_000_000
        self.market = Market(settings, start_ms)
        self.feed = Feed(self.market)
        self.ledger = Ledger()
        self.arrivals = Arrivals()
        self.sessions: dict[int, Session] = {}
        self.status = settings.status
        self.unlisted: set[str] = set()
        self.statuses: dict[str, str] = {}  # of single symbols, in exchangeInfo only
        waits = settings.limits.slow_client == "wait"
        self.pump = Pump(self.market, self.feed, self._current_sessions, settings.tick_ms, waits=waits)
        self.pump.halted = settings.status == "BREAK"
        self.port = settings.port
        self.control_port = settings.control_port
        self.on_subscribed: list[Callable[[], object]] = []
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()
        self._runners: list[web.AppRunner] = []
        self._door: web.TCPSite | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, public: web.Application, private: web.Application) -> None:
        """Listen and let the market run."""
        for route in ("/ws", "/ws/{streams:.*}", "/stream"):
            public.router.add_get(route, self._serve)
        for app in (public, private):
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, max_line_size=_LONGEST_URL)
            await runner.setup()
            self._runners.append(runner)
        await self.open_door()
        control = web.TCPSite(self._runners[1], self.settings.host, self.control_port)
        await control.start()
        self.control_port = control.port
        self.spawn(self.pump.run())

    async def stop(self) -> None:
        """Cut every connection and close the listeners."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.arrivals.release()
        for session in self._current_sessions():
            session.cut()
        for runner in self._runners:
            await runner.cleanup()

    def spawn(self, work: Any) -> asyncio.Task[None]:  # noqa: ANN401 - a coroutine that returns nothing
        """Run something beside the pump until it ends or the exchange stops."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    async def open_door(self) -> None:
        """Listen for clients, again on the same port after `close_door`."""
        if self._door is None:
            door = web.TCPSite(self._runners[0], self.settings.host, self.port, backlog=512)
            await door.start()
            self._door, self.port = door, door.port

    async def close_door(self) -> None:
        """Refuse TCP connections; the open ones and the control port stay."""
        if self._door is not None:
            door, self._door = self._door, None
            await door.stop()

    def now(self) -> float:
        """Monotonic seconds of the event loop."""
        return asyncio.get_running_loop().time()

    def _current_sessions(self) -> list[Session]:
        return list(self.sessions.values())

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            logging.getLogger(__name__).error("exchange_task_failed", exc_info=failure)
            self.failure = failure
            self.failed.set()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        answered = await self.arrivals.answer(request)
        if answered is not None:
            return answered
        ws = _Socket(
            autoclose=False,
            autoping=False,
            compress=False,
            decode_text=False,
            max_msg_size=_LARGEST_CLIENT_MESSAGE,
        )
        transport = request.transport
        with contextlib.suppress(ConnectionError):  # the client has gone during the handshake
            await ws.prepare(request)
        if transport is None or transport.is_closing():
            return ws
        path, _, query = request.raw_path.partition("?")
        record = self.ledger.open(request.raw_path, str(request.remote), self.pump.now_ms())
        session = Session(record, transport, self.feed, self.settings.limits, self.now())
        session.combined = record.combined = path.startswith("/stream")
        self.sessions[session.id] = session
        try:
            self._subscribe_from_url(session, path, query)
            self.arrivals.greet(session)
            await self._read(ws, session)
        finally:
            session.ended(self.pump.now_ms())
            del self.sessions[session.id]
        return ws

    def _subscribe_from_url(self, session: Session, path: str, query: str) -> None:
        if session.combined:
            wanted = [part.partition("=")[2] for part in query.split("&") if part.startswith("streams=")]
            text = unquote(wanted[0]) if wanted else ""
        else:
            text = unquote(path.removeprefix("/ws").removeprefix("/"))
        names = list(dict.fromkeys(name for name in text.split("/") if name))
        if len(names) > session.stream_limit:
            session.record.ended_by = "too many subscriptions"
            session.close(POLICY_VIOLATION, b"Too many subscriptions")
        elif names:
            session.subscribe(names)
            self.subscribed()

    def subscribed(self) -> None:
        """Tell whoever waits for a first subscription, once."""
        waiting, self.on_subscribed = self.on_subscribed, []
        for callback in waiting:
            callback()

    async def _read(self, ws: _Socket, session: Session) -> None:
        while True:
            message = await ws.receive()
            if message.type in _ENDED:
                if isinstance(message.data, Exception) and not session.transport.is_closing():
                    session.close(getattr(message.data, "code", None) or 1002)
                    await session.linger()
                break
            before = len(session.subscriptions)
            content = message.data if message.data is not None else b""
            session.receive(message.type, content, self.now())
            if len(session.subscriptions) > before:
                self.subscribed()
            if message.type is WSMsgType.CLOSE:
                if session.state == "half_open":
                    await session.awake()
                    session.receive(message.type, content, self.now())
                await session.linger()
                break
        with contextlib.suppress(OSError):
            session.transport.close()
