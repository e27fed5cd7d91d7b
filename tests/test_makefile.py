"""The Makefile on a copy of itself: what `clean` removes and leaves, and how often `test-20` runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDS = ("requirements.txt", "requirements-sandbox.txt", "requirements-dev.txt")
STAMPS = (".venv/.ready", ".venv/.ready-dev")
FAILS_THE_THIRD_TIME = """#!/bin/sh
echo run >> runs
echo "the tests of this run"
if [ "$(wc -l < runs)" -eq 3 ]; then echo "1 failed, 1 passed in 0.10s"; exit 1; fi
echo "2 passed in 0.10s"
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not run by a make
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=alone, capture_output=True, text=True, timeout=60, check=False
    )


def test_clean_removes_what_the_targets_made_and_never_what_waits_for_kafka(copy: Path) -> None:
    undelivered = ["data/spool/events.sqlite3", "data/spool/notes.sqlite3", "data/spool/shard-1/events.sqlite3"]
    write(copy, *undelivered, "data/demo/service.log", "build/kafka4/pom.xml", ".venv/.ready", ".env")
    assert make(copy, "clean").returncode == 0
    left = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())
    assert left == sorted([*undelivered, "Makefile", ".env"])


def test_the_tests_are_run_twenty_times_until_one_run_fails(copy: Path) -> None:
    write(copy, *NEEDS)
    write(copy, *STAMPS)  # newer than what they stand for: nothing is installed
    python = copy / ".venv/bin/python"
    write(copy, ".venv/bin/python")
    python.write_text(FAILS_THE_THIRD_TIME)
    python.chmod(0o755)
    failed = make(copy, "test-20")
    assert failed.returncode != 0
    told = failed.stdout.splitlines()
    assert told[:2] == ["1: 2 passed in 0.10s", "2: 2 passed in 0.10s"]
    assert told[2:4] == ["the tests of this run", "1 failed, 1 passed in 0.10s"]
    passed = make(copy, "test-20")  # the fourth run and those after it pass
    assert passed.returncode == 0
    assert len(passed.stdout.splitlines()) == 20


@pytest.mark.parametrize("target", ["demo", "run"])
def test_the_demo_needs_nothing_that_only_tests_need(copy: Path, target: str) -> None:
    write(copy, *NEEDS)
    planned = make(copy, "-n", target).stdout
    assert "-r requirements-sandbox.txt" in planned
    assert "requirements-dev.txt" not in planned


@pytest.mark.parametrize("target", ["test", "check", "test-kafka", "bench"])
def test_what_is_missing_for_tests_is_added_to_what_the_demo_has(copy: Path, target: str) -> None:
    write(copy, *NEEDS)
    write(copy, STAMPS[0])
    planned = make(copy, "-n", target).stdout
    assert "-r requirements-dev.txt" in planned
    assert "-r requirements-sandbox.txt" not in planned
