"""Apache Kafka as a broker of the sandbox: 4.x in KRaft mode, and 3.9 with its ZooKeeper.

One broker each; `cluster.py` makes three of the first one.
"""

from __future__ import annotations

import base64
import os
import subprocess
from functools import partial
from typing import TYPE_CHECKING

from sandbox.brokers.broker import Broker
from sandbox.brokers.child import BrokerError, Child
from sandbox.brokers.listener import Listener, listening
from sandbox.brokers.maven import fetched, required
from sandbox.brokers.probe import free_port, kafka_answers, zookeeper_answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Properties = dict[str, object]

_FORMAT_SECONDS = 60
_HEAP = "512m"
_ZOOKEEPER_MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
# How long a killed broker stays registered, and so how long its next start takes.
_SESSION_MS = 3_000


class Kafka4(Broker):
    """Apache Kafka 4.x: broker and controller in one process (KRaft)."""

    def __init__(  # noqa: PLR0913 - the last four are for a node of a cluster
        self,
        folder: Path,
        port: int | None = None,
        listeners: Sequence[Listener] = (),
        *,
        number: int = 1,
        controllers: Mapping[int, int] | None = None,
        cluster_id: str | None = None,
        heap: str = _HEAP,
    ) -> None:
        super().__init__(folder, port)
        self.listeners = listeners
        self._number = number
        self._controllers = controllers or {number: free_port()}
        self._cluster_id = cluster_id
        self._server = _kafka("kafka4", folder, self.port, heap)

    def _children(self) -> tuple[Child, ...]:
        return (self._server,)

    def _prepare(self) -> None:
        _write(self.folder / "server.properties", self._properties())
        if not (self.folder / "data" / "meta.properties").exists():
            _format(self.folder, self._cluster_id or _random_id())

    def _properties(self) -> Properties:
        listeners = listening(self.port, self.listeners, self._controllers[self._number])
        return _kraft(self.folder, self._number, self._controllers) | listeners


class Kafka3(Broker):
    """Apache Kafka 3.9 with a ZooKeeper of its own, as two processes; `kill` and `freeze` mean the broker."""

    def __init__(self, folder: Path, port: int | None = None, listeners: Sequence[Listener] = ()) -> None:
        super().__init__(folder, port)
        self.listeners = listeners
        self._zookeeper_port = free_port()
        self._zookeeper = Child(
            "ZooKeeper",
            partial(_java, "kafka3", _ZOOKEEPER_MAIN, folder / "zookeeper.properties"),
            log=folder / "zookeeper.log",
            answers=partial(zookeeper_answers, self._zookeeper_port),
        )
        self._server = _kafka("kafka3", folder, self.port)

    def _children(self) -> tuple[Child, ...]:
        return (self._zookeeper, self._server)

    def _prepare(self) -> None:
        _write(self.folder / "zookeeper.properties", _zookeeper(self.folder, self._zookeeper_port))
        listeners = listening(self.port, self.listeners)
        _write(self.folder / "server.properties", _with_zookeeper(self.folder, self._zookeeper_port) | listeners)


def _kafka(pom: str, folder: Path, port: int, heap: str = _HEAP) -> Child:
    command = partial(_java, pom, "kafka.Kafka", folder / "server.properties", heap=heap)
    return Child("Apache Kafka", command, log=folder / "broker.log", answers=partial(kafka_answers, port))


def _java(pom: str, *arguments: object, heap: str = _HEAP) -> list[str]:
    java = required("java", "default-jre-headless")
    log_format = ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.showThreadName=false"]
    return [java, f"-Xmx{heap}", *log_format, "-cp", f"{fetched(pom)}/*", *map(str, arguments)]


def _format(folder: Path, cluster_id: str) -> None:
    arguments = ("format", "-t", cluster_id, "-c", folder / "server.properties")
    done = subprocess.run(
        _java("kafka4", "kafka.tools.StorageTool", *arguments),
        capture_output=True,
        text=True,
        timeout=_FORMAT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise BrokerError(f"Kafka could not prepare {folder}:\n{done.stdout}{done.stderr}")


def _random_id() -> str:
    """Return 16 bytes in base64, as Kafka's own tool makes them, without its second of start."""
    return base64.urlsafe_b64encode(b"k" + os.urandom(15)).decode().rstrip("=")  # must not begin with a dash


def _kraft(folder: Path, number: int, controllers: Mapping[int, int]) -> Properties:
    return _alone(folder) | {
        "broker.session.timeout.ms": _SESSION_MS,
        "broker.heartbeat.interval.ms": _SESSION_MS // 3,
        "process.roles": "broker,controller",
        "node.id": number,
        "controller.quorum.voters": ",".join(f"{node}@127.0.0.1:{port}" for node, port in controllers.items()),
    }


def _with_zookeeper(folder: Path, zookeeper_port: int) -> Properties:
    return _alone(folder) | {
        "broker.id": 1,
        "zookeeper.session.timeout.ms": _SESSION_MS,
        "zookeeper.connect": f"127.0.0.1:{zookeeper_port}",
    }


def _zookeeper(folder: Path, port: int) -> Properties:
    return {
        "dataDir": folder / "zookeeper",
        "clientPort": port,
        "clientPortAddress": "127.0.0.1",
        "tickTime": _SESSION_MS // 4,
        "admin.enableServer": "false",
        "4lw.commands.whitelist": "dump",
    }


def _alone(folder: Path) -> Properties:
    """Return what a single broker needs in either mode: its internal topics cannot have three replicas."""
    return {
        "log.dirs": folder / "data",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "group.initial.rebalance.delay.ms": 0,
        "auto.create.topics.enable": "false",
    }


def _write(path: Path, properties: Properties) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
