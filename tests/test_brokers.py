"""The brokers of the sandbox behave as a Kafka broker must, whichever program stands behind them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaProducer

from sandbox.brokers import BROKERS, BrokerError, EmbeddedBroker, free_port, maven
from tests.broker_fixtures import Topics, create_topics, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.brokers import Broker

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[1]
LIMIT = 90.0


def send(bootstrap_servers: str, topic: str, values: list[bytes], **fields: object) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers, compression_type="snappy")
    try:
        sent = [producer.send(topic, value=value, **fields) for value in values]
        for future in sent:
            future.get(timeout=20)
    finally:
        producer.close()


def test_what_is_sent_is_read_back_with_key_and_timestamp(broker: Broker, topics: Topics) -> None:
    hour_ago = int(time.time() - 3600) * 1000  # an old record would be deleted by its time
    send(broker.bootstrap_servers, topics.trades, [b"1", b"2"], key=b"BTCUSDT", timestamp_ms=hour_ago)
    records = read_all(broker.bootstrap_servers, *topics.names)
    assert [(one.key, one.value, one.timestamp) for one in records] == [
        (b"BTCUSDT", b"1", hour_ago),
        (b"BTCUSDT", b"2", hour_ago),
    ]
    assert [one.offset for one in records] == [0, 1]


def test_acknowledged_records_survive_a_clean_restart(own_broker: Broker) -> None:
    create_topics(own_broker.bootstrap_servers, ["kept"])
    send(own_broker.bootstrap_servers, "kept", [b"1", b"2", b"3"])
    own_broker.restart()
    assert [one.value for one in read_all(own_broker.bootstrap_servers, "kept")] == [b"1", b"2", b"3"]


def test_acknowledged_records_survive_a_kill(own_broker: Broker) -> None:
    create_topics(own_broker.bootstrap_servers, ["kept"])
    send(own_broker.bootstrap_servers, "kept", [b"1", b"2", b"3"])
    own_broker.wait_until_durable()
    own_broker.kill()
    assert not own_broker.running
    own_broker.start()
    assert [one.value for one in read_all(own_broker.bootstrap_servers, "kept")] == [b"1", b"2", b"3"]


def test_a_frozen_broker_answers_again_when_thawed(own_broker: Broker) -> None:
    create_topics(own_broker.bootstrap_servers, ["kept"])
    producer = KafkaProducer(bootstrap_servers=own_broker.bootstrap_servers)
    try:
        producer.send("kept", b"before").get(timeout=20)
        own_broker.freeze()
        late = producer.send("kept", b"during")
        with pytest.raises(Exception, match=r"(?i)time"):
            late.get(timeout=1)
        own_broker.thaw()
        late.get(timeout=20)
    finally:
        own_broker.thaw()
        producer.close()
    assert [one.value for one in read_all(own_broker.bootstrap_servers, "kept")] == [b"before", b"during"]


def test_two_brokers_run_side_by_side(own_broker_factory: Callable[[], Broker]) -> None:
    first, second = own_broker_factory(), own_broker_factory()
    first.start()
    second.start()
    create_topics(first.bootstrap_servers, ["only-here"])
    assert first.bootstrap_servers != second.bootstrap_servers
    assert first.pid != second.pid


def test_a_frozen_broker_can_be_stopped(own_broker: Broker) -> None:
    own_broker.freeze()
    own_broker.stop()
    assert not own_broker.running


def test_a_second_broker_on_the_same_port_is_refused(broker: Broker, broker_name: str, tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=f"port {broker.port} on 127.0.0.1 is taken"):
        BROKERS[broker_name](tmp_path, broker.port).start()


@contextmanager
def command(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.brokers", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def said_at_start(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    said: dict[str, str] = json.loads(process.stdout.readline())
    return said


def errors_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.read()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a dead orphan stays listed until the machine's first process looks at it


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < deadline, f"of {pids} some still run"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_it_listens_and_ends_with_its_children(
    broker_name: str, number: signal.Signals, tmp_path: Path
) -> None:
    port = free_port()
    with command(broker_name, "--port", str(port), "--data-dir", tmp_path) as process:
        assert said_at_start(process) == {"event": "broker_started", "bootstrap_servers": f"127.0.0.1:{port}"}
        children = children_of(process.pid)
        assert children
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(LIMIT) == 0
        assert not errors_of(process)
    assert not [pid for pid in children if runs(pid)]


def test_the_command_ends_when_its_broker_does(broker_name: str, tmp_path: Path) -> None:
    with command(broker_name, "--data-dir", tmp_path) as process:
        said_at_start(process)
        os.kill(children_of(process.pid)[-1], signal.SIGKILL)
        assert process.wait(LIMIT) == 1
        assert "the broker ended by itself; the end of" in errors_of(process)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv to tie a child to its parent")
def test_a_killed_command_leaves_no_broker_behind(broker_name: str, tmp_path: Path) -> None:
    with command(broker_name, "--data-dir", tmp_path) as process:
        said_at_start(process)
        children = children_of(process.pid)
        process.kill()
        process.wait(LIMIT)
    wait_until_gone(children)


def test_a_broker_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where its folder should be")
    broken = EmbeddedBroker(tmp_path)
    with pytest.raises(
        BrokerError, match=r"the embedded broker ended while it was starting; the end of .*broker\.log"
    ):
        broken.start()
    assert not broken.running


@contextmanager
def maven_that(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a `mvn` in front that runs shell code with `$libs` set; yields a folder to fetch into."""
    programs = folder / "programs"
    programs.mkdir()
    libs = 'for word in "$@"; do case $word in -DoutputDirectory=*) libs=${word#*=}; esac; done'
    for name, code in (("java", ""), ("mvn", f'{libs}; /bin/mkdir -p "$libs"; {does}')):
        (programs / name).write_text(f"#!/bin/sh\n{code}\n")
        (programs / name).chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(programs))
        yield folder / "build"


def test_kafka_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with maven_that('echo jar > "$libs/kafka.jar"', tmp_path, monkeypatch) as build:
        libs = maven.fetched("kafka4", build)
    assert libs == build / f"kafka-{maven.kafka_version('kafka4')}" / "libs"
    assert [jar.name for jar in libs.iterdir()] == ["kafka.jar"]
    monkeypatch.setenv("PATH", "")
    assert maven.fetched("kafka4", build) == libs


def test_a_download_that_broke_off_is_not_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        maven_that('echo jar > "$libs/kafka.jar"; echo no route; exit 1', tmp_path, monkeypatch) as build,
        pytest.raises(BrokerError, match="no route"),
    ):
        maven.fetched("kafka3", build)
    assert list(build.iterdir()) == []


@pytest.mark.parametrize(("program", "package"), [("java", "default-jre-headless"), ("mvn", "maven")])
def test_a_missing_program_is_named_with_the_fix(
    program: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with maven_that("", tmp_path, monkeypatch) as build:
        (tmp_path / "programs" / program).unlink()
        with pytest.raises(BrokerError, match=f"`{program}` is not on the PATH.*apt-get install {package}"):
            maven.fetched("kafka4", build)


def test_a_free_port_is_given_to_nobody_else() -> None:
    ports = [free_port() for _ in range(500)]
    assert len(set(ports)) == len(ports)
