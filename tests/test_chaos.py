"""The random sequences of faults that `make chaos-kafka` and `make chaos-exchange` run for longer."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandbox import chaos_exchange
from sandbox.chaos import ChaosError, Ended, Verdict
from sandbox.chaos_exchange import ALONE, COMBINATIONS, KILLED, STOPPED, ExchangeChaos
from sandbox.chaos_faults import FAULTS
from sandbox.gapless import Happened, Kept, unlike
from src.order_book import OrderBook

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]


@pytest.mark.kafka
def test_a_short_sequence_of_random_faults_costs_nothing() -> None:
    command = [sys.executable, "-m", "sandbox.chaos", "--seconds", "6", "--seed", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    head, *verdicts = done.stdout.splitlines()
    assert head.split() == [
        "fault",
        "s",
        "sent",
        "delivered",
        "possible",
        "twice",
        "peak",
        "MB",
        "order",
        "verdict",
    ]
    assert verdicts
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.endswith("kept    ok") for line in verdicts)
    assert all(20 < int(line.split()[-3]) < 500 for line in verdicts), "the peak of memory"


@pytest.mark.parametrize(
    ("verdict", "good"),
    [
        (Verdict("frozen", 2.0, 10, 10, 3, 3, []), True),
        (Verdict("frozen", 2.0, 10, 10, 3, 4, []), False),
        (Verdict("frozen", 2.0, 10, 9, 3, 0, ["btcusdt@trade: 10 sent, 9 there"]), False),
        (Verdict("frozen", 2.0, 10, 10, 3, 0, ["btcusdt@trade: 3 after 4"]), False),
    ],
)
def test_whatever_is_not_as_promised_is_no_good_verdict(verdict: Verdict, good: bool) -> None:  # noqa: FBT001
    assert verdict.good is good
    assert str(verdict).endswith(" ok") is good


class Chaotic:
    """One stack for many faults; a new one after it has failed to come to rest."""

    def __init__(self, folder: Path, broker: str) -> None:
        self._folder, self._broker = folder, broker
        self._stack = ExitStack()
        self._chaos: ExchangeChaos | None = None

    def verdict(self, fault: str, end: str) -> chaos_exchange.Verdict:
        if self._chaos is None:
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            self._chaos = ExchangeChaos(self._stack, folder, self._broker, 2000.0, 7)
        try:
            return self._chaos.judged(fault, end)
        except ChaosError:
            self.close()
            raise

    def close(self) -> None:
        self._chaos = None
        self._stack.close()


@pytest.fixture(scope="module")
def chaotic(broker_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaotic]:
    made = Chaotic(tmp_path_factory.mktemp("chaos"), broker_name)
    yield made
    made.close()


@pytest.mark.kafka
def test_what_kafka_holds_is_what_the_exchange_has_recorded_whatever_fails_meanwhile(chaotic: Chaotic) -> None:
    for fault, end in (("cut filling", KILLED), ("wrong ids", STOPPED)):
        assert chaotic.verdict(fault, end).faults == [], (fault, end)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize(("fault", "end"), COMBINATIONS)
def test_in_each_fault_of_the_exchange_the_service_goes_on_or_ends_and_nothing_is_missing(
    chaotic: Chaotic, fault: str, end: str
) -> None:
    assert chaotic.verdict(fault, end).faults == []


@pytest.mark.kafka
def test_the_command_says_which_fault_it_was_what_it_cost_and_how_it_was_judged() -> None:
    command = [sys.executable, "-m", "sandbox.chaos_exchange", "--seconds", "1", "--seed", "5", "--rate", "1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    head, *verdicts = done.stdout.splitlines()
    assert head == chaos_exchange.HEAD
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdicts
    for line in verdicts:
        assert line[:16].strip() in FAULTS
        assert line[17:25].strip() in {ALONE, STOPPED, KILLED}
        assert line.endswith("  ok")


@pytest.mark.parametrize(
    ("code", "seconds", "left", "kafka_well", "fault"),
    [
        (0, 3.0, {}, True, ""),
        (0, 9.0, {}, True, "9.0 s to stop"),
        (1, 3.0, {}, True, "exit code 1, undelivered nothing"),
        (0, 3.0, {"messages_spooled": 5}, False, "exit code 0, undelivered {'messages_spooled': 5}"),
        (1, 3.0, {"messages_spooled": 5}, False, ""),
        (1, 3.0, {"messages_spooled": 5}, True, "exit code 1, undelivered {'messages_spooled': 5}"),
        (1, 3.0, {"messages_dropped": 5}, False, "exit code 1, undelivered {'messages_dropped': 5}"),
    ],
)
def test_a_service_that_was_stopped_ends_in_time_and_with_the_code_that_its_last_metrics_account_for(
    code: int,
    seconds: float,
    left: dict[str, int],
    kafka_well: bool,  # noqa: FBT001
    fault: str,
) -> None:
    assert Ended(code, seconds, Counter(left)).fault(kafka_well=kafka_well) == fault


def kept(*events: dict[str, Any]) -> list[str]:
    added = {"source": "binance_websocket"}
    return Kept((b"BTCUSDT", json.dumps(added | event).encode()) for event in events).faults()


def trade(number: int) -> dict[str, Any]:
    return {"event_type": "trade", "t": number}


def bar(number: int, *, closed: bool = True) -> dict[str, Any]:
    inner = {"t": number * 1000, "T": number * 1000 + 999, "i": "1s", "x": closed}
    return {"event_type": "kline", "k": inner}


def update(first: int, last: int, bid: str = "1", ask: str = "2") -> dict[str, Any]:
    return {"event_type": "depth_update", "U": first, "u": last, "b": [[bid, "1"]], "a": [[ask, "1"]]}


def snapshot(last: int, bid: str = "1", ask: str = "2") -> dict[str, Any]:
    return {"event_type": "depth_snapshot", "lastUpdateId": last, "bids": [[bid, "1"]], "asks": [[ask, "1"]]}


BEHIND = "btcusdt@trade: 3 (1-1, 4-4, 5-5) behind later ones"


@pytest.mark.parametrize(
    ("events", "faults"),
    [
        ([trade(1), trade(2), trade(3)], []),
        ([trade(1), trade(3)], ["btcusdt@trade: 1 (2-2) missing"]),
        ([trade(1), trade(3), trade(2)], ["btcusdt@trade: 1 (2-2) behind later ones"]),
        ([trade(3), trade(1), trade(9), trade(5), trade(4)], ["btcusdt@trade: 4 (2-2, 6-8) missing", BEHIND]),
        ([trade(1), trade(2), trade(2)], ["1 twice, 0 possible"]),
        ([bar(0), bar(1), bar(2, closed=False)], []),
        ([bar(0), bar(1, closed=False), bar(2)], ["btcusdt@kline_1s: 1 (1-1) missing"]),
        ([bar(0), bar(0)], ["1 twice, 0 possible"]),
        ([snapshot(5), update(4, 6), update(7, 7)], []),
        ([snapshot(5), update(6, 6), update(9, 9), snapshot(9), update(10, 10)], []),
        ([snapshot(5), update(6, 6), update(9, 9)], ["btcusdt: a break in the book without a snapshot"]),
        ([snapshot(5), update(6, 6, bid="3")], ["btcusdt: the book is crossed"]),
    ],
)
def test_kafka_alone_tells_what_is_not_as_promised(events: list[dict[str, Any]], faults: list[str]) -> None:
    assert kept(*events) == faults


def judged(*numbers: int, first: int = 1, last: int = 3, **allowed: Any) -> list[str]:
    added = {"source": "binance_websocket"}
    held = Kept((b"BTCUSDT", json.dumps(added | trade(number) | {"p": "1.0"}).encode()) for number in numbers)
    held.compare("btcusdt@trade", [{"t": 1, "p": "1.0"}, {"t": 2, "p": "2.0"}, {"t": 3, "p": "1.0"}])
    return held.faults({"btcusdt@trade": Happened(first, last)}, **allowed)


@pytest.mark.parametrize(
    ("numbers", "allowed", "faults"),
    [
        ((1, 3), {}, ["btcusdt@trade: 1 (2-2) missing"]),
        ((1,), {"last": 1}, []),
        ((1,), {}, ["btcusdt@trade: 2 (2-3) missing"]),
        ((3,), {}, ["btcusdt@trade: 2 (1-2) missing"]),
        ((3,), {"first": 3}, []),
        ((1, 4), {"last": 1}, ["btcusdt@trade: 1-4, the market had Happened(first=1, last=1)"]),
        ((), {}, ["btcusdt@trade: nothing there"]),
        ((1, 2), {"last": 2}, ["btcusdt@trade: [2] not as the exchange has them"]),
        ((3, 1), {}, ["btcusdt@trade: 1 (2-2) missing", "btcusdt@trade: 1 (1-1) behind later ones"]),
        ((3, 1), {"order_given_up": {"btcusdt@trade": [(1, 2)]}}, ["btcusdt@trade: 1 (2-2) missing"]),
        ((1, 2), {"last": 2, "may_differ": {"btcusdt@trade": {2}}}, []),
        ((1, 1), {"last": 1}, ["1 twice, 0 possible"]),
        ((1, 1), {"last": 1, "twice_allowed": 1}, []),
    ],
)
def test_the_record_of_the_exchange_tells_also_what_nobody_was_connected_for(
    numbers: tuple[int, ...], allowed: dict[str, Any], faults: list[str]
) -> None:
    assert judged(*numbers, **allowed) == faults


@pytest.mark.parametrize(
    ("book", "difference"),
    [
        ({"lastUpdateId": 6, "bids": [["1", "1"]], "asks": [["2", "1"]]}, ""),
        ({"lastUpdateId": 7, "bids": [["1", "1"]], "asks": [["2", "1"]]}, "at 6, the exchange at 7"),
        ({"lastUpdateId": 6, "bids": [["1", "2"]], "asks": [["2", "1"]]}, "other bids than the exchange"),
    ],
)
def test_the_book_has_to_be_that_of_the_exchange(book: dict[str, Any], difference: str) -> None:
    kept_book = Kept((b"BTCUSDT", json.dumps(each).encode()) for each in (snapshot(5), update(6, 6))).books[
        "btcusdt"
    ]
    assert unlike(kept_book, book) == difference


def test_a_book_that_is_not_known_is_unlike_that_of_the_exchange() -> None:
    assert unlike(OrderBook(), {"lastUpdateId": 6, "bids": [], "asks": []}) == "waiting for a snapshot"
