"""The HTTP endpoints of a running service: /metrics, /health, /ready, /status.

One event loop on one thread answers everything, so that a client costs a socket and never a thread.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from src.exposition import Exposition
from src.logger import get_logger
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS = ("GET", "HEAD")
AT_ONCE = 256
REQUEST_SECONDS = 5.0
LINE_BYTES = 8 * 1024
HEAD_BYTES = 16 * 1024
_STOP_SECONDS = 1.0
_REST = 9.0
"""For each moment of CPU spent on an answer so many without: whoever asks without a pause costs the threads that
move events a tenth of their time at most."""
_MOST_REST_SECONDS = 0.05
_BACKLOG = 128  # accepted at once; well below AT_ONCE, or a burst would close what came with it, unanswered
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (\S+) HTTP/1\.([01])\r?\n")


class View(NamedTuple):
    """What the endpoints show; each part is asked at the time of the request, and must not block."""

    status: Callable[[], dict[str, Any]]
    """Every metric, by its name in `service_metrics`."""
    unready: Callable[[], list[str]]
    """Why the service is not ready; empty when it is."""
    alive: Callable[[], bool]


class Endpoints:
    """Serves GET and HEAD on a thread of its own.

    At most 256 connections are open; the next one closes the oldest. A connection has 5 s for each request
    and its answer, however slowly it sends or reads, and then is closed.
    """

    def __init__(self, host: str, port: int, view: View, on_exit: Callable[[Worker], None]) -> None:
        self._routes = _routes(view)
        self._listener = _listen(host, port)
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}  # oldest first; the loop's own
        self._turns = {path: asyncio.Lock() for path in ("", *self._routes)}
        """By path, so that many who ask for what takes work do not keep a probe waiting."""
        self._worker = Worker("monitoring-http", self._run, on_exit)
        self.port: int = self._listener.getsockname()[1]
        """The port that is listened on."""

    def start(self) -> None:
        """Begin to answer."""
        self._worker.start()

    def stop(self) -> None:
        """Stop answering, close every connection and free the port; also when never started."""
        with suppress(RuntimeError):  # the loop is closed when the worker has ended already
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._worker.join(_STOP_SECONDS):
            self._loop.close()
        self._listener.close()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listener, limit=LINE_BYTES, backlog=_BACKLOG)
        await self._stopping.wait()
        server.close()
        talks = list(self._open.values())
        for writer in list(self._open):
            writer.transport.abort()
        if talks:
            await asyncio.wait(talks, timeout=_STOP_SECONDS / 2)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= AT_ONCE:
            oldest = next(iter(self._open))
            self._open.pop(oldest)
            oldest.transport.abort()
        writer.transport.set_write_buffer_limits(high=0)  # drain() then means: all of it is with the kernel
        self._open[writer] = self._loop.create_task(self._talk(reader, writer))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except OSError:  # too slow, or gone: the client's own affair
            pass
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether another may follow on this connection."""
        async with asyncio.timeout(REQUEST_SECONDS):
            try:
                request = await _read_request(reader)
            except _RefusedError as refusal:
                request = _Request("GET", "", keep_alive=False, refused=refusal.status)
            if request is None:
                return False
            await self._take_turn(request, writer)
            await writer.drain()
            if request.keep_alive:
                return True
            # Closing with unread input would reset the connection before the client has the answer.
            writer.write_eof()
            while await reader.read(LINE_BYTES):
                pass
            return False

    async def _take_turn(self, request: _Request, writer: asyncio.StreamWriter) -> None:
        """Answer when those who asked for the same before have theirs; leave the other threads their time."""
        async with self._turns[request.path if request.path in self._routes else ""]:
            if writer.is_closing():
                return
            began = time.thread_time()
            writer.write(_encode(request, self._routed(request)))
            await asyncio.sleep(min(_REST * (time.thread_time() - began), _MOST_REST_SECONDS))

    def _routed(self, request: _Request) -> _Answer:
        if request.refused:
            return _json({"error": request.refused.phrase.lower()}, request.refused)
        if request.method not in METHODS:
            allowed = {"error": "method not allowed", "methods": METHODS}
            return _json(allowed, HTTPStatus.METHOD_NOT_ALLOWED)
        route = self._routes.get(request.path)
        if route is None:
            return _json({"error": "not found", "paths": sorted(self._routes)}, HTTPStatus.NOT_FOUND)
        try:
            return route()
        except Exception:  # noqa: BLE001 - a fault of one view must not end the thread that answers the others
            get_logger("endpoints").error("endpoint_failed", path=request.path, exc_info=True)
            return _json({"error": "internal error"}, HTTPStatus.INTERNAL_SERVER_ERROR)


class _Request(NamedTuple):
    method: str
    path: str
    keep_alive: bool
    refused: HTTPStatus | None = None


class _Answer(NamedTuple):
    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


_Routes = dict[str, "Callable[[], _Answer]"]


def _routes(view: View) -> _Routes:
    started_at = _now()

    def state() -> dict[str, Any]:
        reasons = view.unready()
        times = {"started_at": started_at, "time": _now()}
        return view.status() | {"ready": not reasons, "unready_reasons": reasons} | times

    registry = CollectorRegistry()
    registry.register(Exposition(state))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)

    def metrics() -> _Answer:
        return _Answer(HTTPStatus.OK, generate_latest(registry), CONTENT_TYPE_LATEST)

    def health() -> _Answer:
        alive = view.alive()
        return _json({"alive": alive}, HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE)

    def ready() -> _Answer:
        reasons = view.unready()
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        return _json({"ready": not reasons, "reasons": reasons}, status)

    def status() -> _Answer:
        return _json(state(), HTTPStatus.OK)

    return {"/metrics": _kept(metrics), "/health": health, "/ready": ready, "/status": _kept(status)}


def _kept(make: Callable[[], _Answer]) -> Callable[[], _Answer]:
    """Return what makes an answer only as often as its cost allows, and gives the last one in between."""
    last: _Answer | None = None
    due_at = 0.0

    def answer() -> _Answer:
        nonlocal last, due_at
        if last is None or time.monotonic() >= due_at:
            began = time.thread_time()
            last = make()
            due_at = time.monotonic() + _REST * (time.thread_time() - began)
        return last

    return answer


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(value: object, status: HTTPStatus) -> _Answer:
    return _Answer(status, json.dumps(value, default=str).encode() + b"\n")


def _listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; raises `OSError` when the host is unknown or the port not to be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:
        raise OSError(f"not a host name: {host!r}") from error
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)


async def _read_request(reader: asyncio.StreamReader) -> _Request | None:
    """Read the head of a request; None at the end of the stream; raises `_RefusedError`."""
    line = await _read_line(reader)
    if not line.strip():
        return None
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise _RefusedError(HTTPStatus.BAD_REQUEST)
    method, target, version = (part.decode("latin-1") for part in match.groups())
    left, last, headers = HEAD_BYTES, line, {"connection": "close" if version == "0" else "keep-alive"}
    while last := await _read_line(reader):
        if not last.strip():
            break
        left -= len(last)
        if left < 0:
            raise _RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        name, _, value = last.decode("latin-1").lower().partition(":")
        headers[name.strip()] = value.strip()
    if not last:
        return None
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    keep_alive = headers["connection"] == "keep-alive" and method in METHODS and not has_body
    return _Request(method, target.partition("?")[0], keep_alive)


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError as error:
        raise _RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from error


def _encode(request: _Request, answer: _Answer) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        f"Connection: {'keep-alive' if request.keep_alive else 'close'}",
    ]
    if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append(f"Allow: {', '.join(METHODS)}")
    head = "\r\n".join([*lines, "", ""]).encode("ascii")
    return head if request.method == "HEAD" else head + answer.body
