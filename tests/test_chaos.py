"""The random sequences of faults that `make chaos-kafka` and `make chaos-exchange` run for longer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox.chaos import Verdict
from sandbox.gapless import Kept

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


@pytest.mark.kafka
def test_a_short_sequence_of_random_faults_of_the_exchange_leaves_no_gap() -> None:
    command = [sys.executable, "-m", "sandbox.chaos_exchange", "--seconds", "8", "--seed", "3", "--rate", "1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    head, *verdicts = done.stdout.splitlines()
    assert head.split() == ["fault", "s", "ids", "fetched", "snapshots", "gaps", "verdict"]
    assert verdicts
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.endswith("  ok") for line in verdicts)


@pytest.mark.kafka
@pytest.mark.slow
def test_every_fault_of_the_exchange_once_leaves_no_gap(broker_name: str) -> None:
    command = [sys.executable, "-m", "sandbox.chaos_exchange", "--rounds", "1", "--seconds", "900"]
    command += ["--broker", broker_name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000, check=False)
    _, *verdicts = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(verdicts) > 20
    assert all(line.endswith("  ok") for line in verdicts)


def kept(*events: dict[str, Any]) -> list[str]:
    added = {"source": "binance_websocket"}
    return Kept((b"BTCUSDT", json.dumps(added | event).encode()) for event in events).faults()


def trade(number: int) -> dict[str, Any]:
    return {"event_type": "trade", "t": number}


def update(first: int, last: int, bid: str = "1", ask: str = "2") -> dict[str, Any]:
    return {"event_type": "depth_update", "U": first, "u": last, "b": [[bid, "1"]], "a": [[ask, "1"]]}


def snapshot(last: int, bid: str = "1", ask: str = "2") -> dict[str, Any]:
    return {"event_type": "depth_snapshot", "lastUpdateId": last, "bids": [[bid, "1"]], "asks": [[ask, "1"]]}


@pytest.mark.parametrize(
    ("events", "faults"),
    [
        ([trade(1), trade(2), trade(3)], []),
        ([trade(1), trade(3)], ["btcusdt@trade: 1 missing"]),
        ([trade(1), trade(3), trade(2)], ["btcusdt@trade: 1 behind later ones"]),
        ([trade(1), trade(2), trade(2)], ["1 twice, 0 possible"]),
        ([snapshot(5), update(4, 6), update(7, 7)], []),
        ([snapshot(5), update(6, 6), update(9, 9), snapshot(9), update(10, 10)], []),
        ([snapshot(5), update(6, 6), update(9, 9)], ["btcusdt: a break in the book without a snapshot"]),
        ([snapshot(5), update(6, 6, bid="3")], ["btcusdt: the book is crossed"]),
    ],
)
def test_kafka_alone_tells_what_is_not_as_promised(events: list[dict[str, Any]], faults: list[str]) -> None:
    assert kept(*events) == faults
