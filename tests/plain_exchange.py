"""A WebSocket server of one page that sends trades to whoever subscribes, and knows no more of the protocol.

What the service promises must hold against it too: it shares neither code nor habits with the simulated exchange.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any, Literal, Self

from aiohttp import WSMsgType, web

if TYPE_CHECKING:
    from types import TracebackType

_PATIENCE_S = 10.0


class PlainExchange:
    """Serves one path, answers `elsewhere` under every other; sends `events` trades, then nothing.

    `waits` for a request before it sends; `closes` as soon as it has shaken hands, or after it has answered.
    """

    def __init__(  # noqa: PLR0913 - what one server is
        self,
        path: str,
        events: int,
        *,
        answers: bool = True,
        waits: bool = True,
        closes: Literal["at once", "answered"] | None = None,
        elsewhere: int = 404,
    ) -> None:
        self.asked: list[str] = []
        """The paths of all handshakes."""
        self.requests: list[dict[str, Any]] = []
        """The messages of the clients."""
        self.port = 0
        self._path = path
        self._events = events
        self._answers = answers
        self._waits = waits
        self._closes = closes
        self._elsewhere = elsewhere
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="plain-exchange", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(_PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    async def _listen(self) -> None:
        application = web.Application()
        application.router.add_get("/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if "Upgrade" in request.headers:  # what the exchange lists is asked for, too
            self.asked.append(request.path_qs)
        if request.path_qs != self._path:
            return web.Response(status=self._elsewhere)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self._closes == "at once":
            await socket.close()
        events = self._events
        if not self._waits:
            await self._send(socket, events)
            events = 0
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                self.requests.append(json.loads(message.data))
                await self._reply(socket, self.requests[-1], events)
                events = 0  # a request that is sent again brings nothing again
        return socket

    async def _reply(self, socket: web.WebSocketResponse, request: dict[str, Any], events: int) -> None:
        if self._answers:
            await socket.send_json({"result": None, "id": request["id"]})
        if self._closes:
            await socket.close()
            return
        await self._send(socket, events)

    async def _send(self, socket: web.WebSocketResponse, events: int) -> None:
        combined = "/stream" in self._path
        for number in range(events):
            await socket.send_str(wrapped(trade(number)) if combined else trade(number))


def trade(number: int) -> str:
    """Write a trade as some serializers do, with blanks."""
    return f'{{ "e": "trade", "s": "BTCUSDT", "t": {number}, "p": "0.10", "q": "1.00", "m": true }}'


def wrapped(payload: str) -> str:
    """Write the same in the combined form, with blanks."""
    return f'{{ "stream" : "btcusdt@trade" , "data" : {payload} }}'
