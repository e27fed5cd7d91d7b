"""`make demo` and `make run` as a user sees them; both need an embedded broker of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.service_fixtures import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path


NOBODY = "http://127.0.0.1:9"


def demo(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    plain = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "sandbox.demo", "--folder", str(folder), *arguments],
        cwd=folder,  # where no .env of the user is
        env=plain | {"PYTHONPATH": str(REPOSITORY)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("behind", ["starting the service", "what arrives in Kafka follows"])
def test_ctrl_c_ends_all_of_it_and_says_what_was_delivered(behind: str, tmp_path: Path) -> None:
    plain = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with subprocess.Popen(
        [sys.executable, "-m", "sandbox.demo", "--folder", str(tmp_path)],
        cwd=tmp_path,
        env=plain | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo_process:
        assert demo_process.stdout
        told = ""
        for line in demo_process.stdout:
            told += line
            if line.startswith(behind):
                time.sleep(2.0)  # by when the service runs, if it is quick
                os.killpg(demo_process.pid, signal.SIGINT)  # as a terminal does
                break
        told += demo_process.stdout.read()
    assert "Traceback" not in told
    assert "the service delivered" in told
    assert demo_process.returncode == 0, told
    assert "(everything delivered)" in told
    with pytest.raises(ProcessLookupError):
        os.killpg(demo_process.pid, 0)


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


OF_ANOTHER_KAFKA = """
BINANCE_SYMBOLS=SOLUSDT,-XRPUSDT
KAFKA_SECURITY_PROTOCOL=SASL_SSL
KAFKA_SASL_MECHANISM=SCRAM-SHA-256
KAFKA_SASL_PLAIN_USERNAME=me
KAFKA_SASL_PLAIN_PASSWORD=secret
KAFKA_REPLICATION_FACTOR=3
SHARD_COUNT=2
SHARD_INDEX=1
"""


def test_settings_for_another_kafka_do_not_matter_and_the_symbols_of_the_settings_are_shown(
    tmp_path: Path,
) -> None:
    (tmp_path / ".env").write_text(OF_ANOTHER_KAFKA)
    ended = demo(tmp_path, "--seconds", "2")
    assert ended.returncode == 0, ended.stderr
    assert "(everything delivered)" in ended.stdout
    assert re.search(r"^SOLUSDT +trade .* contiguous", ended.stdout + ended.stderr, re.MULTILINE)
    assert "BTCUSDT" not in ended.stdout + ended.stderr


CREATE = """
import sys, warnings
warnings.simplefilter("ignore")
from config.kafka import KafkaConfig
from sandbox.demo import DemoError, _create_topics
try:
    _create_topics(KafkaConfig(bootstrap_servers=("127.0.0.1:9",)))
except DemoError as error:
    sys.exit(str(error))
"""


def test_topics_that_cannot_be_created_are_one_line() -> None:
    """In a process of its own, whose end closes what kafka-python leaves open."""
    ended = subprocess.run(
        [sys.executable, "-c", CREATE], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    (line,) = ended.stderr.splitlines()
    assert line.startswith("the topics were not created: ")
