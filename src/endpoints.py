"""The HTTP endpoints of a running service: /metrics, /health, /ready, /status."""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from src.telemetry import COUNTERS, GAUGES, REASONS
from src.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

PREFIX = "binance_ingestion_"
_AT_ONCE = 16
_REQUEST_SECONDS = 5.0


class View(NamedTuple):
    """What the endpoints show; each part is asked at the time of the request."""

    status: Callable[[], dict[str, Any]]
    """Every metric, by its name in `service_metrics`."""
    unready: Callable[[], list[str]]
    """Why the service is not ready; empty when it is."""
    alive: Callable[[], bool]


class Endpoints:
    """Serves GET and HEAD on a thread of its own; at most 16 requests at once, each within 5 s."""

    def __init__(self, host: str, port: int, view: View, on_exit: Callable[[Worker], None]) -> None:
        registry = CollectorRegistry()
        registry.register(_Collector(view.status))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._server = _Server((host, port), _routes(view, registry))
        self._worker = Worker("monitoring-http", self._server.serve_forever, on_exit)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.server_port

    def start(self) -> None:
        """Begin to answer."""
        self._worker.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._worker.join(1.0)
        self._server.server_close()


class _Answer(NamedTuple):
    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"


_Routes = dict[str, "Callable[[], _Answer]"]


def _routes(view: View, registry: CollectorRegistry) -> _Routes:
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
        return _json(view.status() | {"ready": not view.unready()}, HTTPStatus.OK)

    return {"/metrics": metrics, "/health": health, "/ready": ready, "/status": status}


def _json(value: object, status: HTTPStatus) -> _Answer:
    return _Answer(status, json.dumps(value, default=str).encode() + b"\n")


class _Server(ThreadingHTTPServer):
    """Answers each request on a short-lived thread; a slow or idle client holds one of few places, briefly."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], routes: _Routes) -> None:
        self.routes = routes
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in the base class
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Say nothing: a client that hangs up is no event of the service."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_SECONDS
    server: _Server
    server_version = "binance-ingestion"
    sys_version = ""

    def do_GET(self) -> None:
        self._reply(with_body=True)

    def do_HEAD(self) -> None:
        self._reply(with_body=False)

    def _reply(self, *, with_body: bool) -> None:
        route = self.server.routes.get(self.path.partition("?")[0])
        known = {"error": "not found", "paths": sorted(self.server.routes)}
        answer = route() if route else _json(known, HTTPStatus.NOT_FOUND)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep requests out of the log."""


class _Collector:
    """Gives Prometheus the counters of one instant."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        for name, meaning in GAUGES.items():
            yield GaugeMetricFamily(PREFIX + name, meaning, value=float(status[name]))
        for name, meaning in COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, meaning, value=float(status[name]))
        for name in REASONS:
            family = CounterMetricFamily(f"{PREFIX}{name}_by_reason", COUNTERS[name], labels=["reason"])
            for reason, count in status[f"{name}_by_reason"].items():
                family.add_metric([reason], float(count))
            yield family
