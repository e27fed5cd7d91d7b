"""The random sequence of faults that `make chaos-kafka` runs for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.chaos import Verdict

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
