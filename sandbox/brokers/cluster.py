"""Three Apache Kafka 4 as one cluster (KRaft): each record on all three, acknowledged by two at least.

Any one of them may be killed, frozen or restarted, and the other two go on.
"""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from sandbox.brokers.apache import Kafka4
from sandbox.brokers.child import BrokerError
from sandbox.brokers.probe import free_port, live_brokers

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0.12, imported on 3.11
    from kafka.admin import KafkaAdminClient

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 3
_ID = "c2FuZGJveC1jbHVzdGVyMQ"  # 16 bytes in base64, the same on every node; any will do
_HEAP = "256m"
_START_SECONDS = 90.0
_POLL_SECONDS = 0.2
_REPLICATED = {
    "default.replication.factor": SIZE,
    "min.insync.replicas": SIZE - 1,
    "offsets.topic.replication.factor": SIZE,
    "transaction.state.log.replication.factor": SIZE,
    "transaction.state.log.min.isr": SIZE - 1,
}


class Node(Kafka4):
    """One of the three; a broker of its own process, to be killed, frozen and started like any other."""

    def __init__(self, folder: Path, port: int, number: int, controllers: dict[int, int]) -> None:
        super().__init__(folder, port, number=number, controllers=controllers, cluster_id=_ID, heap=_HEAP)
        self.number = number

    def _properties(self) -> dict[str, object]:
        return super()._properties() | _REPLICATED


class Cluster:
    """Three nodes on 127.0.0.1, their data, configuration and logs in one folder each.

    The addresses are fixed when the object is made, with `port` to `port` + 2. As a context manager it starts on
    entry and stops on exit.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        ports = [free_port() if port is None else port + number for number in range(SIZE)]
        controllers = {number: free_port() for number in range(1, SIZE + 1)}
        self.nodes = [
            Node(folder / f"node-{number}", port, number, controllers) for number, port in enumerate(ports, 1)
        ]

    @property
    def bootstrap_servers(self) -> str:
        """All three addresses, separated by commas."""
        return ",".join(node.bootstrap_servers for node in self.nodes)

    @property
    def running(self) -> bool:
        """Whether all three processes exist."""
        return all(node.running for node in self.nodes)

    def log_tail(self) -> str:
        """Return the end of the log of a node that does not run, else of the first."""
        return next((node for node in self.nodes if not node.running), self.nodes[0]).log_tail()

    def start(self) -> None:
        """Start what does not run and return when each node knows of all three; `BrokerError` after 90 s."""
        try:
            for node in self.nodes:
                node.begin()
            self._until(self._complete, "three brokers that know of each other")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all nodes cleanly, at the same time: the last one alone could not agree with anybody to leave."""
        with ThreadPoolExecutor(SIZE) as pool:
            list(pool.map(lambda node: node.stop(), self.nodes))

    def leader(self, topic: str, partition: int) -> Node:
        """Return the node that leads a partition."""
        number = self._partitions(topic)[partition]["leader_id"]
        return next(node for node in self.nodes if node.number == number)

    def wait_until_in_sync(self, *topics: str) -> None:
        """Return when each partition of the topics is on all three nodes again; `BrokerError` after 90 s."""
        self._until(lambda: all(self._in_sync(topic) for topic in topics), "every replica in sync")

    def _in_sync(self, topic: str) -> bool:
        return all(len(partition["isr_nodes"]) == SIZE for partition in self._partitions(topic))

    def _partitions(self, topic: str) -> list[dict[str, Any]]:
        with KafkaAdminClient(bootstrap_servers=self.bootstrap_servers) as admin:
            (found,) = admin.describe_topics([topic])
        return sorted(found["partitions"], key=lambda partition: int(partition["partition_index"]))

    def _complete(self) -> bool:
        for node in self.nodes:
            if not node.running:
                raise BrokerError(f"node {node.number} ended while it was starting{node.log_tail()}")
        return all(live_brokers(node.port) == SIZE for node in self.nodes)

    def _until(self, holds: Any, what: str) -> None:  # noqa: ANN401 - a function without arguments
        deadline = time.monotonic() + _START_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise BrokerError(f"not within {_START_SECONDS:.0f} s: {what}{self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
