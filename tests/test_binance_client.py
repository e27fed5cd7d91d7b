"""One subscribed connection against the simulated exchange: limits, losses, backoff, goodbye, counts."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from config.settings import ConnectionConfig
from sandbox.exchange import Limits
from sandbox.exchange.frames import frame
from src.backoff import Backoff
from src.binance_client import BinanceConnection, GaveUp
from src.decoder import EventDecoder
from src.events import Topics
from src.lines import spread
from src.subscriptions import UNSUBSCRIBE, encoded, subscribe_groups
from src.telemetry import Telemetry
from tests.exchange_fixtures import eventually
from tests.test_websocket_wire import PATIENCE, hanging, serving, shake_hands, wait_for_the_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.exchange import Exchange

    Connect = Callable[..., "Reading"]

STREAMS = ("btcusdt@trade", "ethusdt@aggTrade")
AT_ONCE = 0.2


class Reading:
    """A connection whose chunks are read on a thread of its own, as the pipeline does, and then only counted."""

    def __init__(
        self, url: str, streams: tuple[str, ...], telemetry: Telemetry, number: int = 0, **settings: float
    ) -> None:
        quick = {"reconnect_interval": 0.02, "max_reconnect_interval": 0.05, "timeout_seconds": 2.0}
        config = ConnectionConfig(**(quick | settings))
        self.connection = BinanceConnection(number, url, streams, config, telemetry)
        self.telemetry = telemetry
        self.failure: Exception | None = None
        self.events = 0
        self._decoder = EventDecoder(Topics("trades", "depth", "raw"))
        self._thread = threading.Thread(target=self._run, name=f"reading-{number}")

    def start(self) -> Reading:
        self._thread.start()
        return self

    def close(self) -> float:
        """Close and wait for the end of the thread; return how long that took."""
        began = time.monotonic()
        self.connection.close()
        return self.ended() - began

    def ended(self) -> float:
        """Wait for the end of the thread; return the moment."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return time.monotonic()

    def count(self, name: str) -> int:
        return int(self.telemetry.snapshot()[name])

    def _run(self) -> None:
        try:
            for chunk in self.connection.chunks():
                decoded = self._decoder.decode(chunk.frames, chunk.received_ms)
                self.events += len(decoded.events)
                for reply in decoded.replies:
                    self.connection.replied(reply)
        except GaveUp as failure:
            self.failure = failure


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Start a connection; whatever a test leaves open is closed at its end."""
    with ExitStack() as stack:

        def connected(url: str, streams: tuple[str, ...] = STREAMS, **settings: float) -> Reading:
            reading = Reading(url, streams, Telemetry(), **settings).start()
            stack.callback(reading.close)
            return reading

        yield connected


def of(lines: list[Any], event: str) -> list[Any]:
    """Return the log lines of one event."""
    return [line for line in list(lines) if line["event"] == event]


def delays(lines: list[Any]) -> list[float]:
    return [line["delay_seconds"] for line in of(lines, "reconnect_scheduled")]


def subscribed(exchange: Exchange, streams: int = len(STREAMS), connections: int = 1) -> list[dict[str, Any]]:
    """Wait until so many connections are open with so many streams in all; return their records."""

    def look() -> list[dict[str, Any]]:
        known = [each for each in exchange.connections() if each["open"] and each["state"] == "open"]
        whole = len(known) == connections and sum(len(each["subscriptions"]) for each in known) == streams
        return known if whole else []

    found: list[dict[str, Any]] = eventually(look)
    return found


def test_streams_are_spread_over_connections_and_frames_within_the_exchanges_limits() -> None:
    streams = tuple(f"{'这是测试币' * (number % 3)}symbol{number}usdt@depth@100ms" for number in range(3_000))
    groups = spread(streams)
    assert [len(group) for group in groups] == [1024, 1024, 952]
    assert [name for group in groups for name in group] == list(streams)
    for group in groups:
        requests = subscribe_groups(group)
        assert [name for request in requests for name in request] == list(group)
        assert max(map(len, requests)) <= 100
        assert max(len(encoded(UNSUBSCRIBE, request, 2**31)) for request in requests) <= 4_000


def test_3000_streams_are_subscribed_over_3_connections_at_most_4_frames_a_second(
    exchange_factory: Callable[..., Exchange], logged: list[Any]
) -> None:
    exchange = exchange_factory(limits=Limits(frames_per_second=4, subscribe_frame_bytes=4_008))
    streams = tuple(f"s{number:04}usdt@aggTrade" for number in range(3_000))
    telemetry = Telemetry(connections=3)
    readings = [
        Reading(exchange.stream_url, group, telemetry, number).start()
        for number, group in enumerate(spread(streams))
    ]
    try:
        eventually(lambda: sum(line["streams"] for line in of(logged, "subscription_confirmed")) == 3_000)
        known = subscribed(exchange, 3_000, connections=3)
        assert {name for each in known for name in each["subscriptions"]} == set(streams)
        assert telemetry.snapshot()["connected"] is True
    finally:
        for reading in readings:
            reading.close()
    assert telemetry.snapshot()["connection_attempts"] == 3
    assert telemetry.snapshot()["connection_failures"] == 0
    assert telemetry.snapshot()["connected"] is False
    eventually(lambda: {each["ended_by"] for each in exchange.connections()} == {"client close"})


def test_an_error_of_the_exchange_is_logged_with_the_streams_that_it_is_about(
    exchange_factory: Callable[..., Exchange], connect: Connect, logged: list[Any]
) -> None:
    streams = tuple(f"s{number}@trade" for number in range(150))
    exchange = exchange_factory(limits=Limits(streams=120))
    connect(exchange.stream_url, streams)
    (line,) = eventually(lambda: of(logged, "exchange_error"))
    assert "Too many subscriptions" in line["error"]
    assert line["streams"] == list(streams[100:])


def test_an_error_that_names_no_request_is_logged_all_the_same(
    exchange: Exchange, connect: Connect, logged: list[Any]
) -> None:
    connect(exchange.stream_url)
    subscribed(exchange)
    exchange.inject(
        ['{"error":{"code":2,"msg":"Invalid request"},"id":null}', '{"code":0,"msg":"Unknown property"}']
    )
    lines = eventually(lambda: lines if len(lines := of(logged, "exchange_error")) == 2 else None)
    assert [line["streams"] for line in lines] == [None, None]


def test_a_subscription_that_is_not_confirmed_is_reported_once_although_nothing_arrives(
    exchange_factory: Callable[..., Exchange], connect: Connect, logged: list[Any]
) -> None:
    exchange = exchange_factory(limits=Limits(subscribe_frame_bytes=20))
    reading = connect(exchange.stream_url, timeout_seconds=0.3)
    (line,) = eventually(lambda: of(logged, "subscription_unconfirmed"))
    assert line["streams"] == list(STREAMS)
    exchange.inject(["{}"] * 3)
    eventually(lambda: reading.events + 1)
    reading.close()
    assert len(of(logged, "subscription_unconfirmed")) == 1


def test_a_connection_that_is_replaced_subscribes_to_everything_again(
    exchange: Exchange, connect: Connect, logged: list[Any]
) -> None:
    streams = tuple(f"s{number}@trade" for number in range(150))
    reading = connect(exchange.stream_url, streams)
    for replaced in range(1, 3):
        eventually(lambda: sum(line["streams"] for line in of(logged, "subscription_confirmed")) == 150 * replaced)  # noqa: B023
        (record,) = subscribed(exchange, 150)
        assert record["subscriptions"] == list(streams)
        exchange.cut()
    subscribed(exchange, 150)
    assert reading.count("reconnect_count") == reading.count("connection_failures") == 2


def test_a_connection_that_is_opened_again_passes_for_subscribed_only_when_it_has_asked_anew(
    exchange: Exchange, connect: Connect
) -> None:
    reading = connect(exchange.stream_url)
    connection = reading.connection
    eventually(lambda: connection.subscribed)
    plan, seen = connection._subscriptions.start_over, []

    def noted(now: float) -> None:
        seen.append(connection.subscribed)
        plan(now)

    connection._subscriptions.start_over = noted  # type: ignore[method-assign]
    exchange.cut()
    eventually(lambda: seen and connection.subscribed)
    assert seen == [False]


LOSSES = [
    pytest.param(lambda exchange: exchange.cut(), "", id="cut"),
    pytest.param(lambda exchange: exchange.close(code=1000), "1000", id="closed 1000"),
    pytest.param(lambda exchange: exchange.close(code=1001), "1001", id="closed 1001"),
    pytest.param(
        lambda exchange: exchange.close(code=1008, reason="Pong timeout"), "1008 Pong timeout", id="1008"
    ),
    pytest.param(lambda exchange: exchange.close(code=1011), "1011", id="closed 1011"),
    pytest.param(lambda exchange: exchange.close(code=None), "without a code", id="closed without a code"),
    pytest.param(lambda exchange: exchange.mute(), "WentSilent: no frame of any kind for 0.5 s", id="mute"),
    pytest.param(
        lambda exchange: exchange.half_open(), "WentSilent: no frame of any kind for 0.5 s", id="half open"
    ),
]


@pytest.mark.parametrize(("lose", "why"), LOSSES)
def test_a_connection_that_is_lost_is_replaced_and_counted(
    exchange_factory: Callable[..., Exchange],
    connect: Connect,
    logged: list[Any],
    lose: Callable[[Exchange], Any],
    why: str,
) -> None:
    exchange = exchange_factory(limits=Limits(ping_interval_s=0.1))
    reading = connect(exchange.stream_url, silence_timeout_seconds=0.5)
    eventually(lambda: of(logged, "subscription_confirmed"))
    before = reading.telemetry.snapshot()
    assert (before["connected"], before["connection_attempts"], before["reconnect_count"]) == (True, 1, 0)
    lost_at = time.monotonic()
    lose(exchange)
    (line,) = eventually(lambda: of(logged, "connection_lost"))
    assert time.monotonic() - lost_at < 0.5 + 5.0
    assert why in line["error"]
    eventually(lambda: len(of(logged, "subscription_confirmed")) == 2)
    after = reading.telemetry.snapshot()
    assert (after["connected"], after["connection_attempts"], after["reconnect_count"]) == (True, 2, 1)
    assert after["connection_failures"] == 1
    assert exchange.connections()[1]["subscriptions"] == list(STREAMS)


def test_a_connection_on_which_only_pings_come_is_kept(
    exchange_factory: Callable[..., Exchange], connect: Connect
) -> None:
    exchange = exchange_factory(limits=Limits(ping_interval_s=0.25, pong_timeout_s=5.0))
    reading = connect(exchange.stream_url, silence_timeout_seconds=2.0)
    (record,) = eventually(lambda: [each for each in exchange.connections() if each["client_pongs"] >= 12])
    assert record["open"]
    assert reading.events == 0
    assert reading.count("connection_attempts") == 1


def test_the_frames_before_a_close_frame_are_given_out(
    exchange: Exchange, connect: Connect, logged: list[Any]
) -> None:
    reading = connect(exchange.stream_url)
    subscribed(exchange)
    exchange.after(2_000, "close", arguments={"code": 1001})
    exchange.send("btcusdt@trade", ['{"e":"trade","s":"BTCUSDT"}'] * 2_500, wrap=True)
    exchange.rate(100)
    eventually(lambda: of(logged, "connection_lost"))
    assert reading.events >= 2_500
    assert exchange.sent(1)["total"]["events"] == reading.events


def test_the_waits_are_5_10_20_40_and_the_fifth_failure_in_a_row_is_the_last() -> None:
    backoff = Backoff(5, 300, 5)
    assert [backoff.failed() for _ in range(5)] == [5, 10, 20, 40, None]
    backoff = Backoff(5, 300, 0)
    assert [backoff.failed() for _ in range(9)] == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    backoff.succeeded()
    assert [backoff.lost(), *(backoff.failed() for _ in range(4))] == [5, 10, 20, 40, 80]


def refused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_failures_in_a_row_double_the_wait_and_the_fifth_gives_up(connect: Connect, logged: list[Any]) -> None:
    began = time.monotonic()
    reading = connect(f"ws://127.0.0.1:{refused_port()}/stream", reconnect_interval=0.05, max_reconnect_interval=9)
    took = reading.ended() - began
    assert delays(logged) == [0.05, 0.1, 0.2, 0.4]
    assert 0.75 <= took < 0.75 + 5.0  # the fifth wait would be 0.8 s, and then there would be a sixth
    assert str(reading.failure).startswith("5 connection attempts in a row failed: the TCP connection failed")
    metrics = reading.telemetry.snapshot()
    assert metrics["connection_attempts"] == metrics["connection_failures"] == 5
    assert (metrics["reconnect_count"], metrics["connected"]) == (4, False)


def test_without_a_limit_of_failures_it_never_gives_up_and_the_wait_is_capped(
    connect: Connect, logged: list[Any]
) -> None:
    reading = connect(f"ws://127.0.0.1:{refused_port()}/stream", max_retries=0)
    eventually(lambda: len(delays(logged)) > 12)
    assert delays(logged)[:4] == [0.02, 0.04, 0.05, 0.05]
    reading.close()
    assert reading.failure is None


@pytest.mark.parametrize(
    ("refuse", "why"),
    [
        (lambda exchange: exchange.handshake_status(429, 4), "answered 429 Too Many Requests"),
        (lambda exchange: exchange.handshake_status(403, 4), "answered 403 Forbidden"),
        (lambda exchange: exchange.stall_handshake(4), "the WebSocket handshake failed: not done in time"),
        (lambda exchange: exchange.close("next", connections=4, code=1008), "1008"),
        (lambda exchange: exchange.cut("next", connections=4), ""),
    ],
)
def test_four_refusals_and_then_a_good_frame_start_the_count_anew(
    exchange: Exchange, connect: Connect, logged: list[Any], refuse: Callable[[Exchange], Any], why: str
) -> None:
    refuse(exchange)
    reading = connect(exchange.stream_url, timeout_seconds=0.3, max_reconnect_interval=9)
    eventually(lambda: of(logged, "subscription_confirmed"))
    assert delays(logged) == [0.02, 0.04, 0.08, 0.16]
    failures = [line for line in logged if line["event"] in {"connection_failed", "connection_lost"}]
    assert [line["failures_in_a_row"] for line in failures] == [1, 2, 3, 4]
    assert all(why in line["error"] for line in failures)
    exchange.inject(["{}"])
    eventually(lambda: reading.events)
    refuse(exchange)
    exchange.cut()
    eventually(lambda: len(of(logged, "subscription_confirmed")) == 2)
    assert delays(logged)[4:] == [0.02, 0.04, 0.08, 0.16, 0.32]
    metrics = reading.telemetry.snapshot()
    assert metrics["connection_attempts"] == 10
    assert metrics["connection_failures"] == metrics["reconnect_count"] == 9
    assert metrics["connected"] is True


def test_refused_connections_are_tried_again_until_the_exchange_is_back(
    exchange: Exchange, connect: Connect, logged: list[Any]
) -> None:
    exchange.refuse()
    connect(exchange.stream_url, max_retries=0)
    eventually(lambda: len(of(logged, "connection_failed")) >= 6)
    exchange.accept()
    subscribed(exchange)


def test_closing_ends_a_wait_for_the_next_attempt_at_once(connect: Connect, logged: list[Any]) -> None:
    url = f"ws://127.0.0.1:{refused_port()}/stream"
    readings = [connect(url, reconnect_interval=60, max_reconnect_interval=60) for _ in range(3)]
    eventually(lambda: len(delays(logged)) == 3)
    assert min(reading.close() for reading in readings) < AT_ONCE
    assert [reading.failure for reading in readings] == [None] * 3


@pytest.mark.parametrize(
    ("scheme", "behave"),
    [("ws", wait_for_the_end), ("wss", wait_for_the_end), ("ws", None)],
    ids=["handshake", "TLS", "TCP"],
)
def test_closing_ends_an_attempt_at_once(
    connect: Connect, logged: list[Any], scheme: str, behave: Callable[[socket.socket], object] | None
) -> None:
    with hanging(scheme, behave) as url:
        readings = [connect(url) for _ in range(3)]
        eventually(lambda: len(of(logged, "connection_attempted")) == 3)
        assert min(reading.close() for reading in readings) < AT_ONCE
    assert sum(reading.count("connection_failures") for reading in readings) == 0


def test_a_connection_closed_before_it_is_read_opens_nothing(exchange: Exchange) -> None:
    telemetry = Telemetry()
    reading = Reading(exchange.stream_url, STREAMS, telemetry)
    reading.connection.close()
    reading.start().ended()
    assert telemetry.snapshot()["connection_attempts"] == 0


def test_everything_that_was_sent_at_20000_a_second_is_given_out_in_20_of_20_goodbyes(
    exchange_factory: Callable[..., Exchange], connect: Connect, logged: list[Any]
) -> None:
    streams = tuple(
        f"{symbol}@{kind}" for symbol in ("btcusdt", "ethusdt") for kind in ("trade", "aggTrade", "depth@100ms")
    )
    exchange = exchange_factory(rate=20_000, symbols=("BTCUSDT", "ETHUSDT"))
    counted = []
    for number in range(1, 21):
        reading = connect(exchange.stream_url, streams)
        eventually(lambda: reading.events > 2_000)  # noqa: B023
        exchange.burst(1_000)
        reading.close()
        counted.append((reading.events, exchange.sent(number)["total"]["events"]))
    assert [received for received, _ in counted] == [sent for _, sent in counted]
    assert of(logged, "goodbye_unanswered") == []
    eventually(lambda: {each["ended_by"] for each in exchange.connections()} == {"client close"})


def never_stop(peer: socket.socket) -> None:
    """Send frames for ever, whatever the client says, faster than it reads."""
    shake_hands(peer)
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        peer.sendall(frame(b'{"e":"trade"}') * 1_000)


def say_nothing(peer: socket.socket) -> None:
    """Take everything, answer nothing."""
    shake_hands(peer)
    wait_for_the_end(peer)


def test_a_peer_that_does_not_answer_the_goodbye_or_goes_on_sending_costs_3_seconds(
    connect: Connect, logged: list[Any]
) -> None:
    with serving(say_nothing) as silent_port, serving(never_stop) as endless_port:
        readings = [connect(f"ws://127.0.0.1:{port}/stream") for port in (silent_port, endless_port)]
        eventually(lambda: len(of(logged, "connection_opened")) == 2 and readings[1].events)
        began = time.monotonic()
        for reading in readings:
            reading.connection.close()
        took = [reading.ended() - began for reading in readings]
    assert all(3.0 <= each < 4.0 for each in took)
    assert len(of(logged, "goodbye_unanswered")) == 2
    assert [reading.count("connection_failures") for reading in readings] == [0, 0]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.usefixtures("logged")
def test_200_reconnects_leave_no_descriptor_behind(exchange: Exchange, connect: Connect) -> None:
    reading = connect(exchange.stream_url, reconnect_interval=0.001, max_reconnect_interval=0.001, max_retries=0)
    before = 0
    for number in range(201):
        eventually(lambda: reading.count("reconnect_count") >= number and subscribed(exchange))  # noqa: B023
        before = before or (descriptors() if number else 0)
        if number % 3 == 0:
            exchange.handshake_status(503)
        lose = exchange.cut if number % 2 else exchange.close
        lose()
    subscribed(exchange)
    eventually(lambda: descriptors() <= before)
    assert reading.count("reconnect_count") > 200


@pytest.mark.parametrize("status", [418, 429, 503])
def test_a_refusal_that_says_how_long_to_stay_away_is_obeyed(
    exchange: Exchange, connect: Connect, logged: list[Any], status: int
) -> None:
    exchange.handshake_status(status, 1, retry_after_s=1)
    began = time.monotonic()
    connect(exchange.stream_url)
    subscribed(exchange)
    assert time.monotonic() - began >= 1.0
    assert delays(logged) == [1.0]
    assert "retry after 1 s" in of(logged, "connection_failed")[0]["error"]


def confirm_and_hang_up(peer: socket.socket) -> None:
    """Confirm a subscription, and close the connection at once."""
    shake_hands(peer)
    peer.recv(4096)
    peer.sendall(frame(b'{"result":null,"id":1}') + frame(b'{"result":null,"id":2}'))


def test_the_answer_to_our_request_is_a_first_frame_as_good_as_any(connect: Connect, logged: list[Any]) -> None:
    with serving(confirm_and_hang_up) as port:
        reading = connect(f"ws://127.0.0.1:{port}/stream", max_retries=2)
        lost = eventually(lambda: lines if len(lines := of(logged, "connection_lost")) > 4 else None)
        reading.close()
    assert {line["failures_in_a_row"] for line in lost} == {0}
    assert set(delays(logged)) == {0.02}
    assert reading.failure is None
