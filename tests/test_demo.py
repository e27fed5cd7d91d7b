"""`make demo` and `make run` as a user sees them; both need an embedded broker of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.service_fixtures import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path


NOBODY = "http://127.0.0.1:9"


def demo(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    plain = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "sandbox.demo", "--folder", str(folder), *arguments],
        cwd=REPOSITORY,
        env=plain | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_last_lines_add_up_whatever_is_set_for_the_log_and_as_a_proxy(tmp_path: Path) -> None:
    ended = demo(tmp_path, "--seconds", "2", LOG_FORMAT="text", LOG_LEVEL="ERROR", http_proxy=NOBODY)
    assert ended.returncode == 0, ended.stderr
    lines = re.findall(r"^the (\w+ \w+[ \w]*?) +(\d+)\b", ended.stdout, re.MULTILINE)
    told = {name: int(count) for name, count in lines}
    assert told["exchange sent"] == told["service received"] > 0
    assert told["service received"] + told["service fetched by REST"] == told["service delivered"]


def test_an_exchange_that_cannot_be_reached_is_named_at_the_end(tmp_path: Path) -> None:
    ended = demo(
        tmp_path,
        "--live",
        BINANCE_WS_BASE_URL="ws://127.0.0.1:9",
        CONNECTION_RECONNECT_INTERVAL="0.1",
        CONNECTION_MAX_RETRIES="2",
    )
    assert ended.returncode == 1
    assert "(gave_up: 2 connection attempts in a row failed: the TCP connection failed" in ended.stdout
