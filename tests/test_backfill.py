"""What is missing is fetched from the simulated exchange, in time or in the background, whatever REST does."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from config.settings import BackfillConfig
from sandbox.exchange import Exchange, RestRules, Settings
from src import backfill as subject
from src.backfill import Backfill
from src.binance_rest import BinanceRest
from src.buffer import Buffer
from src.continuity import Continuity
from src.deadline import Deadline
from src.decoder import EventDecoder
from src.events import Topics
from src.holes import Gap, Hole
from src.outage import Pace
from src.refetch import Refetch
from src.telemetry import Telemetry
from src.weight_budget import WeightBudget
from tests.exchange_fixtures import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from src.events import Event
    from src.holes import Interval
    from tests.exchange_fixtures import Client

TOPICS = Topics("trades", "depth", "raw")
START_MS = 1_723_161_240_000
QUICK = Pace(
    first_delay=0.02, longest_delay=0.1, not_served_after=0.6, longest_retry=0.2, failing_after=0.5, tries=3
)


class Wanting:
    """What Continuity is to the backfill, in memory: holes, and snapshots that are wanted from an id on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holes: dict[str, Hole] = {}
        self.events: list[Event] = []
        self.abandoned: list[tuple[str, str, Sequence[Interval] | None]] = []
        self.given_up: list[tuple[str, str, float]] = []
        self.snapshots_wanted: dict[str, int] = {}
        self.held: set[str] = set()
        self.snapshots: list[Event] = []
        self.snapshots_abandoned: list[tuple[str, str]] = []
        self.snapshots_given_up: list[str] = []
        self.not_wanted_any_more = threading.Event()

    def open(self, gap: Gap) -> Gap:
        with self._lock:
            self._holes[gap.id] = Hole(gap)
        return gap

    def missing(self, gap: Gap) -> list[Interval]:
        with self._lock:
            return list(self._holes[gap.id].missing)

    def remaining(self, gap: Gap) -> list[Interval]:
        return [] if self.not_wanted_any_more.is_set() else self.missing(gap)

    def offer(self, gap: Gap, events: list[Event]) -> None:
        with self._lock:
            hole = self._holes[gap.id]
            assert [event.first_id for event in events] == sorted({event.first_id for event in events})
            assert all(gap.first <= event.first_id and event.last_id <= gap.last for event in events)
            self.events += [event for event in events if hole.offer(event)]

    def abandon(self, gap: Gap, reason: str, only: Sequence[Interval] | None = None) -> None:
        with self._lock:
            hole = self._holes[gap.id]
            hole.give_up(list(hole.missing) if only is None else only)
            self.abandoned.append((gap.stream, reason, only))

    def give_up_order(self, gap: Gap, reason: str) -> None:
        self.given_up.append((gap.stream, reason, time.monotonic()))

    def expect_snapshot(self, stream: str) -> bool:
        with self._lock:
            if stream in self.snapshots_wanted:
                self.held.add(stream)
            return stream in self.snapshots_wanted

    def offer_snapshot(self, stream: str, event: Event) -> bool:
        with self._lock:
            self.snapshots.append(event)
            if event.last_id < self.snapshots_wanted[stream]:
                return False
            self.held.discard(stream)
            del self.snapshots_wanted[stream]
            return True

    def abandon_snapshot(self, stream: str, reason: str, *, for_good: bool = False) -> None:
        with self._lock:
            self.held.discard(stream)
            self.snapshots_abandoned.append((stream, reason))
            if for_good:
                self.snapshots_given_up.append(stream)

    def reasons(self) -> set[str]:
        return {reason for _, reason, _ in self.given_up}


class Scene:
    """A backfill at work between the exchange and a stand-in for what wants its events."""

    def __init__(self, exchange: Exchange, pace: Pace, per_minute: int, settings: dict[str, Any]) -> None:
        self.exchange = exchange
        self.telemetry = Telemetry()
        self.ended: list[BaseException | None] = []
        self.wanting = Wanting()
        config = BackfillConfig(**settings)
        self.rest = BinanceRest(exchange.rest_url, WeightBudget(per_minute), self.telemetry)
        self.backfill = Backfill(
            *(config, self.rest, TOPICS, self.telemetry), lambda worker: self.ended.append(worker.failure), pace
        )
        self.backfill.attach(self.wanting)
        self.backfill.start()

    @property
    def newest(self) -> dict[str, int]:
        tape = self.exchange.core.market.by_name["BTCUSDT"].tape
        return {"trade": tape.next_trade - 1, "aggTrade": tape.next_aggregate - 1}

    def gap(self, kind: str, count: int, symbol: str = "BTCUSDT", *, ahead: int = 0) -> Gap:
        """Open a gap of the newest ids, or of ids that are yet to come."""
        tape = self.exchange.core.market.by_name[symbol].tape
        newest = {"trade": tape.next_trade - 1, "aggTrade": tape.next_aggregate - 1}[kind]
        event_type = {"trade": "trade", "aggTrade": "aggregate_trade"}[kind]
        return self.request(f"{symbol.lower()}@{kind}", event_type, (newest - count + 1 + ahead, newest + ahead))

    def request(self, stream: str, event_type: str, ids: Interval) -> Gap:
        symbol = stream.partition("@")[0].upper()
        gap = Gap(stream, event_type, symbol, *ids, "jump", time.time_ns() // 1_000_000)
        self.wanting.open(gap)
        self.backfill.request(gap)
        return gap

    def want_snapshot(self, symbol: str = "BTCUSDT", from_id: int = 0) -> str:
        stream = f"{symbol.lower()}@depth@100ms"
        self.wanting.snapshots_wanted[stream] = from_id
        self.backfill.request_snapshot(stream, symbol)
        return stream

    def filled(self, gap: Gap, within: float = 10.0) -> list[int]:
        """Wait until nothing of a gap is missing and give the ids that came."""
        eventually(lambda: not self.wanting.missing(gap), within)
        return [event.first_id for event in self.wanting.events if event.route.stream == gap.stream]

    @property
    def used(self) -> int:
        """What the exchange has counted in its minute."""
        return self.exchange._control._rest.budget.used

    def counted(self, name: str) -> Any:
        return self.telemetry.snapshot()[name]


@contextmanager
def scene(  # noqa: PLR0913 - each has its default
    *,
    pace: Pace = QUICK,
    per_minute: int = 3000,
    rules: RestRules | None = None,
    symbols: tuple[str, ...] = ("BTCUSDT", "ETHUSDT"),
    start_ms: int | None = None,
    rate: float = 0.0,
    **settings: Any,
) -> Iterator[Scene]:
    """Run an exchange with some history and a backfill; at the end no thread has failed and none is left."""
    with Exchange(Settings(symbols=symbols, rest=rules or RestRules(), start_ms=start_ms, rate=rate)) as exchange:
        for symbol in symbols[:2]:
            exchange.burst(3_000, symbol)
        running = Scene(exchange, pace, per_minute, settings)
        assert running.backfill.alive
        try:
            yield running
        finally:
            running.backfill.finish(Deadline(0.0))
            eventually(lambda: len(running.ended) == subject.WORKERS)
        assert running.ended == [None] * subject.WORKERS
        assert not running.backfill.alive


def ids(gap: Gap) -> list[int]:
    return list(range(gap.first, gap.last + 1))


# All goes well


@pytest.mark.parametrize("kind", ["trade", "aggTrade"])
@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2500])
def test_a_gap_is_filled_with_each_id_once_and_in_order(kind: str, count: int) -> None:
    with scene() as running:
        gap = running.gap(kind, count)
        assert running.filled(gap) == ids(gap)
        assert not running.wanting.given_up
        assert not running.wanting.abandoned
        eventually(lambda: running.backfill.open_gaps == 0)
        endpoint = {"trade": "historicalTrades", "aggTrade": "aggTrades"}[kind]
        assert running.counted("rest_requests_by_endpoint") == {endpoint: -(-count // 1000)}


@pytest.mark.parametrize("stream", ["btcusdt@kline_1s", "btcusdt@kline_1s@+08:00"])
def test_bars_are_filled_once_they_are_closed(stream: str) -> None:
    with scene(rate=200.0, pace=QUICK._replace(not_served_after=30)) as running:
        first = (time.time_ns() // 1_000_000_000 + 1) * 1000
        gap = running.request(stream, "kline", (first, first + 1_999))
        assert running.filled(gap, 15) == [first, first + 1000]
        bars = [json.loads(event.value)["k"] for event in running.wanting.events]
        assert all(bar["x"] for bar in bars)
        kept = running.exchange.core.market.by_name["BTCUSDT"].bars.klines("1s", 0)
        count = {bar.opening: bar.count for bar in kept}
        assert [bar["n"] for bar in bars] == [count[bar["t"]] for bar in bars]
        assert any(count[bar["t"]] for bar in bars)


class OnlyBars(BaseHTTPRequestHandler):
    """A REST interface that serves the closed bars of minutes 1 and 2, and nothing else, its time neither."""

    def do_GET(self) -> None:
        bars = [[start, *"1111", "1", start + 59_999, "1", 1, "1", "1", "0"] for start in (60_000, 120_000)]
        body = json.dumps(bars).encode()
        self.send_response(200 if "/klines?" in self.path else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_bars_come_from_an_exchange_that_does_not_tell_its_time_too() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), OnlyBars) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        rest = BinanceRest(f"http://127.0.0.1:{server.server_port}", WeightBudget(3000), Telemetry())
        gap = Gap("btcusdt@kline_1m", "kline", "BTCUSDT", 60_000, 179_999, "jump", 0)
        events = Refetch(rest, TOPICS, Telemetry()).page(gap, (gap.first, gap.last))
        assert [event.first_id for event in events] == [60_000, 120_000]
        rest.close()
        server.shutdown()


def test_a_snapshot_is_taken_with_as_many_levels_as_are_set() -> None:
    with scene(snapshot_levels=100, symbols=("BTCUSDT", "ETHUSDT", "SOLUSDT")) as running:
        stream = running.want_snapshot("SOLUSDT")
        eventually(lambda: not running.wanting.snapshots_wanted)
        (event,) = running.wanting.snapshots
        book = json.loads(event.value)
        assert (len(book["bids"]), len(book["asks"]), book["stream"]) == (100, 100, stream)
        assert (
            event.last_id == book["lastUpdateId"] == running.exchange.core.market.by_name["SOLUSDT"].book.update_id
        )
        eventually(lambda: running.counted("snapshots_taken") == 1)


def test_a_snapshot_that_is_too_old_is_taken_again_until_it_is_not() -> None:
    with scene() as running:
        book = running.exchange.core.market.by_name["BTCUSDT"].book
        running.want_snapshot(from_id=book.update_id + 1)
        eventually(lambda: len(running.wanting.snapshots) >= 3)
        assert running.wanting.held
        running.exchange.burst(100, "BTCUSDT")
        eventually(lambda: not running.wanting.snapshots_wanted)
        assert running.wanting.snapshots[-1].last_id > running.wanting.snapshots[0].last_id


def test_a_snapshot_that_nobody_wants_any_more_is_not_asked_for() -> None:
    with scene() as running:
        running.backfill.request_snapshot("btcusdt@depth", "BTCUSDT")
        gap = running.gap("aggTrade", 10)
        running.filled(gap)
        eventually(lambda: running.backfill.open_gaps == 0)
        assert running.counted("rest_requests_by_endpoint") == {"aggTrades": 1}


def test_what_is_filled_meanwhile_on_another_way_is_not_asked_for() -> None:
    with scene() as running:
        running.exchange.rest(delay_s=0.3)
        gap = running.gap("aggTrade", 2_500)
        eventually(lambda: running.counted("rest_requests") == 1)
        running.wanting.abandon(gap, "elsewhere")
        eventually(lambda: running.backfill.open_gaps == 0)
        assert running.counted("rest_requests") == 1


class Silent:
    """A ledger that nobody reads."""

    def gap_opened(self, gap: Gap) -> None: ...
    def gap_filled(self, gap: Gap, count: int) -> None: ...
    def gap_unfillable(self, gap: Gap, missing: Sequence[Interval], reason: str) -> None: ...
    def order_given_up(self, gap: Gap, reason: str) -> None: ...
    def renumbered(self, stream: str, symbol: str, expected: int, got: int) -> None: ...
    def snapshot_taken(self, stream: str, symbol: str, last_update_id: int) -> None: ...


def test_what_a_live_stream_leaves_out_is_put_in_its_place(connect: Callable[[str], Client]) -> None:
    with scene(rate=1_000.0, symbols=("BTCUSDT",)) as running:
        buffer, decoder = Buffer(1, 0.001), EventDecoder(TOPICS)
        continuity = Continuity(buffer, running.backfill, Silent(), running.telemetry, BackfillConfig())
        running.backfill.attach(continuity)
        client = connect(f"{running.exchange.stream_url}?streams=btcusdt@trade/btcusdt@aggTrade")
        live = [event for _ in range(1_500) for event in decoder.decode([client.frame()[1]], START_MS).events]
        kept = [event for number, event in enumerate(live) if number % 100 < 60 or number > 1_400]
        for start in range(0, len(kept), 50):
            assert continuity.put(kept[start : start + 50], 0)
        eventually(lambda: continuity.held == 0 and running.backfill.open_gaps == 0)
        passed = buffer._events
        for kind in ("trade", "aggregate_trade"):
            came = [event.first_id for event in passed if event.route.event_type == kind]
            assert came == [event.first_id for event in live if event.route.event_type == kind]
        assert len(passed) == len(live) > len(kept)


# What is not there yet, or never


def test_data_that_is_not_there_yet_is_asked_for_until_it_is() -> None:
    with scene(pace=QUICK._replace(not_served_after=30)) as running:
        running.exchange.rest(lag_s=1.0)
        running.exchange.burst(100, "BTCUSDT")
        gap = running.gap("aggTrade", 50)
        assert running.filled(gap) == ids(gap)
        assert running.counted("rest_requests") > 2
        assert not running.wanting.given_up


def test_data_that_never_comes_is_given_up_after_a_while() -> None:
    with scene() as running:
        gap = running.gap("aggTrade", 50, ahead=20)
        eventually(lambda: running.wanting.abandoned)
        assert running.wanting.abandoned == [(gap.stream, "not_served", None)]
        assert [event.first_id for event in running.wanting.events] == ids(gap)[:30]
        eventually(lambda: running.backfill.open_gaps == 0)


def test_ids_that_the_exchange_skips_are_asked_for_a_few_times_and_just_these_given_up() -> None:
    with scene() as running:
        gap = running.gap("aggTrade", 300)
        running.filled(gap)
        rows = json.loads(running.rest.aggregates("BTCUSDT", gap.first, 300).body)
        present = [row for row in rows if not gap.first + 100 <= row["a"] <= gap.first + 109]
        before = running.counted("rest_requests")
        running.wanting.events.clear()
        again = running.wanting.open(gap)
        running.exchange.rest(body=json.dumps(present))
        running.exchange.rest(
            body=json.dumps([row for row in present if row["a"] > gap.first + 109][:10]), count=3
        )
        running.backfill.request(again)
        skipped = (gap.first + 100, gap.first + 109)
        assert running.filled(gap) == [number for number in ids(gap) if not skipped[0] <= number <= skipped[1]]
        assert running.wanting.abandoned == [(gap.stream, "skipped_by_exchange", [skipped])]
        assert running.counted("rest_requests") == before + 4


@pytest.mark.parametrize("kind", ["trade", "aggTrade"])
@pytest.mark.parametrize("off_by", [-1000, 1000])
def test_an_answer_with_other_ids_than_were_asked_for_is_no_proof_that_they_do_not_exist(
    kind: str, off_by: int
) -> None:
    with scene(pace=QUICK._replace(failing_after=60.0)) as running:
        first = running.newest[kind] - 1500
        endpoint = {"trade": running.rest.trades, "aggTrade": running.rest.aggregates}[kind]
        others = endpoint("BTCUSDT", first + off_by, 20).body.decode()
        running.exchange.rest(body=others, count=5)
        gap = running.gap(kind, 20, ahead=first + 19 - running.newest[kind])
        assert running.filled(gap) == ids(gap)
        assert not running.wanting.abandoned
        assert running.counted("rest_failures") == 5


def test_what_the_exchange_does_not_keep_any_more_is_named_and_the_rest_is_filled() -> None:
    with scene() as running:
        tape = running.exchange.core.market.by_name["BTCUSDT"].tape
        oldest = tape.oldest_aggregate
        gap = running.request("btcusdt@aggTrade", "aggregate_trade", (oldest - 5, oldest + 5))
        assert running.filled(gap) == list(range(oldest, oldest + 6))
        assert running.wanting.abandoned == [(gap.stream, "skipped_by_exchange", [(oldest - 5, oldest - 1)])]


def test_a_symbol_that_the_exchange_does_not_know_is_given_up_at_once() -> None:
    with scene() as running:
        gap = running.request("nosuch@aggTrade", "aggregate_trade", (1, 5))
        stream = running.want_snapshot("NOSUCH")
        eventually(lambda: running.wanting.abandoned and running.wanting.snapshots_abandoned)
        assert running.wanting.abandoned == [(gap.stream, "invalid_symbol", None)]
        assert running.wanting.snapshots_abandoned == [(stream, "invalid_symbol")]
        assert running.wanting.snapshots_given_up == [stream]
        assert running.counted("rest_requests") == 2


def test_what_no_request_brings_back_is_given_up_at_once() -> None:
    with scene() as running:
        lost = [
            ("btcusdt@depth", "depth_update"),
            ("btcusdt@kline", "kline"),
            ("klines", "kline"),
            ("btcusdt@bookTicker", "book_ticker"),
        ]
        for stream, event_type in lost:
            running.request(stream, event_type, (1, 5))
        eventually(lambda: len(running.wanting.abandoned) == len(lost))
        assert {reason for _, reason, _ in running.wanting.abandoned} == {"not_refetchable"}
        assert running.counted("rest_requests") == 0


def test_a_request_that_is_refused_for_good_is_given_up_after_a_few_tries() -> None:
    with scene() as running:
        running.exchange.rest(400, count=10, body='{"code":-1102,"msg":"A mandatory parameter was not sent."}')
        gap = running.gap("trade", 5)
        eventually(lambda: running.wanting.abandoned)
        assert running.wanting.abandoned == [(gap.stream, "refused", None)]
        assert running.counted("rest_requests") == 3


PAGES = {
    "a page that is not there": (404, "<html>nothing here</html>"),
    "a firewall": (403, "<html>blocked</html>"),
    "a place": (451, '{"code":0,"msg":"Service unavailable from a restricted location"}'),
    "a redirect": (302, ""),
    "a bad request": (400, "<html>bad request</html>"),
}


@pytest.mark.parametrize(("status", "page"), PAGES.values(), ids=PAGES)
def test_what_somebody_else_answers_is_no_refusal_and_is_asked_for_until_the_exchange_does(
    status: int, page: str
) -> None:
    with scene(pace=QUICK._replace(failing_after=60)) as running:
        running.exchange.rest(status, count=8, body=page)
        gap = running.gap("trade", 5)
        stream = running.want_snapshot()
        assert running.filled(gap) == ids(gap)
        eventually(lambda: not running.wanting.snapshots_wanted)
        assert running.wanting.reasons() == {"rest_unreachable"}
        assert {name for name, _ in running.wanting.snapshots_abandoned} <= {stream}
        assert not running.wanting.abandoned
        assert running.counted("rest_failures_by_reason") == {"unreachable": 8}


def test_what_somebody_else_answers_for_ever_is_given_up_in_the_end() -> None:
    with scene() as running:
        running.exchange.rest(404, count=1_000, body="<html>nothing here</html>")
        gap = running.gap("aggTrade", 5)
        eventually(lambda: running.wanting.abandoned)
        assert running.wanting.abandoned == [(gap.stream, "rest_failing", None)]


class OnlyAggregates(BaseHTTPRequestHandler):
    """An exchange behind a proxy that serves aggregate trades, slowly, and has a page of its own for all else."""

    def do_GET(self) -> None:
        """Answer."""
        path, _, query = self.path.partition("?")
        if path.endswith("aggTrades"):
            time.sleep(0.5)
            fields = dict(field.split("=") for field in query.split("&"))
            first = int(fields["fromId"])
            rows = [
                {"a": number, "p": "1.0", "q": "1.0", "f": 1, "l": 1, "T": START_MS, "m": True, "M": True}
                for number in range(first, first + int(fields["limit"]))
            ]
            status, body = 200, json.dumps(rows).encode()
        else:
            status, body = 404, b"<html>nothing here</html>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_an_endpoint_that_is_not_there_keeps_nobody_from_the_others() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), OnlyAggregates) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        telemetry, wanting = Telemetry(), Wanting()
        rest = BinanceRest(f"http://127.0.0.1:{server.server_port}", WeightBudget(3000), telemetry)
        backfill = Backfill(BackfillConfig(), rest, TOPICS, telemetry, lambda _: None)
        backfill.attach(wanting)
        backfill.start()

        def request(kind: str, event_type: str) -> Gap:
            gap = wanting.open(Gap(f"btcusdt@{kind}", event_type, "BTCUSDT", 1, 5, "jump", 0))
            backfill.request(gap)
            return gap

        under_way = request("aggTrade", "aggregate_trade")
        request("trade", "trade")
        eventually(lambda: wanting.given_up)
        assert wanting.missing(under_way)
        eventually(lambda: not wanting.missing(under_way))
        asked = telemetry.snapshot()["rest_failures"]
        eventually(lambda: telemetry.snapshot()["rest_failures"] > asked)
        later = request("aggTrade", "aggregate_trade")
        eventually(lambda: not wanting.missing(later))
        assert {stream for stream, _, _ in wanting.given_up} == {"btcusdt@trade"}
        backfill.finish(Deadline(5))
        server.shutdown()


def test_nothing_is_asked_for_when_the_backfill_is_turned_off() -> None:
    with scene(enabled=False) as running:
        gap = running.gap("trade", 5)
        stream = running.want_snapshot()
        eventually(lambda: running.wanting.abandoned and running.wanting.snapshots_abandoned)
        assert running.wanting.abandoned == [(gap.stream, "backfill_disabled", None)]
        assert running.wanting.snapshots_abandoned == [(stream, "backfill_disabled")]
        assert running.counted("rest_requests") == 0


def test_more_gaps_than_can_be_kept_are_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_GAPS", 3)
    with scene() as running:
        running.exchange.rest(delay_s=0.5)
        gaps = [running.gap("aggTrade", 10) for _ in range(3)]
        more = running.request("ethusdt@trade", "trade", (1, 2))
        eventually(lambda: running.wanting.abandoned, 5)
        assert running.wanting.abandoned == [(more.stream, "too_many_gaps", None)]
        for gap in gaps:
            running.filled(gap)


# In time, or in the background


def test_a_gap_that_cannot_be_fetched_in_time_lets_live_events_pass_at_once_and_is_filled_later() -> None:
    with scene(per_minute=300, max_wait_seconds=20) as running:
        running.exchange.rest(delay_s=0.05)
        requested_at = time.monotonic()
        gap = running.request("btcusdt@aggTrade", "aggregate_trade", (1, 200_000_000))
        eventually(lambda: running.wanting.given_up)
        ((stream, reason, at),) = running.wanting.given_up
        assert (stream, reason) == (gap.stream, "too_large")
        assert at - requested_at < 10
        eventually(lambda: running.counted("rest_requests") > 2)


def test_small_gaps_and_snapshots_overtake_a_large_one_and_symbols_take_turns() -> None:
    with scene(per_minute=6000, max_wait_seconds=0.5) as running:
        running.exchange.burst(60_000, "BTCUSDT")
        running.exchange.rest(delay_s=0.05)
        large = running.gap("aggTrade", 50_000)
        eventually(lambda: running.wanting.given_up)
        small = running.gap("aggTrade", 500, "ETHUSDT")
        running.want_snapshot("ETHUSDT")
        running.filled(small, 2)
        eventually(lambda: not running.wanting.snapshots_wanted)
        assert running.wanting.missing(large)
        assert [stream for stream, _, _ in running.wanting.given_up] == [large.stream]
        running.filled(large, 20)


def test_the_background_leaves_a_part_of_the_budget_for_what_is_urgent() -> None:
    with scene(per_minute=300, max_wait_seconds=0.5, start_ms=START_MS) as running:
        running.exchange.burst(60_000, "BTCUSDT")
        running.gap("trade", 40_000)
        eventually(lambda: running.used == 225)
        small = running.gap("trade", 5, "ETHUSDT")
        running.filled(small, 1)
        assert running.used == 250
        assert running.wanting.reasons() == {"too_large"}


def test_many_gaps_beyond_the_budget_of_a_minute_never_overdraw_it() -> None:
    with scene(per_minute=300, start_ms=START_MS, rules=RestRules(weight_per_minute=300)) as running:
        gaps = [running.gap("trade", number + 1) for number in range(40)]
        eventually(lambda: running.used >= 300)
        eventually(lambda: running.wanting.reasons() == {"rest_limited"})
        assert running.counted("rest_failures") == 0
        assert running.used == 300
        eventually(lambda: sum(not running.wanting.missing(gap) for gap in gaps) == 12)
        assert not running.wanting.abandoned


# When REST does not do what it should


def test_live_events_never_wait_for_an_exchange_that_is_not_there_and_all_is_filled_when_it_is() -> None:
    with scene() as running:
        running.exchange.refuse()
        requested_at = time.monotonic()
        gaps = [
            running.gap(kind, 700, symbol) for kind in ("trade", "aggTrade") for symbol in ("BTCUSDT", "ETHUSDT")
        ]
        stream = running.want_snapshot()
        eventually(lambda: len(running.wanting.given_up) == 4)
        assert (
            max(at for _, _, at in running.wanting.given_up) - requested_at < 5
        )  # half of what they wait for an exchange that is there
        assert running.wanting.reasons() == {"rest_unreachable"}
        eventually(lambda: (stream, "rest_unreachable") in running.wanting.snapshots_abandoned)
        assert not running.wanting.held
        running.exchange.accept()
        for gap in gaps:
            assert running.filled(gap) == ids(gap)
        eventually(lambda: not running.wanting.snapshots_wanted)
        assert not running.wanting.abandoned


def test_an_exchange_that_is_not_there_is_left_alone_for_longer_and_longer() -> None:
    with scene(pace=QUICK._replace(longest_retry=60)) as running:
        running.exchange.refuse()
        for _ in range(50):
            running.gap("aggTrade", 5)
        eventually(lambda: len(running.wanting.given_up) == 50)
        assert running.counted("rest_requests") <= subject.WORKERS


@pytest.mark.parametrize("status", [500, 503, 403])
def test_a_refusal_that_may_pass_is_waited_for(status: int) -> None:
    with scene(pace=QUICK._replace(failing_after=30)) as running:
        running.exchange.rest(status, count=3)
        gap = running.gap("aggTrade", 100)
        stream = running.want_snapshot()
        assert running.filled(gap) == ids(gap)
        eventually(lambda: not running.wanting.snapshots_wanted)
        assert not running.wanting.abandoned
        assert {name for name, _ in running.wanting.snapshots_abandoned} <= {stream}
        assert running.counted("rest_failures_by_reason") == {"refused": 3}


WRONG = {
    "no JSON": "<html>busy</html>",
    "empty": "",
    "of another shape": '[{"id":1}]',
    "cut off": '[{"a":1,"p":"1.0"',
    "an object": "{}",
    "null": "null",
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_an_answer_that_is_none_is_asked_for_again(body: str) -> None:
    with scene() as running:
        running.exchange.rest(body=body, count=2)
        gap = running.gap("aggTrade", 100)
        assert running.filled(gap) == ids(gap)
        running.exchange.rest(body=body, count=2)
        running.want_snapshot()
        eventually(lambda: not running.wanting.snapshots_wanted)
        assert running.counted("rest_failures_by_reason") == {"malformed": 4}
        assert not running.wanting.abandoned


def test_answers_that_stay_useless_for_long_are_given_up() -> None:
    with scene() as running:
        running.exchange.rest(body="nonsense", count=1_000)
        gap = running.gap("aggTrade", 5)
        eventually(lambda: running.wanting.abandoned)
        assert running.wanting.abandoned == [(gap.stream, "rest_failing", None)]


@pytest.mark.parametrize("status", [429, 418])
def test_a_limit_stops_all_workers_until_it_is_over_and_lets_live_events_pass_when_that_is_long(
    status: int,
) -> None:
    with scene(max_wait_seconds=1) as running:
        running.exchange.rest(status, retry_after_s=2)
        gaps = [
            running.gap(kind, 100, symbol) for kind in ("trade", "aggTrade") for symbol in ("BTCUSDT", "ETHUSDT")
        ]
        stream = running.want_snapshot()
        eventually(lambda: running.counted("rest_failures") == 1)
        limited_at = time.monotonic()
        eventually(lambda: stream not in running.wanting.held)
        eventually(lambda: running.wanting.given_up or not any(map(running.wanting.missing, gaps)))
        for gap in gaps:
            assert running.filled(gap) == ids(gap)
        eventually(lambda: not running.wanting.snapshots_wanted)
        assert time.monotonic() - limited_at > 1.5
        assert running.counted("rest_failures") == 1
        assert running.wanting.reasons() <= {"rest_limited"}
        assert not running.wanting.abandoned


def test_a_short_limit_does_not_let_live_events_pass() -> None:
    with scene(max_wait_seconds=10) as running:
        running.exchange.rest(429, retry_after_s=1)
        gap = running.gap("aggTrade", 100)
        assert running.filled(gap) == ids(gap)
        assert not running.wanting.given_up


def test_a_ban_of_the_exchanges_own_holds_for_everybody_and_is_never_made_longer() -> None:
    rules = RestRules(weight_per_minute=30, refusals_before_ban=0, ban_s=2)
    with scene(rules=rules, start_ms=START_MS) as running:
        gaps = [running.gap("trade", 5), running.gap("trade", 6)]
        eventually(lambda: running.counted("rest_failures_by_reason").get("limited"))
        running.exchange.rest(forgive=True)
        for gap in gaps:
            eventually(lambda gap=gap: not running.wanting.missing(gap), 10)
        assert running.counted("rest_failures_by_reason") == {"limited": 1}


def test_a_slow_exchange_is_waited_for() -> None:
    with scene() as running:
        running.exchange.rest(delay_s=1.0)
        gap = running.gap("aggTrade", 1_500)
        assert running.filled(gap) == ids(gap)
        assert not running.wanting.given_up


# The end


def test_the_end_waits_for_a_fill_that_live_events_wait_for() -> None:
    with scene() as running:
        running.exchange.rest(delay_s=0.3)
        gap = running.gap("aggTrade", 1_500)
        running.backfill.finish(Deadline(60))
        assert not running.wanting.missing(gap)


def test_the_end_does_not_wait_for_the_background() -> None:
    with scene(max_wait_seconds=0.2) as running:
        running.exchange.rest(delay_s=2.0)
        running.gap("aggTrade", 3_000)
        eventually(lambda: running.wanting.given_up)
        started = time.monotonic()
        running.backfill.finish(Deadline(60))
        assert time.monotonic() - started < 2.8


def test_the_end_waits_for_a_short_time_only_and_never_beyond_its_deadline() -> None:
    with scene(pace=QUICK._replace(not_served_after=60)) as running:
        running.gap("aggTrade", 5, ahead=50)
        started = time.monotonic()
        running.backfill.finish(Deadline(0.4))
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("wait", ["idle", "for data", "for an answer", "for a limit to end", "for the exchange"])
def test_closing_ends_every_wait_at_once(wait: str) -> None:
    with scene(pace=Pace(first_delay=30, longest_delay=30)) as running:
        if wait == "for an answer":
            running.exchange.rest(delay_s=8)
        if wait == "for a limit to end":
            running.exchange.rest(429, retry_after_s=60)
        if wait == "for the exchange":
            running.exchange.refuse()
        if wait != "idle":
            for _ in range(6):
                running.gap("aggTrade", 5, ahead=50)
            eventually(lambda: running.counted("rest_requests") > 0)
            running.want_snapshot()
        if wait in ("for a limit to end", "for the exchange"):
            eventually(lambda: running.counted("rest_failures") > 0)
        closed_at = time.monotonic()
        running.backfill.close()
        eventually(lambda: len(running.ended) == subject.WORKERS)
        assert time.monotonic() - closed_at < 5
