"""The outbox: what is posted reaches its topic in order, whatever Kafka, the disk and the process go through."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from structlog.testing import capture_logs

from config.kafka import KafkaConfig
from src import outbox
from src.deadline import Deadline
from src.outbox import FILE, MOST_IN_MEMORY, Note, NoteFile, Outbox
from tests.broker_fixtures import create_topics, read_all
from tests.test_kafka_producer import NOW, Rig, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.brokers import Broker

    MakeBroker = Callable[[], Broker]

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[1]
TOPIC = "gaps"
CHILD = """
import sys, threading, time
from pathlib import Path
from config.kafka import KafkaConfig
from config.settings import DeliveryConfig
from src.kafka_producer import KafkaSink
from src.outbox import Note, Outbox
from src.telemetry import Telemetry

servers, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
telemetry = Telemetry()
kafka = KafkaConfig(bootstrap_servers=(servers,), topic_gaps="gaps")
sink = KafkaSink(kafka, DeliveryConfig(), telemetry, lambda worker: None)
box = Outbox(folder, "gaps", sink, telemetry, lambda worker: None)
for number in range(count):
    box.post(Note(b"key", b"%d" % number, int(time.time() * 1000)))
box.start()
sink.start()
threading.Event().wait()
"""


class Post:
    """A sink and an outbox in one folder; what is posted is numbered."""

    def __init__(self, servers: str, folder: Path) -> None:
        self.servers = servers
        self.rig = Rig(KafkaConfig(bootstrap_servers=(servers,), topic_gaps=TOPIC), folder)
        self.box = Outbox(folder, TOPIC, self.rig.sink, self.rig.telemetry, self.rig.ended.append)
        self.file = folder / FILE
        self._closed = False

    def start(self) -> None:
        self.box.start()
        self.rig.delivery.start()

    def post(self, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            self.box.post(Note(b"key", b"%d" % number, NOW + number))

    def sent(self) -> list[int]:
        return numbers(self.servers)

    def on_disk(self) -> int:
        return rows(self.file)

    def wait_until_sent(self) -> None:
        wait_until(lambda: not self.box.waiting)

    def close(self, seconds: float = 5.0) -> None:
        if not self._closed:
            self._closed = True
            self.box.close(Deadline(seconds))
            self.rig.close(5.0)


@pytest.fixture
def open_post(tmp_path: Path) -> Iterator[Callable[[str], Post]]:
    """Open outboxes of one folder, one after the other."""
    made: list[Post] = []

    def make(servers: str) -> Post:
        made.append(Post(servers, tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.close()
        assert [worker.failure for worker in each.rig.ended if worker.failure] == []


def numbers(servers: str) -> list[int]:
    return [int(one.value or b"") for one in read_all(servers, TOPIC)]


def rows(file: Path) -> int:
    """Count what is on disk, as another process sees it."""
    if not file.exists():
        return 0
    database = sqlite3.connect(file)
    try:
        counted: int = database.execute("SELECT COUNT(*) FROM notes").fetchone()[0]
    except sqlite3.Error:  # just being made
        return 0
    finally:
        database.close()
    return counted


def run_and_kill(servers: str, folder: Path, count: int, when: Callable[[], bool]) -> None:
    """Run a process that posts, and kill it when something holds."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD, servers, str(folder), str(count)], cwd=ROOT
    ) as child:
        try:
            wait_until(when)
        finally:
            child.send_signal(signal.SIGKILL)


def test_notes_reach_the_topic_in_order_and_leave_the_disk(
    own_broker: Broker, open_post: Callable[[str], Post]
) -> None:
    post = open_post(own_broker.bootstrap_servers)
    post.start()
    post.post(1_000)
    post.wait_until_sent()
    post.post(1_000, first=1_000)
    post.wait_until_sent()
    records = read_all(own_broker.bootstrap_servers, TOPIC)
    assert [(one.key, one.value, one.timestamp) for one in records] == [
        (b"key", b"%d" % number, NOW + number) for number in range(2_000)
    ]
    wait_until(lambda: post.on_disk() == 0)
    assert post.rig.count("ledger_records") == 2_000


def test_notes_wait_on_disk_for_a_broker_that_comes_late(
    own_broker_factory: MakeBroker, open_post: Callable[[str], Post]
) -> None:
    broker = own_broker_factory()
    post = open_post(broker.bootstrap_servers)
    post.start()
    post.post(700)
    wait_until(lambda: post.on_disk() == 700)
    wait_until(lambda: post.rig.count("ledger_backlog") == 700)
    broker.start()
    post.wait_until_sent()
    assert post.sent() == list(range(700))


def test_a_broker_that_is_killed_under_way_gets_every_note_in_order(
    own_broker: Broker, open_post: Callable[[str], Post]
) -> None:
    post = open_post(own_broker.bootstrap_servers)
    post.start()
    post.post(500)
    post.wait_until_sent()
    own_broker.wait_until_durable()
    own_broker.freeze()  # so that a request is under way, unanswered, when it dies
    post.post(2_000, first=500)
    wait_until(lambda: post.on_disk() == 2_000)
    own_broker.kill()
    own_broker.start()
    post.wait_until_sent()
    sent = post.sent()
    assert list(dict.fromkeys(sent)) == list(range(2_500))
    assert len(sent) - 2_500 <= outbox._AT_ONCE


def test_what_is_on_disk_when_the_process_is_killed_is_sent_by_the_next_run(
    own_broker_factory: MakeBroker, open_post: Callable[[str], Post], tmp_path: Path
) -> None:
    broker = own_broker_factory()
    run_and_kill(broker.bootstrap_servers, tmp_path, 500, lambda: rows(tmp_path / FILE) == 500)
    broker.start()
    post = open_post(broker.bootstrap_servers)
    post.post(10, first=500)
    post.start()
    post.wait_until_sent()
    assert post.sent() == list(range(510))


def test_a_process_killed_while_it_sends_loses_nothing_and_doubles_only_what_was_unanswered(
    own_broker: Broker, open_post: Callable[[str], Post], tmp_path: Path
) -> None:
    servers, total = own_broker.bootstrap_servers, 8_000
    create_topics(servers, [TOPIC])
    run_and_kill(servers, tmp_path, total, lambda: len(numbers(servers)) > 1_000)
    assert len(numbers(servers)) < total, "killed too late to show anything"
    post = open_post(servers)
    post.start()
    wait_until(lambda: post.rig.count("ledger_records") > 0)
    post.wait_until_sent()
    sent = post.sent()
    assert list(dict.fromkeys(sent)) == list(range(total))
    assert len(sent) - total <= outbox._AT_ONCE


def test_posting_never_waits_for_disk_or_kafka(
    own_broker: Broker, open_post: Callable[[str], Post], tmp_path: Path
) -> None:
    NoteFile(tmp_path / FILE).close()
    post = open_post(own_broker.bootstrap_servers)
    locking = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    locking.execute("BEGIN IMMEDIATE")
    post.start()
    slowest = 0.0
    for number in range(2_000):
        started = time.perf_counter()
        post.post(1, first=number)
        slowest = max(slowest, time.perf_counter() - started)
    locking.execute("ROLLBACK")
    locking.close()
    assert slowest < 3.0
    post.wait_until_sent()
    assert post.sent() == list(range(2_000))


def test_beyond_its_bound_in_memory_the_oldest_are_lost_and_counted(
    own_broker: Broker, open_post: Callable[[str], Post]
) -> None:
    post = open_post(own_broker.bootstrap_servers)
    post.post(MOST_IN_MEMORY + 25)
    with capture_logs() as lines:
        post.start()
        post.wait_until_sent()
    assert post.sent() == list(range(25, MOST_IN_MEMORY + 25))
    assert post.rig.count("ledger_records_lost") == 25
    assert [(line["count"], line["reason"]) for line in lines if line["event"] == "ledger_records_lost"] == [
        (25, "memory")
    ]


def test_beyond_its_bound_on_disk_the_oldest_are_lost_and_counted(
    own_broker_factory: MakeBroker, open_post: Callable[[str], Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MOST_ON_DISK", 100)
    broker = own_broker_factory()
    post = open_post(broker.bootstrap_servers)
    post.start()
    post.post(130)
    wait_until(lambda: post.rig.count("ledger_records_lost") == 30)
    broker.start()
    post.wait_until_sent()
    assert post.sent() == list(range(30, 130))


@pytest.mark.parametrize("damage", [b"this is no database", b"SQLite format 3\0" + b"x" * 5_000])
def test_a_damaged_file_is_set_aside_and_named(
    own_broker: Broker, open_post: Callable[[str], Post], tmp_path: Path, damage: bytes
) -> None:
    post = open_post(own_broker.bootstrap_servers)
    (tmp_path / FILE).write_bytes(damage)
    with capture_logs() as lines:
        post.start()
        post.post(5)
        post.wait_until_sent()
    assert post.sent() == list(range(5))
    (aside,) = [Path(line["set_aside_as"]) for line in lines if line["event"] == "ledger_damaged"]
    assert aside.read_bytes() == damage


def test_when_the_disk_fails_notes_go_to_kafka_from_memory(
    own_broker: Broker, open_post: Callable[[str], Post], tmp_path: Path
) -> None:
    post = open_post(own_broker.bootstrap_servers)
    (tmp_path / FILE).mkdir()  # so that it cannot be opened
    with capture_logs() as lines:
        post.start()
        post.post(500)
        post.wait_until_sent()
    assert post.sent() == list(range(500))
    assert [line["log_level"] for line in lines if line["event"] == "ledger_disk_failing"] == ["error"]
    (tmp_path / FILE).rmdir()
    post.post(10, first=500)
    post.wait_until_sent()
    wait_until((tmp_path / FILE).is_file)
    assert post.sent() == list(range(510))


def test_a_file_damaged_under_way_is_replaced(
    own_broker_factory: MakeBroker, open_post: Callable[[str], Post], tmp_path: Path
) -> None:
    broker = own_broker_factory()
    post = open_post(broker.bootstrap_servers)
    post.start()
    post.post(300)
    wait_until(lambda: post.on_disk() == 300)
    database = sqlite3.connect(tmp_path / FILE)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    size = (tmp_path / FILE).stat().st_size
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    post.post(5, first=300)
    broker.start()
    wait_until(lambda: post.rig.count("ledger_records") >= 5)
    post.wait_until_sent()
    assert post.sent()[-5:] == list(range(300, 305))


def test_what_the_topic_refuses_is_kept_and_sent_when_it_takes_it(
    own_broker: Broker, open_post: Callable[[str], Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_REFUSED_SECONDS", 0.3)
    servers = own_broker.bootstrap_servers
    create_topics(servers, [TOPIC], configs={"max.message.bytes": "2000"})
    post = open_post(servers)
    post.start()
    large = Note(b"key", os.urandom(5_000), NOW)
    post.box.post(large)
    post.post(3)
    wait_until(lambda: post.rig.count("ledger_records") == 3)
    time.sleep(0.5)  # time for it to be offered again
    assert post.box.waiting == 1
    with KafkaAdminClient(bootstrap_servers=servers) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, TOPIC, {"max.message.bytes": "1000000"})])
    post.wait_until_sent()
    assert [one.value for one in read_all(servers, TOPIC)].count(large.value) == 1


def test_a_stop_sends_what_it_can_in_its_time_and_leaves_the_rest_on_disk(
    own_broker_factory: MakeBroker, open_post: Callable[[str], Post], tmp_path: Path
) -> None:
    broker = own_broker_factory()
    post = open_post(broker.bootstrap_servers)
    post.start()
    post.post(400)
    started = time.monotonic()
    post.close(seconds=3.0)
    assert time.monotonic() - started < 6.0
    assert rows(tmp_path / FILE) == 400
    broker.start()
    later = open_post(broker.bootstrap_servers)
    later.start()
    wait_until(lambda: later.rig.count("ledger_records") > 0)
    later.post(100, first=400)
    later.close()
    assert numbers(broker.bootstrap_servers) == list(range(500))
    assert rows(tmp_path / FILE) == 0
