"""Real brokers for tests: `--brokers embedded,kafka4,kafka3` names those that every broker test runs on."""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import NotControllerError
from kafka.net import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.protocol.admin import CreateTopicsResponse

from sandbox.brokers import BROKERS, Broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    MakeBroker = Callable[[], Broker]
    MakeTopic = Callable[..., str]


class Record(NamedTuple):
    """One record as a consumer sees it; `timestamp` in ms since the epoch."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int


@dataclass(frozen=True)
class Topics:
    """Three fresh topics, and the environment that points the service and the scripts at them.

    Dead letters, ledger and checkpoints get names of their own as well; the service makes these topics.
    """

    raw: str
    trades: str
    depth: str
    bootstrap_servers: str

    @property
    def names(self) -> tuple[str, str, str]:
        return (self.raw, self.trades, self.depth)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "KAFKA_TOPIC_RAW_EVENTS": self.raw,
            "KAFKA_TOPIC_TRADES": self.trades,
            "KAFKA_TOPIC_DEPTH": self.depth,
            "KAFKA_TOPIC_GAPS": self.gaps,
            "KAFKA_TOPIC_CHECKPOINTS": self.beside("checkpoints"),
            "KAFKA_TOPIC_DEAD_LETTERS": self.dead_letters,
        }

    @property
    def gaps(self) -> str:
        return self.beside("gaps")

    @property
    def dead_letters(self) -> str:
        return self.beside("dead-letters")

    def beside(self, kind: str) -> str:
        """Name a topic that belongs to these three."""
        return f"{kind}-{self.raw.encode().hex()}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--brokers",
        default="embedded",
        metavar="NAMES",
        help=f"comma-separated brokers that tests marked `kafka` run on: {', '.join(BROKERS)} (default: embedded)",
    )


_JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Short-lived brokers start in half the time when nothing is compiled for the long run."""


class _ClosesItself(socket.socket):
    """A socket whose end is no ResourceWarning, which would be an error of whatever test runs at that time.

    kafka-python 3.0.12 leaves the sockets of refused and lost connections to the garbage collector.
    """

    def __del__(self) -> None:
        self.close()


def _socket_of_kafka_python(_: KafkaNetSocket, *family_type_protocol: int) -> socket.socket:
    return _ClosesItself(*family_type_protocol)


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("JDK_JAVA_OPTIONS", _JAVA_OPTIONS)
    KafkaNetSocket.socket = _socket_of_kafka_python
    if unknown := set(broker_names(config)) - set(BROKERS):
        raise pytest.UsageError(f"--brokers: unknown {', '.join(sorted(unknown))}; known: {', '.join(BROKERS)}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "broker_name" in metafunc.fixturenames:
        metafunc.parametrize("broker_name", broker_names(metafunc.config), scope="session")


def broker_names(config: pytest.Config) -> list[str]:
    named: str = config.getoption("--brokers")
    return [name.strip() for name in named.split(",")]


@pytest.fixture(scope="session")
def broker(broker_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One running broker for all tests; a test that stops, kills or freezes it takes `own_broker`."""
    with BROKERS[broker_name](tmp_path_factory.mktemp(broker_name)) as running:
        yield running


@pytest.fixture
def own_broker_factory(broker_name: str, tmp_path: Path) -> Iterator[MakeBroker]:
    """Make brokers that are not started yet; whatever still runs afterwards is stopped."""
    made: list[Broker] = []

    def make() -> Broker:
        made.append(BROKERS[broker_name](tmp_path / f"broker-{len(made)}"))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def own_broker(own_broker_factory: MakeBroker) -> Broker:
    """Give this test a running broker of its own."""
    mine = own_broker_factory()
    mine.start()
    return mine


@pytest.fixture
def make_topic(broker: Broker) -> Iterator[MakeTopic]:
    """Make `make_topic(partitions=1, **configs)`, which creates a topic with a name of its own and returns it."""
    made: list[str] = []

    def make(partitions: int = 1, **configs: str) -> str:
        made.append(f"test-{uuid.uuid4().hex[:12]}")
        create_topics(broker.bootstrap_servers, made[-1:], partitions=partitions, configs=configs)
        return made[-1]

    yield make
    if made:
        delete_topics(broker.bootstrap_servers, made)


@pytest.fixture
def no_controller() -> Iterator[pytest.MonkeyPatch]:
    """Let every broker that is asked to create a topic answer that it is not the controller; until undone."""
    send = KafkaConnectionManager.send

    async def sent(manager: KafkaConnectionManager, *request: Any, **more: Any) -> Any:
        answer = await send(manager, *request, **more)
        if isinstance(answer, CreateTopicsResponse):
            for topic in answer.topics:
                topic.error_code = NotControllerError.errno
        return answer

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(KafkaConnectionManager, "send", sent)
        yield patched


@pytest.fixture
def topics(broker: Broker) -> Iterator[Topics]:
    """Three topics with names of their own and three partitions each."""
    made = fresh_topics(broker.bootstrap_servers)
    yield made
    delete_topics(broker.bootstrap_servers, made.names)


def fresh_topics(bootstrap_servers: str, *, partitions: int = 3, replication: int = 1) -> Topics:
    """Create raw, trades and depth topics with names of their own."""
    unique = uuid.uuid4().hex[:12]
    made = Topics(f"raw-{unique}", f"trades-{unique}", f"depth-{unique}", bootstrap_servers)
    create_topics(bootstrap_servers, made.names, partitions=partitions, replication=replication)
    return made


def create_topics(
    bootstrap_servers: str,
    names: Sequence[str],
    *,
    partitions: int = 1,
    replication: int = 1,
    configs: dict[str, str] | None = None,
) -> None:
    """Create topics and return when they have their leaders."""
    new = [
        NewTopic(name, num_partitions=partitions, replication_factor=replication, topic_configs=configs)
        for name in names
    ]
    with KafkaAdminClient(bootstrap_servers=bootstrap_servers) as admin:
        admin.create_topics(new)
        admin.wait_for_topics(list(names))


def delete_topics(bootstrap_servers: str, names: Sequence[str]) -> None:
    """Delete those topics that are there: the embedded broker writes all that it holds again and again."""
    with KafkaAdminClient(bootstrap_servers=bootstrap_servers) as admin:
        admin.delete_topics(list(names), raise_errors=False)


def read_all(bootstrap_servers: str, *topics: str, timeout: float = 20.0) -> list[Record]:
    """Return every record from the beginning to the present end, in offset order within each partition.

    Raises `AssertionError` when the end is not reached within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, group_id=None, enable_auto_commit=False)
    try:
        parts = [part for topic in topics for part in _partitions(consumer, topic, deadline)]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends = consumer.end_offsets(parts)
        records: list[Record] = []
        while any(consumer.position(part) < ends[part] for part in parts):
            assert time.monotonic() < deadline, f"read {len(records)} records, not the end of {ends}"
            for part, batch in consumer.poll(timeout_ms=200).items():
                records += [
                    Record(one.topic, one.partition, one.offset, one.key, one.value, one.timestamp)
                    for one in batch
                    if one.offset < ends[part]
                ]
    finally:
        consumer.close(autocommit=False)
    return sorted(records, key=lambda one: (topics.index(one.topic), one.partition, one.offset))


def _partitions(consumer: KafkaConsumer, topic: str, deadline: float) -> list[TopicPartition]:
    # A broker that has just come back may answer before it knows its topics again.
    while not (numbers := consumer.partitions_for_topic(topic)):
        assert time.monotonic() < deadline, f"there is no topic {topic}"
        consumer.topics()
    return [TopicPartition(topic, number) for number in numbers]
