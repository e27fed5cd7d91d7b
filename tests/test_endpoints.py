"""The HTTP endpoints, asked over real sockets; telemetry is the real one, the service's state is ours."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from src import endpoints
from src.catalogue import REASONS
from src.decoder import EventDecoder
from src.endpoints import Endpoints, View
from src.events import Decoded, Topics
from src.telemetry import COUNTERS, GAUGES, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.exchange import Exchange
    from src.worker import Worker

REPOSITORY = Path(__file__).resolve().parent.parent
FRAME = b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1,"s":"BTCUSDT","t":1,"p":"1.0","q":"2.0","T":1}}'
TERMS = (
    "messages_skipped",
    "messages_buffered",
    "messages_in_flight",
    "messages_spooled",
    "kafka_produced",
    "kafka_failed",
    "messages_dead_lettered",
    "messages_dropped",
    "messages_duplicate",
    "messages_already_delivered",
)


class Served:
    """Endpoints on a free port, over a telemetry that the test drives."""

    def __init__(self, host: str, port: int) -> None:
        self.telemetry = Telemetry(repeat_seconds=3600.0)
        self.reasons: list[str] = []
        self.alive = True
        self.broken = False
        self.seconds = 0.0  # of CPU that a status takes
        self.asked = 0
        self.ended: list[Worker] = []
        self.host = host
        view = View(self.status, lambda: self.reasons, lambda: self.alive)
        self.endpoints = Endpoints(host, port, view, self.ended.append)
        self.port = self.endpoints.port

    def status(self) -> dict[str, Any]:
        assert not self.broken
        self.asked += 1
        until = time.thread_time() + self.seconds
        while time.thread_time() < until:
            pass
        return self.telemetry.status() | {"version": "1.0.0", "streams": 20, "kafka_connected": True}

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=10.0)

    def ask(self, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10.0)
        with contextlib.closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            return response, response.read()

    def send(self, request: bytes) -> bytes:
        """Send bytes as they are, and return all that comes back until the end of the stream."""
        with self.connect() as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(65_536), b""))

    def answers_health_within(self, seconds: float) -> bool:
        asked_at = time.monotonic()
        response, _ = self.ask("/health")
        return response.status == 200 and time.monotonic() - asked_at < seconds


@contextmanager
def serving(host: str = "127.0.0.1", port: int = 0) -> Iterator[Served]:
    served = Served(host, port)
    served.endpoints.start()
    try:
        yield served
    finally:
        served.endpoints.stop()
        assert [worker.failure for worker in served.ended] == [None]


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as one:
        yield one


@pytest.fixture(scope="module")
def decoded() -> Decoded:
    """Three events and two frames that are none."""
    topics = Topics("trades", "depth", "raw")
    return EventDecoder(topics).decode([FRAME, FRAME, b"not json", FRAME, b"17"], 1_700_000_000_000)


def pass_through(telemetry: Telemetry, decoded: Decoded) -> None:
    """Let events take every way they can take through the service."""
    telemetry.recovered(1)
    for _ in range(2):
        telemetry.received(decoded, 1_700_000_000_000)
    telemetry.dropped(decoded.events[:1], "spool_full")
    telemetry.flushed(decoded.events)
    telemetry.offered(3)
    telemetry.handed_over(3)
    telemetry.acknowledged(decoded.events[:1], 100)
    telemetry.returned(1, possible_duplicates=1)
    telemetry.dead_lettered(decoded.events[:1], "MessageSizeTooLargeError", "too large")
    telemetry.backfilled(2)
    telemetry.offered(2)
    telemetry.handed_over(2)
    telemetry.rest_requested("aggTrades")
    telemetry.rest_failed("aggTrades", "malformed", ValueError("no JSON"))
    telemetry.spooled(2)
    telemetry.offered(3, "spooled")
    telemetry.handed_over(3)
    telemetry.acknowledged(decoded.events, 300)


def samples(exposition: bytes) -> dict[str, float]:
    families = text_string_to_metric_families(exposition.decode())
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def imbalance(status: dict[str, Any]) -> int:
    came = ("messages_received", "messages_recovered", "messages_backfilled")
    return int(sum(status[name] for name in came) - sum(status[term] for term in TERMS))


def test_metrics_are_a_valid_exposition_and_equal_the_status_of_the_same_instant(
    served: Served, decoded: Decoded
) -> None:
    pass_through(served.telemetry, decoded)
    served.telemetry.connection_opened(0, 0, 20)
    response, body = served.ask("/metrics")
    status = json.loads(served.ask("/status")[1])
    found = samples(body)
    assert response.getheader("Content-Type", "").startswith("text/plain; version=")
    for name in COUNTERS:
        assert found[f"binance_ingestion_{name}_total"] == status[name], name
    for name in GAUGES:
        assert found[f"binance_ingestion_{name}"] == status[name], name
    assert found["binance_ingestion_messages_skipped_by_reason_total[malformed_json]"] == 2
    assert found["binance_ingestion_messages_dropped_by_reason_total[spool_full]"] == 1
    assert found["binance_ingestion_last_message_timestamp_seconds"] == 1_700_000_000
    assert found["binance_ingestion_ready"] == found["binance_ingestion_kafka_connected"] == 1


@pytest.mark.parametrize("price", ["", "abc", "1,5", "NaN", "1e999", "-inf"])
@pytest.mark.parametrize("event_type", ["trade", "24hrTicker"])
def test_a_price_that_is_no_finite_number_is_left_out(served: Served, event_type: str, price: str) -> None:
    frames = [
        f'{{"e":"{event_type}","E":1,"s":"{symbol}","t":1,"p":"{written}","c":"{written}"}}'.encode()
        for symbol, written in (("BTCUSDT", price), ("ETHUSDT", "2.50"))
    ]
    decoder = EventDecoder(Topics("trades", "depth", "raw"))
    served.telemetry.received(decoder.decode(frames, 1_700_000_000_000), 1_700_000_000_000)
    response, body = served.ask("/metrics")
    assert response.status == 200
    prices = {name: value for name, value in samples(body).items() if "symbol_price" in name}
    assert prices == {"binance_ingestion_symbol_price[ETHUSDT]": 2.5}
    assert json.loads(served.ask("/status")[1])["symbols"]["BTCUSDT"]["price"] == price


def test_known_reasons_of_losses_are_shown_before_the_first_loss(served: Served) -> None:
    found = samples(served.ask("/metrics")[1])
    known = [f"binance_ingestion_{name}_by_reason_total[{one}]" for name, ones in REASONS.items() for one in ones]
    assert known
    assert {found[name] for name in known} == {0.0}
    status = json.loads(served.ask("/status")[1])
    assert {name: status[f"{name}_by_reason"] for name in REASONS} == {name: {} for name in REASONS}


def test_counters_end_in_total_and_every_family_has_a_type_and_a_help_text(served: Served) -> None:
    families = list(text_string_to_metric_families(served.ask("/metrics")[1].decode()))
    ours = [family for family in families if family.name.startswith("binance_ingestion_")]
    assert len(ours) >= len(COUNTERS) + len(GAUGES)
    for family in families:
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_status_has_every_field_of_service_metrics_and_the_readiness(served: Served) -> None:
    served.reasons = ["not connected to Kafka"]
    response, body = served.ask("/status")
    status = json.loads(body)
    assert response.status == 200
    assert response.getheader("Content-Type") == "application/json"
    assert response.getheader("Cache-Control") == "no-store"
    assert status.keys() >= served.telemetry.snapshot().keys()
    assert status["ready"] is False
    assert status["unready_reasons"] == ["not connected to Kafka"]
    assert status["time"].endswith("Z")


def test_ready_answers_503_with_the_reasons_until_there_are_none(served: Served) -> None:
    served.reasons = ["not connected to the exchange", "not connected to Kafka"]
    response, body = served.ask("/ready")
    assert (response.status, json.loads(body)) == (503, {"ready": False, "reasons": served.reasons})
    served.reasons = []
    response, body = served.ask("/ready")
    assert (response.status, json.loads(body)) == (200, {"ready": True, "reasons": []})


def test_health_answers_503_when_a_thread_that_moves_events_has_ended(served: Served) -> None:
    assert served.ask("/health")[0].status == 200
    served.alive = False
    assert served.ask("/health")[0].status == 503


@pytest.mark.parametrize("path", ["/metrics", "/health", "/ready", "/status", "/nowhere"])
def test_head_has_the_headers_of_get_and_no_body(served: Served, path: str) -> None:
    get, _ = served.ask(path)
    raw = served.send(f"HEAD {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    head, _, body = raw.partition(b"\r\n\r\n")
    assert f" {get.status} ".encode() in head.splitlines()[0]
    assert f"Content-Type: {get.getheader('Content-Type')}".encode() in head
    assert b"Content-Length: " in head
    assert body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "BREW"])
def test_other_methods_are_not_allowed_on_any_path(served: Served, method: str) -> None:
    for path in ("/status", "/nowhere"):
        response, body = served.ask(path, method)
        assert response.status == 405
        assert response.getheader("Allow") == "GET, HEAD"
        assert json.loads(body)["methods"] == ["GET", "HEAD"]


def test_an_unknown_path_is_answered_with_the_paths_there_are(served: Served) -> None:
    response, body = served.ask("/etc/../passwd%00")
    assert response.status == 404
    assert json.loads(body)["paths"] == ["/health", "/metrics", "/ready", "/status"]


def test_a_query_does_not_change_what_is_answered(served: Served) -> None:
    assert served.ask("/health?verbose=1")[0].status == 200


def test_a_view_that_raises_is_answered_with_500_and_the_others_go_on(served: Served) -> None:
    served.broken = True
    for path in ("/status", "/metrics"):
        assert served.ask(path)[0].status == 500
    assert served.answers_health_within(2.0)


@pytest.fixture
def often_switched_threads() -> Iterator[None]:
    """Let threads interrupt each other every few lines, so that what is not one instant is seen not to be."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("often_switched_threads")
def test_the_equation_holds_in_a_thousand_consecutive_readings_under_load(
    served: Served, decoded: Decoded
) -> None:
    done = threading.Event()

    def hammer() -> None:
        while not done.is_set():
            pass_through(served.telemetry, decoded)

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10.0)
    readings = []
    try:
        for _ in range(1000):
            connection.request("GET", "/status")
            readings.append(json.loads(connection.getresponse().read()))
        connection.request("GET", "/metrics")
        scraped = samples(connection.getresponse().read())
    finally:
        connection.close()
        done.set()
        for thread in threads:
            thread.join(10.0)
    assert [imbalance(reading) for reading in readings] == [0] * 1000
    counts = [reading["messages_received"] for reading in readings]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    gauges = [scraped[f"binance_ingestion_{name}"] for name in TERMS if name in GAUGES]
    counters = [scraped[f"binance_ingestion_{name}_total"] for name in TERMS if name in COUNTERS]
    came = [
        scraped[f"binance_ingestion_messages_{name}_total"] for name in ("received", "recovered", "backfilled")
    ]
    assert sum(came) == sum(gauges) + sum(counters)


def test_an_answer_that_takes_work_is_made_only_as_often_as_its_cost_allows(served: Served) -> None:
    served.seconds = 0.2
    request = b"GET /status HTTP/1.1\r\n\r\n"
    began = time.monotonic()
    assert served.send(request * 50).count(b"messages_received") == 50
    served.telemetry.recovered(1)
    while json.loads(served.ask("/status")[1])["messages_recovered"] == 0:
        assert time.monotonic() - began < 20.0
    assert 2 <= served.asked <= 1 + (time.monotonic() - began) / (served.seconds * endpoints._REST)


def test_connections_are_kept_for_further_requests_also_when_these_come_at_once(served: Served) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    assert served.send(request * 50).count(b'{"alive": true}') == 50
    assert served.send(b"GET /health HTTP/1.0\r\n\r\n" * 2).count(b'{"alive": true}') == 1


def test_a_request_with_bare_line_feeds_is_understood(served: Served) -> None:
    assert b" 200 OK" in served.send(b"GET /health HTTP/1.0\n\n")


def test_a_request_with_a_body_is_answered_and_its_body_is_never_taken_for_a_request(served: Served) -> None:
    body = b"GET /status HTTP/1.1\r\n\r\n"
    head = b"GET /health HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = served.send(head + body)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b'{"alive": true}' in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n" * 20, 400, id="TLS"),
        pytest.param(os.urandom(64).replace(b"\n", b"") + b"\n", 400, id="noise"),
        pytest.param(b"GET /health\r\n\r\n", 400, id="HTTP/0.9"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP/2"),
        pytest.param(b"GET /health HTTP/1.1\nGET\0" + b"\xff" * 20_000, 431, id="a long line"),
        pytest.param(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431, id="a long path"),
        pytest.param(b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 50_000, 431, id="many headers"),
        pytest.param(b"GET /health HTTP/1.1\r\nA: " + b"b" * 1_000_000, 431, id="a huge header"),
    ],
)
def test_what_is_no_proper_request_is_refused(served: Served, request_bytes: bytes, status: int) -> None:
    with served.connect() as client:
        sender = threading.Thread(target=_send_quietly, args=(client, request_bytes))
        sender.start()
        answer = client.recv(1000)
        sender.join(10.0)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert served.answers_health_within(2.0)


def _send_quietly(client: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        client.sendall(content)


@pytest.mark.parametrize(
    "said",
    [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n"],
    ids=["nothing", "half a line", "half a head"],
)
def test_many_clients_that_never_finish_do_not_keep_others_from_an_answer(served: Served, said: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(400):
            client = stack.enter_context(served.connect())
            _send_quietly(client, said)
        for _ in range(5):
            assert served.answers_health_within(2.0)
        until = time.monotonic() + 10.0
        while _open_at(served.port) > endpoints.AT_ONCE + 1:  # the kernel takes on more than we keep
            assert time.monotonic() < until
            assert served.answers_health_within(2.0)


def _open_at(port: int) -> int:
    """Count the established connections whose serving end is ours."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[1].endswith(f":{port:04X}") and fields[3] == "01" for fields in lines)


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off_in_the_end(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "REQUEST_SECONDS", 0.3)
    with served.connect() as client:
        began = time.monotonic()
        client.settimeout(0.05)
        while time.monotonic() - began < 5.0:
            _send_quietly(client, b"G")
            with contextlib.suppress(TimeoutError):
                if client.recv(1) == b"":
                    break
    assert time.monotonic() - began < 5.0


def test_a_client_that_never_reads_is_cut_off_and_holds_nobody_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "REQUEST_SECONDS", 0.5)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(2.0)
        client.connect((served.host, served.port))
        began = time.monotonic()
        with contextlib.suppress(TimeoutError, ConnectionError):
            while time.monotonic() - began < 20.0:
                client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * 20)
                assert served.answers_health_within(2.0)
        assert time.monotonic() - began < 20.0


def test_clients_that_ask_for_much_without_a_pause_do_not_keep_a_probe_waiting(served: Served) -> None:
    served.seconds = 0.05
    with ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(served.connect())
            _send_quietly(client, b"GET /metrics HTTP/1.1\r\n\r\n" * 100)
        for _ in range(5):
            assert served.answers_health_within(5.0)  # all that was asked for takes 1,000 s


def test_stop_frees_the_port_at_once_with_connections_open(served: Served) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(served.connect()) for _ in range(20)]
        for client in idle:
            client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert client.recv(1000)
        began = time.monotonic()
        served.endpoints.stop()
        assert time.monotonic() - began < 3.0
        with serving(port=served.port) as again:
            assert again.answers_health_within(2.0)
        assert all(client.recv(1) == b"" for client in idle)


def test_stop_without_start_frees_the_port_and_a_second_stop_is_harmless() -> None:
    served = Served("127.0.0.1", 0)
    served.endpoints.stop()
    served.endpoints.stop()
    with serving(port=served.port) as again:
        again.endpoints.stop()


def test_an_ipv6_host_is_served() -> None:
    with serving(host="::1") as served:
        assert served.answers_health_within(2.0)


def test_a_port_in_use_or_an_unknown_host_is_an_os_error(served: Served) -> None:
    view = View(dict, list, bool)
    for host, port in (("127.0.0.1", served.port), ("no-such-host.invalid", 0), ("x" * 70, 0), ("192.0.2.1", 0)):
        with pytest.raises(OSError, match=r".+"):
            Endpoints(host, port, view, print)


@contextmanager
def service(exchange: Exchange, port: int, folder: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Run `main.py` without a Kafka; give a function that waits for an event of its log."""
    environment = {
        **os.environ,
        "BINANCE_WS_BASE_URL": exchange.ws_url,
        "BINANCE_REST_BASE_URL": "http://127.0.0.1:9",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
        "MONITORING_PORT": str(port),
        "METRICS_INTERVAL_SECONDS": "0.5",
        "SPOOL_PATH": str(folder / "spool"),
        "SPOOL_MIN_FREE_BYTES": "0",
    }
    command = [sys.executable, str(REPOSITORY / "main.py")]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = map(json.loads, process.stdout)
    try:
        yield lambda event: next(line for line in lines if line["event"] == event)
    finally:
        process.kill()
        process.wait(10.0)
        process.stdout.close()


def test_a_service_whose_port_is_in_use_goes_on_without_endpoints(
    served: Served, exchange: Exchange, tmp_path: Path
) -> None:
    with service(exchange, served.port, tmp_path) as logged:
        said = logged("monitoring_unavailable")
        assert (said["level"], said["port"]) == ("error", served.port)
        assert "MONITORING_PORT" in said["fix"]
        assert logged("connection_opened")


def test_port_0_turns_the_endpoints_off(exchange: Exchange, tmp_path: Path) -> None:
    with service(exchange, 0, tmp_path) as logged:
        assert logged("service_started")["monitoring_port"] is None


def test_a_running_service_shows_its_metrics_and_why_it_is_not_ready(exchange: Exchange, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with service(exchange, port, tmp_path) as logged:
        logged("connection_opened")
        fields = logged("service_metrics").keys() - {"timestamp", "level", "event", "logger"}
        answers = {}
        for path in ("/status", "/ready", "/health"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
            with contextlib.closing(connection):
                connection.request("GET", path)
                response = connection.getresponse()
                answers[path] = response.status, json.loads(response.read())
    assert answers["/status"][1].keys() >= fields
    assert answers["/ready"] == (503, {"ready": False, "reasons": ["not connected to Kafka"]})
    assert answers["/health"] == (200, {"alive": True})
