"""Asking the exchange over REST: each way to fail has a name, and nothing waits longer than it says."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.exchange import RestRules
from src import binance_rest
from src.binance_rest import BinanceRest, Closed, Foreign, Limited, Malformed, Refused, Unreachable
from src.telemetry import Telemetry
from src.weight_budget import WeightBudget
from tests.certificates import Authority
from tests.exchange_fixtures import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox.exchange import Exchange

MINUTE_START_MS = 1_723_161_240_000
"""The exchange's budget begins anew each minute of its clock; a test is not to see that."""


def client(url: str, per_minute: int = 3000) -> BinanceRest:
    return BinanceRest(url, WeightBudget(per_minute), Telemetry())


def asked(rest: BinanceRest) -> dict[str, Any]:
    return rest._telemetry.snapshot()


class Answering:
    """A server that answers each request with the next of the given bytes, then closes the connection or not."""

    def __init__(self, *answers: bytes, keep_open: bool = False, drip: float = 0.0) -> None:
        self._answers = list(answers)
        self._keep_open = keep_open
        self._drip = drip
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self._kept: list[socket.socket] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(10)
            self._kept.append(connection)
            self.requests.append(connection.recv(65536))
            step = 1 if self._drip else max(len(answer), 1)
            try:
                for start in range(0, len(answer), step):
                    connection.sendall(answer[start : start + step])
                    if self._drip and self._ended.wait(self._drip):
                        break
            except OSError:
                pass
            if not self._keep_open:
                connection.close()

    def end(self) -> None:
        self._ended.set()
        self._listener.close()
        for connection in self._kept:
            connection.close()
        self._thread.join(10)


@contextmanager
def answering(*answers: bytes, **more: Any) -> Iterator[Answering]:
    server = Answering(*answers, **more)
    try:
        yield server
    finally:
        server.end()


def http(body: bytes, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body


def test_each_endpoint_is_asked_with_its_weight_and_its_parameters(
    exchange_factory: Callable[..., Exchange],
) -> None:
    exchange = exchange_factory(rate=500.0, symbols=("BTCUSDT", "ETHUSDT"), start_ms=MINUTE_START_MS)
    rest = client(exchange.rest_url)
    weights = []

    def charged(ask: Callable[[], Any]) -> Any:
        before = asked(rest)["rest_weight_used"]
        answer = ask()
        weights.append(asked(rest)["rest_weight_used"] - before)
        return answer

    assert charged(lambda: rest.aggregates("BTCUSDT", 1)).body.startswith(b"[")
    assert charged(lambda: rest.trades("BTCUSDT", 1, 10)).body.startswith(b"[")
    assert charged(lambda: rest.klines("BTCUSDT", "1m", (0, 1))).body == b"[]"
    now = rest.time_ms()
    before = asked(rest)["rest_weight_used"]
    assert rest.klines("BTCUSDT", "1d", (0, now), "08:00").body.startswith(b"[[")
    assert asked(rest)["rest_weight_used"] - before == 2
    for levels in (100, 500, 1000, 5000):
        assert charged(lambda levels=levels: rest.depth("BTCUSDT", levels)).body.startswith(b'{"lastUpdateId":')
    assert [one.name for one in charged(rest.listed)] == ["BTCUSDT", "ETHUSDT"]
    assert rest.listed(("ETHUSDT",)) == [("ETHUSDT", "TRADING", "ETH", "USDT")]
    assert weights == [4, 25, 2, 5, 25, 50, 250, 20]
    requests = asked(rest)["rest_requests_by_endpoint"]
    assert requests == {
        "aggTrades": 1,
        "historicalTrades": 1,
        "klines": 2,
        "depth": 4,
        "exchangeInfo": 2,
        "time": 1,
    }
    assert asked(rest)["rest_requests"] == 11


def test_the_limit_of_weights_is_taken_over_from_exchange_info(exchange_factory: Callable[..., Exchange]) -> None:
    exchange = exchange_factory(rest=RestRules(weight_per_minute=1_000))
    rest = client(exchange.rest_url)
    assert rest.budget.wait_for(2_000) == 0
    rest.listed()
    assert rest.budget.wait_for(2_000) > 0


def test_a_refusal_has_status_code_and_message_of_the_exchange(exchange: Exchange) -> None:
    with pytest.raises(Refused, match="Invalid symbol") as caught:
        client(exchange.rest_url).aggregates("NOSUCH", 1)
    assert (caught.value.status, caught.value.code, caught.value.message) == (400, -1121, "Invalid symbol.")
    assert caught.value.invalid_symbol
    assert not caught.value.passing


@pytest.mark.parametrize(("status", "passing"), [(500, True), (503, True), (403, True), (451, True)])
def test_a_refusal_says_whether_it_may_pass(status: int, *, passing: bool, exchange: Exchange) -> None:
    exchange.rest(status)
    rest = client(exchange.rest_url)
    with pytest.raises(Refused) as caught:
        rest.aggregates("BTCUSDT", 1)
    assert caught.value.passing is passing
    assert asked(rest)["rest_failures_by_reason"] == {"refused": 1}


@pytest.mark.parametrize("status", [429, 418])
def test_a_limit_pauses_everybody_for_as_long_as_the_exchange_says(status: int, exchange: Exchange) -> None:
    exchange.rest(status, retry_after_s=30)
    rest = client(exchange.rest_url)
    with pytest.raises(Limited) as caught:
        rest.aggregates("BTCUSDT", 1)
    assert caught.value.retry_after == 30
    assert 29 < rest.budget.wait_for(1) <= 30


@pytest.mark.parametrize(("status", "seconds"), [(429, 60), (418, 120)])
def test_a_limit_without_a_time_pauses_for_as_long_as_it_usually_takes(
    status: int, seconds: float, exchange: Exchange
) -> None:
    exchange.rest(status)
    with pytest.raises(Limited) as caught:
        client(exchange.rest_url).aggregates("BTCUSDT", 1)
    assert caught.value.retry_after == seconds


def test_the_exchanges_own_budget_is_never_overdrawn_by_many_threads(
    exchange_factory: Callable[..., Exchange],
) -> None:
    exchange = exchange_factory(start_ms=MINUTE_START_MS, rest=RestRules(weight_per_minute=400))
    rest = client(exchange.rest_url, per_minute=300)
    threads = [threading.Thread(target=_ask_until_closed, args=(rest,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    used = exchange._control._rest.budget
    eventually(lambda: used.used >= 300)
    rest.close()
    for thread in threads:
        thread.join(3)
        assert not thread.is_alive()
    assert asked(rest)["rest_failures"] == 0
    assert used.used == 300


def _ask_until_closed(rest: BinanceRest) -> None:
    try:
        while True:
            rest.trades("BTCUSDT", 1, 1)
    except Closed:
        return


def test_an_exchange_that_is_not_there_is_unreachable(exchange: Exchange) -> None:
    exchange.refuse()
    rest = client(exchange.rest_url)
    with pytest.raises(Unreachable):
        rest.aggregates("BTCUSDT", 1)
    exchange.accept()
    assert rest.aggregates("BTCUSDT", 1).body
    with pytest.raises(Unreachable):
        client("http://no-such-host.invalid").time_ms()


def test_a_connection_that_was_closed_meanwhile_is_replaced_without_a_failure() -> None:
    keep = "Connection: keep-alive\r\n"
    with answering(http(b"[]", headers=keep), http(b"[]")) as server:
        rest = client(server.url)
        assert rest.aggregates("BTCUSDT", 1).body == b"[]"
        assert rest.aggregates("BTCUSDT", 1).body == b"[]"
        assert asked(rest)["rest_failures"] == 0


def test_a_connection_that_ends_without_a_word_is_tried_once_more() -> None:
    with answering(b"", http(b"[]")) as server:
        assert client(server.url).aggregates("BTCUSDT", 1).body == b"[]"
    with answering(b"", b"") as server, pytest.raises(Unreachable):
        client(server.url).aggregates("BTCUSDT", 1)


def test_a_silent_exchange_is_unreachable_after_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binance_rest, "TOTAL_SECONDS", 0.3)
    with answering(b"", keep_open=True) as server:
        started = time.monotonic()
        with pytest.raises(Unreachable):
            client(server.url).aggregates("BTCUSDT", 1)
        assert 0.25 < time.monotonic() - started < 5


def test_an_answer_that_drips_is_unreachable_after_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binance_rest, "TOTAL_SECONDS", 0.6)
    monkeypatch.setattr(binance_rest, "_CHUNK", 4)
    with answering(http(b"[" + b" " * 2000 + b"]"), drip=0.005) as server:
        started = time.monotonic()
        with pytest.raises(Unreachable, match="not complete"):
            client(server.url).aggregates("BTCUSDT", 1)
        assert time.monotonic() - started < 3


MALFORMED = {
    "empty": http(b""),
    "cut off": http(b'[{"a":1', length=100),
    "cut off in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1,2,",
    "no gzip": http(b"[]", headers="Content-Encoding: gzip\r\n"),
    "too large": http(b"x" * 5000),
    "a bomb": http(gzip.compress(b"0" * 100_000_000), headers="Content-Encoding: gzip\r\n"),
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_an_answer_that_is_none_is_malformed(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binance_rest, "MAX_BODY_BYTES", 4000)
    with answering(answer) as server:
        rest = client(server.url)
        with pytest.raises(Malformed):
            rest.aggregates("BTCUSDT", 1)
        assert asked(rest)["rest_failures_by_reason"] == {"malformed": 1}


@pytest.mark.parametrize("body", ["<html>busy</html>", "[]", '{"symbols":[]}', '{"serverTime":"now"}', "{}"])
def test_a_time_or_a_list_of_symbols_of_another_shape_is_malformed(body: str, exchange: Exchange) -> None:
    exchange.rest(body=body, count=2)
    rest = client(exchange.rest_url)
    with pytest.raises(Malformed):
        rest.time_ms()
    with pytest.raises(Malformed):
        rest.listed()


@pytest.mark.parametrize(("code", "passing"), [(-1102, False), (-1001, True), (-1008, True)])
def test_a_code_of_the_exchange_says_whether_a_refusal_may_pass(
    code: int, *, passing: bool, exchange: Exchange
) -> None:
    exchange.rest(400, body=f'{{"code":{code},"msg":"so it is"}}')
    with pytest.raises(Refused, match="so it is") as caught:
        client(exchange.rest_url).aggregates("BTCUSDT", 1)
    assert (caught.value.code, caught.value.passing) == (code, passing)


@pytest.mark.parametrize("status", [204, 302, 400, 401, 403, 404, 451])
@pytest.mark.parametrize("body", ["", "<html>not here</html>", '{"code":0,"msg":"not in your place"}', "[]"])
def test_an_error_without_a_code_of_the_exchange_is_somebody_elses(
    status: int, body: str, exchange: Exchange
) -> None:
    exchange.rest(status, body=body)
    rest = client(exchange.rest_url)
    with pytest.raises(Foreign, match=f"status {status}"):
        rest.aggregates("BTCUSDT", 1)
    assert asked(rest)["rest_failures_by_reason"] == {"unreachable": 1}


def test_an_error_page_without_json_keeps_its_status_and_the_start_of_its_text() -> None:
    with answering(http(b"<html>\xff gateway</html>", status="502 Bad Gateway")) as server:
        with pytest.raises(Refused, match="gateway") as caught:
            client(server.url).aggregates("BTCUSDT", 1)
        assert (caught.value.status, caught.value.code, caught.value.passing) == (502, None, True)


def test_a_packed_answer_is_unpacked() -> None:
    with answering(http(gzip.compress(b"[1]"), headers="Content-Encoding: gzip\r\n")) as server:
        assert client(server.url).aggregates("BTCUSDT", 1).body == b"[1]"
        assert b"Accept-Encoding: gzip\r\n" in server.requests[0]


def test_a_redirect_is_not_followed() -> None:
    with answering(http(b"", status="302 Found", headers="Location: http://127.0.0.1:1/\r\n")) as server:
        with pytest.raises(Foreign, match="status 302"):
            client(server.url).aggregates("BTCUSDT", 1)
        assert len(server.requests) == 1


def test_symbols_of_any_script_are_asked_for(exchange_factory: Callable[..., Exchange]) -> None:
    exchange = exchange_factory(symbols=("BTCUSDT", "这是测试币456"))
    rest = client(exchange.rest_url)
    assert [one.name for one in rest.listed(("这是测试币456",))] == ["这是测试币456"]
    assert rest.aggregates("这是测试币456", 1).body == b"[]"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_closing_ends_the_wait_for_an_answer_at_once(
    *, secure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mute_server(tmp_path, monkeypatch, secure=secure) as url:
        rest = client(url)
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                rest.aggregates("BTCUSDT", 1)
            except Closed as closed:
                failures.append(closed)

        thread = threading.Thread(target=ask)
        thread.start()
        eventually(lambda: rest._sockets._open)
        closed_at = time.monotonic()
        rest.close()
        thread.join(20)
        assert time.monotonic() - closed_at < 5
        assert len(failures) == 1
        assert asked(rest)["rest_failures"] == 0
        with pytest.raises(Closed):
            rest.time_ms()


@contextmanager
def mute_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, secure: bool) -> Iterator[str]:
    """Take connections, with TLS or without, and answer nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []
    context = None
    if secure:
        authority = Authority(tmp_path)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*authority.issue("localhost"))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))

    def serve() -> None:
        try:
            connection, _ = listener.accept()
            kept.append(context.wrap_socket(connection, server_side=True) if context else connection)
        except (OSError, ssl.SSLError):
            return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"{'https' if secure else 'http'}://localhost:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # ends `accept`, which closing does not
        listener.close()
        thread.join(5)
        for connection in kept:
            connection.close()
